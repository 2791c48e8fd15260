"""A duplex stream of JSON lines over an SSH channel or a UNIX socket.

Sending never blocks: a writer thread drains a bounded queue, so that a peer which stopped reading cannot stop
the copy manager's thread. Receiving blocks, on the thread that owns the stream. Silence is told from death by
`ping`/`pong` notes, handled here and unseen above: a link that was cut without a FIN is noticed after
`SILENCE_SECONDS_MAX`.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from typing import Protocol

from target.control.lines import LineDecoder, Message, encode_line
from target.errors import PeerError

PING_INTERVAL_SECONDS = 1.0
SILENCE_SECONDS_MAX = 4.0
_TICK_SECONDS = 0.5
_RECV_BYTES = _SEND_BYTES = 1 << 16
_UNSENT_BYTES_MAX = 16 << 20

_PING: Message = {"note": "ping"}
_PONG: Message = {"note": "pong"}

log = logging.getLogger(__name__)


class ByteChannel(Protocol):
    """What `socket.socket` and `paramiko.Channel` have in common. Errors are OSError or EOFError."""

    def recv(self, nbytes: int, /) -> bytes: ...

    def send(self, s: bytes, /) -> int: ...

    def settimeout(self, timeout: float | None, /) -> None: ...

    def close(self) -> None: ...


class LineStream:
    """One conversation. `peer_name` says with whom, as far as that was proved."""

    def __init__(self, channel: ByteChannel, peer_name: str, *, pings: bool = False) -> None:
        self.peer_name = peer_name
        self._channel = channel
        self._pings = pings
        self._watched = pings  # a peer that pings, or is pinged, must not fall silent
        self._decoder = LineDecoder()
        self._received: deque[Message] = deque()
        self._heard = self._pinged = time.monotonic()
        self._unsent: list[bytes] = []
        self._unsent_bytes = 0
        self._closed = False
        self._wake = threading.Condition()
        channel.settimeout(_TICK_SECONDS)
        threading.Thread(target=self._write, name=f"lines to {peer_name}", daemon=True).start()

    def send(self, message: Message) -> bool:
        """Queue a message; False when the stream is closed. Any thread."""
        line = encode_line(message)
        with self._wake:
            if self._closed:
                return False
            self._unsent.append(line)
            self._unsent_bytes += len(line)
            overflow = self._unsent_bytes > _UNSENT_BYTES_MAX
            self._wake.notify_all()
        if overflow:
            log.warning("%s does not read: closing its stream", self.peer_name)
            self.close()
        return not overflow

    def receive(self) -> Message | None:
        """The next message, None at the end of the stream; `PeerError` for a broken or a dead one."""
        while True:
            while self._received:
                message = self._received.popleft()
                note = message.get("note")
                if note == "ping":
                    self._watched = True
                    self.send(_PONG)
                elif note != "pong":
                    return message
            if self._pings and time.monotonic() - self._pinged >= PING_INTERVAL_SECONDS:
                self._pinged = time.monotonic()
                self.send(_PING)
            try:
                data = self._channel.recv(_RECV_BYTES)
            except TimeoutError:
                if self._watched and time.monotonic() - self._heard > SILENCE_SECONDS_MAX:
                    raise PeerError(
                        f"{self.peer_name} fell silent: the link was cut, or its host died"
                    ) from None
                continue
            except (OSError, EOFError) as error:
                if self._closed:
                    return None
                raise PeerError(f"the link to {self.peer_name} broke: {error}") from None
            if not data:
                return None
            self._heard = time.monotonic()
            self._received.extend(self._decoder.feed(data))

    def finish(self, timeout_seconds: float = 2.0) -> None:
        """Wait until all that was queued is sent, then close."""
        with self._wake:
            self._wake.wait_for(lambda: self._unsent_bytes == 0 or self._closed, timeout_seconds)
        self.close()

    def close(self) -> None:
        """End the conversation; what was not sent yet is dropped. Any thread, any number of times."""
        with self._wake:
            if self._closed:
                return
            self._closed = True
            self._wake.notify_all()
        self._channel.close()

    def _write(self) -> None:
        while True:
            with self._wake:
                while not self._unsent and not self._closed:
                    self._wake.wait()
                if self._closed:
                    return
                data = memoryview(b"".join(self._unsent))
                self._unsent.clear()
            size = len(data)
            while data:
                try:
                    data = data[self._channel.send(bytes(data[:_SEND_BYTES])) :]
                except TimeoutError:
                    continue
                except (OSError, EOFError):
                    self.close()  # the reader sees the same, and tells
                    return
            with self._wake:
                self._unsent_bytes -= size
                self._wake.notify_all()
