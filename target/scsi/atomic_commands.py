"""Commands that read, decide and write as one action: COMPARE AND WRITE and ORWRITE (SBC-3).

Handlers as in `media_commands`. The range is read once before the gate, so that a cold read does not keep
other writes waiting; then the command enters, waits until everything written before can be read, reads again,
and leaves with its own write. Between those two no other write reaches the volume.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from target.scsi import cdb as cdbs
from target.scsi.chain import Steps
from target.scsi.command import GOOD, ScsiCommand
from target.scsi.media_commands import first_difference
from target.scsi.operation import Outcome
from target.scsi.sense import (
    PARAMETER_LIST_LENGTH_ERROR,
    Sense,
    invalid_field_in_cdb,
    miscompare_during_verify,
)
from target.scsi.unit_state import UnitState

Change = Callable[[bytes], bytes | Sense]
"""What the range holds -> what it shall hold, or why nothing is written."""

_COMPARE_AND_WRITE_BLOCKS_BYTE = 13


def compare_and_write(unit: UnitState, command: ScsiCommand, cdb: bytes) -> Outcome:
    """The data are the blocks to compare with, then those to write; one number of blocks counts for both."""
    blocks = cdb[_COMPARE_AND_WRITE_BLOCKS_BYTE]
    extent = unit.byte_extent(int.from_bytes(cdb[2:10], "big"), blocks)
    if isinstance(extent, Sense):
        return extent
    offset, length = extent
    if length > unit.limits.compare_and_write_bytes_max or len(command.data_out) != 2 * length:
        return invalid_field_in_cdb(_COMPARE_AND_WRITE_BLOCKS_BYTE)
    if (protection := unit.write_protection()) is not None:
        return protection
    if not length:
        return GOOD
    compared, written = bytes(command.data_out[:length]), bytes(command.data_out[length:])

    def change(content: bytes) -> bytes | Sense:
        difference = first_difference(content, compared)
        return written if difference < 0 else miscompare_during_verify(difference)

    return _read_modify_write(unit, offset, length, change, fua=bool(cdb[1] & cdbs.FUA))


def or_write(unit: UnitState, command: ScsiCommand, cdb: bytes) -> Outcome:
    extent = unit.byte_range(cdb, unit.limits.transfer_bytes_max)
    if isinstance(extent, Sense):
        return extent
    offset, length = extent
    if (protection := unit.write_protection()) is not None:
        return protection
    if len(command.data_out) < length:
        return PARAMETER_LIST_LENGTH_ERROR
    if not length:
        return GOOD
    mask = int.from_bytes(command.data_out[:length], "big")

    def change(content: bytes) -> bytes:
        return (int.from_bytes(content, "big") | mask).to_bytes(length, "big")

    return _read_modify_write(unit, offset, length, change, fua=bool(cdb[1] & cdbs.FUA))


def _read_modify_write(unit: UnitState, offset: int, length: int, change: Change, *, fua: bool) -> Steps:
    volume = unit.volume
    yield partial(volume.read, offset, length)  # only to have it in memory
    yield unit.gate.enter
    written: bytes | Sense | None = None
    try:
        yield volume.barrier
        content = yield partial(volume.read, offset, length)
        assert content is not None
        written = change(bytes(content))
    finally:
        if not isinstance(written, bytes):
            unit.gate.leave()
    if not isinstance(written, bytes):
        return written
    write = partial(volume.write, offset, written, fua or unit.write_through)
    yield partial(unit.gate.leave_with, write)
    return GOOD
