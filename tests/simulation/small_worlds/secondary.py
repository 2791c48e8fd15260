"""Every way in which up to three records reach a secondary, crashed everywhere.

A primary that ran a sequence of commands keeps their packs in its ring. The secondary fetches, appends,
commits, restores and makes checkpoints; at each moment its machine loses power. Started again it must have
all that it said it received, nothing that the primary had not shipped, volumes that are the content behind
the last record that is restored, never a state it calls consistent and is not; and what it lacks it must be
able to fetch, to the end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from target.group import Access
from target.journal.format import read_superblock
from target.journal.record import Lsn
from target.journal.superblock import COPIES, SUPERBLOCK_BYTES, Position, Role
from target.san.fetch import Fetch, FetchState
from target.volume import Buffer
from tests.simulation.sim_disk import SimDisk
from tests.simulation.small_worlds.crash_states import Cache, Disks, State
from tests.simulation.small_worlds.machine import JOURNAL, Machine, new_disks, new_world
from tests.simulation.small_worlds.operations import Gap, Image, Step, images
from tests.simulation.small_worlds.primary import Count
from tests.simulation.small_worlds.recovering import Wrong, start
from tests.simulation.small_worlds.stepping import StepScheduler
from tests.simulation.small_worlds.tracing import Trace


class _DirectSource:
    """A `target.san.fetch.JournalSource`: the primary's journal disk, read in the next turn."""

    def __init__(self, scheduler: StepScheduler, disk: SimDisk) -> None:
        self._scheduler = scheduler
        self._disk = disk
        self._closed = False

    def open(self, on_up: Callable[[], None], on_down: Callable[[str], None]) -> None:
        self._scheduler.call_soon(on_up)

    def read(self, offset: int, length: int, done: Callable[[Buffer | None, Exception | None], None]) -> None:
        def arrive() -> None:
            if not self._closed:
                done(self._disk.pread(length, offset), None)

        self._scheduler.call_soon(arrive)

    def close(self) -> None:
        self._closed = True


class _Primary:
    """A site that has written all it will write, and keeps every pack."""

    def __init__(self, steps: tuple[Step, ...]) -> None:
        machine = Machine(new_world().make(frozenset()))
        base = machine.view()
        self.disk = machine.disks[JOURNAL]
        self.turns: list[Position] = []
        """Where the journal ended behind each turn: so far a fetch may be told to read."""
        trace = Trace()
        for number, (operation, gap) in enumerate(steps, start=1):
            machine.submit(operation, number, trace)
            if gap is not Gap.SAME_TURN:
                machine.scheduler.end_turn()
                self.turns.append(machine.group.journal.head)
        self.images: list[Image] = images([step.operation for step in steps], base)
        index = machine.group.journal.index
        self._boundaries = [*map(index.boundary, range(len(index))), machine.group.journal.head]
        self.end_lsn = machine.group.journal.head.lsn

    def lsn_behind(self, sequence: int) -> Lsn:
        """Where a reader that has so many records goes on."""
        for boundary in self._boundaries:
            if boundary.sequence == sequence:
                return boundary.lsn
        raise Wrong(f"the secondary has {sequence} records, which is inside of a pack")


