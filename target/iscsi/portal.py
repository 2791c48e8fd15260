"""iSCSI portals: the sockets below `target.iscsi.connection`. The only module of the target side that does
I/O.

A turn of the loop reads each ready connection once, into a buffer that is used again and again; every
complete PDU in it is executed; when the journal has been written, all answers leave by one `sendmsg`.
Invariants: the buffer is not touched between parsing and the end of the turn, because commands hold slices
of it; what a socket does not take in the turn is copied, because what `output` holds may change afterwards;
and nothing more is read while much is unsent.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections import deque
from collections.abc import Callable, Sequence
from itertools import islice

from target.iscsi.address import format_address, parse_address
from target.iscsi.chap import RandomBytes
from target.iscsi.connection import TargetConnection
from target.iscsi.login import Admission
from target.iscsi.negotiation import MAX_RECV_DATA_SEGMENT_LENGTH
from target.iscsi.node import TargetNode
from target.iscsi.pdu import BHS_BYTES, ProtocolError
from target.iscsi.registry import SessionRegistry
from target.iscsi.session import OUTPUT_BYTES_HIGH
from target.loop import Loop
from target.volume import Buffer

log = logging.getLogger(__name__)

RECEIVE_BYTES = 4 * (MAX_RECV_DATA_SEGMENT_LENGTH + BHS_BYTES)
"""Size of the receive buffer: exactly four PDUs of the largest plain size, so that a stream of large
writes, once it fills the buffer, leaves no piece of a PDU to be moved; and small enough for a processor's
cache.
"""

_COMPACT_BELOW_BYTES = 320 << 10
"""Move what is left to the front when the free end cannot hold one PDU of the largest size."""

_IOV_MAX = 1024
_CONNECTIONS_MAX = 256
_LISTEN_BACKLOG = 64


class Portal:
    """Listening sockets, and the connections to the target nodes behind them.

    One portal object is one portal group: it may listen on several addresses, and shares its sessions among
    them.
    """

    def __init__(
        self,
        loop: Loop,
        nodes: Sequence[TargetNode],
        *,
        random_bytes: RandomBytes = os.urandom,
        login_timeout_seconds: float = 15.0,
        ping_seconds: float = 10.0,
    ) -> None:
        """A connection silent for `ping_seconds` is pinged, and closed when that goes unanswered as long
        again.
        """
        self.nodes = list(nodes)
        self.registry = SessionRegistry()
        self.random_bytes = random_bytes
        self.login_timeout_seconds = login_timeout_seconds
        self._loop = loop
        self._listeners: list[socket.socket] = []
        self._connections: set[_Connection] = set()
        self._ping_seconds = ping_seconds
        self._ping_timer = loop.call_later(ping_seconds, self._ping)

    def listen(self, address: str) -> str:
        """Listen on "host:port" (port 0: any); the address with the port it got. OSError when it is taken."""
        host, port = parse_address(address)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((host, port))
            listener.listen(_LISTEN_BACKLOG)
        except OSError:
            listener.close()
            raise
        listener.setblocking(False)
        self._listeners.append(listener)
        self._loop.register(listener.fileno(), lambda: self._accept(listener))
        bound = format_address(*listener.getsockname()[:2])
        log.info("iSCSI portal listens on %s", bound)
        return bound

    @property
    def addresses(self) -> list[str]:
        return [format_address(*listener.getsockname()[:2]) for listener in self._listeners]

    @property
    def connection_count(self) -> int:
        return len(self._connections)

    def _accept(self, listener: socket.socket) -> None:
        try:
            client, peer = listener.accept()
        except OSError as error:  # the client went away, or no descriptor is free: others must go on
            log.warning("iSCSI accept failed: %s", error)
            return
        if len(self._connections) >= _CONNECTIONS_MAX:
            log.warning("iSCSI connection from %s refused: there are %d", peer[0], _CONNECTIONS_MAX)
            client.close()
            return
        self._connections.add(_Connection(self._loop, self, client, format_address(*peer[:2])))

    def forget(self, connection: _Connection) -> None:
        self._connections.discard(connection)

    def _ping(self) -> None:
        for connection in list(self._connections):
            connection.ping_if_silent()
        self._ping_timer = self._loop.call_later(self._ping_seconds, self._ping)

    def close(self) -> None:
        """Close all connections and stop listening."""
        self._ping_timer.cancel()
        for listener in self._listeners:
            self._loop.unregister(listener.fileno())
            listener.close()
        self._listeners.clear()
        for connection in list(self._connections):
            connection.close("the portal is closed")


class _Connection:
    """A socket, its receive buffer, and what could not be sent yet."""

    def __init__(self, loop: Loop, portal: Portal, client: socket.socket, peer: str) -> None:
        client.setblocking(False)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._loop = loop
        self._portal = portal
        self._socket = client
        self._fd = client.fileno()
        self._peer = peer
        self._protocol = TargetConnection(
            portal.nodes,
            portal.registry,
            self,
            format_address(*client.getsockname()[:2]),
            portal.random_bytes,
            self._logged_in,
        )
        self._receive: Callable[[memoryview, int, int], int] = self._protocol.receive
        self._view = memoryview(bytearray(RECEIVE_BYTES))
        self._start = 0
        self._end = 0
        self._backlog: deque[Buffer] = deque()
        self._backlog_bytes = 0
        self._paused = False
        self._ending: str | None = None
        self._closed = False
        self._silent = False
        self._send_output = self._send  # bound once: it is asked for in every turn
        self._login_timer = loop.call_later(portal.login_timeout_seconds, self._login_timed_out)
        loop.register(self._fd, self._on_readable, self._on_writable)

    # What the protocol tells (SessionOwner)

    def output_ready(self) -> None:
        self._loop.at_send(self._send_output)

    def end(self, reason: str) -> None:
        self._ending = reason
        self._loop.at_send(self._send_output)

    def _logged_in(self, admission: Admission) -> None:
        self._login_timer.cancel()
        session = self._protocol.session
        assert session is not None
        self._receive = session.receive
        log.info(
            "iSCSI %s from %s logged in to %s",
            admission.initiator_name,
            self._peer,
            admission.node.name if admission.node else "discovery",
        )

    # Receiving

    def _on_readable(self) -> None:
        start, end = self._start, self._end
        view = self._view
        if start == end:
            start = end = 0
        elif RECEIVE_BYTES - end < _COMPACT_BELOW_BYTES:
            view[: end - start] = view[start:end]
            start, end = 0, end - start
        if end < RECEIVE_BYTES:
            try:
                count = self._socket.recv_into(view[end:] if end else view)
            except BlockingIOError:
                return
            except OSError as error:
                self.close(str(error))
                return
            if not count:
                self.close(self._ending or "closed by the initiator")
                return
            end += count
            self._silent = False
        self._start, self._end = start, end
        self._parse()

    def _parse(self) -> None:
        if self._closed or self._ending is not None:
            return
        try:
            self._start = self._receive(self._view, self._start, self._end)
        except ProtocolError as error:
            # What was answered before is still sent; nothing after it is read.
            self.end(f"protocol error: {error}")

    # Sending

    def _send(self) -> None:
        if self._closed:
            return
        output = self._protocol.output
        if self._backlog:
            self._keep(output)
        else:
            while output:
                part = output if len(output) <= _IOV_MAX else output[:_IOV_MAX]
                size = sum(map(len, part))
                try:
                    sent = self._socket.sendmsg(part)
                except BlockingIOError:
                    sent = 0
                except OSError as error:
                    self.close(str(error))
                    return
                if sent != size:
                    _drop_front(output, sent)
                    self._keep(output)
                    self._loop.watch_writable(self._fd, True)
                    break
                del output[: len(part)]
        output.clear()
        self._after_send()

    def _keep(self, output: Sequence[Buffer]) -> None:
        for buffer in output:
            immutable = type(buffer) is bytes or (type(buffer) is memoryview and type(buffer.obj) is bytes)
            kept = buffer if immutable else bytes(buffer)
            self._backlog.append(kept)
            self._backlog_bytes += len(kept)

    def _on_writable(self) -> None:
        backlog = self._backlog
        try:
            sent = self._socket.sendmsg(list(islice(backlog, _IOV_MAX)))
        except BlockingIOError:
            return
        except OSError as error:
            self.close(str(error))
            return
        self._silent = False  # it takes data, so it lives
        self._backlog_bytes -= sent
        while sent:
            first = backlog[0]
            if len(first) > sent:
                backlog[0] = memoryview(first)[sent:]
                break
            sent -= len(first)
            backlog.popleft()
        if not backlog:
            self._loop.watch_writable(self._fd, False)
        self._after_send()

    def _after_send(self) -> None:
        session = self._protocol.session
        if session is not None:
            was_full = session.output_bytes >= OUTPUT_BYTES_HIGH
            session.output_bytes = self._backlog_bytes
            full = self._backlog_bytes >= OUTPUT_BYTES_HIGH
            if full != self._paused:
                self._paused = full
                self._loop.watch_readable(self._fd, not full)
            if was_full and not full:
                self._loop.call_soon(
                    self._parse
                )  # there may be commands in the buffer that nothing will announce
        if self._ending is not None and not self._backlog:
            self.close(self._ending)

    # The end

    def ping_if_silent(self) -> None:
        """Called at every interval: a connection that said nothing since the last time is asked whether it
        lives.
        """
        session = self._protocol.session
        if session is not None and self._silent and not session.housekeeping.ping():
            self.close("no answer to a ping")
            return
        self._silent = True

    def _login_timed_out(self) -> None:
        self.close("the login took too long")

    def close(self, reason: str) -> None:
        if self._closed:
            return
        self._closed = True
        log.info("iSCSI %s from %s: %s", self._protocol.initiator_name, self._peer, reason)
        self._login_timer.cancel()
        self._loop.unregister(self._fd)
        self._protocol.close()
        self._backlog.clear()
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)
        self._socket.close()
        self._portal.forget(self)


def _drop_front(buffers: list[Buffer], count: int) -> None:
    """Remove the first `count` bytes."""
    index = 0
    while index < len(buffers) and count >= len(buffers[index]):
        count -= len(buffers[index])
        index += 1
    del buffers[:index]
    if count:
        buffers[0] = memoryview(buffers[0])[count:]
