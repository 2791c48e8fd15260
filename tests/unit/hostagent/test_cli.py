"""`replctl` against an agent whose answers are scripted: what is asked, what is shown, how it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from hostagent.agent_socket import AgentSocketServer
from hostagent.cli.app import run
from hostagent.lab.lab import Lab
from hostagent.rpc import Params, Reply
from target.errors import ConflictError, IntegrityError, OperatorError, PeerError, ReplctlError

Answer = dict[str, Any] | ReplctlError


class Agent:
    """Answers each operation with what was scripted, the last answer again and again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.asked: list[tuple[str, Params]] = []
        self.answers: dict[str, list[Answer]] = {}
        self.server = AgentSocketServer(path, self.handle)

    def script(self, op: str, *answers: Answer) -> None:
        self.answers[op] = list(answers)

    def handle(self, _peer: str, op: str, params: Params, reply: Reply) -> None:
        self.asked.append((op, params))
        answers = self.answers[op]
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if isinstance(answer, ReplctlError):
            raise answer
        reply(answer)


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Agent]:
    it = Agent(tmp_path / "agent.sock")
    yield it
    it.server.close()


class Ended:
    """How a command line ended."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code = code
        self.out = out
        self.err = err

    def json(self) -> Any:
        return json.loads(self.out)


Replctl = Callable[..., Ended]


@pytest.fixture
def replctl(
    agent: Agent, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Replctl]:
    def called(*words: str, site: tuple[str, ...] = ("--socket", str(agent.path))) -> Ended:
        monkeypatch.setattr(sys, "argv", ["replctl", *site, *words])
        with pytest.raises(SystemExit) as ended:
            run()
        out, err = capsys.readouterr()
        return Ended(int(ended.value.code or 0), out, err)

    before = signal.getsignal(signal.SIGINT)
    yield called
    signal.signal(signal.SIGINT, before)


def mirror(site: str, status: str, position: int = 0, **more: Any) -> dict[str, Any]:
    names = ("latest", "durable", "shipped", "received", "restored", "verified")
    sequence = dict.fromkeys(names, position)
    fields = {"lag_seconds": 0.5, "sequence": sequence, "differential_bytes": 0, "copy": None, "verify": None}
    return {"site": site, "status": status, **fields, **more}


def pair_status(*mirrors: dict[str, Any]) -> dict[str, Any]:
    return {"group": "group1", "role": "primary", "status": "PAIR", "epoch": 3, "mirrors": list(mirrors)}


def test_status_is_passed_on_as_it_is(agent: Agent, replctl: Replctl) -> None:
    agent.script("pair.status", pair_status(mirror("b", "PAIR", 7)))
    ended = replctl("pair", "status", "group1", "--json")
    assert (ended.code, ended.json()) == (0, pair_status(mirror("b", "PAIR", 7)))
    assert agent.asked == [("pair.status", {"group": "group1"})]


def test_status_for_people_names_state_and_positions(agent: Agent, replctl: Replctl) -> None:
    copy = {"phase": "copy", "done_bytes": 1 << 20, "total_bytes": 4 << 20}
    agent.script("pair.status", pair_status(mirror("b", "COPY", 7, copy=copy, differential_bytes=3 << 20)))
    ended = replctl("pair", "status", "group1")
    assert ended.code == 0
    assert "group group1: primary, PAIR, epoch 3" in ended.out
    for word in ("b", "COPY", "7", "3.0 MiB", "copy 25 % of 4.0 MiB"):
        assert word in ended.out


def test_status_says_what_is_out_of_the_ordinary(agent: Agent, replctl: Replctl) -> None:
    broken = mirror("b", "PAIR", 7, link={"management": "up", "san": "down"})
    split = mirror("c", "PSUS", 7, link={"management": "up", "san": "down"}, reason="split by an operator")
    agent.script("pair.status", pair_status(broken, split))
    lines = replctl("pair", "status", "group1").out.splitlines()
    assert lines[-2:] == ["b: SAN link down", "c: split by an operator"]


def test_status_of_a_superseded_site_says_by_whom(agent: Agent, replctl: Replctl) -> None:
    superseded = {"role": "superseded", "status": "PSUE", "reason": "superseded by b in epoch 4"}
    agent.script("pair.status", {**pair_status(mirror("b", "PSUE", 7)), **superseded})
    lines = replctl("pair", "status", "group1").out.splitlines()
    assert lines[:2] == ["group group1: superseded, PSUE, epoch 3", "superseded by b in epoch 4"]


def test_a_line_of_a_table_ends_with_its_last_word(agent: Agent, replctl: Replctl) -> None:
    agent.script("pair.status", pair_status(mirror("b", "PAIR", 7), mirror("c", "COPY", 7)))
    out = replctl("pair", "status", "group1").out
    assert out.splitlines()
    assert all(line == line.rstrip() for line in out.splitlines())


def test_a_simplex_group_is_told_how_a_pair_is_made(agent: Agent, replctl: Replctl) -> None:
    agent.script("pair.status", {**pair_status(), "role": "simplex", "status": "SMPL"})
    assert "pair create group1 --secondary SITE" in replctl("pair", "status", "group1").out


def test_a_secondary_that_was_not_told_of_the_end_is_named(agent: Agent, replctl: Replctl) -> None:
    agent.script("pair.delete", {"changed": True, "peer_told": False})
    assert "pair delete group1 there too" in replctl("pair", "delete", "group1").out


def test_create_without_wait_asks_once(agent: Agent, replctl: Replctl) -> None:
    agent.script("pair.create", {"changed": True})
    assert replctl("pair", "create", "group1", "--secondary", "b", "--json").json() == {"changed": True}
    assert agent.asked == [("pair.create", {"group": "group1", "secondary": "b"})]


@pytest.mark.parametrize(
    ("verb", "states"),
    [
        ("create", ["SMPL", "COPY", "COPY", "PAIR"]),
        ("resync", ["PSUE", "COPY", "PAIR"]),
        ("split", ["PAIR", "PSUS"]),
        ("delete", ["PAIR", "SMPL"]),
    ],
)
def test_wait_goes_on_until_the_state_is_there(
    agent: Agent, replctl: Replctl, verb: str, states: list[str]
) -> None:
    agent.script(f"pair.{verb}", {"changed": True})
    agent.script("pair.status", *(pair_status(mirror("b", state), mirror("c", "COPY")) for state in states))
    ended = replctl("pair", verb, "group1", "--secondary", "b", "--wait", "--json")
    assert ended.code == 0
    assert ended.json()["pair"]["mirrors"][0]["status"] == states[-1]
    assert [op for op, _ in agent.asked] == [f"pair.{verb}"] + ["pair.status"] * len(states)


def test_wait_without_secondary_means_all_mirrors(agent: Agent, replctl: Replctl) -> None:
    agent.script("pair.resync", {"changed": True})
    agent.script(
        "pair.status",
        pair_status(mirror("b", "PAIR"), mirror("c", "COPY")),
        pair_status(mirror("b", "PAIR"), mirror("c", "PAIR")),
    )
    assert replctl("pair", "resync", "group1", "--wait").code == 0
    assert len(agent.asked) == 3
    assert agent.asked[0] == ("pair.resync", {"group": "group1", "secondary": None})


def test_a_wait_that_ends_in_an_error_state_fails(
    agent: Agent, replctl: Replctl, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hostagent.cli.waiting._FAILED_GRACE_SECONDS", 0.0)
    agent.script("pair.create", {"changed": True})
    agent.script("pair.status", pair_status(mirror("b", "COPY")), pair_status(mirror("b", "PSUE")))
    ended = replctl("pair", "create", "group1", "--secondary", "b", "--wait")
    assert ended.code == 3
    assert "the pair with b is in PSUE" in ended.err


def test_a_wait_that_takes_too_long_has_its_own_code(agent: Agent, replctl: Replctl) -> None:
    agent.script("pair.split", {"changed": True})
    agent.script("pair.status", pair_status(mirror("b", "PAIR")))
    ended = replctl("pair", "split", "group1", "--wait", "--timeout", "0.2", "--json")
    assert ended.code == 6
    assert "b is PAIR" in json.loads(ended.err)["error"]["message"]
    assert json.loads(ended.err)["error"]["exit_code"] == 6


def test_a_marker_is_waited_for_at_the_mirrors_in_pair_alone(agent: Agent, replctl: Replctl) -> None:
    agent.script("marker.create", {"name": "m", "sequence": 9})
    agent.script(
        "pair.status",
        pair_status(mirror("b", "PAIR", 8), mirror("c", "PSUE", 2)),
        pair_status(mirror("b", "PAIR", 9), mirror("c", "PSUE", 2)),
    )
    ended = replctl("marker", "create", "group1", "m", "--wait", "--json")
    assert ended.json() == {"name": "m", "sequence": 9, "restored_at": ["b"]}
    assert len(agent.asked) == 3


@pytest.mark.parametrize(("mismatches", "code"), [(0, 0), (2, 4)])
def test_verify_reports_what_differed(agent: Agent, replctl: Replctl, mismatches: int, code: int) -> None:
    agent.script("verify", {"sequence": 20})
    counts = {"extents": 64, "mismatches": mismatches, "repaired": mismatches}
    agent.script(
        "pair.status",
        pair_status(mirror("b", "PAIR", 19)),
        pair_status(mirror("b", "PAIR", 20, verify=counts)),
    )
    ended = replctl("verify", "group1", "--wait", "--json")
    assert ended.code == code
    assert ended.json() == {"sequence": 20, "mirrors": {"b": counts}}
    assert len(agent.asked) == 3


NIGHTLY = datetime(2026, 1, 2, 3, 4, 5).astimezone()

PLAN = {
    "group": "group1",
    "site": "b",
    "old_primary": "a",
    "old_primary_reachable": False,
    "old_primary_fenced": True,
    "mode": "forced",
    "last_restored_marker": {"name": "nightly", "sequence": 41, "time": NIGHTLY.timestamp()},
    "records_lost": None,
    "records_lost_at_least": 7,
    "seconds_lost": 1.25,
    "way_back": "resync from b with differences only",
    "refused": None,
}


def test_the_plan_of_a_takeover_is_shown_before_it(agent: Agent, replctl: Replctl) -> None:
    agent.script("takeover", PLAN)
    ended = replctl("takeover", "group1", "--plan")
    assert ended.code == 0
    marker = f"nightly (sequence 41, {NIGHTLY.isoformat(' ')})"
    for fact in ("forced", marker, "unknown, at least 7", "at most 1.25", "resync from b"):
        assert fact in ended.out
    assert agent.asked == [("takeover", {"group": "group1", "force": False, "plan": True})]


def test_a_plan_without_a_pair_says_only_why_it_is_refused(agent: Agent, replctl: Replctl) -> None:
    agent.script("takeover", {**PLAN, "old_primary": "", "refused": "group 'group1' is in no pair here"})
    ended = replctl("takeover", "group1", "--plan")
    assert "in no pair" in ended.out
    assert "way back" not in ended.out


def test_a_takeover_says_what_became_of_it(agent: Agent, replctl: Replctl) -> None:
    result = {"plan": PLAN, "changed": True, "group": "group1", "epoch": 4, "seconds": 0.5}
    agent.script("takeover", result)
    assert "done in 0.50 s: primary of group1 in epoch 4" in replctl("takeover", "group1", "--force").out
    assert replctl("takeover", "group1", "--force", "--json").json() == result
    agent.script("takeover", {**result, "changed": False})
    assert "unchanged" in replctl("takeover", "group1").out


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (OperatorError("wrong"), 2),
        (PeerError("gone"), 3),
        (IntegrityError("rotten"), 4),
        (ConflictError("two histories", fork=7), 5),
        (ReplctlError("bug"), 1),
    ],
)
def test_every_kind_of_error_has_its_code(
    agent: Agent, replctl: Replctl, error: ReplctlError, code: int
) -> None:
    agent.script("group.status", error)
    ended = replctl("group", "status", "group1")
    assert (ended.code, ended.out, ended.err) == (code, "", f"replctl: {error}\n")
    ended = replctl("group", "status", "group1", "--json")
    wire = json.loads(ended.err)["error"]
    assert (ended.code, wire["exit_code"], wire["message"]) == (code, code, str(error))
    assert wire["facts"] == ({"fork": 7} if code == 5 else {})


def test_without_an_agent_it_says_how_to_start_one(replctl: Replctl, tmp_path: Path) -> None:
    ended = replctl("pair", "status", "group1", site=("--socket", str(tmp_path / "none.sock")))
    assert ended.code == 3
    assert "start it" in ended.err


def test_in_a_lab_it_says_how_to_start_the_lab(agent: Agent, replctl: Replctl) -> None:
    lab = write_lab(agent)
    agent.server.close()
    ended = replctl("pair", "status", "group1", site=("--lab", lab, "--site", "a"))
    assert ended.code == 3
    assert f"replctl lab up --dir {lab}" in ended.err


def test_a_directory_that_cannot_be_made_is_no_traceback(replctl: Replctl, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    ended = replctl("lab", "up", "--dir", str(tmp_path / "file" / "lab"), site=())
    assert ended.code == 2
    assert ended.err == f"replctl: {tmp_path / 'file' / 'lab'}: Not a directory\n"


def test_the_version_is_the_packages(replctl: Replctl) -> None:
    assert replctl("--version", site=()).out == f"replctl {version('replctl')}\n"


def write_lab(agent: Agent) -> str:
    site = {"agent": {"socket": str(agent.path)}, "san": {"luns": {"group1": 0}}}
    (agent.path.parent / "lab.json").write_text(json.dumps({"sites": {"a": site, "b": site, "c": site}}))
    return str(agent.path.parent)


@pytest.mark.parametrize(
    ("site", "words", "reason"),
    [
        (("--lab", "{lab}", "--site", "d"), ("pair", "status", "group1"), "no site d; there are: a, b, c"),
        (
            ("--lab", "{lab}"),
            ("pair", "status", "group1"),
            "--site NAME is missing; the sites of this lab are: a, b, c",
        ),
        (
            ("--lab", "{lab}", "--site", "a"),
            ("pair", "status", "grop1"),
            "no group grop1; did you mean group1?",
        ),
        (
            ("--lab", "{lab}", "--site", "a"),
            ("pair", "create", "group1", "--secondary", "a"),
            "there are: b, c",
        ),
        (("--lab", "{lab}/none", "--site", "a"), ("pair", "status", "group1"), "holds no lab"),
        ((), ("pair", "status", "group1"), "say which site to ask"),
        (("--site", "a"), ("pair", "status", "group1"), "say which site to ask"),
        (("--socket", "x", "--config", "y"), ("pair", "status", "group1"), "say which site to ask"),
        (("--config", "/none/site.toml"), ("pair", "status", "group1"), "/none/site.toml: cannot be read"),
        ((), ("lab", "status"), "say which lab"),
        (("--lab", "{lab}"), ("lab", "status", "--dir", "/none"), "are two labs"),
        ((), ("lun", "read", "nonsense", "--blocks", "1"), "is not an iSCSI URL"),
        ((), ("lun", "capacity", "iscsi://127.0.0.1:1/iqn.x/0", "--user", "u"), "--secret-file"),
        ((), ("lun", "inquiry", "iscsi://127.0.0.1:1/iqn.x/0", "--page", "x"), "not a number"),
    ],
)
def test_a_mistake_is_told_before_anything_is_asked(
    agent: Agent, replctl: Replctl, site: tuple[str, ...], words: tuple[str, ...], reason: str
) -> None:
    lab = write_lab(agent)
    ended = replctl(*words, site=tuple(word.format(lab=lab) for word in site))
    assert ended.code == 2
    assert reason in ended.err
    assert agent.asked == []


def test_a_site_of_a_lab_is_asked_through_its_socket(agent: Agent, replctl: Replctl) -> None:
    marker = {"sequence": 5, "time_ns": int(NIGHTLY.timestamp() * 1e9), "name": "m", "kind": "operator"}
    agent.script("marker.list", {"markers": [marker]})
    ended = replctl("marker", "list", "group1", site=("--lab", write_lab(agent), "--site", "a"))
    assert ended.code == 0
    assert ended.out.splitlines()[1].split() == ["5", *NIGHTLY.isoformat(" ").split(), "operator", "m"]


def test_an_unknown_option_is_the_operators_error(replctl: Replctl) -> None:
    ended = replctl("pair", "status", "group1", "--jsn")
    assert ended.code == 2
    assert "--jsn" in ended.err


def test_events_are_asked_for_all_groups_or_one(agent: Agent, replctl: Replctl) -> None:
    event = {
        "time": NIGHTLY.timestamp(),
        "group": "group1",
        "kind": "takeover",
        "text": "primary in epoch 2",
        "facts": {"plan": "long"},
    }
    agent.script("events", {"events": [event]})
    shown = replctl("events").out
    assert shown.splitlines()[1].split("  ") == [
        NIGHTLY.isoformat(" "), "group1", "takeover", "primary in epoch 2"
    ]  # fmt: skip
    assert replctl("events", "group1", "--limit", "3", "--json").json() == {"events": [event]}
    assert [params for _, params in agent.asked] == [
        {"group": None, "limit": 50},
        {"group": "group1", "limit": 3},
    ]


def test_ctrl_c_ends_a_wait_with_130(agent: Agent) -> None:
    polled = threading.Event()

    def handle(_peer: str, op: str, _params: Params, reply: Reply) -> None:
        reply({"changed": True} if op == "pair.split" else pair_status(mirror("b", "PAIR")))
        if op == "pair.status":
            polled.set()

    agent.server.close()
    server = AgentSocketServer(agent.path, handle)
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "hostagent.cli",
            "--socket",
            str(agent.path),
            "pair",
            "split",
            "group1",
            "--wait",
        ],
        stderr=subprocess.PIPE,
        text=True,
    )
    assert polled.wait(20)
    os.kill(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=20)
    server.close()
    assert process.returncode == 130
    assert "interrupted" in err


def test_a_lab_shows_where_its_volumes_are(replctl: Replctl, tmp_path: Path) -> None:
    lab = Lab.create_or_open(tmp_path / "lab", sites=1, volumes="data=1MiB", chap=True)
    lab.down()
    lines = replctl("lab", "status", "--dir", str(tmp_path / "lab"), site=()).out.splitlines()
    assert lines[1].split() == ["a", "down", "down", "no"]
    portal = lab.plan.site("a").iscsi
    assert lines[3].split() == ["a", "data", f"iscsi://host@{portal}/iqn.2026-01.org.replctl:a/0"]


LIO = {
    "objects": 15,
    "applied": [],
    "drift": [],
    "failures": [],
    "rings": [
        {
            "storage_object": "replctl:a:group1:data",
            "served": True,
            "commands": 9,
            "batches": 4,
            "outstanding": 1,
        }
    ],
}


def test_drift_of_lio_is_shown_and_has_an_exit_code(agent: Agent, replctl: Replctl) -> None:
    agent.script("lio.status", LIO, {**LIO, "drift": ["- iscsi/iqn.x:a/lun_7"]})
    ended = replctl("lio", "status")
    assert ended.code == 0
    assert "15 objects, none not as site.toml asks" in ended.out
    ended = replctl("lio", "status", "--json")
    assert (ended.code, ended.json()["drift"]) == (5, ["- iscsi/iqn.x:a/lun_7"])
    assert "replctl lio restore" in ended.err


def test_one_object_of_lio_is_restored(agent: Agent, replctl: Replctl) -> None:
    agent.script("lio.restore", {**LIO, "applied": ["+ iscsi/iqn.x:a/lun_0"]}, LIO)
    ended = replctl("lio", "restore", "iscsi/iqn.x:a", "--json")
    assert (ended.code, ended.json()["changed"]) == (0, True)
    ended = replctl("lio", "restore")
    assert (ended.code, "unchanged" in ended.out) == (0, True)
    assert agent.asked == [("lio.restore", {"object": "iscsi/iqn.x:a"}), ("lio.restore", {"object": ""})]


def test_a_step_that_lio_refused_is_an_error(agent: Agent, replctl: Replctl) -> None:
    agent.script("lio.restore", {**LIO, "failures": ["create iscsi/x: no such address"]})
    ended = replctl("lio", "restore")
    assert ended.code == 5
    assert "no such address" in ended.err
