"""A scheduler without chance: a turn ends, a piece of work runs, time passes only when it is told to."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

WALL_NS = 1_700_000_000_000_000_000


class StepTimer:
    """A pending call."""

    def __init__(self, at: float, call: Callable[[], None]) -> None:
        self.at = at
        self.call: Callable[[], None] | None = call

    def cancel(self) -> None:
        self.call = None


class StepScheduler:
    """A `target.scheduler.Scheduler`. Work runs in the order in which it was submitted, whatever its lane."""

    def __init__(self) -> None:
        self._now = 0.0
        self._timers: list[StepTimer] = []
        self._append: list[Callable[[], None]] = []
        self._send: list[Callable[[], None]] = []
        self._work: deque[Callable[[], None]] = deque()

    def monotonic(self) -> float:
        return self._now

    def wall_ns(self) -> int:
        return WALL_NS

    def call_soon(self, call: Callable[[], None]) -> None:
        self.call_later(0.0, call)

    def call_later(self, delay_seconds: float, call: Callable[[], None]) -> StepTimer:
        timer = StepTimer(self._now + delay_seconds, call)
        self._timers.append(timer)
        return timer

    def at_append(self, call: Callable[[], None]) -> None:
        self._append.append(call)

    def at_send(self, call: Callable[[], None]) -> None:
        self._send.append(call)

    def submit(
        self, lane: str, work: Callable[[], T], done: Callable[[T | None, Exception | None], None]
    ) -> None:
        def run() -> None:
            result: T | None = None
            error: Exception | None = None
            try:
                result = work()
            except Exception as failure:
                error = failure
            done(result, error)

        self._work.append(run)

    # -- going on --

    def end_turn(self) -> None:
        """What was obtained in this turn is appended."""
        while self._append:
            calls, self._append = self._append, []
            for call in calls:
                call()
        calls, self._send = self._send, []
        for call in calls:
            call()

    def run_until(self, condition: Callable[[], bool]) -> None:
        """Let turns end and work run, and time pass when nothing else is there to do."""
        for _ in range(10_000):
            self.end_turn()
            if condition():
                return
            if self._work:
                self._work.popleft()()
            else:
                self._pass_time()
        raise AssertionError("what was waited for does not come")

    def _pass_time(self) -> None:
        self._timers = [timer for timer in self._timers if timer.call is not None]
        timer = min(self._timers, key=lambda timer: timer.at)
        self._timers.remove(timer)
        self._now = max(self._now, timer.at)
        assert timer.call is not None
        timer.call()
