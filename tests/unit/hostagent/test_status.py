"""What a site says of its pairs: never better than the truth (I6)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from hostagent.copy_manager import CopyManager
from hostagent.flow import Done
from hostagent.known import Group
from hostagent.status import pair_status
from hostagent.store import Store
from target.control.messages import GroupState, MarkerState, MirrorStatus


class Alone:
    """An environment in which every link is up and nobody answers."""

    site = "b"
    peer_wait_seconds = 5.0
    serve_without_peers = True
    state_dir = ""

    def call(
        self, site: str | None, op: str, params: dict[str, Any], done: Done, timeout_seconds: float
    ) -> None:
        pass

    def notify(self, site: str, note: str, params: dict[str, Any]) -> None:
        pass

    def link_up(self, site: str) -> bool:
        return True

    def san_address(self, site: str) -> tuple[str, str] | None:
        return None

    def peers(self) -> list[str]:
        return ["a"]

    def monotonic(self) -> float:
        return 100.0

    def wall_ns(self) -> int:
        return 0

    def random_reign(self) -> int:
        return 1


def mirror(name: str, state: str, **changes: Any) -> MirrorStatus:
    standing = MirrorStatus(
        name=name, state=state, received=7, restored=7, verified=0, marked_bytes=0, behind_percent=0,
        lag_seconds=0.5, journal_reaches=True, copy=None, reason="",
    )  # fmt: skip
    return msgspec.structs.replace(standing, **changes)


def group_state(role: str, primary: str, *mirrors: MirrorStatus, **changes: Any) -> GroupState:
    state = GroupState(
        name="group1", group_id="00", role=role, access="serve", reason="", primary=primary, promised=False,
        superseded=False, consistent=True, epoch=1, reign=1, epochs=[], latest=9, durable=9, durable_lsn=0,
        durable_digest="", changing="",
        tail=0, restored=9, verified=0, verified_extents=0, mismatches=[],
        restored_marker=MarkerState(0, 0, "", ""), journal_used_percent=0, journal_filled_percent=100,
        volumes=[], mirrors=list(mirrors), fetch=None, verify=None,
    )  # fmt: skip
    return msgspec.structs.replace(state, **changes)


@pytest.fixture
def manager(tmp_path: Path) -> CopyManager:
    it = CopyManager(Alone(), Store(tmp_path / "db"), ("group1",))
    it.on_target_up()
    return it


def shown(manager: CopyManager, state: GroupState, primary_says: GroupState | None = None) -> dict[str, Any]:
    group: Group = manager.groups["group1"]
    group.state = state
    if primary_says is not None:
        group.peer_states["a"] = (primary_says, 0.0)
    return pair_status(manager, group)


def states(status: dict[str, Any]) -> tuple[str, str, list[str]]:
    return status["role"], status["status"], [mirror["status"] for mirror in status["mirrors"]]


def test_a_primary_shows_its_worst_pair(manager: CopyManager) -> None:
    state = group_state("primary", "", mirror("a", "pair"), mirror("c", "error"))
    assert states(shown(manager, state)) == ("primary", "PSUE", ["PAIR", "PSUE"])


def test_a_new_mirror_is_not_shown_to_have_what_it_never_said(manager: CopyManager) -> None:
    """The journal is kept for it from record 7 on, and all before that is still to be copied."""
    state = group_state("primary", "", mirror("a", "copy", restored=0, confirmed=3))
    sequence = shown(manager, state)["mirrors"][0]["sequence"]
    assert (sequence["shipped"], sequence["received"], sequence["restored"]) == (3, 3, 0)


@pytest.mark.parametrize("changes", [{"superseded": True}, {"access": "failed"}])
def test_a_site_that_cannot_ship_any_more_shows_no_pair(
    manager: CopyManager, changes: dict[str, Any]
) -> None:
    status = shown(manager, group_state("primary", "", mirror("a", "pair"), **changes))
    assert states(status)[1:] == ("PSUE", ["PSUE"])
    assert status["mirrors"][0]["lag_seconds"] is None
    assert (status["role"] == "superseded") == ("superseded" in changes)


def test_a_split_secondary_shows_that_it_was_split(manager: CopyManager) -> None:
    state = group_state("primary", "a", mirror("a", "left"))
    assert states(shown(manager, state)) == ("secondary", "SSUS", ["SSUS"])


@pytest.mark.parametrize(("consistent", "status"), [(True, "PAIR"), (False, "COPY")])
def test_a_secondary_is_in_pair_once_it_is_a_point_of_the_sequence(
    manager: CopyManager, consistent: bool, status: str
) -> None:
    says = group_state("primary", "", mirror("b", "pair"))
    state = group_state("secondary", "a", access="read_only", consistent=consistent)
    assert states(shown(manager, state, says)) == ("secondary", status, [status])


def test_a_secondary_that_its_primary_suspended_says_so(manager: CopyManager) -> None:
    says = group_state("primary", "", mirror("b", "error", reason="the journal was full", marked_bytes=4096))
    status = shown(manager, group_state("secondary", "a", access="read_only"), says)
    assert states(status) == ("secondary", "PSUE", ["PSUE"])
    assert status["mirrors"][0]["reason"] == "the journal was full"
    assert status["mirrors"][0]["differential_bytes"] == 4096


@pytest.mark.parametrize(
    "says",
    [
        group_state("secondary", "b"),
        group_state("simplex", ""),
        group_state("primary", "", superseded=True),
        group_state("primary", ""),
        group_state("primary", "", mirror("b", "pair"), access="failed"),
    ],
    ids=["follows", "simplex", "superseded", "does not know us", "damaged"],
)
def test_a_secondary_whose_primary_is_none_any_more_is_suspended(
    manager: CopyManager, says: GroupState
) -> None:
    status = shown(manager, group_state("secondary", "a", access="read_only"), says)
    assert states(status) == ("secondary", "PSUE", ["PSUE"])
    assert "a " in status["mirrors"][0]["reason"]
