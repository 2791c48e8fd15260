"""The networks between the machines: one QEMU without a machine, whose hubs join the machines' sockets.

It needs no root and no interface of the host, goes on when a machine is powered off, and takes it back when
it comes again. A wire is cut here, in the middle: no machine sees its link go down.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

from scripts.vmlab.failure import LabError
from scripts.vmlab.layout import Machine, Network
from scripts.vmlab.qemu import Process

_SOCKETS_SECONDS_MAX = 60.0
_SO_ACCEPTCON = 0x10000


class Wires:
    """Every machine's wire to every network."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._process = Process(directory)
        self._cut_file = directory / "cut.json"

    @property
    def running(self) -> bool:
        return self._process.pid is not None

    def start(self, machines: list[Machine]) -> None:
        if self.running:
            return
        self._directory.mkdir(parents=True, exist_ok=True)
        arguments = ["-machine", "none"]
        for machine in machines:
            for network in Network:
                name = _port(machine.name, network)
                path = self.socket(machine.name, network)
                path.unlink(missing_ok=True)
                arguments += [
                    "-netdev",
                    f"stream,id={name},server=on,addr.type=unix,addr.path={path}",
                    "-netdev",
                    f"hubport,id=hub-{name},hubid={network.number},netdev={name}",
                ]
        self._write_cuts(set())
        self._process.start(arguments)
        self._wait_for_sockets([self.socket(each.name, network) for each in machines for network in Network])

    def _wait_for_sockets(self, sockets: list[Path]) -> None:
        """QEMU says that it is ready, and makes them in a thread of its own."""
        deadline = time.monotonic() + _SOCKETS_SECONDS_MAX
        missing = {str(path) for path in sockets}
        while missing := missing - _listening():
            if time.monotonic() > deadline or not self.running:
                raise LabError(f"QEMU made no socket {min(missing)}")
            time.sleep(0.01)

    def stop(self) -> bool:
        return self._process.kill()

    def socket(self, machine: str, network: Network) -> Path:
        """Where a machine plugs in."""
        return self._directory / f"{_port(machine, network)}.sock"

    def cut(self, machine: str, network: Network) -> bool:
        """False if it was cut already."""
        return self._set(machine, network, joined=False)

    def join(self, machine: str, network: Network) -> bool:
        """False if it was not cut."""
        return self._set(machine, network, joined=True)

    def cuts(self) -> set[tuple[str, Network]]:
        if not self.running or not self._cut_file.exists():
            return set()
        return {(machine, Network[network]) for machine, network in json.loads(self._cut_file.read_text())}

    def _set(self, machine: str, network: Network, *, joined: bool) -> bool:
        cuts = self.cuts()
        if joined == ((machine, network) not in cuts):
            return False
        link = f"hub-{_port(machine, network)}"
        self._process.command("set_link", {"name": link, "up": joined})
        self._write_cuts(cuts - {(machine, network)} if joined else cuts | {(machine, network)})
        return True

    def _write_cuts(self, cuts: set[tuple[str, Network]]) -> None:
        self._cut_file.write_text(json.dumps(sorted((machine, network.name) for machine, network in cuts)))


def _port(machine: str, network: Network) -> str:
    return f"{machine}-{network.word}"


def _listening() -> set[str]:
    """UNIX sockets that take connections: proc(5), net/unix, flag SO_ACCEPTCON."""
    lines = (line.split(maxsplit=7) for line in Path("/proc/net/unix").read_text().splitlines()[1:])
    return {line[7] for line in lines if len(line) == 8 and int(line[3], 16) & _SO_ACCEPTCON}
