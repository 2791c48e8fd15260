"""The writes of a session whose data arrive in further PDUs: asking for it, and putting it together. No I/O.

Invariant: what the writes under way hold, or were asked to send, is taken from the memory budget. Nothing
is asked for that would bring a session above COLLECTED_BYTES_MAX: such writes wait, in order. (What comes
unasked is bounded by FirstBurstLength and the window.) So who announces much cannot make us hold much.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from target.iscsi.budget import MemoryBudget
from target.iscsi.pdu import FINAL, HOT_DATA_OUT, RESERVED_TAG
from target.iscsi.responses import R2T
from target.iscsi.task import PROTOCOL_SERVICE_CRC_ERROR, CollectingTask
from target.scsi.command import ScsiResult, Status

if TYPE_CHECKING:
    from target.iscsi.session import TargetSession

COLLECTED_BYTES_MAX = 64 << 20


class WriteCollection:
    """The collecting tasks of one session."""

    def __init__(
        self, session: TargetSession, budget: MemoryBudget, max_burst: int, max_outstanding_r2t: int
    ) -> None:
        self._session = session
        self._budget = budget
        self._max_burst = max_burst
        self._max_outstanding_r2t = max_outstanding_r2t
        self._taken_bytes = 0
        self._waiting: deque[CollectingTask] = deque()
        self._waits_for_budget = False
        self._moved = False

    def begin(self, task: CollectingTask) -> None:
        """Collect a write's data: those that come unasked first, if there are any."""
        self._moved = True
        unasked = max(task.received, task.unsolicited_end)
        if not self._budget.take(unasked, self._taken_bytes):
            # They cannot be stopped. Without their task they are dropped, and the initiator comes back later.
            task.complete(ScsiResult(Status.TASK_SET_FULL))
            return
        self._charge(task, unasked)
        if not task.unsolicited_end:
            self._solicit(task)

    def _charge(self, task: CollectingTask, count: int) -> None:
        task.charged_bytes += count
        self._taken_bytes += count

    def _solicit(self, task: CollectingTask) -> None:
        """Ask for the rest of a write's data, or queue up for it."""
        if self._waiting or not self._grant(task):
            self._waiting.append(task)

    def _grant(self, task: CollectingTask) -> bool:
        rest = task.expected_length - task.charged_bytes
        others = self._taken_bytes - task.charged_bytes
        if others and self._taken_bytes + rest > COLLECTED_BYTES_MAX:
            return False
        if not self._budget.take(rest, self._taken_bytes):
            if not self._waits_for_budget:
                self._waits_for_budget = True
                self._budget.wait(self._budget_is_free)
            return False
        self._charge(task, rest)
        self._send_r2ts(task)
        return True

    def _budget_is_free(self) -> None:
        self._waits_for_budget = False
        self._grant_waiting()

    def _grant_waiting(self) -> None:
        while self._waiting and self._grant(self._waiting[0]):
            self._waiting.popleft()

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
        self._moved = True
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
            self._solicit(task)
        else:
            self._send_r2ts(task)

    def forget(self, task: CollectingTask) -> None:
        """A write ended, well or not: whoever waits may be asked for its data."""
        if task in self._waiting:
            self._waiting.remove(task)
        self._taken_bytes -= task.charged_bytes
        self._budget.give(task.charged_bytes)
        task.charged_bytes = 0
        self._grant_waiting()

    def stalled(self) -> bool:
        """Whether data were awaited since the last call and none came: their memory is held for nothing."""
        moved, self._moved = self._moved, False
        return not moved and any(
            isinstance(task, CollectingTask) and task.awaits_data for task in self._session.tasks.values()
        )

    def clear(self) -> None:
        self._waiting.clear()
        if self._waits_for_budget:
            self._waits_for_budget = False
            self._budget.withdraw(self._budget_is_free)
        self._budget.give(self._taken_bytes)
        self._taken_bytes = 0
