"""Compare the embedded target with tgt: one run, one client, both targets in turn, medians over the rounds.

The client must not be what is measured. fio has no iSCSI engine in Debian, iscsi-perf only reads, and ctypes
over libiscsi pays a call into Python for every command, so the client is `scripts.benchmark.load`: PDUs made
before the clock runs, several of them a system call. Measured against tgt 1.0.85 on two shared processors, 32
outstanding (the last column is the client's CPU time in units of tgt's, at 4 KiB):

    client            4 KiB read       4 KiB write   64 KiB write   CPU
    this one          24 k/s           37.6 k/s      6.4 k/s        0.35 (read), 0.56 (write)
    iscsi-perf        29 k/s           -             -              0.43 (read)
    qemu-img bench    33 k/s (in order)  37.2 k/s    6.5 k/s        0.78 (read), 0.92 (write)

All three agree on what tgt can do, and only this one leaves room for a target that is twice as fast. Every
row carries the client's share of its processor; one in which the client was the limit is marked as such.

Targets run on one processor, the client on the other. Volumes are written once before anything is measured:
reads come from the page cache, and writes go to blocks that exist.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from scripts.benchmark.journal import journal_data, make_journal_plan, run_journal, tables
from scripts.benchmark.load import (
    SECTOR_BYTES,
    Kind,
    Measurement,
    Row,
    Stream,
    drain,
    measure,
    payload,
    run_until,
)
from scripts.benchmark.report import RowResult, as_data, as_table, resident
from scripts.benchmark.session import BenchmarkError, Session
from scripts.benchmark.targets import Embedded, TargetProcess, Tgt, busy_seconds

VOLUME_BYTES = 256 << 20
JOURNAL_BYTES = 1 << 30
_OTHER_WORK_SHARE_MAX = 0.1
_FILL = Row(Kind.WRITE, 262144, sequential=True, outstanding=16)

MAIN_ROWS = tuple(
    Row(kind, size_bytes, sequential, outstanding)
    for size_bytes, sequential in ((4096, False), (65536, True), (262144, True))
    for kind in (Kind.READ, Kind.WRITE)
    for outstanding in (1, 32)
)
FURTHER_ROWS = (
    Row(Kind.WRITE_AND_FLUSH, 4096, sequential=False, outstanding=1),
    Row(Kind.WRITE_AND_FLUSH, 4096, sequential=False, outstanding=32),
    Row(Kind.READ, 4096, sequential=False, outstanding=32, sessions=4),
    Row(Kind.WRITE, 4096, sequential=False, outstanding=32, sessions=4),
    Row(Kind.MIXED, 4096, sequential=False, outstanding=32, sessions=4),
    Row(Kind.MIXED, 65536, sequential=False, outstanding=256, sessions=8),
)


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured. Seconds are for each measurement."""

    rows: Sequence[Row]
    rounds: int
    warm_seconds: float
    seconds: float


