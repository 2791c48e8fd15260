"""One virtual machine: its files, its QEMU, and the way in by ssh on a loopback port of the host.

Disks: vda (root file system) and vdc (data) are copy-on-write and keep what the machine flushed, vdb
(modules) is read only. `cache=writeback`: a flush of the guest is one of the host's, and what it did not
flush may be lost with QEMU.
"""

from __future__ import annotations

import re
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from scripts.vmlab.failure import LabError, run
from scripts.vmlab.kernel import Kernel
from scripts.vmlab.layout import CONTROL_GUEST, CONTROL_NETWORK, Machine, Network
from scripts.vmlab.qemu import Process
from scripts.vmlab.wires import Wires

_CPU = "qemu64,+ssse3,+sse4.1,+sse4.2,+popcnt"
"""The second level of the x86-64 ABI: wheels are built for it, and SSE 4.2 has the CRC-32C instruction."""

_COMMAND_LINE = "console=ttyS0 quiet panic=-1 mitigations=off nokaslr net.ifnames=0 systemd.show_status=no"
_SERIAL_LINES = 25


@dataclass(frozen=True, slots=True)
class Hardware:
    """What every machine of a lab has."""

    memory_mib: int = 768
    cpus: int = 2
    data_mib: int = 2048


class VirtualMachine:
    """Files in DIR/NAME: `seed` (what the guest is told), disks, `serial.log`, QEMU's sockets."""

    def __init__(self, machine: Machine, directory: Path) -> None:
        self.machine = machine
        self.directory = directory / machine.name
        self.seed = self.directory / "seed"
        self.serial = self.directory / "serial.log"
        self.process = Process(self.directory)
        self._ssh_config = directory / "ssh_config"
        self._root = self.directory / "root.qcow2"
        self._data = self.directory / "data.qcow2"

    @property
    def name(self) -> str:
        return self.machine.name

    @property
    def running(self) -> bool:
        return self.process.pid is not None

    def make_disks(self, root: Path, hardware: Hardware) -> None:
        backing = ["-o", f"backing_file={root},backing_fmt=raw"]
        run(["qemu-img", "create", "-q", "-f", "qcow2", *backing, str(self._root)])
        run(["qemu-img", "create", "-q", "-f", "qcow2", str(self._data), f"{hardware.data_mib}M"])

    def start(self, kernel: Kernel, hardware: Hardware, wires: Wires, source: Path) -> None:
        """Power on, with a checkout of the project to read; returns at once. Not while it runs."""
        self.serial.unlink(missing_ok=True)
        arguments = [
            "-name",
            self.name,
            "-machine",
            "q35",
            "-accel",
            "tcg,thread=multi,tb-size=256",
            "-cpu",
            _CPU,
        ]
        arguments += ["-smp", str(hardware.cpus), "-m", str(hardware.memory_mib)]
        arguments += [
            "-kernel",
            str(kernel.image),
            "-initrd",
            str(kernel.initramfs),
            "-append",
            _COMMAND_LINE,
        ]
        arguments += ["-serial", f"file:{self.serial}", "-device", "virtio-rng-pci"]
        for path, settings in (
            (self._root, "format=qcow2"),
            (kernel.modules, "format=raw,readonly=on"),
            (self._data, "format=qcow2"),
        ):
            arguments += ["-drive", f"file={path},if=virtio,cache=writeback,discard=unmap,{settings}"]
        for network in Network:
            path = wires.socket(self.name, network)
            arguments += ["-netdev", f"stream,id={network.word},server=off,addr.type=unix,addr.path={path}"]
            arguments += ["-device", _card(network.word, self.machine.mac(network))]
        # Port 0: the host's kernel chooses a free one. restrict=on: the guest reaches no network of the host.
        forward = f"restrict=on,net={CONTROL_NETWORK},hostfwd=tcp:127.0.0.1:0-{CONTROL_GUEST}:22"
        arguments += ["-netdev", f"user,id=control,ipv6=off,{forward}"]
        arguments += ["-device", _card("control", self.machine.control_mac)]
        for tag, path in (("seed", self.seed), ("source", source)):
            share = f"local,path={path},mount_tag={tag},security_model=none,readonly=on,multidevs=remap"
            arguments += ["-virtfs", share]
        self.process.start(arguments)

    def port(self) -> int:
        """The host's loopback port that leads to the guest's ssh."""
        listing = self.process.command("human-monitor-command", {"command-line": "info usernet"})
        found = re.search(r"HOST_FORWARD\]\s+\d+\s+127\.0\.0\.1\s+(\d+)", listing)
        if found is None:
            raise LabError(f"QEMU of {self.name} names no port for ssh:\n{listing}")
        return int(found[1])

    def wait_for_ssh(self, timeout_seconds: float) -> None:
        """Until sshd greets."""
        deadline = time.monotonic() + timeout_seconds
        port = self.port()
        while time.monotonic() < deadline:
            if not self.running:
                raise LabError(f"{self.name} ended while it started:\n{self.last_words()}")
            try:
                with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
                    if connection.recv(4) == b"SSH-":
                        return
            except OSError:
                pass
            time.sleep(0.2)
        raise LabError(f"{self.name} has no ssh after {timeout_seconds:.0f} s:\n{self.last_words()}")

    def ssh_command(self, *words: str) -> list[str]:
        return ["ssh", "-F", str(self._ssh_config), self.name, *words]

    def run(self, script: str, *, timeout_seconds: float = 60, check: bool = True) -> str:
        """Standard output of a shell script in the machine, as root; with `check` failure is a `LabError`."""
        try:
            done = subprocess.run(
                self.ssh_command("bash", "-s"),
                input=script,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=timeout_seconds,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise LabError(f"{self.name}: no end of this after {timeout_seconds:.0f} s: {script}") from None
        if check and done.returncode != 0:
            said = f"{done.stdout}{done.stderr}".strip()
            raise LabError(f"{self.name}: exit code {done.returncode} of: {script}\n{said}")
        return done.stdout

    def hang_up(self) -> None:
        """End the ssh connection that the others share."""
        subprocess.run(
            ["ssh", "-F", str(self._ssh_config), "-O", "exit", self.name], capture_output=True, check=False
        )

    def power_off(self) -> bool:
        """As if its cable was pulled; True if it ran."""
        self.hang_up()
        return self.process.kill()

    def last_words(self) -> str:
        """The end of what it wrote to its serial line."""
        try:
            lines = self.serial.read_text(errors="replace").splitlines()
        except OSError:
            return "(nothing on its serial line)"
        return "\n".join(lines[-_SERIAL_LINES:])


def _card(netdev: str, mac: str) -> str:
    return f"virtio-net-pci,netdev={netdev},mac={mac},romfile="
