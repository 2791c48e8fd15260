"""Pair states and their transitions: one table, from which docs/pair-states.md is made. Pure.

The names are the field's own. A state belongs to one mirror of a group, seen from its primary; SSUS and SSWS
are seen at the site that was, or is, the other side.
"""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

from target.errors import OperatorError


class PairState(StrEnum):
    """The state of one pair."""

    SMPL = "SMPL"
    """Simplex: no pair."""
    COPY = "COPY"
    """What differs is being copied; the secondary is not a point of the sequence yet."""
    PAIR = "PAIR"
    """The journal flows; the secondary is a point of the sequence, `lag_seconds` old."""
    PFUL = "PFUL"
    """As PAIR, but the journal fills up because the secondary does not take it."""
    PSUS = "PSUS"
    """Suspended by an operator; what the secondary lacks is in the journal or marked."""
    PFUS = "PFUS"
    """As PSUS, and the journal was full meanwhile: part of what the secondary lacks is marked."""
    PSUE = "PSUE"
    """Suspended by an error, or because the journal was full; what the secondary lacks is marked."""
    SSUS = "SSUS"
    """A split secondary, writable on its own."""
    SSWS = "SSWS"
    """After a forced takeover: this site serves, the old primary has not followed yet."""


class Event(StrEnum):
    """What changes a state."""

    CREATE = "pair create"
    COPIED = "the copy was restored"
    FILLING = "the journal is over 70 % full"
    DRAINED = "the journal is below 70 % again"
    OVERFLOW = "the journal was full"
    SPLIT = "pair split"
    RESYNC = "pair resync"
    DELETE = "pair delete"
    TAKEOVER = "takeover, the primary agreed"
    FORCED = "takeover --force"
    FAILURE = "a corrupt journal or a failed device"


class Transition(NamedTuple):
    """From a state, by an event, to a state."""

    state: PairState
    event: Event
    next_state: PairState


TRANSITIONS: tuple[Transition, ...] = (
    Transition(PairState.SMPL, Event.CREATE, PairState.COPY),
    Transition(PairState.COPY, Event.COPIED, PairState.PAIR),
    Transition(PairState.COPY, Event.OVERFLOW, PairState.PSUE),
    Transition(PairState.COPY, Event.FAILURE, PairState.PSUE),
    Transition(PairState.COPY, Event.DELETE, PairState.SMPL),
    Transition(PairState.PAIR, Event.FILLING, PairState.PFUL),
    Transition(PairState.PAIR, Event.OVERFLOW, PairState.PSUE),
    Transition(PairState.PAIR, Event.FAILURE, PairState.PSUE),
    Transition(PairState.PAIR, Event.SPLIT, PairState.PSUS),
    Transition(PairState.PAIR, Event.TAKEOVER, PairState.COPY),
    Transition(PairState.PAIR, Event.FORCED, PairState.SSWS),
    Transition(PairState.PAIR, Event.DELETE, PairState.SMPL),
    Transition(PairState.PFUL, Event.DRAINED, PairState.PAIR),
    Transition(PairState.PFUL, Event.OVERFLOW, PairState.PSUE),
    Transition(PairState.PFUL, Event.FAILURE, PairState.PSUE),
    Transition(PairState.PFUL, Event.SPLIT, PairState.PSUS),
    Transition(PairState.PFUL, Event.TAKEOVER, PairState.COPY),
    Transition(PairState.PFUL, Event.FORCED, PairState.SSWS),
    Transition(PairState.PFUL, Event.DELETE, PairState.SMPL),
    Transition(PairState.PSUS, Event.OVERFLOW, PairState.PFUS),
    Transition(PairState.PSUS, Event.RESYNC, PairState.COPY),
    Transition(PairState.PSUS, Event.DELETE, PairState.SMPL),
    Transition(PairState.PFUS, Event.RESYNC, PairState.COPY),
    Transition(PairState.PFUS, Event.DELETE, PairState.SMPL),
    Transition(PairState.PSUE, Event.RESYNC, PairState.COPY),
    Transition(PairState.PSUE, Event.FORCED, PairState.SSWS),
    Transition(PairState.PSUE, Event.DELETE, PairState.SMPL),
    Transition(PairState.SSUS, Event.RESYNC, PairState.COPY),
    Transition(PairState.SSUS, Event.FORCED, PairState.SSWS),
    Transition(PairState.SSUS, Event.DELETE, PairState.SMPL),
    Transition(PairState.SSWS, Event.RESYNC, PairState.COPY),
    Transition(PairState.SSWS, Event.DELETE, PairState.SMPL),
)

_TABLE = {(row.state, row.event): row.next_state for row in TRANSITIONS}


def next_state(state: PairState, event: Event) -> PairState:
    """Look a transition up; OperatorError, with what is possible, when there is none."""
    found = _TABLE.get((state, event))
    if found is None:
        possible = ", ".join(sorted({row.event.value for row in TRANSITIONS if row.state is state}))
        raise OperatorError(f"{event.value!r} is not possible in {state}; possible: {possible}")
    return found


def allows(state: PairState, event: Event) -> bool:
    """Whether the table has a transition."""
    return (state, event) in _TABLE


def mirror_state(state: str, *, filling: bool, journal_reaches: bool) -> PairState:
    """The pair state of a mirror, from its state in the journal volume and what the journal can still give
    it.
    """
    match state:
        case "copy":
            return PairState.COPY
        case "pair":
            return PairState.PFUL if filling else PairState.PAIR
        case "split":
            return PairState.PSUS if journal_reaches else PairState.PFUS
        case "left":
            return PairState.SSWS
        case _:
            return PairState.PSUE


_ORDER = (
    PairState.PSUE,
    PairState.PFUS,
    PairState.SSWS,
    PairState.PSUS,
    PairState.COPY,
    PairState.PFUL,
    PairState.PAIR,
)


def worst(states: list[PairState]) -> PairState:
    """A group's state is that of its worst pair; without a pair it is simplex."""
    for state in _ORDER:
        if state in states:
            return state
    return PairState.SMPL
