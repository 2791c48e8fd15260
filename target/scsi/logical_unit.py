"""A logical unit executes SCSI commands on a volume: between the front ends and the write path.

READ and WRITE (10) and (16) without flags, and WRITE with FUA, go the short way, in this module: one
unpacking, one check of the bounds, one volume call, with the command itself as the volume's `Request`.
Everything else takes the long way through the table in `operations`. Both ways give the same results: the
short one handles only what cannot fail, and leaves the rest.
"""

from __future__ import annotations

from collections.abc import Callable

from target.scsi.cdb import BLOCK_10, BLOCK_16, CDB_BYTES_MAX, FUA, Opcode
from target.scsi.chain import Chain, check_condition
from target.scsi.command import Nexus, ScsiCommand, ScsiResult
from target.scsi.inquiry import Limits
from target.scsi.mode import ModeParameters
from target.scsi.operations import operation_of
from target.scsi.reservations import RESERVATION_CONFLICT, Access, ReservationStore
from target.scsi.sense import (
    BUS_DEVICE_RESET_FUNCTION_OCCURRED,
    CAPACITY_DATA_HAS_CHANGED,
    INVALID_COMMAND_OPERATION_CODE,
    MEDIUM_NOT_PRESENT,
    Sense,
)
from target.scsi.unit_state import UnitState
from target.volume import Buffer, Space, Volume

_unpack_10 = BLOCK_10.unpack_from
_unpack_16 = BLOCK_16.unpack_from

# These are executed while a unit attention is pending, and leave it pending or report it themselves (SAM-5,
# *Unit attention conditions*); no reservation hinders them.
_ALWAYS_EXECUTED = (Opcode.INQUIRY, Opcode.REPORT_LUNS, Opcode.REQUEST_SENSE)

# RELEASE does nothing for another initiator, and the others say RESERVATION CONFLICT themselves.
_WHILE_RESERVED_BY_ANOTHER = (Opcode.RELEASE_6, Opcode.PERSISTENT_RESERVE_IN, Opcode.PERSISTENT_RESERVE_OUT)


def _changes_nothing(cdb: bytes) -> bool:
    """Commands whose fields decide whether a reservation keeps others from sending them (SPC-4, SBC-3)."""
    if cdb[0] == Opcode.START_STOP_UNIT:
        return cdb[4] == 0x01  # START, and nothing else
    return cdb[0] == Opcode.PREVENT_ALLOW_MEDIUM_REMOVAL and not cdb[4] & 0x03


