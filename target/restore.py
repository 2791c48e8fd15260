"""From the journal to the data volumes: `restore` what was found or received, `apply` what was appended.

`restore` reads a stretch of the durable journal, checks it again, lets many writes to one block become one,
and writes the data volumes in ascending order. `apply` does the same with a generation of the overlay that
is durable in the journal, by its index. Everything may be done twice. Runs on a worker thread; it touches
devices and nothing else.

Invariants: only what is durable in the journal is applied (I1, I3); records take effect in sequence order,
and a stretch ends exactly at `limit` (I2); doing it again changes nothing (I5).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Protocol

from target.blockdev import BlockDevice
from target.errors import IntegrityError
from target.journal.record import (
    COPIED,
    RESTORABLE,
    Descriptor,
    EpochStart,
    Marker,
    RecordType,
    SequenceNumber,
)
from target.journal.scan import Pack, RingReader, walk
from target.journal.superblock import Position
from target.overlay import GRANULE_BYTES, ZERO, Generation, Granules, Partial
from target.volume import Buffer

STRETCH_BYTES_MAX = 8 << 20
ARENA_BYTES = STRETCH_BYTES_MAX + (2 << 20)
"""Room for a stretch as the journal is read for it, a window at a time."""

_IOVECS_MAX = 256
_PACK_SHIFT = 32
_PACK_MASK = (1 << _PACK_SHIFT) - 1
_PORTION_SHIFT = 12

_RUN_BYTES_MAX = 8 << 20


class _Source(Protocol):
    """Where the data lie: a journal, or packs that were read from it."""

    def view(self, length: int, offset: int) -> Buffer:
        """What is at a position; good until `drop_views`."""

    def drop_views(self) -> None:
        """What was viewed is written."""


@dataclass(frozen=True, slots=True)
class Extent:
    """A range of one volume."""

    volume: int
    offset: int
    length: int


@dataclass(slots=True)
class Restored:
    """How far a stretch came, and what it met on the way.

    `position` is a pack boundary; `sequence` may be inside the pack behind it, when the limit was.
    """

    position: Position
    sequence: SequenceNumber
    bytes_written: int = 0
    markers: list[tuple[SequenceNumber, Marker]] = field(default_factory=list)
    epochs: list[EpochStart] = field(default_factory=list)
    verified_extents: int = 0
    verified_sequence: SequenceNumber = SequenceNumber(0)
    mismatches: list[Extent] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Stretch:
    """What is to be restored: from a boundary (records up to `done` were restored before) to `limit` at most.

    `own_reign` is set on a primary: base and verify records of its own reign tell nothing new to its own
    volumes. `verify` is off while a copy is not complete, and before `verify_from` it is, too: what is not a
    point of the sequence cannot be compared.
    """

    start: Position
    done: SequenceNumber
    end_lsn: int
    limit: SequenceNumber
    group_id: bytes
    own_reign: int | None
    verify: bool
    verify_from: SequenceNumber = SequenceNumber(0)


def restore(stretch: Stretch, reader: RingReader, volumes: Mapping[int, BlockDevice]) -> Restored:
    """Restore a stretch, at most about 8 MiB of it.

    Raises IntegrityError when the journal is not what it was (nothing of the bad pack is restored), OSError
    when a device fails.
    """
    result = Restored(stretch.start, stretch.done)
    batch = _Batch(volumes)
    for pack in walk(reader, stretch.start, stretch.end_lsn, stretch.group_id):
        finished = _take(pack, stretch, result, batch, volumes)
        if not finished:
            break
        result.position = pack.end
        if batch.held_bytes >= STRETCH_BYTES_MAX or result.sequence >= stretch.limit:
            break
    result.bytes_written += batch.write()
    if (
        result.sequence == stretch.done
        and stretch.limit > stretch.done
        and stretch.start.lsn < stretch.end_lsn
    ):
        raise IntegrityError(
            f"the journal behind record {result.sequence} was durable and cannot be read any more "
            f"(LSN {result.position.lsn}): restoring stopped there; "
            "resync the pair or restore the journal volume"
        )
    return result


def apply(generation: Generation, journal: BlockDevice, volumes: Mapping[int, BlockDevice]) -> int:
    """Write a frozen generation to the data volumes, out of the journal it is durable in; returns the bytes.

    For what this process appended itself: the index says what is newest, as it does to reads, so nothing
    needs to be decoded, and nothing is read that was overwritten since. Measured: half of what reading the
    stretch back and checking it again costs. Raises OSError when a device fails.
    """
    try:
        return sum(
            _write_granules(volumes[number], granules, journal)
            for number, granules in generation.granules.items()
        )
    finally:
        journal.drop_views()


def _take(
    pack: Pack, stretch: Stretch, result: Restored, batch: _Batch, volumes: Mapping[int, BlockDevice]
) -> bool:
    """Take a pack's records up to the limit; False when the limit is inside."""
    header = pack.header
    sequence = header.first_sequence - 1
    own = header.reign == stretch.own_reign
    batch.hold(pack.view)
    for row in header.rows():
        sequence += 1
        if sequence > stretch.limit:
            result.sequence = stretch.limit
            return False
        record_type = row[0]
        if sequence <= stretch.done or (own and record_type in COPIED):
            continue
        if record_type in RESTORABLE:
            batch.put(row)
        elif record_type == RecordType.GROW:
            result.bytes_written += batch.write()
            batch.hold(pack.view)
            if not own:  # at home it was done before the record was written
                grow(Descriptor._make(row), volumes)
        elif record_type == RecordType.VERIFY:
            if stretch.verify and sequence > stretch.verify_from:
                result.bytes_written += batch.write()
                batch.hold(pack.view)
                _verify(pack, Descriptor._make(row), SequenceNumber(sequence), result, volumes)
        else:
            _note(pack, Descriptor._make(row), SequenceNumber(sequence), result)
    result.sequence = max(result.sequence, SequenceNumber(sequence))
    return True


