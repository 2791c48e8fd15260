"""The engine started from what a crash left: which prefix is there, is it right, and does it stay so.

Checked for each state, once: the journal is not refused; what hosts read is the content behind some number of
commands, all of each or nothing (I2); applied, the volumes hold exactly that (I1, I3: a volume with a write
that the journal lacks would differ); another start finds the same (I5); and so does a start from every state
that a crash of this recovery can leave.
"""

from __future__ import annotations

from typing import NamedTuple

from target.errors import IntegrityError
from target.group import Access
from tests.simulation.sim_disk import SimDisk
from tests.simulation.small_worlds.crash_states import Cache, Disks, State
from tests.simulation.small_worlds.machine import Machine
from tests.simulation.small_worlds.tracing import Trace


class Wrong(AssertionError):
    """A state from which the engine does not recover as it must."""


def start(disks: dict[str, SimDisk]) -> Machine:
    """Start after a crash: nothing is damaged, so nothing may be refused."""
    try:
        return Machine(disks)
    except IntegrityError as refused:
        raise Wrong(f"refused: {refused}") from refused


Content = tuple[tuple[str, bytes], ...]
"""An `Image`, as a value."""


class Found(NamedTuple):
    """What a start found: how many records behind the beginning, and the content of the volumes."""

    records: int
    image: Content


class Recoveries:
    """Recovers states, each once, whatever sequence it comes from."""

    def __init__(self, disks: Disks, first_sequence: int) -> None:
        self._disks = disks
        self._first_sequence = first_sequence
        self._images: dict[Content, Content] = {}
        """Few differ: each is kept once."""
        self._once: dict[State, Found] = {}
        self._twice: dict[State, Found] = {}
        self.starts = 0

    @property
    def states(self) -> int:
        """How many different states were recovered, those left by a crash of a recovery included."""
        return len(self._once)

    def recover(self, state: State, *, crash_again: bool) -> Found:
        """What a start from this state finds; with `crash_again` it is crashed itself, everywhere."""
        known = (self._twice if crash_again else self._once).get(state)
        if known is not None:
            return known
        found, trace = self._recover(state)
        self._once[state] = found
        if crash_again:
            self._twice[state] = found
            cache = Cache(self._disks, state)
            for event in trace.events:
                cache.apply(event)
                for left in cache.survivors():
                    again = self.recover(left, crash_again=False)
                    if again != found:
                        raise Wrong(
                            f"a crash of the recovery changed what is there: {found.records} records, "
                            f"then {again.records}"
                        )
        return found

    def _recover(self, state: State) -> tuple[Found, Trace]:
        self.starts += 1
        trace = Trace()
        disks = self._disks.make(state)
        trace.watch(disks)
        machine = start(disks)
        found = self._look(machine)
        machine.settle()
        if machine.on_disk() != dict(found.image):
            raise Wrong(f"applied, the volumes are not what was read: {found.records} records")
        if self._look(machine) != found:
            raise Wrong("what is read changed while the journal was applied")
        machine = Machine(disks)
        if self._look(machine) != found or machine.on_disk() != dict(found.image):
            raise Wrong("a second start found something else")
        return found, trace

    def _look(self, machine: Machine) -> Found:
        if machine.group.access is not Access.SERVE:
            raise Wrong(f"refused: {machine.group.reason}")
        image = tuple(sorted(machine.view().items()))
        records = machine.group.journal.head.sequence - self._first_sequence
        return Found(records, self._images.setdefault(image, image))
