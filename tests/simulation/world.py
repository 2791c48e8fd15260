"""The whole system in one thread: machines and links, and a scene for each group with all who act in it."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any
from unittest.mock import patch

from target import background, base_copy
from target.journal import scan
from tests.simulation.hosts import HostRequest
from tests.simulation.links import Paths
from tests.simulation.operators import OperatorRequest
from tests.simulation.scene import Scene
from tests.simulation.schedule import Plan
from tests.simulation.sim_machine import SimMachine
from tests.simulation.sim_scheduler import SimClock
from tests.simulation.sim_site import SimSite
from tests.simulation.violation import Crash, Violation

_TICK_SECONDS = 0.5
_LOGGERS = ("hostagent", "target")
_SHM = Path("/dev/shm")
_TRACED = frozenset(("appended", "received", "followed", "started", "stopped", "answered", "told"))


class World:
    """Everything of one run. Use as a context: exports of journals need a directory."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.clock = SimClock(plan.seed)
        self.peer_wait_seconds = plan.peer_wait_seconds
        self.serve_without_peers = plan.serve_without_peers
        self.replays = plan.replays
        self.cold_chance = plan.cold_chance
        self.last_fault_at = 0.0
        self.paths = Paths(self)
        self._directory = tempfile.TemporaryDirectory(
            prefix="replctl-sim-", dir=_SHM if _SHM.is_dir() else None, ignore_cleanup_errors=True
        )
        self.directory = Path(self._directory.name)
        self._trace = hashlib.sha256()
        self.story: list[str] = []
        """What happened, for a person; only kept when asked for."""
        self.tell_story = False
        self.machines = {name: SimMachine(self, name, str(self.directory / name)) for name in plan.sites}
        self.scenes = [Scene(self, number, group) for number, group in enumerate(plan.groups)]

    def __enter__(self) -> World:
        # The rings are small, and every start reads them: no more than they hold.
        self._small = contextlib.ExitStack()
        self._small.enter_context(patch.object(scan, "_WINDOW_BYTES", 64 << 10))
        self._small.enter_context(patch.object(background, "ARENA_BYTES", 256 << 10))
        # The volumes are small too: a copy takes several commits all the same, and can be cut short in each.
        self._small.enter_context(patch.object(base_copy, "_STEP_BYTES", 128 << 10))
        self._small.enter_context(patch.object(base_copy, "_UNDURABLE_BYTES_MAX", 192 << 10))
        self._log = _Mistakes(self)
        for name in _LOGGERS:
            logging.getLogger(name).addHandler(self._log)
            if self.tell_story:
                logging.getLogger(name).setLevel(logging.INFO)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._small.close()
        for name in _LOGGERS:
            logging.getLogger(name).removeHandler(self._log)
        for machine in self.machines.values():
            machine.agent.store.close()
        self._directory.cleanup()

    # -- what is told --

    def trace(self, hook: str, facts: tuple[Any, ...]) -> None:
        """The digest of all that happened, and its story."""
        if hook in _TRACED:
            line = f"{self.clock.now:.6f} {hook} {' '.join(map(_fact, facts))}"
            self._trace.update(line.encode())
            if self.tell_story:
                self.story.append(line)

    def note(self, text: str) -> None:
        """A line of the story."""
        self._trace.update(text.encode())
        if self.tell_story:
            self.story.append(f"{self.clock.now:.6f} -- {text}")

    @property
    def trace_digest(self) -> str:
        """The same for the same run."""
        return self._trace.hexdigest()[:16]

    # -- time --

    def turn(self) -> None:
        """The next event, whatever it is."""
        try:
            if not self.clock.step():
                raise Violation("nothing is left that could happen")
        except Crash as crash:
            self.note(f"{crash.machine.name} stops in the middle of something")
            crash.machine.crash_now()
        except Exception as mistake:
            where = "".join(traceback.format_exception(mistake)[-4:])
            raise Violation(f"a process died of {mistake!r}:\n{where}") from mistake

    def run_for(self, seconds: float) -> None:
        end = self.clock.now + seconds
        self.clock.at(seconds, lambda: None, self)
        while self.clock.now < end:
            self.turn()

    def run_until(self, reached: Callable[[], bool], seconds: float) -> bool:
        """False when it was not reached in time."""
        end = self.clock.now + seconds
        while not reached():
            if self.clock.now >= end:
                return False
            self.turn()
        return True

    def start(self) -> None:
        """Everything is switched on."""
        for machine in self.machines.values():
            machine.start_target()
            machine.start_agent()
        self.clock.at(_TICK_SECONDS, self._tick, self)

    def _tick(self) -> None:
        self.clock.at(_TICK_SECONDS, self._tick, self)
        for scene in self.scenes:
            scene.tell("tick")

    @property
    def quiet(self) -> bool:
        """Everything runs, every path is open and quick."""
        return (
            self.paths.whole
            and self.paths.latency_factor == 1.0
            and all(
                machine.target.alive
                and machine.agent.alive
                and machine.slowness == 1.0
                and not machine.crash_pending
                and not any(disk.failing for site in machine.sites.values() for disk in site.all_disks)
                for machine in self.machines.values()
            )
        )


def _fact(fact: object) -> str:
    if isinstance(fact, SimSite):
        return f"{fact.name}.{fact.world.number}"
    if isinstance(fact, HostRequest):
        return f"{fact!r} {fact.error}"
    if isinstance(fact, OperatorRequest):
        return f"{fact!r} {fact.error or fact.result}"
    return repr(fact)


class _Mistakes(logging.Handler):
    """An exception that the product logs and lives on with is a mistake all the same."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self._world = world

    def emit(self, record: logging.LogRecord) -> None:
        if self._world.tell_story:
            self._world.story.append(f"{self._world.clock.now:.6f}    log: {record.getMessage()}")
        if record.exc_info and record.exc_info[1] is not None:
            where = "".join(traceback.format_exception(record.exc_info[1])[-4:])
            raise Violation(f"{record.getMessage()}:\n{where}")
