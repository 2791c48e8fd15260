"""A SCSI target device as an initiator sees it: logical units by LUN, and answers for LUNs without one.

Front ends hand every command to `Device.execute`. SAM-5, *SCSI target device*; SPC-4, *REPORT LUNS command*.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from target.scsi.cdb import Opcode
from target.scsi.chain import check_condition
from target.scsi.command import Nexus, ScsiCommand, ScsiResult
from target.scsi.inquiry import encode_standard
from target.scsi.logical_unit import LogicalUnit
from target.scsi.lun import LUN_MAX, encode_report_luns
from target.scsi.operations import operation_of
from target.scsi.sense import (
    LOGICAL_UNIT_NOT_SUPPORTED,
    REPORTED_LUNS_DATA_HAS_CHANGED,
    Sense,
    invalid_field_in_cdb,
)
from target.scsi.unit_commands import data_in, sense_data_in
from target.volume import Request

# SELECT REPORT (SPC-4, *REPORT LUNS command*).
_ADDRESSABLE, _WELL_KNOWN, _EVERY = 0x00, 0x01, 0x02
_REPORT_LUNS_ALLOCATION_MIN = 16


AbortTasksOfLun = Callable[[int, Nexus, Request], None]
"""Abort the commands of a nexus to a LUN, and answer when none of them can change the medium any more."""


class Device:
    """Logical units by LUN; `replace` changes them while it runs."""

    def __init__(self, logical_units: Mapping[int, LogicalUnit]) -> None:
        self._logical_units: dict[int, LogicalUnit] = {}
        self._abort: AbortTasksOfLun | None = None
        self._assign(logical_units)

    @property
    def logical_units(self) -> Mapping[int, LogicalUnit]:
        return self._logical_units

    def replace(self, logical_units: Mapping[int, LogicalUnit]) -> None:
        """Offer these from now on. Commands under way on a unit that is gone are still completed by it."""
        changed = set(logical_units) != set(self._logical_units)
        self._assign(logical_units)
        if changed:
            for logical_unit in self._logical_units.values():
                logical_unit.raise_unit_attention(REPORTED_LUNS_DATA_HAS_CHANGED)

    def _assign(self, logical_units: Mapping[int, LogicalUnit]) -> None:
        assert all(0 <= lun <= LUN_MAX for lun in logical_units), sorted(logical_units)
        self._logical_units = dict(logical_units)
        for logical_unit in self._logical_units.values():
            logical_unit.device_units = self._logical_units.values
        if self._abort is not None:
            self.on_abort(self._abort)

    def on_abort(self, abort: AbortTasksOfLun) -> None:
        """Who aborts commands: the front end, which has them. Asked by PREEMPT AND ABORT."""
        self._abort = abort
        for lun, logical_unit in self._logical_units.items():
            logical_unit.abort_tasks = partial(abort, lun)

    def execute(self, lun: int, command: ScsiCommand) -> None:
        """Execute one command; it is completed exactly once, at once or later."""
        logical_unit = self._logical_units.get(lun)
        cdb = command.cdb
        if logical_unit is None or (cdb and cdb[0] == 0xA0):
            self._execute_without_unit(logical_unit, command)
        else:
            logical_unit.execute(command)

    def encode_sense(self, lun: int, sense: Sense) -> bytes:
        """Sense data for the wire: each logical unit has a format, and where there is none they are fixed."""
        logical_unit = self._logical_units.get(lun)
        return sense.encode_fixed() if logical_unit is None else logical_unit.encode_sense(sense)

    def nexus_lost(self, nexus: Nexus) -> None:
        """Call when a session ends: the next one with the same name starts with POWER ON again."""
        for logical_unit in self._logical_units.values():
            logical_unit.nexus_lost(nexus)

    def reset(self, lun: int) -> bool:
        """LOGICAL UNIT RESET; False when there is no such LUN. The front end aborts the commands."""
        logical_unit = self._logical_units.get(lun)
        if logical_unit is None:
            return False
        logical_unit.reset()
        return True

    def _execute_without_unit(self, logical_unit: LogicalUnit | None, command: ScsiCommand) -> None:
        cdb = bytes(command.cdb)
        operation = operation_of(cdb)
        outcome: ScsiResult | Sense
        if isinstance(operation, Sense):
            # A unit that is not there supports no command at all, so that comes first.
            outcome = operation if logical_unit is not None else _absent(cdb)
        elif operation.opcode == Opcode.REPORT_LUNS:
            outcome = self._report_luns(logical_unit, command, cdb)
        else:
            outcome = _absent(cdb)
        command.complete(check_condition(outcome) if isinstance(outcome, Sense) else outcome)

    def _report_luns(
        self, logical_unit: LogicalUnit | None, command: ScsiCommand, cdb: bytes
    ) -> ScsiResult | Sense:
        select_report, allocation_length = cdb[2], int.from_bytes(cdb[6:10], "big")
        if select_report not in (_ADDRESSABLE, _WELL_KNOWN, _EVERY):
            return invalid_field_in_cdb(2)
        if allocation_length < _REPORT_LUNS_ALLOCATION_MIN:
            return invalid_field_in_cdb(6)
        for each in self._logical_units.values():
            each.attentions.withdraw(command.nexus, REPORTED_LUNS_DATA_HAS_CHANGED)
        luns = () if select_report == _WELL_KNOWN else self._logical_units
        return data_in(encode_report_luns(luns), allocation_length)


def _absent(cdb: bytes) -> ScsiResult | Sense:
    """What a LUN without a logical unit answers: SPC-4 lets two commands through, beside REPORT LUNS."""
    if len(cdb) >= 6 and cdb[0] == Opcode.INQUIRY and not cdb[1] and not cdb[2]:
        return data_in(encode_standard(supported=False), int.from_bytes(cdb[3:5], "big"))
    if len(cdb) >= 6 and cdb[0] == Opcode.REQUEST_SENSE:
        return sense_data_in(LOGICAL_UNIT_NOT_SUPPORTED, cdb)
    return LOGICAL_UNIT_NOT_SUPPORTED
