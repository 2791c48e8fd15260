"""An old primary that returns asks first; an operator may have it serve without the peers' word."""

from __future__ import annotations

from tests.simulation.run import run
from tests.simulation.schedule import SITES, GroupPlan, Plan, Step

MIB = 1 << 20


def returned_primary(seed: int, *, forced: bool) -> Plan:
    """b was taken over while a was away; a host writes to a as soon as that is back."""
    steps = [
        Step(0.3, "ask", (0, "a", "pair.create", (("secondary", "b"),))),
        Step(3.0, "power", ("a", 0)),
        Step(3.1, "ask", (0, "b", "takeover", (("force", True),))),
        Step(5.0, "start", ("a",)),
    ]
    if forced:
        steps += [Step(5.02, "ask", (0, "a", "takeover", (("force", True),)))]
    steps += [Step(5.0 + n * 0.005, "write", (0, "a", 0, 8 * n, 8, False)) for n in range(1, 40)]
    return Plan(
        seed=seed,
        sites=SITES,
        groups=(GroupPlan((MIB, MIB), 6 * MIB, throttle=False, small_disks=False),),
        peer_wait_seconds=3.0,
        serve_without_peers=True,
        replays=False,
        cold_chance=0.0,
        rot=False,
        steps=tuple(steps),
    )


def test_an_old_primary_that_an_operator_lets_serve_may_take_writes() -> None:
    """Which it does until it hears of the other; nothing is lost of them, and both are told."""
    assert [run(returned_primary(seed, forced=True)).violation for seed in range(6)] == [""] * 6


def test_an_old_primary_that_nobody_lets_serve_takes_none() -> None:
    assert [run(returned_primary(seed, forced=False)).violation for seed in range(3)] == [""] * 3
