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


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that hosts, operators or bad luck do."""

    time: float
    kind: str
    args: tuple[Any, ...]

    def __str__(self) -> str:
        return f"{self.time:8.3f}  {self.kind} {' '.join(map(str, self.args))}"


@dataclass(frozen=True, slots=True)
class Plan:
    """A whole run."""

    seed: int
    sites: tuple[str, ...]
    volume_bytes: tuple[int, ...]
    journal_bytes: int
    peer_wait_seconds: float
    serve_without_peers: bool
    replays: bool
    cold_chance: float
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
    ("kill_target", "kill_agent", "power", "cut_management", "cut_one_way", "cut_san", "slow", "late", "fail")
)


def plan_for(seed: int, *, host_operations: int = 300, faults: int = 10) -> Plan:
    """The run that a seed stands for: at least so many operations of hosts and faults."""
    rng = random.Random(f"plan {seed}")
    sites = ("a", "b")
    heavy = rng.random() < 0.3
    volumes = tuple(
        rng.choice((256 << 10, 512 << 10, MIB, MIB + 192 * 1024 + 512)) for _ in range(rng.choice((2, 2, 3)))
    )
    steps: list[Step] = []
    duration = rng.uniform(12.0, 30.0)
    _hosts(rng, steps, duration, host_operations + rng.randrange(60), len(volumes), heavy)
    if rng.random() < 0.9:
        steps.append(Step(rng.uniform(0.2, 1.5), "ask", ("a", "pair.create", (("secondary", "b"),))))
    _faults(rng, steps, duration, faults + rng.randrange(5), sites)
    _operators(rng, steps, duration, rng.randrange(4, 16), sites)
    steps.sort(key=lambda step: step.time)
    return Plan(
        seed=seed,
        sites=sites,
        volume_bytes=volumes,
        journal_bytes=rng.choice((5, 6, 8, 12)) * MIB + (1 << 19),
        peer_wait_seconds=rng.choice((1.0, 3.0, 5.0)),
        serve_without_peers=rng.random() < 0.8,
        replays=rng.random() < 0.5,
        cold_chance=rng.choice((0.0, 0.0, 0.05, 0.5)),
        steps=tuple(steps),
    )


def _hosts(
    rng: random.Random, steps: list[Step], duration: float, count: int, volumes: int, heavy: bool
) -> None:
    hot = [rng.randrange(0, 400) for _ in range(4)]
    while count > 0:
        burst = min(count, rng.choice((1, 1, 2, 5, 12)))
        count -= burst
        time = rng.uniform(0.0, duration)
        for _ in range(burst):
            site = SERVING if rng.random() < 0.9 else rng.choice("ab")
            volume = rng.randrange(volumes)
            sectors = rng.choice((1, 1, 2, 3, 8, 8, 8, 16, 9, 64))
            if heavy and rng.random() < 0.3:
                sectors = rng.choice((128, 256, 512))
            sector = rng.choice(hot) + rng.randrange(4) if rng.random() < 0.5 else rng.randrange(2048)
            if rng.random() < 0.4:
                sector &= ~7
            kind = rng.choices(("write", "zero", "flush", "read"), (70, 6, 10, 14))[0]
            fua = rng.random() < 0.1
            steps.append(Step(time, kind, (site, volume, sector, sectors, fua)))
            time += rng.choice((0.0, 0.0, 0.0005, 0.005, 0.03))


def _faults(
    rng: random.Random, steps: list[Step], duration: float, count: int, sites: tuple[str, ...]
) -> None:
    for _ in range(count):
        time = rng.uniform(0.5, duration)
        kind = rng.choices(
            (
                "kill_target",
                "kill_agent",
                "power",
                "cut_management",
                "cut_one_way",
                "cut_san",
                "slow",
                "late",
            ),
            (22, 10, 26, 12, 5, 18, 4, 3),
        )[0]
        site = rng.choice(sites)
        other = rng.choice([name for name in sites if name != site])
        lasts = rng.choice((rng.uniform(0.01, 0.3), rng.uniform(0.3, 3.0), rng.uniform(2.0, 9.0)))
        if kind in ("kill_target", "power"):
            after = rng.choice((0, rng.randrange(1, 8), rng.randrange(1, 60)))
            steps.append(Step(time, kind, (site, after)))
            steps.append(Step(time + lasts, "start", (site,)))
        elif kind == "kill_agent":
            steps.append(Step(time, kind, (site,)))
            steps.append(Step(time + lasts, "start", (site,)))
        elif kind == "cut_management" or kind == "cut_one_way":
            steps.append(Step(time, kind, (site, other)))
            steps.append(Step(time + lasts, "join_management", (site, other)))
        elif kind == "cut_san":
            steps.append(Step(time, kind, (site, other)))
            steps.append(Step(time + lasts, "join_san", (site, other)))
        elif kind == "slow":
            steps.append(Step(time, kind, (site, rng.choice((5.0, 30.0, 100.0)))))
            steps.append(Step(time + lasts, "slow", (site, 1.0)))
        else:
            steps.append(Step(time, kind, (rng.choice((5.0, 20.0, 60.0)),)))
            steps.append(Step(time + lasts, "late", (1.0,)))


def _operators(
    rng: random.Random, steps: list[Step], duration: float, count: int, sites: tuple[str, ...]
) -> None:
    for number in range(count):
        time = rng.uniform(2.0, duration)
        site = rng.choice(sites)
        other = rng.choice([name for name in sites if name != site])
        op = rng.choices(
            ("pair.resync", "takeover force", "takeover", "pair.split", "pair.delete", "pair.create",
             "marker.create", "verify", "takeover both", "takeover behind"),
            (26, 8, 18, 9, 3, 6, 14, 9, 3, 5),
        )[0]  # fmt: skip
        if op == "takeover behind":  # much is received and not restored yet
            steps.append(Step(time, "slow", (site, rng.choice((30.0, 100.0, 300.0)))))
            moment = time + rng.uniform(0.05, 1.0)
            steps.append(Step(moment, "ask", (site, "takeover", (("force", True),))))
            steps.append(Step(moment + 2.0, "slow", (site, 1.0)))
            continue
        if op == "takeover both":
            for one in sites:
                steps.append(Step(time + rng.uniform(0, 0.2), "ask", (one, "takeover", (("force", True),))))
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
        steps.append(Step(time, "ask", (site, op, params)))
