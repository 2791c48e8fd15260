"""Where two histories part, and what a takeover would mean."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, field

import msgspec
import pytest

from hostagent.plan import (
    Fork,
    TakeoverPlan,
    diverged,
    fork_point,
    lacks_unknown,
    plan_takeover,
    supersedes,
)
from target.control.messages import EpochState, FetchStatus, GroupState, MarkerState, MirrorStatus
from target.errors import ConflictError

GROUP_ID = "00112233445566778899aabbccddeeff"
NOW_NS = 1_750_000_010_000_000_000

PLAIN = GroupState(
    name="group1",
    group_id=GROUP_ID,
    role="simplex",
    access="serve",
    reason="",
    primary="",
    promised=False,
    superseded=False,
    changing="",
    consistent=True,
    epoch=0,
    reign=0,
    epochs=[],
    latest=0,
    durable=0,
    durable_lsn=0,
    durable_digest="",
    tail=0,
    restored=0,
    verified=0,
    verified_extents=0,
    mismatches=[],
    restored_marker=MarkerState(0, 0, ""),
    journal_used_percent=0,
    journal_filled_percent=100,
    volumes=[],
    mirrors=[],
    fetch=None,
    verify=None,
)


def state(**changes: object) -> GroupState:
    return msgspec.structs.replace(PLAIN, **changes)


def epoch(number: int, reign: int, parent: tuple[int, int], fork: int) -> EpochState:
    return EpochState(number, reign, parent[0], parent[1], fork, f"digest at {fork}", 0)


FIRST = epoch(1, 10, (0, 0), 0)


# -- where two histories part: against real lists of records --


@dataclass
class SimSite:
    """A history as a list of records that exist once in the world, and the epochs it knows."""

    records: list[int] = field(default_factory=list)
    epochs: list[EpochState] = field(default_factory=list)
    role: str = "secondary"

    def reign(self, number: int, reign: int, record: int) -> None:
        parent = (self.epochs[-1].epoch, self.epochs[-1].reign) if self.epochs else (0, 0)
        self.epochs.append(epoch(number, reign, parent, len(self.records)))
        self.records.append(record)
        self.role = "primary"

    def state(self) -> GroupState:
        newest = self.epochs[-1]
        return state(
            role=self.role,
            epoch=newest.epoch,
            reign=newest.reign,
            epochs=list(self.epochs),
            latest=len(self.records),
            durable=len(self.records),
        )


def shared(one: SimSite, other: SimSite) -> int:
    """How many records the two begin with in common."""
    count = 0
    for mine, theirs in zip(one.records, other.records, strict=False):
        if mine != theirs:
            break
        count += 1
    return count


@pytest.mark.parametrize("seed", range(150))
def test_the_fork_is_the_last_record_both_histories_have(seed: int) -> None:
    """Two sites that write, ship, take over and follow each other at random."""
    rng = random.Random(seed)
    record = iter(range(1_000_000))
    reign = iter(range(100, 1_000_000))
    sites = [SimSite(), SimSite()]
    sites[0].reign(1, next(reign), next(record))
    sites[1].epochs = list(sites[0].epochs)
    for _ in range(rng.randrange(1, 40)):
        mine, theirs = rng.sample(sites, 2)
        step = rng.random()
        if step < 0.4 and mine.role == "primary":
            mine.records += [next(record) for _ in range(rng.randrange(1, 5))]
        elif step < 0.7 and mine.role == "secondary" and theirs.role == "primary":
            have = len(mine.records)
            if mine.records == theirs.records[:have]:
                mine.records += theirs.records[have : have + rng.randrange(1, 9)]
        elif step < 0.85 and mine.role == "secondary":
            newest = max(site.epochs[-1].epoch for site in sites)
            mine.reign(newest + 1, next(reign), next(record))
        elif theirs.role == "primary" and theirs.epochs[-1].epoch >= mine.epochs[-1].epoch:
            fork = fork_point(theirs.state(), mine.state())
            assert fork.sequence == shared(mine, theirs)
            assert fork.loser_wrote == (len(mine.records) > fork.sequence)
            mine.records = mine.records[: fork.sequence]
            mine.epochs = list(theirs.epochs)
            mine.role = "secondary"
    one, other = sites
    expected = shared(one, other)
    assert fork_point(one.state(), other.state()).sequence == expected
    assert fork_point(other.state(), one.state()).sequence == expected


def test_a_secondary_that_is_behind_shares_all_it_has() -> None:
    mine = state(role="primary", epoch=1, reign=10, epochs=[FIRST], latest=100, durable=90)
    theirs = state(role="secondary", epoch=1, reign=10, epochs=[FIRST], latest=70)
    assert fork_point(mine, theirs) == Fork(70, "", loser_wrote=False)


def test_what_our_own_journal_lost_is_theirs_alone() -> None:
    """A primary that lost power may be behind its secondary only if something that was durable is gone."""
    mine = state(role="primary", epoch=1, reign=10, epochs=[FIRST], latest=60, durable=60)
    theirs = state(role="secondary", epoch=1, reign=10, epochs=[FIRST], latest=70)
    assert fork_point(mine, theirs) == Fork(60, "", loser_wrote=True)


def test_after_a_forced_takeover_the_histories_part_where_the_epoch_began() -> None:
    second = epoch(2, 20, (1, 10), 80)
    mine = state(role="primary", epoch=2, reign=20, epochs=[FIRST, second], latest=95, durable=95)
    wrote_more = state(role="primary", epoch=1, reign=10, epochs=[FIRST], latest=90)
    assert fork_point(mine, wrote_more) == Fork(80, "digest at 80", loser_wrote=True)
    wrote_nothing = state(role="primary", epoch=1, reign=10, epochs=[FIRST], latest=80)
    assert fork_point(mine, wrote_nothing) == Fork(80, "digest at 80", loser_wrote=False)
    behind = state(role="secondary", epoch=1, reign=10, epochs=[FIRST], latest=75)
    assert fork_point(mine, behind) == Fork(75, "", loser_wrote=False)


def test_two_takeovers_of_one_epoch_part_at_the_earlier() -> None:
    ours, another = epoch(2, 20, (1, 10), 80), epoch(2, 21, (1, 10), 60)
    mine = state(role="primary", epoch=2, reign=20, epochs=[FIRST, ours], latest=95, durable=95)
    theirs = state(role="primary", epoch=2, reign=21, epochs=[FIRST, another], latest=99)
    assert fork_point(mine, theirs) == Fork(60, "digest at 60", loser_wrote=True)
    assert fork_point(theirs, msgspec.structs.replace(mine)).sequence == min(60, theirs.durable)


def test_another_group_shares_nothing() -> None:
    mine = state(role="primary", epoch=1, reign=10, epochs=[FIRST], latest=10, durable=10)
    theirs = msgspec.structs.replace(mine, group_id="ff" * 16)
    with pytest.raises(ConflictError, match="another pair") as conflict:
        fork_point(mine, theirs)
    assert conflict.value.facts == {"mine": GROUP_ID, "theirs": "ff" * 16}


def test_histories_without_a_common_epoch_are_a_conflict() -> None:
    """The ancestors were forgotten: nothing is guessed."""
    mine = state(role="primary", epoch=90, reign=1, epochs=[epoch(90, 1, (89, 1), 5)], latest=10, durable=10)
    theirs = state(role="primary", epoch=3, reign=2, epochs=[epoch(3, 2, (2, 2), 5)], latest=10)
    with pytest.raises(ConflictError, match="no epoch") as conflict:
        fork_point(mine, theirs)
    assert conflict.value.facts == {"mine": 90, "theirs": 3}


# -- who reigns --


@pytest.mark.parametrize(
    ("theirs", "expected"),
    [
        ({"role": "primary", "epoch": 3}, True),
        ({"role": "primary", "epoch": 2}, False),
        ({"role": "primary", "epoch": 1}, False),
        ({"role": "secondary", "epoch": 3, "primary": "c"}, False),
        ({"role": "primary", "epoch": 3, "primary": "a"}, False),
        ({"role": "primary", "epoch": 3, "group_id": "ff" * 16}, False),
        ({"role": "simplex", "epoch": 3}, False),
    ],
    ids=["newer", "the same", "older", "a secondary", "a split secondary", "another group", "no pair"],
)
def test_only_a_newer_reign_of_our_own_group_supersedes(theirs: dict[str, object], expected: bool) -> None:
    mine = state(role="primary", epoch=2, reign=20)
    assert supersedes(state(**theirs), mine) is expected


def test_two_reigns_of_one_number_diverged() -> None:
    mine = state(role="primary", epoch=2, reign=20)
    theirs = msgspec.structs.replace(mine, reign=21)
    assert diverged(theirs, mine)
    assert diverged(mine, theirs)
    assert not diverged(mine, mine)
    for harmless in (
        {"epoch": 3},
        {"role": "secondary"},
        {"primary": "a"},
        {"group_id": "ff" * 16},
    ):
        assert not diverged(msgspec.structs.replace(theirs, **harmless), mine)
    assert not diverged(theirs, msgspec.structs.replace(mine, primary="b"))


def test_of_two_reigns_never_both_supersede() -> None:
    reigns = [
        state(role=role, epoch=number, reign=reign, primary=primary)
        for role in ("primary", "secondary", "simplex")
        for number in (1, 2)
        for reign in (10, 11)
        for primary in ("", "x")
    ]
    for one in reigns:
        for other in reigns:
            assert not (supersedes(one, other) and supersedes(other, one))
            assert not (supersedes(one, other) and diverged(one, other))


# -- takeover plans --

SECONDARY = state(
    role="secondary",
    access="read_only",
    primary="a",
    epoch=1,
    reign=10,
    epochs=[FIRST],
    latest=80,
    durable=80,
    restored=75,
    restored_marker=MarkerState(74, NOW_NS - 2_500_000_000, ""),
)
PRIMARY = state(role="primary", epoch=1, reign=10, epochs=[FIRST], latest=100, durable=95)


def plan(
    mine: GroupState,
    primary: GroupState | None,
    *,
    force: bool = False,
    link_up: bool = True,
    latest_announced: int = 90,
) -> TakeoverPlan:
    return plan_takeover(
        "b",
        mine,
        primary,
        force=force,
        link_up=link_up,
        latest_announced=latest_announced,
        now_ns=NOW_NS,
    )


def test_a_planned_takeover_loses_nothing() -> None:
    made = plan(SECONDARY, PRIMARY)
    assert made.refused is None
    assert made.mode == "planned"
    assert (made.records_lost, made.records_lost_at_least, made.seconds_lost) == (0, 0, 0.0)
    assert made.old_primary == "a"
    assert made.old_primary_reachable
    assert made.old_primary_fenced
    assert "a follows b at once" in made.way_back


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"epoch": 2, "reign": 20, "epochs": [FIRST, epoch(2, 20, (1, 10), 80)]}, "an epoch 2 of its own"),
        ({"fetch": FetchStatus("lost", "the chain does not fit", 0)}, "the chain does not fit"),
    ],
    ids=["a takeover broke off", "another history"],
)
def test_nobody_waits_for_a_journal_that_does_not_continue_what_is_here(
    changes: dict[str, object], reason: str
) -> None:
    """The hosts of the old primary would wait with it, and the pair would be shown as PAIR meanwhile."""
    mine = msgspec.structs.replace(SECONDARY, **changes)
    refused = plan(mine, PRIMARY).refused
    assert refused is not None
    assert reason in refused
    assert "pair resync group1" in refused
    assert plan(mine, PRIMARY, force=True).refused is None


def test_without_the_primary_a_takeover_needs_force() -> None:
    made = plan(SECONDARY, None, link_up=False)
    assert made.mode == "forced"
    assert made.refused is not None
    assert "--force" in made.refused
    forced = plan(SECONDARY, None, force=True, link_up=False)
    assert forced.refused is None
    assert forced.mode == "forced"
    assert not forced.old_primary_fenced


def test_the_loss_is_never_told_better_than_it_is() -> None:
    """What the primary wrote after its last word is not known; what it announced is lost at least."""
    unknown = plan(SECONDARY, None, force=True, link_up=False)
    assert unknown.records_lost is None
    assert unknown.records_lost_at_least == 10
    assert unknown.seconds_lost == 2.5
    known = plan(SECONDARY, PRIMARY, force=True)
    assert known.records_lost == known.records_lost_at_least == 20
    level = plan(SECONDARY, msgspec.structs.replace(PRIMARY, latest=80), force=True)
    assert (level.records_lost, level.seconds_lost) == (0, 0.0)
    nothing_announced = plan(SECONDARY, None, force=True, link_up=False, latest_announced=0)
    assert nothing_announced.records_lost is None
    assert nothing_announced.records_lost_at_least == 0
    assert nothing_announced.seconds_lost == 2.5


def test_another_groups_journal_says_nothing_of_the_loss() -> None:
    foreign = msgspec.structs.replace(PRIMARY, group_id="ff" * 16)
    made = plan(SECONDARY, foreign, force=True)
    assert made.records_lost is None
    assert made.records_lost_at_least == 10


def test_without_a_marker_the_seconds_are_not_known() -> None:
    made = plan(
        msgspec.structs.replace(SECONDARY, restored_marker=MarkerState(0, 0, "")),
        None,
        force=True,
        link_up=False,
    )
    assert made.seconds_lost is None
    assert made.last_restored_marker is None


def test_the_last_restored_marker_is_named() -> None:
    assert plan(SECONDARY, None).last_restored_marker == {
        "name": "heartbeat",
        "sequence": 74,
        "time": (NOW_NS - 2_500_000_000) / 1e9,
    }
    named = msgspec.structs.replace(SECONDARY, restored_marker=MarkerState(74, NOW_NS, "payday"))
    shown = plan(named, None).last_restored_marker
    assert shown is not None
    assert shown["name"] == "payday"


def test_the_way_back_of_a_forced_takeover_is_a_resync_of_differences() -> None:
    way_back = plan(SECONDARY, None, force=True, link_up=False).way_back
    assert "pair resync group1 --secondary a" in way_back
    assert "differences only" in way_back
    assert "exported first" in way_back


@pytest.mark.parametrize("force", [True, False])
@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"role": "simplex", "primary": ""}, "no pair"),
        ({"access": "failed", "reason": "a pack is gone"}, "a pack is gone"),
        ({"consistent": False}, "not complete"),
    ],
    ids=["no pair", "damaged", "incomplete copy"],
)
def test_some_takeovers_are_refused_even_by_force(
    changes: dict[str, object], reason: str, force: bool
) -> None:
    made = plan(msgspec.structs.replace(SECONDARY, **changes), PRIMARY, force=force)
    assert made.refused is not None
    assert reason in made.refused


def test_a_split_secondary_is_not_swapped_by_plan() -> None:
    """What the primary wrote since the split is not here."""
    split = msgspec.structs.replace(SECONDARY, role="primary", access="serve", epoch=2, reign=30)
    made = plan(split, PRIMARY)
    assert made.refused is not None
    assert "split" in made.refused
    assert plan(split, PRIMARY, force=True).refused is None


def test_a_primary_that_is_none_any_more_agrees_to_nothing() -> None:
    made = plan(SECONDARY, msgspec.structs.replace(PRIMARY, role="secondary", primary="c"))
    assert made.mode == "forced"
    assert made.refused is not None
    assert "--force" in made.refused


def test_at_the_primary_there_is_nothing_to_take_over() -> None:
    made = plan(PRIMARY, None)
    assert made.mode == "unneeded"
    assert made.refused is None
    assert made.records_lost == 0


def test_a_primary_that_waits_for_its_peers_serves_by_force_only() -> None:
    waiting = msgspec.structs.replace(PRIMARY, access="hold", reason="waiting for the copy manager")
    made = plan(waiting, None)
    assert made.mode == "unneeded"
    assert made.refused is not None
    assert "waiting for the copy manager" in made.refused
    assert plan(waiting, None, force=True).refused is None


def test_a_superseded_primary_takes_over_by_force_only() -> None:
    superseded = msgspec.structs.replace(PRIMARY, access="read_only", superseded=True)
    assert plan(superseded, msgspec.structs.replace(PRIMARY, epoch=2)).refused is not None


def test_a_plan_is_plain_data() -> None:
    for made in (plan(SECONDARY, PRIMARY), plan(SECONDARY, None), plan(PRIMARY, None)):
        shown = made.to_json()
        assert json.loads(json.dumps(shown)) == shown
        assert shown["group"] == "group1"
        assert shown["site"] == "b"


def test_an_old_primary_that_lacks_what_it_had_shipped_was_put_back() -> None:
    second = EpochState(2, 20, 1, 10, 126, "ab" * 32, 0)
    mine = state(role="primary", epoch=2, reign=20, epochs=[FIRST, second], latest=130, durable=130)
    older = state(role="primary", epoch=1, reign=10, epochs=[FIRST], latest=87)
    assert fork_point(mine, older).set_back
    same = state(role="primary", epoch=1, reign=10, epochs=[FIRST], latest=126)
    assert not fork_point(mine, same).set_back
    follower = state(role="secondary", epoch=1, reign=10, epochs=[FIRST], latest=87)
    assert not fork_point(mine, follower).set_back


# -- copies that are not complete --


def mirror(*, complete: bool, restored: int) -> MirrorStatus:
    return MirrorStatus("b", "pair", 80, restored, 0, 0, 0, None, True, None, "", complete)


@pytest.mark.parametrize(
    ("known", "theirs", "unknown"),
    [
        (mirror(complete=True, restored=80), {}, False),
        (mirror(complete=True, restored=80), {"complete": False, "restored": 80}, True),
        (mirror(complete=True, restored=80), {"complete": False, "restored": 79}, False),
        (mirror(complete=False, restored=80), {"complete": False, "restored": 80}, False),
        (None, {"complete": False}, True),
        (None, {}, False),
        (None, {"role": "primary", "complete": False}, False),
    ],
    ids=["complete", "forgotten", "restores again", "under way", "of another", "none", "reigns"],
)
def test_what_an_unfinished_copy_lacks_is_known_to_who_copies(
    known: MirrorStatus | None, theirs: dict[str, object], unknown: bool
) -> None:
    assert lacks_unknown(known, msgspec.structs.replace(SECONDARY, **theirs)) == unknown
