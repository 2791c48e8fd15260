"""No operation hangs for ever: not a host's, not an operator's.

A host's command may wait for long: for space in the journal, for a role to be confirmed. In the end, when all
works again and the pairs are together, each is answered, or the process that had it is gone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.simulation.checkers.base import Checker
from tests.simulation.operators import ANSWER_SECONDS_MAX

if TYPE_CHECKING:
    from tests.simulation.hosts import HostRequest
    from tests.simulation.scene import Scene
    from tests.simulation.sim_site import SimSite


class NoHang(Checker):
    def __init__(self, world: Scene) -> None:
        super().__init__(world)
        self._unanswered: dict[str, set[HostRequest]] = {}

    def submitted(self, request: HostRequest) -> None:
        self._unanswered.setdefault(request.site.name, set()).add(request)

    def answered(self, request: HostRequest) -> None:
        self._unanswered[request.site.name].discard(request)

    def stopped(self, site: SimSite, power: bool) -> None:
        self._unanswered.pop(site.name, None)

    def tick(self) -> None:
        for request in self.world.operators.unanswered:
            if self.world.clock.now - request.asked_at > ANSWER_SECONDS_MAX:
                self.fail(f"{request} was not answered in {ANSWER_SECONDS_MAX:.0f} s")

    def converged(self) -> None:
        for requests in self._unanswered.values():
            for request in sorted(requests, key=lambda request: request.number):
                self.fail(f"{request} was never answered; it was submitted at {request.submitted_at:.3f}")
