"""Words that cross each other on the way: what was said before a promise, or before following anew."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from hostagent.copy_manager import CopyManager
from hostagent.flow import Done
from hostagent.requests import Requests
from hostagent.store import Store
from target.control.messages import FetchStatus, GroupState, MarkerState, MirrorStatus

GROUP = "group1"


class Surroundings:
    """An `Environment` whose calls are answered by the test."""

    site = "b"
    peer_wait_seconds = 5.0
    serve_without_peers = True
    state_dir = "."

    def __init__(self) -> None:
        self.now = 100.0
        self.calls: list[tuple[str | None, str, dict[str, Any], Done]] = []
        self.notes: list[tuple[str, dict[str, Any]]] = []

    def call(
        self, site: str | None, op: str, params: dict[str, Any], done: Done, timeout_seconds: float
    ) -> None:
        self.calls.append((site, op, params, done))

    def notify(self, site: str, note: str, params: dict[str, Any]) -> None:
        self.notes.append((note, params))

    def link_up(self, site: str) -> bool:
        return True

    def san_address(self, site: str) -> tuple[str, str] | None:
        return "127.0.0.2:3260", "iqn.2026-01.org.example:a"

    def peers(self) -> list[str]:
        return ["a"]

    def told(self, note: str) -> list[dict[str, Any]]:
        """The notes of a kind that were not taken yet."""
        found = [params for name, params in self.notes if name == note]
        self.notes = [told for told in self.notes if told[0] != note]
        return found

    def monotonic(self) -> float:
        return self.now

    def wall_ns(self) -> int:
        return int(self.now * 1e9)

    def random_reign(self) -> int:
        return 7

    def take(self, op: str) -> list[tuple[dict[str, Any], Done]]:
        """The calls of an operation that were not taken yet."""
        found = [(params, done) for _, name, params, done in self.calls if name == op]
        self.calls = [call for call in self.calls if call[1] != op]
        return found


def state(
    role: str, access: str, *, mirrors: tuple[str, ...] = (), fetch: FetchStatus | None = None
) -> dict[str, Any]:
    nothing = MarkerState(0, 0, "")
    whole = GroupState(
        name=GROUP,
        group_id="00" * 16,
        role=role,
        access=access,
        reason="",
        primary="" if role == "primary" else "a",
        promised=False,
        superseded=False,
        changing="",
        consistent=True,
        epoch=3,
        reign=9,
        epochs=[],
        latest=10,
        durable=10,
        durable_lsn=0,
        durable_digest="",
        tail=0,
        restored=10,
        verified=0,
        verified_extents=0,
        mismatches=[],
        restored_marker=nothing,
        journal_used_percent=0,
        journal_filled_percent=100,
        volumes=[],
        mirrors=[
            msgspec.convert(
                {
                    **dict.fromkeys(MirrorStatus.__struct_fields__, 0),
                    "name": name,
                    "state": "pair",
                    "lag_seconds": None,
                    "journal_reaches": True,
                    "complete": True,
                    "copy": None,
                    "reason": "",
                },
                MirrorStatus,
            )
            for name in mirrors
        ],
        fetch=fetch,
        verify=None,
    )
    built: dict[str, Any] = msgspec.to_builtins(whole)
    return built


@pytest.fixture
def surroundings() -> Surroundings:
    return Surroundings()


@pytest.fixture
def manager(surroundings: Surroundings, tmp_path: Path) -> Iterator[CopyManager]:
    store = Store(tmp_path / "store.sqlite")
    made = CopyManager(surroundings, store, (GROUP,))
    made.on_target_up()
    yield made
    store.close()


def access_asked(surroundings: Surroundings) -> list[str]:
    return [params["access"] for params, _ in surroundings.take("group.access")]


def test_a_primary_serves_when_its_mirror_knows_no_newer_epoch(
    surroundings: Surroundings, manager: CopyManager
) -> None:
    manager.on_group_state(state("primary", "hold", mirrors=("a",)))
    assert access_asked(surroundings) == []
    ((_, answer),) = surroundings.take("group.exchange")
    answer({"state": state("secondary", "read_only")}, None)
    assert access_asked(surroundings) == ["serve"]


def test_an_answer_that_crosses_a_repeated_takeover_confirms_nothing(
    surroundings: Surroundings, manager: CopyManager
) -> None:
    """The first takeover broke off after its promise: the primary waits, and asks. Then comes the second."""
    manager.on_group_state(state("primary", "hold", mirrors=("a",)))
    ((_, answer),) = surroundings.take("group.exchange")
    surroundings.now += 0.1
    Requests(manager).handle("a", "takeover.quiesce", {"group": GROUP}, lambda result=None, error=None: None)
    answer({"state": state("secondary", "read_only")}, None)
    manager.on_tick()
    assert access_asked(surroundings) == []


def test_a_site_that_begins_to_follow_tells_nothing_of_before(
    surroundings: Surroundings, manager: CopyManager
) -> None:
    """The primary would suspend the pair again for a transfer that failed before the resync."""
    lost = FetchStatus("lost", "record 7: its data do not match their CRC", 4096)
    manager.on_group_state(state("secondary", "read_only", fetch=lost))
    assert [note["fetch"]["state"] for note in surroundings.told("mirror.positions")] == ["lost"]
    answers: list[object] = []
    Requests(manager).handle(
        "a",
        "pair.follow",
        {"group": GROUP, "sequence": 10},
        lambda result=None, error=None: answers.append(result if error is None else error),
    )
    ((_, followed),) = surroundings.take("group.follow")
    surroundings.now += 1.0
    manager.on_tick()
    followed({}, None)
    manager.on_tick()
    assert surroundings.told("mirror.positions") == []
    assert answers == []
    ((_, looked),) = surroundings.take("group.state")
    looked(state("secondary", "read_only"), None)
    assert answers == [{}]
    assert [note["fetch"] for note in surroundings.told("mirror.positions")] == [None]


LOST = FetchStatus("lost", "the chain does not fit", 4096)


def serving_primary(surroundings: Surroundings, manager: CopyManager) -> Done:
    """A primary in PAIR with `a`; the question that it has asked there."""
    manager.on_group_state({**state("primary", "serve", mirrors=("a",)), "primary": ""})
    ((_, answer),) = surroundings.take("group.exchange")
    return answer


def follower(fetch: FetchStatus | None) -> dict[str, Any]:
    return {"state": {**state("secondary", "read_only", fetch=fetch), "primary": "b"}}


def test_a_note_from_before_the_pair_was_made_anew_suspends_nothing(
    surroundings: Surroundings, manager: CopyManager
) -> None:
    """It may come late, or twice; whether it is so still is asked for."""
    answer = serving_primary(surroundings, manager)
    answer(follower(None), None)
    late = {"group": GROUP, "fetch": {"state": "lost", "reason": LOST.reason}, "failed": ""}
    positions = dict.fromkeys(("latest", "received", "restored", "verified"), 10)
    manager.on_note(
        "a", "mirror.positions", {**late, **positions, "epoch": 3, "reign": 9, "digest": "", "mismatches": []}
    )
    manager.on_tick()
    assert surroundings.take("mirror.suspend") == []
    for _, asked in surroundings.take("group.exchange"):
        asked(follower(None), None)
    assert surroundings.take("mirror.suspend") == []


def test_a_mirror_that_answers_that_it_cannot_go_on_is_suspended(
    surroundings: Surroundings, manager: CopyManager
) -> None:
    serving_primary(surroundings, manager)(follower(LOST), None)
    ((suspended, _),) = surroundings.take("mirror.suspend")
    assert suspended["state"] == "error"
    assert LOST.reason in suspended["reason"]


def test_a_mirror_with_more_than_its_primary_is_suspended_when_that_stays_so(
    surroundings: Surroundings, manager: CopyManager
) -> None:
    answer = serving_primary(surroundings, manager)
    ahead = follower(None)
    ahead["state"]["latest"] = 11
    answer(ahead, None)
    assert surroundings.take("mirror.suspend") == []
    surroundings.now += 1.5
    manager.on_tick()
    ((_, answer),) = surroundings.take("group.exchange")
    answer(ahead, None)
    ((suspended, _),) = surroundings.take("mirror.suspend")
    assert "record 11" in suspended["reason"]


def test_a_primary_that_was_put_back_is_not_read_as_far_as_it_had_said_before(
    surroundings: Surroundings, manager: CopyManager
) -> None:
    """What lies there now may not be durable (I4)."""
    manager.on_group_state(state("secondary", "read_only"))
    said = dict.fromkeys(("epoch", "reign", "durable", "latest", "time_ns", "received"), 10)
    ready = {"group": GROUP, "ring_bytes": 4096, **said}
    manager.on_note("a", "journal.ready", {**ready, "durable_lsn": 900})
    ((_, found),) = surroundings.take("journal.source")
    place = {"lun": 0, "serial": "", "sequence": 10, "lsn": 0}
    found({"found": True, **place, "durable_lsn": 500}, None)
    ((started, done),) = surroundings.take("fetch.start")
    assert started["durable_lsn"] == 500
    done({}, None)
    manager.on_group_state(state("secondary", "read_only", fetch=FetchStatus("reading", "", 0)))
    manager.on_tick()
    assert [params["durable_lsn"] for params, _ in surroundings.take("fetch.advance")] in ([], [500])
    manager.on_note("a", "journal.ready", {**ready, "durable_lsn": 600})
    assert [params["durable_lsn"] for params, _ in surroundings.take("fetch.advance")] == [600]
