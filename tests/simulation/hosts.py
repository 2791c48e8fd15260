"""The application hosts: stamped writes on whatever volume takes them, reads that are compared at once."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from target.group import Access
from target.journal.record import RecordType
from target.journal.superblock import Role
from target.volume import Buffer, VolumeError
from tests.simulation.checkers.base import Checker
from tests.simulation.history import SECTOR, Node, apply, stamp_of, stamped
from tests.simulation.violation import Violation

if TYPE_CHECKING:
    from tests.simulation.scene import Scene
    from tests.simulation.sim_site import SimSite


class HostRequest:
    """One command of a host; a `target.volume.Request`."""

    def __init__(
        self, hosts: Hosts, kind: str, site: SimSite, volume: str, offset: int, length: int, fua: bool
    ) -> None:
        self._hosts = hosts
        self.kind = kind
        self.site = site
        self.volume = volume
        self.offset = offset
        self.length = length
        self.fua = fua
        self.number = 0
        self.submitted_at = hosts.world.clock.now
        self.covers: Node | None = None
        """What a flush covers: the last pack with an acknowledged write."""
        self.seen_at = site.node
        self.restarts = site.restarts
        self.expected = b""
        self.ended = False
        self.error: VolumeError | None = None
        self.data: bytes | None = None

    def __repr__(self) -> str:
        fua = " FUA" if self.fua else ""
        place = f"{self.volume} {self.offset // SECTOR}+{self.length // SECTOR}"
        return f"<{self.kind} {self.number}{fua} at {self.site.name}: {place}>"

    def done(self, data: Buffer | None = None) -> None:
        self._end()
        self.data = None if data is None else bytes(data)
        self._hosts.ended(self)

    def failed(self, error: VolumeError) -> None:
        self._end()
        self.error = error
        self._hosts.ended(self)

    def _end(self) -> None:
        if self.ended:
            raise Violation(f"{self} was answered twice")
        self.ended = True


class Hosts(Checker):
    """Submits, and knows which record of which journal is whose."""

    def __init__(self, world: Scene) -> None:
        super().__init__(world)
        self._count = 0
        self._zeros: dict[str, deque[HostRequest]] = {}
        self._acknowledged: dict[str, tuple[tuple[object, int], Node]] = {}
        self.counts: dict[str, int] = {}

    def submit(
        self, kind: str, site: SimSite, volume: str, sector: int, sectors: int, fua: bool
    ) -> HostRequest | None:
        """Send one command, if there is somebody to take it."""
        if not site.target.alive:
            return None
        size = site.target.volumes[volume].size_bytes // SECTOR
        sectors = min(sectors, size)
        sector = min(sector, size - sectors)
        request = HostRequest(self, kind, site, volume, sector * SECTOR, sectors * SECTOR, fua)
        self._count += 1
        request.number = self._count
        self.counts[kind] = self.counts.get(kind, 0) + 1
        target = site.target.volumes[volume]
        self.world.tell("submitted", request)
        if kind == "write":
            buffer = bytearray(stamped(request.number, request.offset, request.length))
            target.write(request.offset, memoryview(buffer), fua, request)

            def reuse() -> None:
                buffer[:] = b"\xee" * len(buffer)  # the front end uses its buffer again after the turn

            site.target.scheduler.at_send(reuse)
        elif kind == "zero":
            self._zeros.setdefault(site.name, deque()).append(request)
            target.zero(request.offset, request.length, fua, request)
        elif kind == "flush":
            before = self._acknowledged.get(site.name)
            if before is not None and before[0] == (site.target.scheduler, site.restarts):
                request.covers = before[1]
            target.flush(request)
        else:
            self._read(request)
        return request

    def _read(self, request: HostRequest) -> None:
        site = request.site
        if site.target.group.role is not Role.SECONDARY and not site.group_failed:
            number = site.target.group.volume_id(request.volume)
            request.expected = bytes(site.image()[number][request.offset : request.offset + request.length])
        site.target.volumes[request.volume].read(request.offset, request.length, request)

    # -- what becomes of it --

    def appending(self, site: SimSite, node: Node, image: object) -> None:
        for index, record in enumerate(node.records):
            if record.type == RecordType.UPDATE:
                number = stamp_of(record.data)
                if number is None or len(record.data) != record.length:
                    self.fail(f"record {node.first + index} of {site.name} is of no host")
                    return
                if record.data != stamped(number, record.offset, record.length):
                    self.fail(f"record {node.first + index} of {site.name} is not what write {number} was")
            elif record.type == RecordType.ZERO:
                number = self._take_zero(site, record.volume, record.offset, record.length)
            else:
                continue
            if number in self.world.history.node_of_write:
                self.fail(f"write {number} was appended twice at {site.name}")
            self.world.history.node_of_write[number] = (node, node.first + index)

    def stopped(self, site: SimSite, power: bool) -> None:
        self._zeros.pop(site.name, None)

    def _take_zero(self, site: SimSite, volume: int, offset: int, length: int) -> int:
        wanted = (site.volume_names[volume], offset, length)
        waiting = self._zeros.get(site.name, deque())
        for request in waiting:
            if (request.volume, request.offset, request.length) == wanted and not request.ended:
                waiting.remove(request)
                return request.number
        self.fail(f"a record of zeros at {site.name}, {offset}+{length}, is of no host")
        return 0

    def ended(self, request: HostRequest) -> None:
        site = request.site
        if request.kind in ("write", "zero") and request.error is None:
            if site.target.group.access not in (Access.SERVE, Access.HOLD, Access.FAILED, Access.READ_ONLY):
                self.fail(f"{request} was taken")
            found = self.world.history.node_of_write.get(request.number)
            if found is not None:
                self._acknowledged[site.name] = ((site.target.scheduler, request.restarts), found[0])
        elif request.kind == "read" and request.error is None and request.expected:
            self._compare(request)
        self.world.tell("answered", request)

    def _compare(self, request: HostRequest) -> None:
        """Exactly what was there when it was asked for, or what was written meanwhile."""
        assert request.data is not None
        if request.data == request.expected:
            return
        site = request.site
        history = self.world.history
        if not history.is_ancestor(request.seen_at, site.node):
            return
        number = site.target.group.volume_id(request.volume)
        versions = [request.expected]
        image = history.image(request.seen_at)
        for node in history.path(request.seen_at, site.node):
            for record in node.records:
                if record.volume == number:
                    apply(image, record)
            versions.append(bytes(image[number][request.offset : request.offset + request.length]))
        for at in range(0, request.length, SECTOR):
            if request.data[at : at + SECTOR] not in {version[at : at + SECTOR] for version in versions}:
                self.fail(
                    f"{request} saw write {stamp_of(request.data[at : at + SECTOR])} in sector "
                    f"{(request.offset + at) // SECTOR}; there was {stamp_of(versions[-1][at : at + SECTOR])}"
                )
