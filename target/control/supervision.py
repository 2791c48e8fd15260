"""What a daemon tells the service manager that started it: it serves, it lives, it ends (sd_notify(3)).

Without `NOTIFY_SOCKET` in the environment nobody asked, and nothing is told. A daemon says that it lives from
the loop that does its work: one that hangs is silent, and is restarted (systemd.service(5), WatchdogSec).
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping

from target.scheduler import Scheduler


class Supervision:
    """The service manager's socket, if there is one."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._socket: socket.socket | None = None
        self.interval_seconds: float | None = None
        """How often to say `alive`: twice in the time after which silence is death. None: nobody listens."""
        address = environment.get("NOTIFY_SOCKET", "")
        if not address:
            return
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._address = f"\0{address[1:]}" if address.startswith("@") else address  # unix(7), abstract
        limit_us = environment.get("WATCHDOG_USEC", "")
        if limit_us.isdecimal() and environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid()):
            self.interval_seconds = int(limit_us) / 2e6

    def ready(self) -> None:
        """All that was asked for is served from here on."""
        self._tell("READY=1")

    def alive(self) -> None:
        self._tell("WATCHDOG=1")

    def attend(self, scheduler: Scheduler) -> None:
        """Say `alive` for as long as this scheduler runs what it was asked to."""
        if self.interval_seconds is not None:
            self.alive()
            scheduler.call_later(self.interval_seconds, lambda: self.attend(scheduler))

    def stopping(self) -> None:
        self._tell("STOPPING=1")

    def _tell(self, state: str) -> None:
        if self._socket is None:
            return
        try:
            self._socket.sendto(state.encode(), socket.MSG_DONTWAIT, self._address)
        except OSError:
            # A manager that does not listen now is told again; one that never does restarts us, as it should.
            return
