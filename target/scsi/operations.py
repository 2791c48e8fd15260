"""The table of commands: which CDB is executed by what, and which of its bits mean anything.

One table serves the dispatch, the check for reserved bits, reservations, REPORT SUPPORTED OPERATION CODES
and docs/scsi-support.md. A one in a CDB where the usage map has a zero is a reserved or unsupported field:
INVALID FIELD IN CDB, with a pointer to that bit.
"""

from __future__ import annotations

from target.scsi import atomic_commands as atomic
from target.scsi import extended_copy as copies
from target.scsi import log_pages, reports, reservation_data
from target.scsi import media_commands as media
from target.scsi import medium_removal as medium
from target.scsi import reservation_commands as reservation
from target.scsi import reservations as rules
from target.scsi import unit_commands as unit
from target.scsi.cdb import (
    GET_LBA_STATUS_ACTION,
    READ_CAPACITY_16_ACTION,
    REPORT_SUPPORTED_OPERATION_CODES_ACTION,
    REPORT_SUPPORTED_TASK_MANAGEMENT_FUNCTIONS_ACTION,
    REPORT_TARGET_PORT_GROUPS_ACTION,
    Opcode,
)
from target.scsi.command import ScsiCommand
from target.scsi.operation import (
    Handler,
    Operation,
    Outcome,
    encode_operation,
    encode_operations,
)
from target.scsi.reservations import Access
from target.scsi.sense import INVALID_COMMAND_OPERATION_CODE, Sense, invalid_field_in_cdb
from target.scsi.unit_state import UnitState

_SERVICE_ACTION = 0x1F

_EVERYBODY, _READERS, _HOLDERS = Access


def _operation(
    name: str,
    usage: str,
    handler: Handler | None,
    access: Access,
    remark: str = "",
    *,
    action: int | None = None,
    standard: str = "SBC-3",
    needs_medium: bool = True,
) -> Operation:
    raw = bytes.fromhex(usage)
    return Operation(Opcode(raw[0]), name, standard, raw, handler, access, needs_medium, action, remark)


def _spc(
    name: str,
    usage: str,
    handler: Handler | None,
    access: Access,
    remark: str = "",
    action: int | None = None,
    standard: str = "SPC-4",
    *,
    needs_medium: bool = False,
) -> Operation:
    return _operation(
        name, usage, handler, access, remark, action=action, standard=standard, needs_medium=needs_medium
    )


def _report_supported_operation_codes(unit_: UnitState, command: ScsiCommand, cdb: bytes) -> Outcome:
    options, opcode, action = cdb[2] & 0x07, cdb[3], int.from_bytes(cdb[4:6], "big")
    timeouts = bool(cdb[2] & 0x80)
    allocation_length = int.from_bytes(cdb[6:10], "big")
    if options == 0:
        return unit.data_in(encode_operations(OPERATIONS, timeouts=timeouts), allocation_length)
    if options > 3:
        return invalid_field_in_cdb(2, 2)
    by_action = OPERATIONS_BY_OPCODE.get(opcode, {})
    if by_action and options in (1, 2) and (None in by_action) != (options == 1):
        return invalid_field_in_cdb(2, 2)
    found = by_action.get(None) if options != 2 else None
    if found is None and options != 1:
        found = by_action.get(action)
    return unit.data_in(encode_operation(found, timeouts=timeouts), allocation_length)


_ZEROS = "zeros, and UNMAP with zeros, deallocate; NUMBER OF LOGICAL BLOCKS must not be 0 (WSNZ)"
_VERIFY = "BYTCHK 00b, 01b and 11b"
_WRITE_AND_VERIFY = "BYTCHK 00b and 01b"
_FLUSH = "flushes all of the volume; waits even with IMMED"
_DEFECTS = "lists that are empty"
_PRE_FETCH = "reads one maximum transfer at most"
_ONE_ACTION = "one action for every other command"


def _reserve_in(name: str, action: int, handler: Handler) -> Operation:
    return _spc(f"PERSISTENT RESERVE IN, {name}", "5e 1f 0000000000 ffff 00", handler, _EVERYBODY, "", action)


def _reserve_out(name: str, action: int, handler: Handler, remark: str = "", usage: str = "00") -> Operation:
    cdb = f"5f 1f {usage} 0000 ffffffff 00"
    return _spc(f"PERSISTENT RESERVE OUT, {name}", cdb, handler, _EVERYBODY, remark, action)


_SPC_2 = "not while somebody is registered"
_TYPED = "ff"  # scope and type are used
_PERSISTS = "with APTPL"
_SCOPE = "scope LU, all six types"

