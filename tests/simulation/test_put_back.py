"""A primary that was put back to a backup, and its mirror, which has more of the old history.

What only the mirror has must go when the two are brought together, also where the primary's journal has
forgotten the place at which the histories part.
"""

from __future__ import annotations

import pytest

from tests.simulation.run import run
from tests.simulation.schedule import Step, plan_for

SEED = 1508  # two sites, one group


def steps(*, split: bool, grown: bool) -> list[Step]:
    """Site a is put back to where it had ten writes; b had ten more, of other blocks."""
    journal = [Step(0.2, "ask", (0, "a", "pair.create", (("secondary", "b"),)))]
    journal += [Step(2.0 + n / 100, "write", (0, "a", 0, 8 * n, 8, False)) for n in range(10)]
    journal += [Step(3.0, "keep_disks", ("a",))]
    journal += [Step(3.1 + n / 100, "write", (0, "a", 0, 200 + 8 * n, 8, False)) for n in range(10)]
    journal += [Step(6.0, "revert", ("a",)), Step(7.0, "start", ("a",))]
    journal += [Step(12.0 + n / 100, "write", (0, "a", 0, 400 + 8 * n, 8, False)) for n in range(30)]
    if split:
        journal += [Step(16.0, "ask", (0, "a", "pair.split", ()))]
    if grown:
        journal += [Step(18.0, "ask", (0, "a", "journal.grow", (("size_bytes", 16 << 20),)))]
    return journal


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("grown", [False, True])
def test_what_only_the_mirror_has_goes_with_the_merge(split: bool, grown: bool) -> None:
    outcome = run(plan_for(SEED).with_steps(steps(split=split, grown=grown)))
    assert not outcome.violation


def test_a_copy_that_the_primary_forgot_is_not_called_complete() -> None:
    """Site b wrote on its own while the pair was split, a resync began to copy that back, and a forgot it."""
    journal = [Step(0.2, "ask", (0, "a", "pair.create", (("secondary", "b"),)))]
    journal += [Step(2.0 + n / 100, "write", (0, "a", 0, 8 * n, 8, False)) for n in range(10)]
    journal += [Step(3.0, "ask", (0, "a", "pair.split", ())), Step(5.0, "keep_disks", ("a",))]
    journal += [Step(6.0 + n / 100, "write", (0, "b", 0, 200 + 8 * n, 8, False)) for n in range(10)]
    journal += [Step(7.0, "cut_san", ("b", "a")), Step(7.5, "ask", (0, "a", "pair.resync", ()))]
    journal += [Step(9.0, "revert", ("a",)), Step(9.5, "start", ("a",)), Step(10.0, "join_san", ("b", "a"))]
    outcome = run(plan_for(SEED).with_steps(journal))
    assert not outcome.violation
