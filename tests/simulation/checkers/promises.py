"""I1: what a host was told survives: flushed writes any crash, acknowledged ones the death of the process.

And what the engine calls durable, to the host agent or to a peer, is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from target.volume import VolumeError
from tests.simulation.checkers.base import Checker
from tests.simulation.history import Node

if TYPE_CHECKING:
    from tests.simulation.hosts import HostRequest
    from tests.simulation.sim_site import SimSite


class Promises(Checker):
    def answered(self, request: HostRequest) -> None:
        site = request.site
        if request.error is not None:
            if request.error is VolumeError.WRITE_FAILED and not site.failed_on_purpose:
                self.fail(
                    f"{request} failed although no disk of {site.name} does: {site.target.group.reason}"
                )
            return
        if request.restarts != site.restarts:
            return  # the operator had this site follow another history meanwhile
        history = self.world.history
        if request.kind in ("write", "zero"):
            found = history.node_of_write.get(request.number)
            if found is None:
                self.fail(f"{request} was acknowledged and is in no journal")
                return
            node, _ = found
            if not history.is_ancestor(node, site.node):
                self.fail(f"{request} was acknowledged and is not in the history {site.name} serves")
            if request.fua:
                self._durable(request, node)
            site.must_hold(node, durable=request.fua)
        elif request.kind == "flush" and request.covers is not None:
            if history.is_ancestor(request.covers, site.node):
                self._durable(request, request.covers)
                site.must_hold(request.covers, durable=True)
            else:
                self.fail(f"{request}: what it covers is gone from {site.name}")

    def _durable(self, request: HostRequest, node: Node) -> None:
        if not self.world.history.is_ancestor(node, request.site.really_durable):
            self.fail(f"{request} was answered before {node} was on the medium of {request.site.name}")

    def claimed(self, site: SimSite, node: Node) -> None:
        if not self.world.history.is_ancestor(node, site.really_durable):
            self.fail(f"{site.name} calls {node} durable; on the medium is {site.really_durable}")

    def started(self, site: SimSite, after_power_loss: bool) -> None:
        promised = [("was flushed", site.required), ("was called durable", site.claimed)]
        if not after_power_loss:
            promised.append(("was acknowledged", site.acknowledged))
        if site.group_failed:
            if not site.failed_on_purpose:
                self.fail(f"{site.name} came up damaged: {site.target.group.reason}")
            if after_power_loss:
                site.acknowledged = None
            return
        for what, node in promised:
            if node is not None and not self.world.history.is_ancestor(node, site.node):
                self.fail(f"{site.name} came back with {site.node}, but {node} {what}")
        site.required = site.acknowledged = None
        site.must_hold(site.node, durable=True)  # recovery has flushed what it found
