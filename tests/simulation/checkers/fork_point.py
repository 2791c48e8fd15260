"""A divergence is reported with the right fork point: what a merge takes for common is common, and where
histories are called different, they are.

A fork that is named too late leaves what the sites wrote alone in place, silently; one that is reported where
there is none costs a full copy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from target.errors import ConflictError
from tests.simulation.checkers.base import Checker

if TYPE_CHECKING:
    from tests.simulation.operators import OperatorRequest
    from tests.simulation.sim_site import SimSite


class ForkPoint(Checker):
    def resyncing(self, site: SimSite, mirror: str, common: int) -> None:
        other = self.world.sites[mirror]
        if not other.target.alive or other.group_failed:
            return  # it does not follow before it was asked again
        last = self._last_common(site, other)
        if common > last:
            self.fail(
                f"{site.name} merges {mirror} from record {common} on; they share nothing behind {last}: "
                f"{site.node} and {other.node}"
            )

    def told(self, request: OperatorRequest) -> None:
        error = request.error
        if not isinstance(error, ConflictError) or "have different histories at record" not in str(error):
            return
        site, named = request.site, error.facts["sequence"]
        assert isinstance(named, int)
        other = self.world.sites[request.params["secondary"]]
        if request.restarts == site.restarts and named <= self._last_common(site, other):
            self.fail(f"{request}: {error}; {site.node} and {other.node} share that record")

    def _last_common(self, site: SimSite, other: SimSite) -> int:
        common = self.world.history.common(site.node, other.node)
        return 0 if common is None else common.last
