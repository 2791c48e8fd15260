"""The gate before a medium: one inside, the others in order, and no stack that grows with them."""

from __future__ import annotations

import sys
from functools import partial

from target.scsi.gate import Gate
from target.volume import Buffer, Request, VolumeError


class Visitor:
    """A request that notes when it was let in, and then does what it was told."""

    def __init__(self, log: list[str], name: str, gate: Gate | None = None) -> None:
        self.log = log
        self.name = name
        self.gate = gate

    def done(self, data: Buffer | None = None) -> None:
        self.log.append(self.name)
        if self.gate is not None:
            self.gate.leave()

    def failed(self, error: VolumeError) -> None:
        raise AssertionError(error)


def test_who_comes_while_somebody_is_inside_waits_in_order() -> None:
    log: list[str] = []
    gate = Gate()
    gate.enter(Visitor(log, "first"))
    assert gate.closed

    def step(request: Request) -> None:
        request.done()

    gate.through(step, Visitor(log, "write"))
    gate.enter(Visitor(log, "second"))
    gate.through(step, Visitor(log, "later write"))
    assert log == ["first"]
    gate.leave()
    assert log == ["first", "write", "second"]
    gate.leave()
    assert log == ["first", "write", "second", "later write"]
    assert not gate.closed


def test_the_last_step_comes_before_who_is_next() -> None:
    log: list[str] = []
    gate = Gate()
    gate.enter(Visitor(log, "first"))
    gate.enter(Visitor(log, "second"))
    gate.leave_with(lambda request: log.append("last step"), Visitor(log, "answer"))
    assert log == ["first", "last step", "second"]


def test_who_closes_and_opens_it_is_told() -> None:
    told: list[bool] = []
    gate = Gate(lambda: told.append(gate.closed))
    gate.enter(Visitor([], "one"))
    gate.leave()
    assert told == [True, False]


def test_many_who_leave_at_once_do_not_deepen_the_stack() -> None:
    log: list[str] = []
    gate = Gate()
    gate.enter(Visitor(log, "first"))
    count = 2 * sys.getrecursionlimit()
    for number in range(count):
        gate.enter(Visitor(log, str(number), gate))
        gate.through(partial(lambda request: request.done()), Visitor(log, "write"))
    gate.leave()
    assert len(log) == 1 + 2 * count
    assert not gate.closed
