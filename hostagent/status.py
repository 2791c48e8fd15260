"""What `pair status` and `group status` show: plain data from what is known, never better than the truth
(I6).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec

from hostagent.copy_manager import CopyManager
from hostagent.known import Group
from hostagent.pair_flows import pair_state_of
from hostagent.pair_states import PairState, worst
from target.control.messages import GroupState, MirrorStatus


def pair_status(manager: CopyManager, group: Group) -> dict[str, Any]:
    """One group's pairs as this site sees them; raises PeerError while our subsystem does not answer."""
    state = manager.state_of(group)
    if state.role == "secondary":
        mirrors = [_own_mirror(manager, group, state)]
        status = PairState(mirrors[0]["status"])
    elif state.role == "primary":
        mirrors = [_mirror(manager, group, state, mirror) for mirror in state.mirrors]
        status = worst([PairState(mirror["status"]) for mirror in mirrors])
    else:
        mirrors, status = [], PairState.SMPL
    role = state.role
    if state.role == "primary" and state.primary:
        role, status = "secondary", PairState.SSUS
        for mirror in mirrors:  # of the old primary no more is known than of one that was taken over
            mirror.update(status=status.value)
    elif state.superseded:
        role, status = "superseded", PairState.PSUE
    if state.role == "primary" and (state.superseded or state.access == "failed"):
        # Whatever the journal volume says of them: nothing flows from here any more (I6).
        status = PairState.PSUE
        for mirror in mirrors:
            mirror.update(status=status.value, lag_seconds=None)
    return {
        "group": group.name,
        "role": role,
        "status": status.value,
        "epoch": state.epoch,
        "access": state.access,
        "reason": group.conflict or state.reason,
        "primary": state.primary or (manager.environment.site if state.role == "primary" else ""),
        "mirrors": mirrors,
    }


def _mirror(manager: CopyManager, group: Group, state: GroupState, mirror: MirrorStatus) -> dict[str, Any]:
    report = group.reports.get(mirror.name)
    received = min(mirror.received, mirror.confirmed)
    shipped = max(received, group.shipped.get(mirror.name, 0) if report else 0)
    copy = None if mirror.copy is None else msgspec.to_builtins(mirror.copy)
    verify = None
    if report is not None and report.params.get("verified_extents"):
        mismatches = len(report.params["mismatches"])
        verify = {
            "extents": report.params["verified_extents"],
            "mismatches": mismatches,
            "repaired": min(report.repaired, mismatches),
        }
    age = max(0.0, manager.environment.monotonic() - group.heard_at)
    return {
        "site": mirror.name,
        "status": pair_state_of(state, mirror).value,
        "lag_seconds": None if mirror.lag_seconds is None else round(mirror.lag_seconds + age, 3),
        "sequence": {
            "latest": state.latest,
            "durable": state.durable,
            "shipped": min(shipped, state.durable),
            "received": received,
            "restored": mirror.restored,
            "verified": mirror.verified,
        },
        "differential_bytes": mirror.marked_bytes,
        "copy": copy,
        "verify": verify,
        "link": {
            "management": "up" if manager.environment.link_up(mirror.name) else "down",
            "san": _san_link(manager, group, mirror.name),
        },
        "reason": mirror.reason,
    }


def _san_link(manager: CopyManager, group: Group, site: str) -> str:
    """What the mirror said last of its transfer; unknown when it cannot be asked."""
    report = group.reports.get(site)
    if report is None or not manager.environment.link_up(site):
        return "unknown"
    fetch = report.params.get("fetch")
    return str(fetch["state"]) if fetch else "down"


def _own_mirror(manager: CopyManager, group: Group, state: GroupState) -> dict[str, Any]:
    """A secondary's view of itself."""
    announced = group.announced
    fetching = state.fetch is not None and state.fetch.state == "reading"
    status = PairState.PAIR if state.consistent else PairState.COPY
    suspended = _suspended(manager, group, state)
    differing = 0 if state.consistent else None
    reason = group.link_reason
    if suspended is not None:
        status, differing, reason = suspended.status, suspended.differential_bytes, suspended.reason
    elif state.fetch is not None and not fetching and state.fetch.reason:
        reason = state.fetch.reason
    if state.access == "failed":
        status = PairState.PSUE
    lag = None
    if announced is not None and state.consistent and state.restored_marker.time_ns:
        elapsed = manager.environment.monotonic() - announced.heard_at
        lag = max(0.0, (announced.time_ns - state.restored_marker.time_ns) / 1e9 + elapsed)
    return {
        "site": manager.environment.site,
        "status": status.value,
        "lag_seconds": None if lag is None else round(lag, 3),
        "sequence": {
            "latest": announced.latest if announced is not None else state.latest,
            "durable": announced.durable if announced is not None else state.durable,
            "shipped": state.latest,
            "received": state.durable,
            "restored": state.restored,
            "verified": state.verified,
        },
        "differential_bytes": differing,
        "copy": None,
        "verify": None,
        "link": {
            "management": "up" if manager.environment.link_up(state.primary) else "down",
            "san": "reading" if fetching else (state.fetch.state if state.fetch else "down"),
        },
        "reason": reason,
    }


@dataclass(frozen=True, slots=True)
class _Suspended:
    """Why a secondary that knows nothing of it gets no journal any more."""

    status: PairState
    reason: str
    differential_bytes: int | None


def _suspended(manager: CopyManager, group: Group, state: GroupState) -> _Suspended | None:
    """What the primary says of this site: our own view is not better than that (I6)."""
    known = group.peer_states.get(state.primary)
    if known is None:
        return None
    theirs, primary = known[0], state.primary
    if theirs.role != "primary" or theirs.primary or theirs.superseded:
        newest = manager.store.newest_epoch(group.name, state.group_id)
        at = "the new primary" if newest is None or newest.site == primary else newest.site
        reason = f"{primary} is no primary any more: pair resync {group.name} at {at}"
        return _Suspended(PairState.PSUE, reason, None)
    if theirs.access == "failed":
        return _Suspended(PairState.PSUE, f"{primary} is damaged: {theirs.reason}", None)
    for mirror in theirs.mirrors:
        if mirror.name == manager.environment.site:
            if mirror.state in ("copy", "pair"):
                return None
            reason = mirror.reason or f"suspended at {primary}"
            return _Suspended(pair_state_of(theirs, mirror), reason, mirror.marked_bytes)
    return _Suspended(PairState.PSUE, f"{primary} does not know this site as a mirror", None)


def group_status(manager: CopyManager, group: Group) -> dict[str, Any]:
    """Everything of a group at this site."""
    state = manager.state_of(group)
    whole: dict[str, Any] = msgspec.to_builtins(state)
    whole["status"] = pair_status(manager, group)["status"]
    whole["conflict"] = group.conflict
    whole["pairs_saved"] = [pair for pair in manager.store.pairs() if pair["group"] == group.name]
    return whole
