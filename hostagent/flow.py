"""Operations that take several steps at several places, written one step after the other.

A flow is a generator. It yields a `Call` and is resumed with the result, or with the error raised where it
yielded; it yields a `Wait` and is resumed when the condition holds. The runner holds no thread: it goes on
when an answer or an event comes in, so that the same flows run in the daemon and in the simulation.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, Protocol

from target.errors import OperatorError, PeerError, ReplctlError

_log = logging.getLogger(__name__)

Result = dict[str, Any]
Done = Callable[["Result | None", "ReplctlError | None"], None]


@dataclass(frozen=True, slots=True)
class Call:
    """Ask for an operation: at a peer's copy manager, or (`site` None) at our own storage subsystem."""

    site: str | None
    op: str
    params: dict[str, Any]
    timeout_seconds: float = 30.0


@dataclass(frozen=True, slots=True)
class Wait:
    """Go on when `reached()` is true; PeerError with `what` after the time."""

    reached: Callable[[], bool]
    what: str
    timeout_seconds: float


Flow = Generator[Call | Wait, Any, Any]


class Carrier(Protocol):
    """What carries a flow's calls."""

    def call(
        self, site: str | None, op: str, params: dict[str, Any], done: Done, timeout_seconds: float
    ) -> None:
        """Ask; `done` is called once, on the copy manager's thread, never before this returns."""

    def monotonic(self) -> float:
        """Seconds."""


class FlowRunner:
    """Runs flows, at most one for each key (a group) at a time."""

    def __init__(self, carrier: Carrier) -> None:
        self._carrier = carrier
        self._busy: dict[str, str] = {}
        self._waiting: list[tuple[Flow, Wait, float, str, Done]] = []

    def busy(self, key: str) -> bool:
        """A flow of this key is under way."""
        return key in self._busy

    def doing(self, key: str) -> str:
        """The name of the flow that is under way, or ''."""
        return self._busy.get(key, "")

    def start(self, key: str, name: str, flow: Flow, done: Done) -> None:
        """Run a flow; OperatorError when another one of the same key is under way."""
        if key in self._busy:
            flow.close()
            done(None, OperatorError(f"{self._busy[key]} is under way for {key!r}: wait for it"))
            return
        self._busy[key] = name
        self._step(flow, key, done, None, None)

    def poll(self) -> None:
        """Something changed, or time passed: look at the flows that wait."""
        waiting, self._waiting = self._waiting, []
        for flow, wait, deadline, key, done in waiting:
            if wait.reached():
                self._step(flow, key, done, {}, None)
            elif self._carrier.monotonic() >= deadline:
                self._step(flow, key, done, None, PeerError(f"{wait.what} did not happen in time"))
            else:
                self._waiting.append((flow, wait, deadline, key, done))

    def _step(
        self, flow: Flow, key: str, done: Done, result: Result | None, error: ReplctlError | None
    ) -> None:
        try:
            wanted = flow.throw(error) if error is not None else flow.send(result)
        except StopIteration as end:
            del self._busy[key]
            done(end.value, None)
        except ReplctlError as failure:
            del self._busy[key]
            done(None, failure)
        except Exception as mistake:
            _log.exception("%s of %r broke off", self._busy.pop(key), key)
            done(None, ReplctlError(f"it broke off in the host agent: {mistake!r}; its log has the details"))
        else:
            if isinstance(wanted, Wait):
                deadline = self._carrier.monotonic() + wanted.timeout_seconds
                self._waiting.append((flow, wanted, deadline, key, done))
            else:
                self._carrier.call(
                    wanted.site,
                    wanted.op,
                    wanted.params,
                    lambda answer, failure: self._step(flow, key, done, answer or {}, failure),
                    wanted.timeout_seconds,
                )
