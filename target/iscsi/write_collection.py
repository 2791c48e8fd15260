"""The writes of a session whose data arrive in further PDUs: asking for it, and putting it together. No I/O.

Invariant: the writes that were asked for by R2T and have not ended are at most SOLICITED_BYTES_MAX for the
whole session; further ones wait, in order. So a client that announces much cannot make us hold much.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from target.iscsi.pdu import FINAL, HOT_DATA_OUT, RESERVED_TAG
from target.iscsi.responses import R2T
from target.iscsi.task import PROTOCOL_SERVICE_CRC_ERROR, CollectingTask
from target.scsi.command import ScsiResult, Status

if TYPE_CHECKING:
    from target.iscsi.session import TargetSession

SOLICITED_BYTES_MAX = 64 << 20


class WriteCollection:
    """The collecting tasks of one session."""

    def __init__(self, session: TargetSession, max_burst: int, max_outstanding_r2t: int) -> None:
        self._session = session
        self._max_burst = max_burst
        self._max_outstanding_r2t = max_outstanding_r2t
        self._solicited_bytes = 0
        self._waiting: deque[CollectingTask] = deque()

    def solicit(self, task: CollectingTask) -> None:
        """Ask for the rest of a write's data, or queue up for it."""
        if self._solicited_bytes and self._solicited_bytes + task.expected_length > SOLICITED_BYTES_MAX:
            self._waiting.append(task)
            return
        self._solicited_bytes += task.expected_length
        self._send_r2ts(task)

    def _send_r2ts(self, task: CollectingTask) -> None:
        session = self._session
        while len(task.r2ts) < self._max_outstanding_r2t and task.next_solicited < task.expected_length:
            transfer_tag = session.next_transfer_tag()
            r2t_sn, offset, length = task.grant(transfer_tag, self._max_burst)
            session.emit(
                R2T(
                    flags=FINAL,
                    lun=task.lun_field,
                    initiator_task_tag=task.initiator_task_tag,
                    target_transfer_tag=transfer_tag,
                    stat_sn=session.stat_sn,
                    exp_cmd_sn=session.exp_cmd_sn,
                    max_cmd_sn=session.max_cmd_sn,
                    r2t_sn=r2t_sn,
                    buffer_offset=offset,
                    desired_data_transfer_length=length,
                ).encode()
            )

    def data_out(self, header: memoryview, data: memoryview, damaged: bool = False) -> None:
        """Take a Data-Out PDU, `damaged` by its digest; execute its command when it was the last one."""
        _, flags, _, _, _, tag, transfer_tag, _, _, _, data_sn, offset, _ = HOT_DATA_OUT.unpack_from(header)
        task = self._session.tasks.get(tag)
        if not isinstance(task, CollectingTask):
            return  # its task was aborted while the data were on their way (RFC 7143 11.5.1)
        if damaged:
            task.fail(PROTOCOL_SERVICE_CRC_ERROR)
        if not task.add(flags, transfer_tag, data_sn, offset, data):
            return
        if task.failure is not None:
            if not task.awaits_data:
                task.complete(ScsiResult(Status.CHECK_CONDITION, (), task.failure))
        elif task.complete_data:
            task.data_out = task.buffer
            self._session.execute(task)
        elif transfer_tag == RESERVED_TAG:
            self.solicit(task)
        else:
            self._send_r2ts(task)

    def forget(self, task: CollectingTask) -> None:
        """A write ended, well or not: whoever waits may be asked for its data."""
        if task in self._waiting:
            self._waiting.remove(task)
        elif task.r2t_sn:
            self._solicited_bytes -= task.expected_length
        if self._waiting:
            self.solicit(self._waiting.popleft())

    def clear(self) -> None:
        self._waiting.clear()
