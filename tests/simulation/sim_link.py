"""The SAN link of the simulation: a peer's journal disk, read with a delay; it can be cut."""

from __future__ import annotations

from collections.abc import Callable

from target.volume import Buffer
from tests.simulation.sim_scheduler import SimClock
from tests.simulation.site import Site


class SimLink:
    """Between one reader and one journal disk."""

    def __init__(self, clock: SimClock, reader: Site, primary: Site) -> None:
        self.clock = clock
        self.reader = reader
        self.primary = primary
        self.cut = False
        self._on_down: Callable[[str], None] | None = None
        self._closed = False

    def open(self, on_up: Callable[[], None], on_down: Callable[[str], None]) -> None:
        self._on_down = on_down
        self.clock.at(0.001, self._if_open(on_up), self.reader.scheduler)

    def _if_open(self, call: Callable[[], None]) -> Callable[[], None]:
        def checked() -> None:
            if not self._closed:
                self._down("the link is cut") if self.cut else call()

        return checked

    def _down(self, reason: str) -> None:
        self._closed = True
        if self._on_down is not None:
            self._on_down(reason)

    def read(self, offset: int, length: int, done: Callable[[Buffer | None, Exception | None], None]) -> None:
        def arrive() -> None:
            done(self.primary.journal_disk.pread(length, offset), None)

        self.clock.at(self.clock.random.uniform(0.0005, 0.01), self._if_open(arrive), self.reader.scheduler)

    def close(self) -> None:
        self._closed = True
