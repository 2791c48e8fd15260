"""The engine of one site on the smallest disks that it takes, driven step by step."""

from __future__ import annotations

from target.group import ConsistencyGroup, GroupSettings
from target.group_volume import GroupVolume
from target.journal.format import VolumeShape, format_journal, read_superblock
from target.open_group import open_group
from target.volume import Buffer, VolumeError
from tests.simulation.sim_disk import SimDisk
from tests.simulation.small_worlds.crash_states import Disks
from tests.simulation.small_worlds.operations import (
    GRANULE,
    SECTOR,
    VOLUME_BYTES,
    Gap,
    Image,
    Operation,
    Step,
    content,
    granule,
)
from tests.simulation.small_worlds.stepping import StepScheduler
from tests.simulation.small_worlds.tracing import Trace

GROUP_ID = bytes(range(16))
RING_BYTES = 64 << 10
_AREAS_BYTES = 32768 + 16 * 2 * 2 * 4096
"""Superblocks and bitmaps: in front of the ring."""

JOURNAL = "journal"
SHAPES = tuple(VolumeShape(name, size, SECTOR) for name, size in VOLUME_BYTES.items())


class Answered:
    """A `target.volume.Request`."""

    def __init__(self) -> None:
        self.ended = False
        self.data = b""
        self.error: VolumeError | None = None

    def done(self, data: Buffer | None = None) -> None:
        self.ended = True
        self.data = b"" if data is None else bytes(data)

    def failed(self, error: VolumeError) -> None:
        self.ended = True
        self.error = error


class _Write(Answered):
    """The answer of a command of a sequence: the host knows then that it happened, and perhaps for good."""

    def __init__(self, trace: Trace, number: int, durable: bool) -> None:
        super().__init__()
        self._trace, self._number, self._durable = trace, number, durable

    def done(self, data: Buffer | None = None) -> None:
        super().done(data)
        self._trace.acknowledged(self._number)
        if self._durable:
            self._trace.durable(self._number)

    def failed(self, error: VolumeError) -> None:
        raise AssertionError(f"command {self._number} was refused: {error}")


class Machine:
    """One start of the engine on some disks."""

    def __init__(self, disks: dict[str, SimDisk]) -> None:
        self.disks = disks
        self.scheduler = StepScheduler()
        self.group: ConsistencyGroup = open_group(
            self.scheduler,
            GroupSettings("group1"),
            disks[JOURNAL],
            SHAPES,
            {name: disks[name] for name in VOLUME_BYTES},
        )
        self.volumes = {entry.name: GroupVolume(self.group, entry, "") for entry in self.group.volumes}

    # -- as a host --

    def submit(self, operation: Operation, number: int, trace: Trace) -> None:
        """Send a command; its turn does not end."""
        volume = self.volumes[operation.volume]
        answer = _Write(trace, number, operation.fua)
        trace.submitted()
        if operation.zeros:
            volume.zero(operation.offset, operation.length, operation.fua, answer)
        else:
            volume.write(operation.offset, content(operation, number), operation.fua, answer)

    def run(self, steps: tuple[Step, ...], trace: Trace) -> None:
        """A whole sequence, and all that follows until the machine has nothing to do."""
        for number, (operation, gap) in enumerate(steps, start=1):
            self.submit(operation, number, trace)
            if gap is Gap.NEXT_TURN:
                self.scheduler.end_turn()
            elif gap is Gap.FLUSH:
                self.flush(number, trace)
            elif gap is Gap.SETTLED:
                self.settle()
        self.settle()

    def flush(self, number: int, trace: Trace) -> None:
        """Wait for a flush; every command before it is durable then."""
        answer = _Write(trace, number, durable=True)
        self.volumes["data"].flush(answer)
        self.scheduler.run_until(lambda: answer.ended)

    def settle(self) -> None:
        """Until all is applied, a checkpoint is made and the ring is free. A secondary's primary has heard of
        all it received.
        """
        journal = self.group.journal
        if self.group.background.following:
            self.scheduler.run_until(lambda: journal.durable.lsn == journal.head.lsn)
            self.group.mirrors.primary_knows = journal.head.sequence
            self.group.mirrors.move_tail()

        def settled() -> bool:
            return (
                journal.superblock.checkpoint_sequence == journal.head.sequence
                and journal.superblock.tail.sequence == journal.head.sequence
                and not journal.commit_needed
                and not self.group.write_path.committing
            )

        self.scheduler.run_until(settled)

    def view(self) -> Image:
        """What a host reads now, before anything else happens."""
        found = {}
        for name, volume in self.volumes.items():
            answer = Answered()
            volume.read(0, volume.size_bytes, answer)
            assert answer.ended
            assert answer.error is None, answer.error
            found[name] = answer.data
        return found

    def on_disk(self) -> Image:
        """What the data volumes themselves hold."""
        return {name: self.disks[name].snapshot() for name in VOLUME_BYTES}


def new_disks() -> dict[str, SimDisk]:
    """A journal that was just formatted, volumes of zeros."""
    disks = {name: SimDisk(size) for name, size in VOLUME_BYTES.items()}
    disks[JOURNAL] = SimDisk(_AREAS_BYTES + RING_BYTES)
    disks[JOURNAL].fill()
    format_journal(disks[JOURNAL], GROUP_ID, SHAPES, ring_bytes_min=RING_BYTES)
    return disks


def new_world() -> Disks:
    """Before the very first start."""
    return Disks(new_disks())


def used_world() -> Disks:
    """In use for some laps: under each block of the ring lies an old header, and one block is left of this
    lap, so that the next pack needs a pad in front of it.
    """
    disks = new_disks()
    machine = Machine(disks)
    journal = machine.group.journal
    trace = Trace()
    for name, size in VOLUME_BYTES.items():
        machine.volumes[name].write(0, granule(0) * (size // GRANULE), False, Answered())
        machine.settle()
    while journal.head.lsn < 2 * RING_BYTES or journal.head.lsn % RING_BYTES != RING_BYTES - GRANULE:
        machine.volumes["data"].zero(SECTOR, SECTOR, False, Answered())
        machine.flush(0, trace)
        machine.settle()
    assert read_superblock(disks[JOURNAL]) is not None
    return Disks(disks)