def fill(target: TargetProcess) -> None:
    """Write the whole volume once, and read one piece back: a target that stores nothing is not measured."""
    session = Session(target.portal, target.target_name)
    session.wait_ready(target.lun)
    stream = Stream(session, target.lun, _FILL, VOLUME_BYTES)
    stream.start()
    run_until([stream], lambda: stream.completed >= VOLUME_BYTES // _FILL.size_bytes)
    drain([stream])
    lba = VOLUME_BYTES // 2 // SECTOR_BYTES
    read_16 = (
        bytes([0x88, 0]) + lba.to_bytes(8, "big") + (_FILL.size_bytes // SECTOR_BYTES).to_bytes(4, "big")
    )
    status, data = session.command(target.lun, read_16 + bytes(2), _FILL.size_bytes)
    if status or data != payload(_FILL.size_bytes):
        raise BenchmarkError(f"{target.name} does not return what was written to it (status {status:#04x})")
    session.close()
    target.settle()


def measure_row(target: TargetProcess, row: Row, plan: Plan) -> Measurement:
    """One measurement on new sessions, and the quiet after it."""
    sessions = [Session(target.portal, target.target_name, number) for number in range(row.sessions)]
    for session in sessions:
        session.wait_ready(target.lun)
    streams = [Stream(session, target.lun, row, VOLUME_BYTES, seed) for seed, session in enumerate(sessions)]
    result = measure(streams, plan.warm_seconds, plan.seconds, target.cpu_seconds, target.resident_bytes)
    for session in sessions:
        session.close()
    target.settle()
    return result


def run(plan: Plan, tgt: TargetProcess, embedded: TargetProcess, console: Console) -> list[RowResult]:
    """All rounds of all rows; which target goes first changes with the round."""
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    results = []
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("writing the volumes", total=len(plan.rows) * plan.rounds)
        for target in (tgt, embedded):
            fill(target)
        for row in plan.rows:
            progress.update(task, description=row.name)
            measured: dict[str, list[Measurement]] = {tgt.name: [], embedded.name: []}
            for number in range(plan.rounds):
                for target in (tgt, embedded) if number % 2 == 0 else (embedded, tgt):
                    measured[target.name].append(measure_row(target, row, plan))
                progress.advance(task)
            results.append(RowResult(row, measured[tgt.name], measured[embedded.name]))
    return results


class OtherWork:
    """What took the processors' time beside the benchmark: with much of it, no figure is to be trusted."""

    def __init__(self, processors: Sequence[int], targets: Sequence[TargetProcess]) -> None:
        self._processors = processors
        self._targets = targets
        self.share = 0.0
        """Of the time of all processors that the benchmark uses."""

    def __enter__(self) -> OtherWork:
        self._start, self._before = time.monotonic(), self._seconds()
        return self

    def __exit__(self, *_: object) -> None:
        elapsed = (time.monotonic() - self._start) * len(self._processors)
        self.share = max(0.0, self._seconds() - self._before) / elapsed

    def _seconds(self) -> float:
        ended = os.times()
        ours = time.process_time() + ended.children_user + ended.children_system
        ours += sum(target.cpu_seconds() for target in self._targets)
        return busy_seconds(self._processors) - ours


def choose_processors() -> tuple[int, int]:
    """One processor for the target and one for the client; the same where there is only one."""
    available = sorted(os.sched_getaffinity(0))
    return available[0], available[min(1, len(available) - 1)]


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    names = [row.name for row in (*MAIN_ROWS, *FURTHER_ROWS)]
    parser = argparse.ArgumentParser(prog="scripts/bench", description="The embedded target against tgt.")
    parser.add_argument("--quick", action="store_true", help="the main rows only, three short rounds")
    parser.add_argument("--journal", action="store_true", help="the journal engine's own figures instead")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every number to FILE as JSON")
    parser.add_argument("--rounds", type=int, metavar="N", help="measurements of each row and target")
    parser.add_argument("--row", action="append", choices=names, help="this row only; may be given again")
    options = parser.parse_args(arguments)
    if options.rounds is not None and options.rounds < 1:
        parser.error("--rounds starts at 1")
    if options.journal and (options.rounds or options.row):
        parser.error("--rounds and --row are for the comparison with tgt")
    return options


def make_plan(options: argparse.Namespace) -> Plan:
    rows = MAIN_ROWS if options.quick else (*MAIN_ROWS, *FURTHER_ROWS)
    if options.row:
        rows = tuple(row for row in (*MAIN_ROWS, *FURTHER_ROWS) if row.name in options.row)
    if options.quick:
        return Plan(rows, options.rounds or 3, 0.2, 0.4)
    return Plan(rows, options.rounds or 5, 0.3, 1.0)


def warn(other_work: OtherWork, console: Console) -> None:
    """Say it when the figures were disturbed."""
    if other_work.share > _OTHER_WORK_SHARE_MAX:
        console.print(
            f"Other processes took {other_work.share:.0%} of the processors: do not trust these figures."
        )


def journal_figures(options: argparse.Namespace, console: Console) -> int:
    """`--journal`: measure, print, and write the JSON file."""
    with OtherWork(sorted(os.sched_getaffinity(0)), ()) as other_work:
        figures = run_journal(make_journal_plan(options.quick), console)
    for table in tables(figures):
        console.print(table)
    warn(other_work, console)
    if options.json:
        options.json.write_text(json.dumps(journal_data(figures, other_work.share), indent=2) + "\n")
    return 0


def main(arguments: Sequence[str]) -> int:
    options = parse(arguments)
    console = Console()
    console.width = max(console.width, 110)  # the tables' own width, also in a log
    if options.journal:
        return journal_figures(options, console)
    version = Tgt.version()
    if version is None:
        console.print("tgt is not installed, and it is what to compare with: apt-get install tgt")
        return 2
    target_processor, client_processor = choose_processors()
    os.sched_setaffinity(0, {client_processor})
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="replctl-bench-")))
        try:
            tgt = stack.enter_context(Tgt(directory / "tgt", VOLUME_BYTES, target_processor))
            embedded = stack.enter_context(
                Embedded(directory / "embedded", VOLUME_BYTES, target_processor, JOURNAL_BYTES)
            )
            with OtherWork(sorted({target_processor, client_processor}), (tgt, embedded)) as other_work:
                results = run(make_plan(options), tgt, embedded, console)
        except BenchmarkError as error:
            console.print(f"The benchmark could not go on: {error}", markup=False)
            return 1
    console.print(as_table(results))
    resident_bytes = resident(results)
    console.print(
        "Resident memory under load, the most: "
        + ", ".join(f"{name} {count >> 20} MiB" for name, count in resident_bytes.items())
    )
    warn(other_work, console)
    if options.json:
        options.json.write_text(
            json.dumps(as_data(results, version, resident_bytes, other_work.share), indent=2) + "\n"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
