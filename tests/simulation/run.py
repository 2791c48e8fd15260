"""One run: the steps of a plan, the end of all faults, then what a person does to bring sites together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from target.group import Access
from target.journal.superblock import Role
from tests.simulation.reunite import reunite
from tests.simulation.schedule import SERVING, Plan, Step
from tests.simulation.sim_site import SimSite
from tests.simulation.violation import Violation
from tests.simulation.world import World

_CRASH_AT_LAST_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended. `violation` is '' when everything held."""

    seed: int
    violation: str
    trace: str
    simulated_seconds: float
    host_operations: int
    faults: int
    counts: dict[str, int]
    story: tuple[str, ...] = ()


def run(plan: Plan, *, story: bool = False) -> Outcome:
    """Run a plan to its end, or to the first violation."""
    world = World(plan)
    world.tell_story = story
    violation = ""
    with world:
        try:
            world.start()
            actions = Actions(world)
            for step in plan.steps:
                world.clock.at(step.time, lambda step=step: actions.perform(step), world)  # type: ignore[misc]
            world.run_for((plan.steps[-1].time if plan.steps else 0.0) + 0.5)
            actions.end_of_faults()
            reunite(world)
            world.tell("converged")
        except Violation as broken:
            violation = f"at {world.clock.now:.3f} s: {broken}"
        return Outcome(
            plan.seed,
            violation,
            world.trace_digest,
            world.clock.now,
            plan.host_operations,
            plan.faults,
            dict(world.hosts.counts) | world.operators.counts,
            tuple(world.story),
        )


class Actions:
    """Does steps."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._table: dict[str, Callable[..., None]] = {
            "start": self._start,
            "kill_target": self._kill_target,
            "kill_agent": self._kill_agent,
            "power": self._power,
            "cut_management": self._cut_management,
            "cut_one_way": self._cut_one_way,
            "join_management": self._join_management,
            "cut_san": self._cut_san,
            "join_san": self._join_san,
            "slow": self._slow,
            "late": self._late,
            "ask": self._ask,
        }

    def perform(self, step: Step) -> None:
        """Do one step; it may find nothing to do."""
        self._world.note(str(step))
        if step.kind in ("write", "zero", "flush", "read"):
            self._host(step.kind, *step.args)
            return
        if step.kind != "ask":
            self._world.last_fault_at = self._world.clock.now
        self._table[step.kind](*step.args)

    def _site(self, name: str) -> SimSite | None:
        if name != SERVING:
            return self._world.sites[name]
        for site in self._world.sites.values():
            if (
                site.target.alive
                and site.target.group.access is Access.SERVE
                and (
                    site.target.group.role is not Role.PRIMARY
                    or not site.target.group.journal.superblock.primary
                )
            ):
                return site
        return None

    def _host(self, kind: str, name: str, volume: int, sector: int, sectors: int, fua: bool) -> None:
        site = self._site(name)
        if site is not None:
            self._world.hosts.submit(kind, site, site.shapes[volume].name, sector, sectors, fua)

    def _start(self, name: str) -> None:
        site = self._world.sites[name]
        if site.crash_pending:
            site.crash_now()
        site.start_target()
        site.start_agent()

    def _kill_target(self, name: str, after: int) -> None:
        site = self._site(name)
        if site is not None:
            self._crash(site, after, power=False)

    def _power(self, name: str, after: int) -> None:
        site = self._site(name)
        if site is not None:
            self._crash(site, after, power=True)

    def _crash(self, site: SimSite, after: int, *, power: bool) -> None:
        site.crash_after(after, power=power)
        if after == 0:
            site.crash_now()
            return

        def at_last() -> None:
            if site.crash_pending:
                site.crash_now()

        self._world.clock.at(_CRASH_AT_LAST_SECONDS, at_last, self._world)

    def _kill_agent(self, name: str) -> None:
        self._world.sites[name].agent.kill()

    def _cut_management(self, one: str, other: str) -> None:
        self._world.paths.cut_management(one, other)
        self._world.paths.cut_management(other, one)

    def _cut_one_way(self, one: str, other: str) -> None:
        self._world.paths.cut_management(one, other)

    def _join_management(self, one: str, other: str) -> None:
        self._world.paths.join_management(one, other)
        self._world.paths.join_management(other, one)

    def _cut_san(self, one: str, other: str) -> None:
        self._world.paths.cut_san(one, other)

    def _join_san(self, one: str, other: str) -> None:
        self._world.paths.join_san(one, other)

    def _slow(self, name: str, factor: float) -> None:
        site = self._world.sites[name]
        site.slowness = site.target.scheduler.slowness = factor

    def _late(self, factor: float) -> None:
        self._world.paths.latency_factor = factor

    def _ask(self, name: str, op: str, params: tuple[tuple[str, Any], ...]) -> None:
        site = self._site(name)
        if site is not None:
            self._world.operators.ask(site, op, **dict(params))

    def end_of_faults(self) -> None:
        """Everything works from here on, and no host writes."""
        world = self._world
        world.note("end of faults")
        world.paths.join_all()
        for site in world.sites.values():
            if site.crash_pending:
                site.crash_now()
            for disk in (*site.disks.values(), site.journal_disk):
                disk.fail_reads = disk.fail_writes = disk.fail_flushes = None
            if site.failed_on_purpose:
                site.kill_target()
            self._slow(site.name, 1.0)
            site.start_target()
            site.start_agent()
        world.last_fault_at = world.clock.now
