"""What reached the disks of a small world, in order, and what its host knew at each moment."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from tests.simulation.sim_disk import SimDisk


class Knowledge(NamedTuple):
    """How many commands were sent, answered, and promised to be durable, in their order."""

    submitted: int = 0
    acknowledged: int = 0
    durable: int = 0


class DiskEvent(NamedTuple):
    """One call that changed a disk; `data` is None for a flush."""

    disk: str
    offset: int
    data: bytes | None


@dataclass(slots=True)
class Trace:
    """`knowledge[n]`: the most the host knew between event n - 1 and event n."""

    events: list[DiskEvent] = field(default_factory=list)
    knowledge: list[Knowledge] = field(default_factory=lambda: [Knowledge()])

    def watch(self, disks: dict[str, SimDisk]) -> None:
        """Write down what happens to these disks from now on."""
        for name, disk in disks.items():
            self._watch(name, disk)

    def _watch(self, name: str, disk: SimDisk) -> None:
        disk.on_write = lambda offset, data: self._add(DiskEvent(name, offset, data))
        disk.on_flush = lambda: self._add(DiskEvent(name, 0, None))

    def _add(self, event: DiskEvent) -> None:
        self.events.append(event)
        self.knowledge.append(self.knowledge[-1])

    def submitted(self) -> None:
        last = self.knowledge[-1]
        self.knowledge[-1] = last._replace(submitted=last.submitted + 1)

    def acknowledged(self, count: int) -> None:
        last = self.knowledge[-1]
        self.knowledge[-1] = last._replace(acknowledged=max(last.acknowledged, count))

    def durable(self, count: int) -> None:
        last = self.knowledge[-1]
        self.knowledge[-1] = last._replace(durable=max(last.durable, count))
