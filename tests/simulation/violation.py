"""How a run ends early: an invariant did not hold, or a machine stopped in the middle of something.

Both pass through every `except Exception` of the product.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.simulation.sim_machine import SimMachine


class Violation(BaseException):
    """An invariant was broken; the message says which, where and when."""


class Crash(BaseException):
    """The process or the machine stops here."""

    def __init__(self, machine: SimMachine) -> None:
        super().__init__(machine.name)
        self.machine = machine
