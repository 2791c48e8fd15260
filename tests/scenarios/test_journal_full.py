"""The journal is full and the secondary does not take it: writes go on, only differences are copied later."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.scenarios.checks import check_equal, check_secondary
from tests.scenarios.history import History
from tests.scenarios.load import Load
from tests.scenarios.site_lab import SiteLab, running, seed

VOLUMES = {"data": 64 << 20, "log": 4 << 20}
SPAN = 0.2
"""The part of the volumes that is written."""


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[SiteLab]:
    with running(tmp_path / "lab", volumes=VOLUMES, journal="48MiB") as one:
        one.pair("a", "b")
        yield one


@pytest.mark.parametrize("fault", ["cut", "secondary killed"])
def test_a_full_journal_stops_no_host_and_marks_what_it_drops(lab: SiteLab, fault: str) -> None:
    history = History(lab.blocks)
    seen = []

    def status() -> str:
        now = str(lab.mirror("a", "b")["status"])
        if now not in seen:
            seen.append(now)
        return now

    with Load(lab, "a", history, seed=seed(), bytes_per_second=40_000_000, span=SPAN) as load:
        lab.wait("a lag that is known", lambda: lab.mirror("a", "b")["lag_seconds"] is not None)
        if fault == "cut":
            lab.cut()
        else:
            lab.kill("b")
        lab.wait("PFUL", lambda: status() == "PFUL")
        assert lab.mirror("a", "b")["differential_bytes"] == 0
        lab.wait("PSUE", lambda: status() == "PSUE")
        suspended = lab.mirror("a", "b")
        assert "full" in suspended["reason"]
        load.wait_acknowledged(300)
        assert load.slowest_seconds < 5.0
        assert seen[-2:] == ["PFUL", "PSUE"]
        lag = lab.mirror("a", "b")["lag_seconds"]
        load.wait_acknowledged(100)
        assert lab.mirror("a", "b")["lag_seconds"] > lag
    assert load.refusals == []
    marked = lab.mirror("a", "b")["differential_bytes"]
    assert 0 < marked < sum(VOLUMES.values()) * 0.3, "only what was written differs"
    if fault == "cut":
        check_secondary(lab, history, "b", {})
        lab.join()
    else:
        lab.up()
        check_secondary(lab, history, "b", {})
    lab.wait_link("a", "b")
    assert lab.mirror("a", "b")["status"] == "PSUE", "it resumes when an operator says so"
    done = lab.replctl("a", "pair", "resync", "group1", "--wait")
    assert done["pair"]["status"] == "PAIR"
    check_equal(lab, history, "a", "b")
    fetched = lab.ask("b", "group.status")["fetch"]["bytes_read"]
    assert fetched < sum(VOLUMES.values()), "not everything"
