"""A portal on a loop in a thread, for tests that come in through a socket."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from target.iscsi.async_client import AsyncClient
from target.iscsi.chap import ChapCredentials
from target.iscsi.initiator_login import LoginSettings
from target.iscsi.node import TargetNode
from target.iscsi.portal import Portal
from target.loop import Loop
from target.scsi.device_server import Device
from target.scsi.logical_unit import LogicalUnit
from tests.unit.scsi.memory_volume import MemoryVolume

TARGET = "iqn.2024-01.example:target"
INITIATOR = "iqn.2024-01.example:initiator"
CHAP = ChapCredentials("alice", "alice-secret-12", "target", "target-secret-12")
BLOCK = 512


class Server:
    """A portal on a loop in a thread."""

    def __init__(self, nodes: list[TargetNode], address: str = "127.0.0.1:0", **options: float) -> None:
        self.loop = Loop()
        self.portal = Portal(self.loop, nodes, **options)  # type: ignore[arg-type]
        self.address = self.portal.listen(address)
        self.thread = threading.Thread(target=self.loop.run, name="server")
        self.thread.start()

    def url(self, lun: int = 0, target: str = TARGET) -> str:
        return f"iscsi://{self.address}/{target}/{lun}"

    def call(self, function: Callable[[], object]) -> object:
        """Run on the loop's thread; its result."""
        results: list[object] = []
        done = threading.Event()

        def run() -> None:
            results.append(function())
            done.set()

        self.loop.call_from_thread(run)
        assert done.wait(30)
        return results[0]

    def wait_for(self, reached: Callable[[], bool]) -> None:
        while not self.call(reached):
            pass

    def stop(self) -> None:
        def stop() -> None:
            self.portal.close()
            self.loop.stop()

        self.loop.call_from_thread(stop)
        self.thread.join(30)
        assert not self.thread.is_alive()
        self.loop.close()


@contextmanager
def serving(*nodes: TargetNode, address: str = "127.0.0.1:0", **options: float) -> Iterator[Server]:
    server = Server(list(nodes), address, **options)
    try:
        yield server
    finally:
        server.stop()


def node(volume: MemoryVolume | None = None, name: str = TARGET, **options: object) -> TargetNode:
    return TargetNode(name, Device({0: LogicalUnit(volume or MemoryVolume(8 << 20))}), **options)  # type: ignore[arg-type]


def async_client(loop: Loop, server: Server, **login: object) -> AsyncClient:
    host, _, port = server.address.rpartition(":")
    settings = LoginSettings(INITIATOR, TARGET, **login)  # type: ignore[arg-type]
    return AsyncClient(loop, host.strip("[]"), int(port), 0, settings)
