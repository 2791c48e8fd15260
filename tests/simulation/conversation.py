"""Requests, answers and notes between two processes over a stream that keeps their order, as JSON lines.

Takes the place of `hostagent.rpc` and `target.control.server`, sockets and threads left away: the lines are
the product's own. While the path is cut, what was sent waits, as TCP keeps it; after a silence the client
gives up, and then nothing of what waits arrives any more.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import msgspec

from target.control.lines import LineDecoder, Message, encode_line
from target.control.wire_error import error_from_wire, error_to_wire
from target.errors import PeerError, ReplctlError
from tests.simulation.sim_scheduler import SimClock, SimTimer

_LATE_SECONDS_MAX = 5.0

Done = Callable[[dict[str, Any] | None, ReplctlError | None], None]


class Reply(Protocol):
    def __call__(self, result: Any = None, error: ReplctlError | None = None) -> None: ...


Serve = Callable[[str, dict[str, Any], Reply], None]


class Conversation:
    """One connection. `serve` runs at the server, everything else that is called back at the client."""

    def __init__(
        self,
        clock: SimClock,
        client: object,
        server: object,
        *,
        latency: Callable[[], float],
        passes: Callable[[bool], bool],
        heard: Callable[[], bool],
        serve: Serve,
        on_note: Callable[[str, dict[str, Any]], None] | None = None,
        on_broken: Callable[[str], None] | None = None,
        run: Callable[[Callable[[], None]], None],
    ) -> None:
        self._clock = clock
        self._client = client
        self._server = server
        self._latency = latency
        self._passes = passes
        self._heard = heard
        self._serve = serve
        self._on_note = on_note
        self._on_broken = on_broken
        self._run = run
        self._count = 0
        self._pending: dict[int, tuple[Done, SimTimer]] = {}
        self._free_at = {True: 0.0, False: 0.0}
        self._waiting: dict[bool, deque[bytes]] = {True: deque(), False: deque()}
        self._decoders = {True: LineDecoder(), False: LineDecoder()}
        self.up = True
        self._late = False

    # -- the client's side --

    def call(self, op: str, params: dict[str, Any], done: Done, timeout_seconds: float) -> None:
        if not self.up:
            self._settle(done, None, PeerError(f"{op} was not sent: the link is down"))
            return
        self._count += 1
        number = self._count

        def expire() -> None:
            if self._pending.pop(number, None) is not None:
                self._run(partial(done, None, PeerError(f"{op} was not answered in time")))

        self._pending[number] = (done, self._clock.at(timeout_seconds, expire, self._client))
        self._send(True, {"id": number, "op": op, "params": params})

    def notify(self, note: str, params: dict[str, Any]) -> None:
        """The client tells the server."""
        if self.up:
            self._send(True, {"note": note, "params": params})

    def break_off(self, reason: str, *, late: bool = False) -> None:
        """The connection is gone. `late`: what is on its way to the server arrives all the same."""
        if not self.up:
            return
        self.up, self._late = False, late
        if late and self._waiting[True]:
            self._clock.at(self._clock.random.uniform(0.0, _LATE_SECONDS_MAX), self._deliver_late, self)
        pending, self._pending = self._pending, {}
        for done, timer in pending.values():
            timer.cancel()
            self._settle(done, None, PeerError(reason))
        if self._on_broken is not None:
            on_broken = self._on_broken
            self._clock.at(0.0, lambda: self._run(lambda: on_broken(reason)), self._client)

    def _deliver_late(self) -> None:
        """What was under way in a broken connection may come behind what a newer one brought."""
        lines, self._waiting[True] = self._waiting[True], deque()
        if self._passes(True):
            for line in lines:
                self._arrive(True, line)

    def _settle(self, done: Done, result: dict[str, Any] | None, error: ReplctlError | None) -> None:
        self._clock.at(0.0, lambda: self._run(lambda: done(result, error)), self._client)

    # -- the server's side --

    def tell(self, note: str, params: Any) -> None:
        """The server tells the client."""
        if self.up:
            self._send(False, {"note": note, "params": params})

    # -- the wire --

    def _send(self, to_server: bool, message: Message) -> None:
        try:
            line = encode_line(message)
        except PeerError as too_long:
            line = encode_line({"id": message.get("id"), "error": error_to_wire(too_long)})
        arrival = max(self._free_at[to_server], self._clock.now + self._latency())
        self._free_at[to_server] = arrival
        self._clock.at(arrival - self._clock.now, lambda: self._arrive(to_server, line), self)

    def _arrive(self, to_server: bool, line: bytes) -> None:
        if not self.up and not (self._late and to_server):
            return
        if self._waiting[to_server] or not self._passes(to_server):
            self._waiting[to_server].append(line)
            return
        for message in self._decoders[to_server].feed(line):
            if to_server:
                self._at_server(message)
            else:
                self._clock.at(0.0, lambda m=message: self._at_client(m), self._client)  # type: ignore[misc]

    def path_is_back(self) -> None:
        """What waited arrives now, in order."""
        for to_server, waiting in self._waiting.items():
            if not self._passes(to_server):
                continue
            lines, self._waiting[to_server] = waiting, deque()
            for line in lines:
                self._clock.at(0.001, lambda d=to_server, one=line: self._arrive(d, one), self)  # type: ignore[misc]

    def _at_server(self, message: Message) -> None:
        number = message.get("id")
        name = message.get("op") or message["note"]
        answered = False

        def reply(result: Any = None, error: ReplctlError | None = None) -> None:
            nonlocal answered
            if number is None or answered:
                return
            answered = True
            if error is not None:
                self._send(False, {"id": number, "error": error_to_wire(error)})
            else:
                self._send(False, {"id": number, "result": result or {}})

        if self._heard():
            self._clock.at(0.0, lambda: self._serve(name, message.get("params", {}), reply), self._server)

    def _at_client(self, message: Message) -> None:
        if "note" in message:
            if self._on_note is not None and self.up:
                self._run(partial(self._on_note, message["note"], message["params"]))
            return
        pending = self._pending.pop(message["id"], None)
        if pending is None:
            return
        done, timer = pending
        timer.cancel()
        if "error" in message:
            self._run(partial(done, None, error_from_wire(message["error"])))
        else:
            self._run(partial(done, msgspec.to_builtins(message["result"]), None))
