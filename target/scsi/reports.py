"""Commands that report: what is mapped, defects, task management functions, target port groups.

SBC-3 and SPC-4. Handlers as in `media_commands`.
"""

from __future__ import annotations

import struct

from target.scsi.command import ScsiCommand
from target.scsi.inquiry import TARGET_PORT_GROUP
from target.scsi.operation import Outcome
from target.scsi.sense import UNRECOVERED_READ_ERROR, Sense
from target.scsi.unit_commands import data_in
from target.scsi.unit_state import UnitState
from target.volume import SECTOR_BYTES

_LBA_STATUS_HEADER = struct.Struct(">I4x")
_LBA_STATUS_DESCRIPTOR = struct.Struct(">QIB3x")
_MAPPED, _DEALLOCATED = 0, 1
_LBA_STATUS_WINDOW_BYTES = 256 << 10
_LBA_STATUS_BYTES_MAX = 16 << 20
"""How much of the volume one GET LBA STATUS looks at; an initiator asks on where the last descriptor ends."""

# SPC-4, *REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS*: ABORT TASK, ABORT TASK SET, CLEAR TASK SET, LOGICAL
# UNIT RESET, TARGET RESET.
_FUNCTIONS = 0x80 | 0x40 | 0x10 | 0x08 | 0x02

_EXTENDED_HEADER = 1
_ACTIVE_OPTIMIZED = 0x0
_ONLY_ACTIVE_OPTIMIZED = 0x01


def get_lba_status(unit: UnitState, command: ScsiCommand, cdb: bytes) -> Outcome:
    """Runs of blocks that are mapped, or that hold zeros and no space; a block with one mapped sector is
    mapped.
    """
    lba, allocation_length = int.from_bytes(cdb[2:10], "big"), int.from_bytes(cdb[10:14], "big")
    extent = unit.byte_extent(lba, 1)
    if isinstance(extent, Sense):
        return extent
    room = max(1, (allocation_length - _LBA_STATUS_HEADER.size) // _LBA_STATUS_DESCRIPTOR.size)
    try:
        runs = _allocation(unit, extent[0], room)
    except OSError:
        return UNRECOVERED_READ_ERROR
    body = b""
    for blocks, mapped in runs:
        body += _LBA_STATUS_DESCRIPTOR.pack(lba, blocks, _MAPPED if mapped else _DEALLOCATED)
        lba += blocks
    # Measured: looking up takes half the time of reading.
    command.worked(sum(blocks for blocks, _ in runs) << unit.block_shift >> 1)
    return data_in(_LBA_STATUS_HEADER.pack(len(body) + 4) + body, allocation_length)


def _allocation(unit: UnitState, offset: int, count: int) -> list[tuple[int, bool]]:
    """The first `count` runs of blocks from an offset on: (number of blocks, mapped). OSError."""
    step = unit.block_size_bytes // SECTOR_BYTES
    end = min(offset + _LBA_STATUS_BYTES_MAX, unit.block_count << unit.block_shift)
    window = _LBA_STATUS_WINDOW_BYTES
    runs: list[tuple[int, bool]] = []
    while offset < end and len(runs) <= count:  # when one more has begun, those before are whole
        length = min(window, end - offset)
        sectors = bytes(unit.volume.allocation(offset, length))
        at = 0
        while at < len(sectors):
            stop, mapped = _run(sectors, at, step)
            blocks = (stop - at) // step
            if runs and runs[-1][1] == mapped:
                blocks += runs.pop()[0]
            runs.append((blocks, mapped))
            at = stop
        offset += length
        window *= 2
    return runs[:count]


def _run(sectors: bytes, start: int, step: int) -> tuple[int, bool]:
    """Where the run of equal blocks that begins at `start` ends, and whether they are mapped."""
    mapped = 1 in sectors[start : start + step]
    if not mapped:
        found = sectors.find(1, start)
        return (len(sectors) if found < 0 else found - (found - start) % step), False
    end = start + step
    while end < len(sectors):
        end = sectors.find(0, end)
        if end < 0:
            return len(sectors), True
        end -= (end - start) % step
        if 1 not in sectors[end : end + step]:
            return end, True
        end += step
    return len(sectors), True


def read_defect_data_10(unit: UnitState, command: ScsiCommand, cdb: bytes) -> Outcome:
    """The lists that were asked for, which are empty: what lies below hides its defects."""
    return data_in(struct.pack(">xBH", cdb[2] & 0x1F, 0), int.from_bytes(cdb[7:9], "big"))


def read_defect_data_12(unit: UnitState, command: ScsiCommand, cdb: bytes) -> Outcome:
    return data_in(struct.pack(">xBHI", cdb[1] & 0x1F, 0, 0), int.from_bytes(cdb[6:10], "big"))


def report_supported_task_management_functions(unit: UnitState, command: ScsiCommand, cdb: bytes) -> Outcome:
    repd = bool(cdb[2] & 0x80)
    data = struct.pack(">BBxB12x", _FUNCTIONS, 0, 12) if repd else struct.pack(">B3x", _FUNCTIONS)
    return data_in(data, int.from_bytes(cdb[6:10], "big"))


def report_target_port_groups(unit: UnitState, command: ScsiCommand, cdb: bytes) -> Outcome:
    """One group, active/optimized, always, with the port that the command came through, if that is known.

    A write-protected secondary is so too: it is read through any path, which no other state allows, and no
    other path of it would take writes, since the primary is another logical unit.
    """
    ports = [command.nexus.relative_target_port] if command.nexus.target_port else []
    body = struct.pack(
        ">BBHxxxB", _ACTIVE_OPTIMIZED, _ONLY_ACTIVE_OPTIMIZED, TARGET_PORT_GROUP, len(ports)
    ) + b"".join(struct.pack(">xxH", port) for port in ports)
    if cdb[1] >> 5 == _EXTENDED_HEADER:
        body = struct.pack(">Bxxx", _EXTENDED_HEADER << 4) + body
    return data_in(len(body).to_bytes(4, "big") + body, int.from_bytes(cdb[6:10], "big"))
