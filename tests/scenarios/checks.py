"""What must hold of the content of the sites: I1 at the primary, I2 at the secondary, equality in the end."""

from __future__ import annotations

from tests.scenarios.history import Cut, History
from tests.scenarios.site_lab import SiteLab


def check_secondary(lab: SiteLab, history: History, site: str, markers: dict[str, int]) -> Cut:
    """I2: what the site holds is a prefix; it has all that came before each marker it knows."""
    lab.wait_restored_all_received(site)
    cut = history.cut(lab.content(site))
    for marker in lab.ask(site, "marker.list")["markers"]:
        if marker["name"] in markers:
            before = history.acknowledged(before=markers[marker["name"]])
            history.require(cut, before, f"{site} has restored marker {marker['name']}")
    return cut


def check_primary(lab: SiteLab, history: History, site: str) -> None:
    """I1, and more: after a SIGKILL the page cache is there still, so every acknowledged write must be."""
    cut = history.cut(lab.content(site))
    history.require(cut, history.durable(), "flushed")
    history.require(cut, history.acknowledged(), "acknowledged before a SIGKILL")


def check_equal(lab: SiteLab, history: History, primary: str, secondary: str) -> None:
    """Nothing is written now: both sites become equal, block by block, and hold every write."""
    lab.wait_equal(primary, secondary)
    for site in (primary, secondary):
        history.expect_image(lab.content(site), site)
    history.compact()


def take_over(lab: SiteLab, history: History, site: str, markers: dict[str, int]) -> int:
    """Force this site to be the primary: it holds a prefix with all that the plan promised.

    Returns the number of writes that are lost.
    """
    plan = lab.ask(site, "takeover", plan=True, force=True)
    assert plan["refused"] is None, plan
    assert plan["mode"] == "forced"
    taken = lab.ask(site, "takeover", plan=False, force=True)
    assert taken["changed"]
    cut = history.cut(lab.content(site))
    last = plan["last_restored_marker"]
    known = {marker["name"]: marker["sequence"] for marker in lab.ask(site, "marker.list")["markers"]}
    for name, moment in markers.items():
        if name in known:
            assert last["sequence"] >= known[name], "a marker that is listed was restored"
            history.require(cut, history.acknowledged(before=moment), f"{name} was restored")
    return history.truncate(cut)
