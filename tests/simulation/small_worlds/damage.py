"""The recovery decision table, each row by damage to a real ring; and every bit of a small journal, flipped.

A ring is written by the journal itself, committed so that the proof of durability is where the case wants it,
and then one pack is damaged. What the pack is after that decides the row, and the row what a start must do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from enum import Enum
from itertools import product

from target.errors import IntegrityError
from target.group import Access
from target.journal.record import (
    BLOCK_BYTES,
    Lsn,
    PackHeader,
    RecordType,
    SequenceNumber,
    decode_header,
    encode_header,
)
from target.journal.recovery import TABLE, Chain, Data, Decision, Durability, Finding, Header
from target.journal.ring import Journal, NewRecord
from target.journal.superblock import COPIES, SUPERBLOCK_BYTES, Position
from tests.simulation.sim_disk import SimDisk
from tests.simulation.small_worlds.machine import JOURNAL, Machine, used_world
from tests.simulation.small_worlds.operations import Gap, Image, Operation, Step, images
from tests.simulation.small_worlds.recovering import Wrong
from tests.simulation.small_worlds.tracing import Trace
from tests.unit.journal.packs import commit, moved_tail, new_journal, reopen, update

PACKS_MAX = 4
_PACK_BYTES = 2 * BLOCK_BYTES
_RING_BYTES = 12 * BLOCK_BYTES


class Proof(Enum):
    """What says that the damaged pack was durable."""

    NONE = "nothing"
    SUPERBLOCK = "the superblock"
    LATER_PACK = "the header of a pack further on"
    LATER_PAD = "the header of a pad further on"


class Layout(Enum):
    """Where in the ring the packs lie."""

    FRESH = "from its start; it held zeros"
    USED = "from its start; it held the packs of the lap before"
    OVER_THE_END = "the second one is behind a pad and at the start of the next lap"


@dataclass(frozen=True, slots=True)
class Harm:
    """One way to damage a pack, and what it is then."""

    name: str
    header: Header
    chain: Chain
    data: Data
    do: Callable[[SimDisk, Journal, int, PackHeader], None]


@dataclass(frozen=True, slots=True)
class Case:
    """A ring of `packs`, the one of number `damaged` (from 0) is."""

    layout: Layout
    packs: int
    damaged: int
    applied: bool
    """Whether the damaged pack is below the checkpoint: its data are on the volumes, and not looked at."""
    proof: Proof
    harm: Harm

    @property
    def finding(self) -> Finding:
        data = self.harm.data
        if self.applied and self.harm.header is Header.OK:
            data = Data.OK
        proven = Durability.UNPROVEN if self.proof is Proof.NONE else Durability.PROVEN
        return Finding(self.harm.header, self.harm.chain, data, proven)

    def __str__(self) -> str:
        return (
            f"{self.harm.name} in pack {self.damaged} of {self.packs}, ring {self.layout.name}, "
            f"proof {self.proof.name}{', applied' if self.applied else ''}"
        )


# -- harm --


def _nothing(disk: SimDisk, journal: Journal, place: int, header: PackHeader) -> None:
    pass


def _flip(at: int) -> Callable[[SimDisk, Journal, int, PackHeader], None]:
    def do(disk: SimDisk, journal: Journal, place: int, header: PackHeader) -> None:
        disk.corrupt(place + at, bytes([disk.pread(1, place + at)[0] ^ 0x10]))

    return do


def _zeros(start: int, stop: int) -> Callable[[SimDisk, Journal, int, PackHeader], None]:
    def do(disk: SimDisk, journal: Journal, place: int, header: PackHeader) -> None:
        disk.corrupt(place + start, bytes(stop - start))

    return do


def _other(
    *, then: Callable[[SimDisk, Journal, int, PackHeader], None] = _nothing, **changes: object
) -> Callable[[SimDisk, Journal, int, PackHeader], None]:
    """The header is right in itself, but says something else."""

    def do(disk: SimDisk, journal: Journal, place: int, header: PackHeader) -> None:
        fields: dict[str, object] = {
            "group_id": header.group_id,
            "epoch": header.epoch,
            "reign": header.reign,
            "first_sequence": header.first_sequence,
            "time_ns": header.time_ns,
            "previous_digest": header.previous_digest,
            "lsn": header.lsn,
            "durable_lsn": header.durable_lsn,
            "descriptors": [header.raw[start : start + 32] for start in range(128, len(header.raw), 32)],
            "data_length": header.data_length,
        }
        for name, change in changes.items():
            fields[name] = fields[name] + change if isinstance(change, int) else change  # type: ignore[operator]
        disk.corrupt(place, encode_header(**fields).ljust(BLOCK_BYTES, b"\0"))  # type: ignore[arg-type]
        then(disk, journal, place, header)

    return do


_BAD = (Header.BAD, Chain.BROKEN, Data.BAD)
THE_LAP_BEFORE = Harm("a pack of the lap before", *_BAD, _other(lsn=-_RING_BYTES))


def harms() -> Iterator[Harm]:
    """Every kind of damage."""
    yield Harm("no damage", Header.OK, Chain.OK, Data.OK, _nothing)
    for at in (BLOCK_BYTES, BLOCK_BYTES + 511, BLOCK_BYTES + 512, _PACK_BYTES - 1):
        yield Harm(f"a bit of data at {at}", Header.OK, Chain.OK, Data.BAD, _flip(at))
    for start in range(BLOCK_BYTES, _PACK_BYTES, 512):
        torn = _zeros(start, _PACK_BYTES)
        yield Harm(f"data torn at {start}", Header.OK, Chain.OK, Data.BAD, torn)
    digest = b"\x11" * 32
    yield Harm("another history", Header.OK, Chain.BROKEN, Data.OK, _other(previous_digest=digest))
    both = _other(previous_digest=digest, then=_flip(BLOCK_BYTES + 7))
    yield Harm("another history, torn", Header.OK, Chain.BROKEN, Data.BAD, both)
    for at in (0, 8, 10, 12, 16, 32, 40, 48, 56, 64, 95, 96, 104, 112, 120, 124, 127, 128, 159):
        yield Harm(f"a bit of the header at {at}", *_BAD, _flip(at))
    yield Harm("header not written", *_BAD, _zeros(0, BLOCK_BYTES))
    yield Harm("nothing written", *_BAD, _zeros(0, _PACK_BYTES))
    yield Harm("another group", *_BAD, _other(group_id=bytes(16)))
    yield THE_LAP_BEFORE
    yield Harm("a pack of the next lap", *_BAD, _other(lsn=_RING_BYTES))
    yield Harm("a sequence number too low", *_BAD, _other(first_sequence=-1))
    yield Harm("a sequence number too high", *_BAD, _other(first_sequence=1))


def cases() -> Iterator[Case]:
    """Every combination that can be written."""
    for layout, packs, applied, proof in product(Layout, range(1, PACKS_MAX + 1), (False, True), Proof):
        for damaged in range(packs):
            if not _possible(layout, packs, damaged, applied, proof):
                continue
            for harm in harms():
                if layout is Layout.FRESH and harm is THE_LAP_BEFORE:
                    continue
                yield Case(layout, packs, damaged, applied, proof, harm)


def _possible(layout: Layout, packs: int, damaged: int, applied: bool, proof: Proof) -> bool:
    if proof is Proof.LATER_PACK and damaged == packs - 1:
        return False
    if proof is Proof.LATER_PAD and (layout is not Layout.OVER_THE_END or damaged != 0 or packs < 2):
        return False
    # What is below the checkpoint is proven by the superblock that has it.
    return not applied or proof is Proof.SUPERBLOCK


# -- one case --


def run(case: Case) -> None:
    """Build, damage, start; `Wrong` when the start does not do what the table says."""
    disk, journal = _ring(case.layout)
    for number in range(case.packs):
        journal.append([update(number + 1)], number)
        if number == case.damaged and case.proof in (Proof.LATER_PACK, Proof.LATER_PAD):
            commit(journal)
    boundaries = [journal.index.boundary(number) for number in range(case.packs)]
    boundaries.append(journal.head)
    _prove(disk, journal, case)
    place = journal.place(boundaries[case.damaged].lsn)
    if case.proof is Proof.LATER_PAD:
        disk.corrupt(journal.place(boundaries[1].lsn), bytes(BLOCK_BYTES))  # only the pad can prove it
    header = decode_header(disk.pread(BLOCK_BYTES, place))
    assert header is not None
    assert header.lsn == boundaries[case.damaged].lsn
    case.harm.do(disk, journal, place, header)
    _expect(disk, journal, case, boundaries)


def _ring(layout: Layout) -> tuple[SimDisk, Journal]:
    disk, journal = new_journal(_RING_BYTES)
    commit(journal)
    if layout is Layout.FRESH:
        return disk, journal
    packs = _RING_BYTES // _PACK_BYTES
    for number in range(packs if layout is Layout.USED else packs + 4):
        journal.append([update(0x80 + number)], 0)
        commit(journal)
        moved_tail(journal)
    if layout is Layout.OVER_THE_END:
        journal.append(
            [NewRecord(RecordType.ZERO, 0, 1, 0, BLOCK_BYTES, b"")], 0
        )  # one block, and three are left
        commit(journal)
        moved_tail(journal)
    return disk, journal


def _prove(disk: SimDisk, journal: Journal, case: Case) -> None:
    """The superblock says what the case wants, and its packs' headers what they said when written."""
    disk.flush()
    tail = journal.superblock.tail
    durable, sequence = tail.lsn, tail.sequence
    checkpoint = (tail.lsn, tail.sequence)
    if case.proof is Proof.SUPERBLOCK:
        durable, sequence = journal.head.lsn, journal.head.sequence
    if case.applied:
        checkpoint = (journal.head.lsn, journal.head.sequence)
    told = replace(
        journal.superblock,
        durable_lsn=Lsn(durable),
        durable_sequence=SequenceNumber(sequence),
        checkpoint_lsn=Lsn(checkpoint[0]),
        checkpoint_sequence=SequenceNumber(checkpoint[1]),
    )
    for generation in (told.generation + 1, told.generation + 2):
        block = told.with_generation(generation).encode()
        disk.corrupt(generation % COPIES * SUPERBLOCK_BYTES, block)


