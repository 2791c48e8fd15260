"""Every content that a loss of power can leave on the disks.

Of what was written and not flushed, any sectors may be there, in any order: each sector holds what was
durable or any of the values that were written to it since. A state is what differs from the content at the
beginning, so that equal states of different sequences are found to be equal.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import product
from typing import NamedTuple

from tests.simulation.sim_disk import ATOMIC_BYTES, Pages, SimDisk
from tests.simulation.small_worlds.tracing import DiskEvent

_PAGE = 4096
_ZEROS = bytes(ATOMIC_BYTES)


class Place(NamedTuple):
    """One sector of one disk."""

    disk: str
    sector: int


State = frozenset[tuple[Place, bytes]]
"""The sectors that are not as they were at the beginning."""

BEGINNING: State = frozenset()


class Disks:
    """The contents of some disks at the beginning."""

    def __init__(self, disks: Mapping[str, SimDisk]) -> None:
        self._sizes = {name: disk.size_bytes for name, disk in disks.items()}
        self._pages: dict[str, Pages] = {name: disk.backup()[0] for name, disk in disks.items()}
        self._allocated = {name: bytes(disk.backup()[1]) for name, disk in disks.items()}

    def at_beginning(self, place: Place) -> bytes:
        """What a sector held."""
        page, offset = divmod(place.sector * ATOMIC_BYTES, _PAGE)
        content = self._pages[place.disk].get(page)
        return _ZEROS if content is None else content[offset : offset + ATOMIC_BYTES]

    def make(self, state: State) -> dict[str, SimDisk]:
        """Disks with this content, all of it durable."""
        changed: dict[str, dict[int, bytearray]] = {name: {} for name in self._sizes}
        for (name, sector), value in state:
            number, offset = divmod(sector * ATOMIC_BYTES, _PAGE)
            page = changed[name].get(number)
            if page is None:
                page = changed[name][number] = bytearray(self._pages[name].get(number) or bytes(_PAGE))
            page[offset : offset + ATOMIC_BYTES] = value
        made = {}
        for name, size in self._sizes.items():
            pages = dict(self._pages[name])
            pages.update((number, bytes(page)) for number, page in changed[name].items())
            made[name] = SimDisk(size)
            made[name].restore_backup((pages, self._allocated[name]))
        return made


class Cache:
    """What is durable, and what may be, as the events go by."""

    def __init__(self, disks: Disks, state: State = BEGINNING) -> None:
        self._disks = disks
        self._durable: dict[Place, bytes] = dict(state)
        self._written: dict[Place, list[bytes]] = {}

    def apply(self, event: DiskEvent) -> None:
        """One write or flush more."""
        if event.data is None:
            for place in [place for place in self._written if place.disk == event.disk]:
                self._durable[place] = self._written.pop(place)[-1]
            return
        first = event.offset // ATOMIC_BYTES
        for number in range(len(event.data) // ATOMIC_BYTES):
            place = Place(event.disk, first + number)
            value = event.data[number * ATOMIC_BYTES : (number + 1) * ATOMIC_BYTES]
            written = self._written.get(place)
            if written is not None:
                written.append(value)
            elif value != self._now(place):
                self._written[place] = [value]

    def _now(self, place: Place) -> bytes:
        value = self._durable.get(place)
        return self._disks.at_beginning(place) if value is None else value

    def survivors(self) -> Iterator[State]:
        """Every state that a crash can leave now."""
        fixed = frozenset(
            (place, value)
            for place, value in self._durable.items()
            if place not in self._written and value != self._disks.at_beginning(place)
        )
        choices = []
        for place, values in self._written.items():
            beginning = self._disks.at_beginning(place)
            choices.append(
                [
                    None if value == beginning else (place, value)
                    for value in dict.fromkeys((self._now(place), *values))
                ]
            )
        for chosen in product(*choices):
            yield fixed.union(choice for choice in chosen if choice is not None)

    def everything(self) -> State:
        """The state when nothing is lost: the process was killed, the machine goes on."""
        now = {**self._durable, **{place: values[-1] for place, values in self._written.items()}}
        return frozenset(
            (place, value) for place, value in now.items() if value != self._disks.at_beginning(place)
        )
