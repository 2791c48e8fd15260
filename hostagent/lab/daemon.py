"""A process that outlives the command which started it, and is known again by a later one.

Its file holds the pid with the start time and the boot it belongs to: a number alone may have come to mean
somebody else's process, which must never be signalled.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

import hostagent
from target.errors import OperatorError

_POLL_SECONDS = 0.01
_SOURCE_ROOT = Path(hostagent.__file__).resolve().parent.parent


class ProcessId(msgspec.Struct, frozen=True):
    """A process, told apart from every other one that had or will have its number. proc(5): stat, boot_id."""

    pid: int
    start_ticks: int
    boot_id: str


class Daemon:
    """One daemon of a lab: what to run, where its log goes, and whether it runs."""

    def __init__(
        self, name: str, module: str, arguments: Sequence[str], pid_file: Path, log_file: Path
    ) -> None:
        self.name = name
        self.log_file = log_file
        self._module = module
        self._arguments = arguments
        self._pid_file = pid_file

    def pid(self) -> int | None:
        """Its pid while it runs."""
        try:
            known = msgspec.json.decode(self._pid_file.read_bytes(), type=ProcessId)
        except (FileNotFoundError, msgspec.DecodeError):
            return None
        return known.pid if _identify(known.pid) == known else None

    def start(self) -> bool:
        """Start it, unless it runs; returns whether it was started. It is not ready yet then."""
        if self.pid() is not None:
            return False
        # -P: the directory it runs in is not searched for modules.
        command = [sys.executable, "-P", "-m", self._module, *self._arguments]
        search = os.pathsep.join(filter(None, [str(_SOURCE_ROOT), os.environ.get("PYTHONPATH")]))
        with self.log_file.open("ab") as log:
            process = subprocess.Popen(
                command,
                cwd=self._pid_file.parent,
                env={**os.environ, "PYTHONPATH": search, "PYTHONUNBUFFERED": "1"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        identity = _identify(process.pid)
        if identity is not None:
            unfinished = self._pid_file.with_suffix(".new")
            unfinished.write_bytes(msgspec.json.encode(identity))
            unfinished.rename(self._pid_file)
        process.returncode = 0  # it is not this process's to wait for: silences the warning of Popen.__del__
        return True

    def signal(self, number: signal.Signals) -> bool:
        """Send a signal if it runs; returns whether it did."""
        pid = self.pid()
        if pid is None:
            return False
        os.kill(pid, number)
        return True

    def wait_gone(self, timeout_seconds: float) -> bool:
        """Whether it is gone, after at most that long."""
        deadline = time.monotonic() + timeout_seconds
        while self.pid() is not None:
            if time.monotonic() > deadline:
                return False
            time.sleep(_POLL_SECONDS)
        return True

    def check_runs(self) -> None:
        """`OperatorError` with the end of its log when it does not run."""
        if self.pid() is None:
            raise OperatorError(
                f"{self.name} ended at once; its log {self.log_file} ends with:\n{self._log_end()}"
            )

    def _log_end(self) -> str:
        try:
            lines = self.log_file.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError as error:
            return str(error)
        return "\n".join(f"  {line}" for line in lines[-8:])


def _identify(pid: int) -> ProcessId | None:
    """The process that has this pid now; None when there is none, or only a dead one's entry."""
    try:
        os.waitpid(pid, os.WNOHANG)  # a dead child of this very process would stay in the table
    except ChildProcessError:
        pass
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    state, *fields = stat.rpartition(")")[2].split()
    if state in "ZX":
        return None
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return ProcessId(pid, int(fields[18]), boot_id)  # field 22 of stat, the third being the first here
