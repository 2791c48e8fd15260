"""From the journal to the data volumes: one function for the primary's background and for restoring.

It reads a stretch of the durable journal, checks it again, lets many writes to one block become one, and
writes the data volumes in ascending order. Everything it does may be done twice. Runs on a worker thread; it
touches devices and nothing else.

Invariants: only what is durable in the journal is applied (I1, I3); records take effect in sequence order,
and a stretch ends exactly at `limit` (I2); doing it again changes nothing (I5).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

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
from target.journal.scan import Pack, RingReader, behind, walk
from target.journal.superblock import Position
from target.overlay import GRANULE_BYTES, ZERO, Generation, Granules
from target.volume import Buffer

STRETCH_BYTES_MAX = 16 << 20
_IOVECS_MAX = 256


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
    volumes. `verify` is off while a copy is not complete: what is not a point of the sequence yet cannot be
    compared.
    """

    start: Position
    done: SequenceNumber
    end_lsn: int
    limit: SequenceNumber
    group_id: bytes
    own_reign: int | None
    verify: bool


def restore(stretch: Stretch, reader: RingReader, volumes: Mapping[int, BlockDevice]) -> Restored:
    """Restore a stretch, at most about 16 MiB of it.

    Raises IntegrityError when the journal is not what it was (nothing of the bad pack is restored), OSError
    when a device fails.
    """
    result = Restored(stretch.start, stretch.done)
    batch = _Batch(volumes)
    for pack in walk(reader, stretch.start, stretch.end_lsn, stretch.group_id):
        finished = _take(pack, stretch, result, batch, volumes)
        if not finished:
            break
        result.position = behind(pack.header)
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


def _take(
    pack: Pack, stretch: Stretch, result: Restored, batch: _Batch, volumes: Mapping[int, BlockDevice]
) -> bool:
    """Take a pack's records up to the limit; False when the limit is inside."""
    sequence = pack.header.first_sequence
    held: Buffer | None = None
    own = pack.header.reign == stretch.own_reign
    for record in pack.header.descriptors():
        if sequence > stretch.limit:
            return False
        if sequence > stretch.done:
            if own and record.type in COPIED:
                pass
            elif record.type in RESTORABLE:
                if record.data_length and held is None:
                    held = bytes(pack.view)  # the reader's window moves on
                    batch.hold(held)
                batch.put(record)
            elif record.type == RecordType.VERIFY and not stretch.verify:
                pass
            elif record.type == RecordType.VERIFY:
                result.bytes_written += batch.write()
                if held is not None:
                    batch.hold(held)
                _verify(pack, record, SequenceNumber(sequence), result, volumes)
            else:
                _note(pack, record, SequenceNumber(sequence), result)
            result.sequence = SequenceNumber(sequence)
        sequence = SequenceNumber(sequence + 1)
    return True


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
    """Records on their way to the volumes, coalesced; positions are places in the packs that are held."""

    def __init__(self, volumes: Mapping[int, BlockDevice]) -> None:
        self._volumes = volumes
        self._generation = Generation()
        self._packs: list[memoryview] = []
        self._starts: list[int] = []
        self.held_bytes = 0

    def hold(self, pack: Buffer) -> None:
        """Records put from now on lie in this pack."""
        self._packs.append(memoryview(pack))
        self._starts.append(self.held_bytes)
        self.held_bytes += len(pack)

    def put(self, record: Descriptor) -> None:
        if record.data_length:
            self._generation.put(
                record.volume, record.offset, record.length, self._starts[-1] + record.data_offset
            )
        else:
            self._generation.put(record.volume, record.offset, record.length, ZERO)

    def write(self) -> int:
        """Write what is collected and begin anew; returns the bytes written."""
        written = 0
        whole = memoryview(b"".join(self._packs)) if len(self._packs) != 1 else self._packs[0]
        for number, granules in self._generation.granules.items():
            written += _write_volume(self._volumes[number], granules, whole)
        self._generation = Generation()
        self._packs.clear()
        self._starts.clear()
        self.held_bytes = 0
        return written


def _write_volume(device: BlockDevice, granules: Granules, whole: memoryview) -> int:
    written = 0
    run: list[memoryview] = []
    run_offset = run_end = zero_offset = zero_end = 0
    parts: list[tuple[int, int]] = []
    whole_granules = sorted((granule, place) for granule, place in granules.items() if isinstance(place, int))
    for granule, value in whole_granules:
        offset = granule * GRANULE_BYTES
        if value == ZERO:
            if offset == zero_end:
                zero_end += GRANULE_BYTES
            else:
                device.punch(zero_offset, zero_end - zero_offset) if zero_end else None
                zero_offset, zero_end = offset, offset + GRANULE_BYTES
            continue
        if run and (offset != run_end or len(run) >= _IOVECS_MAX):
            device.pwritev(run, run_offset)
            run = []
        if not run:
            run_offset = run_end = offset
            parts.clear()
        if parts and parts[-1][1] == value:
            start = parts[-1][0]
            parts[-1] = (start, value + GRANULE_BYTES)
            run[-1] = whole[start : value + GRANULE_BYTES]
        else:
            parts.append((value, value + GRANULE_BYTES))
            run.append(whole[value : value + GRANULE_BYTES])
        run_end += GRANULE_BYTES
        written += GRANULE_BYTES
    if run:
        device.pwritev(run, run_offset)
    if zero_end:
        device.punch(zero_offset, zero_end - zero_offset)
    for granule, parts_of in granules.items():
        if isinstance(parts_of, int):
            continue
        for part in parts_of:
            offset = granule * GRANULE_BYTES + part.start
            length = part.stop - part.start
            if part.position == ZERO:
                device.pwritev([bytes(length)], offset)
            else:
                device.pwritev([whole[part.position : part.position + length]], offset)
            written += length
    return written
