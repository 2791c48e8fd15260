"""The engine's only view of time and of work that blocks.

`target.loop.Loop` is the real one: one thread, epoll, and worker threads. The simulation has another, driven
by a seed. The engine runs on the loop thread alone and shares no state with workers: a worker gets a closure
that does I/O and nothing else, and its result comes back as a call on the loop thread.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

T = TypeVar("T")


class Timer(Protocol):
    """A pending call."""

    def cancel(self) -> None:
        """Never call it; harmless when it was called already."""


class Scheduler(Protocol):
    """Time, deferred calls and background work."""

    def monotonic(self) -> float:
        """Seconds on a clock that never goes back."""

    def wall_ns(self) -> int:
        """Nanoseconds since 1970, as the site's clock tells them."""

    def call_soon(self, call: Callable[[], None]) -> None:
        """Call on the loop thread, in the next turn."""

    def call_later(self, delay_seconds: float, call: Callable[[], None]) -> Timer:
        """Call on the loop thread after a delay."""

    def at_append(self, call: Callable[[], None]) -> None:
        """Call once in this turn, after all its commands were executed and before answers are sent."""

    def at_send(self, call: Callable[[], None]) -> None:
        """Call once in this turn, after every `at_append` call."""

    def submit(
        self, lane: str, work: Callable[[], T], done: Callable[[T | None, Exception | None], None]
    ) -> None:
        """Run `work` on the lane's worker thread; then `done(result, error)` on the loop thread.

        A lane is any short name and keeps the order; "read" is served by several threads and does not.
        """
