"""Each link is cut alone, and both, under load: writes go on, the lag is told, the journal catches up.

SCENARIO_CUT_SECONDS=60 leaves them cut for a minute; by default it is long enough for every side to notice.
"""

from __future__ import annotations

import time

import pytest

from tests.scenarios.checks import check_equal, check_secondary
from tests.scenarios.history import History
from tests.scenarios.load import Load
from tests.scenarios.site_lab import SiteLab, cut_seconds, seed

_SLOWEST_SECONDS_MAX = 5.0
_BYTES_MAX = 100 << 20
"""What is written during a cut: the journal holds that."""


def copies_begun(lab: SiteLab) -> int:
    """How often a copy began, by the primary's event log."""
    return sum(event["text"].endswith("in state copy") for event in lab.ask("a", "events")["events"])


@pytest.mark.timeout(900)
@pytest.mark.parametrize("kinds", [("san",), ("management",), ("management", "san")], ids="+".join)
def test_a_cut_link_stops_no_host_and_the_pair_catches_up(lab: SiteLab, kinds: tuple[str, ...]) -> None:
    history = History(lab.blocks)
    copies = copies_begun(lab)
    seconds = cut_seconds(7.0)
    pace = min(6_000_000, int(_BYTES_MAX / seconds))
    with Load(lab, "a", history, seed=seed(), bytes_per_second=pace) as load:
        load.wait_acknowledged(100)
        lab.wait("a lag that is known", lambda: lab.mirror("a", "b")["lag_seconds"] is not None)
        lab.cut(*kinds)
        cut_at = time.monotonic()
        while (elapsed := time.monotonic() - cut_at) < seconds:
            load.wait_acknowledged(50)
            state = lab.mirror("a", "b")
            # I6: what was restored last was written before the cut, or in the moment it took to cut.
            assert state["lag_seconds"] > elapsed - 1.0, state
        assert state["status"] in ("PAIR", "PFUL")
        assert state["sequence"]["restored"] < state["sequence"]["durable"]
        if "management" in kinds:
            assert state["link"] == {"management": "down", "san": "unknown"}
            assert lab.status("b")["mirrors"][0]["link"]["management"] == "down"
        else:
            assert state["link"]["management"] == "up"
            assert state["link"]["san"] != "reading"
        assert lab.status("b")["mirrors"][0]["lag_seconds"] > seconds - 2.0
        assert load.slowest_seconds < _SLOWEST_SECONDS_MAX
        check_secondary(lab, history, "b", {})
        lab.join(*kinds)
        lab.wait("a small lag", lambda: lab.mirror("a", "b")["lag_seconds"] < 3.0)
        assert load.refusals == []
    check_equal(lab, history, "a", "b")
    assert copies_begun(lab) == copies, "the journal had everything; nothing was to be copied"
    assert lab.mirror("a", "b")["differential_bytes"] == 0
