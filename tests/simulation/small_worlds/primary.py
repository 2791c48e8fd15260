"""Every sequence of up to so many commands at one site, crashed everywhere."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

from tests.simulation.small_worlds.crash_states import Cache, Disks, State
from tests.simulation.small_worlds.machine import Machine
from tests.simulation.small_worlds.operations import Image, Step, images
from tests.simulation.small_worlds.recovering import Recoveries, Wrong
from tests.simulation.small_worlds.tracing import DiskEvent, Knowledge, Trace


@dataclass(slots=True)
class Count:
    """How much was enumerated.

    `crash_points`: moments between two calls that changed a disk, each once though many sequences begin
    alike; `crash_states`: what a crash there can leave; `states`: how many of these differ, each recovered;
    `starts`: how often the engine was started for that.
    """

    sequences: int = 0
    crash_points: int = 0
    crash_states: int = 0
    states: int = 0
    starts: int = 0

    def add(self, other: Count) -> None:
        self.sequences += other.sequences
        self.crash_points += other.crash_points
        self.crash_states += other.crash_states
        self.states += other.states
        self.starts += other.starts


class PrimaryWorld:
    """One beginning, and all that may follow it."""

    def __init__(self, disks: Disks) -> None:
        self._disks = disks
        machine = Machine(disks.make(frozenset()))
        self._base: Image = machine.view()
        self._recoveries = Recoveries(disks, machine.group.journal.head.sequence)
        self._seen: set[bytes] = set()
        self.count = Count()

    def run(self, sequences: Iterable[tuple[Step, ...]], *, crash_again: bool) -> Count:
        """Run and crash all of these; `Wrong` names the first that goes wrong."""
        for steps in sequences:
            try:
                self._run(steps, crash_again)
            except (Wrong, AssertionError) as wrong:
                told = ", ".join(f"{step.operation.name} {step.gap.name}" for step in steps)
                wrong.add_note(f"sequence: {told}")
                raise
            self.count.sequences += 1
        self.count.states = self._recoveries.states
        self.count.starts = self._recoveries.starts
        return self.count

    def _run(self, steps: tuple[Step, ...], crash_again: bool) -> None:
        trace = Trace()
        disks = self._disks.make(frozenset())
        trace.watch(disks)
        machine = Machine(disks)
        machine.run(steps, trace)
        expected = images([step.operation for step in steps], self._base)
        if machine.on_disk() != expected[-1]:
            raise Wrong("without any crash the volumes do not hold what was written")
        cache = Cache(self._disks)
        so_far = hashlib.sha256()
        for number, known in enumerate(trace.knowledge):
            if number:
                event = trace.events[number - 1]
                cache.apply(event)
                so_far.update(_told(event))
            so_far.update(bytes(known))
            if so_far.digest() not in self._seen:
                self._seen.add(so_far.digest())
                self._crash(cache, known, expected, crash_again)

    def _crash(self, cache: Cache, known: Knowledge, expected: list[Image], crash_again: bool) -> None:
        self.count.crash_points += 1
        for state in cache.survivors():
            self.count.crash_states += 1
            self._check(state, known.durable, known.submitted, expected, crash_again)
        self._check(cache.everything(), known.acknowledged, known.submitted, expected, crash_again)

    def _check(
        self, state: State, at_least: int, at_most: int, expected: list[Image], crash_again: bool
    ) -> None:
        found = self._recoveries.recover(state, crash_again=crash_again)
        if not at_least <= found.records <= at_most:
            raise Wrong(f"{found.records} commands are there, {at_least} to {at_most} must be")
        if dict(found.image) != expected[found.records]:
            raise Wrong(f"the content is not what the first {found.records} commands left")


def _told(event: DiskEvent) -> bytes:
    head = f"{event.disk} {event.offset} {event.data is None}".encode()
    return head + (event.data or b"")
