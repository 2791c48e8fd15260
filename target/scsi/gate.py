"""The gate before a medium: one command may have it to itself, for as long as it reads, decides and writes.

COMPARE AND WRITE and ORWRITE must look like one action to every other command (SBC-3 4.27 and their clauses).
The loop is one thread, but a cold read is answered later, so they enter the gate, and every write that comes
meanwhile waits before it. Writes that came earlier are in the volume's hands already: `Volume.barrier` is
answered when reads see them.

Invariant: while `closed`, no write reaches the volume but that of the one that entered; who waited goes on in
the order of arrival.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from target.volume import Request

Step = Callable[[Request], None]


class Gate:
    """Pure: it calls the steps it was given, and nothing else."""

    __slots__ = ("_changed", "_letting_in", "_waiting", "closed")

    def __init__(self, changed: Callable[[], None] | None = None) -> None:
        self._waiting: deque[tuple[Step | None, Request]] = deque()
        self._changed = changed
        self._letting_in = False
        self.closed = False
        """Somebody is inside, or about to be: what comes now has to wait."""

    def enter(self, request: Request) -> None:
        """Close the gate behind `request`, as soon as it is its turn; `leave` opens it again."""
        self._waiting.append((None, request))
        self._let_in()

    def through(self, step: Step, request: Request) -> None:
        """Do one step for `request` while nobody is inside."""
        if not self.closed and not self._waiting:
            step(request)
            return
        self._waiting.append((step, request))
        self._let_in()

    def leave(self) -> None:
        """The one inside is done."""
        assert self.closed
        self._close(False)
        self._let_in()

    def leave_with(self, step: Step, request: Request) -> None:
        """A last step from inside: who comes next is ordered behind it, and need not wait for its answer."""
        step(request)
        self.leave()

    def _let_in(self) -> None:
        # Whoever is let in may leave at once: a loop, so that many of them do not deepen the stack.
        if self._letting_in:
            return
        self._letting_in = True
        while self._waiting and not self.closed:
            step, request = self._waiting.popleft()
            if step is None:
                self._close(True)
                request.done()
            else:
                step(request)
        self._letting_in = False

    def _close(self, closed: bool) -> None:
        self.closed = closed
        if self._changed is not None:
            self._changed()
