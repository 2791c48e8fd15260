"""The journal engine's figures as a table and as JSON: `scripts/bench --journal [--quick] [--json FILE]`.

Nothing is compared here: these are the figures that say how long a start takes, how fast a secondary follows,
and what a write costs. Each is measured in a new process, so that memory is its own.
"""

from __future__ import annotations

import multiprocessing
import os
import platform
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

from rich.console import Console
from rich.table import Table

from scripts.benchmark.journal_figures import (
    Amplification,
    GroupCommit,
    Recovery,
    Restore,
    Ship,
    amplification,
    group_commit,
    recovery,
    restore,
    ship,
)
from scripts.benchmark.journal_load import Shape

MIB = 1 << 20
_SINGLE = Shape(4096, 1)
_SMALL = Shape(4096, 32)
_LARGE = Shape(65536, 16)
GOAL_RECOVERY_BYTES, GOAL_RECOVERY_SECONDS = 1 << 30, 3.0

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class JournalPlan:
    """How much is measured."""

    recoveries: tuple[tuple[int, Shape, bool], ...]
    """Unapplied bytes, what the records are, whether the journal comes from the disk."""
    moved_bytes: int
    """Restored and shipped."""
    file_bytes: int
    """The volume, and the journal, that hosts write to."""
    host_bytes: int
    commit_seconds: float


def make_journal_plan(quick: bool) -> JournalPlan:
    largest = 128 * MIB if quick else GOAL_RECOVERY_BYTES
    return JournalPlan(
        recoveries=(
            (largest // 16, _SMALL, False),
            (largest // 4, _SMALL, False),
            (largest, _SMALL, False),
            (largest, _SMALL, True),
            (largest, _LARGE, False),
            (largest, _SINGLE, False),
        ),
        moved_bytes=64 * MIB if quick else 256 * MIB,
        file_bytes=96 * MIB if quick else 256 * MIB,
        host_bytes=16 * MIB if quick else 128 * MIB,
        commit_seconds=0.3 if quick else 3.0,
    )


@dataclass(slots=True)
class Figures:
    """Everything that was measured."""

    recoveries: list[Recovery]
    restores: list[Restore]
    ships: list[Ship]
    amplifications: list[Amplification]
    group_commits: list[GroupCommit]


def _alone(measure: Callable[..., T], *arguments: object) -> T:
    """Measure in a process of its own, in a directory of its own."""
    with (
        tempfile.TemporaryDirectory(prefix="replctl-bench-") as directory,
        ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool,
    ):
        return pool.submit(measure, Path(directory), *arguments).result()


def run_journal(plan: JournalPlan, console: Console) -> Figures:
    """Measure all of it."""
    figures = Figures([], [], [], [], [])
    with console.status("recovery") as status:
        for arguments in plan.recoveries:
            figures.recoveries.append(_alone(recovery, *arguments))
        for shape in (_SINGLE, _SMALL, _LARGE):
            status.update("restoring")
            figures.restores.append(_alone(restore, plan.moved_bytes, shape))
            status.update("shipping")
            figures.ships.append(_alone(ship, plan.moved_bytes, shape))
        status.update("writing")
        for size_bytes, outstanding in ((4096, 1), (4096, 32), (65536, 32)):
            figures.amplifications.append(
                _alone(amplification, plan.file_bytes, size_bytes, outstanding, plan.host_bytes)
            )
        status.update("group commit")
        for outstanding in (1, 8, 32):
            figures.group_commits.append(
                _alone(group_commit, plan.file_bytes, outstanding, plan.commit_seconds)
            )
    return figures


def tables(figures: Figures) -> Iterator[Table]:
    """The figures for a person."""
    starts = _table("Recovery", ("unapplied", "records a pack", "read from", "recovery", "memory a GiB"))
    for start in figures.recoveries:
        starts.add_row(
            f"{start.unapplied_bytes // MIB} MiB",
            start.shape.name,
            "the disk" if start.cold else "memory",
            f"{start.seconds:.2f} s",
            "" if start.held_bytes is None else f"{start.held_bytes / start.unapplied_bytes * 1024:.0f} MiB",
        )
    yield starts
    moved = _table("Restoring, and shipping over iSCSI", ("records a pack", "work", "MB/s", "records/s"))
    for one in figures.restores:
        moved.add_row(one.shape.name, "restore", *_rates(one.bytes, one.records, one.seconds))
    for fetched in figures.ships:
        name, of = fetched.shape.name, (fetched.bytes, fetched.records)
        moved.add_row(name, "ship: received, durably", *_rates(*of, fetched.received_seconds))
        moved.add_row(name, "ship: restored", *_rates(*of, fetched.restored_seconds))
    yield moved
    written = _table("Bytes written for a byte of a host", ("writes", "journal", "volume", "both"))
    for load in figures.amplifications:
        journal, volume = load.journal_bytes / load.host_bytes, load.volume_bytes / load.host_bytes
        written.add_row(
            f"{load.size_bytes >> 10} KiB, {load.outstanding} outstanding",
            f"{journal:.2f}",
            f"{volume:.2f}",
            f"{journal + volume:.2f}",
        )
    yield written
    commits = _table("Group commit: 4 KiB with FUA", ("outstanding", "writes", "each", "writes a flush"))
    for commit in figures.group_commits:
        commits.add_row(
            str(commit.outstanding),
            f"{commit.writes / commit.seconds:,.0f} /s",
            f"{commit.seconds / commit.writes * commit.outstanding * 1e3:.2f} ms",
            f"{commit.writes / max(commit.flushes, 1):.1f}",
        )
    yield commits


def _rates(count_bytes: int, records: int, seconds: float) -> tuple[str, str]:
    return f"{count_bytes / seconds / 1e6:.0f}", f"{records / seconds:,.0f}"


def _table(title: str, columns: tuple[str, ...]) -> Table:
    table = Table(title=title)
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left", no_wrap=True)
    return table


def journal_data(figures: Figures, other_cpu_share: float) -> dict[str, object]:
    """Everything, for the JSON file; bytes and seconds."""
    largest = [one for one in figures.recoveries if one.unapplied_bytes >= GOAL_RECOVERY_BYTES]
    return {
        "machine": {
            "processors": os.cpu_count(),
            "kernel": platform.release(),
            "python": platform.python_version(),
        },
        "other_cpu_share": other_cpu_share,
        **asdict(figures),
        "recovery_goal_met": all(one.seconds < GOAL_RECOVERY_SECONDS for one in largest) if largest else None,
    }
