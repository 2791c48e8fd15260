"""A start on a disk that had failed, or was damaged where nothing is checked."""

from __future__ import annotations

import random

import pytest

from target.journal.record import BLOCK_BYTES, Marker, MarkerKind, RecordType
from target.journal.ring import NewRecord
from tests.unit.journal.packs import RING_OFFSET, TIME_NS, commit, new_journal, reopen, update

RING = 64 * BLOCK_BYTES


class _Even(random.Random):
    """Chance, for a disk: what a failed flush leaves is always forgotten."""

    def random(self) -> float:
        return 0.0


def test_what_a_failed_flush_left_in_memory_alone_is_on_the_medium_after_the_next_start() -> None:
    disk, journal = new_journal(RING)
    journal.append([update(1)], TIME_NS)
    commit(journal)
    journal.append([update(2)], TIME_NS)
    disk.fail_flushes, disk.fail_random = OSError("EIO"), _Even()
    with pytest.raises(OSError, match="EIO"):
        commit(journal)
    disk.mend()
    opened, seen = reopen(disk)  # the process is another, the machine's memory the same
    assert [pack[BLOCK_BYTES] for _, _, pack in seen] == [1, 2]
    assert opened.journal.durable.sequence == 2
    disk.power_off(_Even())
    _, seen = reopen(disk)
    assert [pack[BLOCK_BYTES] for _, _, pack in seen] == [1, 2]


def test_a_damaged_marker_below_the_checkpoint_is_left_out() -> None:
    disk, journal = new_journal(RING)
    for name in ("first", "second"):
        data = Marker(MarkerKind.OPERATOR, TIME_NS, name).encode()
        journal.append([NewRecord(RecordType.MARKER, 0, 0, 0, 0, data)], TIME_NS)
    commit(journal)
    head = journal.head
    journal.change_superblock(checkpoint_lsn=head.lsn, checkpoint_sequence=head.sequence)
    commit(journal)
    disk.corrupt(RING_OFFSET + BLOCK_BYTES, b"\xff")
    opened, _ = reopen(disk)
    assert [marker.name for _, marker in opened.markers] == ["second"]
