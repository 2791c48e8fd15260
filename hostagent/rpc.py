"""Requests, answers and notifications on a stream of JSON lines.

    {"id": n, "op": str, "params": {...}}         request
    {"id": n, "result": {...}}                    answer
    {"id": n, "error": {"kind", "message", "exit_code", "facts"}}
    {"note": str, "params": {...}}                notification, never answered

Many requests may be outstanding; answers come in any order. A request whose link breaks is answered with a
`PeerError`: whether the peer did it is unknown, so every operation must bear repeating.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol

import msgspec

from hostagent.line_stream import LineStream
from target.control.lines import Message
from target.control.wire_error import WireError, error_to_wire
from target.errors import PeerError, ReplctlError

Params = dict[str, Any]
Result = dict[str, Any]
Done = Callable[[Result | None, ReplctlError | None], None]
"""Takes the result, or the error when there is no result."""

_LAST_ANSWERS_SECONDS_MAX = 30.0

log = logging.getLogger(__name__)


class Reply(Protocol):
    """Answers one request, once; does nothing for a notification. Any thread."""

    def __call__(self, result: Result | None = None, error: ReplctlError | None = None) -> None: ...


Handler = Callable[[str, str, Params, Reply], None]
"""(peer name, op or note, params, reply). May reply later; may raise a `ReplctlError` instead of replying."""


class _WireMessage(msgspec.Struct):
    id: int | None = None
    op: str | None = None
    note: str | None = None
    params: Params = {}
    result: Result | None = None
    error: WireError | None = None


class Caller:
    """Asks over a link that may come and go. `send` is the link's; the link calls `received` and `lost`."""

    def __init__(
        self, send: Callable[[Message], bool], on_note: Callable[[str, Params], None] | None = None
    ) -> None:
        self._send = send
        self._on_note = on_note
        self._ids = itertools.count(1)
        self._pending: dict[int, tuple[str, float, Done]] = {}
        self._wake = threading.Condition()
        self._closed = False
        threading.Thread(target=self._expire, name="rpc deadlines", daemon=True).start()

    def call(self, op: str, params: Params, done: Done, timeout_seconds: float = 30.0) -> None:
        """Ask; `done` is called exactly once, on any thread, possibly before this returns."""
        request_id = next(self._ids)
        with self._wake:
            self._pending[request_id] = (op, time.monotonic() + timeout_seconds, done)
            self._wake.notify()
        if not self._send({"id": request_id, "op": op, "params": params}):
            self._settle(request_id, None, PeerError(f"{op} was not sent: the link is down"))

    def notify(self, note: str, params: Params) -> bool:
        """Tell; False when the link is down."""
        return self._send({"note": note, "params": params})

    def received(self, message: Message) -> None:
        """Take an answer or a notification from the link; `PeerError` when it is neither."""
        parsed = _convert(message, _WireMessage)
        if parsed.note is not None:
            if self._on_note is not None:
                self._on_note(parsed.note, parsed.params)
        elif parsed.id is None or (parsed.result is None and parsed.error is None):
            raise PeerError(f"neither answer nor notification: {message!r:.200}")
        else:
            self._settle(parsed.id, parsed.result, parsed.error and parsed.error.exception())

    def lost(self, reason: str) -> None:
        """The link went down: no answer will come."""
        with self._wake:
            request_ids = list(self._pending)
        for request_id in request_ids:
            self._settle(request_id, None, PeerError(reason))

    def close(self) -> None:
        """Fail what is pending and stop."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        self.lost("closed")

    def _settle(self, request_id: int, result: Result | None, error: ReplctlError | None) -> None:
        with self._wake:
            pending = self._pending.pop(request_id, None)
        if pending is not None:  # None: it was answered, expired or lost before
            pending[2](result, error)

    def _expire(self) -> None:
        while True:
            with self._wake:
                if self._closed:
                    return
                now = time.monotonic()
                late = [(key, op) for key, (op, deadline, _) in self._pending.items() if deadline <= now]
                if not late:
                    nearest = min((deadline for _, deadline, _ in self._pending.values()), default=None)
                    self._wake.wait(None if nearest is None else nearest - now)
                    continue
            for request_id, op in late:
                self._settle(request_id, None, PeerError(f"{op} was not answered in time"))


def serve(stream: LineStream, handler: Handler, first: Message | None = None) -> None:
    """Hand `first` and every further message of a stream to `handler`, until its end; then close it.

    The other side may end its sending after the last request (a shell pipe into `ssh -s`): what it asked is
    still answered.
    """
    unanswered = _Unanswered()
    try:
        message = stream.receive() if first is None else first
        while message is not None:
            serve_one(stream, message, handler, unanswered)
            message = stream.receive()
        unanswered.wait_for_none(_LAST_ANSWERS_SECONDS_MAX)
        stream.finish()
    except PeerError as error:
        log.info("conversation with %s ended: %s", stream.peer_name, error)
    finally:
        stream.close()


class _Unanswered:
    """How many requests of a stream wait for their answer."""

    def __init__(self) -> None:
        self._count = 0
        self._wake = threading.Condition()

    def add(self, count: int) -> None:
        with self._wake:
            self._count += count
            self._wake.notify_all()

    def wait_for_none(self, timeout_seconds: float) -> None:
        with self._wake:
            self._wake.wait_for(lambda: self._count == 0, timeout_seconds)


def serve_one(
    stream: LineStream, message: Message, handler: Handler, unanswered: _Unanswered | None = None
) -> None:
    """Hand one request or notification to `handler`; `PeerError` when it is neither."""
    parsed = _convert(message, _WireMessage)
    name = parsed.op if parsed.note is None else parsed.note
    if name is None or (parsed.note is None and parsed.id is None):
        raise PeerError(f"neither request nor notification: {message!r:.200}")
    unanswered = unanswered or _Unanswered()
    waiting = [] if parsed.note is not None else [parsed.id]
    unanswered.add(len(waiting))

    def reply(result: Result | None = None, error: ReplctlError | None = None) -> None:
        try:
            request_id = waiting.pop()
        except IndexError:
            return  # a notification, or answered before
        body: Message = {"result": result or {}} if error is None else {"error": error_to_wire(error)}
        try:
            stream.send({"id": request_id, **body})
        except PeerError as too_long:
            stream.send({"id": request_id, "error": error_to_wire(too_long)})
        unanswered.add(-1)

    try:
        handler(stream.peer_name, name, parsed.params, reply)
    except ReplctlError as error:
        reply(error=error)
    except Exception as error:
        log.exception("%s from %s failed", name, stream.peer_name)
        reply(error=ReplctlError(f"{name} failed: {error!r}; the log of the host agent has the details"))


def _convert(message: object, kind: Any) -> Any:
    try:
        return msgspec.convert(message, kind)
    except msgspec.ValidationError as error:
        raise PeerError(f"malformed message: {error}: {message!r:.200}") from None
