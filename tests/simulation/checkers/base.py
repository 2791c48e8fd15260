"""What a checker may be told. Each method is called when that happens; the default does not care."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from target.group import Access
from target.journal.superblock import Position
from tests.simulation.history import Image, Node
from tests.simulation.violation import Violation

if TYPE_CHECKING:
    from tests.simulation.hosts import HostRequest
    from tests.simulation.operators import OperatorRequest
    from tests.simulation.scene import Scene
    from tests.simulation.sim_site import SimSite


class Checker:
    """Raises `Violation`."""

    def __init__(self, world: Scene) -> None:
        self.world = world

    def fail(self, text: str) -> None:
        """An invariant is broken."""
        raise Violation(f"{type(self).__name__}: {text}")

    # -- sites --

    def started(self, site: SimSite, after_power_loss: bool) -> None:
        """The subsystem has recovered its journal; `site.node` is what it found."""

    def stopped(self, site: SimSite, power: bool) -> None:
        """The subsystem's process is gone, perhaps with its machine."""

    def access_changed(self, site: SimSite, before: Access, after: Access) -> None:
        """Hosts may do something else now."""

    # -- journals --

    def appending(self, site: SimSite, node: Node, image: Image) -> None:
        """A pack was appended to a journal; `image` is what the volumes held before it."""

    def appended(self, site: SimSite, node: Node) -> None:
        """The same, afterwards."""

    def received(self, site: SimSite, node: Node) -> None:
        """A pack of a peer was appended."""

    def followed(self, site: SimSite, before: Node, after: Node) -> None:
        """The site gave up its history behind `after` (or all of it) and follows another one."""

    def claimed(self, site: SimSite, node: Node) -> None:
        """The engine says that everything up to this pack is durable."""

    def tail_moved(self, site: SimSite, to: Position) -> None:
        """The ring may be reused up to here, once that is durable."""

    def data_written(self, site: SimSite, volume: str, offset: int, data: bytes) -> None:
        """The engine writes a data volume."""

    def resyncing(self, site: SimSite, mirror: str, common: int) -> None:
        """A primary is told to merge a mirror that shares its history up to a record."""

    # -- hosts and operators --

    def submitted(self, request: HostRequest) -> None:
        """A host's command reached the volume."""

    def answered(self, request: HostRequest) -> None:
        """A host's command was answered, well or not."""

    def asked(self, request: OperatorRequest) -> None:
        """An operator's request was sent to an agent."""

    def told(self, request: OperatorRequest) -> None:
        """An operator's request was answered."""

    def noted(self, site: SimSite, note: str, params: dict[str, Any]) -> None:
        """An agent tells a peer something."""

    # -- time --

    def tick(self) -> None:
        """Half a second went by."""

    def converged(self) -> None:
        """The faults are over, the pairs are together again and nothing is written."""
