"""Make a failing schedule short: leave away what it fails without (delta debugging, simple and bounded)."""

from __future__ import annotations

import re
import time
from collections.abc import Callable

from tests.simulation.run import run
from tests.simulation.schedule import Plan, Step

_SECONDS_MAX = 120.0


def kind_of(violation: str) -> str:
    """What a violation is about, without names and numbers."""
    text = violation.split(": ", 1)[-1]
    return re.sub(r"[\d.]+|\b[ab]\b", "#", text)[:60]


def shrink(
    plan: Plan,
    violation: str,
    *,
    seconds_max: float = _SECONDS_MAX,
    tell: Callable[[str], None] = lambda _: None,
) -> tuple[Plan, str]:
    """The shortest plan found that fails in the same way, and its violation."""
    wanted = kind_of(violation)
    end = time.monotonic() + seconds_max
    steps = list(plan.steps)
    moment = re.match(r"at ([\d.]+) s", violation)
    if moment is not None:
        early = [step for step in steps if step.time <= float(moment.group(1))]
        found = _fails(plan, early, wanted)
        if found:
            steps, violation = early, found
    size = max(1, len(steps) // 2)
    while size >= 1 and time.monotonic() < end:
        shorter = False
        start = 0
        while start < len(steps) and time.monotonic() < end:
            candidate = steps[:start] + steps[start + size :]
            found = _fails(plan, candidate, wanted)
            if found:
                steps, violation, shorter = candidate, found, True
                tell(f"{len(steps)} steps")
            else:
                start += size
        if not shorter or size > len(steps):
            size //= 2
    return plan.with_steps(steps), violation


def _fails(plan: Plan, steps: list[Step], wanted: str) -> str:
    outcome = run(plan.with_steps(steps))
    return outcome.violation if outcome.violation and kind_of(outcome.violation) == wanted else ""
