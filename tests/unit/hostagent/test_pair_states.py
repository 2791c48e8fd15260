"""The table of pair states: no gaps, no contradictions, no dead ends."""

from __future__ import annotations

import itertools

import pytest

from hostagent.pair_states import (
    TRANSITIONS,
    Event,
    PairState,
    Transition,
    allows,
    mirror_state,
    next_state,
    worst,
)
from target.errors import OperatorError
from target.journal.superblock import MirrorState

SEEN_AT_A_SPLIT_SECONDARY = PairState.SSUS
"""What a split secondary shows of itself while its primary shows PSUS or PFUS; no event makes it there."""


def reachable(start: PairState, rows: tuple[Transition, ...]) -> set[PairState]:
    found, fresh = {start}, {start}
    while fresh:
        fresh = {row.next_state for row in rows if row.state in fresh} - found
        found |= fresh
    return found


def test_no_state_answers_an_event_twice() -> None:
    keys = [(row.state, row.event) for row in TRANSITIONS]
    assert len(keys) == len(set(keys))


def test_no_event_leaves_a_state_as_it_is() -> None:
    assert all(row.state is not row.next_state for row in TRANSITIONS)


def test_every_state_can_be_reached() -> None:
    assert reachable(PairState.SMPL, TRANSITIONS) == set(PairState) - {SEEN_AT_A_SPLIT_SECONDARY}


@pytest.mark.parametrize("state", PairState)
def test_every_state_can_be_left_for_a_pair_and_for_none(state: PairState) -> None:
    assert {PairState.SMPL, PairState.PAIR} <= reachable(state, TRANSITIONS)


@pytest.mark.parametrize("state", [state for state in PairState if state is not PairState.SMPL])
def test_every_pair_can_be_deleted_by_an_operator(state: PairState) -> None:
    assert next_state(state, Event.DELETE) is PairState.SMPL


def test_every_event_happens_somewhere() -> None:
    assert {row.event for row in TRANSITIONS} == set(Event)


@pytest.mark.parametrize("state", PairState)
def test_only_a_suspended_pair_is_resynchronised(state: PairState) -> None:
    suspended = {PairState.PSUS, PairState.PFUS, PairState.PSUE, PairState.SSUS, PairState.SSWS}
    assert allows(state, Event.RESYNC) == (state in suspended)


def test_an_incomplete_copy_is_never_taken_over() -> None:
    assert not allows(PairState.COPY, Event.TAKEOVER)
    assert not allows(PairState.COPY, Event.FORCED)
    assert not allows(PairState.SMPL, Event.FORCED)


@pytest.mark.parametrize(("state", "event"), list(itertools.product(PairState, Event)))
def test_the_lookup_is_the_table(state: PairState, event: Event) -> None:
    rows = [row for row in TRANSITIONS if (row.state, row.event) == (state, event)]
    assert allows(state, event) == bool(rows)
    if rows:
        assert next_state(state, event) is rows[0].next_state
        return
    with pytest.raises(OperatorError) as refused:
        next_state(state, event)
    message = str(refused.value)
    assert event.value in message
    assert state.value in message
    for row in TRANSITIONS:
        if row.state is state:
            assert row.event.value in message


@pytest.mark.parametrize("kept", MirrorState)
@pytest.mark.parametrize("filling", [True, False])
@pytest.mark.parametrize("journal_reaches", [True, False])
def test_every_kept_state_is_shown_as_a_pair_state(
    kept: MirrorState, filling: bool, journal_reaches: bool
) -> None:
    expected = {
        MirrorState.COPY: PairState.COPY,
        MirrorState.PAIR: PairState.PFUL if filling else PairState.PAIR,
        MirrorState.SPLIT: PairState.PSUS if journal_reaches else PairState.PFUS,
        MirrorState.ERROR: PairState.PSUE,
        MirrorState.LEFT: PairState.SSWS,
    }
    shown = mirror_state(kept.name.lower(), filling=filling, journal_reaches=journal_reaches)
    assert shown is expected[kept]


def test_an_unknown_state_is_shown_as_an_error() -> None:
    assert mirror_state("something new", filling=False, journal_reaches=True) is PairState.PSUE


def test_a_group_is_as_bad_as_its_worst_pair() -> None:
    order = [
        PairState.PSUE,
        PairState.PFUS,
        PairState.SSWS,
        PairState.PSUS,
        PairState.COPY,
        PairState.PFUL,
        PairState.PAIR,
    ]
    assert set(order) == set(PairState) - {PairState.SMPL, SEEN_AT_A_SPLIT_SECONDARY}
    for worse, better in itertools.combinations(order, 2):
        assert worst([worse, better]) is worst([better, worse, better]) is worse
    assert worst([]) is PairState.SMPL
