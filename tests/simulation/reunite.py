"""What a person does after everything: look who reigns, resync; delete and create where nothing else
helps.

No step looks into a site: only what the agents show and answer counts. It ends when all pairs are in PAIR,
with everything restored and both sites equal, or it is a violation: a state nobody gets out of.
"""

from __future__ import annotations

from typing import Any

from target.group import Access
from target.journal.superblock import Role
from tests.simulation.scene import Scene
from tests.simulation.sim_site import SimSite
from tests.simulation.violation import Violation

_ROUNDS_MAX = 30
_SETTLE_SECONDS = 7.0
_PATIENCE_SECONDS = 15.0
_PAIR_SECONDS = 90.0
"""Longer than a site stands still for a merge that broke off."""


def reunite(world: Scene) -> None:
    """Bring all sites together; raises Violation when that cannot be done."""
    world.run_for(_SETTLE_SECONDS)
    done: list[str] = []
    for _ in range(_ROUNDS_MAX):
        statuses = {name: world.operators.status(site) for name, site in world.sites.items()}
        primary = _level(world, statuses)
        if primary is not None and _until_equal(world, primary):
            return
        done.append(_next_step(world, statuses))
        world.run_for(_PATIENCE_SECONDS if "is under way" in done[-1] else 2.0)
    raise Violation("the sites do not come together: " + "; ".join(done[-8:]) + f"; {_short(statuses)}")


def _short(statuses: dict[str, dict[str, Any]]) -> str:
    return ", ".join(
        f"{name}: {shown['role']} {shown['status']} {shown['access']} epoch {shown['epoch']}"
        for name, shown in statuses.items()
    )


def _level(world: Scene, statuses: dict[str, dict[str, Any]]) -> SimSite | None:
    """The primary, when every other site is its mirror in PAIR."""
    for name, shown in statuses.items():
        if shown["role"] == "primary" and shown["access"] == "serve":
            mirrors = {mirror["site"]: mirror["status"] for mirror in shown["mirrors"]}
            others = [statuses[other] for other in statuses if other != name]
            if (
                mirrors.keys() == statuses.keys() - {name}
                and all(status == "PAIR" for status in mirrors.values())
                and all(other["role"] == "secondary" and other["primary"] == name for other in others)
            ):
                return world.sites[name]
    return None


def _until_equal(world: Scene, primary: SimSite) -> bool:
    """Nothing is written now: every secondary restores everything, and shows the same as the primary."""
    latest = primary.node.last

    def level() -> bool:
        return all(
            site.target.group.role is Role.SECONDARY
            and site.target.group.background.applied_sequence >= latest
            for site in world.sites.values()
            if site is not primary
        )

    if not world.run_until(level, _PAIR_SECONDS):
        raise Violation(
            f"{primary.name} shows PAIR, and record {latest} is not restored in {_PAIR_SECONDS} s"
        )
    if any(site.target.group.access is Access.FAILED for site in world.sites.values()):
        return False
    world.run_for(0.5)
    image = primary.image()
    for site in world.sites.values():
        if site is primary:
            continue
        world.run_until(lambda site=site: site.target.group.background.idle, 10.0)  # type: ignore[misc]
        if not site.target.group.consistent:
            raise Violation(f"{primary.name} shows PAIR, and {site.name} is not consistent")
        for number, name in site.volume_names.items():
            if site.disks[name].snapshot()[: len(image[number])] != image[number]:
                raise Violation(
                    f"{name} of {site.name} differs from {primary.name}'s although they are in PAIR"
                )
    return True


