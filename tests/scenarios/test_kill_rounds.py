"""Hundreds of rounds of SIGKILL, and of damaged files, each with a block-by-block comparison at its end.

Labs run side by side: most of a round is waiting for daemons to start and to find each other. SCENARIO_ROUNDS
is the number of rounds of each lab, SCENARIO_SEED repeats the choices of a failure.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.scenarios.damage_rounds import DamageRounds
from tests.scenarios.kill_rounds import SMALL_JOURNAL, SMALL_VOLUMES, KillRounds
from tests.scenarios.site_lab import SiteLab, rounds, running, seed

LABS = 4
ROUNDS = 75
DAMAGE_LABS = 3
DAMAGE_ROUNDS = 12


def run_labs(
    directory: Path, labs: int, each: Callable[[SiteLab, random.Random, list[str]], int]
) -> list[int]:
    """Do the same in some labs side by side, each with choices of its own; what each came to."""
    number = seed()

    def one(name: str) -> int:
        trail = [f"SCENARIO_SEED={number}, {name}"]
        chance = random.Random(f"{number} {name}")
        with running(directory / name, volumes=SMALL_VOLUMES, journal=SMALL_JOURNAL) as lab:
            try:
                lab.pair("a", "b")
                return each(lab, chance, trail)
            except BaseException as error:
                error.add_note("\n".join([trail[0], *trail[-8:]]) + "\n" + lab.report())
                raise

    with ThreadPoolExecutor(labs) as pool:
        running_labs = [pool.submit(one, f"lab{count}") for count in range(labs)]
        return [lab.result() for lab in running_labs]


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_hundreds_of_deaths_cost_no_write_and_no_order(tmp_path: Path) -> None:
    count = rounds(ROUNDS)

    def kill(lab: SiteLab, chance: random.Random, trail: list[str]) -> int:
        kills = KillRounds(lab, chance, trail)
        kills.run(count)
        return kills.kills

    assert min(run_labs(tmp_path, LABS, kill)) >= count, "every round kills somebody"


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_a_damaged_file_is_recovered_from_or_refused_and_never_a_wrong_block(tmp_path: Path) -> None:
    count = rounds(DAMAGE_ROUNDS)

    def harm(lab: SiteLab, chance: random.Random, trail: list[str]) -> int:
        damage = DamageRounds(lab, chance, trail)
        damage.run(count)
        return damage.refused

    refused = run_labs(tmp_path, DAMAGE_LABS, harm)
    assert sum(refused) < DAMAGE_LABS * count, "not everything was refused"
