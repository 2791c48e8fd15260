"""To be written."""

from __future__ import annotations

from tests.simulation.checkers.base import Checker


class Divergence(Checker):
    pass
