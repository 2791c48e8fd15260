"""Bad input: a configuration error names file, key and reason; garbage ends its own connection only."""

from __future__ import annotations

import json
import os
import random
import re
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from target.errors import PeerError
from target.iscsi.address import parse_address
from target.iscsi.chap import ChapCredentials
from target.iscsi.client import Client
from tests.scenarios.history import History
from tests.scenarios.load import Load
from tests.scenarios.site_lab import SiteLab, running

SECONDS = 20.0


# Configuration


def run_daemon(module: str, config: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", module, "--config", str(config)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> SiteLab:
    """The files of a lab that was never started."""
    return SiteLab(tmp_path_factory.mktemp("stopped"))


@dataclass(frozen=True)
class Mistake:
    """Replace `old` (a pattern) in site.toml; `named`: what the message must name beside the file."""

    module: str
    old: str
    new: str
    named: tuple[str, ...]


MISTAKES = {
    "not TOML": Mistake("target", r"\[site\]", "[site", ("line 1",)),
    "unknown key": Mistake("target", r"lun = 0", "lum = 0", ("lum",)),
    "missing key": Mistake("target", r"journal_size = \d+\n", "", ("journal_size",)),
    "wrong type": Mistake("target", r"lun = 1\n", 'lun = "one"\n', ("lun", "int")),
    "bad size": Mistake(
        "target", r"journal_size = \d+", 'journal_size = "12 parsecs"', ("journal_size", "12 parsecs")
    ),
    "small journal": Mistake(
        "target", r"journal_size = \d+", 'journal_size = "8MiB"', ("journal_size", "at least 48MiB")
    ),
    "LUN twice": Mistake("target", r"lun = 1\n", "lun = 0\n", ("lun", "0", "twice")),
    "bad address": Mistake("target", r'portals = \[".*"\]', 'portals = ["nowhere"]', ("portals", "nowhere")),
    "foreign address": Mistake(
        "target", r'portals = \[".*"\]', 'portals = ["192.0.2.1:3260"]', ("192.0.2.1:3260",)
    ),
    "no such file": Mistake(
        "hostagent", r'identity_file = ".*"', 'identity_file = "nobody"', ("identity_file", "nobody")
    ),
    "no host key": Mistake("hostagent", r'host_key = "ssh-ed25519 .*"', 'host_key = "hello"', ("host_key",)),
    "bad policy": Mistake(
        "hostagent", r"\[hostagent\]\n", '[hostagent]\nno_peer_policy = "pray"\n', ("no_peer_policy", "pray")
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_in_the_configuration_is_named(stopped: SiteLab, name: str) -> None:
    mistake = MISTAKES[name]
    good = stopped.lab.files.config("a")
    bad = good.with_name("bad.toml")
    text, count = re.subn(mistake.old, mistake.new, good.read_text(), count=1)
    assert count == 1, "the mistake was made"
    bad.write_text(text)
    done = run_daemon(mistake.module, bad)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    for word in (str(bad), *mistake.named):
        assert word in done.stderr


def test_a_configuration_that_is_not_there_is_named(tmp_path: Path) -> None:
    for module in ("target", "hostagent"):
        done = run_daemon(module, tmp_path / "site.toml")
        assert done.returncode == 2
        assert str(tmp_path / "site.toml") in done.stderr
        assert "Traceback" not in done.stderr


def test_volumes_that_changed_behind_their_journal_are_named(tmp_path: Path) -> None:
    with running(tmp_path / "lab", sites=1) as lab:
        pass
    config = lab.lab.files.config("a")
    config.write_text(config.read_text().replace('name = "log"', 'name = "diary"'))
    done = run_daemon("target", config)
    assert done.returncode == 2
    for word in (str(config), "group1", "data, log", "data, diary"):
        assert word in done.stderr


# Garbage


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SiteLab]:
    with running(tmp_path_factory.mktemp("served")) as lab:
        lab.pair("a", "b")
        yield lab


def login_request(
    data: bytes, *, length: int | None = None, opcode: int = 0x43, csg_nsg: int = 0x87
) -> bytes:
    """A login request (RFC 7143 11.12), security negotiation, with any data segment length."""
    size = len(data) if length is None else length
    header = struct.pack(
        ">BBBBI6sHIHHII16s", opcode, csg_nsg, 0, 0, size, b"\x80\1\2\3\0\0", 0, 1, 0, 0, 1, 0, bytes(16)
    )
    return header + data + bytes(-len(data) % 4)


NAMES = b"InitiatorName=iqn.2024-01.example:x\0SessionType=Discovery\0AuthMethod=None\0"
CHANCE = random.Random(0xBAD)

ISCSI_GARBAGE = {
    "random bytes": CHANCE.randbytes(5000),
    "zeros": bytes(4096),
    "HTTP": b"GET / HTTP/1.1\r\nHost: example\r\n\r\n" * 10,
    "half a header": login_request(NAMES)[:20],
    "half the data": login_request(NAMES)[:-30],
    "a huge data segment": login_request(b"", length=0xFFFFFF) + CHANCE.randbytes(1 << 20),
    "a command without login": login_request(b"", opcode=0x01),
    "a text without login": login_request(b"SendTargets=All\0", opcode=0x44),
    "no pairs": login_request(b"\0\0=\0==\0=x\0" * 20),
    "no text": login_request(CHANCE.randbytes(400)),
    "an endless login": login_request(NAMES, csg_nsg=0x00) * 500,
    "a wrong stage": login_request(NAMES, csg_nsg=0x9F),
}
LINE_GARBAGE = {
    "random bytes": CHANCE.randbytes(5000) + b"\n",
    "no object": b"[1, 2, 3]\n",
    "no JSON": b"ping\n",
    "an endless line": b"x" * (9 << 20),
    "deep nesting": b"[" * 200_000 + b"\n",
    "no text": b'{"id": 1, "op": "\xff\xfe"}\n',
}
SSH_GARBAGE = {
    "random bytes": CHANCE.randbytes(5000),
    "an endless line": b"x" * (1 << 20),
    "half a banner": b"SSH-2.",
    "an old version": b"SSH-1.5-old\r\n",
    "garbage behind the banner": b"SSH-2.0-replctl\r\n" + CHANCE.randbytes(4000),
    "a huge packet": b"SSH-2.0-replctl\r\n" + b"\xff\xff\xff\xff" + CHANCE.randbytes(4000),
}


@pytest.fixture(scope="module")
def unfinished(served: SiteLab) -> Iterator[list[socket.socket]]:
    """Logins of which nothing more comes, begun early: the wait for their end is spent on the other tests."""
    addresses = served.describe("a")["iscsi"]["portals"][0], served.describe("a")["agent"]["ssh"]
    connections = [tcp(address) for address in addresses]
    send(connections[0], login_request(NAMES)[:48], more=True)
    yield connections
    for connection in connections:
        connection.close()


class Bystanders:
    """Conversations that go on while somebody else sends garbage."""

    def __init__(self, lab: SiteLab) -> None:
        self._lab = lab
        self._pids = {site: lab.describe(site)["pids"] for site in lab.sites}
        self._client = lab.connect("a", "data")
        self._fetched_by = lab.ask("b", "group.status")["fetch"]

    def check(self) -> None:
        """All are there still, and the pair did not break."""
        self._client.write(3, b"w" * 512)
        assert self._client.read(3, 1) == b"w" * 512
        self._client.flush()
        assert {site: self._lab.describe(site)["pids"] for site in self._lab.sites} == self._pids
        for site in self._lab.sites:
            for daemon, pid in self._pids[site].items():
                os.kill(pid, 0)
                assert "Traceback" not in self._lab.lab.files.log(daemon, site).read_text()
        mirror = self._lab.mirror("a", "b")
        assert mirror["status"] == "PAIR"
        assert mirror["link"] == {"management": "up", "san": "reading"}
        fetch = self._lab.ask("b", "group.status")["fetch"]
        assert fetch["bytes_read"] >= self._fetched_by["bytes_read"], "the same transfer goes on"

    def close(self) -> None:
        self._client.close()


@pytest.fixture
def bystanders(served: SiteLab) -> Iterator[Bystanders]:
    them = Bystanders(served)
    yield them
    them.check()
    them.close()


def is_closed_by_the_other_side(connection: socket.socket) -> bool:
    """Whatever it answers, it ends."""
    connection.settimeout(SECONDS)
    try:
        while connection.recv(1 << 16):
            pass
    except ConnectionError:
        pass
    except TimeoutError:
        return False
    return True


def send(connection: socket.socket, garbage: bytes, *, more: bool) -> None:
    """The other side may close in the middle of it."""
    connection.settimeout(SECONDS)
    try:
        connection.sendall(garbage)
        if not more:
            connection.shutdown(socket.SHUT_WR)
    except OSError:
        pass


def tcp(address: str) -> socket.socket:
    return socket.create_connection(parse_address(address), SECONDS)


def unix(path: str | Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(str(path))
    return connection


def everybody_at_once(connect: Callable[[], socket.socket], garbage: bytes) -> None:
    """Several senders, which say nothing more; one more that hangs up in the middle."""
    connections = [connect() for _ in range(5)]
    for connection in connections:
        send(connection, garbage, more=False)
    with connect() as rude:
        send(rude, garbage[: len(garbage) // 2], more=True)
        rude.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    for connection in connections:
        with connection:
            assert is_closed_by_the_other_side(connection)


@pytest.mark.usefixtures("unfinished")
@pytest.mark.parametrize("portal", ["iscsi", "san"])
@pytest.mark.parametrize("name", ISCSI_GARBAGE)
def test_garbage_on_an_iscsi_port(served: SiteLab, bystanders: Bystanders, portal: str, name: str) -> None:
    site = served.describe("a")
    address = site["san"]["portal"] if portal == "san" else site["iscsi"]["portals"][0]
    everybody_at_once(lambda: tcp(address), ISCSI_GARBAGE[name])


@pytest.mark.parametrize("name", SSH_GARBAGE)
def test_garbage_on_the_ssh_port(served: SiteLab, bystanders: Bystanders, name: str) -> None:
    address = served.describe("a")["agent"]["ssh"]
    everybody_at_once(lambda: tcp(address), SSH_GARBAGE[name])


@pytest.mark.parametrize("which", ["agent", "control"])
@pytest.mark.parametrize("name", LINE_GARBAGE)
def test_garbage_on_a_socket_of_a_site(
    served: SiteLab, bystanders: Bystanders, which: str, name: str
) -> None:
    agent = Path(served.describe("a")["agent"]["socket"])
    path = agent if which == "agent" else agent.with_name("target.sock")
    everybody_at_once(lambda: unix(path), LINE_GARBAGE[name])


@pytest.mark.parametrize("which", ["agent", "control"])
def test_a_request_that_makes_no_sense_is_answered(
    served: SiteLab, bystanders: Bystanders, which: str
) -> None:
    """It has the form of one: the answer is an error, and the conversation goes on."""
    agent = Path(served.describe("a")["agent"]["socket"])
    path = agent if which == "agent" else agent.with_name("target.sock")
    requests: list[dict[str, object]] = [
        {"id": 1, "op": "no such thing", "params": {}},
        {"id": 2, "op": "marker.create", "params": {"group": "group1", "name": ""}},
        {"id": 3, "op": "marker.create", "params": {"group": 7}},
        {"id": 4, "op": "marker.list", "params": {"group": "group9"}},
        {"id": 5, "op": "marker.list", "params": {}},
    ]
    with unix(path) as connection:
        connection.settimeout(SECONDS)
        lines = connection.makefile("rb")
        for request in requests:
            connection.sendall(json.dumps(request).encode() + b"\n")
            answer = next(message for message in map(json.loads, lines) if message.get("id") == request["id"])
            assert answer["error"]["kind"] == "operator", answer
            assert answer["error"]["message"]


def test_a_login_that_is_never_finished_is_ended(
    unfinished: list[socket.socket], bystanders: Bystanders
) -> None:
    """Nothing more comes, and nobody hangs up: the portal does, after a while."""
    assert all(map(is_closed_by_the_other_side, unfinished))


def test_a_stranger_reads_no_journal(served: SiteLab, bystanders: Bystanders) -> None:
    """The SAN portal is for the peers' subsystems: any other initiator is refused at login."""
    san = served.describe("a")["san"]
    url = f"iscsi://{san['portal']}/{san['target']}/0"
    with pytest.raises(PeerError, match="does not admit"):
        Client.connect(url, timeout_seconds=SECONDS)
    peer = served.describe("b")["iscsi"]["target"]
    with Client.connect(url, initiator_name=peer, timeout_seconds=SECONDS) as client:
        assert client.read(0, 1).startswith(b"REPLJRNL")
        with pytest.raises(PeerError, match="DATA PROTECT"):
            client.write(0, bytes(512))


def test_after_all_that_both_sites_are_equal(served: SiteLab) -> None:
    history = History(served.blocks)
    with Load(served, "a", history, seed=1) as load:
        load.wait_acknowledged(100)
    served.wait_equal("a", "b")
    assert served.content("a") == served.content("b")


# CHAP


def test_with_chap_only_who_knows_the_secret_comes_in(tmp_path: Path) -> None:
    with running(tmp_path / "lab", chap=True) as lab:
        lab.pair("a", "b")
        chap = lab.describe("a")["iscsi"]["chap"]
        secret = Path(chap["secret_file"]).read_text().strip()
        url = lab.url("a", "data")
        with Client.connect(url, chap=ChapCredentials(chap["user"], secret)) as client:
            client.write(0, b"c" * 512)
            assert client.read(0, 1) == b"c" * 512
        strangers: list[ChapCredentials | None] = [
            None,
            ChapCredentials(chap["user"], "not-the-secret-1"),
            ChapCredentials("somebody", secret),
        ]
        for credentials in strangers:
            with pytest.raises(PeerError, match=r"[Aa]uthentication"):
                Client.connect(url, chap=credentials, timeout_seconds=SECONDS)
        lab.replctl(
            None, "lun", "capacity", url, "--user", chap["user"], "--secret-file", chap["secret_file"]
        )
        lab.wait_equal("a", "b")
