"""One simulated machine: two processes, power that may fail, and its disks of every group."""

from __future__ import annotations

from typing import TYPE_CHECKING

from target.errors import IntegrityError
from tests.simulation.sim_agent import SimAgent
from tests.simulation.sim_scheduler import WALL_START_NS
from tests.simulation.sim_target import SimTarget
from tests.simulation.violation import Crash

if TYPE_CHECKING:
    from tests.simulation.sim_site import SimSite
    from tests.simulation.world import World


class SimMachine:
    """Subsystem, agent, and a `SimSite` a group."""

    def __init__(self, world: World, name: str, state_dir: str) -> None:
        self.world = world
        self.name = name
        self.sites: dict[int, SimSite] = {}
        """Number of a group (also the LUN of its journal) -> what this machine has of it."""
        self.wall_offset_seconds = world.clock.random.uniform(-100.0, 100.0)
        self.slowness = 1.0
        self._crash_countdown: int | None = None
        self._crash_power = False
        self._bitmap_pages_left: int | None = None
        """Power is lost soon after so many more pages of bitmaps were written, before they are flushed."""
        self.lost_power = False
        self.target = SimTarget(world, self)
        self.agent = SimAgent(world, self, state_dir)

    def wall_ns(self) -> int:
        return WALL_START_NS + int((self.world.clock.now + self.wall_offset_seconds) * 1e9)

    # -- life --

    def start_target(self) -> None:
        if self.target.alive:
            return
        try:
            self.target.start()
        except IntegrityError as error:  # its word for a superblock that cannot be read; nothing else is
            if not any(disk.failing for site in self.sites.values() for disk in site.all_disks):
                raise
            self.world.note(f"the subsystem of {self.name} does not start: {error}")
            self.target.scheduler.kill()

    def start_agent(self) -> None:
        if not self.agent.alive:
            self.agent.start()

    def kill_target(self) -> None:
        """The process ends; what it wrote stays in the machine's memory."""
        if self.target.alive:
            self.target.kill()
            for site in self.sites.values():
                site.world.tell("stopped", site, False)

    def power_off(self) -> None:
        """The machine stops; unflushed writes may or may not have reached the disks."""
        self._crash_countdown = self._bitmap_pages_left = None
        if self.target.alive:
            self.target.kill()
        self.agent.kill()
        self.lost_power = True
        for site in self.sites.values():
            for disk in site.all_disks:
                disk.power_off(self.world.clock.random)
            site.world.tell("stopped", site, True)

    def crash_after(self, operations: int, *, power: bool) -> None:
        """Stop in front of the disk operation with this number, counted from now."""
        self._crash_countdown, self._crash_power = operations, power

    def crash_in_commit(self, pages: int) -> None:
        """Lose power where a bitmap is written, after so many pages more."""
        self._bitmap_pages_left, self._crash_power = pages, True

    def bitmap_written(self) -> None:
        """A page of a bitmap is about to be written."""
        if self._bitmap_pages_left is not None:
            self._bitmap_pages_left -= 1
            if self._bitmap_pages_left < 0:
                self._bitmap_pages_left = None
                self.crash_after(self.world.clock.random.randrange(3), power=True)

    def crash_now(self) -> None:
        """The countdown ended, or was waited for long enough."""
        self._crash_countdown = self._bitmap_pages_left = None
        self.target.alive = True  # it may have died while it started
        if self._crash_power:
            self.power_off()
        else:
            self.kill_target()

    @property
    def crash_pending(self) -> bool:
        return self._crash_countdown is not None or self._bitmap_pages_left is not None

    def disk_operation(self) -> None:
        """Something is about to be written or flushed: perhaps it is the last thing that does not happen."""
        if self._crash_countdown is not None:
            self._crash_countdown -= 1
            if self._crash_countdown < 0:
                raise Crash(self)
