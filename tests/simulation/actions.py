"""What the steps of a plan do to the world. A step that finds nothing to do does nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from target.group import Access
from target.journal.superblock import Role
from tests.simulation.schedule import (
    FAULT_KINDS,
    FAULTS_MIN,
    HOST_KINDS,
    OPERATIONS_MIN,
    OPERATOR_KINDS,
    SERVING,
    Step,
)
from tests.simulation.sim_machine import SimMachine
from tests.simulation.sim_site import SimSite
from tests.simulation.world import World

_CRASH_AT_LAST_SECONDS = 1.0
_HOST_RETRY_SECONDS = 0.4


class Actions:
    """Does steps."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._over = False
        self.faults = 0
        """Those that met something to disturb."""
        self._table: dict[str, Callable[..., None]] = {
            "start": self._start,
            "kill_target": self._kill_target,
            "kill_agent": self._kill_agent,
            "power": self._power,
            "power_in_commit": self._power_in_commit,
            "cut_management": self._cut_management,
            "cut_one_way": self._cut_one_way,
            "join_management": self._join_management,
            "cut_san": self._cut_san,
            "join_san": self._join_san,
            "slow": self._slow,
            "late": self._late,
            "fail": self._fail,
            "mend": self._mend,
            "keep_agent": self._keep_agent,
            "old_agent": self._old_agent,
            "damage": self._damage,
            "keep_disks": self._keep_disks,
            "revert": self._revert,
            "replace": self._replace,
            "ask": self._ask,
        }

    def perform(self, step: Step) -> None:
        """Do one step; it may find nothing to do."""
        self._world.note(str(step))
        if step.kind in HOST_KINDS:
            self._host(step.kind, *step.args)
            return
        if step.kind not in OPERATOR_KINDS:
            self._world.last_fault_at = self._world.clock.now
        self.faults += step.kind in FAULT_KINDS and self._disturbs(step)
        self._table[step.kind](*step.args)

    def _disturbs(self, step: Step) -> bool:
        """Whether there is something that this fault can change."""
        if step.kind in ("kill_target", "power", "power_in_commit"):
            return self._machine(step.args[0]).target.alive
        if step.kind in ("kill_agent", "old_agent"):
            return self._machine(step.args[0]).agent.alive
        return True

    def _site(self, group: int, name: str) -> SimSite | None:
        sites = self._world.scenes[group].sites
        if name != SERVING:
            return sites[name]
        for site in sites.values():
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

    # -- hosts and operators --

    def _host(
        self, kind: str, group: int, name: str, volume: int, sector: int, sectors: int, fua: bool
    ) -> None:
        """A host that finds nobody tries again, as hosts do."""
        site = self._site(group, name)
        if site is not None and site.target.alive:
            hosts = self._world.scenes[group].hosts
            hosts.submit(kind, site, site.shapes[volume].name, sector, sectors, fua)
        elif not self._over:

            def again() -> None:
                self._host(kind, group, name, volume, sector, sectors, fua)

            self._world.clock.at(_HOST_RETRY_SECONDS, again, self._world)

    def _ask(self, group: int, name: str, op: str, params: tuple[tuple[str, Any], ...]) -> None:
        site = self._site(group, name)
        if site is not None:
            self._world.scenes[group].operators.ask(site, op, **dict(params))

    # -- processes and machines --

    def _machine(self, name: str) -> SimMachine:
        return self._world.machines[name]

    def _start(self, name: str) -> None:
        machine = self._machine(name)
        if machine.crash_pending:
            machine.crash_now()
        machine.start_target()
        machine.start_agent()

    def _kill_target(self, name: str, after: int) -> None:
        self._crash(self._machine(name), after, power=False)

    def _power(self, name: str, after: int) -> None:
        self._crash(self._machine(name), after, power=True)

    def _power_in_commit(self, name: str, pages: int) -> None:
        self._machine(name).crash_in_commit(pages)
        self._crash_at_last(self._machine(name))

    def _crash(self, machine: SimMachine, after: int, *, power: bool) -> None:
        machine.crash_after(after, power=power)
        if after == 0:
            machine.crash_now()
        else:
            self._crash_at_last(machine)

    def _crash_at_last(self, machine: SimMachine) -> None:
        def at_last() -> None:
            if machine.crash_pending:
                machine.crash_now()

        self._world.clock.at(_CRASH_AT_LAST_SECONDS, at_last, self._world)

    def _kill_agent(self, name: str) -> None:
        self._machine(name).agent.kill()

    def _keep_agent(self, name: str) -> None:
        self._machine(name).agent.keep_store()

    def _old_agent(self, name: str) -> None:
        self._machine(name).agent.kill()
        self._machine(name).agent.back_to_kept_store()

    # -- links --

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

    def _late(self, factor: float) -> None:
        self._world.paths.latency_factor = factor

    # -- disks --

    def _slow(self, name: str, factor: float) -> None:
        machine = self._machine(name)
        machine.slowness = machine.target.scheduler.slowness = factor

    def _fail(self, name: str, group: int, disk: int, what: str, after: int) -> None:
        self._world.scenes[group].sites[name].fail_disk(disk, what, after)

    def _mend(self, name: str) -> None:
        """The disk is whole again: an operator starts a subsystem anew that has given up a group."""
        machine = self._machine(name)
        for site in machine.sites.values():
            site.mend_disks()
        if machine.target.alive and any(site.group_failed for site in machine.sites.values()):
            machine.kill_target()
            machine.start_target()

    def _damage(self, name: str, group: int, what: str, number: int) -> None:
        self._machine(name).power_off()
        self._world.scenes[group].sites[name].damage(what, number)

    def _keep_disks(self, name: str) -> None:
        for site in self._machine(name).sites.values():
            site.keep_disks()
        self._machine(name).agent.keep_store()

    def _revert(self, name: str) -> None:
        """The whole machine is as it was in its last backup."""
        machine = self._machine(name)
        machine.power_off()
        for site in machine.sites.values():
            site.revert_disks()
        machine.agent.back_to_kept_store()

    def _replace(self, name: str) -> None:
        """Another machine with the same name and empty disks."""
        machine = self._machine(name)
        machine.power_off()
        for site in machine.sites.values():
            site.replace_disks()
        machine.agent.new_store()

    # -- the end --

    def enough_faults(self) -> None:
        """Some found nothing to disturb: more, until there were enough."""
        while self.faults < FAULTS_MIN:
            machine = self._world.clock.random.choice(list(self._world.machines))
            self.perform(Step(self._world.clock.now, "power", (machine, 0)))
            self._world.run_for(0.2)
            self.perform(Step(self._world.clock.now, "start", (machine,)))
            self._world.run_for(0.3)

    def enough_operations(self) -> bool:
        """Hosts that found nobody go on when all is well again; False when they had done enough."""
        rng = self._world.clock.random
        before = self._world.clock.now
        while sum(sum(scene.hosts.counts.values()) for scene in self._world.scenes) < OPERATIONS_MIN:
            scene = rng.choice(self._world.scenes)
            site = self._site(scene.number, SERVING)
            if site is not None and site.target.alive:
                kind = rng.choice(("write", "write", "write", "read", "zero", "flush"))
                volume = rng.choice(site.shapes).name
                scene.hosts.submit(kind, site, volume, rng.randrange(2048), rng.choice((1, 8, 9)), False)
            self._world.run_for(0.02)
        return self._world.clock.now > before

    def end_of_faults(self) -> None:
        """Everything works from here on, and no host writes."""
        world = self._world
        world.note("end of faults")
        self._over = True
        world.paths.join_all()
        for machine in world.machines.values():
            if machine.crash_pending:
                machine.crash_now()
            self._slow(machine.name, 1.0)
            for site in machine.sites.values():
                for disk in site.disks.values():
                    disk.limit_bytes = 1 << 40  # somebody gave it room
            self._mend(machine.name)
            machine.start_target()
            machine.start_agent()
        world.last_fault_at = world.clock.now
