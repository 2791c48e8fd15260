"""iSCSI portals: the sockets below `target.iscsi.connection`. The only module of the target side that does
I/O.

A turn of the loop reads each ready connection once, into a buffer that is used again and again; every
complete PDU in it is executed; when the journal has been written, all answers leave by one `sendmsg`.
Invariants: the buffer is not touched between parsing and the end of the turn, because commands hold slices
of it; what a socket does not take in the turn is copied, because what `output` holds may change afterwards;
nothing more is read while much is unsent; and who is not logged in gets little memory and little time, so
that strangers cannot keep hosts out.
"""

from __future__ import annotations

import contextlib
import logging
import mmap
import os
import socket
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from itertools import islice

from target.iscsi.address import format_address
from target.iscsi.chap import RandomBytes
from target.iscsi.connection import LOGIN_SEGMENT_BYTES_MAX, TargetConnection
from target.iscsi.listener import Listener
from target.iscsi.login import Admission
from target.iscsi.negotiation import MAX_RECV_DATA_SEGMENT_LENGTH
from target.iscsi.node import TargetNode
from target.iscsi.pdu import BHS_BYTES, ProtocolError
from target.iscsi.peer_log import PeerLog
from target.iscsi.registry import SessionRegistry
from target.loop import Loop, LoopTimer
from target.volume import Buffer

log = logging.getLogger(__name__)

RECEIVE_BYTES = 4 * (MAX_RECV_DATA_SEGMENT_LENGTH + BHS_BYTES)
"""Size of the receive buffer: exactly four PDUs of the largest plain size, so that a stream of large
writes, once it fills the buffer, leaves no piece of a PDU to be moved; and small enough for a processor's
cache.
"""

_COMPACT_BELOW_BYTES = 320 << 10
"""Move what is left to the front when the free end cannot hold one PDU of the largest size."""

_LOGIN_RECEIVE_BYTES = LOGIN_SEGMENT_BYTES_MAX + (4 << 10)
"""A Login Request of the largest size with its header segments: what a connection gets before its login."""

_LOGINS_MAX = 1024
"""Connections that are not logged in. One more takes the place of the oldest."""

_STALLS_MAX = 2
"""For so many ping intervals in a row may a session leave us without any of the data it announced."""

UNSENT_BYTES_MAX = 256 << 20
"""What may wait for all initiators together. Beyond it, the connection that leaves most unread is closed."""