def _expect(disk: SimDisk, journal: Journal, case: Case, boundaries: list[Position]) -> None:
    decision = TABLE[case.finding]
    opened, _ = reopen(disk)
    found = opened.journal.head
    if decision is Decision.ACCEPT:
        reached = 1 if case.proof is Proof.LATER_PAD else case.packs
        wanted = boundaries[reached]
    else:
        wanted = boundaries[case.damaged]
    if (found.sequence, found.digest) != (wanted.sequence, wanted.digest):
        raise Wrong(f"the journal ends behind record {found.sequence}, not {wanted.sequence}")
    corrupt = opened.corruption is not None
    if corrupt != (decision is Decision.CORRUPT):
        raise Wrong(f"{decision} was wanted, found: {opened.corruption}")
    again, _ = reopen(disk)
    if again.journal.head != found or (again.corruption is not None) != corrupt:
        raise Wrong("a second start found something else")
    if decision is Decision.CUT:
        opened.journal.append([update(0x77)], 0)
        commit(opened.journal)
        after, _ = reopen(disk)
        # A pad of what was cut may lie behind: it is not part of the chain, and moves the LSN alone.
        written = (opened.journal.head.sequence, opened.journal.head.digest)
        if (
            after.journal.head.sequence,
            after.journal.head.digest,
        ) != written or after.corruption is not None:
            raise Wrong("what was written behind the cut was not found again")


