"""Labs for the scenarios."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.scenarios.site_lab import SiteLab, running


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[SiteLab]:
    """Two sites in a pair: a is the primary, b follows."""
    with running(tmp_path / "lab") as one:
        one.pair("a", "b")
        yield one