_HUNG_UP = "closed by the initiator"
_IOV_MAX = 1024


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
        for node in nodes:
            node.device.on_abort(self.registry.abort_tasks)
        self.random_bytes = random_bytes
        self.login_timeout_seconds = login_timeout_seconds
        self._loop = loop
        self.log = PeerLog(log, loop.monotonic)
        self._listeners: list[Listener] = []
        self._connections: set[_Connection] = set()
        self._logins: OrderedDict[_Connection, None] = OrderedDict()
        self._unsent_bytes = 0
        self._drained: Callable[[], object] | None = None
        self._drain_timer: LoopTimer | None = None
        self._ping_seconds = ping_seconds
        self._ping_timer = loop.call_later(ping_seconds, self._ping)

    def listen(self, address: str) -> str:
        """Listen on "host:port" (port 0: any); the address with the port it got. OSError when it is taken."""
        listener = Listener(self._loop, address, self._accepted)
        self._listeners.append(listener)
        log.info("iSCSI portal listens on %s", listener.address)
        return listener.address

    @property
    def addresses(self) -> list[str]:
        return [listener.address for listener in self._listeners]

    @property
    def connection_count(self) -> int:
        return len(self._connections)

    def _accepted(self, client: socket.socket, peer: str) -> None:
        if len(self._logins) >= _LOGINS_MAX:
            next(iter(self._logins)).close("another one wants to log in, and too many have not done so")
        connection = _Connection(self._loop, self, client, peer)
        self._connections.add(connection)
        self._logins[connection] = None

    def logged_in(self, connection: _Connection) -> None:
        self._logins.pop(connection, None)

    def unsent(self, change_bytes: int) -> None:
        """What connections could not send has grown or shrunk."""
        self._unsent_bytes += change_bytes
        if change_bytes > 0 and self._unsent_bytes > UNSENT_BYTES_MAX:
            worst = max(self._connections, key=lambda one: one.unsent_bytes)
            # Not within its own sending.
            self._loop.call_soon(lambda: worst.close("it does not read what it asked for"))

    def forget(self, connection: _Connection) -> None:
        self._connections.discard(connection)
        self._logins.pop(connection, None)
        if self._drained is not None and not self._connections:
            self._loop.call_soon(self.close)

    def _ping(self) -> None:
        for connection in list(self._connections):
            connection.ping_if_silent()
        self._ping_timer = self._loop.call_later(self._ping_seconds, self._ping)

    def drain(self, seconds: int, done: Callable[[], object]) -> None:
        """Take nobody in any more, ask who is in to log out, and close when they have, or after so many
        seconds; then call `done`. Commands are served until then.
        """
        self._stop_listening()
        self._drained = done
        self._drain_timer = self._loop.call_later(seconds, self.close)
        for connection in list(self._connections):
            connection.request_logout(seconds)
        if not self._connections:
            self.close()

    def _stop_listening(self) -> None:
        for listener in self._listeners:
            listener.close()
        self._listeners.clear()

    def close(self) -> None:
        """Close all connections and stop listening."""
        self._ping_timer.cancel()
        self._stop_listening()
        if self._drain_timer is not None:
            self._drain_timer.cancel()
        for connection in list(self._connections):
            connection.close("the portal is closed")
        drained, self._drained = self._drained, None
        if drained is not None:
            drained()


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
        self._view = memoryview(bytearray(_LOGIN_RECEIVE_BYTES))
        self._start = 0
        self._end = 0
        self._backlog: deque[Buffer] = deque()
        self.unsent_bytes = 0
        self._paused = False
        self._ending: str | None = None
        self._closed = False
        self._silent = False
        self._stalls = 0
        self._send_output = self._send  # bound once: it is asked for in every turn
        self._login_timer = loop.call_later(portal.login_timeout_seconds, self._login_timed_out)
        loop.register(self._fd, self._on_login_readable, self._on_writable)

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
        self._portal.logged_in(self)
        self._loop.call_soon(self._make_room)
        to = admission.node.name if admission.node else "discovery"
        self._portal.log.info(self._peer, f"{admission.initiator_name} logged in to {to}")

    def _make_room(self) -> None:
        """From now on PDUs may be large. What is in the small buffer may be in use until the turn ends."""
        if self._closed:
            return
        # Mapped, not allocated: pages are there when they are first used, so an idle session costs none.
        view = memoryview(mmap.mmap(-1, RECEIVE_BYTES))
        left = self._end - self._start
        view[:left] = self._view[self._start : self._end]
        self._view, self._start, self._end = view, 0, left
        self._loop.unregister(self._fd)
        self._loop.register(self._fd, self._on_readable, self._on_writable)
        self._loop.watch_writable(self._fd, bool(self._backlog))
        self._loop.watch_readable(self._fd, not self._paused)
        self._parse()  # the login may have waited with commands behind it

    # Receiving

    def _on_login_readable(self) -> None:
        """As `_on_readable`, with the small buffer."""
        view = self._view
        left = self._end - self._start
        if self._start:
            view[:left] = bytes(view[self._start : self._end])
            self._start, self._end = 0, left
        if left == len(view):  # the login is held up: what came with it is enough for now
            self._loop.watch_readable(self._fd, False)
            return
        try:
            count = self._socket.recv_into(view[left:])
        except BlockingIOError:
            return
        except OSError as error:
            self.close(str(error))
            return
        if not count:
            self.close(self._ending or _HUNG_UP)
            return
        self._end += count
        self._parse()

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
                self.close(self._ending or _HUNG_UP)
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
        before = self.unsent_bytes
        for buffer in output:
            immutable = type(buffer) is bytes or (type(buffer) is memoryview and type(buffer.obj) is bytes)
            kept = buffer if immutable else bytes(buffer)
            self._backlog.append(kept)
            self.unsent_bytes += len(kept)
        self._portal.unsent(self.unsent_bytes - before)

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
        self.unsent_bytes -= sent
        self._portal.unsent(-sent)
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
            session.output_bytes = self.unsent_bytes
            full = self.unsent_bytes >= self._portal.registry.output_bytes_high
            if full != self._paused:
                self._paused = full
                self._loop.watch_readable(self._fd, not full)
            if session.held_back and not full:
                session.held_back = False
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
        if session is not None and session.collection.stalled():
            self._stalls += 1
            if self._stalls > _STALLS_MAX:
                self.close("the data of its writes do not come")
        else:
            self._stalls = 0

    def request_logout(self, seconds: int) -> None:
        session = self._protocol.session
        if session is None or session.node is None:
            self.close("the portal is closed")
        else:
            session.housekeeping.request_logout(seconds)

    def _login_timed_out(self) -> None:
        self.close("the login took too long")

    def close(self, reason: str) -> None:
        if self._closed:
            return
        self._closed = True
        failed = self._protocol.session is None and (self._protocol.identified or reason != _HUNG_UP)
        report = self._portal.log.warning if failed else self._portal.log.info
        report(self._peer, f"{self._protocol.initiator_name}: {reason}")
        self._portal.unsent(-self.unsent_bytes)
        self.unsent_bytes = 0
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