def _next_step(world: Scene, statuses: dict[str, dict[str, Any]]) -> str:
    """One thing a person would do; says what it was."""
    for name, shown in statuses.items():
        if shown["access"] == "failed":
            return f"{_short(statuses)}: {_renew(world, name, statuses)}"
    reigning = [
        name for name, shown in statuses.items() if shown["role"] == "primary" and shown["access"] == "serve"
    ]
    if len(reigning) > 1:
        loser = reigning[-1]
        return f"{_short(statuses)}: {_do(world, loser, 'pair.delete')}"
    if not reigning:
        return _nobody_reigns(world, statuses)
    primary = reigning[0]
    for other in statuses:
        if other == primary:
            continue
        status = {mirror["site"]: mirror["status"] for mirror in statuses[primary]["mirrors"]}.get(
            other, "none"
        )
        theirs = statuses[other]
        follows = (
            theirs["role"] == "secondary" and theirs["primary"] == primary and theirs["status"] != "SSUS"
        )
        if status in ("COPY", "PAIR", "PFUL") and follows:
            _wait_for_pair(world, primary, other)
            continue
        text = _do(world, primary, "pair.resync", secondary=other)
        damaged = [name for name, site in world.sites.items() if site.damaged_at is not None]
        if damaged and "cannot be read" in text:
            return f"{text}; {_renew(world, damaged[0], statuses)}"
        if "error" in text and ("create" in text or "no mirror" in text):
            text += "; " + _do(world, primary, "pair.delete", secondary=other)
            if statuses[other]["role"] != "simplex":
                text += "; " + _do(world, other, "pair.delete")
            text += "; " + _do(world, primary, "pair.create", secondary=other)
        if "make them alike" in text:
            text += _alike(world)
        return f"{_short(statuses)}, {other} is {status} at {primary}: {text}"
    return "waited"


def _alike(world: Scene) -> str:
    """Two sites whose volumes have different sizes: the smaller ones grow."""
    text = ""
    largest: dict[str, int] = {}
    for site in world.sites.values():
        for volume in site.target.group.volumes:
            largest[volume.name] = max(largest.get(volume.name, 0), volume.size_bytes)
    for name, site in world.sites.items():
        for volume in site.target.group.volumes:
            if volume.size_bytes < largest[volume.name]:
                params = {"volume": volume.name, "size_bytes": largest[volume.name]}
                text += "; " + _do(world, name, "volume.grow", **params)
    return text


def _renew(world: Scene, name: str, statuses: dict[str, dict[str, Any]]) -> str:
    """docs/recovery.md, a damaged journal volume."""
    site = world.sites[name]
    if site.damaged_at is None:
        raise Violation(f"{name} is damaged, and nobody damaged it: {statuses[name]['reason']}")
    text = ""
    for other, shown in statuses.items():
        if other != name and shown["role"] == "secondary" and shown["primary"] == name:
            text += _do(world, other, "takeover", force=True) + "; "
    site.machine.kill_target()
    site.renew_journal()
    site.machine.start_target()
    world.run_for(_SETTLE_SECONDS)
    return text + f"{name} gets a new journal volume"


def _nobody_reigns(world: Scene, statuses: dict[str, dict[str, Any]]) -> str:
    text = _short(statuses)
    simplex = [name for name, shown in statuses.items() if shown["role"] == "simplex"]
    waiting = [
        name for name, shown in statuses.items() if shown["role"] == "primary" and shown["access"] == "hold"
    ]
    if waiting:
        return f"{text}: {_do(world, waiting[0], 'takeover', force=True)}"
    if simplex:
        others = [name for name in statuses if name != simplex[0]]
        answers = []
        for other in others:
            if statuses[other]["role"] != "simplex":
                answers.append(_do(world, other, "pair.delete"))
                if "is there" in answers[-1]:
                    answers.append(_do(world, simplex[0], "pair.delete", secondary=other))
            else:
                answers.append(_do(world, simplex[0], "pair.create", secondary=other))
                if "make them alike" in answers[-1]:
                    answers.append(_alike(world))
            if statuses[other]["role"] == "secondary" and "error" in answers[-1]:
                answers.append(_do(world, other, "takeover", force=True))
        return f"{text}: {'; '.join(answers)}"
    newest = max(statuses, key=lambda name: statuses[name]["epoch"])
    answer = _do(world, newest, "takeover", force=True)
    if "not complete" in answer:
        others = [name for name in statuses if name != newest]
        answer += "; " + _do(world, others[0], "takeover", force=True)
    return f"{text}: {answer}"


def _wait_for_pair(world: Scene, primary: str, other: str) -> None:
    """COPY becomes PAIR by itself, or something else that can be seen."""

    def ended() -> bool:
        group = world.sites[primary].target.group
        mirror = group.mirrors.table.get(other)
        return mirror is None or mirror.entry.state.name not in ("COPY",)

    if not world.run_until(ended, _PAIR_SECONDS):
        shown = world.operators.status(world.sites[primary])
        raise Violation(f"the copy from {primary} to {other} does not end: {shown['mirrors']}")
    world.run_for(1.0)


def _do(world: Scene, name: str, op: str, **params: object) -> str:
    request = world.operators.wait(world.operators.ask(world.sites[name], op, **params))
    if request.error is not None:
        return f"{request} error: {request.error}"
    return f"{request} ok"