OPERATIONS: tuple[Operation, ...] = (
    _spc("TEST UNIT READY", "00 00 000000 00", unit.test_unit_ready, _EVERYBODY, needs_medium=True),
    _spc("REQUEST SENSE", "03 01 0000 ff 00", unit.request_sense, _EVERYBODY, "fixed and descriptor"),
    _operation("READ (6)", "08 1f ffff ff 00", media.read, _READERS),
    _operation("WRITE (6)", "0a 1f ffff ff 00", media.write, _HOLDERS),
    _spc("INQUIRY", "12 01 ff ffff 00", unit.inquiry, _EVERYBODY, "pages as below"),
    _spc("MODE SELECT (6)", "15 11 0000 ff 00", unit.mode_select_6, _HOLDERS, "pages as below"),
    _spc("MODE SENSE (6)", "1a 08 ff ff ff 00", unit.mode_sense_6, _READERS, "nothing saved"),
    _spc("RESERVE (6)", "16 00 000000 00", reservation.reserve_6, _EVERYBODY, _SPC_2, standard="SPC-2"),
    _spc("RELEASE (6)", "17 00 000000 00", reservation.release_6, _EVERYBODY, _SPC_2, standard="SPC-2"),
    _operation(
        "START STOP UNIT",
        "1b 01 0000 f7 00",
        medium.start_stop_unit,
        _HOLDERS,
        "a stop flushes, and the unit stays ready; ejects what is removable; POWER CONDITION does nothing",
        needs_medium=False,
    ),
    _spc("SEND DIAGNOSTIC", "1d 04 00 0000 00", unit.send_diagnostic, _HOLDERS, "default self-test"),
    _spc(
        "PREVENT ALLOW MEDIUM REMOVAL",
        "1e 00 0000 03 00",
        medium.prevent_allow_medium_removal,
        _HOLDERS,
        "for a removable unit",
    ),
    _operation("READ CAPACITY (10)", "25 00 00000000 000000 00", unit.read_capacity_10, _EVERYBODY),
    _operation("READ (10)", "28 18 ffffffff 1f ffff 00", media.read, _READERS, "DPO, FUA"),
    _operation("WRITE (10)", "2a 18 ffffffff 1f ffff 00", media.write, _HOLDERS, "DPO, FUA"),
    _operation(
        "WRITE AND VERIFY (10)",
        "2e 16 ffffffff 1f ffff 00",
        media.write_and_verify,
        _HOLDERS,
        _WRITE_AND_VERIFY,
    ),
    _operation("VERIFY (10)", "2f 16 ffffffff 1f ffff 00", media.verify, _READERS, _VERIFY),
    _operation("PRE-FETCH (10)", "34 02 ffffffff 1f ffff 00", media.pre_fetch, _READERS, _PRE_FETCH),
    _operation(
        "SYNCHRONIZE CACHE (10)", "35 06 ffffffff 1f ffff 00", media.synchronize_cache, _HOLDERS, _FLUSH
    ),
    _operation(
        "READ DEFECT DATA (10)",
        "37 00 1f 00000000 ffff 00",
        reports.read_defect_data_10,
        _READERS,
        _DEFECTS,
    ),
    _operation("WRITE SAME (10)", "41 18 ffffffff 1f ffff 00", media.write_same, _HOLDERS, _ZEROS),
    _operation("UNMAP", "42 01 00000000 1f ffff 00", media.unmap, _HOLDERS, "no ANCHOR"),
    _spc("LOG SENSE", "4d 00 ff ff 00 ffff ffff 00", log_pages.log_sense, _EVERYBODY, "pages as below"),
    _spc("MODE SELECT (10)", "55 11 0000000000 ffff 00", unit.mode_select_10, _HOLDERS, "pages as below"),
    _spc("MODE SENSE (10)", "5a 18 ff ff 000000 ffff 00", unit.mode_sense_10, _READERS, "with LLBAA"),
    _reserve_in("READ KEYS", 0, reservation.reserve_in(reservation_data.encode_keys)),
    _reserve_in("READ RESERVATION", 1, reservation.reserve_in(reservation_data.encode_reservation)),
    _reserve_in("REPORT CAPABILITIES", 2, reservation.report_capabilities),
    _reserve_in("READ FULL STATUS", 3, reservation.reserve_in(reservation_data.encode_full_status)),
    _reserve_out("REGISTER", 0, reservation.register, "with APTPL; with SPEC_I_PT, iSCSI ports or names"),
    _reserve_out("RESERVE", 1, reservation.reserve_out(rules.reserve, typed=True), _SCOPE, _TYPED),
    _reserve_out("RELEASE", 2, reservation.reserve_out(rules.release, typed=True), "", _TYPED),
    _reserve_out("CLEAR", 3, reservation.reserve_out(rules.clear)),
    _reserve_out("PREEMPT", 4, reservation.reserve_out(rules.preempt, typed=True), _SCOPE, _TYPED),
    _reserve_out(
        "PREEMPT AND ABORT",
        5,
        reservation.reserve_out(rules.preempt, typed=True, aborts=True),
        "answered when no aborted command can change the medium any more",
        _TYPED,
    ),
    _reserve_out(
        "REGISTER AND IGNORE EXISTING KEY",
        6,
        reservation.reserve_out(rules.register_and_ignore_existing_key),
        _PERSISTS,
    ),
    _reserve_out("REGISTER AND MOVE", 7, reservation.register_and_move, "to an iSCSI initiator port"),
    _spc(
        "EXTENDED COPY (LID1)",
        "83 1f 0000000000000000 ffffffff 00 00",
        copies.extended_copy,
        _HOLDERS,
        "block to block, between logical units named by NAA identifier; waits for the end",
        0x00,
        needs_medium=True,
    ),
    _spc(
        "RECEIVE COPY STATUS (LID1)",
        "84 1f ff 00000000000000 ffffffff 00 00",
        copies.receive_copy_status,
        _READERS,
        "of the last copy that holds its results",
        0x00,
    ),
    _spc(
        "RECEIVE COPY OPERATING PARAMETERS",
        "84 1f ff 00000000000000 ffffffff 00 00",
        copies.receive_operating_parameters,
        _READERS,
        "",
        0x03,
    ),
    _operation("READ (16)", "88 18 ffffffffffffffff ffffffff 1f 00", media.read, _READERS, "DPO, FUA"),
    _operation(
        "COMPARE AND WRITE",
        "89 18 ffffffffffffffff 000000 ff 1f 00",
        atomic.compare_and_write,
        _HOLDERS,
        _ONE_ACTION,
    ),
    _operation("WRITE (16)", "8a 18 ffffffffffffffff ffffffff 1f 00", media.write, _HOLDERS, "DPO, FUA"),
    _operation(
        "ORWRITE (16)", "8b 18 ffffffffffffffff ffffffff 1f 00", atomic.or_write, _HOLDERS, _ONE_ACTION
    ),
    _operation(
        "WRITE AND VERIFY (16)",
        "8e 16 ffffffffffffffff ffffffff 1f 00",
        media.write_and_verify,
        _HOLDERS,
        _WRITE_AND_VERIFY,
    ),
    _operation("VERIFY (16)", "8f 16 ffffffffffffffff ffffffff 1f 00", media.verify, _READERS, _VERIFY),
    _operation(
        "PRE-FETCH (16)", "90 02 ffffffffffffffff ffffffff 1f 00", media.pre_fetch, _READERS, _PRE_FETCH
    ),
    _operation(
        "SYNCHRONIZE CACHE (16)",
        "91 06 ffffffffffffffff ffffffff 1f 00",
        media.synchronize_cache,
        _HOLDERS,
        _FLUSH,
    ),
    _operation(
        "WRITE SAME (16)",
        "93 19 ffffffffffffffff ffffffff 1f 00",
        media.write_same,
        _HOLDERS,
        _ZEROS + "; NDOB",
    ),
    _operation(
        "WRITE ATOMIC (16)",
        "9c 18 ffffffffffffffff 0000 ffff 1f 00",
        media.write_atomic,
        _HOLDERS,
        "whole or not at all, after a crash and at a secondary; no atomic boundary",
        standard="SBC-4",
    ),
    _operation(
        "READ CAPACITY (16)",
        "9e 1f 0000000000000000 ffffffff 00 00",
        unit.read_capacity_16,
        _EVERYBODY,
        action=READ_CAPACITY_16_ACTION,
    ),
    _operation(
        "GET LBA STATUS",
        "9e 1f ffffffffffffffff ffffffff 00 00",
        reports.get_lba_status,
        _READERS,
        "mapped or deallocated; looks at 16 MiB at the most",
        action=GET_LBA_STATUS_ACTION,
    ),
    _spc(
        "REPORT LUNS",
        "a0 00 ff 000000 ffffffff 00 00",
        None,
        _EVERYBODY,
        "SELECT REPORT 00h, 01h and 02h",
    ),
    _spc(
        "REPORT TARGET PORT GROUPS",
        "a3 ff 00000000 ffffffff 00 00",
        reports.report_target_port_groups,
        _EVERYBODY,
        "one group, active/optimized",
        REPORT_TARGET_PORT_GROUPS_ACTION,
    ),
    _spc(
        "REPORT SUPPORTED OPERATION CODES",
        "a3 1f 87 ff ffff ffffffff 00 00",
        _report_supported_operation_codes,
        _READERS,
        "no timeouts indicated",
        REPORT_SUPPORTED_OPERATION_CODES_ACTION,
    ),
    _spc(
        "REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS",
        "a3 1f 80 000000 ffffffff 00 00",
        reports.report_supported_task_management_functions,
        _READERS,
        "those of iSCSI but for TASK REASSIGN",
        REPORT_SUPPORTED_TASK_MANAGEMENT_FUNCTIONS_ACTION,
    ),
    _operation("READ (12)", "a8 18 ffffffff ffffffff 1f 00", media.read, _READERS, "DPO, FUA"),
    _operation("WRITE (12)", "aa 18 ffffffff ffffffff 1f 00", media.write, _HOLDERS, "DPO, FUA"),
    _operation(
        "WRITE AND VERIFY (12)",
        "ae 16 ffffffff ffffffff 1f 00",
        media.write_and_verify,
        _HOLDERS,
        _WRITE_AND_VERIFY,
    ),
    _operation("VERIFY (12)", "af 16 ffffffff ffffffff 1f 00", media.verify, _READERS, _VERIFY),
    _operation(
        "READ DEFECT DATA (12)",
        "b7 1f ffffffff ffffffff 00 00",
        reports.read_defect_data_12,
        _READERS,
        _DEFECTS,
    ),
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
