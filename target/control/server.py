"""The subsystem's end of the control socket: UNIX, mode 0600, JSON lines, on the event loop.

A request is answered when it is done, perhaps after others. Every connection is a subscriber: it gets the
state of each group at once and after every change. What is not understood closes that connection and nothing
else.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from target.control.lines import LineDecoder, Message, encode_line
from target.control.wire_error import error_to_wire
from target.errors import OperatorError, PeerError, ReplctlError
from target.loop import Loop

_log = logging.getLogger(__name__)

_RECEIVE_BYTES = 1 << 16
_OUTPUT_BYTES_MAX = 16 << 20


class Reply(Protocol):
    """Answers one request, once, on the loop thread."""

    def __call__(self, result: object = None, error: ReplctlError | None = None) -> None: ...


Handler = Callable[[str, dict[str, Any], Reply], None]
"""(op, params, reply); may raise a ReplctlError instead of replying."""


class ControlServer:
    """Listens from construction on."""

    def __init__(self, loop: Loop, path: Path, handler: Handler, greet: Callable[[], list[Message]]) -> None:
        self._loop = loop
        self._path = path
        self.handler = handler
        self.greet = greet
        self._connections: set[_Connection] = set()
        self._listener = _listen(path)
        loop.register(self._listener.fileno(), self._accept)

    def notify(self, message: Message) -> None:
        """Tell every subscriber."""
        for connection in list(self._connections):
            connection.send(message)

    def close(self) -> None:
        """Stop listening, drop the connections, remove the socket."""
        self._loop.unregister(self._listener.fileno())
        self._listener.close()
        for connection in list(self._connections):
            connection.close()
        self._path.unlink(missing_ok=True)

    def forget(self, connection: _Connection) -> None:
        self._connections.discard(connection)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            client, _ = self._listener.accept()
            connection = _Connection(self._loop, self, client)
            self._connections.add(connection)
            for message in self.greet():
                connection.send(message)


class _Connection:
    """One host agent."""

    def __init__(self, loop: Loop, server: ControlServer, client: socket.socket) -> None:
        client.setblocking(False)
        self._loop = loop
        self._server = server
        self._socket = client
        self._fd = client.fileno()
        self._decoder = LineDecoder()
        self._output = bytearray()
        self._open = True
        loop.register(self._fd, self._readable, self._writable)

    def send(self, message: Message) -> None:
        if not self._open:
            return
        try:
            self._output += encode_line(message)
        except PeerError as error:
            _log.error("control: %s", error)
            self.close()
            return
        if len(self._output) > _OUTPUT_BYTES_MAX:
            _log.warning("control: a subscriber does not read, it is dropped")
            self.close()
            return
        self._writable()

    def _readable(self) -> None:
        try:
            data = self._socket.recv(_RECEIVE_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.close()
            return
        try:
            for message in self._decoder.feed(data):
                self._request(message)
        except PeerError as error:
            _log.warning("control: a connection is closed: %s", error)
            self.close()

    def _request(self, message: Message) -> None:
        number, op, params = message.get("id"), message.get("op"), message.get("params", {})
        if not isinstance(number, int) or not isinstance(op, str) or not isinstance(params, dict):
            raise PeerError(f"not a request: {message!r:.200}")
        answered = False

        def reply(result: object = None, error: ReplctlError | None = None) -> None:
            nonlocal answered
            assert not answered, f"{op} was answered twice"
            answered = True
            if error is not None:
                self.send({"id": number, "error": error_to_wire(error)})
            else:
                self.send({"id": number, "result": {} if result is None else result})

        try:
            self._server.handler(op, params, reply)
        except ReplctlError as error:
            reply(error=error)
        except Exception as error:
            _log.exception("control: %s failed", op)
            if not answered:
                reply(
                    error=ReplctlError(
                        f"{op} failed in the storage subsystem: {error!r}; its log has the details"
                    )
                )

    def _writable(self) -> None:
        try:
            while self._output:
                sent = self._socket.send(self._output)
                del self._output[:sent]
        except BlockingIOError:
            pass
        except OSError:
            self.close()
            return
        self._loop.watch_writable(self._fd, bool(self._output))

    def close(self) -> None:
        if self._open:
            self._open = False
            self._loop.unregister(self._fd)
            self._socket.close()
            self._server.forget(self)


def _listen(path: Path) -> socket.socket:
    """A listening socket; what a dead daemon left is replaced, a live one is an OperatorError."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        if path.exists() and probe.connect_ex(str(path)) == 0:
            raise OperatorError(f"{path}: a storage subsystem serves there already")
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        listener.bind(str(path))
        os.chmod(path, 0o600)  # before listen: until then nobody can connect
        listener.listen(16)
    except OSError as error:
        listener.close()
        raise OperatorError(f"control_socket {path}: cannot listen: {error.strerror or error}") from None
    listener.setblocking(False)
    return listener
