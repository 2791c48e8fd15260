"""A daemon dies in the middle of what an operator asked for: asked for again, it is done, nothing is lost.

The moment is random; the operation may be before it, in it or behind it. Writes go on at the primary
meanwhile, and in the end both sites are equal.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from target.errors import ReplctlError
from tests.scenarios.checks import check_equal
from tests.scenarios.history import History
from tests.scenarios.load import Load
from tests.scenarios.site_lab import SiteLab, rounds, running, seed

VICTIMS = [(site, daemon) for site in "ab" for daemon in ("target", "hostagent")]


class Interrupted:
    """An operator who asks for something, sees it die, and asks again."""

    def __init__(self, lab: SiteLab, chance: random.Random, trail: list[str]) -> None:
        self._lab = lab
        self._chance = chance
        self._trail = trail

    def do(self, site: str, op: str, done: Callable[[], bool], **params: object) -> None:
        """Kill somebody while `op` runs; then repeat it until its end is reached."""
        moment = self._chance.random() ** 2 * 0.3
        victims = self._chance.sample(VICTIMS, self._chance.choice((1, 1, 2)))
        self._trail.append(f"{op} at {site}, after {moment:.3f} s SIGKILL to {victims}")
        asking = threading.Thread(target=self._ask, args=(site, op, params))
        asking.start()
        asking.join(moment)
        for victim in victims:
            self._lab.kill(*victim)
        self._lab.up()
        asking.join()

        def repeated() -> bool:
            if done():
                return True
            self._ask(site, op, params)
            return done()

        self._lab.wait(f"{op}, asked for again,", repeated)

    def _ask(self, site: str, op: str, params: dict[str, Any]) -> None:
        try:
            self._lab.ask(site, op, **params)
        except ReplctlError as error:
            if self._trail[-1] != f"  {op}: {error}":
                self._trail.append(f"  {op}: {error}")


@pytest.mark.timeout(3600)
def test_an_operation_that_was_broken_off_can_be_repeated(tmp_path: Path) -> None:
    number = seed()
    chance = random.Random(number)
    trail = [f"SCENARIO_SEED={number}"]
    with running(tmp_path / "lab") as lab:
        try:
            history = History(lab.blocks)
            operator = Interrupted(lab, chance, trail)
            for round_number in range(rounds(3)):
                run_through(lab, history, operator, number + round_number)
        except BaseException as error:
            error.add_note("\n".join(trail) + "\n" + lab.report())
            raise


def run_through(lab: SiteLab, history: History, operator: Interrupted, number: int) -> None:
    """Create, split, resync, take over and back, delete: each with an interruption."""

    def is_in(status: str, primary: str = "a") -> Callable[[], bool]:
        def reached() -> bool:
            state = lab.status(primary)
            return (state["role"], state["access"], state["status"]) == ("primary", "serve", status)

        return reached

    def serves(site: str) -> Callable[[], bool]:
        def reached() -> bool:
            state = lab.status(site)
            return (state["role"], state["access"]) == ("primary", "serve")

        return reached

    with Load(lab, "a", history, seed=number) as load:
        load.wait_acknowledged(30)
        operator.do("a", "pair.create", is_in("PAIR"), secondary="b")
        load.wait_acknowledged(30)
    check_equal(lab, history, "a", "b")
    with Load(lab, "a", history, seed=number) as load:
        operator.do(
            "a",
            "pair.split",
            lambda: lab.status("a")["status"] == "PSUS" and lab.status("b")["status"] == "SSUS",
            secondary="b",
        )
        load.wait_acknowledged(30)
        operator.do("a", "pair.resync", is_in("PAIR"), secondary="b")
        load.wait_acknowledged(30)
    check_equal(lab, history, "a", "b")
    for primary, mirror in (("b", "a"), ("a", "b")):
        operator.do(primary, "takeover", serves(primary), plan=False, force=False)
        lab.wait_link(primary, mirror)
        lab.ask(primary, "pair.resync", secondary=mirror)
        lab.wait(f"PAIR of {mirror} at {primary}", is_in("PAIR", primary))
        with Load(lab, primary, history, seed=number) as load:
            load.wait_acknowledged(30)
        check_equal(lab, history, primary, mirror)
    operator.do(
        "a",
        "pair.delete",
        lambda: all(lab.ask(site, "group.status")["role"] == "simplex" for site in "ab"),
        secondary="b",
    )
    assert lab.content("a") == lab.content("b") == history.image()
