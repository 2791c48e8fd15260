"""The lab: sites come up, go down, die and lose their links as a person asks. Its daemons are stand-ins."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

import hostagent.lab.lab
from hostagent.agent_socket import AgentClient
from hostagent.lab.daemon import Daemon, ProcessId
from hostagent.lab.lab import Lab
from target.errors import OperatorError, PeerError

WAIT_SECONDS = 20.0


@pytest.fixture(autouse=True)
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    modules = {name: f"tests.e2e.stand_in_{name}" for name in ("target", "hostagent")}
    monkeypatch.setattr(hostagent.lab.lab, "_MODULES", modules)


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "lab"
    yield path
    if (path / "plan.json").exists():
        Lab.open(path).down()


def lab_json(directory: Path) -> Any:
    return json.loads((directory / "lab.json").read_text())["sites"]


def links_up(lab: Lab, site: str) -> dict[str, bool]:
    with AgentClient(lab.files.agent_socket(site)) as client:
        up: dict[str, bool] = client.call("up", {})["up"]
        return up


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_up_is_served_when_it_returns_and_again_changes_nothing(directory: Path) -> None:
    lab = Lab.create_or_open(directory)
    first = lab.up()
    assert first["changed"]
    assert first["sites"]["b"] == {"target": "started", "hostagent": "started"}
    pids = [lab_json(directory)[site]["pids"] for site in "ab"]
    with AgentClient(lab.files.agent_socket("a")) as client:
        assert client.call("ping", {}) == {"ready": True}
    second = Lab.create_or_open(directory).up()
    assert not second["changed"]
    assert second["wire"] == "unchanged"
    assert second["sites"]["a"] == {"target": "unchanged", "hostagent": "unchanged"}
    assert [lab_json(directory)[site]["pids"] for site in "ab"] == pids


def test_lab_json_says_all_that_a_client_needs(directory: Path) -> None:
    Lab.create_or_open(directory, sites=3, volumes="db=1MiB,wal=512KiB", journal="48MiB", chap=True).up()
    sites = lab_json(directory)
    assert list(sites) == ["a", "b", "c"]
    b = sites["b"]
    assert b["iscsi"]["luns"] == {"db": 0, "wal": 1}
    assert b["iscsi"]["target"] == "iqn.2026-01.org.replctl:b"
    assert [portal.partition(":")[0] for portal in b["iscsi"]["portals"]] == ["127.0.0.3"]
    assert b["iscsi"]["chap"]["user"] == "host"
    secret = Path(b["iscsi"]["chap"]["secret_file"])
    assert len(secret.read_text().strip()) >= 12
    assert secret.stat().st_mode & 0o077 == 0
    assert b["san"]["portal"].startswith("127.0.0.4:")
    assert b["san"]["luns"] == {"group1": 0}
    assert b["agent"]["ssh"].startswith("127.0.0.3:")
    assert b["agent"]["host_key"].startswith("ssh-ed25519 AAAA")
    assert Path(b["agent"]["socket"]).is_socket()
    for daemon in ("target", "hostagent"):
        os.kill(b["pids"][daemon], 0)
        assert Path(b["logs"][daemon]).is_file()
        assert Path(b["configs"][daemon]).is_file()
    assert list(b["volumes"]) == ["db", "wal"]
    assert list(b["journals"]) == ["group1"]
    with socket.create_connection(address(b["iscsi"]["portals"][0]), WAIT_SECONDS):
        pass


def test_every_site_reaches_every_other(directory: Path) -> None:
    lab = Lab.create_or_open(directory, sites=3)
    lab.up()
    for site in "abc":
        wait_for(lambda site=site: all(links_up(lab, site).values()))  # type: ignore[misc]


def test_down_stops_all_and_up_resumes_on_the_same_addresses(directory: Path) -> None:
    lab = Lab.create_or_open(directory)
    lab.up()
    before = lab_json(directory)
    assert lab.down()["changed"]
    assert lab_json(directory)["a"]["pids"] == {"target": None, "hostagent": None}
    for site in before.values():
        for pid in site["pids"].values():
            assert not Path(f"/proc/{pid}").exists()
    assert not lab.down()["changed"]
    lab.up()
    after = lab_json(directory)
    for site in "ab":
        assert before[site].pop("pids") != after[site].pop("pids")
    assert before == after


def test_kill_takes_what_was_named_and_up_brings_it_back(directory: Path) -> None:
    lab = Lab.create_or_open(directory)
    lab.up()
    assert lab.kill("a", "target") == {"site": "a", "changed": True, "killed": ["target"]}
    assert lab.status()["sites"]["a"]["pids"]["target"] is None
    assert lab.status()["sites"]["b"]["ready"]
    assert lab.kill("a")["killed"] == ["hostagent"]
    again = lab.up()
    assert again["sites"]["a"] == {"target": "started", "hostagent": "started"}
    assert again["sites"]["b"] == {"target": "unchanged", "hostagent": "unchanged"}


@pytest.mark.parametrize(
    ("site", "daemon", "reason"), [("d", None, "no site d"), ("a", "targt", "mean target")]
)
def test_kill_refuses_what_is_not_there(directory: Path, site: str, daemon: str | None, reason: str) -> None:
    lab = Lab.create_or_open(directory)
    with pytest.raises(OperatorError, match=reason):
        lab.kill(site, daemon)


def address(text: str) -> tuple[str, int]:
    host, _, port = text.partition(":")
    return host, int(port)


def san_link(lab: Lab, source: str, destination: str) -> tuple[str, int]:
    return address(lab.plan.link(source, destination, "san").listen)


def test_a_cut_link_is_silent_and_a_joined_one_serves_again(directory: Path) -> None:
    lab = Lab.create_or_open(directory)
    lab.up()
    old = socket.create_connection(san_link(lab, "a", "b"), WAIT_SECONDS)
    old.settimeout(WAIT_SECONDS)
    old.sendall(b"one")
    assert old.recv(10) == b"one"
    assert lab.cut("a", "b", ["san"])["changed"]
    assert not lab.cut("b", "a", ["san"])["changed"]
    old.sendall(b"two")
    with socket.create_connection(san_link(lab, "b", "a"), WAIT_SECONDS) as new:
        new.sendall(b"three")
        for silent in (old, new):
            silent.settimeout(0.3)
            with pytest.raises(TimeoutError):
                silent.recv(10)
        assert lab.join("a", "b", ["san"])["changed"]
        new.settimeout(WAIT_SECONDS)
        assert new.recv(10) == b"three"
    old.settimeout(WAIT_SECONDS)
    with contextlib.suppress(ConnectionResetError):
        assert old.recv(10) == b""
    old.close()


def test_the_links_of_the_two_kinds_are_cut_apart(directory: Path) -> None:
    lab = Lab.create_or_open(directory)
    lab.up()
    wait_for(lambda: links_up(lab, "a")["b"] and links_up(lab, "b")["a"])
    lab.cut("a", "b", ["san"])
    lab.cut("a", "b", ["management"])
    lab.join("a", "b", ["san"])
    wait_for(lambda: not links_up(lab, "a")["b"] and not links_up(lab, "b")["a"])
    with socket.create_connection(san_link(lab, "a", "b"), WAIT_SECONDS) as san:
        san.settimeout(WAIT_SECONDS)
        san.sendall(b"carried")
        assert san.recv(10) == b"carried"
    links = lab.status()["wire"]["links"]
    assert {name: link["cut"] for name, link in links.items()} == {
        "a-b.management": True,
        "b-a.management": True,
        "a-b.san": False,
        "b-a.san": False,
    }
    lab.join("a", "b")
    wait_for(lambda: links_up(lab, "a")["b"] and links_up(lab, "b")["a"])


def test_the_wire_carries_much_both_ways_and_tells_the_end(directory: Path) -> None:
    lab = Lab.create_or_open(directory)
    lab.up()
    data = os.urandom(1 << 20) * 8
    with socket.create_connection(san_link(lab, "a", "b"), WAIT_SECONDS) as link:
        link.settimeout(WAIT_SECONDS)
        sender = threading.Thread(target=link.sendall, args=(data,))  # the echo fills both directions at once
        sender.start()
        received = bytearray()
        while len(received) < len(data):
            received += link.recv(1 << 20)
        sender.join()
        link.shutdown(socket.SHUT_WR)
        assert link.recv(10) == b""
    assert received == data


def test_a_dead_wire_is_restarted(directory: Path) -> None:
    lab = Lab.create_or_open(directory)
    lab.up()
    os.kill(lab.status()["wire"]["pid"], signal.SIGKILL)
    wait_for(lambda: lab.status()["wire"]["pid"] is None)
    assert lab.up()["wire"] == "started"
    wait_for(lambda: links_up(lab, "a")["b"])


def test_a_link_to_a_dead_site_is_closed_not_left_open(directory: Path) -> None:
    lab = Lab.create_or_open(directory)
    lab.up()
    lab.kill("b", "target")
    with socket.create_connection(san_link(lab, "a", "b"), WAIT_SECONDS) as link:
        link.settimeout(WAIT_SECONDS)
        assert link.recv(10) == b""


def test_a_daemon_that_cannot_start_is_reported_with_its_log(directory: Path) -> None:
    lab = Lab.create_or_open(directory)
    config = lab.files.config("b")
    config.write_text(config.read_text().replace("journal_size", "jornal_size"))
    with pytest.raises(
        OperatorError, match=r"target of site b ended at once[\s\S]*did you mean journal_size"
    ):
        lab.up()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"sites": 0}, "--sites 0"),
        ({"sites": 21}, "--sites 21"),
        ({"volumes": "data"}, '"name=size"'),
        ({"volumes": "data=1MiB,data=1MiB"}, "given twice"),
        ({"volumes": "data=1000"}, "multiple of 4096"),
        ({"volumes": "../x=1MiB"}, "not a name"),
        ({"journal": "1MiB"}, "--journal"),
        ({"port": 70000}, "--port"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_made(
    directory: Path, options: dict[str, Any], reason: str
) -> None:
    with pytest.raises(OperatorError, match=reason):
        Lab.create_or_open(directory, **options)
    assert not (directory / "plan.json").exists()


def test_another_shape_than_the_labs_own_is_refused(directory: Path) -> None:
    Lab.create_or_open(directory, sites=1, journal="48MiB")
    assert len(Lab.create_or_open(directory, journal="49152KiB").plan.sites) == 1
    for options in ({"sites": 2}, {"journal": "64MiB"}, {"volumes": "x=1MiB"}, {"chap": True}):
        with pytest.raises(OperatorError, match="that does not change"):
            Lab.create_or_open(directory, **options)


def test_a_given_port_is_used(directory: Path) -> None:
    # Below those that the kernel gives to whoever asks for any: the next few are taken, too.
    first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    port = random.randrange(first // 2, first - 100)
    lab = Lab.create_or_open(directory, port=port)
    assert lab.plan.site("b").iscsi == f"127.0.0.3:{port}"
    assert lab.plan.site("b").san == f"127.0.0.4:{port}"


def test_a_directory_without_a_lab_is_named(tmp_path: Path) -> None:
    with pytest.raises(OperatorError, match="holds no lab"):
        Lab.open(tmp_path)


def test_a_reused_pid_is_never_signalled(tmp_path: Path) -> None:
    bystander = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    daemon = Daemon("x", "x", [], tmp_path / "x.pid", tmp_path / "x.log")
    stat = Path(f"/proc/{bystander.pid}/stat").read_text().rpartition(")")[2].split()
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    try:
        for known, is_it in [
            (ProcessId(bystander.pid, int(stat[19]), boot_id), True),
            (ProcessId(bystander.pid, int(stat[19]) - 1, boot_id), False),
            (ProcessId(bystander.pid, int(stat[19]), "another boot"), False),
        ]:
            (tmp_path / "x.pid").write_bytes(msgspec.json.encode(known))
            assert daemon.pid() == (bystander.pid if is_it else None)
            if not is_it:
                assert not daemon.signal(signal.SIGKILL)
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.communicate()


def test_a_site_that_does_not_answer_is_no_site_that_serves(directory: Path) -> None:
    lab = Lab.create_or_open(directory)
    with pytest.raises(PeerError, match="is not running"):
        AgentClient(lab.files.agent_socket("a"))
    assert lab.status()["sites"]["a"] == {"pids": {"target": None, "hostagent": None}, "ready": False}
