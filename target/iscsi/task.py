"""SCSI tasks of a session: a command under way, and a write that is still collecting its data. No I/O.

A command whose data are complete is handed to the device server as it is: `data_out` is a slice of the
receive buffer. One that is not becomes a `CollectingTask`, which knows what may come next: unsolicited data
first (RFC 7143 4.2.5.3), then what R2Ts asked for, all in order, because DataPDUInOrder and
DataSequenceInOrder are always Yes here.
"""

from __future__ import annotations

from typing import Protocol

from target.iscsi.pdu import FINAL, RESERVED_TAG, ProtocolError
from target.scsi.command import Nexus, ScsiCommand, ScsiResult
from target.scsi.sense import Sense, SenseKey
from target.volume import Buffer

# RFC 7143 11.4.7.2: what a target says when the data of a command did not arrive as they should.
UNEXPECTED_UNSOLICITED_DATA = Sense(SenseKey.ABORTED_COMMAND, 0x0C, 0x0C)
INCORRECT_AMOUNT_OF_DATA = Sense(SenseKey.ABORTED_COMMAND, 0x0C, 0x0D)
PROTOCOL_SERVICE_CRC_ERROR = Sense(SenseKey.ABORTED_COMMAND, 0x47, 0x05)


class TaskOwner(Protocol):
    """The session, as its tasks see it."""

    nexus: Nexus

    def finish_done(self, task: ScsiTask, data: Buffer | None) -> None:
        """Answer GOOD, with what was read."""

    def finish(self, task: ScsiTask, result: ScsiResult) -> None:
        """Answer any result."""

    def worked(self, count_bytes: int) -> None:
        """So much was read or looked up."""


class ScsiTask(ScsiCommand):
    """One SCSI command of one session, from its PDU to its answer."""

    __slots__ = ("expected_length", "immediate", "initiator_task_tag", "is_write", "lun_field", "owner")

    def __init__(
        self,
        owner: TaskOwner,
        cdb: bytes,
        data_out: Buffer,
        initiator_task_tag: int,
        lun_field: int,
        expected_length: int,
        is_write: bool,
        immediate: bool,
    ) -> None:
        # The base's fields are set here: a second call a command shows in the profile.
        self.cdb = cdb
        self.data_out = data_out
        self.nexus = owner.nexus
        self.owner = owner
        self.initiator_task_tag = initiator_task_tag
        self.lun_field = lun_field
        self.expected_length = expected_length
        self.is_write = is_write
        self.immediate = immediate

    @property
    def is_executing(self) -> bool:
        """Whether the device server has it."""
        return True

    def done(self, data: Buffer | None = None) -> None:
        self.owner.finish_done(self, data)

    def complete(self, result: ScsiResult) -> None:
        self.owner.finish(self, result)

    def worked(self, count_bytes: int) -> None:
        self.owner.worked(count_bytes)


class CollectingTask(ScsiTask):
    """A write whose data arrive in further PDUs.

    Data that do not fit what was asked for set `failure`. They concern this command alone, so it alone ends,
    when every sequence that was asked for has ended (RFC 7143 7.8); what still comes is dropped.
    """

    __slots__ = (
        "buffer",
        "charged_bytes",
        "failure",
        "next_data_sn",
        "next_solicited",
        "r2t_sn",
        "r2ts",
        "received",
        "unsolicited_end",
    )

    buffer: bytearray
    charged_bytes: int
    failure: Sense | None
    received: int
    unsolicited_end: int
    next_solicited: int
    r2t_sn: int
    next_data_sn: int
    r2ts: dict[int, int]

    def start(self, immediate_data: Buffer, unsolicited_left: int) -> None:
        """Take the immediate data; `unsolicited_left` bytes may follow without R2T (0: none will)."""
        # It grows with the data, so a length that is only announced costs nothing.
        self.buffer = bytearray(immediate_data)
        self.charged_bytes = 0
        self.failure = None
        self.received = len(immediate_data)
        self.unsolicited_end = self.received + unsolicited_left if unsolicited_left else 0
        self.next_solicited = self.received
        self.r2t_sn = 0
        self.next_data_sn = 0
        self.r2ts = {}

    @property
    def is_executing(self) -> bool:
        return self.complete_data

    @property
    def complete_data(self) -> bool:
        return self.received == self.expected_length

    @property
    def awaits_data(self) -> bool:
        """Whether a sequence of Data-Out PDUs is under way."""
        return bool(self.r2ts or self.unsolicited_end)

    def grant(self, target_transfer_tag: int, length_max: int) -> tuple[int, int, int]:
        """Plan the next R2T: (R2TSN, buffer offset, length)."""
        offset = self.next_solicited
        length = min(length_max, self.expected_length - offset)
        self.next_solicited = offset + length
        self.r2ts[target_transfer_tag] = offset + length
        self.r2t_sn += 1
        return self.r2t_sn - 1, offset, length

    def fail(self, sense: Sense) -> None:
        """Drop what was collected; the first reason is the one that is told."""
        if self.failure is None:
            self.failure = sense
            self.buffer = bytearray()

    def add(self, flags: int, target_transfer_tag: int, data_sn: int, offset: int, data: Buffer) -> bool:
        """Take a Data-Out PDU; true if it ends its sequence. ProtocolError when nothing asked for it."""
        unsolicited = target_transfer_tag == RESERVED_TAG
        end = self.unsolicited_end if unsolicited else self.r2ts.get(target_transfer_tag)
        if end is None or self.complete_data:
            raise ProtocolError(f"Data-Out for a target transfer tag {target_transfer_tag:#x} not in use")
        final = bool(flags & FINAL)
        behind = offset + len(data)
        if self.failure is None:
            sense = self._fault(end, unsolicited, data_sn, offset, behind, final)
            if sense is not None:
                self.fail(sense)
            else:
                self.buffer += data
                self.received = behind
                self.next_data_sn = 0 if final else data_sn + 1
        if not final and behind < end:
            return False
        if unsolicited:
            self.unsolicited_end = 0
            self.next_solicited = self.received
        else:
            del self.r2ts[target_transfer_tag]
        return True

    def _fault(
        self, end: int, unsolicited: bool, data_sn: int, offset: int, behind: int, final: bool
    ) -> Sense | None:
        if not end:
            return UNEXPECTED_UNSOLICITED_DATA
        if data_sn != self.next_data_sn or offset != self.received:
            return PROTOCOL_SERVICE_CRC_ERROR  # RFC 7143 7.9: a PDU before this one is missing
        ends = behind == end
        # An initiator may send less unsolicited data than it could, but says so with F.
        if behind > end or (ends and not final) or (final and not ends and not unsolicited):
            return INCORRECT_AMOUNT_OF_DATA
        return None
