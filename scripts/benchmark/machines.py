"""`scripts/bench --lab`: our volume through LIO against LIO's fileio and DRBD, on the same two machines.

Machine b's kernel is the initiator (open-iscsi, fio), machine a's LIO the target for all: a file-backed
volume, a DRBD device with protocol A mirrored to b, and ours, first alone and then replicated to b. A phase
measures its contestants in turn, round after round, and compares medians of the phase: absolute numbers are
those of an emulated machine and mean nothing, ratios do.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table

from scripts.vmlab.failure import LabError
from scripts.vmlab.lab import MIRROR, Choices, Lab
from scripts.vmlab.layout import Network

_IQN = "iqn.2026-01.org.replctl"
_REPLCTL = "replctl --config /etc/replctl/site.toml"
_VOLUME_MIB = 96
_JOURNAL_MIB = 512
_PAIR_SECONDS_MAX = 900.0
_PORT = 3270
_CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "replctl" / "images"


@dataclass(frozen=True, slots=True)
class Job:
    """One fio job; the goals are for ours alone against fileio, and replicated against DRBD."""

    name: str
    pattern: str
    block: str
    outstanding: int
    goal_alone: float | None = None
    goal_replicated: float | None = None


JOBS = (
    Job("4 KiB random write, 16 outstanding", "randwrite", "4k", 16, 0.8, 1.0),
    Job("4 KiB random write, 1 outstanding", "randwrite", "4k", 1, 0.5),
    Job("4 KiB random read, 16 outstanding", "randread", "4k", 16, 0.8),
    Job("256 KiB write, 4 outstanding", "write", "256k", 4),
)


@dataclass(frozen=True, slots=True)
class Contestant:
    """A logical unit that b has logged in to."""

    name: str
    target: str
    portal: str

    @property
    def device(self) -> str:
        return f"/dev/disk/by-path/ip-{self.portal}-iscsi-{self.target}-lun-0"


@dataclass(frozen=True, slots=True)
class Phase:
    """Rates of every contestant for every job, one a round."""

    base: str
    ours: str
    rates: dict[str, dict[str, list[float]]]

    def ratio(self, job: Job) -> float:
        rates = self.rates[job.name]
        return median(rates[self.ours]) / median(rates[self.base])


class Bench:
    """The machines, made ready for all contestants."""

    def __init__(self, lab: Lab, seconds: float) -> None:
        self._lab = lab
        self._seconds = seconds
        self._address = lab.machine("a").machine.address(Network.FRONT)

    def prepare(self) -> tuple[Contestant, Contestant, Contestant]:
        """Fileio, DRBD, and ours; b is logged in to each."""
        self._make_drbd()
        self._run("a", f"lvcreate -q -y -L {_VOLUME_MIB}m -n bench-file replctl >/dev/null")
        contestants = (
            self._export("fileio", "/dev/replctl/bench-file"),
            self._export("drbd", "/dev/drbd0"),
            Contestant("ours", f"{_IQN}:a", f"{self._address}:3260"),
        )
        self._run("b", "systemctl start iscsid")
        for one in contestants:
            node = f"iscsiadm -m node -T {one.target} -p {one.portal}"
            self._run("b", f"{node} -o new >/dev/null && {node} --login >/dev/null && udevadm settle")
            # Blocks that were never written are nobody's usual case.
            self._run(
                "b", f"dd if=/dev/urandom of={one.device} bs=1M count={_VOLUME_MIB} oflag=direct status=none"
            )
        return contestants

    def replicate(self) -> None:
        words = f"pair create group1 --secondary b --wait --timeout {_PAIR_SECONDS_MAX:.0f}"
        self._run("a", f"{_REPLCTL} {words}", timeout_seconds=_PAIR_SECONDS_MAX)

    def status(self) -> str:
        """Of the pair; a replicated run that ended in another state than PAIR measured something else."""
        answer = json.loads(self._run("a", f"{_REPLCTL} pair status group1 --json"))
        return str(answer["mirrors"][0]["status"])

    def measure(self, contestants: tuple[Contestant, Contestant], jobs: Sequence[Job], rounds: int) -> Phase:
        """Of two: the one to compare with, and ours."""
        rates: dict[str, dict[str, list[float]]] = {}
        for turn in range(rounds):
            for job in jobs:
                order = contestants if turn % 2 == 0 else list(reversed(contestants))
                for one in order:
                    rate = self._fio(one, job)
                    rates.setdefault(job.name, {}).setdefault(one.name, []).append(rate)
        base, ours = contestants
        return Phase(base.name, ours.name, rates)

    def _fio(self, one: Contestant, job: Job) -> float:
        """Commands a second."""
        output = self._run(
            "b",
            # Its real name: a colon would end a file name of fio's.
            f"fio --name=job --filename=$(realpath {one.device}) --direct=1 --ioengine=libaio "
            f"--rw={job.pattern} --bs={job.block} --iodepth={job.outstanding} --time_based --ramp_time=1 "
            f"--runtime={self._seconds} --output-format=json",
            timeout_seconds=120 + 20 * self._seconds,
        )
        figures = json.loads(output[output.index("{") :])["jobs"][0]
        return float(figures["read" if "read" in job.pattern else "write"]["iops"])

    def _export(self, name: str, device: str) -> Contestant:
        """Through LIO, beside what the subsystem exports."""
        target, portal = f"{_IQN}:bench-{name}", f"{self._address}:{_PORT}"
        script = (Path(__file__).with_name("export.py")).read_text()
        words = f"{name} {device} {target} {portal}"
        self._run("a", f"/opt/replctl/venv/bin/python - {words} <<'END'\n{script}\nEND")
        return Contestant(name, target, portal)

    def _make_drbd(self) -> None:
        sites = [self._lab.machine(name).machine for name in ("a", "b")]
        hosts = "".join(
            f"  on {site.name} {{ address {site.address(Network.SAN)}:7789; }}\n" for site in sites
        )
        resource = (
            "resource bench {\n  protocol A;\n  device /dev/drbd0;\n  disk /dev/replctl/bench-drbd;\n"
            f"  meta-disk internal;\n{hosts}}}\n"
        )
        for site in sites:
            self._run(
                site.name,
                f"set -e\nlvcreate -q -y -L {_VOLUME_MIB + 4}m -n bench-drbd replctl >/dev/null\n"
                f"cat >/etc/drbd.d/bench.res <<'END'\n{resource}END\n"
                "modprobe drbd\ndrbdadm create-md --force bench >/dev/null 2>&1\ndrbdadm up bench",
            )
        # Both sides hold zeros: nothing to synchronise first.
        self._run(
            "a",
            "set -e; drbdadm wait-connect bench; drbdadm -- --clear-bitmap new-current-uuid bench; "
            "drbdadm primary bench",
        )

    def _run(self, machine: str, script: str, timeout_seconds: float = 300) -> str:
        return self._lab.machine(machine).run(script, timeout_seconds=timeout_seconds)


def show(
    console: Console, phase: Phase, title: str, jobs: Sequence[Job], goals: dict[str, float | None]
) -> None:
    table = Table(title=title)
    table.add_column("work", no_wrap=True)
    names = list(next(iter(phase.rates.values())))
    for heading in (*(f"{name}\n/s" for name in names), f"ours to\n{phase.base}", "goal"):
        table.add_column(heading, justify="right", no_wrap=True)
    for job in jobs:
        goal = goals[job.name]
        ratio = phase.ratio(job)
        style = None if goal is None else "green" if ratio >= goal else "red"
        medians = [f"{median(phase.rates[job.name][name]):,.0f}" for name in names]
        told = "" if goal is None else f"{goal:.1f}"
        table.add_row(job.name, *medians, f"{ratio:.2f}", told, style=style)
    console.print(table)


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench --lab", description=__doc__.splitlines()[0])
    parser.add_argument("--lab", action="store_true", required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5.0, help="for each measurement")
    parser.add_argument("--front-end", choices=("embedded", "lio"), default="lio", help="who serves ours")
    parser.add_argument("--cache", type=Path, default=_CACHE)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure to FILE")
    arguments = parser.parse_args()
    console = Console(soft_wrap=True)
    with tempfile.TemporaryDirectory(prefix="replctl-bench-") as directory:
        lab = Lab(Path(directory) / "lab")
        try:
            return _run(lab, arguments, console)
        except LabError as error:
            console.print(f"bench: {error}", markup=False, highlight=False)
            return 1
        finally:
            lab.down()


def _run(lab: Lab, arguments: argparse.Namespace, console: Console) -> int:
    choices = Choices(front_end=arguments.front_end, volumes=f"data:{_VOLUME_MIB}", journal_mib=_JOURNAL_MIB)
    lab.make(choices, arguments.cache, MIRROR)
    lab.up([])
    bench = Bench(lab, arguments.seconds)
    fileio, drbd, ours = bench.prepare()
    alone = bench.measure((fileio, ours), JOBS, arguments.rounds)
    show(console, alone, "not replicated", JOBS, {job.name: job.goal_alone for job in JOBS})
    bench.replicate()
    replicated = bench.measure((drbd, ours), JOBS, arguments.rounds)
    title = f"replicated (the pair ended as {bench.status()}), against DRBD with protocol A"
    show(console, replicated, title, JOBS, {job.name: job.goal_replicated for job in JOBS})
    if arguments.json is not None:
        figures = {"alone": alone.rates, "replicated": replicated.rates, "front_end": arguments.front_end}
        arguments.json.write_text(json.dumps(figures, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
