"""When a primary that waits may serve: only on the word of every mirror, given after the last promise."""

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
from target.control.messages import GroupState, MarkerState, MirrorStatus

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

    def call(
        self, site: str | None, op: str, params: dict[str, Any], done: Done, timeout_seconds: float
    ) -> None:
        self.calls.append((site, op, params, done))

    def notify(self, site: str, note: str, params: dict[str, Any]) -> None:
        pass

    def link_up(self, site: str) -> bool:
        return True

    def san_address(self, site: str) -> tuple[str, str] | None:
        return None

    def peers(self) -> list[str]:
        return ["a"]

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


def state(role: str, access: str, *, mirrors: tuple[str, ...] = ()) -> dict[str, Any]:
    nothing = MarkerState(0, 0, "")
    whole = GroupState(
        name=GROUP,
        group_id="00" * 16,
        role=role,
        access=access,
        reason="",
        primary="" if role == "primary" else "b",
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
                    "copy": None,
                    "reason": "",
                },
                MirrorStatus,
            )
            for name in mirrors
        ],
        fetch=None,
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
