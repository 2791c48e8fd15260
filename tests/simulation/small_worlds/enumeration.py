"""Which worlds are enumerated: the set of every test run, and the wider one; on all cores.

Every run takes all sequences of one and two commands with all gaps. Sequences of three take the commands
that differ in kind, and the gaps that are flush placements. The wider set takes all of everything. Recoveries
are crashed themselves where sequences have one command, in the wider set also where they have two.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from enum import Enum
from typing import NamedTuple

from tests.simulation.small_worlds.machine import new_world, used_world
from tests.simulation.small_worlds.operations import Gap, Operation, Step, sequences
from tests.simulation.small_worlds.primary import Count, PrimaryWorld
from tests.simulation.small_worlds.secondary import SecondaryWorld


class Beginning(Enum):
    """Where the sequences begin."""

    NEW = "a journal that was just formatted"
    USED = "a ring in use, at its end"
    SECONDARY = "a secondary that has nothing yet"


class Part(NamedTuple):
    """The sequences of a length that begin with one command; a process takes it."""

    beginning: Beginning
    length: int
    first: Operation
    operations: tuple[Operation, ...]
    gaps: tuple[Gap, ...]
    crash_again: bool


_ALL = tuple(Operation)
_KINDS = (
    Operation.ALIGNED,
    Operation.UNALIGNED,
    Operation.OTHER_VOLUME,
    Operation.ZERO,
    Operation.FUA,
)
_SHIPPED = (Operation.ALIGNED, Operation.CROSSING, Operation.ZERO)
_PLACEMENTS = (Gap.NEXT_TURN, Gap.FLUSH)


def parts(wide: bool) -> Iterator[Part]:
    """What is to be enumerated, the longest first."""
    for beginning in (Beginning.USED, Beginning.SECONDARY, Beginning.NEW):
        for length in (3, 2, 1):
            operations, gaps = _ALL, tuple(Gap)
            if length == 3 and not wide:
                if beginning is Beginning.NEW:
                    continue
                operations = _SHIPPED if beginning is Beginning.SECONDARY else _KINDS
                gaps = _PLACEMENTS
            for first in operations:
                yield Part(beginning, length, first, operations, gaps, length <= (2 if wide else 1))


def run_part(part: Part) -> Count:
    """Enumerate one part; raises `Wrong` (with the sequence as a note)."""
    logging.disable()  # a fetch that is refused on purpose says so
    chosen: Iterator[tuple[Step, ...]] = (
        steps
        for steps in sequences(part.length, part.gaps, part.operations)
        if steps[0].operation is part.first
    )
    if part.beginning is Beginning.SECONDARY:
        return SecondaryWorld().run(chosen)
    world = PrimaryWorld(used_world() if part.beginning is Beginning.USED else new_world())
    return world.run(chosen, crash_again=part.crash_again)


def enumerate_all(
    wide: bool, progress: Callable[[Part, Count], None] = lambda part, count: None
) -> dict[tuple[Beginning, int], Count]:
    """Enumerate everything; returns the counts by beginning and length."""
    totals: dict[tuple[Beginning, int], Count] = {}
    todo = list(parts(wide))
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        for part, count in zip(todo, pool.map(run_part, todo), strict=True):
            totals.setdefault((part.beginning, part.length), Count()).add(count)
            progress(part, count)
    return totals
