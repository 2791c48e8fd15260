"""Many seeds on all cores."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial

from tests.simulation.mutants import MUTANTS, mutated
from tests.simulation.run import Outcome, run
from tests.simulation.schedule import plan_for


@dataclass(slots=True)
class Summary:
    """What a series of runs came to."""

    runs: int = 0
    host_operations: int = 0
    faults: int = 0
    host_operations_min: int = 1 << 62
    """Of all runs that came to their end, the fewest."""
    faults_min: int = 1 << 62
    simulated_seconds: float = 0.0
    seconds: float = 0.0
    counts: dict[str, int] = field(default_factory=dict)
    failures: list[Outcome] = field(default_factory=list)

    def add(self, outcome: Outcome) -> None:
        self.runs += 1
        self.host_operations += outcome.host_operations
        self.faults += outcome.faults
        if not outcome.violation:
            self.host_operations_min = min(self.host_operations_min, outcome.host_operations)
            self.faults_min = min(self.faults_min, outcome.faults)
        self.simulated_seconds += outcome.simulated_seconds
        for kind, count in outcome.counts.items():
            self.counts[kind] = self.counts.get(kind, 0) + count
        if outcome.violation:
            self.failures.append(outcome)

    def __str__(self) -> str:
        rate = self.runs / self.seconds if self.seconds else 0.0
        return (
            f"{self.runs} seeds, {len(self.failures)} violations; {self.host_operations} operations of "
            f"hosts (at least {self.host_operations_min} a seed), {self.faults} faults (at least "
            f"{self.faults_min}), {self.simulated_seconds / 3600:.1f} simulated hours in "
            f"{self.seconds:.0f} s ({rate:.1f} seeds/s)"
        )


def one(seed: int) -> Outcome:
    return run(plan_for(seed))


def outcomes(seeds: Iterable[int], processes: int | None = None) -> Iterator[Outcome]:
    """In order of the seeds; a process for each core."""
    with multiprocessing.get_context("fork").Pool(processes or os.cpu_count()) as pool:
        yield from pool.imap(one, seeds, chunksize=4)


def many(
    seeds: Iterable[int],
    *,
    stop_at_first: bool = False,
    seconds_max: float | None = None,
    tell: Callable[[Summary, Outcome], None] = lambda summary, outcome: None,
) -> Summary:
    """Run them all, or until the first violation, or until the time is over; `tell` hears of each run."""
    summary = Summary()
    started = time.monotonic()
    for outcome in outcomes(seeds):
        summary.add(outcome)
        summary.seconds = time.monotonic() - started
        tell(summary, outcome)
        if outcome.violation and stop_at_first:
            break
        if seconds_max is not None and summary.seconds > seconds_max:
            break
    return summary


def catch(name: str, seeds_max: int) -> tuple[str, int, str]:
    """(mutant, the number of seeds it took, the violation); 0 seeds when none of them caught it."""
    with mutated(name):
        for seed in range(seeds_max):
            outcome = run(plan_for(seed))
            if outcome.violation:
                return name, seed + 1, outcome.violation
    return name, 0, ""


def catch_all(seeds_max: int) -> Iterator[tuple[str, int, str]]:
    """Every mutant, each in a process of its own."""
    with multiprocessing.get_context("fork").Pool(os.cpu_count(), maxtasksperchild=1) as pool:
        yield from pool.imap(partial(catch, seeds_max=seeds_max), MUTANTS, chunksize=1)
