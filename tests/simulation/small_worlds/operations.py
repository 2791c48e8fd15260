"""The hosts' commands of a small world, and what the volumes hold behind each. Pure.

Two volumes: `data` of three granules and `log` of one. Of a granule only the first and the last sector are
ever written with something else than zeros, so that few sectors of a write make a difference when it is torn.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import Enum
from itertools import product
from typing import NamedTuple

SECTOR = 512
GRANULE = 4096
VOLUME_BYTES = {"data": 3 * GRANULE, "log": GRANULE}

Image = dict[str, bytes]


class Operation(Enum):
    """Volume, offset, length, and what is done there."""

    _value_: tuple[str, int, int, str]

    ALIGNED = ("data", 0, GRANULE, "write")
    UNALIGNED = ("data", GRANULE - SECTOR, SECTOR, "write")
    CROSSING = ("data", GRANULE - SECTOR, 2 * SECTOR, "write")
    OTHER_VOLUME = ("log", 0, SECTOR, "write")
    ZERO = ("data", 0, GRANULE, "zero")
    UNMAP_PART = ("data", GRANULE - SECTOR, 2 * SECTOR, "zero")
    FUA = ("data", 0, SECTOR, "fua")

    @property
    def volume(self) -> str:
        return self.value[0]

    @property
    def offset(self) -> int:
        return self.value[1]

    @property
    def length(self) -> int:
        return self.value[2]

    @property
    def zeros(self) -> bool:
        return self.value[3] == "zero"

    @property
    def fua(self) -> bool:
        return self.value[3] == "fua"


class Gap(Enum):
    """What happens behind a command, before the next one."""

    SAME_TURN = "nothing: the next one shares its turn, and its pack"
    NEXT_TURN = "the turn ends; no work on the disks was run yet"
    FLUSH = "a SYNCHRONIZE CACHE is sent and answered"
    SETTLED = "all is applied and a checkpoint is made"


class Step(NamedTuple):
    """A command and what follows it."""

    operation: Operation
    gap: Gap


def stamp(number: int) -> bytes:
    """A sector that says which command wrote it; 0: it was there before."""
    return bytes([0xA0 + number]) * SECTOR


def granule(number: int) -> bytes:
    """A granule with its first and its last sector stamped."""
    return stamp(number) + bytes(GRANULE - 2 * SECTOR) + stamp(number)


def content(operation: Operation, number: int) -> bytes:
    """What the command of this number writes."""
    if operation.zeros:
        return bytes(operation.length)
    if operation.length == GRANULE:
        return granule(number)
    return stamp(number) * (operation.length // SECTOR)


def base_image() -> Image:
    """What the volumes hold before the first command."""
    return {name: granule(0) * (size // GRANULE) for name, size in VOLUME_BYTES.items()}


def images(operations: Sequence[Operation], base: Image) -> list[Image]:
    """What the volumes hold behind none, one, two ... of these commands."""
    found = [base]
    for number, operation in enumerate(operations, start=1):
        image = dict(found[-1])
        old = image[operation.volume]
        new = content(operation, number)
        image[operation.volume] = old[: operation.offset] + new + old[operation.offset + len(new) :]
        found.append(image)
    return found


def sequences(
    length: int, gaps: Sequence[Gap] = tuple(Gap), operations: Sequence[Operation] = tuple(Operation)
) -> Iterator[tuple[Step, ...]]:
    """Every sequence of so many commands with every placement of gaps.

    Behind the last one, `SAME_TURN` is not different from `NEXT_TURN`, and every sequence settles in the end.
    """
    last = [gap for gap in gaps if gap in (Gap.NEXT_TURN, Gap.FLUSH)]
    for chosen in product(operations, repeat=length):
        for between in product(gaps, repeat=length - 1):
            for end in last:
                yield tuple(map(Step, chosen, (*between, end)))
