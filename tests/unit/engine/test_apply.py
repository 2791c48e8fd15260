"""What a primary appended goes from its journal to its volumes by the index, and when it goes."""

from __future__ import annotations

import errno
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from target.journal.record import RecordType
from target.journal.ring import NewRecord
from target.overlay import ZERO, Generation
from target.restore import apply
from tests.simulation.sim_disk import SimDisk
from tests.simulation.sim_scheduler import SimClock
from tests.simulation.site import MIB, Site
from tests.unit.engine.test_restore import RECORDS, VOLUME_BYTES, CountingDisk, made
from tests.unit.journal.packs import TIME_NS, new_journal, update

UPDATES = RECORDS.map(
    lambda record: (RecordType.UPDATE if record[0] in (1, 3) else RecordType.ZERO, *record[1:])
)


class Bench:
    """A journal, its index, two volumes, and what they should hold."""

    def __init__(self) -> None:
        self.journal_disk, self.journal = new_journal(4 << 20)
        self.generation = Generation(0, appended=True)
        self.disks = {number: CountingDisk(VOLUME_BYTES) for number in (1, 2)}
        self.expected = {number: bytearray(VOLUME_BYTES) for number in self.disks}

    def append(self, *records: NewRecord) -> None:
        for record, place in zip(records, self.journal.append(records, TIME_NS), strict=True):
            position = place if record.data else ZERO
            self.generation.put(record.volume, record.offset, record.length, position)
            data = bytes(record.data) or bytes(record.length)
            self.expected[record.volume][record.offset : record.offset + record.length] = data

    def apply(self) -> int:
        return apply(self.generation, self.journal_disk, self.disks)


@settings(max_examples=50)
@given(turns=st.lists(st.lists(UPDATES, min_size=1, max_size=8), min_size=1, max_size=8))
def test_the_volumes_hold_what_was_written_last(
    turns: list[list[tuple[RecordType, int, int, int, int]]],
) -> None:
    """Twice, because it may be done again after a crash."""
    bench = Bench()
    for turn in turns:
        bench.append(*(made(*record) for record in turn))
    for _ in range(2):
        bench.apply()
        assert {number: disk.snapshot() for number, disk in bench.disks.items()} == bench.expected


def test_neighbours_in_any_order_become_one_write() -> None:
    bench = Bench()
    for granule in (7, 3, 5, 4, 6, 20):
        bench.append(update(granule, 4096, granule * 4096))
    bench.append(update(99, 4096, 5 * 4096))
    assert bench.apply() == 6 * 4096
    assert bench.disks[1].writes == [(3 * 4096, 5 * 4096), (20 * 4096, 4096)]


def test_zeros_between_data_are_given_back() -> None:
    bench = Bench()
    bench.append(update(1, 16 * 4096))
    bench.append(NewRecord(RecordType.ZERO, 0, 1, 4 * 4096, 8 * 4096, b""))
    bench.apply()
    assert bench.disks[1].writes == [(0, 4 * 4096), (12 * 4096, 4 * 4096)]
    assert bench.disks[1].punches == [(4 * 4096, 8 * 4096)]
    assert bench.disks[1].snapshot() == bench.expected[1]


def test_a_journal_that_cannot_be_read_is_an_error_of_the_device() -> None:
    bench = Bench()
    bench.append(update(1))
    bench.journal_disk.fail_reads = OSError(errno.EIO, "the medium is gone")
    with pytest.raises(OSError, match="the medium is gone"):
        bench.apply()


# -- when --


class Load:
    """A host that writes again and again, so much at a time, to random places."""

    def __init__(self, size_bytes: int, bytes_per_second: int) -> None:
        self.site = Site(SimClock(), volumes={"data": 64 * MIB}, journal_bytes=160 * MIB)
        journal = self.site.group.journal
        self.site.clock.run_until(lambda: journal.filled_bytes >= journal.superblock.ring_bytes)
        self._random = random.Random(1)
        self._size_bytes = size_bytes
        self._bytes_per_second = bytes_per_second
        self.disk: SimDisk = self.site.disks["data"]
        self.unapplied_max = 0

    def write(self, total_bytes: int) -> None:
        clock, group = self.site.clock, self.site.group
        for _ in range(total_bytes // self._size_bytes):
            offset = self._random.randrange(64 * MIB // self._size_bytes) * self._size_bytes
            self.site.write_now("data", offset, b"a" * self._size_bytes)
            clock.run_for(self._size_bytes / self._bytes_per_second)
            self.unapplied_max = max(
                self.unapplied_max, group.journal.head.lsn - group.background.applied.lsn
            )


def test_small_writes_wait_while_hosts_are_busy_and_no_longer() -> None:
    load = Load(8192, 64 * MIB)
    group = load.site.group
    load.write(10 * MIB)
    assert group.background.applied_sequence < 64, "something was applied, though not much was written"
    load.site.clock.run_until(lambda: group.background.applied.lsn == group.journal.head.lsn, 1.0)


def test_small_writes_do_not_wait_for_ever() -> None:
    """An eighth of the ring waits to be applied, and as much is being applied."""
    load = Load(8192, 64 * MIB)
    ring = load.site.group.journal.superblock.ring_bytes
    load.write(60 * MIB)
    assert ring // 8 < load.unapplied_max < ring // 2
    assert load.site.group.journal.superblock.checkpoint_sequence > 0


def test_large_writes_are_applied_at_once() -> None:
    load = Load(256 << 10, 256 * MIB)
    load.write(60 * MIB)
    assert load.unapplied_max <= 16 * MIB + 48 * MIB


def test_few_writes_are_applied_at_once() -> None:
    load = Load(4096, 1 * MIB)
    load.write(2 * MIB)
    assert load.unapplied_max < MIB


def test_a_checkpoint_waits_while_hosts_are_busy_and_no_longer() -> None:
    """What is flushed under them is flushed again; half a ring is recovered in a moment."""
    load = Load(256 << 10, 12 * MIB)
    group = load.site.group
    load.write(72 * MIB)  # six seconds
    assert group.journal.superblock.checkpoint_sequence == 0
    load.site.clock.run_until(lambda: group.journal.superblock.checkpoint_sequence > 0, 1.0)
