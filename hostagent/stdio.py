"""A peer's conversation on standard input and output, so that a system's OpenSSH can serve the subsystem:

    Subsystem replication /usr/bin/replctl-hostagent --config /etc/replctl/site.toml --stdio --peer b

Who the peer is was decided by OpenSSH (a forced command a key, in authorized_keys); this process only carries
bytes between it and the running daemon's socket.
"""

from __future__ import annotations

import os
import socket
import sys
import threading

from hostagent.agent_socket import ATTACH_OP, connect
from hostagent.config import Config
from target.control.lines import LineDecoder, encode_line
from target.control.wire_error import error_from_wire
from target.errors import OperatorError, PeerError

_COPY_BYTES = 1 << 16


def run_stdio(config: Config, peer_name: str) -> None:
    """Carry the conversation of `peer_name` until either side ends it."""
    if config.peer(peer_name) is None:
        known = ", ".join(peer.name for peer in config.peers) or "none"
        raise OperatorError(f"--peer {peer_name}: no such [[peer]] in the configuration; there are: {known}")
    with connect(config.hostagent.socket) as connection:
        rest = _attach(connection, peer_name)
        threading.Thread(target=_carry_in, args=(connection,), daemon=True).start()
        _write_all(rest)
        while data := connection.recv(_COPY_BYTES):
            _write_all(data)


def _attach(connection: socket.socket, peer_name: str) -> bytes:
    """Say for whom this speaks; returns what the daemon sent behind its answer."""
    connection.sendall(encode_line({"op": ATTACH_OP, "params": {"site": peer_name}, "id": 0}))
    received = bytearray()
    while b"\n" not in received:
        data = connection.recv(_COPY_BYTES)
        if not data:
            raise PeerError("the host agent closed the connection; see its log")
        received += data
    line, _, rest = received.partition(b"\n")
    (answer,) = LineDecoder().feed(bytes(line) + b"\n")
    if "error" in answer:
        raise error_from_wire(answer["error"])
    return bytes(rest)


def _carry_in(connection: socket.socket) -> None:
    try:
        while data := os.read(sys.stdin.fileno(), _COPY_BYTES):
            connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
    except OSError:
        return  # the other direction sees the same, and ends the process


def _write_all(data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(sys.stdout.fileno(), view) :]
