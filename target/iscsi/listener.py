"""A listening socket of a portal, on the loop: IPv4, IPv6 or a host name.

Invariant: when no descriptor is free, accepting rests for a while instead of spinning; who is connected
goes on.
"""

from __future__ import annotations

import errno
import logging
import socket
from collections.abc import Callable

from target.errors import OperatorError
from target.iscsi.address import format_address, parse_address
from target.loop import Loop, LoopTimer

log = logging.getLogger(__name__)

_BACKLOG = 1024
"""As many hosts as may come back at once after a restart; the kernel cuts it to net.core.somaxconn."""

_REST_SECONDS = 1.0
_NOTHING_FREE = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


class Listener:
    """Calls `on_client(socket, "host:port" of the peer)` for each connection."""

    def __init__(self, loop: Loop, address: str, on_client: Callable[[socket.socket, str], None]) -> None:
        """Port 0 takes any. OSError when the address is taken, OperatorError when there is none."""
        self._loop = loop
        self._on_client = on_client
        self._resting: LoopTimer | None = None
        host, port = parse_address(address)
        try:
            family, _, _, _, found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        except socket.gaierror as error:
            raise OperatorError(f"portal {address}: {host} is no address here: {error.strerror}") from None
        self._socket = socket.socket(family, socket.SOCK_STREAM)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:  # "[::]" and "0.0.0.0" may both be portals
                self._socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            self._socket.bind(found)
            self._socket.listen(_BACKLOG)
        except OSError:
            self._socket.close()
            raise
        self._socket.setblocking(False)
        self.address = format_address(*self._socket.getsockname()[:2])
        loop.register(self._socket.fileno(), self._accept)

    def _accept(self) -> None:
        try:
            client, peer = self._socket.accept()
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno in _NOTHING_FREE:
                log.warning("iSCSI portal %s rests for a moment: %s", self.address, error.strerror)
                self._loop.watch_readable(self._socket.fileno(), False)
                self._resting = self._loop.call_later(_REST_SECONDS, self._go_on)
            return  # otherwise the client went away again
        self._on_client(client, format_address(*peer[:2]))

    def _go_on(self) -> None:
        self._resting = None
        self._loop.watch_readable(self._socket.fileno(), True)

    def close(self) -> None:
        if self._resting is not None:
            self._resting.cancel()
        self._loop.unregister(self._socket.fileno())
        self._socket.close()
