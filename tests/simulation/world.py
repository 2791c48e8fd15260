"""The whole system in one thread: sites, links, hosts, operators, and the checkers that watch them."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from target.journal.format import VolumeShape
from tests.simulation.checkers import ALL
from tests.simulation.checkers.base import Checker
from tests.simulation.history import History
from tests.simulation.hosts import HostRequest, Hosts
from tests.simulation.links import Paths
from tests.simulation.operators import OperatorRequest, Operators
from tests.simulation.schedule import Plan
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
        self.reigns_since: dict[tuple[str, int], float] = {}
        """(site, reign) -> when it began."""
        self.diverged_since: dict[tuple[str, bytes], float] = {}
        self.history = History(dict(enumerate(plan.volume_bytes, start=1)))
        self.paths = Paths(self)
        self.operators = Operators(self)
        self.hosts = Hosts(self)
        self._hooks: dict[str, list[Callable[..., None]]] = {}
        self._directory = tempfile.TemporaryDirectory(
            prefix="replctl-sim-", dir=_SHM if _SHM.is_dir() else None, ignore_cleanup_errors=True
        )
        self.directory = Path(self._directory.name)
        self._trace = hashlib.sha256()
        self.story: list[str] = []
        """What happened, for a person; only kept when asked for."""
        self.tell_story = False
        names = ("data", "log", "index", "archive")
        shapes = tuple(
            VolumeShape(name, size, 512) for name, size in zip(names, plan.volume_bytes, strict=False)
        )
        self.sites: dict[str, SimSite] = {}
        for name in plan.sites:
            self.sites[name] = SimSite(self, name, shapes, plan.journal_bytes, str(self.directory / name))
        self.checkers: Sequence[Checker] = [self.hosts, *(make(self) for make in ALL)]
        for checker in self.checkers:
            for hook in dir(Checker):
                if not hook.startswith("_") and getattr(type(checker), hook) is not getattr(Checker, hook):
                    self._hooks.setdefault(hook, []).append(getattr(checker, hook))

    def __enter__(self) -> World:
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
        for name in _LOGGERS:
            logging.getLogger(name).removeHandler(self._log)
        for site in self.sites.values():
            site.agent.store.close()
        self._directory.cleanup()

    # -- what is told --

    def tell(self, hook: str, *facts: Any) -> None:
        """Tell every checker that wants to hear it."""
        if hook in _TRACED:
            line = f"{self.clock.now:.6f} {hook} {' '.join(map(_fact, facts))}"
            self._trace.update(line.encode())
            if self.tell_story:
                self.story.append(line)
        for call in self._hooks.get(hook, ()):
            call(*facts)

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
            self.note(f"{crash.site.name} stops in the middle of something")
            crash.site.crash_now()
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
        for site in self.sites.values():
            site.start_target()
            site.start_agent()
        self.clock.at(_TICK_SECONDS, self._tick, self)

    def _tick(self) -> None:
        self.clock.at(_TICK_SECONDS, self._tick, self)
        self.tell("tick")
        self.operators.check_none_hangs()

    @property
    def quiet(self) -> bool:
        """Everything runs, every path is open and quick."""
        return (
            self.paths.whole
            and self.paths.latency_factor == 1.0
            and all(
                site.target.alive and site.agent.alive and site.slowness == 1.0 and not site.crash_pending
                for site in self.sites.values()
            )
        )

    @contextlib.contextmanager
    def all_in_memory(self) -> Iterator[None]:
        """A checker's reads are answered at once."""
        chance, self.cold_chance = self.cold_chance, -1.0
        try:
            yield
        finally:
            self.cold_chance = chance


def _fact(fact: object) -> str:
    if isinstance(fact, SimSite):
        return fact.name
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
