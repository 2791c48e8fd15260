"""Where peers' host agents come in: SSH with public keys alone, one subsystem, nothing else.

A stranger costs one thread for at most `_LOGIN_SECONDS_MAX`, and there are at most `_LOGINS_MAX` of them;
garbage closes its own connection. RFC 4252 section 7 (public keys), RFC 4254 section 6.5 (subsystems).
"""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

from hostagent.line_stream import LineStream
from hostagent.ssh_keys import PARAMIKO_LOG, SUBSYSTEM, load_private_key, read_authorized_keys
from hostagent.ssh_library import paramiko, ssh_codes
from target.control.site_file import Address
from target.errors import OperatorError

_LOGINS_MAX = 16
_LOGIN_SECONDS_MAX = 10.0
_CHANNELS_MAX = 4
_GOODBYE_SECONDS_MAX = 1.0

OnChannel = Callable[[LineStream], None]
"""Called on a thread of its own, which ends with it, for every channel of an authenticated peer."""

log = logging.getLogger(__name__)


class SshServer:
    """Listens from construction on; `address` tells the port when 0 was asked for."""

    def __init__(
        self,
        listen: Address,
        host_key_file: Path,
        authorized_keys_file: Path,
        on_channel: OnChannel,
        *,
        login_seconds_max: float = _LOGIN_SECONDS_MAX,
    ) -> None:
        self._host_key = load_private_key(host_key_file)
        self._authorized_keys_file = authorized_keys_file
        self._on_channel = on_channel
        self._login_seconds_max = login_seconds_max
        self._logins = threading.BoundedSemaphore(_LOGINS_MAX)
        self._transports: set[paramiko.Transport] = set()
        self._lock = threading.Lock()
        self._closed = False
        try:
            family = socket.AF_INET6 if ":" in listen.host else socket.AF_INET
            self._listener = socket.create_server((listen.host, listen.port), family=family, backlog=64)
        except OSError as error:
            raise OperatorError(f"ssh_listen {listen}: cannot listen: {error.strerror}") from None
        self.address = Address(f"{listen.rpartition(':')[0]}:{self._listener.getsockname()[1]}")
        threading.Thread(target=self._accept, name="ssh accept", daemon=True).start()

    def close(self) -> None:
        """Stop listening and drop every connection."""
        with self._lock:
            self._closed = True
            transports = list(self._transports)
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes the accepting thread
        self._listener.close()
        for transport in transports:
            transport.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, address = self._listener.accept()
            except OSError as error:
                if self._closed:
                    return
                log.warning("accepting an SSH connection failed: %s", error)
                time.sleep(0.2)  # out of descriptors, most likely: some must close first
                continue
            origin = f"{address[0]}:{address[1]}"
            if not self._logins.acquire(blocking=False):
                log.warning("%s: refused, %d logins are under way", origin, _LOGINS_MAX)
                connection.close()
                continue
            threading.Thread(
                target=self._login, args=(connection, origin), name=f"ssh {origin}", daemon=True
            ).start()

    def _login(self, connection: socket.socket, origin: str) -> None:
        """Bring one connection to its authentication, or close it."""
        try:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            transport = paramiko.Transport(connection)
            with self._lock:
                if self._closed:
                    connection.close()
                    return
                self._transports = {known for known in self._transports if known.is_active()} | {transport}
            transport.set_log_channel(PARAMIKO_LOG)
            transport.banner_timeout = transport.handshake_timeout = self._login_seconds_max
            transport.add_server_key(self._host_key)
            peer = _PeerInterface(origin, self._authorized_keys_file, self._on_channel)
            deadline = time.monotonic() + self._login_seconds_max
            transport.start_server(event=threading.Event(), server=peer)
            peer.authenticated.wait(max(0.0, deadline - time.monotonic()))
            if not peer.authenticated.is_set():
                log.info("%s: did not log in: closing", origin)
                transport.close()
        except (OSError, EOFError, paramiko.SSHException) as error:
            log.info("%s: %s", origin, error)
            connection.close()
        finally:
            self._logins.release()


class _PeerInterface(paramiko.ServerInterface):
    """What one connection may do; paramiko refuses all the rest. Called on its transport's thread."""

    def __init__(self, origin: str, authorized_keys_file: Path, on_channel: OnChannel) -> None:
        self._origin = origin
        self._authorized_keys_file = authorized_keys_file
        self._on_channel = on_channel
        self._site_name = ""
        self._channels = 0
        self._lock = threading.Lock()
        self.authenticated = threading.Event()

    def get_allowed_auths(self, username: str) -> str:
        return "publickey"

    def check_auth_publickey(self, username: str, key: paramiko.PKey) -> int:
        # Read at every login, so that a key can be taken away without a restart.
        for known in read_authorized_keys(self._authorized_keys_file):
            if known.blob == key.asbytes():
                self._site_name = known.site_name
                return ssh_codes.AUTH_SUCCESSFUL
        log.warning("%s: key %s is not authorized: refused", self._origin, key.fingerprint)
        return ssh_codes.AUTH_FAILED

    def check_channel_request(self, kind: str, chanid: int) -> int:
        # Paramiko asks only after authentication; the last key it checked is then the one that signed.
        self.authenticated.set()
        with self._lock:
            if kind != "session" or self._channels >= _CHANNELS_MAX:
                return ssh_codes.OPEN_FAILED_ADMINISTRATIVELY_PROHIBITED
            self._channels += 1
        return ssh_codes.OPEN_SUCCEEDED

    def check_channel_subsystem_request(self, channel: paramiko.Channel, name: str) -> bool:
        if name != SUBSYSTEM:
            return False
        threading.Thread(
            target=self._converse, args=(channel,), name=f"ssh {self._site_name}", daemon=True
        ).start()
        return True

    def _converse(self, channel: paramiko.Channel) -> None:
        log.info("%s logged in from %s", self._site_name, self._origin)
        stream = LineStream(_SubsystemChannel(channel), self._site_name)
        try:
            self._on_channel(stream)
        finally:
            stream.close()
            with self._lock:
                self._channels -= 1
                last = self._channels == 0
            if last:
                transport = channel.get_transport()
                transport.join(_GOODBYE_SECONDS_MAX)  # the client hangs up; what was sent last arrives
                transport.close()


class _SubsystemChannel:
    """A channel whose end tells the client that the subsystem ended well (RFC 4254 section 6.10)."""

    def __init__(self, channel: paramiko.Channel) -> None:
        self.recv = channel.recv
        self.send = channel.send
        self.settimeout = channel.settimeout
        self._channel = channel

    def close(self) -> None:
        with contextlib.suppress(OSError, EOFError, paramiko.SSHException):
            self._channel.send_exit_status(0)
            self._channel.close()
