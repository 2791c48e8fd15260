"""SIGKILL at random moments, of any daemon, under load, with links whole or cut: the pair goes on by itself.

A SIGKILL takes the process and leaves the machine: what was written to files is in the page cache still. So
these rounds ask for more than I1 does, for every acknowledged write; losing the cache as well is what
`tests/simulation` does with disks of its own.
"""

from __future__ import annotations

import random

import pytest

from tests.scenarios.checks import check_equal, check_primary, check_secondary, take_over
from tests.scenarios.history import History
from tests.scenarios.load import Load
from tests.scenarios.site_lab import SiteLab, rounds, seed

VICTIMS = [(site, daemon) for site in "ab" for daemon in ("target", "hostagent")]
LINKS: list[tuple[str, ...]] = [(), (), (), (), ("san",), ("management",), ("management", "san")]


@pytest.mark.timeout(3600)
def test_any_daemon_may_die_at_any_moment(lab: SiteLab) -> None:
    number = seed()
    chance = random.Random(number)
    history = History(lab.blocks)
    markers: dict[str, int] = {}
    trail = [f"SCENARIO_SEED={number}"]
    try:
        for round_number in range(rounds(16)):
            with Load(lab, "a", history, seed=number + round_number) as load:
                for _ in range(2):
                    load.wait_acknowledged(chance.randrange(300))
                    lab.wait_serves("a")
                    name = f"marker {round_number}.{len(markers)}"
                    markers[name] = history.now()
                    lab.create_marker("a", name)
                    load.wait_acknowledged(chance.randrange(60))
                    links = chance.choice(LINKS)
                    victims = chance.sample(VICTIMS, chance.choice((1, 1, 1, 2)))
                    trail.append(f"round {round_number}: cut {links}, SIGKILL to {victims}")
                    if links:
                        lab.cut(*links)
                        load.wait_acknowledged(chance.randrange(60))
                    for site, daemon in victims:
                        moment = history.now()
                        lab.kill(site, daemon)
                    if ("a", "target") in victims and not any(site == "b" for site, _ in victims):
                        check_secondary(lab, history, "b", markers)
                    if ("a", "target") in victims:
                        before = history.acknowledged(before=moment)
                        found = history.read(lab.up_and_read("a"))
                        history.require(found, before, "read right after the restart")
                    lab.up()
                    if links:
                        load.wait_acknowledged(chance.randrange(60))
                        lab.join(*links)
                load.wait_acknowledged(1)
            check_primary(lab, history, "a")
            check_equal(lab, history, "a", "b")
    except BaseException as error:
        error.add_note("\n".join(trail) + "\n" + lab.report())
        raise


@pytest.mark.timeout(3600)
def test_the_site_of_the_primary_may_die_and_the_other_one_goes_on(lab: SiteLab) -> None:
    """Forced takeover of what a random moment left; the roles change with every round."""
    number = seed()
    chance = random.Random(number)
    history = History(lab.blocks)
    primary, secondary = "a", "b"
    trail = [f"SCENARIO_SEED={number}"]
    try:
        for round_number in range(rounds(5)):
            name = f"round {round_number}"
            with Load(lab, primary, history, seed=number + round_number) as load:
                load.wait_acknowledged(chance.randrange(400))
                moment = history.now()
                lab.create_marker(primary, name)
                load.wait_acknowledged(chance.randrange(200))
                if chance.random() < 0.5:
                    victim = chance.choice(("target", "hostagent"))
                    trail.append(f"{name}: {victim} of {secondary} dies and comes back without its primary")
                    lab.kill(secondary, victim)
                    lab.cut()
                    lab.up()
                    load.wait_acknowledged(chance.randrange(100))
                trail.append(f"{name}: {primary} dies")
                lab.kill(primary)
                load.stop()
            lost = take_over(lab, history, secondary, {name: moment})
            trail.append(f"{name}: {lost} writes were lost")
            primary, secondary = secondary, primary
            lab.join()
            with Load(lab, primary, history, seed=number - round_number) as load:
                load.wait_acknowledged(200)
                lab.up()
                lab.wait_link(primary, secondary)
                load.wait_acknowledged(200)
                lab.ask(primary, "pair.resync", secondary=secondary)
                lab.wait_status(primary, secondary, "PAIR")
            check_equal(lab, history, primary, secondary)
    except BaseException as error:
        error.add_note("\n".join(trail) + "\n" + lab.report())
        raise
