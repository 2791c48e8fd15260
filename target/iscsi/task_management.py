"""Task management functions of a session (RFC 7143 11.5, 11.6; SAM-5 clause 7). No I/O.

A task that still collects its data is dropped at once. One that the device server has cannot be called
back: it is disowned, so that its answer goes nowhere, and the function's response waits until it has ended.
Invariant: when the initiator sees "function complete", no aborted command can change the medium any more.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from enum import IntEnum
from typing import TYPE_CHECKING

from target.iscsi.requests import TaskManagementRequest
from target.iscsi.task import CollectingTask, ScsiTask
from target.scsi.lun import decode_lun

if TYPE_CHECKING:
    from target.iscsi.registry import SessionRegistry
    from target.iscsi.session import TargetSession


class Function(IntEnum):
    """RFC 7143 11.5.1."""

    ABORT_TASK = 1
    ABORT_TASK_SET = 2
    CLEAR_ACA = 3
    CLEAR_TASK_SET = 4
    LOGICAL_UNIT_RESET = 5
    TARGET_WARM_RESET = 6
    TARGET_COLD_RESET = 7
    TASK_REASSIGN = 8


class Response(IntEnum):
    """RFC 7143 11.6.1."""

    COMPLETE = 0
    TASK_DOES_NOT_EXIST = 1
    LUN_DOES_NOT_EXIST = 2
    REASSIGN_NOT_SUPPORTED = 4
    NOT_SUPPORTED = 5
    REJECTED = 255


class _Pending:
    """What is to be done when tasks have ended."""

    __slots__ = ("count", "finish")

    def __init__(self, finish: Callable[[], None]) -> None:
        self.finish = finish
        self.count = 0


class TaskManagement:
    """The functions a session asked for, and its tasks that were aborted."""

    def __init__(self, session: TargetSession, registry: SessionRegistry) -> None:
        self._session = session
        self._registry = registry
        self.aborted: dict[ScsiTask, tuple[list[_Pending], bool]] = {}

    def request(self, request: TaskManagementRequest) -> None:
        function = request.function & 0x7F
        if function == Function.ABORT_TASK:
            self._abort_task(request)
        elif function in _WHOLE_SETS:
            self._abort_sets(request, Function(function))
        elif function == Function.TASK_REASSIGN:
            self._respond(request, Response.REASSIGN_NOT_SUPPORTED)
        else:
            self._respond(request, Response.NOT_SUPPORTED)

    def _respond(self, request: TaskManagementRequest, response: Response) -> None:
        self._session.send_task_management_response(request.initiator_task_tag, response)

    def _abort_task(self, request: TaskManagementRequest) -> None:
        session = self._session
        tag = request.referenced_task_tag
        task = session.tasks.get(tag)
        aborted = [one for one in self.aborted if one.initiator_task_tag == tag]
        if task is None and not aborted:
            # RFC 7143 11.6.1: one that has not come yet is aborted by taking it for received. One that has
            # been answered is outside the window, so the initiator learns that its abort came too late.
            skipped = session.held_commands.skip(request.ref_cmd_sn, request.cmd_sn)
            self._respond(request, Response.COMPLETE if skipped else Response.TASK_DOES_NOT_EXIST)
            return
        pending = _Pending(lambda: self._respond(request, Response.COMPLETE))
        self._wait_for(aborted, pending)
        if task is not None:
            self.abort([task], pending, tell=False)
        if not pending.count:
            pending.finish()

    def _abort_sets(self, request: TaskManagementRequest, function: Function) -> None:
        session = self._session
        if session.node is None:
            self._respond(request, Response.REJECTED)
            return
        units = session.node.device.logical_units
        lun = None if function in _WHOLE_TARGET else decode_lun(request.lun)
        if lun is not None and lun not in units:
            self._respond(request, Response.LUN_DOES_NOT_EXIST)
            return
        resets: Iterable[int] = ()
        if lun is None:
            resets = tuple(units)
        elif function is Function.LOGICAL_UNIT_RESET:
            resets = (lun,)
        cold = function is Function.TARGET_COLD_RESET
        others = function is not Function.ABORT_TASK_SET
        waits_for = tuple(units) if lun is None else (lun,)
        pending = _Pending(lambda: self._finish_sets(request, resets, waits_for if others else (), cold))
        for one in self._registry.sessions_of(session.node.name) if others else [session]:
            one.task_management.abort_all(lun, pending, tell=one is not session)
            if cold and one is not session:
                one.end("target cold reset by another initiator")
        if not pending.count:
            pending.finish()

    def _finish_sets(
        self, request: TaskManagementRequest, resets: Iterable[int], waits_for: Collection[int], cold: bool
    ) -> None:
        session = self._session
        # Sessions that are gone may have left commands behind; they too must be over.
        if session.node is not None and self._registry.drains_units(session.node.name, waits_for):
            self._registry.when_drained(lambda: self._finish_sets(request, resets, waits_for, cold))
            return
        if session.node is not None:
            for lun in resets:
                session.node.device.reset(lun)
        self._respond(request, Response.COMPLETE)
        if cold:
            session.end("target cold reset")

    def abort_all(self, lun: int | None, pending: _Pending, tell: bool) -> None:
        """Abort the tasks for a unit, or (None) for all, and wait for those that were aborted before."""
        self._wait_for([task for task in self.aborted if _is_for(task, lun)], pending)
        tasks = [task for task in self._session.tasks.values() if _is_for(task, lun)]
        self.abort(tasks, pending, tell)

    def _wait_for(self, aborted: Iterable[ScsiTask], pending: _Pending) -> None:
        for task in aborted:
            self.aborted[task][0].append(pending)
            pending.count += 1

    def abort(self, tasks: Iterable[ScsiTask], pending: _Pending, tell: bool) -> None:
        """Abort tasks of this session; with `tell` their initiator gets TASK ABORTED (SAM-5 5.3.1), since
        it was not the one who asked.
        """
        session = self._session
        for task in tasks:
            del session.tasks[task.initiator_task_tag]
            if isinstance(task, CollectingTask) and not task.is_executing:
                session.collection.forget(task)
                if tell:
                    session.answer_aborted(task)
                else:
                    session.retire_task(task)
            else:
                pending.count += 1
                self.aborted[task] = ([pending], tell)

    def late(self, task: ScsiTask) -> None:
        """The device server has finished a task that was aborted, or that its session has left behind."""
        session = self._session
        aborted = self.aborted.pop(task, None)
        if aborted is None:
            assert session.closed, "nobody aborted it"
            return
        waiting, tell = aborted
        if not session.closed:
            if isinstance(task, CollectingTask):
                session.collection.forget(task)
            if tell:
                session.answer_aborted(task)
            else:
                session.retire_task(task)
        # Others may wait for it too, whether or not the one who sent it is still there.
        for pending in waiting:
            pending.count -= 1
            if not pending.count:
                pending.finish()


def abort_for_another(sessions: Iterable[TargetSession], lun: int, then: Callable[[], None]) -> None:
    """Abort what these sessions have for a unit because somebody preempted them, and tell their initiators;
    call `then` when none of it can change the medium any more (SPC-4 5.13.11.2.6).
    """
    pending = _Pending(then)
    for session in sessions:
        session.task_management.abort_all(lun, pending, tell=True)
    if not pending.count:
        pending.finish()


def _is_for(task: ScsiTask, lun: int | None) -> bool:
    return lun is None or decode_lun(task.lun_field) == lun


_WHOLE_TARGET = frozenset({Function.TARGET_WARM_RESET, Function.TARGET_COLD_RESET})

_WHOLE_SETS = frozenset(
    {
        Function.ABORT_TASK_SET,
        Function.CLEAR_TASK_SET,
        Function.LOGICAL_UNIT_RESET,
        *_WHOLE_TARGET,
    }
)
