"""One consistency group on all machines: what was written to it, who works with it, and who watches.

Groups share machines, links and time, and nothing else. Checkers see one scene each: its sites, its history,
its operators; what is common to all is the world's.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from target.journal.format import VolumeShape
from tests.simulation.checkers import ALL
from tests.simulation.checkers.base import Checker
from tests.simulation.history import History
from tests.simulation.hosts import Hosts
from tests.simulation.operators import Operators
from tests.simulation.schedule import VOLUME_NAMES
from tests.simulation.sim_site import SimSite

if TYPE_CHECKING:
    from tests.simulation.links import Paths
    from tests.simulation.schedule import GroupPlan
    from tests.simulation.sim_scheduler import SimClock
    from tests.simulation.world import World


class Scene:
    """`sites`: machine name -> what that machine has of this group."""

    def __init__(self, world: World, number: int, plan: GroupPlan) -> None:
        self.root = world
        self.number = number
        self.group = f"group{number + 1}"
        self.clock: SimClock = world.clock
        self.paths: Paths = world.paths
        self.directory: Path = world.directory
        self.peer_wait_seconds = world.plan.peer_wait_seconds
        self.reigns_since: dict[tuple[str, int], float] = {}
        """(site, reign) -> when it began."""
        self.diverged_since: dict[tuple[str, bytes], float] = {}
        self.history = History(dict(enumerate(plan.volume_bytes, start=1)))
        shapes = tuple(
            VolumeShape(name, size, 512) for name, size in zip(VOLUME_NAMES, plan.volume_bytes, strict=False)
        )
        self.sites: dict[str, SimSite] = {}
        for machine in world.machines.values():
            site = SimSite(self, machine, shapes, plan.journal_bytes)
            self.sites[machine.name] = machine.sites[number] = site
            if plan.small_disks and machine.name == "b":
                for disk in site.disks.values():
                    disk.limit_bytes = disk.size_bytes
        self.operators = Operators(self)
        self.hosts = Hosts(self)
        self._hooks: dict[str, list[Callable[..., None]]] = {}
        self.checkers: Sequence[Checker] = [self.hosts, *(make(self) for make in ALL)]
        for checker in self.checkers:
            for hook in dir(Checker):
                if not hook.startswith("_") and getattr(type(checker), hook) is not getattr(Checker, hook):
                    self._hooks.setdefault(hook, []).append(getattr(checker, hook))

    def tell(self, hook: str, *facts: Any) -> None:
        """Tell every checker that wants to hear it."""
        self.root.trace(hook, facts)
        for call in self._hooks.get(hook, ()):
            call(*facts)

    # -- the world's --

    @property
    def last_fault_at(self) -> float:
        return self.root.last_fault_at

    @property
    def quiet(self) -> bool:
        return self.root.quiet

    @property
    def cold_chance(self) -> float:
        return self.root.cold_chance

    def turn(self) -> None:
        self.root.turn()

    def run_for(self, seconds: float) -> None:
        self.root.run_for(seconds)

    def run_until(self, reached: Callable[[], bool], seconds: float) -> bool:
        return self.root.run_until(reached, seconds)

    @contextlib.contextmanager
    def all_in_memory(self) -> Iterator[None]:
        """A checker's reads are answered at once."""
        chance, self.root.cold_chance = self.root.cold_chance, -1.0
        try:
            yield
        finally:
            self.root.cold_chance = chance
