"""A lab of real daemons under a test: its sites, its faults, and the content of its volumes."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from hostagent.agent_socket import AgentClient
from hostagent.lab.lab import Lab
from target.errors import PeerError
from target.iscsi.client import Client
from tests.scenarios.history import BLOCK_BYTES

GROUP = "group1"
VOLUMES = {"data": 8 << 20, "log": 2 << 20}
WAIT_SECONDS = 60.0
_POLL_SECONDS = 0.05
_CONNECT_SECONDS = 0.01
_LOG_LINES = 25

Facts = dict[str, Any]


class SiteLab:
    """Starts with `up`, ends with `down`; both may be repeated. Sites are asked at their agents' sockets."""

    def __init__(
        self,
        directory: Path,
        *,
        sites: int = 2,
        volumes: Mapping[str, int] = VOLUMES,
        journal: str = "192MiB",
        chap: bool = False,
    ) -> None:
        self.volumes = dict(volumes)
        self.lab = Lab.create_or_open(
            directory,
            sites=sites,
            volumes=",".join(f"{name}={size}" for name, size in volumes.items()),
            journal=journal,
            chap=chap,
        )

    @property
    def sites(self) -> list[str]:
        return [site.name for site in self.lab.plan.sites]

    @property
    def blocks(self) -> dict[str, int]:
        """Volume -> number of blocks."""
        return {name: size // BLOCK_BYTES for name, size in self.volumes.items()}

    def up(self) -> None:
        """Start what does not run; returns when every site serves."""
        self.lab.up()

    def describe(self, site: str) -> Facts:
        """What `lab.json` says of a site."""
        return dict(json.loads(self.lab.files.lab.read_text())["sites"][site])

    # -- asking --

    def ask(self, site: str, op: str, timeout_seconds: float = 60.0, **params: object) -> Facts:
        """One operation of a site's host agent."""
        with AgentClient(self.lab.files.agent_socket(site)) as client:
            return client.call(op, {"group": GROUP, **params}, timeout_seconds)

    def replctl(self, site: str | None, *arguments: str, code: int = 0) -> Facts:
        """What the command answers to a person, as JSON; `code`: how it must end."""
        where = [] if site is None else ["--lab", str(self.lab.files.directory), "--site", site]
        done = subprocess.run(
            [sys.executable, "-m", "hostagent.cli", *where, *arguments, "--json"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=110,
            check=False,
        )
        said = f"replctl {' '.join(arguments)}: {done.stdout}{done.stderr}"
        assert done.returncode == code, said
        answer = json.loads(done.stdout or done.stderr)
        assert isinstance(answer, dict), said
        return answer

    def state(self, site: str) -> Facts:
        """The group as its storage subsystem knows it now; the agent's word may be a moment old."""
        path = self.lab.files.agent_socket(site).with_name("target.sock")
        with AgentClient(path) as client:
            return client.call("group.state", {"group": GROUP})

    def status(self, site: str) -> Facts:
        return self.ask(site, "pair.status")

    def mirror(self, site: str, mirror: str) -> Facts:
        """What a primary says of one mirror."""
        return next(one for one in self.status(site)["mirrors"] if one["site"] == mirror)

    # -- waiting --

    def wait(self, what: str, reached: Callable[[], bool], seconds: float = WAIT_SECONDS) -> None:
        """Until a state is there. A daemon that cannot be asked at the moment has not reached it."""
        deadline = time.monotonic() + seconds
        while True:
            with contextlib.suppress(PeerError):
                if reached():
                    return
            if time.monotonic() > deadline:
                raise AssertionError(f"{what} did not happen in {seconds:g} s\n{self.report()}")
            time.sleep(_POLL_SECONDS)

    def wait_status(self, primary: str, mirror: str, wanted: str, seconds: float = WAIT_SECONDS) -> None:
        """Until the primary says so of the mirror."""
        self.wait(
            f"{wanted} of {mirror} at {primary}",
            lambda: self.mirror(primary, mirror)["status"] == wanted,
            seconds,
        )

    def wait_link(self, site: str, peer: str) -> None:
        """Until the copy manager of a site has its link to a peer."""
        self.wait(
            f"the link of {site} to {peer}", lambda: self.mirror(site, peer)["link"]["management"] == "up"
        )

    def wait_serves(self, site: str) -> None:
        """Until a primary takes writes: after a start its role is confirmed first."""
        self.wait(f"{site} serving", lambda: self.status(site)["access"] == "serve")

    def wait_equal(self, primary: str, mirror: str, seconds: float = WAIT_SECONDS) -> None:
        """Nothing is written: until the pair is in PAIR and the mirror has restored all there is."""
        head = self.state(primary)["latest"]

        def reached() -> bool:
            paired = bool(self.mirror(primary, mirror)["status"] == "PAIR")
            return paired and int(self.state(mirror)["restored"]) >= head

        self.wait(f"{mirror} having restored record {head} of {primary}", reached, seconds)

    def wait_restored_all_received(self, site: str) -> int:
        """The journal does not come any more: until this secondary stands still; its last record."""
        last = -1

        def reached() -> bool:
            nonlocal last
            state = self.state(site)
            before, last = last, state["latest"]
            return before == last == state["durable"] == state["restored"] and bool(state["consistent"])

        self.wait(f"restoring all that {site} received", reached)
        return last

    def report(self) -> str:
        """How everything stands, for a test that failed."""
        parts = []
        for site in self.sites:
            try:
                parts.append(f"--- {site}: {json.dumps(self.ask(site, 'group.status', 5.0))}")
            except Exception as error:
                parts.append(f"--- {site}: {error}")
        for site in self.sites:
            for log in (self.lab.files.log(daemon, site) for daemon in ("target", "hostagent")):
                if log.exists():
                    lines = log.read_text(errors="replace").splitlines()[-_LOG_LINES:]
                    parts.append("\n".join([f"--- {site}/{log.name}", *lines]))
        return "\n".join(parts)

    # -- pairs --

    def pair(self, primary: str, mirror: str) -> None:
        """Create a pair and wait until it is one."""
        self.ask(primary, "pair.create", secondary=mirror)
        self.wait_status(primary, mirror, "PAIR")

    def create_marker(self, site: str, name: str) -> int:
        """Its sequence number."""
        return int(self.ask(site, "marker.create", name=name)["sequence"])

    # -- hosts --

    def url(self, site: str, volume: str) -> str:
        iscsi = self.describe(site)["iscsi"]
        return f"iscsi://{iscsi['portals'][0]}/{iscsi['target']}/{iscsi['luns'][volume]}"

    def connect(self, site: str, volume: str, timeout_seconds: float = 30.0) -> Client:
        """An iSCSI session."""
        return Client.connect(self.url(site, volume), timeout_seconds=timeout_seconds)

    def content(self, site: str) -> dict[str, bytes]:
        """What a host reads there."""
        content = {}
        for volume, count in self.blocks.items():
            with self.connect(site, volume) as client:
                content[volume] = client.read(0, count)
        return content

    def up_and_read(self, site: str) -> dict[str, bytes]:
        """Start what does not run, and read the site's volumes the moment it answers.

        That is before its journal is applied to them: it is the recovered overlay that speaks.
        """
        starting = threading.Thread(target=self.up)
        starting.start()
        try:
            deadline = time.monotonic() + WAIT_SECONDS
            while True:
                try:
                    return self.content(site)
                except PeerError:
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(_CONNECT_SECONDS)
        finally:
            starting.join()

    def files(self, site: str) -> dict[str, bytes]:
        """What lies in the volumes' files: the hosts' blocks and nothing else, once a site was stopped."""
        return {name: Path(path).read_bytes() for name, path in self.describe(site)["volumes"].items()}

    # -- faults --

    def kill(self, site: str, daemon: str | None = None) -> None:
        """SIGKILL. The machine goes on: what was written to files is still in its page cache."""
        killed = self.lab.kill(site, daemon)["killed"]
        assert killed, f"{daemon or 'no daemon'} of {site} was there to be killed\n{self.report()}"

    def cut(self, *kinds: str) -> None:
        self.lab.cut("a", "b", kinds or ("management", "san"))

    def join(self, *kinds: str) -> None:
        self.lab.join("a", "b", kinds or ("management", "san"))

    def down(self) -> None:
        """Stop every process of the lab."""
        self.lab.down()


@contextlib.contextmanager
def running(
    directory: Path,
    *,
    sites: int = 2,
    volumes: Mapping[str, int] = VOLUMES,
    journal: str = "192MiB",
    chap: bool = False,
) -> Iterator[SiteLab]:
    """A lab that is up, and that is gone afterwards whatever happens."""
    lab = SiteLab(directory, sites=sites, volumes=volumes, journal=journal, chap=chap)
    try:
        lab.up()
        yield lab
    finally:
        lab.down()


def rounds(default: int) -> int:
    """How often a random scenario is repeated: SCENARIO_ROUNDS, or what CI has time for."""
    return int(os.environ.get("SCENARIO_ROUNDS", default))


def seed() -> int:
    """SCENARIO_SEED repeats a failure; a test prints it when it fails."""
    given = os.environ.get("SCENARIO_SEED")
    return int(given) if given is not None else int.from_bytes(os.urandom(4), "little")


def cut_seconds(default: float) -> float:
    """How long a link stays cut under load: SCENARIO_CUT_SECONDS=60 for the full minute."""
    return float(os.environ.get("SCENARIO_CUT_SECONDS", default))
