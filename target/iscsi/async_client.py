"""An iSCSI client on the event loop: many commands outstanding, callbacks, nothing blocks.

The SAN transfer reads a peer's journal LUN with it. The protocol is in `initiator`. Received data goes by
the kernel straight into each command's own buffer, and is handed on as a memoryview of it.

`connect` may be called again after `on_down`, for a new session. Invariant: every command is answered
exactly once: with its response, or with None when the session ended before.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable

from target.errors import PeerError
from target.iscsi.address import format_address
from target.iscsi.chap import RandomBytes
from target.iscsi.initiator import Initiator, Response
from target.iscsi.initiator_login import LoginSettings
from target.loop import Loop, LoopTimer
from target.volume import Buffer

log = logging.getLogger(__name__)

Done = Callable[[Response | None], None]

_RESOLVE_LANE = "resolve"
_IOV_MAX = 512


class AsyncClient:
    """One session at a time with one logical unit."""

    def __init__(
        self,
        loop: Loop,
        host: str,
        port: int,
        lun: int,
        settings: LoginSettings,
        *,
        timeout_seconds: float = 10.0,
        ping_seconds: float = 5.0,
        random_bytes: RandomBytes = os.urandom,
    ) -> None:
        """`timeout_seconds` bounds connecting and logging in; a session silent for `ping_seconds` is
        pinged, and is down when that goes unanswered as long again.
        """
        self._loop = loop
        self._host = host
        self._port = port
        self._lun = lun
        self._settings = settings
        self._timeout_seconds = timeout_seconds
        self._ping_seconds = ping_seconds
        self._random_bytes = random_bytes
        self._socket: socket.socket | None = None
        self._initiator: Initiator | None = None
        self._commands: dict[int, Done] = {}
        self._command_number = 0
        self._attempt = 0
        self._connected = False
        self._blocked = False
        self._silent = False
        self._pinged = False
        self._timer: LoopTimer | None = None
        self._on_up: Callable[[], None] = _nothing
        self._on_down: Callable[[PeerError], None] = _ignore

    def __str__(self) -> str:
        where = format_address(self._host, self._port)
        return f"{self._settings.target_name} LUN {self._lun} at {where}"

    @property
    def is_up(self) -> bool:
        return self._initiator is not None and self._initiator.logged_in

    @property
    def outstanding(self) -> int:
        return len(self._commands)

    # Connecting

    def connect(self, on_up: Callable[[], None], on_down: Callable[[PeerError], None]) -> None:
        """Connect and log in, then `on_up()`; if it fails, or when the session ends, `on_down(why)`, once."""
        assert self._timer is None, f"{self} is connected already"
        self._on_up, self._on_down = on_up, on_down
        self._attempt += 1
        attempt = self._attempt
        self._timer = self._loop.call_later(self._timeout_seconds, self._timed_out)
        try:
            self._open(self._resolve(socket.AI_NUMERICHOST))
        except socket.gaierror:
            self._loop.submit(
                _RESOLVE_LANE, self._resolve, lambda found, error: self._resolved(attempt, found, error)
            )

    def _resolve(self, flags: int = 0) -> tuple[int, tuple[object, ...]]:
        family, _, _, _, address = socket.getaddrinfo(
            self._host, self._port, type=socket.SOCK_STREAM, flags=flags
        )[0]
        return family, address

    def _resolved(
        self, attempt: int, found: tuple[int, tuple[object, ...]] | None, error: Exception | None
    ) -> None:
        if attempt != self._attempt or self._timer is None:
            return
        if found is None:
            self._down(PeerError(f"cannot find {self._host}: {error}"))
        else:
            self._open(found)

    def _open(self, found: tuple[int, tuple[object, ...]]) -> None:
        family, address = found
        sock = socket.socket(family, socket.SOCK_STREAM)
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket = sock
        self._connected = False
        self._blocked = True
        error = sock.connect_ex(address)
        self._loop.register(sock.fileno(), self._on_readable, self._on_writable)
        self._loop.watch_writable(sock.fileno(), True)
        if error not in (0, _EINPROGRESS):
            # Not from within `connect`: its caller is not ready for an answer yet.
            self._loop.call_soon(lambda: self._connect_failed(sock, error))

    def _connect_failed(self, sock: socket.socket, error: int) -> None:
        if self._socket is sock:
            self._down(PeerError(f"cannot connect to {self}: {os.strerror(error)}"))

    def _on_connected(self, sock: socket.socket) -> None:
        error = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error:
            self._connect_failed(sock, error)
            return
        self._connected = True
        isid = b"\x80" + self._random_bytes(3) + b"\0\0"
        self._initiator = Initiator(self._settings, isid, self._random_bytes, self._output_ready)

    def _timed_out(self) -> None:
        self._down(PeerError(f"{self} did not answer in {self._timeout_seconds:g} s"))

    # Commands

    def submit(self, cdb: bytes, data_out: Buffer, data_in_length: int, done: Done) -> None:
        """Execute a command. `done(response)` is called once; `done(None)` if the session ends before the
        answer.

        `data_out` must not change until then. `response.data_in` is a view of a buffer made for this command.
        """
        initiator = self._initiator
        assert initiator is not None, f"{self} is not connected"
        self._command_number += 1
        number = self._command_number
        commands = self._commands
        commands[number] = done

        def finished(response: Response) -> None:
            call = commands.pop(number, None)
            if call is not None:
                call(response)

        initiator.submit(self._lun, cdb, data_out, data_in_length, finished)

    # The socket

    def _output_ready(self) -> None:
        self._loop.at_send(self._send)

    def _send(self) -> None:
        if self._blocked or self._socket is None or self._initiator is None:
            return
        output = self._initiator.output
        while output:
            try:
                sent = self._socket.sendmsg(output[:_IOV_MAX])
            except BlockingIOError:
                self._blocked = True
                self._loop.watch_writable(self._socket.fileno(), True)
                return
            except OSError as error:
                self._down(PeerError(f"the connection to {self} broke: {error}"))
                return
            index = 0
            while index < len(output) and sent >= len(output[index]):
                sent -= len(output[index])
                index += 1
            del output[:index]
            if sent:
                output[0] = memoryview(output[0])[sent:]

    def _on_writable(self) -> None:
        sock = self._socket
        if sock is None:
            return
        if not self._connected:
            self._on_connected(sock)
            if self._socket is None:
                return
        self._blocked = False
        self._loop.watch_writable(sock.fileno(), False)
        self._send()

    def _on_readable(self) -> None:
        sock, initiator = self._socket, self._initiator
        if sock is None or initiator is None:
            return
        was_up = initiator.logged_in
        try:
            count = sock.recvmsg_into(initiator.receive_buffers())[0]
            if not count:
                self._down(PeerError(f"{self} closed the connection"))
                return
            self._silent = False
            initiator.received(count)
        except BlockingIOError:
            return
        except OSError as error:
            self._down(PeerError(f"the connection to {self} broke: {error}"))
        except PeerError as error:
            self._down(error)
        else:
            if not was_up and initiator.logged_in and self._initiator is initiator:
                self._up()

    def _up(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._silent = self._pinged = False
        self._timer = self._loop.call_later(self._ping_seconds, self._ping)
        self._on_up()

    def _ping(self) -> None:
        assert self._initiator is not None
        if self._silent and self._pinged:
            self._down(PeerError(f"{self} does not answer any more"))
            return
        self._pinged = self._silent
        if self._silent:
            self._initiator.ping(_nothing)
        self._silent = True
        self._timer = self._loop.call_later(self._ping_seconds, self._ping)

    # The end

    def close(self) -> None:
        """End the session without a word to `on_down`; commands outstanding are answered None."""
        self._on_down = _ignore
        self._down(PeerError(f"{self} was closed"))

    def _down(self, why: PeerError) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._socket is not None:
            self._loop.unregister(self._socket.fileno())
            self._socket.close()
            self._socket = None
        self._initiator = None
        self._attempt += 1
        unanswered = list(self._commands.values())
        self._commands.clear()
        on_down, self._on_down = self._on_down, _ignore
        for done in unanswered:
            done(None)
        on_down(why)


_EINPROGRESS = 115


def _nothing() -> None:
    pass


def _ignore(why: PeerError) -> None:
    pass
