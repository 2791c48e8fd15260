"""Nobody takes writes who knows, or could have asked, that another reigns.

An old primary that returns asks first, unless an operator has it serve without the peers' word (takeover
--force); one that promised its role serves nothing until it has heard the outcome; after a planned takeover
nothing that was acknowledged is missing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from target.group import Access
from target.journal.record import RecordType
from target.journal.superblock import Role
from tests.simulation.checkers.base import Checker
from tests.simulation.history import Node

if TYPE_CHECKING:
    from tests.simulation.hosts import HostRequest
    from tests.simulation.operators import OperatorRequest
    from tests.simulation.scene import Scene
    from tests.simulation.sim_site import SimSite

_KNOWN_AFTER_SECONDS = 6.0
"""A link is up again, and the sites have told each other what they are."""


class OneWriter(Checker):
    def __init__(self, world: Scene) -> None:
        super().__init__(world)
        self._forced_at: dict[str, float] = {}

    def asked(self, request: OperatorRequest) -> None:
        if request.op == "takeover" and request.params.get("force"):
            self._forced_at[request.site.name] = self.world.clock.now

    def answered(self, request: HostRequest) -> None:
        if request.kind not in ("write", "zero") or request.error is not None:
            return
        site = request.site
        group = site.target.group
        mine = group.journal.superblock
        if group.role is not Role.PRIMARY or mine.primary:
            return
        for other in self._reigning(site):
            theirs = other.target.group.journal.superblock
            begun_at = self.world.reigns_since.get((other.name, theirs.reign))
            if theirs.epoch <= mine.epoch or begun_at is None:
                continue
            forced = self._forced_at.get(site.name, -1.0) >= site.target.started_at
            if (
                not forced
                and begun_at < site.target.started_at
                and self._could_ask(site, other, site.target.started_at)
            ):
                waited = self.world.clock.now - site.target.started_at
                if waited < self.world.peer_wait_seconds:
                    self.fail(
                        f"{site.name} came back and took {request}; {other.name} reigns since {begun_at:.3f}"
                    )
            since = max(begun_at, self.world.last_fault_at, site.agent.started_at, other.agent.started_at)
            if self.world.quiet and self.world.clock.now - since > _KNOWN_AFTER_SECONDS:
                self.fail(f"{site.name} took {request}, and {other.name} reigns in epoch {theirs.epoch}")

    def tick(self) -> None:
        """Two sites do not go on serving one group once they can speak, unless that is reported."""
        if not self.world.quiet or self.world.clock.now - self.world.last_fault_at < _KNOWN_AFTER_SECONDS:
            return
        serving = [
            site
            for site in self.world.sites.values()
            if site.target.alive
            and site.target.group.role is Role.PRIMARY
            and site.target.group.access is Access.SERVE
            and not site.target.group.journal.superblock.primary
        ]
        if len(serving) < 2:
            return
        one, other = serving[0], serving[1]
        mine, theirs = one.target.group.journal.superblock, other.target.group.journal.superblock
        since = max(
            self.world.reigns_since.get((s.name, s.target.group.journal.superblock.reign), 0.0)
            for s in serving
        )
        if mine.group_id != theirs.group_id or self.world.clock.now - since < _KNOWN_AFTER_SECONDS:
            return
        conflicts = [site.agent.manager.groups[self.world.group].conflict for site in serving]
        if mine.epoch != theirs.epoch or not any(conflicts):
            self.fail(
                f"{one.name} (epoch {mine.epoch}) and {other.name} (epoch {theirs.epoch}) both serve and do "
                f"not say so: {conflicts}"
            )

    def followed(self, site: SimSite, before: Node, after: Node) -> None:
        """The old primary of a planned takeover has nothing that the new one lacks."""
        for request in self.world.operators.unanswered:
            if request.op != "takeover" or request.params.get("force") or request.site is site:
                continue
            if not request.agent_runs("takeover") or self._forced_at.get(site.name, -1.0) >= request.asked_at:
                continue
            common = self.world.history.common(before, after)
            if common is None or request.site.restarts != request.restarts:
                continue
            for node in self.world.history.path(common, before):
                if any(record.type in (RecordType.UPDATE, RecordType.ZERO) for record in node.records):
                    self.fail(f"{request} is planned, and {site.name} has {node} that is lost by it")

    def told(self, request: OperatorRequest) -> None:
        if request.op != "takeover" or request.result is None or request.params.get("force"):
            return
        plan = request.result.get("plan")
        if plan is None or plan["mode"] != "planned" or not plan["old_primary"]:
            return
        old = self.world.sites[plan["old_primary"]]
        if not old.target.alive or not request.site.target.alive:
            return
        if self._forced_at.get(old.name, -1.0) >= request.asked_at:
            return  # an operator had it serve all the same
        common = self.world.history.common(old.node, request.site.node)
        if common is old.node or common is None:
            return
        begun = request.site.target.group.journal.superblock.epochs[-1].fork_sequence
        for node in self.world.history.path(common, old.node):
            if (
                node.site == old.name
                and node.last > begun
                and any(record.type in (1, 2) for record in node.records)
            ):
                self.fail(f"{request} succeeded, and {old.name} had {node} beside it")

    def _reigning(self, site: SimSite) -> list[SimSite]:
        return [
            other
            for other in self.world.sites.values()
            if other is not site
            and other.target.alive
            and not other.group_failed
            and other.target.group.role is Role.PRIMARY
            and not other.target.group.journal.superblock.primary
            and other.target.group.journal.superblock.group_id
            == site.target.group.journal.superblock.group_id
        ]

    def _could_ask(self, site: SimSite, other: SimSite, since: float) -> bool:
        """Both agents and every link were there the whole time."""
        return (
            self.world.quiet
            and self.world.last_fault_at <= since
            and site.agent.alive
            and other.agent.alive
            and other.agent.started_at < since
            and other.target.started_at < since
        )
