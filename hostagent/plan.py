"""Decisions that need no I/O: where two histories part, and what a takeover would mean. Pure.

The same plan is what is shown, executed and logged.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from target.control.messages import GroupState, MarkerState, MirrorStatus
from target.errors import ConflictError


@dataclass(frozen=True, slots=True)
class Fork:
    """The last record two histories share. `digest` is known when an epoch begins there ('' otherwise)."""

    sequence: int
    digest: str
    loser_wrote: bool
    """The other side has records behind it that we do not have."""
    set_back: bool = False
    """The other side reigned up to a record that it does not have any more: it is an older state of itself,
    and may have gone on from there.
    """


def fork_point(mine: GroupState, theirs: GroupState) -> Fork:
    """Where `theirs` leaves our history. Raises ConflictError when it is not an ancestor, a branch or a
    part of ours.
    """
    if theirs.group_id != mine.group_id:
        raise ConflictError(
            f"group {mine.name!r} at the other site belongs to another pair (or to none): nothing is shared. "
            "Delete the pair and create it again (a full copy)",
            mine=mine.group_id,
            theirs=theirs.group_id,
        )
    if (theirs.epoch, theirs.reign) == (mine.epoch, mine.reign):
        common = min(theirs.latest, mine.durable)
        return Fork(common, "", theirs.latest > common)
    known = {(epoch.epoch, epoch.reign) for epoch in mine.epochs}
    for ancestor in _lineage(theirs):
        if ancestor in known:
            return _branch(mine, theirs, ancestor)
    if not theirs.epochs and mine.epochs:
        return _branch(mine, theirs, (theirs.epoch, theirs.reign))
    raise ConflictError(
        f"group {mine.name!r}: the histories share no epoch that is still known "
        f"(ours is {mine.epoch}, theirs {theirs.epoch})",
        mine=mine.epoch,
        theirs=theirs.epoch,
    )


def _lineage(state: GroupState) -> list[tuple[int, int]]:
    """The epochs of a history, newest first."""
    return [(epoch.epoch, epoch.reign) for epoch in reversed(state.epochs)]


def _branch(mine: GroupState, theirs: GroupState, shared: tuple[int, int]) -> Fork:
    """Both histories go through the epoch `shared`: they part where the first of them leaves it."""
    common = min(theirs.latest, mine.durable)
    digest = ""
    ours = min(
        [mine.durable] + [e.fork_sequence for e in mine.epochs if (e.parent_epoch, e.parent_reign) == shared]
    )
    reigned = theirs.role == "primary" and not theirs.primary and (theirs.epoch, theirs.reign) == shared
    for history in (mine.epochs, theirs.epochs):
        for epoch in history:
            if (epoch.parent_epoch, epoch.parent_reign) == shared and epoch.fork_sequence <= common:
                common = epoch.fork_sequence
                digest = epoch.fork_digest
    return Fork(common, digest, theirs.latest > common, set_back=reigned and theirs.latest < ours)


def lacks_unknown(mirror: MirrorStatus | None, theirs: GroupState) -> bool:
    """Whether a copy to the other site is not complete, and we know nothing of that.

    One of the two was put back to an older state, or another site copied to it: what is marked here says
    nothing of what it lacks. A site that restores again what it had may be complete in a moment.
    """
    if theirs.role != "secondary" or theirs.complete:
        return False
    return mirror is None or (mirror.complete and theirs.restored >= mirror.restored)


def supersedes(theirs: GroupState, mine: GroupState) -> bool:
    """Whether the other site reigns in an epoch that is newer than ours. A split secondary does not reign."""
    return (
        theirs.group_id == mine.group_id
        and theirs.role == "primary"
        and not theirs.primary
        and theirs.epoch > mine.epoch
    )


def diverged(theirs: GroupState, mine: GroupState) -> bool:
    """Whether both sites reign in epochs with one number: nobody can say which is the newer."""
    return (
        theirs.group_id == mine.group_id
        and theirs.role == mine.role == "primary"
        and not theirs.primary
        and not mine.primary
        and theirs.epoch == mine.epoch
        and theirs.reign != mine.reign
    )


@dataclass(frozen=True, slots=True)
class TakeoverPlan:
    """What a takeover would do, and what it would cost. `refused` says why it cannot be done like this."""

    group: str
    site: str
    old_primary: str
    old_primary_reachable: bool
    old_primary_fenced: bool
    mode: str
    last_restored_marker: dict[str, Any] | None
    records_lost: int | None
    records_lost_at_least: int
    seconds_lost: float | None
    way_back: str
    refused: str | None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def plan_takeover(
    site: str,
    mine: GroupState,
    primary: GroupState | None,
    *,
    force: bool,
    link_up: bool,
    latest_announced: int,
    now_ns: int,
) -> TakeoverPlan:
    """`primary` is the old primary's state if it answered; `now_ns` our best guess of the primary's clock."""
    old = mine.primary
    if (
        mine.role == "primary"
        and not mine.primary
        and not mine.superseded
        and mine.access in ("serve", "hold")
    ):
        return _unneeded(site, mine, waiting=mine.access == "hold" and not force)
    reachable = primary is not None and link_up
    damaged = primary is not None and primary.access == "failed"
    planned = reachable and not force and primary is not None and primary.role == "primary" and not damaged
    marker = _marker(mine.restored_marker)
    least = max(0, latest_announced - mine.durable)
    lost: int | None = None
    seconds: float | None = None
    if planned:
        lost, least, seconds = 0, 0, 0.0
    else:
        if primary is not None and primary.group_id == mine.group_id and not damaged:
            lost = max(0, primary.latest - mine.durable)
            least = lost
        if mine.restored_marker.time_ns:
            seconds = max(0.0, (now_ns - mine.restored_marker.time_ns) / 1e9)
        if lost == 0:
            seconds = 0.0
    return TakeoverPlan(
        group=mine.name,
        site=site,
        old_primary=old,
        old_primary_reachable=reachable,
        old_primary_fenced=reachable,
        mode="planned" if planned else "forced",
        last_restored_marker=marker,
        records_lost=lost,
        records_lost_at_least=least,
        seconds_lost=seconds,
        way_back=_way_back(site, mine, planned=planned),
        refused=_refusal(mine, primary, force=force, reachable=reachable, planned=planned),
    )


def _unneeded(site: str, mine: GroupState, *, waiting: bool) -> TakeoverPlan:
    return TakeoverPlan(
        group=mine.name,
        site=site,
        old_primary=site,
        old_primary_reachable=True,
        old_primary_fenced=False,
        mode="unneeded",
        last_restored_marker=None,
        records_lost=0,
        records_lost_at_least=0,
        seconds_lost=0.0,
        way_back="nothing changes",
        refused=(
            f"this site is the primary and waits: {mine.reason}. With --force it serves without the "
            f"peers' word"
            if waiting
            else None
        ),
    )


def _marker(marker: MarkerState) -> dict[str, Any] | None:
    if not marker.sequence:
        return None
    return {"name": marker.name or "heartbeat", "sequence": marker.sequence, "time": marker.time_ns / 1e9}


def _way_back(site: str, mine: GroupState, *, planned: bool) -> str:
    group, old = mine.name, mine.primary
    if planned:
        return f"{old} follows {site} at once; to go back: takeover {group} at {old}"
    return (
        f"when {old} returns it is refused writes; then at {site}: pair resync {group} --secondary {old} "
        f"(differences only; what {old} alone had is exported first), then takeover {group} at {old}"
    )


def _refusal(
    mine: GroupState, primary: GroupState | None, *, force: bool, reachable: bool, planned: bool
) -> str | None:
    if mine.role == "simplex":
        return f"group {mine.name!r} is in no pair here: there is nothing to take over"
    if mine.access == "failed":
        return f"group {mine.name!r} is damaged here: {mine.reason}"
    if mine.role == "secondary" and not mine.consistent:
        return (
            f"the copy to this site is not complete: its volumes are no point of the sequence. Wait for PAIR "
            f"(pair status {mine.name} at {mine.primary})"
        )
    if force:
        return None
    if planned and primary is not None and primary.promised:
        return f"a takeover of {mine.name!r} from {mine.primary!r} is under way already: wait for its outcome"
    if not reachable:
        return (
            f"the primary {mine.primary!r} cannot be asked: if it is gone for certain, use --force, "
            "and what did not arrive here is lost"
        )
    if primary is not None and primary.access == "failed":
        return (
            f"{mine.primary!r} is damaged ({primary.reason}): "
            "with --force this site takes over what arrived here"
        )
    if not planned:
        return (
            f"{mine.primary!r} is no primary of {mine.name!r} any more; "
            "with --force this site serves all the same"
        )
    if mine.role == "primary" and mine.primary:
        return (
            f"the pair is split: what {mine.primary!r} wrote since then is not here. "
            f"Resync first (pair resync {mine.name} at {mine.primary}), or use --force"
        )
    if primary is not None and mine.epochs:
        known = {(epoch.epoch, epoch.reign) for epoch in primary.epochs}
        if (mine.epoch, mine.reign) not in known:
            return (
                f"this site has an epoch {mine.epoch} of its own, from a takeover that broke off: "
                f"pair resync {mine.name} at {mine.primary} first, or use --force"
            )
    if mine.fetch is not None and mine.fetch.state == "lost":
        return (
            f"the journal of {mine.primary!r} does not continue what is here ({mine.fetch.reason}): "
            f"pair resync {mine.name} there first, or use --force"
        )
    if mine.superseded:
        return f"this site was superseded: pair resync {mine.name} at the new primary first"
    return None
