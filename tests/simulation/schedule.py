"""What a seed stands for: the shape of the sites, and a list of steps, each at its time.

A step knows nothing of the others, so that any of them may be left away: that is how a failing schedule is
made short.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import Any

MIB = 1 << 20
SERVING = "*"
"""Whichever site takes writes at that moment."""

SITES = ("a", "b")
VOLUME_NAMES = ("data", "log", "index", "archive")
OPERATIONS_MIN = 300
FAULTS_MIN = 10


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that hosts, operators or bad luck do."""

    time: float
    kind: str
    args: tuple[Any, ...]

    def __str__(self) -> str:
        return f"{self.time:8.3f}  {self.kind} {' '.join(map(str, self.args))}"


@dataclass(frozen=True, slots=True)
class GroupPlan:
    """The shape of one consistency group."""

    volume_bytes: tuple[int, ...]
    journal_bytes: int
    throttle: bool
    small_disks: bool
    """The disks of site b have no room to grow, for as long as faults go on."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A whole run."""

    seed: int
    sites: tuple[str, ...]
    groups: tuple[GroupPlan, ...]
    peer_wait_seconds: float
    serve_without_peers: bool
    replays: bool
    cold_chance: float
    rot: bool
    """At the end some blocks of secondaries' volumes are damaged: a verify pass must find and repair them."""
    steps: tuple[Step, ...]

    @property
    def host_operations(self) -> int:
        return sum(step.kind in HOST_KINDS for step in self.steps)

    @property
    def faults(self) -> int:
        return sum(step.kind in FAULT_KINDS for step in self.steps)

    def with_steps(self, steps: list[Step]) -> Plan:
        return replace(self, steps=tuple(steps))


HOST_KINDS = frozenset(("write", "zero", "flush", "read"))
FAULT_KINDS = frozenset(
    (
        "kill_target",
        "kill_agent",
        "power",
        "power_in_commit",
        "cut_management",
        "cut_one_way",
        "cut_san",
        "slow",
        "late",
        "fail",
        "old_agent",
        "damage",
        "revert",
        "replace",
    )
)
OPERATOR_KINDS = frozenset(("ask", "mend", "keep_agent", "keep_disks"))
"""What people do; a step of any other kind disturbs."""


def plan_for(seed: int) -> Plan:
    """The run that a seed stands for."""
    rng = random.Random(f"plan {seed}")
    groups = tuple(
        GroupPlan(
            tuple(
                rng.choice((256 << 10, 512 << 10, MIB, MIB + 192 * 1024 + 512))
                for _ in range(rng.choice((2, 2, 3)))
            ),
            rng.choice((5, 6, 8, 12)) * MIB + (1 << 19),
            throttle=rng.random() < 0.1,
            small_disks=rng.random() < 0.1,
        )
        for _ in range(2 if rng.random() < 0.25 else 1)
    )
    steps: list[Step] = []
    duration = rng.uniform(12.0, 30.0)
    heavy = rng.random() < 0.3
    _hosts(rng, steps, duration, OPERATIONS_MIN + 10 + rng.randrange(60), groups, heavy)
    for number in range(len(groups)):
        if rng.random() < 0.9:
            ask = (number, "a", "pair.create", (("secondary", "b"),))
            steps.append(Step(rng.uniform(0.2, 1.5), "ask", ask))
    disaster = rng.choices(("", "damage", "revert", "replace"), (76, 12, 7, 5))[0]
    if disaster:
        _disaster(rng, steps, duration, disaster, groups)
    _faults(rng, steps, duration, FAULTS_MIN + 1 + rng.randrange(5), groups)
    _operators(rng, steps, duration, rng.randrange(4, 16), len(groups))
    if rng.random() < 0.35:
        _growth(rng, steps, duration, groups)
    _in_commits(random.Random(f"commits {seed}"), steps)
    steps.sort(key=lambda step: step.time)
    return Plan(
        seed=seed,
        sites=SITES,
        groups=groups,
        peer_wait_seconds=rng.choice((1.0, 3.0, 5.0)),
        serve_without_peers=rng.random() < 0.8,
        replays=rng.random() < 0.5,
        cold_chance=rng.choice((0.0, 0.0, 0.05, 0.5)),
        rot=rng.random() < 0.15,
        steps=tuple(steps),
    )


