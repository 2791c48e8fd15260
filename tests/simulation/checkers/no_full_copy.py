"""I7: a full copy happens in `pair create` and nowhere else.

An extent is copied outside of a create only when one of the sites wrote it since they last were equal, or
since the pair was made: what was never written by anybody is never copied again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from target.journal.record import RecordType
from tests.simulation.checkers.base import Checker
from tests.simulation.history import Image, Node

if TYPE_CHECKING:
    from tests.simulation.hosts import HostRequest
    from tests.simulation.operators import OperatorRequest
    from tests.simulation.scene import Scene
    from tests.simulation.sim_site import SimSite

_EXTENT = 64 << 10


class NoFullCopy(Checker):
    def __init__(self, world: Scene) -> None:
        super().__init__(world)
        self._touched: set[tuple[str, int]] = set()
        self._created_at = 0.0
        self._create_open = False

    def submitted(self, request: HostRequest) -> None:
        if request.kind in ("write", "zero"):
            for extent in range(
                request.offset // _EXTENT, (request.offset + request.length - 1) // _EXTENT + 1
            ):
                self._touched.add((request.volume, extent))

    def asked(self, request: OperatorRequest) -> None:
        if request.op == "pair.create":
            self._create_open = True

    def started(self, site: SimSite, after_power_loss: bool) -> None:
        if site.excused and site.target.group.base_copies:
            self._create_open = True  # what is on the disks may be the middle of a create, which goes on

    def appending(self, site: SimSite, node: Node, image: Image) -> None:
        group = site.target.group
        if any(record.type == RecordType.MARKER for record in node.records) and not group.base_copies:
            return
        if self._create_open:
            # A create ends when its copy has been restored: all bits are clear and the mirrors are pairs.
            if (
                group.mirrors.table
                and all(
                    mirror.entry.state.name == "PAIR" and not mirror.bitmap
                    for mirror in group.mirrors.table.values()
                )
                and not any(request.op == "pair.create" for request in self.world.operators.unanswered)
            ):
                self._create_open = False
            return
        if any(other.had_rot for other in self.world.sites.values()):
            return  # a verify pass repairs what changed at rest
        for record in node.records:
            if record.type not in (RecordType.BASE, RecordType.BASE_ZERO):
                continue
            volume = site.volume_names[record.volume]
            if (volume, record.offset // _EXTENT) not in self._touched:
                self.fail(
                    f"{site.name} copies extent {record.offset // _EXTENT} of {volume} again, which nobody "
                    "ever wrote, and no pair is being made"
                )
