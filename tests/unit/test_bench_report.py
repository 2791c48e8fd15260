"""What the benchmark makes of its measurements."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from scripts.benchmark.load import Kind, Measurement, Row
from scripts.benchmark.report import RowResult, as_data, as_table, resident


def measured(*rates: int, client_cpu: float = 0.2, target_cpu: float = 0.8) -> list[Measurement]:
    return [Measurement(rate, 1.0, client_cpu, target_cpu) for rate in rates]


def row(outstanding: int = 32, size_bytes: int = 4096, kind: Kind = Kind.READ, sessions: int = 1) -> Row:
    return Row(kind, size_bytes, sequential=False, outstanding=outstanding, sessions=sessions)


def test_ratio_is_that_of_the_medians() -> None:
    result = RowResult(row(), tgt=measured(100, 1000, 110), embedded=measured(220, 210, 1))
    assert result.ratio == pytest.approx(210 / 110)
    assert result.ratio_range == pytest.approx((1 / 110, 2.2))


@pytest.mark.parametrize(
    ("one", "goal"),
    [
        (row(32, 4096), 2.5),
        (row(32, 4096, Kind.WRITE), 2.0),
        (row(32, 262144, Kind.WRITE), 2.0),
        (row(1, 4096, Kind.WRITE), 1.0),
        (row(1, 65536), None),
        (row(32, 4096, Kind.WRITE_AND_FLUSH), 1.5),
        (row(1, 4096, Kind.WRITE_AND_FLUSH), None),
        (row(32, 4096, Kind.MIXED, sessions=4), 2.0),
        (row(32, 4096, sessions=4), None),
    ],
)
def test_goals_are_those_that_are_wanted(one: Row, goal: float | None) -> None:
    assert RowResult(one, measured(1), measured(1)).goal == goal


def test_row_that_the_client_limited_says_so() -> None:
    assert not RowResult(row(), measured(100), measured(100)).client_limited
    assert RowResult(row(), measured(100), measured(100, client_cpu=0.95)).client_limited


def test_data_are_json_and_say_whether_a_goal_was_met() -> None:
    results = [
        RowResult(row(), measured(100, 100), measured(240, 270)),
        RowResult(row(size_bytes=65536), measured(100, 100), measured(140, 140)),
    ]
    data = json.loads(json.dumps(as_data(results, "1.0.85", {"tgt": 1, "embedded": 2}, 0.01)))
    assert [(one["row"], one["goal_met"]) for one in data["rows"]] == [
        ("read-4k-random-32", True),
        ("read-64k-random-32", False),
    ]
    assert data["rows"][0]["embedded"]["per_second_rounds"] == [240, 270]
    assert data["rows"][0]["tgt"]["target_cpu_us_per_unit"] == pytest.approx(8000)


def test_memory_is_the_most_of_all_rows() -> None:
    low, high = (Measurement(1, 1.0, 0.1, 0.1, target_resident_bytes=size) for size in (100, 300))
    results = [RowResult(row(), [low, high], [low, low]), RowResult(row(1), [low], [high])]
    assert resident(results) == {"tgt": 300, "embedded": 300}
    assert resident(results[:1]) == {"tgt": 300, "embedded": 100}


def test_table_shows_every_row() -> None:
    output = io.StringIO()
    results = [RowResult(row(), measured(100), measured(150)), RowResult(row(1), measured(10), measured(7))]
    Console(file=output, width=120).print(as_table(results))
    assert "read-4k-random-32" in output.getvalue()
    assert "1.50" in output.getvalue()
    assert "0.70" in output.getvalue()
