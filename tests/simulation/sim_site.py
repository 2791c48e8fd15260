"""One simulated site: disks that outlive everything, two processes, and a machine that may lose its power.

Also what is known of it from outside: where its journal really stands, and what it has promised.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from target.group import Access
from target.journal.format import VolumeShape, format_journal
from target.journal.record import NO_DIGEST
from target.journal.superblock import Position
from tests.simulation.history import Image, Node, apply
from tests.simulation.sim_agent import SimAgent
from tests.simulation.sim_disk import SimDisk
from tests.simulation.sim_scheduler import WALL_START_NS
from tests.simulation.sim_target import SimTarget
from tests.simulation.site import Answer
from tests.simulation.violation import Crash, Violation

if TYPE_CHECKING:
    from tests.simulation.world import World

RING_BYTES_MIN = 4 << 20


class SimSite:
    """Disks, subsystem, agent."""

    def __init__(
        self, world: World, name: str, shapes: tuple[VolumeShape, ...], journal_bytes: int, state_dir: str
    ) -> None:
        self.world = world
        self.name = name
        self.shapes = shapes
        self.disks = {shape.name: SimDisk(shape.size_bytes) for shape in shapes}
        self.journal_disk = SimDisk(journal_bytes)
        self.wall_offset_seconds = world.clock.random.uniform(-100.0, 100.0)
        self.slowness = 1.0
        self.throttle = False
        self.group_id = world.clock.random.randbytes(16)
        superblock = format_journal(self.journal_disk, self.group_id, shapes, RING_BYTES_MIN)
        self.volume_names = {volume.id: volume.name for volume in superblock.volumes}
        self.journal_disk.fill()
        self.node: Node = world.history.root(self.group_id, name)
        """The last pack its journal holds, durable or not."""
        self.really_durable: Node = self.node
        """The last pack that is on the medium of its journal disk, whatever the engine thinks."""
        self.claimed: Node | None = self.node
        """The last pack the engine called durable; None while it changes to another history."""
        self.restarts = 0
        self.required: Node | None = None
        """The last pack with a write that a host may count on, whatever happens."""
        self.acknowledged: Node | None = None
        """The last pack with a write that was acknowledged: lost only when the machine stops."""
        self.failed_on_purpose = False
        """A disk of it was made to fail: it may refuse everything until it is started again."""
        self.target_tail_sequence = 0
        """Where the ring began when its history was given up: what lay before it could not be exported."""
        self.marked_at = 0.0
        """When the last marker was answered here."""
        self._image: tuple[Node, Image] | None = None
        self._crash_countdown: int | None = None
        self._crash_power = False
        self.lost_power = False
        self.target = SimTarget(world, self)
        self.agent = SimAgent(world, self, state_dir)
        self._watch_disks()

    def wall_ns(self) -> int:
        return WALL_START_NS + int((self.world.clock.now + self.wall_offset_seconds) * 1e9)

    # -- life --

    def start_target(self) -> None:
        if not self.target.alive:
            self.target.start()

    def start_agent(self) -> None:
        if not self.agent.alive:
            self.agent.start()

    def kill_target(self) -> None:
        if self.target.alive:
            self.target.kill()
            self.world.tell("stopped", self, False)

    def power_off(self) -> None:
        """The machine stops; unflushed writes may or may not have reached the disks."""
        self._crash_countdown = None
        if self.target.alive:
            self.target.kill()
        self.agent.kill()
        self.lost_power = True
        for disk in (*self.disks.values(), self.journal_disk):
            disk.power_off(self.world.clock.random)
        self.world.tell("stopped", self, True)

    def crash_after(self, operations: int, *, power: bool) -> None:
        """Stop in front of the disk operation with this number, counted from now."""
        self._crash_countdown, self._crash_power = operations, power

    def crash_now(self) -> None:
        """The countdown ended, or was waited for long enough."""
        self._crash_countdown = None
        if self._crash_power:
            self.power_off()
        else:
            self.target.alive = True  # it may have died while it started
            self.kill_target()

    @property
    def crash_pending(self) -> bool:
        return self._crash_countdown is not None

    def _watch_disks(self) -> None:
        def operation() -> None:
            if self._crash_countdown is not None:
                self._crash_countdown -= 1
                if self._crash_countdown < 0:
                    raise Crash(self)

        def journal_flushed() -> None:
            self.really_durable = self.node

        for name, disk in self.disks.items():
            disk.on_operation = operation
            disk.cold_chance = lambda: self.world.cold_chance > self.world.clock.random.random()
            disk.on_write = lambda offset, data, name=name: self.world.tell(
                "data_written", self, name, offset, data
            )
        self.journal_disk.on_operation = operation
        self.journal_disk.on_flush = journal_flushed

    # -- what the journal does --

    def recovered(self) -> None:
        """The subsystem has opened its journal: it must hold what was promised."""
        journal = self.target.group.journal
        head = self.world.history.find(journal.head.digest, journal.superblock.group_id)
        if head is None or head.last != journal.head.sequence:
            raise Violation(f"{self.name} recovered to {journal.head}, which nobody ever wrote")
        self.node = self.really_durable = head
        self.world.tell("started", self, self.lost_power)
        self.lost_power = False
        self.claimed = head

    def appended(self, node: Node) -> None:
        image = self.image()
        self.world.tell("appending", self, node, image)
        for record in node.records:
            apply(image, record)
        self.node = node
        self._image = (node, image)
        node.forget_copies()
        self.world.tell("appended", self, node)

    def received(self, node: Node) -> None:
        self.node = node
        self.world.tell("received", self, node)

    def restarting(self) -> None:
        """Another history from here on."""
        journal = self.target.group.journal
        found: Node | None
        if journal.head.digest == NO_DIGEST:  # nobody's copy: a history of its own begins with what is there
            content = {n: bytearray(self.disks[name].snapshot()) for n, name in self.volume_names.items()}
            found = self.world.history.new_root(self.name, content)
        else:
            found = self.world.history.find(journal.head.digest, journal.superblock.group_id)
        if found is None or found.last != journal.head.sequence:
            raise Violation(f"{self.name} follows from {journal.head}, which nobody ever wrote")
        before, self.node = self.node, found
        self.really_durable = found
        self.claimed = self.required = self.acknowledged = None
        self.restarts += 1
        self._image = None
        self.world.tell("followed", self, before, found)

    def claimed_durable(self, position: Position) -> None:
        if self.node.parent is None:
            self.world.history.name_root(self.target.group.journal.superblock.group_id, self.node)
        self.claimed = self.world.history.at_sequence(self.node, position.sequence)
        self.world.tell("claimed", self, self.claimed)

    # -- what must be seen --

    @property
    def group_failed(self) -> bool:
        return self.target.group.access is Access.FAILED

    @property
    def reads_fail(self) -> bool:
        return any(disk.fail_reads is not None for disk in (*self.disks.values(), self.journal_disk))

    def read_now(self, volume: str, offset: int, length: int) -> bytes:
        """Through the overlay, as a host reads; everything has to be in memory."""
        answer = Answer()
        self.target.volumes[volume].read(offset, length, answer)
        if answer.data is None:
            raise Violation(f"{volume} of {self.name} cannot be read: {answer.error}")
        return answer.data

    def image(self) -> Image:
        """What a host must read here now, if this site serves."""
        if self._image is None or self._image[0] is not self.node:
            self._image = (self.node, self.world.history.image(self.node))
        return self._image[1]

    def must_hold(self, node: Node, *, durable: bool) -> None:
        """A host was told that this is done (`durable`: for good)."""
        if durable and (self.required is None or node.last > self.required.last):
            self.required = node
        if self.acknowledged is None or node.last > self.acknowledged.last:
            self.acknowledged = node
