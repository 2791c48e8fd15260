"""A marker cuts all volumes at one point: what was acknowledged before it was asked for is in front of it,
what was submitted after it was answered is behind.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.simulation.checkers.base import Checker

if TYPE_CHECKING:
    from tests.simulation.hosts import HostRequest
    from tests.simulation.operators import OperatorRequest
    from tests.simulation.scene import Scene
    from tests.simulation.sim_site import SimSite


class Markers(Checker):
    def __init__(self, world: Scene) -> None:
        super().__init__(world)
        self._acknowledged: dict[str, tuple[int, int]] = {}
        self._before: dict[int, int] = {}
        self._cut: dict[str, tuple[int, bytes]] = {}

    def answered(self, request: HostRequest) -> None:
        found = self.world.history.node_of_write.get(request.number)
        if request.error is not None or found is None:
            return
        _node, sequence = found
        cut = self._cut.get(request.site.name)
        if cut is not None and request.submitted_at > request.site.marked_at and sequence <= cut[0]:
            marker = self.world.history.at_sequence(request.site.node, cut[0])
            if marker.digest == cut[1]:
                self.fail(f"{request} came after the marker at record {cut[0]} and is record {sequence}")
        self._acknowledged[request.site.name] = (request.restarts, sequence)

    def started(self, site: SimSite, after_power_loss: bool) -> None:
        self._acknowledged.pop(site.name, None)  # what was not flushed may be gone, its number used again

    def asked(self, request: OperatorRequest) -> None:
        if request.op == "marker.create":
            restarts, sequence = self._acknowledged.get(request.site.name, (0, 0))
            self._before[id(request)] = sequence if restarts == request.site.restarts else 0

    def told(self, request: OperatorRequest) -> None:
        if request.op != "marker.create" or request.result is None:
            return
        sequence = int(request.result["sequence"])
        site = request.site
        if sequence > site.node.last:
            return  # the site follows another history meanwhile
        before = self._before[id(request)]
        if sequence <= before and site.restarts == request.restarts:
            self.fail(f"the marker is record {sequence}; record {before} was acknowledged before it")
        self._cut[site.name] = (sequence, self.world.history.at_sequence(site.node, sequence).digest)
        site.marked_at = self.world.clock.now
