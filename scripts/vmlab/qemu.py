"""QEMU processes: started in the background with a pid file, asked by QMP, killed by their own pid alone.

QMP: the QEMU Machine Protocol, docs/interop/qmp-spec of QEMU.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
from pathlib import Path
from typing import Any

from scripts.vmlab.failure import LabError, run

QEMU = "qemu-system-x86_64"
_QMP_SECONDS_MAX = 20.0
_END_SECONDS_MAX = 20.0
_SOCKET_PATH_BYTES_MAX = 107  # unix(7), sun_path


class Process:
    """One QEMU; `directory` holds its sockets and its pid file, and names it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._pid_file = directory / "qemu.pid"
        self._qmp_socket = directory / "qmp.sock"

    def start(self, arguments: list[str]) -> None:
        """Returns when QEMU has set up all its devices and runs."""
        if len(os.fsencode(self._qmp_socket)) > _SOCKET_PATH_BYTES_MAX:
            raise LabError(f"{self.directory} is too long a path for UNIX sockets; choose another --dir")
        self.directory.mkdir(parents=True, exist_ok=True)
        own = ["-pidfile", str(self._pid_file), "-qmp", f"unix:{self._qmp_socket},server=on,wait=off"]
        run([QEMU, "-daemonize", "-nodefaults", "-display", "none", *own, *arguments], timeout_seconds=60)

    @property
    def pid(self) -> int | None:
        """Its process, if it runs."""
        try:
            pid = int(self._pid_file.read_text())
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
        except (OSError, ValueError):
            return None
        return pid if os.fsencode(self._pid_file) in command.split(b"\0") else None

    def kill(self) -> bool:
        """SIGKILL: nothing is flushed. True if it ran."""
        pid = self.pid
        if pid is None:
            return False
        with contextlib.suppress(ProcessLookupError):
            handle = os.pidfd_open(pid)
            try:
                if self.pid != pid:
                    return False
                signal.pidfd_send_signal(handle, signal.SIGKILL)
                if not select.select([handle], [], [], _END_SECONDS_MAX)[0]:
                    raise LabError(f"{self.directory.name} (pid {pid}) does not die; see its process state")
            finally:
                os.close(handle)
        self._pid_file.unlink(missing_ok=True)
        return True

    def command(self, name: str, arguments: dict[str, Any]) -> Any:
        """The answer to one QMP command."""
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
                connection.settimeout(_QMP_SECONDS_MAX)
                connection.connect(str(self._qmp_socket))
                with connection.makefile("rw", encoding="utf-8") as stream:
                    stream.readline()  # the greeting
                    _ask(stream, "qmp_capabilities", {})
                    return _ask(stream, name, arguments)
        except OSError as error:
            raise LabError(f"{self.directory.name} does not answer: {error}") from None


def _ask(stream: Any, name: str, arguments: dict[str, Any]) -> Any:
    stream.write(json.dumps({"execute": name, "arguments": arguments}) + "\n")
    stream.flush()
    for line in stream:
        answer = json.loads(line)
        if "error" in answer:
            raise LabError(f"QEMU refused {name}: {answer['error'].get('desc')}")
        if "return" in answer:
            return answer["return"]
    raise LabError(f"QEMU closed its control socket on {name}")
