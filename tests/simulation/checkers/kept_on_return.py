"""What a site wrote alone is never overwritten silently: before it follows another history in a resync, the
records that nobody else has are in an export beside it. Only `pair create` gives a site's content up.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from target.journal.record import BLOCK_BYTES, RecordType, decode_header
from tests.simulation.checkers.base import Checker
from tests.simulation.history import Node

if TYPE_CHECKING:
    from tests.simulation.sim_site import SimSite


class KeptOnReturn(Checker):
    def followed(self, site: SimSite, before: Node, after: Node) -> None:
        if after.parent is None or self._is_create(site):
            return
        common = self.world.history.common(before, after)
        if common is None or common is before:
            return
        tail = site.target_tail_sequence
        lost = [
            node
            for node in self.world.history.path(common, before)
            if node.last > tail
            and any(record.type in (RecordType.UPDATE, RecordType.ZERO) for record in node.records)
        ]
        if not lost:
            return
        exported = self._exported(site)
        missing = [node for node in lost if node.digest not in exported]
        if missing:
            self.fail(
                f"{site.name} gives up {missing[0]} and {len(missing) - 1} more packs that no other site "
                "has, and they were not exported"
            )

    def _is_create(self, site: SimSite) -> bool:
        """The pair is being made anew somewhere."""
        return any(
            other.agent.alive and other.agent.manager.flows.doing(self.world.group) == "pair create"
            for other in self.world.sites.values()
            if other is not site
        )

    def _exported(self, site: SimSite) -> set[bytes]:
        digests: set[bytes] = set()
        directory = self.world.directory / site.name / "exports"
        for path in directory.glob("*.journal") if directory.is_dir() else ():
            content, at = path.read_bytes(), 0
            while at + BLOCK_BYTES <= len(content):
                header = decode_header(memoryview(content)[at : at + BLOCK_BYTES])
                if header is None:
                    break
                digests.add(header.digest)
                at += header.total_length
        return digests