def grow(record: Descriptor, volumes: Mapping[int, BlockDevice]) -> None:
    """The volume has the range of this record from here on, and it holds zeros."""
    device = volumes[record.volume]
    device.grow(record.offset + record.length)
    device.punch(record.offset, record.length)


def _note(pack: Pack, record: Descriptor, sequence: SequenceNumber, result: Restored) -> None:
    data = pack.view[record.data_offset : record.data_offset + record.data_length]
    if record.type == RecordType.MARKER:
        result.markers.append((sequence, Marker.decode(data)))
    elif record.type == RecordType.EPOCH:
        result.epochs.append(EpochStart.decode(data))


def _verify(
    pack: Pack,
    record: Descriptor,
    sequence: SequenceNumber,
    result: Restored,
    volumes: Mapping[int, BlockDevice],
) -> None:
    """Everything before the record is written: digest our own extent and compare."""
    expected = bytes(pack.view[record.data_offset : record.data_offset + record.data_length])
    own = hashlib.sha256(volumes[record.volume].pread(record.length, record.offset)).digest()
    result.verified_extents += 1
    result.verified_sequence = sequence
    if own != expected:
        result.mismatches.append(Extent(record.volume, record.offset, record.length))


class _Batch:
    """Records on their way to the volumes, coalesced. A position is the number of a held pack and a place
    in it.
    """

    def __init__(self, volumes: Mapping[int, BlockDevice]) -> None:
        self._volumes = volumes
        self._records: dict[int, list[_Record]] = {}
        self._packs: list[memoryview] = []
        self.held_bytes = 0

    def hold(self, pack: memoryview) -> None:
        """Records put from now on lie in this pack."""
        self._packs.append(pack)
        self.held_bytes += len(pack)

    def put(self, row: tuple[int, int, int, int, int, int, int, int]) -> None:
        """Take a record, given as the bare tuple of its `Descriptor`."""
        _, _, volume, data_length, offset, length, data_offset, _ = row
        position = (len(self._packs) - 1 << _PACK_SHIFT) + data_offset if data_length else ZERO
        records = self._records.get(volume)
        if records is None:
            records = self._records[volume] = []
        records.append((offset, length, position))

    def view(self, length: int, offset: int) -> memoryview:
        """As of a device, with positions of this batch."""
        start = offset & _PACK_MASK
        return self._packs[offset >> _PACK_SHIFT][start : start + length]

    def drop_views(self) -> None:
        """They are parts of the packs."""

    def write(self) -> int:
        """Write what is collected and begin anew; returns the bytes written."""
        written = 0
        for number, records in self._records.items():
            device = self._volumes[number]
            newest = _newest(records)
            if newest is not None:
                written += _write_records(device, newest, self)
                continue
            generation = Generation()
            for offset, length, position in records:
                generation.put(number, offset, length, position)
            written += _write_granules(device, generation.granules[number], self)
        self._records.clear()
        self._packs.clear()
        self.held_bytes = 0
        return written