def _hosts(
    rng: random.Random,
    steps: list[Step],
    duration: float,
    count: int,
    groups: tuple[GroupPlan, ...],
    heavy: bool,
) -> None:
    hot = [rng.randrange(0, 400) for _ in range(4)]
    while count > 0:
        burst = min(count, rng.choice((1, 1, 2, 5, 12)))
        count -= burst
        time = rng.uniform(0.0, duration)
        group = rng.randrange(len(groups))
        for _ in range(burst):
            site = SERVING if rng.random() < 0.9 else rng.choice(SITES)
            volume = rng.randrange(len(groups[group].volume_bytes))
            sectors = rng.choice((1, 1, 2, 3, 8, 8, 8, 16, 9, 64))
            if heavy and rng.random() < 0.3:
                sectors = rng.choice((128, 256, 512))
            sector = rng.choice(hot) + rng.randrange(4) if rng.random() < 0.5 else rng.randrange(2048)
            if rng.random() < 0.4:
                sector &= ~7
            kind = rng.choices(("write", "zero", "flush", "read"), (70, 6, 10, 14))[0]
            fua = rng.random() < 0.1
            steps.append(Step(time, kind, (group, site, volume, sector, sectors, fua)))
            time += rng.choice((0.0, 0.0, 0.0005, 0.005, 0.03))


_FAULT_WEIGHTS = {
    "kill_target": 20,
    "kill_agent": 9,
    "power": 24,
    "cut_management": 11,
    "cut_one_way": 5,
    "cut_san": 16,
    "slow": 4,
    "late": 3,
    "fail": 6,
    "old_agent": 2,
}


def _faults(
    rng: random.Random, steps: list[Step], duration: float, count: int, groups: tuple[GroupPlan, ...]
) -> None:
    for _ in range(count):
        time = rng.uniform(0.5, duration)
        kind = rng.choices(tuple(_FAULT_WEIGHTS), tuple(_FAULT_WEIGHTS.values()))[0]
        site = rng.choice(SITES)
        other = _other(site)
        lasts = rng.choice((rng.uniform(0.01, 0.3), rng.uniform(0.3, 3.0), rng.uniform(2.0, 9.0)))
        end: Step | None
        if kind in ("kill_target", "power"):
            after = rng.choice((0, rng.randrange(1, 8), rng.randrange(1, 60)))
            step, end = Step(time, kind, (site, after)), Step(time + lasts, "start", (site,))
        elif kind == "kill_agent":
            step, end = Step(time, kind, (site,)), Step(time + lasts, "start", (site,))
        elif kind in ("cut_management", "cut_one_way"):
            step, end = Step(time, kind, (site, other)), Step(time + lasts, "join_management", (site, other))
        elif kind == "cut_san":
            step, end = Step(time, kind, (site, other)), Step(time + lasts, "join_san", (site, other))
        elif kind == "slow":
            step = Step(time, kind, (site, rng.choice((5.0, 30.0, 100.0))))
            end = Step(time + lasts, "slow", (site, 1.0))
        elif kind == "late":
            step, end = Step(time, kind, (rng.choice((5.0, 20.0, 60.0)),)), Step(time + lasts, "late", (1.0,))
        elif kind == "fail":
            group = rng.randrange(len(groups))
            disk = rng.randrange(-2, len(groups[group].volume_bytes))
            what = rng.choice(("read", "write", "write", "flush", "flush", "full"))
            step = Step(time, kind, (site, group, disk, what, rng.choice((0, 0, rng.randrange(1, 30)))))
            end = Step(time + lasts, "mend", (site,))
        else:
            steps.append(Step(max(0.1, time - rng.uniform(0.1, 8.0)), "keep_agent", (site,)))
            step, end = Step(time, kind, (site,)), Step(time + lasts, "start", (site,))
        steps += (step, end)


