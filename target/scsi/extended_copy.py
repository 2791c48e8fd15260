"""EXTENDED COPY and RECEIVE COPY RESULTS: a copy from block to block that no host has to carry. SPC-4.

Handlers as in `media_commands`. What is copied is read and written piece by piece like a host's commands:
through the destination's gate, into its journal, in order; pieces of zeros are deallocated. Source and
destination are logical units of the same device, and the reservations of both count.
"""

from __future__ import annotations

from functools import partial

from target.scsi.chain import Steps
from target.scsi.command import GOOD, Nexus, ScsiCommand
from target.scsi.extended_copy_data import (
    CopyList,
    CopyStatus,
    Segment,
    decode_copy_list,
    encode_operating_parameters,
)
from target.scsi.inquiry import naa_identifier
from target.scsi.media_commands import chunks
from target.scsi.operation import Outcome
from target.scsi.reservations import Access
from target.scsi.sense import (
    COPY_SEGMENT_FAILED,
    COPY_TARGET_UNREACHABLE,
    PARAMETER_LIST_LENGTH_ERROR,
    Sense,
    copy_aborted,
    invalid_field_in_cdb,
)
from target.scsi.unit_commands import data_in
from target.scsi.unit_state import UnitState


def extended_copy(unit: UnitState, command: ScsiCommand, cdb: bytes) -> Outcome:
    length = int.from_bytes(cdb[10:14], "big")
    if length == 0:
        return GOOD
    if len(command.data_out) < length:
        return PARAMETER_LIST_LENGTH_ERROR
    copy = decode_copy_list(bytes(command.data_out[:length]))
    return copy if isinstance(copy, Sense) else _copy_steps(unit, command.nexus, copy)


def _copy_steps(unit: UnitState, nexus: Nexus, copy: CopyList) -> Steps:
    yield unit.expansion_gate.enter
    try:
        return (yield from _segment_steps(unit, nexus, copy))
    finally:
        unit.expansion_gate.leave()


def _segment_steps(unit: UnitState, nexus: Nexus, copy: CopyList) -> Steps:
    by_name = {naa_identifier(each.volume.serial): each for each in unit.device_units()}
    units = [None if name is None else by_name.get(name) for name in copy.cscds]
    copied_bytes = 0
    for number, segment in enumerate(copy.segments):
        planned = _plan(units, nexus, segment)
        if isinstance(planned, Sense):
            _keep(unit, nexus, copy, CopyStatus(False, number, copied_bytes >> 10))
            return planned
        source, source_offset, destination, offset, length = planned
        for position, count in chunks(length):
            data = yield partial(source.volume.read, source_offset + position, count)
            assert data is not None
            content = bytes(data)
            if content.count(0) == count:
                step = partial(destination.volume.zero, offset + position, count, destination.write_through)
            else:
                step = partial(
                    destination.volume.write, offset + position, content, destination.write_through
                )
            yield partial(destination.gate.through, step)
            copied_bytes += count
    _keep(unit, nexus, copy, CopyStatus(True, len(copy.segments), copied_bytes >> 10))
    return GOOD


def _keep(unit: UnitState, nexus: Nexus, copy: CopyList, status: CopyStatus) -> None:
    """The results of a nexus' last copy, for RECEIVE COPY RESULTS."""
    if copy.holds_results and nexus in unit.attentions.nexuses:  # it may be gone meanwhile
        unit.copy_results[nexus] = (copy.list_id, status)


def _plan(
    units: list[UnitState | None], nexus: Nexus, segment: Segment
) -> tuple[UnitState, int, UnitState, int, int] | Sense:
    """(source, offset, destination, offset, length), or why the segment cannot be copied."""
    if max(segment.source, segment.destination) >= len(units):
        return COPY_TARGET_UNREACHABLE
    source, destination = units[segment.source], units[segment.destination]
    if source is None or destination is None:
        return COPY_TARGET_UNREACHABLE
    if not (_admits(source, nexus, Access.READERS) and _admits(destination, nexus, Access.HOLDERS)):
        return COPY_TARGET_UNREACHABLE
    read = source.byte_extent(segment.source_lba, segment.blocks)
    if isinstance(read, Sense):
        return COPY_SEGMENT_FAILED
    length = read[1]
    written = destination.byte_extent(segment.destination_lba, length >> destination.block_shift)
    if isinstance(written, Sense) or written[1] != length:  # not a whole number of blocks there
        return COPY_SEGMENT_FAILED
    if (protection := destination.write_protection()) is not None:
        return copy_aborted(protection)
    return source, read[0], destination, written[0], length


def _admits(unit: UnitState, nexus: Nexus, access: Access) -> bool:
    return unit.reserved_by in (None, nexus) and unit.reservations.admits(nexus, access) and not unit.ejected


def receive_copy_status(unit: UnitState, command: ScsiCommand, cdb: bytes) -> Outcome:
    """Given once: then the results are not held any more."""
    list_id, status = unit.copy_results.get(command.nexus, (None, None))
    if status is None or list_id != cdb[2]:
        return invalid_field_in_cdb(2)
    del unit.copy_results[command.nexus]
    return data_in(status.encode(), int.from_bytes(cdb[10:14], "big"))


def receive_operating_parameters(unit: UnitState, command: ScsiCommand, cdb: bytes) -> Outcome:
    return data_in(encode_operating_parameters(), int.from_bytes(cdb[10:14], "big"))
