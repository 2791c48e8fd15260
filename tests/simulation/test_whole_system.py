"""The whole system in simulation: a seed gives the same run every time; fixed seeds and fresh ones hold.

`scripts/simulate` runs more of them, and tries the checkers on mistakes made on purpose.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.simulation.many import many
from tests.simulation.mutants import MUTANTS, mutated
from tests.simulation.run import run
from tests.simulation.schedule import plan_for
from tests.simulation.shrink import kind_of, shrink

ROOT = Path(__file__).resolve().parent.parent.parent
FIXED_SEEDS = range(200)
FRESH_SECONDS = 20.0

WITHIN_A_FEW_SEEDS = (
    "acknowledge before append",
    "flush does not wait",
    "durable before flush",
    "apply before durable",
    "release before received",
    "restore out of order",
    "tail moved before checkpoint",
    "recovery cuts what was durable",
)


def simulate(*options: str) -> str:
    """What `scripts/simulate` prints."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "simulate"), *options],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONHASHSEED": "7"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_seed_gives_the_same_run_every_time() -> None:
    traces = {re.findall(r"^trace .*$", simulate("--seed", "11"), re.M)[0] for _ in range(2)}
    assert len(traces) == 1


def test_two_seeds_give_two_runs() -> None:
    assert run(plan_for(1)).trace != run(plan_for(2)).trace


def test_a_plan_has_enough_to_do() -> None:
    for seed in range(50):
        plan = plan_for(seed)
        assert plan.host_operations >= 300
        assert plan.faults >= 10


@pytest.mark.timeout(300)
def test_the_fixed_seeds_hold() -> None:
    summary = many(FIXED_SEEDS)
    assert not summary.failures, [(failure.seed, failure.violation) for failure in summary.failures]


@pytest.mark.timeout(300)
def test_fresh_seeds_hold() -> None:
    first = int(time.time()) % 1_000_000_000
    summary = many(range(first, first + 10_000), stop_at_first=True, seconds_max=FRESH_SECONDS)
    assert not summary.failures, [
        f"scripts/simulate --seed {failure.seed}: {failure.violation}" for failure in summary.failures
    ]


@pytest.mark.parametrize("name", WITHIN_A_FEW_SEEDS)
def test_a_mistake_made_on_purpose_is_seen(name: str) -> None:
    assert name in MUTANTS
    with mutated(name):
        assert any(run(plan_for(seed)).violation for seed in range(20))


def test_a_failing_schedule_is_made_short() -> None:
    with mutated("flush does not wait"):
        plan = plan_for(0)
        violation = run(plan).violation
        assert violation
        short, still = shrink(plan, violation, seconds_max=20.0)
        assert len(short.steps) <= 3
        assert kind_of(still) == kind_of(violation)
