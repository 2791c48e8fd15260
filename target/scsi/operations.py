"""The table of commands: which CDB is executed by what, and which of its bits mean anything.

One table serves the dispatch, the check for reserved bits, REPORT SUPPORTED OPERATION CODES and
docs/scsi-support.md. A usage map has the CDB's length and a one wherever the device server looks (SPC-4,
*REPORT SUPPORTED OPERATION CODES command*); a one in a CDB where the map has a zero is a reserved or
unsupported field: INVALID FIELD IN CDB, with a pointer to that bit.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass

from target.scsi import media_commands as media
from target.scsi import unit_commands as unit
from target.scsi.cdb import (
    READ_CAPACITY_16_ACTION,
    REPORT_SUPPORTED_OPERATION_CODES_ACTION,
    Opcode,
)
from target.scsi.command import ScsiCommand
from target.scsi.media_commands import Outcome
from target.scsi.sense import INVALID_COMMAND_OPERATION_CODE, Sense, invalid_field_in_cdb
from target.scsi.unit_state import UnitState

Handler = Callable[[UnitState, ScsiCommand, bytes], Outcome]

_SERVICE_ACTION = 0x1F


@dataclass(frozen=True, slots=True)
class Operation:
    """One command. `handler` is None for what the device server executes without a logical unit."""

    opcode: Opcode
    name: str
    standard: str
    usage: bytes
    handler: Handler | None
    service_action: int | None = None
    remark: str = ""

    @property
    def length(self) -> int:
        return len(self.usage)


def _operation(
    name: str,
    standard: str,
    usage: str,
    handler: Handler | None,
    remark: str = "",
    *,
    service_action: int | None = None,
) -> Operation:
    raw = bytes.fromhex(usage)
    return Operation(Opcode(raw[0]), name, standard, raw, handler, service_action, remark)


def _report_supported_operation_codes(unit_: UnitState, command: ScsiCommand, cdb: bytes) -> Outcome:
    """SPC-4"""
    options, opcode, action = cdb[2] & 0x07, cdb[3], int.from_bytes(cdb[4:6], "big")
    timeouts = bool(cdb[2] & 0x80)
    allocation_length = int.from_bytes(cdb[6:10], "big")
    if options == 0:
        return unit.data_in(_all_commands(timeouts=timeouts), allocation_length)
    if options > 3:
        return invalid_field_in_cdb(2, 2)
    by_action = OPERATIONS_BY_OPCODE.get(opcode, {})
    if by_action and options in (1, 2) and (None in by_action) != (options == 1):
        return invalid_field_in_cdb(2, 2)
    found = by_action.get(None) if options != 2 else None
    if found is None and options != 1:
        found = by_action.get(action)
    return unit.data_in(_one_command(found, timeouts=timeouts), allocation_length)


_CTDP_IN_LIST, _SERVACTV = 0x02, 0x01
_CTDP_OF_ONE, _NOT_SUPPORTED, _SUPPORTED = 0x80, 0x01, 0x03
_NO_TIMEOUTS = struct.pack(">H10x", 10)  # zero says nothing about how long a command takes


def _all_commands(*, timeouts: bool) -> bytes:
    descriptors = b""
    for operation in OPERATIONS:
        action = operation.service_action
        flags = (_SERVACTV if action is not None else 0) | (_CTDP_IN_LIST if timeouts else 0)
        descriptors += struct.pack(">BxHxBH", operation.opcode, action or 0, flags, len(operation.usage))
        descriptors += _NO_TIMEOUTS if timeouts else b""
    return struct.pack(">I", len(descriptors)) + descriptors


def _one_command(operation: Operation | None, *, timeouts: bool) -> bytes:
    if operation is None:
        return struct.pack(">xBH", _NOT_SUPPORTED, 0)
    usage = bytearray(operation.usage)
    if operation.service_action is not None:
        usage[1] = operation.service_action
    flags = _SUPPORTED | (_CTDP_OF_ONE if timeouts else 0)
    return struct.pack(">xBH", flags, len(usage)) + usage + (_NO_TIMEOUTS if timeouts else b"")


_ZEROS_REMARK = "zeros, and UNMAP with zeros, deallocate; NUMBER OF LOGICAL BLOCKS must not be 0 (WSNZ)"
_VERIFY_REMARK = "BYTCHK 00b, 01b and 11b"
_FLUSH_REMARK = "flushes all of the volume; waits even with IMMED"

OPERATIONS: tuple[Operation, ...] = (
    _operation("TEST UNIT READY", "SPC-4", "00 00 00 00 00 00", unit.test_unit_ready),
    _operation("REQUEST SENSE", "SPC-4", "03 01 0000 ff 00", unit.request_sense, "fixed and descriptor"),
    _operation("READ (6)", "SBC-3", "08 1f ffff ff 00", media.read),
    _operation("WRITE (6)", "SBC-3", "0a 1f ffff ff 00", media.write),
    _operation("INQUIRY", "SPC-4", "12 01 ff ffff 00", unit.inquiry, "pages 00h, 80h, 83h, B0h, B1h, B2h"),
    _operation("MODE SELECT (6)", "SPC-4", "15 11 0000 ff 00", unit.mode_select_6, "WCE and SWP"),
    _operation(
        "MODE SENSE (6)",
        "SPC-4",
        "1a 08 ff ff ff 00",
        unit.mode_sense_6,
        "pages 08h, 0Ah, 3Fh; nothing saved",
    ),
    _operation(
        "START STOP UNIT",
        "SBC-3",
        "1b 01 00 00 f7 00",
        unit.start_stop_unit,
        "stop flushes, and the unit stays ready; no power conditions, no ejection",
    ),
    _operation("SEND DIAGNOSTIC", "SPC-4", "1d 04 00 0000 00", unit.send_diagnostic, "default self-test"),
    _operation("READ CAPACITY (10)", "SBC-3", "25 00 00000000 0000 00 00", unit.read_capacity_10),
    _operation("READ (10)", "SBC-3", "28 18 ffffffff 1f ffff 00", media.read, "DPO, FUA"),
    _operation("WRITE (10)", "SBC-3", "2a 18 ffffffff 1f ffff 00", media.write, "DPO, FUA"),
    _operation(
        "WRITE AND VERIFY (10)",
        "SBC-3",
        "2e 16 ffffffff 1f ffff 00",
        media.write_and_verify,
        "BYTCHK 00b and 01b",
    ),
    _operation("VERIFY (10)", "SBC-3", "2f 16 ffffffff 1f ffff 00", media.verify, _VERIFY_REMARK),
    _operation(
        "PRE-FETCH (10)",
        "SBC-3",
        "34 02 ffffffff 1f ffff 00",
        media.pre_fetch,
        "reads one maximum transfer at most",
    ),
    _operation(
        "SYNCHRONIZE CACHE (10)",
        "SBC-3",
        "35 06 ffffffff 1f ffff 00",
        media.synchronize_cache,
        _FLUSH_REMARK,
    ),
    _operation("WRITE SAME (10)", "SBC-3", "41 18 ffffffff 1f ffff 00", media.write_same, _ZEROS_REMARK),
    _operation("UNMAP", "SBC-3", "42 01 00000000 1f ffff 00", media.unmap, "no ANCHOR"),
    _operation("MODE SELECT (10)", "SPC-4", "55 11 0000000000 ffff 00", unit.mode_select_10, "WCE and SWP"),
    _operation("MODE SENSE (10)", "SPC-4", "5a 18 ff ff 000000 ffff 00", unit.mode_sense_10, "with LLBAA"),
    _operation("READ (16)", "SBC-3", "88 18 ffffffffffffffff ffffffff 1f 00", media.read, "DPO, FUA"),
    _operation("WRITE (16)", "SBC-3", "8a 18 ffffffffffffffff ffffffff 1f 00", media.write, "DPO, FUA"),
    _operation(
        "WRITE AND VERIFY (16)",
        "SBC-3",
        "8e 16 ffffffffffffffff ffffffff 1f 00",
        media.write_and_verify,
        "BYTCHK 00b and 01b",
    ),
    _operation("VERIFY (16)", "SBC-3", "8f 16 ffffffffffffffff ffffffff 1f 00", media.verify, _VERIFY_REMARK),
    _operation(
        "PRE-FETCH (16)",
        "SBC-3",
        "90 02 ffffffffffffffff ffffffff 1f 00",
        media.pre_fetch,
        "reads one maximum transfer at most",
    ),
    _operation(
        "SYNCHRONIZE CACHE (16)",
        "SBC-3",
        "91 06 ffffffffffffffff ffffffff 1f 00",
        media.synchronize_cache,
        _FLUSH_REMARK,
    ),
    _operation(
        "WRITE SAME (16)",
        "SBC-3",
        "93 19 ffffffffffffffff ffffffff 1f 00",
        media.write_same,
        _ZEROS_REMARK + "; NDOB",
    ),
    _operation(
        "READ CAPACITY (16)",
        "SBC-3",
        "9e 1f 0000000000000000 ffffffff 00 00",
        unit.read_capacity_16,
        service_action=READ_CAPACITY_16_ACTION,
    ),
    _operation(
        "REPORT LUNS", "SPC-4", "a0 00 ff 000000 ffffffff 00 00", None, "SELECT REPORT 00h, 01h and 02h"
    ),
    _operation(
        "REPORT SUPPORTED OPERATION CODES",
        "SPC-4",
        "a3 1f 87 ff ffff ffffffff 00 00",
        _report_supported_operation_codes,
        "no timeouts indicated",
        service_action=REPORT_SUPPORTED_OPERATION_CODES_ACTION,
    ),
    _operation("READ (12)", "SBC-3", "a8 18 ffffffff ffffffff 1f 00", media.read, "DPO, FUA"),
    _operation("WRITE (12)", "SBC-3", "aa 18 ffffffff ffffffff 1f 00", media.write, "DPO, FUA"),
    _operation(
        "WRITE AND VERIFY (12)",
        "SBC-3",
        "ae 16 ffffffff ffffffff 1f 00",
        media.write_and_verify,
        "BYTCHK 00b and 01b",
    ),
    _operation("VERIFY (12)", "SBC-3", "af 16 ffffffff ffffffff 1f 00", media.verify, _VERIFY_REMARK),
)

OPERATIONS_BY_OPCODE: dict[int, dict[int | None, Operation]] = {}
for _each in OPERATIONS:
    OPERATIONS_BY_OPCODE.setdefault(_each.opcode, {})[_each.service_action] = _each


def operation_of(cdb: bytes) -> Operation | Sense:
    """The command that a CDB asks for, or why there is none: unknown, cut short, or with an unknown bit set.

    A CDB may be longer than its command's, as iSCSI's and TCMU's always are: what follows is not looked at.
    """
    by_action = OPERATIONS_BY_OPCODE.get(cdb[0]) if cdb else None
    if by_action is None:
        return INVALID_COMMAND_OPERATION_CODE
    operation = by_action.get(None)
    if operation is None:
        operation = by_action.get(cdb[1] & _SERVICE_ACTION) if len(cdb) > 1 else None
        if operation is None:
            return invalid_field_in_cdb(1, 4)
    size = operation.length
    if len(cdb) < size:
        return invalid_field_in_cdb(len(cdb))
    unknown = int.from_bytes(cdb[1:size], "big") & ~int.from_bytes(operation.usage, "big")
    if unknown:
        from_right = unknown.bit_length() - 1
        return invalid_field_in_cdb(size - 1 - from_right // 8, from_right % 8)
    return operation
