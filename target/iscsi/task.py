"""SCSI tasks of a session: a command under way, and a write that is still collecting its data. No I/O.

A command whose data are complete is handed to the device server as it is: `data_out` is a slice of the
receive buffer. One that is not becomes a `CollectingTask`, which knows what may come next: unsolicited data
first (RFC 7143 4.2.5.3), then what R2Ts asked for, all in order, because DataPDUInOrder and
DataSequenceInOrder are always Yes here.
"""

from __future__ import annotations

from collections import deque
from typing import Protocol

from target.iscsi.pdu import FINAL, RESERVED_TAG, ProtocolError
from target.scsi.command import Nexus, ScsiCommand, ScsiResult
from target.volume import Buffer


class TaskOwner(Protocol):
    """The session, as its tasks see it."""

    nexus: Nexus

    def finish_done(self, task: ScsiTask, data: Buffer | None) -> None:
        """Answer GOOD, with what was read."""

    def finish(self, task: ScsiTask, result: ScsiResult) -> None:
        """Answer any result."""


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

    def done(self, data: Buffer | None = None) -> None:
        self.owner.finish_done(self, data)

    def complete(self, result: ScsiResult) -> None:
        self.owner.finish(self, result)


class CollectingTask(ScsiTask):
    """A write whose data arrive in further PDUs."""

    __slots__ = ("buffer", "next_data_sn", "next_solicited", "r2t_sn", "r2ts", "received", "unsolicited_left")

    buffer: bytearray
    received: int
    unsolicited_left: int
    next_solicited: int
    r2t_sn: int
    next_data_sn: int
    r2ts: deque[tuple[int, int]]

    def start(self, immediate_data: Buffer, unsolicited_left: int) -> None:
        """Take the immediate data; `unsolicited_left` bytes may follow without R2T (0: none will)."""
        # Calloc: memory is used as data arrive, so a length that is only announced costs nothing.
        self.buffer = bytearray(self.expected_length)
        self.received = len(immediate_data)
        self.buffer[: self.received] = immediate_data
        self.unsolicited_left = unsolicited_left
        self.next_solicited = self.received
        self.r2t_sn = 0
        self.next_data_sn = 0
        self.r2ts = deque()

    @property
    def complete_data(self) -> bool:
        return self.received == self.expected_length

    def grant(self, target_transfer_tag: int, length_max: int) -> tuple[int, int, int]:
        """Plan the next R2T: (R2TSN, buffer offset, length)."""
        offset = self.next_solicited
        length = min(length_max, self.expected_length - offset)
        self.next_solicited = offset + length
        self.r2ts.append((target_transfer_tag, offset + length))
        self.r2t_sn += 1
        return self.r2t_sn - 1, offset, length

    def add(self, flags: int, target_transfer_tag: int, data_sn: int, offset: int, data: Buffer) -> bool:
        """Take a Data-Out PDU; true if it ends its sequence. ProtocolError when it is not the one to come."""
        length = len(data)
        if offset != self.received or data_sn != self.next_data_sn:
            raise ProtocolError(
                f"Data-Out with DataSN {data_sn} at offset {offset}, "
                f"expected DataSN {self.next_data_sn} at {self.received}"
            )
        final = bool(flags & FINAL)
        if target_transfer_tag == RESERVED_TAG:
            if length > self.unsolicited_left:
                raise ProtocolError("more unsolicited data than FirstBurstLength, or any where none may come")
            self.unsolicited_left = 0 if final else self.unsolicited_left - length
            if not final and (self.unsolicited_left == 0 or self.received + length == self.expected_length):
                raise ProtocolError("unsolicited data do not end with the F bit")
        else:
            if not self.r2ts or self.r2ts[0][0] != target_transfer_tag:
                raise ProtocolError(f"Data-Out for a target transfer tag {target_transfer_tag:#x} not in use")
            end = self.r2ts[0][1]
            if offset + length > end or final != (offset + length == end):
                raise ProtocolError(
                    f"Data-Out of {length} bytes at {offset}, F={final}: its R2T ends at {end}"
                )
            if final:
                self.r2ts.popleft()
        self.buffer[offset : offset + length] = data
        self.received += length
        self.next_data_sn = 0 if final else data_sn + 1
        if final and target_transfer_tag == RESERVED_TAG:
            self.next_solicited = self.received
        return final