# -- every bit --


def flips(wide: bool) -> tuple[int, int]:
    """Flip each bit of a small journal, one at a time, and start: the content is right up to what is proven,
    or the start is refused. In data every 64th byte, and every byte with `wide`. Returns (flips, refusals).
    """
    world = used_world()
    machine = Machine(world.make(frozenset()))
    base: Image = machine.view()
    first = machine.group.journal.head
    steps = tuple(
        Step(operation, Gap.FLUSH) for operation in (Operation.ALIGNED, Operation.CROSSING, Operation.FUA)
    )
    for number, (operation, _) in enumerate(steps, start=1):
        machine.submit(operation, number, Trace())
        machine.flush(number, Trace())
    expected = images([operation for operation, _ in steps], base)
    journal = machine.group.journal
    disks = machine.disks
    saved = {name: disk.backup() for name, disk in disks.items()}
    count = refusals = 0
    for offset in _offsets(journal, wide):
        for bit in range(8):
            for name, disk in disks.items():
                disk.restore_backup(saved[name])
            old = disks[JOURNAL].pread(1, offset)[0]
            disks[JOURNAL].corrupt(offset, bytes([old ^ 1 << bit]))
            count += 1
            refusals += _refused(disks, first.sequence, expected, f"bit {bit} of byte {offset}")
    return count, refusals


def _offsets(journal: Journal, wide: bool) -> Iterator[int]:
    for copy in range(COPIES):
        start = copy * SUPERBLOCK_BYTES
        yield from range(start, start + SUPERBLOCK_BYTES, 1 if wide else 61)
    for number in range(len(journal.index)):
        place = journal.place(journal.index.boundary(number).lsn)
        yield from range(place, place + 160)
        yield from range(place + 160, place + _PACK_BYTES, 1 if wide else 61)


def _refused(disks: dict[str, SimDisk], first: int, expected: list[Image], what: str) -> bool:
    try:
        machine = Machine(disks)
    except IntegrityError:
        return True
    if machine.group.access is Access.FAILED:
        return True
    records = machine.group.journal.head.sequence - first
    if not len(expected) - 2 <= records < len(expected):
        raise Wrong(f"{what}: {records} records are left")
    if machine.view() != expected[records]:
        raise Wrong(f"{what}: a block is wrong")
    return False
