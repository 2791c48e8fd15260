"""The links between the sites of a lab: a process that forwards TCP, and stops when a link is cut.

Every ordered pair of sites has two links, `management` (SSH) and `san` (iSCSI); each is a listening address
that the first site's configuration names in place of the second site's own. A cut link neither reads, nor
closes, nor accepts: as on a real cut, packets vanish and nobody is told (connections are still established by
the kernel's backlog, and then nothing answers). Joining closes what was frozen and serves again.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import selectors
import signal
import socket
import sys
from collections import deque
from collections.abc import Callable
from pathlib import Path

import msgspec

from hostagent.agent_socket import AgentSocketServer
from hostagent.names import known_name
from hostagent.rpc import Params, Reply
from target.control.site_file import Address
from target.errors import OperatorError, ReplctlError

_BUFFER_BYTES = 1 << 18

log = logging.getLogger(__name__)


class Link(msgspec.Struct, frozen=True):
    """One direction of one kind: who connects to `listen` is carried to `to`."""

    name: str
    listen: str
    to: str


def link_name(source: str, destination: str, kind: str) -> str:
    return f"{source}-{destination}.{kind}"


class _Half:
    """One socket of a carried connection, and what was read from the other one and not written to it yet."""

    __slots__ = ("connected", "ended", "other", "pending", "sock", "watching")

    def __init__(self, sock: socket.socket, connected: bool) -> None:
        self.sock = sock
        self.other: _Half = self
        self.pending = b""
        self.connected = connected
        self.ended = False  # it will send no more
        self.watching = 0


class _Carrier:
    """A link at work: its listener and its connections."""

    def __init__(self, link: Link, selector: selectors.BaseSelector) -> None:
        address = Address.parse(link.listen)
        to = Address.parse(link.to)
        self._to = (to.host, to.port)
        self._selector = selector
        self._halves: set[_Half] = set()
        self.is_cut = False
        self._listener = socket.create_server((address.host, address.port), backlog=128)
        self._listener.setblocking(False)
        selector.register(self._listener, selectors.EVENT_READ, self._accept)

    @property
    def connections(self) -> int:
        return len(self._halves) // 2

    def cut(self) -> bool:
        """Stop carrying, without telling anybody; False when it was cut before."""
        if self.is_cut:
            return False
        self.is_cut = True
        self._selector.unregister(self._listener)
        for half in self._halves:
            self._watch(half, 0)
        return True

    def join(self) -> bool:
        """Drop what was frozen and carry again; False when the link was whole."""
        if not self.is_cut:
            return False
        self.is_cut = False
        for half in list(self._halves):
            self._drop(half)
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)
        return True

    def _accept(self, _mask: int) -> None:
        if self.is_cut:
            return  # earlier in this same turn
        try:
            near_socket, _ = self._listener.accept()
        except OSError:
            return
        far_socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        near, far = _Half(near_socket, True), _Half(far_socket, False)
        near.other, far.other = far, near
        for half in (near, far):
            half.sock.setblocking(False)
            half.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._halves.add(half)
        with contextlib.suppress(BlockingIOError):
            try:
                far_socket.connect(self._to)
            except BlockingIOError:
                raise
            except OSError:
                self._drop(near)
                return
        self._watch(far, selectors.EVENT_WRITE)  # writable: connected, or refused

    def _ready(self, half: _Half, mask: int) -> None:
        if self.is_cut or half not in self._halves:
            return  # cut or dropped earlier in this same turn
        try:
            if mask & selectors.EVENT_WRITE:
                half.connected = True
                self._write(half)
            if mask & selectors.EVENT_READ:
                data = half.sock.recv(_BUFFER_BYTES)
                half.ended = not data
                half.other.pending = data
                self._write(half.other)
        except BlockingIOError:
            pass
        except OSError:
            self._drop(half)
            return
        self._watch_both(half)

    def _write(self, half: _Half) -> None:
        if not half.connected:
            return
        if half.pending:
            try:
                half.pending = half.pending[half.sock.send(half.pending) :]
            except BlockingIOError:
                return
        if half.other.ended and not half.pending:
            half.sock.shutdown(socket.SHUT_WR)

    def _watch_both(self, half: _Half) -> None:
        if half.ended and half.other.ended and not half.pending and not half.other.pending:
            self._drop(half)
            return
        for each in (half, half.other):
            mask = selectors.EVENT_WRITE if each.pending or not each.connected else 0
            if each.connected and each.other.connected and not each.ended and not each.other.pending:
                mask |= selectors.EVENT_READ
            self._watch(each, mask)

    def _watch(self, half: _Half, mask: int) -> None:
        if mask == half.watching:
            return
        if mask and half.watching:
            self._selector.modify(half.sock, mask, lambda ready, half=half: self._ready(half, ready))
        elif mask:
            self._selector.register(half.sock, mask, lambda ready, half=half: self._ready(half, ready))
        else:
            self._selector.unregister(half.sock)
        half.watching = mask

    def _drop(self, half: _Half) -> None:
        for each in (half, half.other):
            self._watch(each, 0)
            self._halves.discard(each)
            each.sock.close()


class Wire:
    """All links of a lab, on one thread; asked through a UNIX socket.

    Operations: `status`, `cut` and `join` with {"links": [name, ...]}, which answer the names that changed.
    """

    def __init__(self, links: list[Link], control: Path) -> None:
        self._selector = selectors.DefaultSelector()
        self._posted: deque[Callable[[], None]] = deque()
        self._wake_receiver, self._wake_sender = socket.socketpair()
        self._wake_receiver.setblocking(False)
        self._selector.register(self._wake_receiver, selectors.EVENT_READ, self._woken)
        self._running = True
        try:
            self._carriers = {link.name: _Carrier(link, self._selector) for link in links}
        except OSError as error:
            raise OperatorError(f"a link of the lab cannot listen: {error}") from None
        self._control = AgentSocketServer(control, self._handle)

    def run(self) -> None:
        """Carry until `stop`."""
        while self._running:
            for key, mask in self._selector.select():
                key.data(mask)
        self._control.close()

    def stop(self) -> None:
        self._running = False
        self._wake_sender.send(b"\0")

    def _woken(self, _mask: int) -> None:
        self._wake_receiver.recv(4096)
        while self._posted:
            self._posted.popleft()()

    def _handle(self, _peer: str, op: str, params: Params, reply: Reply) -> None:
        """On a thread of the control socket: the work itself is done on the wire's thread."""

        def work() -> None:
            try:
                reply(self._execute(op, params))
            except ReplctlError as error:
                reply(error=error)

        self._posted.append(work)
        self._wake_sender.send(b"\0")

    def _execute(self, op: str, params: Params) -> Params:
        if op == "status":
            links = {
                name: {"cut": carrier.is_cut, "connections": carrier.connections}
                for name, carrier in self._carriers.items()
            }
            return {"links": links}
        if op not in ("cut", "join"):
            raise OperatorError(f"the wire does not know the operation {op}")
        names = [known_name("link", str(name), self._carriers) for name in params.get("links", [])]
        act = _Carrier.cut if op == "cut" else _Carrier.join
        return {"changed": [name for name in names if act(self._carriers[name])]}


def main() -> None:
    """`python -m hostagent.lab.wire --links FILE --control SOCKET`"""
    parser = argparse.ArgumentParser(description="The links between the sites of a lab.")
    parser.add_argument("--links", type=Path, required=True, help="JSON list of links")
    parser.add_argument("--control", type=Path, required=True, help="UNIX socket to be asked through")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    try:
        wire = Wire(msgspec.json.decode(arguments.links.read_bytes(), type=list[Link]), arguments.control)
    except ReplctlError as error:
        sys.exit(f"wire: {error}")
    signal.signal(signal.SIGTERM, lambda *_: wire.stop())
    log.info("carrying")
    wire.run()


if __name__ == "__main__":
    main()
