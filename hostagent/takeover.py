"""Taking over: by agreement with the primary, or by force when it is gone. One step after the other.

The plan that is shown is the plan that is executed and logged. Invariant: a site that agreed serves no write
before it knows the outcome; an epoch is begun only behind everything this site holds.
"""

from __future__ import annotations

from typing import Any

from hostagent.copy_manager import CopyManager
from hostagent.flow import Call, Flow, Wait
from hostagent.known import Group
from hostagent.pair_flows import CATCH_UP_SECONDS, PairFlows
from hostagent.plan import TakeoverPlan, plan_takeover
from target.control.messages import GroupState
from target.errors import ConflictError, OperatorError, PeerError, ReplctlError


class TakeoverFlows:
    """The takeovers of one copy manager."""

    def __init__(self, manager: CopyManager, pairs: PairFlows) -> None:
        self._manager = manager
        self._pairs = pairs
        self._environment = manager.environment

    def plan(self, group: Group, *, force: bool) -> Flow:
        """What a takeover here would do."""
        plan = yield from self._plan(group, force=force)
        return {"plan": plan["plan"].to_json()}

    def _plan(self, group: Group, *, force: bool) -> Flow:
        mine: GroupState = (yield from self._pairs.own(group))["state"]
        primary: GroupState | None = None
        if mine.primary and self._environment.link_up(mine.primary):
            try:
                primary = (yield from self._pairs.peer(group, mine.primary))["state"]
            except PeerError:
                primary = None
        announced = group.announced
        now_ns = self._environment.wall_ns()
        if announced is not None:
            elapsed = self._environment.monotonic() - announced.heard_at
            now_ns = announced.time_ns + int(elapsed * 1e9)
        plan = plan_takeover(
            self._environment.site,
            mine,
            primary,
            force=force,
            link_up=bool(mine.primary) and self._environment.link_up(mine.primary),
            latest_announced=announced.latest if announced is not None else 0,
            now_ns=now_ns,
        )
        return {"plan": plan, "mine": mine}

    def takeover(self, group: Group, *, force: bool) -> Flow:
        """Make this site the primary: by agreement, or by force."""
        started = self._environment.monotonic()
        found = yield from self._plan(group, force=force)
        plan: TakeoverPlan = found["plan"]
        mine: GroupState = found["mine"]
        if plan.refused is not None:
            raise OperatorError(plan.refused)
        self._manager.log(group.name, "takeover", f"{plan.mode} takeover begins", plan=plan.to_json())
        if plan.mode == "unneeded":
            if mine.access != "serve":
                yield Call(
                    None,
                    "group.access",
                    {"group": group.name, "access": "serve", "reason": "", "superseded": False},
                )
            return self._taken(group, plan, mine.epoch, started, changed=mine.access != "serve")
        if mine.role == "primary" and mine.superseded:
            epoch = self._next_epoch(group, mine, None)
            yield from self._promote(
                group, epoch, [(mirror.name, mirror.received) for mirror in mine.mirrors]
            )
            return self._taken(group, plan, epoch, started, changed=True)
        end = yield from self._fence(group, plan)
        epoch = self._next_epoch(group, mine, end.get("epoch"))
        received = end.get("sequence", mine.durable) if plan.mode == "planned" else mine.durable
        if plan.mode == "planned":
            try:
                yield Wait(
                    lambda: (
                        group.state is not None
                        and (group.state.restored >= received or self._cannot_fetch(group.state))
                    ),
                    f"restoring everything up to record {received}",
                    CATCH_UP_SECONDS,
                )
                yield from self._check_end(group, plan.old_primary, received, end.get("digest"))
            except (PeerError, ConflictError):
                yield Call(plan.old_primary, "takeover.abort", {"group": group.name}, 10.0)
                raise
        else:
            yield Call(None, "fetch.stop", {"group": group.name})
            received = (yield from self._pairs.own(group))["state"].latest
            if mine.role == "primary":  # a split secondary: the old primary shares nothing behind the split
                received = mine.epochs[-1].fork_sequence
        yield from self._promote(group, epoch, [(plan.old_primary, received)] if plan.old_primary else [])
        if plan.mode == "planned":
            try:
                yield from self._pairs.resync_one(group, plan.old_primary)
            except ReplctlError as error:
                self._manager.log(group.name, "takeover", f"{plan.old_primary} does not follow yet: {error}")
        return self._taken(group, plan, epoch, started, changed=True)

    def _fence(self, group: Group, plan: TakeoverPlan) -> Flow:
        """Have the old primary stop serving writes, if it can be asked; it says where its journal ends."""
        if not plan.old_primary_reachable:
            return {}
        try:
            return (yield Call(plan.old_primary, "takeover.quiesce", {"group": group.name}, 30.0))
        except ReplctlError:
            if plan.mode == "planned":
                raise
            return {}

    def _cannot_fetch(self, state: GroupState) -> bool:
        """What the old primary has is not the continuation of what is here: nothing more will come."""
        return state.fetch is not None and state.fetch.state == "lost"

    def _check_end(self, group: Group, primary: str, sequence: int, digest: str | None) -> Flow:
        """What we have up to the old primary's last record is what it has.

        Otherwise it was put back to an older state, and went on from there.
        """
        mine = yield Call(None, "journal.at", {"group": group.name, "sequence": sequence}, 10.0)
        if not mine.get("found") or mine["digest"] != digest:
            raise ConflictError(
                f"group {group.name!r}: {primary} ends at record {sequence}, and what this site has up to "
                "there is something else: one of them was put back to an older state. takeover --force "
                "serves what is here",
                sequence=sequence,
            )
        return {}

    def _next_epoch(self, group: Group, mine: GroupState, old: int | None) -> int:
        known = self._manager.store.newest_epoch(group.name, mine.group_id)
        return max(mine.epoch, old or 0, known.epoch if known else 0) + 1

    def _promote(self, group: Group, epoch: int, mirrors: list[tuple[str, int]]) -> Flow:
        params = {
            "group": group.name,
            "epoch": epoch,
            "reign": self._environment.random_reign(),
            "mirrors": [{"name": name, "state": "left", "received": received} for name, received in mirrors],
        }
        return (yield Call(None, "group.promote", params, 120.0))

    def _taken(
        self, group: Group, plan: TakeoverPlan, epoch: int, started: float, *, changed: bool
    ) -> dict[str, Any]:
        seconds = self._environment.monotonic() - started
        group.conflict = ""
        self._manager.log(group.name, "takeover", f"primary in epoch {epoch} after {seconds:.2f} s")
        return {
            "plan": plan.to_json(),
            "changed": changed,
            "group": group.name,
            "epoch": epoch,
            "seconds": seconds,
        }
