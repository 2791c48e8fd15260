"""The copy manager's end of the control socket: kept connected, for ever tried again."""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hostagent.flow import Done
from hostagent.line_stream import LineStream
from hostagent.rpc import Caller
from target.errors import PeerError

_RETRY_SECONDS = 0.1

_log = logging.getLogger(__name__)


class TargetLink:
    """Callbacks come on the link's thread."""

    def __init__(
        self,
        path: Path,
        on_note: Callable[[str, dict[str, Any]], None],
        on_up: Callable[[], None],
        on_down: Callable[[], None],
    ) -> None:
        self._path = path
        self._on_up = on_up
        self._on_down = on_down
        self._stream: LineStream | None = None
        self._caller = Caller(self._send, on_note)
        self._closing = threading.Event()
        threading.Thread(target=self._run, name="target link", daemon=True).start()

    def call(self, op: str, params: dict[str, Any], done: Done, timeout_seconds: float) -> None:
        """Ask the subsystem; PeerError when it is not there."""
        if self._stream is None:
            done(None, PeerError(f"the storage subsystem of this site does not answer {op}: is it running?"))
            return
        self._caller.call(op, params, done, timeout_seconds)

    def close(self) -> None:
        """Stop trying."""
        self._closing.set()
        stream = self._stream
        if stream is not None:
            stream.close()

    def _send(self, message: dict[str, Any]) -> bool:
        stream = self._stream
        return stream is not None and stream.send(message)

    def _run(self) -> None:
        said = False
        while not self._closing.is_set():
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
            try:
                connection.connect(str(self._path))
            except OSError as error:
                connection.close()
                if not said:
                    _log.warning("no storage subsystem answers at %s: %s", self._path, error.strerror)
                    said = True
                self._closing.wait(_RETRY_SECONDS)
                continue
            said = False
            self._converse(connection)

    def _converse(self, connection: socket.socket) -> None:
        stream = LineStream(connection, "the storage subsystem")
        self._stream = stream
        _log.info("the storage subsystem is there")
        self._on_up()
        try:
            while (message := stream.receive()) is not None:
                self._caller.received(message)
        except PeerError as error:
            _log.warning("the control socket: %s", error)
        finally:
            self._stream = None
            stream.close()
            with contextlib.suppress(OSError):
                connection.close()
            self._caller.lost("the storage subsystem went away")
            _log.warning("the storage subsystem is gone")
            self._on_down()
