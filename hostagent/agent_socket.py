"""The host agent's own door: a UNIX socket, mode 0600, through which `replctl` and `--stdio` come in.

The same requests and answers as between agents (`hostagent.rpc`). A conversation that begins with the request
`peer.attach` is a peer's from then on: this is how a system's OpenSSH carries one (`hostagent.stdio`).
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import logging
import os
import socket
import stat
import threading
import time
from collections.abc import Callable
from pathlib import Path

from hostagent.line_stream import LineStream
from hostagent.rpc import Handler, Params, Reply, Result, serve, serve_one
from target.control.lines import LineDecoder, Message, encode_line
from target.control.wire_error import error_from_wire
from target.errors import OperatorError, PeerError

ATTACH_OP = "peer.attach"

log = logging.getLogger(__name__)


class AgentSocketServer:
    """Listens from construction on.

    `handler` gets the requests, with an empty peer name. `on_peer` gets the stream of an attached peer, on a
    thread of its own.
    """

    def __init__(
        self, path: Path, handler: Handler, on_peer: Callable[[LineStream], None] | None = None
    ) -> None:
        self._path = path
        self._handler = handler
        self._on_peer = on_peer
        self._closed = False
        self._listener = _listen(path)
        threading.Thread(target=self._accept, name="agent socket", daemon=True).start()

    def close(self) -> None:
        """Stop listening; conversations go on to their end."""
        self._closed = True
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes the accepting thread
        self._listener.close()
        self._path.unlink(missing_ok=True)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError as error:
                if self._closed:
                    return
                log.warning("accepting on %s failed: %s", self._path, error)
                time.sleep(0.2)  # out of descriptors, most likely: some must close first
                continue
            threading.Thread(
                target=self._converse, args=(connection,), name="agent socket client", daemon=True
            ).start()

    def _converse(self, connection: socket.socket) -> None:
        stream = LineStream(_SocketChannel(connection), "")
        try:
            first = stream.receive()
            if first is None:
                return
            if first.get("op") != ATTACH_OP or self._on_peer is None:
                serve(stream, self._handler, first)
                return
            serve_one(stream, first, lambda _peer, _op, params, reply: _attach(stream, params, reply))
            if not stream.peer_name:
                stream.finish()
                return
            self._on_peer(stream)
        except PeerError as error:
            log.info("a client of %s was cut off: %s", self._path, error)
        finally:
            stream.close()


class _SocketChannel:
    """A socket whose close only shuts it down.

    Another thread may be in a call on its descriptor, which is given back only when the last one lets go:
    before that its number must not come to mean another file.
    """

    def __init__(self, connection: socket.socket) -> None:
        self.recv = connection.recv
        self.send = connection.send
        self.settimeout = connection.settimeout
        self._connection = connection

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)


def _attach(stream: LineStream, params: Params, reply: Reply) -> None:
    site = params.get("site")
    if not isinstance(site, str) or not site:
        raise OperatorError(f"{ATTACH_OP}: site {site!r} is not a site's name")
    stream.peer_name = site
    reply({})


class AgentClient:
    """One conversation with the host agent of a site, for one thread."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._ids = itertools.count(1)
        self._decoder = LineDecoder()
        self._socket = connect(path)

    def call(self, op: str, params: Params, timeout_seconds: float = 30.0) -> Result:
        """The result of an operation; raises the `ReplctlError` it failed with."""
        request_id = next(self._ids)
        deadline = time.monotonic() + timeout_seconds
        try:
            self._socket.settimeout(timeout_seconds)
            self._socket.sendall(encode_line({"id": request_id, "op": op, "params": params}))
            while True:
                self._socket.settimeout(max(0.001, deadline - time.monotonic()))
                data = self._socket.recv(1 << 16)
                if not data:
                    raise PeerError(
                        f"the host agent at {self._path} closed the connection during {op}; see its log"
                    )
                for message in self._decoder.feed(data):
                    if message.get("id") == request_id:
                        return _result(message)
        except TimeoutError:
            raise PeerError(f"the host agent did not answer {op} within {timeout_seconds:g} s") from None
        except OSError as error:
            raise PeerError(f"the connection to the host agent at {self._path} broke: {error}") from None

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> AgentClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def connect(path: Path) -> socket.socket:
    """A connection to the running host agent; `PeerError` when there is none."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        connection.connect(str(path))
    except OSError as error:
        connection.close()
        reason = "it is not running" if error.errno in (errno.ENOENT, errno.ECONNREFUSED) else str(error)
        raise PeerError(
            f"no host agent answers at {path}: {reason}; start it (python -m hostagent --config site.toml)"
        ) from None
    return connection


def _result(message: Message) -> Result:
    if "error" in message:
        raise error_from_wire(message["error"])
    result = message.get("result")
    if not isinstance(result, dict):
        raise PeerError(f"the host agent answered without a result: {message!r:.200}")
    return result


def _listen(path: Path) -> socket.socket:
    """A listening socket at `path`; what a dead daemon left there is replaced, a live one is an error."""
    try:
        if stat.S_ISSOCK(path.stat().st_mode):
            connect(path).close()
            raise OperatorError(f"{path}: a host agent serves there already")
        raise OperatorError(f"{path}: exists and is not a socket")
    except FileNotFoundError:
        pass
    except PeerError:
        path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        listener.bind(str(path))
        os.chmod(path, 0o600)  # before listen: until then nobody can connect
        listener.listen(64)
    except OSError as error:
        listener.close()
        raise OperatorError(f"socket {path}: cannot listen: {error.strerror or error}") from None
    return listener
