"""Whatever reads foreign bytes, against bytes of chance and coverage; what they find becomes a seed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.seeds import seeds
from tests.fuzz.targets import TARGETS

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 5
"""Each target's part of the minute that CI gives them. More: `scripts/fuzz TARGET --seconds 3600`."""


def test_every_target_has_seeds() -> None:
    assert set(seeds()) == set(TARGETS)


@pytest.mark.parametrize("name", TARGETS)
def test_seeds(name: str) -> None:
    for data in seeds()[name]:
        TARGETS[name](data)


@pytest.mark.parametrize("name", TARGETS)
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_bytes_and_broken_seeds(name: str, data: st.DataObject) -> None:
    """Without coverage, but in every run and wherever Python runs."""
    seed = data.draw(st.sampled_from([b"", *seeds()[name]]))
    cut = data.draw(st.integers(0, len(seed)))
    rest = data.draw(st.integers(cut, len(seed)))
    TARGETS[name](seed[:cut] + data.draw(st.binary(max_size=200)) + seed[rest:])


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.parametrize("name", TARGETS)
def test_fuzz(name: str, tmp_path: Path) -> None:
    pytest.importorskip("atheris", reason="atheris has no wheel for this Python or this machine")
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz", name, "--seconds", str(SECONDS), "--corpus", str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=150,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    assert "number_of_executed_units" in done.stderr
