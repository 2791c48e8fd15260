"""The two targets that are compared, each a process of its own with one file-backed logical unit.

Both run pinned to the same processor with the same `taskset`, and both keep their files in the same
directory. tgt has its default settings; its control socket is put beside its files, so that an installed tgt
is left alone.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

from scripts.benchmark.session import BenchmarkError

START_SECONDS_MAX = 60.0


def free_port() -> int:
    """A port of 127.0.0.1 that was free a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def busy_seconds(processors: Sequence[int]) -> float:
    """How long these processors have been busy so far, for whomever (proc(5), /proc/stat; steal included)."""
    names = {f"cpu{number}" for number in processors}
    ticks = 0
    for line in Path("/proc/stat").read_text().splitlines():
        name, *fields = line.split()
        if name in names:
            user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, fields[:8])
            ticks += user + nice + system + irq + softirq + steal
    return ticks / os.sysconf("SC_CLK_TCK")


class TargetProcess(ABC):
    """A running target. Leaving its context ends the process that it started, and no other."""

    name: str
    target_name: str
    lun: int

    def __init__(self, directory: Path, volume_bytes: int, processor: int) -> None:
        directory.mkdir()
        self.directory = directory
        self.volume_bytes = volume_bytes
        self.portal = ("127.0.0.1", free_port())
        self._log_path = directory / "log"
        self._pin = ["taskset", "-c", str(processor)]
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> TargetProcess:
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is None:
            return
        self._process.kill()  # nothing of it is kept, and tgtd takes no notice of SIGTERM
        self._process.wait()

    @abstractmethod
    def _start(self) -> None:
        """Start the process and wait until its logical unit is served."""

    def _spawn(self, command: Sequence[str], environment: dict[str, str] | None = None) -> None:
        with self._log_path.open("wb") as log:
            self._process = subprocess.Popen(
                [*self._pin, *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=os.environ | (environment or {}),
            )

    def _wait_for(self, what: str, *attempt: str, environment: dict[str, str] | None = None) -> None:
        """Repeat a command, or connecting to the portal when there is none, until it succeeds."""
        end = time.monotonic() + START_SECONDS_MAX
        assert self._process is not None
        while True:
            if self._process.poll() is not None or time.monotonic() > end:
                log = self._log_path.read_text(errors="replace")[-2000:]
                raise BenchmarkError(f"{self.name} did not get to: {what}. Its log ends:\n{log}")
            if attempt:
                done = subprocess.run(
                    attempt, env=os.environ | (environment or {}), capture_output=True, check=False
                )
                if done.returncode == 0:
                    return
            else:
                try:
                    socket.create_connection(self.portal, timeout=1).close()
                    return
                except OSError:
                    pass
            time.sleep(0.05)

    def cpu_seconds(self) -> float:
        """User and system time of all its threads so far."""
        assert self._process is not None
        total = 0
        for task in Path(f"/proc/{self._process.pid}/task").iterdir():
            try:
                total += int((task / "schedstat").read_text().split()[0])
            except OSError:  # that thread has just ended
                continue
        return total / 1e9

    def resident_bytes(self) -> int:
        """Physical memory it holds now."""
        assert self._process is not None
        pages = int(Path(f"/proc/{self._process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGESIZE")

    def settle(self, seconds_max: float = 30.0) -> None:
        """Wait until it has nothing left to do, so that it takes nothing from the other's measurement."""
        end = time.monotonic() + seconds_max
        before = self.cpu_seconds()
        while time.monotonic() < end:
            time.sleep(0.2)
            now = self.cpu_seconds()
            if now - before < 0.01:
                return
            before = now


class Tgt(TargetProcess):
    """Debian's tgtd, in the foreground, with one target made by tgtadm."""

    name = "tgt"
    target_name = "iqn.2026-01.org.replctl:benchmark.tgt"
    lun = 1  # LUN 0 is tgt's own controller

    @staticmethod
    def version() -> str | None:
        """None when it is not installed."""
        if not shutil.which("tgtd"):
            return None
        return subprocess.run(["tgtd", "-V"], capture_output=True, text=True, check=False).stdout.strip()

    def _start(self) -> None:
        volume = self.directory / "volume"
        with volume.open("wb") as file:
            file.truncate(self.volume_bytes)
        address, port = self.portal
        ipc = {"TGT_IPC_SOCKET": str(self.directory / "control")}
        self._spawn(["tgtd", "-f", "-C", "1", "--iscsi", f"portal={address}:{port}"], ipc)
        admin = ["tgtadm", "-C", "1", "--lld", "iscsi"]
        new_target = [*admin, "--op", "new", "--mode", "target", "--tid", "1", "-T", self.target_name]
        self._wait_for("taking commands of tgtadm", *new_target, environment=ipc)
        for arguments in (
            ["--op", "new", "--mode", "logicalunit", "--tid", "1", "--lun", str(self.lun), "-b", str(volume)],
            ["--op", "bind", "--mode", "target", "--tid", "1", "-I", "ALL"],
        ):
            subprocess.run([*admin, *arguments], env=os.environ | ipc, capture_output=True, check=True)
        self._wait_for("listening")


class Embedded(TargetProcess):
    """This project's own target, started as a site starts it, with the journal on."""

    name = "embedded"
    target_name = "iqn.2026-01.org.replctl:benchmark"
    lun = 0

    def __init__(self, directory: Path, volume_bytes: int, processor: int, journal_bytes: int) -> None:
        super().__init__(directory, volume_bytes, processor)
        self._journal_bytes = journal_bytes
        self.san_portal = f"{self.portal[0]}:{free_port()}"

    def _start(self) -> None:
        address, port = self.portal
        config = self.directory / "site.toml"
        config.write_text(
            f"""
[site]
name = "benchmark"
state_dir = "."

[target]
front_end = "embedded"
control_socket = "target.sock"

[target.iscsi]
name = "{self.target_name}"
portals = ["{address}:{port}"]

[target.san]
name = "{self.target_name}.san"
portal = "{self.san_portal}"
initiator_name = "{self.target_name}"
initiators = ["{self.target_name}.peer"]

[[group]]
name = "group1"
journal = "journal"
journal_size = {self._journal_bytes}
san_lun = 0

[[group.volume]]
name = "volume"
path = "volume"
size = {self.volume_bytes}
lun = {self.lun}
""",
            encoding="utf-8",
        )
        self._spawn([sys.executable, "-m", "target", "--config", str(config)])
        self._wait_for("listening")
