"""The groups of a subsystem and their transfers, without front ends, sockets and files.

What the control operations work on. The daemon (`subsystem`) builds one on real devices and links, the
simulation on simulated ones.
"""

from __future__ import annotations

from collections.abc import Callable

from target.errors import OperatorError
from target.group import ConsistencyGroup
from target.journal.record import Lsn
from target.san.fetch import Fetch, JournalSource

MakeSource = Callable[[str, str, int], JournalSource]
"""(portal, target name, LUN) of a peer's journal -> a source that is not open yet. Where the portal is
"kernel", the target name is the serial number of a block device."""


class Engine:
    """Groups by name, and the fetch that runs for each, if any."""

    def __init__(self, make_source: MakeSource) -> None:
        self._make_source = make_source
        self.groups: dict[str, ConsistencyGroup] = {}
        self.fetches: dict[str, Fetch] = {}
        self._san_luns: dict[str, tuple[int, str]] = {}

    def add(self, group: ConsistencyGroup, san_lun: int, serial: str = "") -> None:
        """Put a group in service; its journal volume is offered under `san_lun`, with a serial number."""
        self.groups[group.name] = group
        self._san_luns[group.name] = san_lun, serial

    def group(self, name: str) -> ConsistencyGroup:
        """A group by name; OperatorError when there is none."""
        group = self.groups.get(name)
        if group is None:
            known = ", ".join(sorted(self.groups)) or "none"
            raise OperatorError(f"there is no group {name!r} here; the groups: {known}")
        return group

    def san_lun(self, name: str) -> tuple[int, str]:
        """Under which LUN, and with which serial number, a group's journal volume is offered."""
        return self._san_luns[name]

    def start_fetch(self, group: ConsistencyGroup, portal: str, target: str, lun: int, lsn: int) -> Fetch:
        """Read a peer's journal from here on; a fetch that runs for this group is replaced."""
        self.stop_fetch(group)
        fetch = Fetch(group, self._make_source(portal, target, lun), Lsn(lsn), group.changed)
        self.fetches[group.name] = fetch
        group.changed()
        return fetch

    def stop_fetch(self, group: ConsistencyGroup) -> None:
        """No more transfer for this group; what arrived stays."""
        fetch = self.fetches.pop(group.name, None)
        if fetch is not None:
            fetch.close()
            group.changed()
