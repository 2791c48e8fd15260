"""I6: what a primary reports of a mirror is never better than what is true there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from target.journal.record import RecordType
from target.journal.superblock import Role
from tests.simulation.checkers.base import Checker
from tests.simulation.history import Node

if TYPE_CHECKING:
    from hostagent.known import Group
    from tests.simulation.scene import Scene
    from tests.simulation.sim_site import SimSite

from hostagent.status import pair_status
from target.errors import ReplctlError

_GRACE_SECONDS = 0.25
_KNOWN_AFTER_SECONDS = 6.0


class StatusTruth(Checker):
    def __init__(self, world: Scene) -> None:
        super().__init__(world)
        self._durable: dict[str, int] = {}
        self._restored: dict[str, int] = {}
        self._followed_at: dict[str, float] = {}

    def followed(self, site: SimSite, before: Node, after: Node) -> None:
        self._durable[site.name] = self._restored[site.name] = after.last
        self._followed_at[site.name] = self.world.clock.now

    def started(self, site: SimSite, after_power_loss: bool) -> None:
        if not site.excused:  # what it had before an accident was told truly; what it has not, it will tell
            self._durable[site.name] = site.really_durable.last

    def stopped(self, site: SimSite, power: bool) -> None:
        self._note(site)

    def data_written(self, site: SimSite, volume: str, offset: int, data: bytes) -> None:
        self._note(site)

    def claimed(self, site: SimSite, node: Node) -> None:
        self._note(site)

    def _note(self, site: SimSite) -> None:
        """How far it ever was in the history it follows; losing power may take restored content back."""
        self._durable[site.name] = max(self._durable.get(site.name, 0), site.really_durable.last)
        applied = site.target.group.background.applied_sequence
        self._restored[site.name] = max(self._restored.get(site.name, 0), applied)

    def noted(self, site: SimSite, note: str, params: dict[str, Any]) -> None:
        """What a secondary tells of itself is true, and what a primary calls ready is on its medium."""
        self._note(site)
        if self.world.clock.now - self._followed_at.get(site.name, -1.0) < _GRACE_SECONDS:
            return  # the agent has not heard yet what its subsystem became
        if note == "mirror.positions":
            told = (("received", self._durable), ("restored", self._restored))
            for what, ever in told:
                if params[what] > ever.get(site.name, 0):
                    self.fail(
                        f"{site.name} says it {what} record {params[what]}; it has {ever.get(site.name, 0)}"
                    )

    def tick(self) -> None:
        since = max(self.world.last_fault_at, *(s.target.started_at for s in self.world.sites.values()))
        if self.world.quiet and self.world.clock.now - since > _KNOWN_AFTER_SECONDS:
            for site in self.world.sites.values():
                if site.excused:
                    self._durable[site.name] = site.really_durable.last
                    self._restored[site.name] = site.target.group.background.applied_sequence
        for site in self.world.sites.values():
            self._note(site)
        for site in self.world.sites.values():
            if not site.target.alive or not site.agent.alive:
                continue
            group = site.agent.manager.groups[self.world.group]
            try:
                shown = pair_status(site.agent.manager, group)
            except ReplctlError:
                continue
            if shown["role"] == "primary" and site.target.group.role is Role.PRIMARY:
                for mirror in shown["mirrors"]:
                    self._look(site, group, mirror)

    def _look(self, site: SimSite, group: Group, mirror: dict[str, object]) -> None:
        name = str(mirror["site"])
        other = self.world.sites[name]
        if not other.target.alive or mirror["status"] not in ("PAIR", "PFUL", "COPY"):
            return
        theirs = other.target.group.journal.superblock
        if theirs.role is not Role.SECONDARY or theirs.primary != site.name:
            return
        told = mirror["sequence"]
        assert isinstance(told, dict)
        if told["received"] > self._durable.get(name, 0):
            self.fail(
                f"{site.name} shows that {name} received record {told['received']}; it never had more than "
                f"{self._durable.get(name, 0)} on its medium"
            )
        if told["restored"] > self._restored.get(name, 0):
            self.fail(
                f"{site.name} shows that {name} restored record {told['restored']}; it was never behind "
                f"{self._restored.get(name, 0)}"
            )
        lag = mirror["lag_seconds"]
        if isinstance(lag, float) and mirror["status"] == "PAIR":
            self._lag(site, name, lag)

    def _lag(self, site: SimSite, name: str, lag: float) -> None:
        """Everything the primary took before now minus the lag is restored."""
        restored = self._restored.get(name, 0)
        node: Node | None = site.node
        oldest: Node | None = None
        while node is not None and node.last > restored:
            if any(record.type in (RecordType.UPDATE, RecordType.ZERO) for record in node.records):
                oldest = node
            node = node.parent
        if oldest is not None and self.world.clock.now - oldest.time > lag + _GRACE_SECONDS:
            self.fail(
                f"{site.name} shows a lag of {lag} s for {name}, which lacks {oldest} of "
                f"{self.world.clock.now - oldest.time:.3f} s ago"
            )
