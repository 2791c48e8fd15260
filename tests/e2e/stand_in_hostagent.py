"""A copy manager that only keeps its links: for tests of the lab itself."""

from __future__ import annotations

import signal
import socket
import sys
import threading
from functools import partial
from pathlib import Path

from hostagent.agent_socket import AgentSocketServer
from hostagent.config import load_config
from hostagent.rpc import Params, Reply, serve
from hostagent.ssh_client import PeerLink
from hostagent.ssh_server import SshServer


def target_listens(control_socket: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(control_socket)) == 0


def main() -> None:
    config = load_config(Path(sys.argv[2]))
    table = config.hostagent
    up: dict[str, bool] = {peer.name: False for peer in config.peers}

    def handle(_peer: str, op: str, _params: Params, reply: Reply) -> None:
        reply({"ready": target_listens(config.control_socket)} if op == "ping" else {"up": up})

    ssh = SshServer(
        table.ssh_listen,
        table.host_key_file,
        table.authorized_keys_file,
        lambda stream: serve(stream, handle),
    )
    for peer in config.peers:
        PeerLink(
            peer.ssh,
            peer.host_key,
            table.identity_file,
            lambda _message: None,
            partial(up.__setitem__, peer.name, True),
            lambda _reason, name=peer.name: up.__setitem__(name, False),  # type: ignore[misc]
            peer_name=peer.name,
        )
    door = AgentSocketServer(table.socket, handle)
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    stop.wait()
    door.close()
    ssh.close()


if __name__ == "__main__":
    main()
