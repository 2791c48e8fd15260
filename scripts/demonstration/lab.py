"""Two sites on this machine, driven as a person would drive them: through `replctl` and its JSON."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from target.iscsi.client import Client

GROUP = "group1"
DATABASE_VOLUME, LOG_VOLUME = "data", "log"
VOLUMES = {DATABASE_VOLUME: "64MiB", LOG_VOLUME: "16MiB"}
JOURNAL_SIZE = "128MiB"
_COMMAND_SECONDS_MAX = 40
_LAST_LINES = 15

Facts = dict[str, Any]


class CommandFailed(Exception):
    """A `replctl` command ended with an error; the message is what it said."""


class Lab:
    """A lab in a directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._replctl = [sys.executable, "-m", "hostagent.cli"]

    def up(self) -> None:
        """Start every daemon that does not run, and wait until all serve."""
        volumes = ",".join(f"{name}={size}" for name, size in VOLUMES.items())
        options = [] if self._description_file.exists() else [
            *("--sites", "2", "--volumes", volumes, "--journal", JOURNAL_SIZE)
        ]  # fmt: skip
        self._run("lab", "up", "--dir", str(self.directory), *options)

    def down(self) -> None:
        """Stop them all."""
        self._run("lab", "down", "--dir", str(self.directory))

    def kill(self, site: str) -> None:
        """SIGKILL to both daemons of a site, at once: no command in between, the moment matters."""
        for pid in self._site(site)["pids"].values():
            os.kill(pid, signal.SIGKILL)

    def at(self, site: str, *arguments: str) -> Facts:
        """What `replctl --site …` answers."""
        return self._run("--lab", str(self.directory), "--site", site, *arguments)

    def start_at(self, site: str, *arguments: str) -> subprocess.Popen[str]:
        """The same, without waiting for the answer."""
        command = [*self._replctl, "--lab", str(self.directory), "--site", site, *arguments, "--json"]
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)

    def connect(self, site: str, volume: str) -> Client:
        """An iSCSI session with a volume of a site."""
        iscsi = self._site(site)["iscsi"]
        return Client.connect(f"iscsi://{iscsi['portals'][0]}/{iscsi['target']}/{iscsi['luns'][volume]}")

    def journal_path(self, site: str) -> Path:
        """The journal volume of a site."""
        return Path(self._site(site)["journals"][GROUP])

    def last_log_lines(self) -> str:
        """The end of every daemon's log, for a demonstration that failed."""
        parts = []
        for site in self._description()["sites"].values():
            for path in map(Path, site["logs"].values()):
                if path.exists():
                    lines = path.read_text(errors="replace").splitlines()[-_LAST_LINES:]
                    parts.append("\n".join([f"--- {path}", *lines]))
        return "\n".join(parts)

    @property
    def _description_file(self) -> Path:
        return self.directory / "lab.json"

    def _description(self) -> Facts:
        return dict(json.loads(self._description_file.read_text()))

    def _site(self, name: str) -> Facts:
        return dict(self._description()["sites"][name])

    def _run(self, *arguments: str) -> Facts:
        command = f"replctl {' '.join(arguments)}"
        try:
            done = subprocess.run(
                [*self._replctl, *arguments, "--json"],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=_COMMAND_SECONDS_MAX,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise CommandFailed(f"{command} did not end within {_COMMAND_SECONDS_MAX} seconds") from None
        if done.returncode != 0:
            said = done.stderr.strip() or done.stdout.strip()
            raise CommandFailed(f"{command} ended with exit code {done.returncode}: {said}")
        return dict(json.loads(done.stdout)) if done.stdout.strip() else {}