class SecondaryWorld:
    """A secondary that has nothing yet, and all that may become of it."""

    def __init__(self) -> None:
        disks = new_disks()
        superblock = read_superblock(disks[JOURNAL])
        assert superblock is not None
        follower = replace(superblock, role=Role.SECONDARY, primary="a", generation=2)
        disks[JOURNAL].pwritev([follower.encode()], follower.generation % COPIES * SUPERBLOCK_BYTES)
        disks[JOURNAL].flush()
        self._disks = Disks(disks)
        self.count = Count()

    def run(self, sequences: Iterable[tuple[Step, ...]]) -> Count:
        """Ship and crash all of these; `Wrong` names the first that goes wrong."""
        for steps in sequences:
            try:
                self._run(steps)
            except AssertionError as wrong:
                told = ", ".join(f"{step.operation.name} {step.gap.name}" for step in steps)
                wrong.add_note(f"sequence: {told}")
                raise
            self.count.sequences += 1
        return self.count

    def _run(self, steps: tuple[Step, ...]) -> None:
        primary = _Primary(steps)
        trace = Trace()
        disks = self._disks.make(frozenset())
        trace.watch(disks)
        machine = Machine(disks)
        self._receive(machine, primary, steps, trace)
        if machine.on_disk() != primary.images[-1]:
            raise Wrong("without any crash the secondary does not become equal")
        cache = Cache(self._disks)
        checked: dict[State, int] = {}
        for number, known in enumerate(trace.knowledge):
            if number:
                cache.apply(trace.events[number - 1])
            self.count.crash_points += 1
            for state in cache.survivors():
                self.count.crash_states += 1
                if state not in checked:
                    checked[state] = self._recover(state, primary)
                if not known.durable <= checked[state] <= known.submitted:
                    raise Wrong(
                        f"{checked[state]} records are there; {known.durable} were reported as received, "
                        f"{known.submitted} were shipped"
                    )
        self.count.states += len(checked)

    def _receive(self, machine: Machine, primary: _Primary, steps: tuple[Step, ...], trace: Trace) -> None:
        """Fetch pack by pack, waiting in between as the gaps say."""
        journal = machine.group.journal
        fetch = _fetch(machine, primary, Lsn(0))
        turns = iter(primary.turns)
        for _, gap in steps:
            trace.submitted()
            if gap is Gap.SAME_TURN:
                continue
            limit = next(turns)
            fetch.advance(limit.lsn)
            if gap is Gap.NEXT_TURN:
                continue

            def received(sequence: int = limit.sequence) -> bool:
                trace.durable(journal.durable.sequence)
                return journal.durable.sequence >= sequence

            machine.scheduler.run_until(received)
            if gap is Gap.SETTLED:
                machine.settle()
        machine.scheduler.run_until(lambda: journal.durable.lsn == primary.end_lsn)
        trace.durable(journal.durable.sequence)
        machine.settle()

    def _recover(self, state: State, primary: _Primary) -> int:
        """Returns how many records a start from this state has."""
        self.count.starts += 1
        machine = start(self._disks.make(state))
        group = machine.group
        if group.access is not Access.READ_ONLY:
            raise Wrong(f"refused: {group.reason}")
        records = int(group.journal.head.sequence)
        applied = int(group.background.applied_sequence)
        if group.consistent and machine.on_disk() != primary.images[applied]:
            raise Wrong(f"called consistent, and the volumes are not what {applied} records left")
        machine.settle()
        if machine.on_disk() != primary.images[records] or machine.view() != primary.images[records]:
            raise Wrong(f"restored, the volumes are not what {records} records left")
        again = Machine(machine.disks)
        again.settle()
        if int(again.group.journal.head.sequence) != records or again.on_disk() != primary.images[records]:
            raise Wrong("a second start found something else")
        self._go_on(again, primary, records)
        return records

    def _go_on(self, machine: Machine, primary: _Primary, records: int) -> None:
        """What is missing is fetched; what is there is not taken a second time."""
        if records:
            replayed = _fetch(machine, primary, Lsn(0))
            replayed.advance(primary.end_lsn)
            machine.scheduler.run_until(lambda: replayed.state is FetchState.LOST)
            if machine.group.journal.head.sequence != records:
                raise Wrong("packs that were there already were appended again")
        fetch = _fetch(machine, primary, primary.lsn_behind(records))
        fetch.advance(primary.end_lsn)
        last = len(primary.images) - 1
        machine.scheduler.run_until(lambda: machine.group.journal.durable.sequence == last)
        machine.settle()
        if machine.on_disk() != primary.images[-1]:
            raise Wrong(f"what was fetched behind {records} records did not make the volumes equal")


def _fetch(machine: Machine, primary: _Primary, start_lsn: Lsn) -> Fetch:
    return Fetch(machine.group, _DirectSource(machine.scheduler, primary.disk), start_lsn, lambda: None)
