"""Time and background work of a simulated machine: one thread, one heap of events, one seed."""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

WALL_START_NS = 1_700_000_000_000_000_000


class SimTimer:
    def __init__(self, call: Callable[[], None], owner: object) -> None:
        self.call: Callable[[], None] | None = call
        self.owner = owner

    def cancel(self) -> None:
        self.call = None


class SimClock:
    """The events of the whole world, in order of time; equal times in the order they were scheduled."""

    def __init__(self, seed: int = 0) -> None:
        self.random = random.Random(seed)
        self.now = 0.0
        self._events: list[tuple[float, int, SimTimer]] = []
        self._count = itertools.count()

    def at(self, delay: float, call: Callable[[], None], owner: object) -> SimTimer:
        timer = SimTimer(call, owner)
        heapq.heappush(self._events, (self.now + max(delay, 0.0), next(self._count), timer))
        return timer

    def step(self) -> bool:
        """Run the next event; False when there is none."""
        while self._events:
            time, _, timer = heapq.heappop(self._events)
            if timer.call is None:
                continue
            self.now = max(self.now, time)
            call, timer.call = timer.call, None
            call()
            return True
        return False

    def run_until(self, condition: Callable[[], bool], limit_seconds: float = 120.0) -> None:
        """Run until the condition holds; AssertionError when it does not within simulated time."""
        end = self.now + limit_seconds
        while not condition():
            assert self.now < end, f"not reached within {limit_seconds} simulated seconds"
            assert self.step(), "nothing is left that could happen"

    def run_for(self, seconds: float) -> None:
        end = self.now + seconds
        self.at(seconds, lambda: None, self)
        while self.now < end and self.step():
            pass

    def kill(self, owner: object) -> None:
        """Nothing that this owner planned happens any more."""
        for _, _, timer in self._events:
            if timer.owner is owner:
                timer.call = None


class SimScheduler:
    """One process's view of the clock; `kill` ends the process."""

    def __init__(self, clock: SimClock, wall_offset_seconds: float = 0.0) -> None:
        self._clock = clock
        self._wall_offset_seconds = wall_offset_seconds
        self.slowness = 1.0
        """Work that blocks takes so many times as long."""
        self._append: list[Callable[[], None]] = []
        self._send: list[Callable[[], None]] = []
        self._turn_planned = False
        self._lane_free_at: dict[str, float] = {}

    def monotonic(self) -> float:
        return self._clock.now

    def wall_ns(self) -> int:
        return WALL_START_NS + int((self._clock.now + self._wall_offset_seconds) * 1e9)

    def call_soon(self, call: Callable[[], None]) -> None:
        self.call_later(0.0, call)

    def call_later(self, delay_seconds: float, call: Callable[[], None]) -> SimTimer:
        return self._clock.at(delay_seconds, call, self)

    def at_append(self, call: Callable[[], None]) -> None:
        self._append.append(call)
        self._plan_turn()

    def at_send(self, call: Callable[[], None]) -> None:
        self._send.append(call)
        self._plan_turn()

    def _plan_turn(self) -> None:
        if not self._turn_planned:
            self._turn_planned = True
            self._clock.at(0.0, self._end_turn, self)

    def _end_turn(self) -> None:
        self._turn_planned = False
        while self._append:
            calls, self._append = self._append, []
            for call in calls:
                call()
        calls, self._send = self._send, []
        for call in calls:
            call()

    def submit(
        self, lane: str, work: Callable[[], T], done: Callable[[T | None, Exception | None], None]
    ) -> None:
        start = max(self._clock.now, self._lane_free_at.get(lane, 0.0))
        run_at = start + self._clock.random.uniform(0.00005, 0.003) * self.slowness
        done_at = run_at + self._clock.random.uniform(0.0, 0.001)
        if lane != "read":
            self._lane_free_at[lane] = done_at

        def run() -> None:
            result: T | None = None
            error: Exception | None = None
            try:
                result = work()
            except Exception as failure:
                error = failure
            self._clock.at(done_at - self._clock.now, lambda: done(result, error), self)

        self._clock.at(run_at - self._clock.now, run, self)

    def kill(self) -> None:
        self._clock.kill(self)
