"""I3: a data volume never gets a write that the durable journal of the same site does not hold."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.simulation.checkers.base import Checker
from tests.simulation.history import SECTOR, stamp_of

if TYPE_CHECKING:
    from tests.simulation.sim_site import SimSite


class DataBehindJournal(Checker):
    def data_written(self, site: SimSite, volume: str, offset: int, data: bytes) -> None:
        durable = site.really_durable.last
        node_of_write = self.world.history.node_of_write
        for at in range(0, len(data), SECTOR):
            number = stamp_of(memoryview(data)[at : at + 16])
            if number is None:
                continue
            found = node_of_write.get(number)
            if found is None:
                self.fail(f"{volume} of {site.name} gets write {number}, which is in no journal")
            elif found[1] > durable and self.world.history.is_ancestor(site.really_durable, found[0]):
                self.fail(
                    f"{volume} of {site.name} gets write {number}, record {found[1]}; its journal is on the "
                    f"medium up to {durable}"
                )
