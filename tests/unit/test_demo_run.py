"""`scripts/demo` from the beginning to the end, on two real sites: every check in it holds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_every_check_of_the_demonstration_holds() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "scripts.demonstration"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all held" in done.stdout
    assert "✗" not in done.stdout
    assert done.stdout.count("block by block") == 2
    processes = subprocess.run(["ps", "-ef"], capture_output=True, text=True, check=True).stdout
    assert "replctl-demo-" not in processes
