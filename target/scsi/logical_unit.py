"""A logical unit executes SCSI commands on a volume: between the front ends and the write path.

READ and WRITE (10) and (16) without flags, and WRITE with FUA, go the short way, in this module: one
unpacking, one check of the bounds, one volume call, with the command itself as the volume's `Request`.
Everything else takes the long way through the table in `operations`. Both ways give the same results: the
short one handles only what cannot fail, and leaves the rest.
"""

from __future__ import annotations

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
    Sense,
)
from target.scsi.unit_state import UnitState
from target.volume import Buffer, Volume

_unpack_10 = BLOCK_10.unpack_from
_unpack_16 = BLOCK_16.unpack_from

# These are executed while a unit attention is pending, and leave it pending or report it themselves (SAM-5,
# *Unit attention conditions*); no reservation hinders them.
_ALWAYS_EXECUTED = (Opcode.INQUIRY, Opcode.REPORT_LUNS, Opcode.REQUEST_SENSE)

# RELEASE does nothing for another initiator, and the others say RESERVATION CONFLICT themselves.
_WHILE_RESERVED_BY_ANOTHER = (Opcode.RELEASE_6, Opcode.PERSISTENT_RESERVE_IN, Opcode.PERSISTENT_RESERVE_OUT)


class LogicalUnit(UnitState):
    """Invariant: every command given to `execute` is completed exactly once, whatever its CDB holds."""

    def __init__(
        self, volume: Volume, limits: Limits | None = None, reservation_store: ReservationStore | None = None
    ) -> None:
        super().__init__(volume, limits, reservation_store)
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
        self.raise_unit_attention(BUS_DEVICE_RESET_FUNCTION_OCCURRED)

    def nexus_lost(self, nexus: Nexus) -> None:
        """The session is gone: nothing is kept for it but its registration."""
        self.attentions.forget(nexus)
        if self.reserved_by == nexus:
            self.set_reserved_by(None)

    def _hindered(self, command: ScsiCommand) -> bool:
        """Answers the command with a unit attention or RESERVATION CONFLICT, if it must be."""
        cdb, nexus = command.cdb, command.nexus
        if cdb and cdb[0] in _ALWAYS_EXECUTED:
            return False
        sense = self.attentions.take(nexus)
        if sense is not None:
            command.complete(check_condition(sense))
            return True
        if self.reserved_by in (None, nexus) and self.reservations.admits(nexus, Access.HOLDERS):
            self.attentions.rest(nexus)
            return False
        if self._admits(nexus, bytes(cdb)):
            return False
        command.complete(RESERVATION_CONFLICT)
        return True

    def _admits(self, nexus: Nexus, cdb: bytes) -> bool:
        operation = operation_of(cdb)
        if isinstance(operation, Sense):
            return True  # it is refused for that
        if self.reserved_by not in (None, nexus):
            return operation.opcode in _WHILE_RESERVED_BY_ANOTHER
        access = operation.access
        if operation.opcode is Opcode.START_STOP_UNIT and cdb[4] == 0x01:  # START, and nothing else
            access = Access.EVERYBODY
        return self.reservations.admits(nexus, access)

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