_Record = tuple[int, int, int]
"""Offset and length on the volume, and the position of the data (or ZERO)."""


def _newest(records: list[_Record]) -> list[_Record] | None:
    """Ascending, the last of those that cover the same range; None when some overlap in another way.

    Nearly every batch is taken this way: it costs a step a record, where granules cost one each 4096 bytes.
    """
    newest: list[_Record] = []
    last_offset = last_length = end = -1
    for record in sorted(records, key=itemgetter(0)):  # stable: equal offsets stay in sequence order
        offset, length, _ = record
        if offset >= end:
            newest.append(record)
            last_offset, last_length, end = offset, length, offset + length
        elif offset == last_offset and length == last_length:
            newest[-1] = record
        else:
            return None
    return newest


def _write_records(device: BlockDevice, records: list[_Record], source: _Source) -> int:
    """Write ascending records that do not overlap, neighbours with one call."""
    written = 0
    run: list[Buffer] = []
    run_offset = run_end = zero_offset = zero_end = 0
    for offset, length, position in records:
        if position == ZERO:
            if offset != zero_end:
                if zero_end > zero_offset:
                    device.punch(zero_offset, zero_end - zero_offset)
                zero_offset = offset
            zero_end = offset + length
            continue
        if offset != run_end or len(run) >= _IOVECS_MAX:
            if run:
                device.pwritev(run, run_offset)
                written += run_end - run_offset
                run = []
            run_offset = offset
        run.append(source.view(length, position))
        run_end = offset + length
    if run:
        device.pwritev(run, run_offset)
        written += run_end - run_offset
    if zero_end > zero_offset:
        device.punch(zero_offset, zero_end - zero_offset)
    return written


def _write_granules(device: BlockDevice, granules: Granules, source: _Source) -> int:
    """Write the newest content of every granule, ascending, neighbours with one call; parts of granules
    last.
    """
    written = 0
    run: list[Buffer] = []
    run_offset = run_end = 0
    parts: list[tuple[int, Partial]] = []
    for offset, length, value in _pieces(granules, parts):
        full = len(run) >= _IOVECS_MAX or run_end - run_offset >= _RUN_BYTES_MAX
        if run and (full or offset != run_end or value == ZERO):
            device.pwritev(run, run_offset)
            source.drop_views()
            written += run_end - run_offset
            run = []
        if value == ZERO:
            device.punch(offset, length)
            continue
        if not run:
            run_offset = offset
        run.append(source.view(length, value))
        run_end = offset + length
    if run:
        device.pwritev(run, run_offset)
        written += run_end - run_offset
    for offset, fragments in parts:
        for part in fragments:
            length = part.stop - part.start
            device.pwritev(
                [bytes(length) if part.position == ZERO else source.view(length, part.position)],
                offset + part.start,
            )
            written += length
    return written


def _pieces(granules: Granules, parts: list[tuple[int, Partial]]) -> Iterator[tuple[int, int, int]]:
    """(offset, length, position) of granules that are neighbours on the volume and where they come from,
    ascending; those of which there are only parts go to `parts`.
    """
    first = follower = -1
    position = expected = ZERO
    for granule in _ascending(granules):
        value = granules[granule]
        if granule == follower and value == expected:
            follower += 1
            if expected != ZERO:
                expected += GRANULE_BYTES
            continue
        if first >= 0:
            yield first * GRANULE_BYTES, (follower - first) * GRANULE_BYTES, position
        if isinstance(value, int):
            first, position = granule, value
            follower, expected = granule + 1, value if value == ZERO else value + GRANULE_BYTES
        else:
            parts.append((granule * GRANULE_BYTES, value))
            first = follower = -1
    if first >= 0:
        yield first * GRANULE_BYTES, (follower - first) * GRANULE_BYTES, position


def _ascending(granules: Granules) -> Iterator[int]:
    """The numbers in order, sorted in portions: nobody else gets the interpreter while `sorted` has it."""
    portions: dict[int, list[int]] = {}
    for granule in granules:
        portion = portions.get(granule >> _PORTION_SHIFT)
        if portion is None:
            portions[granule >> _PORTION_SHIFT] = [granule]
        else:
            portion.append(granule)
    for number in sorted(portions):
        yield from sorted(portions[number])
