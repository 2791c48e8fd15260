"""What the rounds of a benchmark come to: medians, ratios, goals, as a table and as plain data."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from rich.table import Table

from scripts.benchmark.load import Kind, Measurement, Row

Numbers = dict[str, object]


@dataclass(frozen=True, slots=True)
class RowResult:
    """One row: the measurements of both targets, a pair each round."""

    row: Row
    tgt: Sequence[Measurement]
    embedded: Sequence[Measurement]

    @property
    def ratio(self) -> float:
        """Median rate of the embedded target in units of tgt's."""
        return _median_rate(self.embedded) / _median_rate(self.tgt)

    @property
    def ratio_range(self) -> tuple[float, float]:
        """The lowest and the highest ratio of a single round."""
        ratios = [ours.rate / theirs.rate for ours, theirs in zip(self.embedded, self.tgt, strict=True)]
        return min(ratios), max(ratios)

    @property
    def goal(self) -> float | None:
        """The ratio that is wanted of this row; None where nothing is."""
        row = self.row
        if row.outstanding == 1:
            return 1.0 if row.size_bytes == 4096 and row.kind in (Kind.READ, Kind.WRITE) else None
        if row.kind is Kind.WRITE_AND_FLUSH:
            return 1.5
        if row.kind is Kind.MIXED:
            return 2.0 if row.size_bytes == 4096 else None
        if row.sessions > 1:
            return None
        return 2.5 if row.kind is Kind.READ and row.size_bytes == 4096 else 2.0

    @property
    def client_limited(self) -> bool:
        """True if the client was busier than either target: then the row measures the client."""
        return any(
            one.client_cpu_seconds > one.target_cpu_seconds and one.client_cpu_seconds > 0.9 * one.seconds
            for one in (*self.tgt, *self.embedded)
        )


def _median_rate(measurements: Sequence[Measurement]) -> float:
    return median(one.rate for one in measurements)


def _summary(measurements: Sequence[Measurement]) -> Numbers:
    return {
        "per_second": _median_rate(measurements),
        "per_second_rounds": [one.rate for one in measurements],
        "target_cpu_us_per_unit": median(
            1e6 * one.target_cpu_seconds / max(one.units, 1) for one in measurements
        ),
        "target_cpu_share": median(one.target_cpu_seconds / one.seconds for one in measurements),
        "client_cpu_share": median(one.client_cpu_seconds / one.seconds for one in measurements),
    }


def resident(results: Sequence[RowResult]) -> dict[str, int]:
    """The most memory that each target held at the end of a measurement, still under load."""
    return {
        "tgt": max(one.target_resident_bytes for result in results for one in result.tgt),
        "embedded": max(one.target_resident_bytes for result in results for one in result.embedded),
    }


def as_data(
    results: Sequence[RowResult], tgt_version: str, resident_bytes: dict[str, int], other_cpu_share: float
) -> Numbers:
    """Everything, for the JSON file. Rates are units of work a second."""
    return {
        "machine": {
            "processors": os.cpu_count(),
            "kernel": platform.release(),
            "python": platform.python_version(),
            "tgt": tgt_version,
        },
        "other_cpu_share": other_cpu_share,
        "resident_bytes": resident_bytes,
        "rows": [
            {
                "row": result.row.name,
                "tgt": _summary(result.tgt),
                "embedded": _summary(result.embedded),
                "ratio": result.ratio,
                "ratio_range": result.ratio_range,
                "goal": result.goal,
                "goal_met": None if result.goal is None else result.ratio >= result.goal,
                "client_limited": result.client_limited,
            }
            for result in results
        ],
    }


def as_table(results: Sequence[RowResult]) -> Table:
    """The ratios for a person; a row that missed its goal is red, one that the client limited says so."""
    table = Table(title="embedded target against tgt, the same client for both")
    table.add_column("work", no_wrap=True)
    for heading in (
        "tgt\n/s",
        "embedded\n/s",
        "ratio",
        "of the\nrounds",
        "goal",
        "tgt\nCPU µs",
        "embedded\nCPU µs",
    ):
        table.add_column(heading, justify="right", no_wrap=True)
    for result in results:
        low, high = result.ratio_range
        style = None if result.goal is None else "green" if result.ratio >= result.goal else "red"
        cpu = [
            1e6 * median(m.target_cpu_seconds / max(m.units, 1) for m in side)
            for side in (result.tgt, result.embedded)
        ]
        table.add_row(
            result.row.name + (" (client-limited)" if result.client_limited else ""),
            f"{_median_rate(result.tgt):,.0f}",
            f"{_median_rate(result.embedded):,.0f}",
            f"{result.ratio:.2f}",
            f"{low:.2f}-{high:.2f}",
            "" if result.goal is None else f"{result.goal:.1f}",
            f"{cpu[0]:.0f}",
            f"{cpu[1]:.0f}",
            style=style,
        )
    return table
