"""Telling of changes: soon, once for many, and never most of the time."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from target.listeners import Listeners
from tests.simulation.small_worlds.stepping import StepScheduler, StepTimer


class Clock(StepScheduler):
    """Time passes while somebody is told, too."""

    def __init__(self) -> None:
        super().__init__()
        self.planned: list[float] = []

    def pass_by(self, seconds: float) -> None:
        self._now += seconds

    def call_later(self, delay_seconds: float, call: Callable[[], None]) -> StepTimer:
        self.planned.append(delay_seconds)
        return super().call_later(delay_seconds, call)

    def tell(self) -> None:
        """The one call that is planned comes, at its time."""
        (timer,) = self._timers
        self._timers.clear()
        self._now = timer.at
        assert timer.call is not None
        timer.call()


def test_many_changes_are_told_at_once() -> None:
    clock = Clock()
    listeners = Listeners(clock)
    told: list[float] = []
    listeners.add(lambda: told.append(clock.monotonic()))
    for _ in range(100):
        listeners.changed()
    clock.tell()
    assert told == [pytest.approx(0.01)]


def test_without_a_listener_nothing_is_planned() -> None:
    clock = Clock()
    Listeners(clock).changed()
    assert clock.planned == []


@pytest.mark.parametrize(("took", "pause"), [(0.0, 0.01), (0.0001, 0.01), (0.001, 0.02), (3.0, 0.03)])
def test_the_longer_telling_takes_the_later_it_is_done_again(took: float, pause: float) -> None:
    clock = Clock()
    listeners = Listeners(clock)
    listeners.add(lambda: clock.pass_by(took))
    listeners.changed()
    clock.tell()
    listeners.changed()
    assert clock.planned == [0.01, pytest.approx(pause)]


def test_a_change_after_a_quiet_time_is_told_soon() -> None:
    clock = Clock()
    listeners = Listeners(clock)
    listeners.add(lambda: clock.pass_by(0.001))
    listeners.changed()
    clock.tell()
    clock.pass_by(1.0)
    listeners.changed()
    assert clock.planned[-1] == 0.01


def test_what_a_listener_changes_itself_is_told_too() -> None:
    clock = Clock()
    listeners = Listeners(clock)
    listeners.add(lambda: listeners.changed() if len(clock.planned) < 2 else None)
    listeners.changed()
    clock.tell()
    assert len(clock.planned) == 2
