"""Every crash of every short sequence is survived; and the checks that say so can fail."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest

from target import background, obtain, open_group
from target.blockdev import BlockDevice
from target.journal import ring, scan
from target.journal.record import RESTORABLE, RecordType
from target.journal.recovery import TABLE, Decision, Finding, decide
from tests.simulation.small_worlds import damage
from tests.simulation.small_worlds.enumeration import Beginning, enumerate_all
from tests.simulation.small_worlds.machine import used_world
from tests.simulation.small_worlds.operations import sequences
from tests.simulation.small_worlds.primary import PrimaryWorld
from tests.simulation.small_worlds.recovering import Wrong
from tests.simulation.small_worlds.secondary import SecondaryWorld


@pytest.mark.timeout(600)
def test_every_crash_of_every_short_sequence_is_survived() -> None:
    totals = enumerate_all(wide=False)
    assert set(totals) == {
        (beginning, length)
        for beginning in Beginning
        for length in (1, 2, 3)
        if (beginning, length) != (Beginning.NEW, 3)
    }
    for count in totals.values():
        assert count.crash_states >= count.crash_points > count.sequences > 0
        assert count.starts >= count.states > 0


def test_every_row_of_the_recovery_table_arises_on_a_real_ring_and_is_obeyed() -> None:
    arisen: Counter[Finding] = Counter()
    for case in damage.cases():
        try:
            damage.run(case)
        except AssertionError as wrong:
            wrong.add_note(str(case))
            raise
        arisen[case.finding] += 1
    assert set(arisen) == set(TABLE)


def test_any_flipped_bit_of_a_journal_is_found_or_makes_no_difference() -> None:
    flipped, refused = damage.flips(wide=False)
    assert flipped > refused > 0


# -- the checks can fail --


def _flush_answers_at_once(patch: pytest.MonkeyPatch) -> None:
    add = obtain.WritePath.add
    patch.setattr(obtain.WritePath, "add", lambda self, entry: add(self, (*entry[:2], False)))


def _apply_before_durable(patch: pytest.MonkeyPatch) -> None:
    def goal(self: background.Background) -> tuple[int, int] | None:
        end = self._frozen_end
        return None if self._overlay.frozen is None else (end.lsn, end.sequence)

    patch.setattr(background.Background, "_goal", goal)


class _NoFlush:
    """A device that says it flushed."""

    def __init__(self, device: BlockDevice) -> None:
        self.pwritev = device.pwritev

    def flush(self) -> None:
        pass


def _checkpoint_without_flush(patch: pytest.MonkeyPatch) -> None:
    checkpoint = background.Background.checkpoint

    def without(self: background.Background) -> None:
        volumes = self._volumes
        self._volumes = {}
        checkpoint(self)
        self._volumes = volumes

    patch.setattr(background.Background, "checkpoint", without)


def _commit_without_flush(patch: pytest.MonkeyPatch) -> None:
    begin = ring.Journal.begin_commit

    def without(self: ring.Journal) -> ring.Commit:
        device = self.device
        self.device = _NoFlush(device)  # type: ignore[assignment]
        commit = begin(self)
        self.device = device
        return commit

    patch.setattr(ring.Journal, "begin_commit", without)


def _data_are_not_checked(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(scan, "check_data", lambda header, pack: None)


def _zeros_are_not_indexed(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(open_group, "RESTORABLE", RESTORABLE - {RecordType.ZERO})


def _every_torn_tail_is_corruption(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(scan.Recovery, "_proven_further_on", lambda self, position: True)


AT_A_PRIMARY = [
    _flush_answers_at_once,
    _apply_before_durable,
    _checkpoint_without_flush,
    _commit_without_flush,
    _data_are_not_checked,
    _zeros_are_not_indexed,
    _every_torn_tail_is_corruption,
]


@pytest.mark.parametrize("break_it", AT_A_PRIMARY)
def test_a_broken_engine_is_caught_at_a_primary(
    break_it: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    world = used_world()
    break_it(monkeypatch)
    with pytest.raises(AssertionError):
        PrimaryWorld(world).run([*sequences(1), *sequences(2)], crash_again=False)


AT_A_SECONDARY = [
    _checkpoint_without_flush,
    _commit_without_flush,
    _data_are_not_checked,
]


@pytest.mark.parametrize("break_it", AT_A_SECONDARY)
def test_a_broken_engine_is_caught_at_a_secondary(
    break_it: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    break_it(monkeypatch)
    with pytest.raises(AssertionError):
        SecondaryWorld().run([*sequences(1), *sequences(2)])


def _run_all_cases() -> None:
    for case in damage.cases():
        damage.run(case)


@pytest.mark.parametrize("ignored", ["chain_ok", "data_ok", "proven"])
def test_a_recovery_that_does_not_look_is_caught(ignored: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def decide_without(**found: bool) -> Decision:
        return decide(**{**found, ignored: ignored != "proven"})

    monkeypatch.setattr(scan, "decide", decide_without)
    with pytest.raises(Wrong):
        _run_all_cases()
