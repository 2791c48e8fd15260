"""The link to one peer's host agent: one SSH connection that is kept up for ever.

Tries again with a delay that doubles, with jitter, so that sites which lost the same link do not come back in
step. The peer proves itself with the host key that the configuration pins, this agent with its identity key.
"""

from __future__ import annotations

import contextlib
import logging
import random
import socket
import threading
from collections.abc import Callable
from pathlib import Path

from hostagent.line_stream import LineStream
from hostagent.ssh_keys import PARAMIKO_LOG, SUBSYSTEM, load_private_key, parse_public_key
from hostagent.ssh_library import paramiko
from target.control.lines import Message
from target.control.site_file import Address
from target.errors import OperatorError, PeerError

_CONNECT_SECONDS_MAX = 5.0
_BACKOFF_SECONDS_MIN = 0.1
_BACKOFF_SECONDS_MAX = 2.0
_USER_NAME = "replication"

log = logging.getLogger(__name__)


class PeerLink:
    """Keeps one `replication` channel to a peer open; the callbacks run on the link's thread.

    `on_up` comes before the first `on_message` of a connection, `on_down(reason)` after the last, once
    for each `on_up`. `send` works between the two.
    """

    def __init__(
        self,
        address: Address,
        pinned_host_key: str,
        identity_file: Path,
        on_message: Callable[[Message], None],
        on_up: Callable[[], None],
        on_down: Callable[[str], None],
        *,
        peer_name: str = "",
    ) -> None:
        pinned = parse_public_key(pinned_host_key)
        if pinned is None:
            raise OperatorError(f"host key of {address}: not a public key: {pinned_host_key[:40]!r}")
        user_name, _, self._host = address.host.rpartition("@")
        self._user_name = user_name or _USER_NAME
        self._port = address.port
        self._pinned = pinned
        self._identity = load_private_key(identity_file)
        self._name = peer_name or str(address)
        self._on_message = on_message
        self._on_up = on_up
        self._on_down = on_down
        self._stream: LineStream | None = None
        self._transport: paramiko.Transport | None = None
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"link to {self._name}", daemon=True)
        self._thread.start()

    def send(self, message: Message) -> bool:
        """Queue a message; False when the link is down. Never blocks; any thread."""
        stream = self._stream
        return stream is not None and stream.send(message)

    def close(self) -> None:
        """Drop the connection and stop trying."""
        self._closing.set()
        self._drop()
        if threading.current_thread() is not self._thread:
            self._thread.join(_CONNECT_SECONDS_MAX)

    def _run(self) -> None:
        backoff_seconds = _BACKOFF_SECONDS_MIN
        last_reason = ""
        while not self._closing.is_set():
            try:
                stream = self._connect()
            except (OSError, EOFError, paramiko.SSHException, PeerError) as error:
                reason = str(error) or type(error).__name__
                if reason != last_reason:  # once a cause, not once a try
                    log.warning("no link to %s: %s", self._name, reason)
                    last_reason = reason
                self._drop()
                self._closing.wait(backoff_seconds * random.uniform(0.5, 1.0))
                backoff_seconds = min(backoff_seconds * 2, _BACKOFF_SECONDS_MAX)
                continue
            backoff_seconds = _BACKOFF_SECONDS_MIN
            last_reason = ""
            self._converse(stream)

    def _connect(self) -> LineStream:
        connection = socket.create_connection((self._host, self._port), timeout=_CONNECT_SECONDS_MAX)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        transport = self._transport = paramiko.Transport(connection)
        transport.set_log_channel(PARAMIKO_LOG)
        transport.banner_timeout = transport.auth_timeout = transport.channel_timeout = _CONNECT_SECONDS_MAX
        # A server with several host keys must show the one that is pinned.
        algorithm = self._pinned.algorithm
        transport.get_security_options().key_types = (
            ("rsa-sha2-512", "rsa-sha2-256") if algorithm == "ssh-rsa" else (algorithm,)
        )
        transport.start_client(timeout=_CONNECT_SECONDS_MAX)
        shown = transport.get_remote_server_key()
        if shown.asbytes() != self._pinned.blob:
            raise PeerError(
                f"{self._name} shows host key {shown.fingerprint}, which is not the pinned one: either it "
                "was changed (correct host_key in this site's configuration), or somebody is in between"
            )
        transport.auth_publickey(self._user_name, self._identity)
        channel = transport.open_session(timeout=_CONNECT_SECONDS_MAX)
        channel.settimeout(_CONNECT_SECONDS_MAX)
        channel.invoke_subsystem(SUBSYSTEM)
        return LineStream(channel, self._name, pings=True)

    def _converse(self, stream: LineStream) -> None:
        log.info("link to %s is up", self._name)
        self._stream = stream
        reason = f"{self._name} closed the link"
        try:
            self._on_up()
            while (message := stream.receive()) is not None:
                self._on_message(message)
        except PeerError as error:
            reason = str(error)
        finally:
            self._stream = None
            self._drop()
            stream.close()
            log.info("link to %s is down: %s", self._name, reason)
            self._on_down(reason)

    def _drop(self) -> None:
        transport, self._transport = self._transport, None
        if transport is not None:
            with contextlib.suppress(OSError, EOFError):
                transport.close()
