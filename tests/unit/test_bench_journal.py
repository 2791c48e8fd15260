"""`scripts/bench --journal`: every figure is measured on the real engine, and says what was done."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from scripts.benchmark.__main__ import main
from scripts.benchmark.journal import JournalPlan, journal_data, make_journal_plan, run_journal, tables
from scripts.benchmark.journal_load import Shape

MIB = 1 << 20
SHAPE = Shape(4096, 32)


@pytest.mark.timeout(300)
def test_every_figure_is_measured_and_told() -> None:
    console = Console(file=io.StringIO(), width=110)
    plan = JournalPlan(((4 * MIB, SHAPE, False), (4 * MIB, SHAPE, True)), 4 * MIB, 48 * MIB, 2 * MIB, 0.1)
    figures = run_journal(plan, console)
    warm, cold = figures.recoveries
    records = 4 * MIB // SHAPE.pack_bytes * SHAPE.records
    assert warm.records == cold.records == records
    # An index of blocks: a few dozen bytes each, and never the data.
    assert warm.held_bytes is not None
    assert 30 * records < warm.held_bytes < 4 * MIB // 2
    for restored in figures.restores:
        assert restored.records == restored.bytes // restored.shape.pack_bytes * restored.shape.records
    for shipped in figures.ships:
        assert shipped.records == shipped.bytes // shipped.shape.pack_bytes * shipped.shape.records
        assert 0 < shipped.received_seconds <= shipped.restored_seconds
    one_at_a_time, many, large = figures.amplifications
    # A pack of one record is a block of header and a block of data; many share the header.
    assert one_at_a_time.journal_bytes >= 2 * one_at_a_time.host_bytes
    assert many.host_bytes < many.journal_bytes < one_at_a_time.journal_bytes
    assert large.host_bytes < large.journal_bytes < many.journal_bytes
    for commit in figures.group_commits:
        assert commit.flushes <= commit.writes
        assert commit.writes <= (commit.flushes + 2) * commit.outstanding
    for table in tables(figures):
        console.print(table)
    assert isinstance(console.file, io.StringIO)
    assert "32 of 4 KiB" in console.file.getvalue()
    data = journal_data(figures, 0.0)
    assert json.loads(json.dumps(data))["recoveries"][0]["records"] == records
    assert data["recovery_goal_met"] is None, "a small journal says nothing of a large one"


def test_the_whole_plan_has_the_journal_that_the_goal_is_for() -> None:
    sizes = {size for size, _, _ in make_journal_plan(quick=False).recoveries}
    assert max(sizes) == 1 << 30


def test_rounds_are_refused_where_they_mean_nothing() -> None:
    with pytest.raises(SystemExit):
        main(["--journal", "--rounds", "3"])