def _disaster(
    rng: random.Random, steps: list[Step], duration: float, kind: str, groups: tuple[GroupPlan, ...]
) -> None:
    """One in a run: what no replication can undo, and must say clearly."""
    time = rng.uniform(3.0, duration)
    site = rng.choice(SITES)
    group = rng.randrange(len(groups))
    if kind == "damage":
        what = rng.choice(("flip", "flip", "misdirected", "old superblock", "new superblock"))
        steps.append(Step(time, kind, (site, group, what, rng.getrandbits(32))))
    elif kind == "revert":
        steps.append(Step(max(0.5, time - rng.uniform(0.2, 10.0)), "keep_disks", (site,)))
        steps.append(Step(time, kind, (site,)))
    else:
        steps.append(Step(time, kind, (site,)))
    steps.append(Step(time + rng.uniform(0.01, 3.0), "start", (site,)))


def _operators(rng: random.Random, steps: list[Step], duration: float, count: int, groups: int) -> None:
    for number in range(count):
        time = rng.uniform(2.0, duration)
        group = rng.randrange(groups)
        site = rng.choice(SITES)
        other = _other(site)
        op = rng.choices(
            ("pair.resync", "takeover force", "takeover", "pair.split", "pair.delete", "pair.create",
             "marker.create", "verify", "takeover both", "takeover behind"),
            (26, 8, 18, 9, 3, 6, 14, 9, 3, 5),
        )[0]  # fmt: skip
        if op == "takeover behind":  # much is received and not restored yet
            steps.append(Step(time, "slow", (site, rng.choice((30.0, 100.0, 300.0)))))
            moment = time + rng.uniform(0.05, 1.0)
            steps.append(Step(moment, "ask", (group, site, "takeover", (("force", True),))))
            steps.append(Step(moment + 2.0, "slow", (site, 1.0)))
            continue
        if op == "takeover both":
            for one in SITES:
                ask = (group, one, "takeover", (("force", True),))
                steps.append(Step(time + rng.uniform(0, 0.2), "ask", ask))
            continue
        params: tuple[tuple[str, Any], ...] = ()
        if op == "marker.create":
            params = (("name", f"marker {number}"),)
            site = SERVING if rng.random() < 0.8 else site
        elif op == "takeover force":
            op, params = "takeover", (("force", True),)
        elif op in ("pair.create", "pair.resync"):
            params = (("secondary", other),)
            if rng.random() < 0.6:
                site = SERVING
        elif op in ("pair.split", "verify", "pair.delete") and rng.random() < 0.8:
            site = SERVING
        steps.append(Step(time, "ask", (group, site, op, params)))


def _in_commits(rng: random.Random, steps: list[Step]) -> None:
    """Power is lost while bitmaps are written: what they say must not be durable before what it rests on."""
    for step in list(steps):
        if step.kind == "ask" and step.args[2] in ("pair.create", "pair.resync") and rng.random() < 0.5:
            site = "a" if step.args[1] == SERVING else step.args[1]
            time = step.time + rng.uniform(0.0, 0.05)
            steps.append(Step(time, "power_in_commit", (site, rng.randrange(20))))
            steps.append(Step(time + rng.uniform(1.0, 3.0), "start", (site,)))


def _growth(rng: random.Random, steps: list[Step], duration: float, groups: tuple[GroupPlan, ...]) -> None:
    for _ in range(rng.randrange(1, 4)):
        group = rng.randrange(len(groups))
        site = SERVING if rng.random() < 0.8 else rng.choice(SITES)
        op: str
        params: tuple[tuple[str, Any], ...]
        if rng.random() < 0.5:
            number = rng.randrange(len(groups[group].volume_bytes))
            more = rng.choice((4096, 65536, 131072 + 8192, 524288))
            size = (groups[group].volume_bytes[number] + more) // 4096 * 4096
            op, params = "volume.grow", (("volume", VOLUME_NAMES[number]), ("size_bytes", size))
        else:
            size = groups[group].journal_bytes + rng.choice((1, 2, 4)) * MIB
            op, params = "journal.grow", (("size_bytes", size),)
            site = site if rng.random() < 0.5 else rng.choice(SITES)
        steps.append(Step(rng.uniform(1.0, duration), "ask", (group, site, op, params)))


def _other(site: str) -> str:
    return next(name for name in SITES if name != site)
