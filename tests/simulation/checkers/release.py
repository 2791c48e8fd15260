"""Nothing is released before it may be: a record leaves the primary's ring when every mirror has it on its
medium, or when its blocks are marked for that mirror.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from target.journal.superblock import Position, Role
from tests.simulation.checkers.base import Checker

if TYPE_CHECKING:
    from tests.simulation.sim_site import SimSite


class Release(Checker):
    def tail_moved(self, site: SimSite, to: Position) -> None:
        group = site.target.group
        history = self.world.history
        if to.sequence > group.journal.superblock.checkpoint_sequence:
            self.fail(f"{site.name} lets go of record {to.sequence}, which is not on its own volumes durably")
        for mirror in group.mirrors.table.values():
            other = self.world.sites[mirror.name]
            if (
                mirror.entry.received < to.sequence
                or not mirror.flows
                or not other.target.alive
                or other.excused
            ):
                continue  # what was discarded is marked: `Images` finds a block that was not
            if site.agent.alive and site.agent.manager.flows.doing(self.world.group) == "pair resync":
                continue  # all that it lacks is marked; it is about to be told to follow from here on
            theirs = other.target.group.journal.superblock
            if theirs.role is not Role.SECONDARY or theirs.primary != site.name:
                continue
            here = history.at_sequence(site.node, to.sequence)
            if history.common(here, other.really_durable) is other.really_durable is not here:
                self.fail(
                    f"{site.name} lets go of record {to.sequence}; {mirror.name} has "
                    f"{other.really_durable} on its medium"
                )
