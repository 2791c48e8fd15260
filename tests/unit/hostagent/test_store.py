"""What a copy manager remembers of epochs."""

from __future__ import annotations

from pathlib import Path

import pytest

from hostagent.store import Store


@pytest.mark.parametrize(("site", "epoch"), [("b", 0), ("c", 3), ("a", 0)])
def test_only_who_reigned_in_the_newest_epoch_can_give_it_up(tmp_path: Path, site: str, epoch: int) -> None:
    """b reigned before c, who may reign still: a pair with b must not get ahead of c."""
    store = Store(tmp_path / "db")
    assert store.heard_of("g", "00", 2, 7, "b")
    assert store.heard_of("g", "00", 3, 8, "c")
    assert store.reigned_in("g", "00", site) == epoch
    assert store.reigned_in("other", "00", site) == 0
