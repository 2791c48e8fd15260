"""I4: a secondary never holds a record that the primary it follows could still lose, or has lost."""

from __future__ import annotations

from typing import TYPE_CHECKING

from target.journal.superblock import Role
from tests.simulation.checkers.base import Checker
from tests.simulation.history import Node

if TYPE_CHECKING:
    from tests.simulation.sim_site import SimSite


class ShippedDurable(Checker):
    def received(self, site: SimSite, node: Node) -> None:
        primary = self.world.sites.get(site.target.group.journal.superblock.primary)
        if (
            primary is not None
            and not primary.excused
            and not self.world.history.is_ancestor(node, primary.really_durable)
        ):
            common = self.world.history.common(node, primary.really_durable)
            if common is primary.really_durable:
                self.fail(
                    f"{site.name} took {node}; on the medium of {primary.name} is {primary.really_durable}"
                )

    def _next(self, site: SimSite, other: SimSite) -> str:
        """Who wrote the first pack that only `other` has; its own is of a takeover that broke off."""
        return self.world.history.path(site.node, other.node)[0].site

    def started(self, site: SimSite, after_power_loss: bool) -> None:
        if site.group_failed or site.excused:
            return
        for other in self.world.sites.values():
            if other is site or not other.target.alive:
                continue
            superblock = other.target.group.journal.superblock
            if superblock.role is not Role.SECONDARY or superblock.primary != site.name:
                continue
            common = self.world.history.common(other.node, site.node)
            if common is site.node and other.node is not site.node and self._next(site, other) == site.name:
                self.fail(f"{site.name} came back with {site.node}, and {other.name} has {other.node} of it")
