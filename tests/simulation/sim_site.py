"""What one machine has of one group: disks that outlive everything, and the group in a process that may not.

Also what is known of it from outside: where its journal really stands, and what it has promised.
"""

from __future__ import annotations

import errno
import random
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from crc32c import crc32c

from target.group import Access
from target.journal.format import VolumeShape, format_journal
from target.journal.record import BLOCK_BYTES, NO_DIGEST, RecordType, decode_header
from target.journal.ring import Journal, NewRecord
from target.journal.superblock import COPIES, SUPERBLOCK_BYTES, Position, decode
from tests.simulation.history import Image, Node, apply, stamp_of
from tests.simulation.sim_disk import SimDisk
from tests.simulation.sim_target import SimGroup
from tests.simulation.site import Answer
from tests.simulation.violation import Violation

if TYPE_CHECKING:
    from tests.simulation.scene import Scene
    from tests.simulation.sim_agent import SimAgent
    from tests.simulation.sim_machine import SimMachine

RING_BYTES_MIN = 4 << 20


class SimSite:
    """Disks, a group, and what is known of it."""

    target: SimGroup
    restarts: int

    def __init__(
        self, world: Scene, machine: SimMachine, shapes: tuple[VolumeShape, ...], journal_bytes: int
    ) -> None:
        self.world = world
        self.machine = machine
        self.name = machine.name
        self.shapes = shapes
        self.disks = {shape.name: SimDisk(shape.size_bytes) for shape in shapes}
        self.journal_disk = SimDisk(journal_bytes)
        self.throttle = False
        self.group_id = world.clock.random.randbytes(16)
        superblock = format_journal(self.journal_disk, self.group_id, shapes, RING_BYTES_MIN)
        self._ring_offset = superblock.ring_offset
        self.volume_names = {volume.id: volume.name for volume in superblock.volumes}
        self.journal_disk.fill()
        self.node: Node = world.history.root(self.group_id, self.name)
        """The last pack its journal holds, durable or not."""
        self.really_durable: Node = self.node
        """The last pack that is on the medium of its journal disk, whatever the engine thinks."""
        self.claimed: Node | None = self.node
        """The last pack the engine called durable; None while it changes to another history."""
        self.restarts = 0
        self.changes = 0
        """Grows with everything that could change what the volumes show."""
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
        self.excused = False
        """It lost something by what no software can undo: damage, an old backup, empty disks."""
        self.rotten = False
        """Blocks of its volumes changed at rest, and no verify pass has repaired them yet."""
        self.had_rot = False
        self.damaged_at: int | None = None
        """Where the journal volume was damaged at rest."""
        self._kept: list[tuple[dict[int, bytes], bytes]] | None = None
        self.refused: list[tuple[Node, list[NewRecord], int]] = []
        """What the journal refused since it last took something: the pack in front, records, their epoch."""
        self._image: tuple[Node, Image] | None = None
        self.target = SimGroup(self)
        self._watch_disks()

    @property
    def agent(self) -> SimAgent:
        return self.machine.agent

    @property
    def all_disks(self) -> list[SimDisk]:
        return [*self.disks.values(), self.journal_disk]

    # -- what becomes of the disks --

    def fail_disk(self, number: int, what: str, after: int) -> None:
        """A disk gives errors from the operation behind `after` on; a negative number means the journal's."""
        disk = self.journal_disk if number < 0 else list(self.disks.values())[number]
        error = OSError(errno.ENOSPC if what == "full" else errno.EIO, f"{what} fails")
        disk.fail_after, disk.fail_random = after, self.world.clock.random
        if what == "read":
            disk.fail_reads = error
        elif what == "flush":
            disk.fail_flushes = error
        else:
            disk.fail_writes = error
        self.failed_on_purpose = True

    def mend_disks(self) -> None:
        for disk in self.all_disks:
            disk.mend()

    def damage(self, what: str, number: int) -> None:
        """Bits of the journal volume change, or a write went astray; the machine is off.

        Only where the superblock proves that something durable stood: a last pack that was damaged at rest
        cannot be told from one that was torn.
        """
        disk, rng = self.journal_disk, random.Random(number)
        copies = [decode(disk.peek(SUPERBLOCK_BYTES, copy * SUPERBLOCK_BYTES)) for copy in range(COPIES)]
        good = sorted((copy.generation, number) for number, copy in enumerate(copies) if copy is not None)
        if what.endswith("superblock"):
            if len(good) < COPIES:
                return  # the other one is torn already
            place = good[0 if what.startswith("old") else -1][1] * SUPERBLOCK_BYTES + rng.randrange(600)
            disk.corrupt(place, bytes((disk.peek(1, place)[0] ^ 1 << rng.randrange(8),)))
        else:
            newest = copies[good[-1][1]]
            assert newest is not None
            length = newest.durable_lsn - newest.tail.lsn
            if not length:
                return
            places = [
                newest.ring_offset + (newest.tail.lsn + rng.randrange(length)) % newest.ring_bytes
                for _ in range(2)
            ]
            place = places[0]
            if what == "flip":
                disk.corrupt(place, bytes((disk.peek(1, place)[0] ^ 1 << rng.randrange(8),)))
            else:
                place -= place % BLOCK_BYTES
                other = places[1] - places[1] % BLOCK_BYTES
                disk.corrupt(place, disk.peek(BLOCK_BYTES, other))
        self.damaged_at = place
        self.failed_on_purpose = True
        if not what.endswith("superblock"):  # there the other copy leads to the same end
            self.excused = True

    def keep_disks(self) -> None:
        """A backup, of all disks at one moment."""
        self._kept = [disk.backup() for disk in self.all_disks]

    def revert_disks(self) -> None:
        """Back to the backup, if there is one; the machine is off."""
        if self._kept is None:
            return
        for disk, backup in zip(self.all_disks, self._kept, strict=True):
            disk.restore_backup(backup)
        self.excused = True
        self._forget_promises()

    def replace_disks(self) -> None:
        """Empty disks; the machine is off."""
        for name in self.disks:
            self.disks[name] = SimDisk(self.disks[name].size_bytes)
        self.renew_journal()

    def renew_journal(self) -> None:
        """An operator moves a journal volume away; the group begins a history with what the volumes hold."""
        sizes = {volume.name: volume.size_bytes for volume in self.target.group.volumes}
        self.shapes = tuple(replace(shape, size_bytes=sizes[shape.name]) for shape in self.shapes)
        self.journal_disk = SimDisk(self.journal_disk.size_bytes)
        self.group_id = self.world.clock.random.randbytes(16)
        format_journal(self.journal_disk, self.group_id, self.shapes, RING_BYTES_MIN)
        self.journal_disk.fill()
        content = {
            number: bytearray(self.disks[shape.name].snapshot()[: shape.size_bytes])
            for number, shape in enumerate(self.shapes, start=1)
        }
        self.node = self.really_durable = self.world.history.new_root(self.name, content)
        self.world.history.name_root(self.group_id, self.node)
        self.failed_on_purpose, self.damaged_at = False, None
        self.excused = True
        self._kept = None
        self._forget_promises()
        self._watch_disks()

    def _forget_promises(self) -> None:
        self.required = self.acknowledged = self.claimed = None

    def _watch_disks(self) -> None:
        def journal_flushed() -> None:
            self.really_durable = self.node

        for name, disk in self.disks.items():
            disk.on_operation = self.machine.disk_operation
            disk.cold_chance = lambda: self.world.cold_chance > self.world.clock.random.random()
            disk.on_write = partial(self._volume_written, name)
        self.journal_disk.on_operation = self.machine.disk_operation
        self.journal_disk.on_write = self._journal_written
        self.journal_disk.on_flush = journal_flushed

    def _journal_written(self, offset: int, data: bytes) -> None:
        if COPIES * SUPERBLOCK_BYTES <= offset < self._ring_offset:
            self.machine.bitmap_written()

    def _volume_written(self, name: str, offset: int, data: bytes) -> None:
        self.changes += 1
        self.world.tell("data_written", self, name, offset, data)

    # -- what the journal does --

    def recovered(self) -> None:
        """The subsystem has opened its journal: it must hold what was promised."""
        journal = self.target.group.journal
        self.changes += 1
        self._find_refused(journal)
        if journal.head.digest == NO_DIGEST:
            # A history of its own may have begun durably, in a commit of which nobody heard the end.
            begin = self.node
            while begin.parent is not None:
                begin = begin.parent
            self.world.history.name_root(journal.superblock.group_id, begin)
        head = self.world.history.find(journal.head.digest, journal.superblock.group_id)
        if head is None or head.last != journal.head.sequence:
            raise Violation(f"{self.name} recovered to {journal.head}, which nobody ever wrote")
        self.node = head
        if self.group_failed:  # it saw as much as it could read: the rest may be there yet
            self.world.tell("started", self, self.machine.lost_power)
            return
        self.really_durable = head
        self.world.tell("started", self, self.machine.lost_power)
        if self.damaged_at is None and not any(disk.failing for disk in self.all_disks):
            self.failed_on_purpose = False
        self.claimed = head

    def nodes(self, parent: Node, ends: list[Position], records: list[NewRecord], epoch: int) -> list[Node]:
        """Packs that end at these boundaries and hold these records, behind a pack that is known."""
        nodes: list[Node] = []
        start = 0
        for end in ends:
            count = end.sequence - parent.last
            part = records[start : start + count]
            parent = Node(end.digest, parent, parent.last + 1, part, self.name, self.world.clock.now, epoch)
            nodes.append(parent)
            start += count
        return nodes

    def _find_refused(self, journal: Journal) -> None:
        """A write that failed may be there all the same, or a part of it."""
        if not self.refused or self.world.history.find(journal.head.digest, journal.superblock.group_id):
            return
        ends = [journal.index.boundary(number) for number in range(len(journal.index))]
        parent, records, epoch = next(
            attempt for attempt in self.refused if self._is_there(journal, ends, *attempt[:2])
        )
        ends = [end for end in ends if end.sequence > parent.last]
        for node in self.nodes(parent, [*ends, journal.head], records, epoch):
            self.world.history.add(node)
            for number, record in enumerate(node.records):
                if record.type == RecordType.UPDATE:
                    write = stamp_of(record.data)
                    assert write is not None
                    self.world.history.node_of_write[write] = (node, node.first + number)
            node.forget_copies()

    def _is_there(
        self, journal: Journal, ends: list[Position], parent: Node, records: list[NewRecord]
    ) -> bool:
        """Whether the pack behind `parent` begins with these records: several may have been tried there."""
        begin = next(end for end in ends if end.sequence == parent.last)
        place = journal.place(begin.lsn)
        header = decode_header(self.journal_disk.peek(BLOCK_BYTES, place))
        if header is not None and header.is_pad:
            header = decode_header(self.journal_disk.peek(BLOCK_BYTES, journal.superblock.ring_offset))
        assert header is not None
        found = [(row.type, row.volume, row.offset, row.length, row.crc) for row in header.descriptors()]
        return found == [
            (r.type, r.volume, r.offset, r.length, crc32c(r.data) if r.data else 0)
            for r in records[: len(found)]
        ]

    def appended(self, node: Node) -> None:
        image = self.image()
        self.world.tell("appending", self, node, image)
        for record in node.records:
            apply(image, record)
        self.node = node
        self.changes += any(record.type in (RecordType.UPDATE, RecordType.ZERO) for record in node.records)
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
            content = {
                volume.id: bytearray(self.disks[volume.name].snapshot()[: volume.size_bytes])
                for volume in journal.superblock.volumes
            }
            found = self.world.history.new_root(self.name, content)
        else:
            found = self.world.history.find(journal.head.digest, journal.superblock.group_id)
        if found is None or found.last != journal.head.sequence:
            raise Violation(f"{self.name} follows from {journal.head}, which nobody ever wrote")
        before, self.node = self.node, found
        self.really_durable = found
        self.claimed = self.required = self.acknowledged = None
        self.restarts += 1
        self.changes += 1
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
        return any(disk.fail_reads is not None for disk in self.all_disks)

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
