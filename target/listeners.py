"""Whoever wants to hear that something is different: told soon, of many changes at once, and never so often
that telling hinders the work.
"""

from __future__ import annotations

from collections.abc import Callable

from target.scheduler import Scheduler

_SECONDS_MIN = 0.01
_SECONDS_MAX = 0.03
_PAUSE = 20
"""Times as long as telling took passes until the next time. Told a hundred times a second whatever it takes,
a subsystem in an emulated machine spent a tenth of its loop's time on it, and the copy manager as much. Not
longer than `_SECONDS_MAX`: a mirror fetches, and the ring is released, as far as was told.
"""


class Listeners:
    """Calls that are made after changes, on the loop thread."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._calls: list[Callable[[], None]] = []
        self._pending = False
        self._not_before = 0.0

    def add(self, call: Callable[[], None]) -> None:
        """Call after changes; all within 10 ms, or longer where telling takes long, make one call."""
        self._calls.append(call)

    def changed(self) -> None:
        """Something is different."""
        if not self._pending and self._calls:
            self._pending = True
            delay = max(_SECONDS_MIN, self._not_before - self._scheduler.monotonic())
            self._scheduler.call_later(delay, self._tell)

    def _tell(self) -> None:
        self._pending = False
        began = self._scheduler.monotonic()
        for call in self._calls:
            call()
        now = self._scheduler.monotonic()
        self._not_before = now + min(_PAUSE * (now - began), _SECONDS_MAX)
