"""What a person does with a lab: up, status, down, kill, cut, join.

Every step looks at what is there and does the rest, so that each may be repeated, also after an interruption.
"""

from __future__ import annotations

import contextlib
import fcntl
import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from hostagent.agent_socket import AgentClient
from hostagent.lab.daemon import Daemon
from hostagent.lab.plan import (
    DAEMONS,
    LINK_KINDS,
    LabFiles,
    LabPlan,
    describe,
    make_plan,
    parse_volumes,
    read_plan,
    write_files,
)
from hostagent.lab.wire import link_name
from hostagent.names import known_name
from target.control.site_file import JournalSize
from target.errors import OperatorError, PeerError

SITES_DEFAULT = 2
VOLUMES_DEFAULT = "data=64MiB,log=16MiB"
JOURNAL_DEFAULT = "256MiB"

_MODULES = {"target": "target", "hostagent": "hostagent"}
_READY_SECONDS_MAX = 60.0
_STOP_SECONDS_MAX = 20.0
_LINKS_SECONDS_MAX = 6.0
_POLL_SECONDS = 0.03


class Lab:
    """The lab of one directory."""

    def __init__(self, directory: Path, plan: LabPlan) -> None:
        self.files = LabFiles(directory)
        self.plan = plan
        self._wire = Daemon(
            "the wire",
            "hostagent.lab.wire",
            ["--links", str(self.files.links), "--control", str(self.files.wire_socket)],
            self.files.pid("wire"),
            self.files.log("wire"),
        )
        self._daemons = {
            (site.name, daemon): Daemon(
                f"{daemon} of site {site.name}",
                _MODULES[daemon],
                ["--config", str(self.files.config(site.name))],
                self.files.pid(daemon, site.name),
                self.files.log(daemon, site.name),
            )
            for site in plan.sites
            for daemon in DAEMONS
        }

    @classmethod
    def open(cls, directory: Path) -> Lab:
        """The lab that is there; `OperatorError` when there is none."""
        return cls(directory, read_plan(LabFiles(directory)))

    @classmethod
    def create_or_open(
        cls,
        directory: Path,
        *,
        sites: int | None = None,
        volumes: str | None = None,
        journal: str | None = None,
        chap: bool | None = None,
        port: int | None = None,
    ) -> Lab:
        """The lab that is there, if it is the one that was asked for, or a new one. None: whatever it has."""
        files = LabFiles(directory)
        files.directory.mkdir(parents=True, exist_ok=True)
        try:
            journal_bytes = None if journal is None else int(JournalSize.parse(journal))
        except ValueError as error:
            raise OperatorError(f"--journal: {error}") from None
        volumes_bytes = None if volumes is None else parse_volumes(volumes)
        with _locked(files):
            if files.plan.exists():
                plan = read_plan(files)
                _refuse_change("--sites", sites, len(plan.sites))
                _refuse_change("--volumes", volumes_bytes, plan.volumes)
                _refuse_change("--journal", journal_bytes, plan.journal)
                _refuse_change("--chap", chap, plan.chap)
            else:
                plan = make_plan(
                    SITES_DEFAULT if sites is None else sites,
                    parse_volumes(VOLUMES_DEFAULT) if volumes_bytes is None else volumes_bytes,
                    int(JournalSize.parse(JOURNAL_DEFAULT)) if journal_bytes is None else journal_bytes,
                    chap=bool(chap),
                    port=port,
                )
                write_files(plan, files)
        return cls(directory, plan)

    def up(self) -> dict[str, Any]:
        """Start what does not run, and wait until every site serves."""
        with _locked(self.files):
            wire_started = self._wire.start()
            started = {key: daemon.start() for key, daemon in self._daemons.items()}
            self._write_lab_json()
            deadline = time.monotonic() + _READY_SECONDS_MAX
            self._wait_wire(deadline)
            for site in self.plan.sites:
                self._wait_ready(site.name, deadline)
            self._wait_links()
        changed = wire_started or any(started.values())
        words = {True: "started", False: "unchanged"}
        return {
            "dir": str(self.files.directory),
            "changed": changed,
            "wire": words[wire_started],
            "sites": {
                site.name: {daemon: words[started[site.name, daemon]] for daemon in DAEMONS}
                for site in self.plan.sites
            },
        }

    def down(self) -> dict[str, Any]:
        """Stop everything; what does not stop in time is killed."""
        with _locked(self.files):
            # Agents first, else they would report the loss of their subsystems; the wire last.
            stopped = []
            for name in ("hostagent", "target"):
                stopped += self._stop([daemon for (_, each), daemon in self._daemons.items() if each == name])
            stopped += self._stop([self._wire])
            self._write_lab_json()
        return {"dir": str(self.files.directory), "changed": bool(stopped), "stopped": stopped}

    def kill(self, site: str, daemon: str | None = None) -> dict[str, Any]:
        """SIGKILL to a site's daemons, or to one of them; returns when they are gone."""
        known_name("site", site, [each.name for each in self.plan.sites])
        names = DAEMONS if daemon is None else (known_name("daemon", daemon, DAEMONS),)
        with _locked(self.files):
            killed = [name for name in names if self._daemons[site, name].signal(signal.SIGKILL)]
            for name in killed:
                self._daemons[site, name].wait_gone(_STOP_SECONDS_MAX)
            self._write_lab_json()
        return {"site": site, "changed": bool(killed), "killed": killed}

    def cut(self, one: str, other: str, kinds: Sequence[str] = LINK_KINDS) -> dict[str, Any]:
        """Cut the links of these kinds between two sites, both ways."""
        return self._switch("cut", one, other, kinds)

    def join(self, one: str, other: str, kinds: Sequence[str] = LINK_KINDS) -> dict[str, Any]:
        """Make the links of these kinds between two sites whole."""
        return self._switch("join", one, other, kinds)

    def status(self) -> dict[str, Any]:
        """What runs, who serves, and which links are whole."""
        sites = {}
        for site in self.plan.sites:
            pids = {daemon: self._daemons[site.name, daemon].pid() for daemon in DAEMONS}
            sites[site.name] = {"pids": pids, "ready": self._is_ready(site.name)}
        links = {}
        with contextlib.suppress(PeerError), AgentClient(self.files.wire_socket) as client:
            links = client.call("status", {})["links"]
        return {
            "dir": str(self.files.directory),
            "sites": sites,
            "wire": {"pid": self._wire.pid(), "links": links},
        }

    def _switch(self, op: str, one: str, other: str, kinds: Sequence[str]) -> dict[str, Any]:
        for site in (one, other):
            known_name("site", site, [each.name for each in self.plan.sites])
        if one == other:
            raise OperatorError(f"{op}: {one} has no link to itself; name two sites")
        links = [link_name(*pair, kind) for pair in ((one, other), (other, one)) for kind in kinds]
        with _locked(self.files):
            self._wire.start()
            self._wait_wire(time.monotonic() + _READY_SECONDS_MAX)
            with AgentClient(self.files.wire_socket) as client:
                changed = client.call(op, {"links": links})["changed"]
        return {"links": links, "changed": bool(changed)}

    def _wait_wire(self, deadline: float) -> None:
        while True:
            with contextlib.suppress(PeerError), AgentClient(self.files.wire_socket) as client:
                client.call("status", {})
                return
            self._wire.check_runs()
            _wait_a_moment(deadline, self._wire)

    def _wait_ready(self, site: str, deadline: float) -> None:
        while not self._is_ready(site):
            for name in DAEMONS:
                self._daemons[site, name].check_runs()
            _wait_a_moment(deadline, self._daemons[site, "hostagent"])

    def _wait_links(self) -> None:
        """Until every agent has its links, as the next command needs them; not for ever: one may be cut."""
        deadline = time.monotonic() + _LINKS_SECONDS_MAX
        while time.monotonic() < deadline:
            if all(self._links_up(site.name) for site in self.plan.sites):
                return
            time.sleep(_POLL_SECONDS)

    def _links_up(self, site: str) -> bool:
        with contextlib.suppress(PeerError), AgentClient(self.files.agent_socket(site)) as client:
            return all(client.call("ping", {}, timeout_seconds=2.0).get("links", {}).values())
        return False

    def _is_ready(self, site: str) -> bool:
        if any(self._daemons[site, name].pid() is None for name in DAEMONS):
            return False
        with contextlib.suppress(PeerError), AgentClient(self.files.agent_socket(site)) as client:
            return client.call("ping", {}, timeout_seconds=2.0).get("ready") is True
        return False

    def _stop(self, daemons: Sequence[Daemon]) -> list[str]:
        signalled = [daemon for daemon in daemons if daemon.signal(signal.SIGTERM)]
        deadline = time.monotonic() + _STOP_SECONDS_MAX
        for daemon in signalled:
            if not daemon.wait_gone(deadline - time.monotonic()):
                daemon.signal(signal.SIGKILL)
                daemon.wait_gone(_STOP_SECONDS_MAX)
        return [daemon.name for daemon in signalled]

    def _write_lab_json(self) -> None:
        pids = {
            site.name: {daemon: self._daemons[site.name, daemon].pid() for daemon in DAEMONS}
            for site in self.plan.sites
        }
        unfinished = self.files.lab.with_suffix(".new")
        text = msgspec.json.format(msgspec.json.encode(describe(self.plan, self.files, pids)), indent=2)
        unfinished.write_bytes(text + b"\n")
        unfinished.rename(self.files.lab)


@contextlib.contextmanager
def _locked(files: LabFiles) -> Iterator[None]:
    """One command at a time changes a lab; flock(2), which a killed command gives back."""
    with files.lock.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _refuse_change(option: str, wanted: object, present: object) -> None:
    if wanted is not None and wanted != present:
        raise OperatorError(
            f"{option} {wanted}: this lab has {present}, and that does not change; use another --dir"
        )


def _wait_a_moment(deadline: float, daemon: Daemon) -> None:
    if time.monotonic() > deadline:
        raise PeerError(
            f"{daemon.name} does not serve yet after {_READY_SECONDS_MAX:g} s; see {daemon.log_file}"
        )
    time.sleep(_POLL_SECONDS)
