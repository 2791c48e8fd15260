"""One virtual machine: its files, its QEMU, and the way in by ssh on a loopback port of the host."""

from __future__ import annotations

import re
import socket
import subprocess
import time
from pathlib import Path

from scripts.vmlab.board import COMMAND_LINE, Files, Hardware, qemu_arguments
from scripts.vmlab.failure import LabError, run
from scripts.vmlab.kernel import Kernel
from scripts.vmlab.layout import Machine, Network
from scripts.vmlab.qemu import Process
from scripts.vmlab.template import Template, go_on, incoming, make_data_disk
from scripts.vmlab.wires import Wires

_SERIAL_LINES = 25


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
        self._memory = self.directory / "memory"
        self._go_on = self.directory / "go-on.sock"

    @property
    def name(self) -> str:
        return self.machine.name

    @property
    def running(self) -> bool:
        return self.process.pid is not None

    def make_disks(self, template: Template, hardware: Hardware) -> None:
        backing = ["-o", f"backing_file={template.root},backing_fmt=qcow2"]
        run(["qemu-img", "create", "-q", "-f", "qcow2", *backing, str(self._root)])
        make_data_disk(self._data, hardware)
        self._memory.unlink(missing_ok=True)
        self._memory.symlink_to(template.memory)

    def start(self, kernel: Kernel, hardware: Hardware, wires: Wires, source: Path) -> None:
        """Power on, with a checkout of the project to read. Not while it runs; `wait_for_ssh` goes on."""
        self.serial.unlink(missing_ok=True)
        arguments = qemu_arguments(
            self.machine,
            Files(self._root, self._data, self.serial, self._go_on, self.seed, source),
            kernel,
            hardware,
            [
                f"stream,server=off,addr.type=unix,addr.path={wires.socket(self.name, each)}"
                for each in Network
            ],
            COMMAND_LINE,
        )
        if self._memory.exists():
            arguments += incoming(self._memory.resolve())
        self.process.start(arguments)

    def _begin(self) -> None:
        """The first time, from where its template was stopped; from then on its disk is ahead of that."""
        if self._memory.is_symlink():
            self._memory.unlink()
            go_on(self.process, self._go_on)

    def port(self) -> int:
        """The host's loopback port that leads to the guest's ssh."""
        listing = self.process.command("human-monitor-command", {"command-line": "info usernet"})
        found = re.search(r"HOST_FORWARD\]\s+\d+\s+127\.0\.0\.1\s+(\d+)", listing)
        if found is None:
            raise LabError(f"QEMU of {self.name} names no port for ssh:\n{listing}")
        return int(found[1])

    def wait_for_ssh(self, timeout_seconds: float) -> None:
        """Until sshd greets."""
        self._begin()
        deadline = time.monotonic() + timeout_seconds
        port = self.port()
        while time.monotonic() < deadline:
            if not self.running:
                raise LabError(f"{self.name} ended while it started:\n{self.last_words()}")
            try:
                with socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
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
