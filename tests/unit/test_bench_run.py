"""`scripts/bench` as a person runs it: both targets started, measured and ended, the numbers in a file."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.benchmark.targets import Tgt

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.skipif(Tgt.version() is None, reason="tgt is not installed: apt-get install tgt")
def test_both_targets_are_measured_and_none_is_left_behind(tmp_path: Path) -> None:
    rows = ["write-256k-sequential-32", "read-4k-random-32"]
    options = ["--quick", "--rounds", "1", "--json", str(tmp_path / "result.json")]
    options += [word for row in rows for word in ("--row", row)]
    done = subprocess.run(
        [sys.executable, "-m", "scripts.benchmark", *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads((tmp_path / "result.json").read_text())
    assert [row["row"] for row in result["rows"]] == sorted(rows)
    for row in result["rows"]:
        assert row["tgt"]["per_second"] > 0
        assert row["embedded"]["per_second"] > 0
    processes = subprocess.run(["ps", "-ef"], capture_output=True, text=True, check=True).stdout
    assert "replctl-bench-" not in processes


def test_unknown_row_is_refused_with_the_names_of_all() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "scripts.benchmark", "--row", "read-5k"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "read-4k-random-32" in done.stderr
