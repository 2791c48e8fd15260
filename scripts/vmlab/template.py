"""A machine that has booted and does not know which one it is: made once; each new machine goes on from it.

Without hardware acceleration, booting is most of what `up` would do. The template stops in guest/boot, before
it reads its seed: it has a root file system, modules, udev and systemd, and nothing of a machine's own. What
is kept is its memory, as QEMU sends it when a machine migrates, and its disk. A machine that is powered on
again boots.

The memory holds how fast the host's time stamp counter runs (`board.CLOCK`), so a template is for the boot of
the host that made it.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import socket
import tempfile
import time
from dataclasses import astuple, dataclass
from pathlib import Path

from scripts.vmlab.board import COMMAND_LINE, CPU, Files, Hardware, qemu_arguments
from scripts.vmlab.failure import LabError, run
from scripts.vmlab.kernel import Kernel
from scripts.vmlab.layout import Machine, Network
from scripts.vmlab.qemu import QEMU, Process

_WORD = "lab.template"
"""In the kernel's command line: stop, and wait to be told."""
_READY = "lab: template"
"""On its serial line: it waits."""
_BOOT_SECONDS_MAX = 300.0
_MIGRATION_SECONDS_MAX = 120.0
_GO_ON_SECONDS_MAX = 60.0
_POLL_SECONDS = 0.05
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, slots=True)
class Template:
    """The disk, and the memory that goes with it."""

    root: Path
    memory: Path


def build_template(kernel: Kernel, root: Path, hardware: Hardware, cache: Path) -> Template:
    """Of this kernel and root file system, from the cache if it is there."""
    key, boot = _key(kernel, root, hardware), _BOOT_ID.read_text()[:8]
    directory = cache / f"template-{key}-{boot}"
    if not directory.exists():
        for former in cache.glob(f"template-{key}-*"):
            shutil.rmtree(former)
        with tempfile.TemporaryDirectory(dir=cache, prefix="making-") as work:
            made = Path(work) / "made"
            made.mkdir()
            _make(kernel, root, hardware, Path(work), Template(made / "root.qcow2", made / "memory"))
            made.rename(directory)
    return Template(directory / "root.qcow2", directory / "memory")


def make_data_disk(path: Path, hardware: Hardware) -> None:
    run(["qemu-img", "create", "-q", "-f", "qcow2", str(path), f"{hardware.data_mib}M"])


def incoming(memory: Path) -> list[str]:
    """For QEMU: begin with this memory, and wait for `go_on`."""
    return ["-S", "-incoming", f"exec:cat {shlex.quote(str(memory))}"]


def go_on(process: Process, line: Path) -> None:
    """Let a machine with a template's memory go on; it is told the time, and what no other one has."""
    _wait_for(process, "query-status", "paused", _MIGRATION_SECONDS_MAX)
    process.command("cont", {})
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(_GO_ON_SECONDS_MAX)
            connection.connect(str(line))
            connection.sendall(f"{time.time():.0f} {os.urandom(32).hex()}\n".encode())
            connection.recv(1)  # QEMU forgets what the machine has not taken when the connection ends
    except OSError as error:
        raise LabError(f"{process.directory.name} does not go on from its template: {error}") from None


def _key(kernel: Kernel, root: Path, hardware: Hardware) -> str:
    inputs = (
        kernel.image.parent.name,
        root.name,
        *astuple(hardware),
        CPU,
        COMMAND_LINE,
        run([QEMU, "--version"]),
    )
    return hashlib.sha256(repr(inputs).encode() + Path(__file__).read_bytes()).hexdigest()[:12]


def _make(kernel: Kernel, root: Path, hardware: Hardware, work: Path, template: Template) -> None:
    backing = ["-o", f"backing_file={root},backing_fmt=raw"]
    run(["qemu-img", "create", "-q", "-f", "qcow2", *backing, str(template.root)])
    empty = work / "empty"
    empty.mkdir()
    files = Files(template.root, work / "data.qcow2", work / "serial.log", work / "go-on.sock", empty, empty)
    make_data_disk(files.data, hardware)
    networks = [f"hubport,hubid={network.number}" for network in Network]
    process = Process(work)
    process.start(
        qemu_arguments(Machine("template", 0), files, kernel, hardware, networks, f"{COMMAND_LINE} {_WORD}")
    )
    try:
        _wait_until_ready(process, files.serial)
        process.command("stop", {})
        process.command("migrate", {"uri": f"exec:cat >{shlex.quote(str(template.memory))}"})
        _wait_for(process, "query-migrate", "completed", _MIGRATION_SECONDS_MAX)
    finally:
        process.kill()


def _wait_until_ready(process: Process, serial: Path) -> None:
    deadline = time.monotonic() + _BOOT_SECONDS_MAX
    while _READY not in (said := serial.read_text(errors="replace")):
        if time.monotonic() > deadline or process.pid is None:
            raise LabError(f"the template did not come up:\n{said[-2000:]}")
        time.sleep(_POLL_SECONDS)


def _wait_for(process: Process, question: str, status: str, seconds_max: float) -> None:
    deadline = time.monotonic() + seconds_max
    while (found := process.command(question, {}).get("status")) != status:
        if found == "failed" or time.monotonic() > deadline:
            raise LabError(f"{process.directory.name}: {question} says {found}, not {status}")
        time.sleep(_POLL_SECONDS)
