"""A storage subsystem that only listens: for tests of the lab itself, which need no storage."""

from __future__ import annotations

import socket
import sys
import threading
from pathlib import Path

from target.config import load_config


def echo(connection: socket.socket) -> None:
    while data := connection.recv(65536):
        connection.sendall(data)
    connection.close()


def main() -> None:
    config = load_config(Path(sys.argv[2]))
    san = config.target.san.portal
    host = config.target.iscsi.portals[0]
    listeners = [socket.create_server((address.host, address.port)) for address in (host, san)]
    control = socket.socket(socket.AF_UNIX)
    config.target.control_socket.unlink(missing_ok=True)
    control.bind(str(config.target.control_socket))
    control.listen()
    while True:
        connection, _ = listeners[1].accept()
        threading.Thread(target=echo, args=(connection,), daemon=True).start()


if __name__ == "__main__":
    main()
