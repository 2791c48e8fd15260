"""One storage subsystem as a user runs it, with journal, two portals and data LUNs of every kind."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from target.errors import PeerError
from target.iscsi.client import Client

TARGET = "iqn.2026-01.org.replctl:conformance"
SMALL_BLOCKS, LARGE_BLOCKS, REMOVABLE = range(3)
VOLUME_BYTES = 64 << 20
_START_SECONDS = 60.0
_POLL_SECONDS = 0.02
_KIND = {SMALL_BLOCKS: "block_size = 512", LARGE_BLOCKS: "block_size = 4096", REMOVABLE: "removable = true"}
_VOLUME = """
[[group.volume]]
name = "v{lun}"
path = "v{lun}"
lun = {lun}
size = {size}
{kind}
"""


def _free_port(host: str) -> int:
    with socket.create_server((host, 0)) as listener:
        return int(listener.getsockname()[1])


class DataSite:
    """The daemon on a `site.toml`; `start` after `stop` finds what it left."""

    def __init__(self, directory: Path) -> None:
        self._config = directory / "site.toml"
        self._log = directory / "log"
        self.portals = [f"{host}:{_free_port(host)}" for host in ("127.0.0.1", "127.0.0.2")]
        self._config.write_text(self._tables(), encoding="utf-8")
        self._process: subprocess.Popen[bytes] | None = None
        self.exit_code: int | None = None
        """Of the daemon that ended last."""

    def _tables(self) -> str:
        volumes = "".join(
            _VOLUME.format(lun=lun, size=VOLUME_BYTES, kind=kind) for lun, kind in _KIND.items()
        )
        return f"""
[site]
name = "conformance"
state_dir = "state"

[target]
control_socket = "target.sock"

[target.iscsi]
name = "{TARGET}"
portals = {self.portals}

[target.san]
name = "{TARGET}.san"
portal = "127.0.0.3:{_free_port("127.0.0.3")}"
initiator_name = "{TARGET}"
initiators = []

[[group]]
name = "group1"
journal = "journal"
journal_size = "128MiB"
san_lun = 0

{volumes}"""

    def urls(self, lun: int) -> list[str]:
        """The same logical unit through each portal."""
        return [f"iscsi://{portal}/{TARGET}/{lun}" for portal in self.portals]

    def start(self) -> None:
        assert self._process is None
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "target", "--config", str(self._config)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=Path(__file__).resolve().parents[2],
                env=os.environ | {"PYTHONUNBUFFERED": "1"},
            )
        deadline = time.monotonic() + _START_SECONDS
        while True:
            try:
                self.connect(SMALL_BLOCKS).close()
                return
            except PeerError:
                self.exit_code = self._process.poll()
                assert self.exit_code is None, self.log()
                assert time.monotonic() < deadline, self.log()
                time.sleep(_POLL_SECONDS)

    def connect(self, lun: int) -> Client:
        return Client.connect(self.urls(lun)[0])

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(how)
            self.exit_code = process.wait(60)

    def log(self) -> str:
        return self._log.read_text(encoding="utf-8", errors="replace")


@contextlib.contextmanager
def running(directory: Path) -> Iterator[DataSite]:
    site = DataSite(directory)
    try:
        site.start()
        yield site
    finally:
        site.stop(signal.SIGKILL)
