"""The memory that all sessions of a portal group together may fill with commands not yet whole. No I/O.

Invariant: what is taken is at most the limit and one share for each session. The share keeps those who hold
everything from starving the rest: a session with nothing taken always gets what fits its share. Who must wait
is called in order as others give back.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

SHARE_BYTES = 1 << 20
LIMIT_BYTES = 256 << 20


class MemoryBudget:
    """Bytes, taken and given back."""

    def __init__(self, limit_bytes: int = LIMIT_BYTES) -> None:
        self.taken_bytes = 0
        self._limit_bytes = limit_bytes
        self._waiting: deque[Callable[[], None]] = deque()
        self._calling = False

    def take(self, count: int, taken_by_session: int) -> bool:
        """Take `count` bytes for a session that has `taken_by_session` already; false when it must wait."""
        # Who does not wait may not overtake those who do.
        free = self.taken_bytes + count <= self._limit_bytes and (self._calling or not self._waiting)
        if not free and taken_by_session + count > SHARE_BYTES:
            return False
        self.taken_bytes += count
        return True

    def give(self, count: int) -> None:
        self.taken_bytes -= count
        if self._calling:
            return  # the loop below, further up the stack, looks again
        self._calling = True
        try:
            # Each may wait again; so only those who wait now are called, until nothing comes free.
            for _ in range(len(self._waiting)):
                if self.taken_bytes >= self._limit_bytes:
                    break
                self._waiting.popleft()()
        finally:
            self._calling = False

    def wait(self, call: Callable[[], None]) -> None:
        """Call once when something was given back."""
        self._waiting.append(call)

    def withdraw(self, call: Callable[[], None]) -> None:
        """Who waits with this call is gone, and must not be kept by it."""
        self._waiting.remove(call)
