"""The block commands, complete: every field, any number of volume calls. SBC-3.

READ and WRITE without flags take the short way in `logical_unit`; everything else about the medium comes
here. A handler gets the unit, the command and its whole CDB, in which no reserved bit is set, and returns the
result, sense data, or the steps that lead to one of them (`chain`).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from functools import partial

from target.scsi import cdb as cdbs
from target.scsi.chain import Steps
from target.scsi.command import GOOD, ScsiCommand, ScsiResult, Status
from target.scsi.operation import Outcome
from target.scsi.sense import (
    PARAMETER_LIST_LENGTH_ERROR,
    Sense,
    invalid_field_in_cdb,
    invalid_field_in_parameter_list,
    lba_out_of_range,
    miscompare_during_verify,
)
from target.scsi.unit_state import UnitState

CHUNK_BYTES = 1 << 20
"""What a command in steps reads or writes at a time: the most memory it holds beside its own data."""

_UNMAP_HEADER = struct.Struct(">HH4x")
_UNMAP_DESCRIPTOR = struct.Struct(">QI4x")

# BYTCHK (SBC-3, *VERIFY (10) command*).
_MEDIUM_ONLY, _ALL_BYTES, _RESERVED, _ONE_BLOCK = range(4)


def read(unit: UnitState, command: ScsiCommand, cdb: bytes) -> Outcome:
    extent = unit.byte_range(cdb, unit.limits.transfer_bytes_max)
    if isinstance(extent, Sense):
        return extent
    if extent[1] == 0:
        return GOOD
    return _read_steps(unit, *extent, fua=len(cdb) > 6 and bool(cdb[1] & cdbs.FUA))


def _read_steps(unit: UnitState, offset: int, length: int, *, fua: bool) -> Steps:
    if fua:  # what is returned must be on the medium
        yield unit.volume.flush
    data = yield partial(unit.volume.read, offset, length)
    assert data is not None
    return ScsiResult(Status.GOOD, (data,))


def write(unit: UnitState, command: ScsiCommand, cdb: bytes) -> Outcome:
    """When the initiator sent less than the CDB says, the whole blocks that came are written, and the result
    says how many bytes it would have taken.
    """
    extent = unit.byte_range(cdb, unit.limits.transfer_bytes_max)
    if isinstance(extent, Sense):
        return extent
    if (protection := unit.write_protection()) is not None:
        return protection
    fua = unit.write_through or (len(cdb) > 6 and bool(cdb[1] & cdbs.FUA))
    return _write_steps(unit, extent[0], *_data_out(unit, command, extent[1]), fua=fua)


def _data_out(unit: UnitState, command: ScsiCommand, length: int) -> tuple[memoryview, ScsiResult]:
    """The whole blocks that came, `length` bytes at the most; GOOD, with the length if it differs."""
    came = memoryview(command.data_out)
    whole = min(length, len(came) >> unit.block_shift << unit.block_shift)
    return came[:whole], GOOD if len(came) == length else ScsiResult(Status.GOOD, data_out_length=length)


def _write_steps(unit: UnitState, offset: int, data: memoryview, good: ScsiResult, *, fua: bool) -> Steps:
    if data:
        if unit.gate.closed:
            data = memoryview(bytes(data))  # the command's own are gone after this turn
        yield partial(unit.gate.through, partial(unit.volume.write, offset, data, fua))
    return good


def write_atomic(unit: UnitState, command: ScsiCommand, cdb: bytes) -> Outcome:
    """One write is one record of the journal: after a crash, and at a secondary, it is there whole or not at
    all. ATOMIC BOUNDARY is zero: no part of it may be apart.
    """
    blocks = int.from_bytes(cdb[12:14], "big")
    extent = unit.byte_extent(int.from_bytes(cdb[2:10], "big"), blocks)
    if isinstance(extent, Sense):
        return extent
    offset, length = extent
    if length > unit.limits.atomic_bytes_max:
        return invalid_field_in_cdb(12)
    if (protection := unit.write_protection()) is not None:
        return protection
    if len(command.data_out) != length:
        return PARAMETER_LIST_LENGTH_ERROR
    fua = unit.write_through or bool(cdb[1] & cdbs.FUA)
    return _write_steps(unit, offset, memoryview(command.data_out), GOOD, fua=fua)


def write_and_verify(unit: UnitState, command: ScsiCommand, cdb: bytes) -> Outcome:
    """The write is durable before it is verified."""
    bytchk = cdb[1] >> cdbs.BYTCHK_SHIFT & 3
    if bytchk not in (_MEDIUM_ONLY, _ALL_BYTES):
        return invalid_field_in_cdb(1, 2)
    extent = unit.byte_range(cdb, unit.limits.transfer_bytes_max)
    if isinstance(extent, Sense):
        return extent
    if (protection := unit.write_protection()) is not None:
        return protection
    data, good = _data_out(unit, command, extent[1])
    # The copy outlives the turn, which the command's own data do not.
    return _write_and_verify_steps(unit, extent[0], data, good, bytes(data) if bytchk == _ALL_BYTES else None)


def _write_and_verify_steps(
    unit: UnitState, offset: int, data: memoryview, good: ScsiResult, expected: bytes | None
) -> Steps:
    length = len(data)
    if not length:
        return good
    if unit.gate.closed:
        data = memoryview(bytes(data))
    yield partial(unit.gate.through, partial(unit.volume.write, offset, data, True))
    outcome = yield from _verify_steps(unit, offset, length, expected)
    return good if outcome is GOOD else outcome


def verify(unit: UnitState, command: ScsiCommand, cdb: bytes) -> Outcome:
    bytchk = cdb[1] >> cdbs.BYTCHK_SHIFT & 3
    if bytchk == _RESERVED:
        return invalid_field_in_cdb(1, 2)
    extent = unit.byte_range(cdb, unit.limits.transfer_bytes_max)
    if isinstance(extent, Sense):
        return extent
    offset, length = extent
    if length == 0:
        return GOOD
    if bytchk == _MEDIUM_ONLY:
        return _verify_steps(unit, offset, length, None)
    expected_bytes = length if bytchk == _ALL_BYTES else unit.block_size_bytes
    if len(command.data_out) < expected_bytes:
        return PARAMETER_LIST_LENGTH_ERROR
    return _verify_steps(unit, offset, length, bytes(command.data_out[:expected_bytes]))


def _verify_steps(unit: UnitState, offset: int, length: int, expected: bytes | None) -> Steps:
    """Read the range and compare it with `expected`, as long as the range, or one block for all of it."""
    for position, count in chunks(length):
        data = yield partial(unit.volume.read, offset + position, count)
        assert data is not None
        if expected is None:
            continue
        if len(expected) < length:
            difference = first_difference(bytes(data), expected * (count // len(expected)))
            place = difference % len(expected)
        else:
            difference = first_difference(bytes(data), expected[position : position + count])
            place = position + difference
        if difference >= 0:
            return miscompare_during_verify(place)
    return GOOD


def first_difference(one: bytes, other: bytes) -> int:
    """Where two values of one length differ first, -1 when they do not."""
    if one == other:
        return -1
    low, high = 0, len(one)
    while high - low > 1:  # the first difference is in [low, high)
        middle = (low + high) // 2
        if one[low:middle] != other[low:middle]:
            high = middle
        else:
            low = middle
    return low


def pre_fetch(unit: UnitState, command: ScsiCommand, cdb: bytes) -> Outcome:
    """Reads what fits one transfer; zero blocks mean up to the end."""
    extent = unit.byte_range(cdb, unit.volume.size_bytes)
    if isinstance(extent, Sense):
        return extent
    offset, length = extent
    length = length or (unit.block_count << unit.block_shift) - offset
    return _verify_steps(unit, offset, min(length, unit.limits.transfer_bytes_max), None)


def synchronize_cache(unit: UnitState, command: ScsiCommand, cdb: bytes) -> Outcome:
    """All of the volume is flushed, whatever the range, and IMMED does not make the status come earlier: both
    are more than was asked for.
    """
    extent = unit.byte_range(cdb, unit.volume.size_bytes)
    return extent if isinstance(extent, Sense) else flush_steps(unit)


def flush_steps(unit: UnitState) -> Steps:
    yield unit.volume.flush
    return GOOD


def write_same(unit: UnitState, command: ScsiCommand, cdb: bytes) -> Outcome:
    """Zeros are deallocated, with UNMAP or without; any other block is written."""
    if cdb[1] & cdbs.ANCHOR:
        return invalid_field_in_cdb(1, 4)
    _, blocks = cdbs.block_range(cdb)
    if blocks == 0:  # WSNZ
        return invalid_field_in_cdb(cdbs.blocks_byte(cdb))
    extent = unit.byte_range(cdb, unit.limits.write_same_bytes_max)
    if isinstance(extent, Sense):
        return extent
    if (protection := unit.write_protection()) is not None:
        return protection
    if cdb[0] == cdbs.Opcode.WRITE_SAME_16 and cdb[1] & cdbs.NDOB:
        return _zero_steps(unit, [extent])
    if len(command.data_out) != unit.block_size_bytes:
        return PARAMETER_LIST_LENGTH_ERROR
    block = bytes(command.data_out)
    if not any(block):
        return _zero_steps(unit, [extent])
    return _write_same_steps(unit, *extent, block)


def _write_same_steps(unit: UnitState, offset: int, length: int, block: bytes) -> Steps:
    yield unit.expansion_gate.enter
    try:
        pattern = memoryview(block * (min(length, CHUNK_BYTES) // len(block)))
        for position, count in chunks(length):
            write = partial(unit.volume.write, offset + position, pattern[:count], unit.write_through)
            yield partial(unit.gate.through, write)
    finally:
        unit.expansion_gate.leave()
    return GOOD


def unmap(unit: UnitState, command: ScsiCommand, cdb: bytes) -> Outcome:
    """Every descriptor is checked before the first is executed."""
    if cdb[1] & 0x01:  # ANCHOR
        return invalid_field_in_cdb(1, 0)
    length = int.from_bytes(cdb[7:9], "big")
    if length == 0:
        return GOOD
    if (protection := unit.write_protection()) is not None:
        return protection
    data = bytes(command.data_out[:length])
    if length < _UNMAP_HEADER.size or len(data) < length:
        return PARAMETER_LIST_LENGTH_ERROR
    extents = _unmap_extents(unit, data)
    if isinstance(extents, Sense):
        return extents
    return _zero_steps(unit, extents)


def _unmap_extents(unit: UnitState, data: bytes) -> list[tuple[int, int]] | Sense:
    _, descriptors_bytes = _UNMAP_HEADER.unpack_from(data)
    # An incomplete last descriptor is ignored (SBC-3, *UNMAP command*).
    count = min(descriptors_bytes, len(data) - _UNMAP_HEADER.size) // _UNMAP_DESCRIPTOR.size
    if count > unit.limits.unmap_descriptors_max:
        return invalid_field_in_parameter_list(2)
    extents: list[tuple[int, int]] = []
    total = 0
    for index in range(count):
        at = _UNMAP_HEADER.size + index * _UNMAP_DESCRIPTOR.size
        lba, blocks = _UNMAP_DESCRIPTOR.unpack_from(data, at)
        if lba + blocks > unit.block_count:
            return lba_out_of_range(max(lba, unit.block_count))
        total += blocks << unit.block_shift
        if total > unit.limits.unmap_bytes_max:
            return invalid_field_in_parameter_list(at + 8)
        if blocks:
            extents.append((lba << unit.block_shift, blocks << unit.block_shift))
    return extents


def _zero_steps(unit: UnitState, extents: list[tuple[int, int]]) -> Steps:
    for offset, length in extents:
        yield partial(unit.gate.through, partial(unit.volume.zero, offset, length, unit.write_through))
    return GOOD


def chunks(length: int) -> Iterator[tuple[int, int]]:
    for position in range(0, length, CHUNK_BYTES):
        yield position, min(CHUNK_BYTES, length - position)