class LogicalUnit(UnitState):
    """Invariant: every command given to `execute` is completed exactly once, whatever its CDB holds."""

    def __init__(
        self,
        volume: Volume,
        limits: Limits | None = None,
        reservation_store: ReservationStore | None = None,
        *,
        removable: bool = False,
        space: Callable[[], Space] | None = None,
    ) -> None:
        super().__init__(volume, limits, reservation_store, removable=removable, space=space)
        ways = [self.execute_any] * 256
        ways[Opcode.READ_10] = self._read_10
        ways[Opcode.WRITE_10] = self._write_10
        ways[Opcode.READ_16] = self._read_16
        ways[Opcode.WRITE_16] = self._write_16
        self._ways = tuple(ways)
        self._quiet = self.attentions.quiet

    def execute(self, command: ScsiCommand) -> None:
        """Execute one command; it is completed at once or later, on the loop thread."""
        cdb = command.cdb
        if id(command.nexus) not in self._quiet and self._hindered(command):
            return
        if len(cdb) < CDB_BYTES_MAX:
            self.execute_any(command, cdb)
        else:
            self._ways[cdb[0]](command, cdb)

    def raise_unit_attention(self, sense: Sense, except_for: Nexus | None = None) -> None:
        """Tell every initiator, at its next command."""
        self.attentions.establish(sense, except_for)

    def capacity_changed(self) -> None:
        """The volume has another size now."""
        self.refresh_capacity()
        self.raise_unit_attention(CAPACITY_DATA_HAS_CHANGED)

    def reset(self) -> None:
        """LOGICAL UNIT RESET (SAM-5), after the front end has aborted the commands."""
        self.set_mode(ModeParameters())
        self.set_reserved_by(None)
        self.removal_prevented_by.clear()
        self.raise_unit_attention(BUS_DEVICE_RESET_FUNCTION_OCCURRED)

    def nexus_lost(self, nexus: Nexus) -> None:
        """The session is gone: nothing is kept for it but its registration."""
        self.attentions.forget(nexus)
        self.removal_prevented_by.discard(nexus)
        self.copy_results.pop(nexus, None)
        if self.reserved_by == nexus:
            self.set_reserved_by(None)

    def _hindered(self, command: ScsiCommand) -> bool:
        """Answers a command that a unit attention, a reservation or a missing medium keeps from execution."""
        cdb, nexus = command.cdb, command.nexus
        if cdb and cdb[0] in _ALWAYS_EXECUTED:
            return False
        sense = self.attentions.take(nexus)
        if sense is not None:
            command.complete(check_condition(sense))
            return True
        free = self.reserved_by in (None, nexus) and self.reservations.admits(nexus, Access.HOLDERS)
        if free and not self.ejected:
            self.attentions.rest(nexus)
            return False
        refusal = self._refusal(nexus, bytes(cdb))
        if refusal is None:
            return False
        command.complete(refusal)
        return True

    def _refusal(self, nexus: Nexus, cdb: bytes) -> ScsiResult | None:
        """Why a command cannot be executed for now: a reservation, or no medium."""
        operation = operation_of(cdb)
        if isinstance(operation, Sense):
            return None  # it is refused for that
        if self.reserved_by not in (None, nexus) and operation.opcode not in _WHILE_RESERVED_BY_ANOTHER:
            return RESERVATION_CONFLICT
        access = Access.EVERYBODY if _changes_nothing(cdb) else operation.access
        if not self.reservations.admits(nexus, access):
            return RESERVATION_CONFLICT
        if self.ejected and operation.needs_medium:
            return check_condition(MEDIUM_NOT_PRESENT)
        return None

    # The short way: measured, 0.5 us from `Device.execute` to the volume; the long way takes 5 us more.

    def _read_10(self, command: ScsiCommand, cdb: Buffer) -> None:
        _, flags, lba, _, blocks, control = _unpack_10(cdb)
        if flags or control or not 0 < blocks <= self.transfer_blocks_max or lba + blocks > self.block_count:
            self.execute_any(command, cdb)
        else:
            self.volume.read(lba << self.block_shift, blocks << self.block_shift, command)

    def _read_16(self, command: ScsiCommand, cdb: Buffer) -> None:
        _, flags, lba, blocks, _, control = _unpack_16(cdb)
        if flags or control or not 0 < blocks <= self.transfer_blocks_max or lba + blocks > self.block_count:
            self.execute_any(command, cdb)
        else:
            self.volume.read(lba << self.block_shift, blocks << self.block_shift, command)

    def _write_10(self, command: ScsiCommand, cdb: Buffer) -> None:
        _, flags, lba, _, blocks, control = _unpack_10(cdb)
        data = command.data_out
        if (
            flags & ~FUA
            or control
            or not 0 < blocks <= self.fast_write_blocks_max
            or lba + blocks > self.block_count
            or len(data) != blocks << self.block_shift
        ):
            self.execute_any(command, cdb)
        else:
            self.volume.write(lba << self.block_shift, data, self.write_through or flags != 0, command)

    def _write_16(self, command: ScsiCommand, cdb: Buffer) -> None:
        _, flags, lba, blocks, _, control = _unpack_16(cdb)
        data = command.data_out
        if (
            flags & ~FUA
            or control
            or not 0 < blocks <= self.fast_write_blocks_max
            or lba + blocks > self.block_count
            or len(data) != blocks << self.block_shift
        ):
            self.execute_any(command, cdb)
        else:
            self.volume.write(lba << self.block_shift, data, self.write_through or flags != 0, command)

    def execute_any(self, command: ScsiCommand, cdb: Buffer) -> None:
        """The long way, for any CDB; unit attentions are the caller's."""
        whole = bytes(cdb)
        operation = operation_of(whole)
        if isinstance(operation, Sense):
            command.complete(check_condition(operation))
            return
        if operation.handler is None:
            command.complete(check_condition(INVALID_COMMAND_OPERATION_CODE))
            return
        outcome = operation.handler(self, command, whole[: operation.length])
        if isinstance(outcome, ScsiResult):
            command.complete(outcome)
        elif isinstance(outcome, Sense):
            command.complete(check_condition(outcome))
        else:
            Chain(command, outcome).run()
