"""A divergence is reported as one: two sites with different histories are never in PAIR."""

from __future__ import annotations

from typing import TYPE_CHECKING

from target.journal.superblock import Flag, MirrorState, Role
from tests.simulation.checkers.base import Checker

if TYPE_CHECKING:
    from tests.simulation.sim_site import SimSite

_KNOWN_AFTER_SECONDS = 6.0


class Divergence(Checker):
    def tick(self) -> None:
        if not self.world.quiet or self.world.clock.now - self.world.last_fault_at < _KNOWN_AFTER_SECONDS:
            return
        for site in self.world.sites.values():
            if not site.target.alive or site.target.group.role is not Role.PRIMARY:
                continue
            # A superseded site shows PSUE for all its pairs.
            if not site.target.group.journal.superblock.flags & Flag.SUPERSEDED:
                self._look(site)

    def _look(self, site: SimSite) -> None:
        for mirror in site.target.group.mirrors.table.values():
            other = self.world.sites[mirror.name]
            if mirror.entry.state is not MirrorState.PAIR or not other.target.alive:
                continue
            theirs = other.target.group.journal.superblock
            if theirs.role is not Role.SECONDARY or theirs.primary != site.name:
                continue
            common = self.world.history.common(site.node, other.node)
            if common is not other.node:
                since = self.world.diverged_since.setdefault(
                    (site.name, other.node.digest), self.world.clock.now
                )
                if self.world.clock.now - since > _KNOWN_AFTER_SECONDS:
                    self.fail(
                        f"{mirror.name} is in PAIR with {site.name} and has {other.node}, which that has not"
                    )
