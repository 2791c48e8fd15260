"""Making a journal volume, and writing its ring out before it is used."""

from __future__ import annotations

import random

import pytest

from target.errors import OperatorError
from target.journal.format import (
    RING_BYTES_MIN,
    Filling,
    VolumeShape,
    filled_bytes,
    format_journal,
    open_journal,
    read_superblock,
)
from target.journal.record import BLOCK_BYTES
from target.journal.scan import walk
from target.journal.superblock import SUPERBLOCK_BYTES, VOLUMES_MAX
from tests.simulation.sim_disk import SimDisk
from tests.simulation.sim_scheduler import SimClock, SimScheduler
from tests.unit.journal.packs import GROUP_ID, TIME_NS, commit, reopen, update

MIB = 1 << 20


def test_a_journal_volume_is_laid_out_without_overlap() -> None:
    disk = SimDisk(96 * MIB)
    shapes = [VolumeShape("small", 512, 512), VolumeShape("large", 100 << 30, 4096)]
    superblock = format_journal(disk, GROUP_ID, shapes)
    assert [volume.id for volume in superblock.volumes] == [1, 2]
    assert superblock.volumes[1].first_page == superblock.volumes[0].page_count == 1
    pages = sum(volume.page_count for volume in superblock.volumes)
    assert superblock.volumes[1].page_count * 4032 * 8 * superblock.extent_bytes >= 100 << 30
    assert superblock.bitmap_pages == pages
    assert superblock.bitmap_offset == 2 * SUPERBLOCK_BYTES
    assert superblock.ring_offset == superblock.bitmap_offset + superblock.bitmap_slots * pages * 2 * 4096
    assert superblock.ring_offset + superblock.ring_bytes <= disk.size_bytes
    assert read_superblock(disk) == superblock
    opened, seen = reopen(disk)
    assert seen == []
    assert opened.journal.head.sequence == 0


def test_a_format_is_durable() -> None:
    disk = SimDisk(48 * MIB)
    superblock = format_journal(disk, GROUP_ID, [VolumeShape("data", MIB, 512)])
    disk.power_off(random.Random(0))
    assert read_superblock(disk) == superblock


def test_a_journal_volume_that_is_too_small_is_refused_with_the_size_it_needs() -> None:
    shapes = [VolumeShape("data", MIB, 512)]
    with pytest.raises(OperatorError) as refused:
        format_journal(SimDisk(40 * MIB), GROUP_ID, shapes)
    needed = int(str(refused.value).split()[-2])
    assert format_journal(SimDisk(needed), GROUP_ID, shapes).ring_bytes == RING_BYTES_MIN
    with pytest.raises(OperatorError):
        format_journal(SimDisk(needed - 1), GROUP_ID, shapes)


def test_too_many_volumes_are_refused() -> None:
    shapes = [VolumeShape(f"volume{n}", MIB, 512) for n in range(VOLUMES_MAX + 1)]
    with pytest.raises(OperatorError, match=str(VOLUMES_MAX)):
        format_journal(SimDisk(48 * MIB), GROUP_ID, shapes)


# -- filling a new ring --


def test_a_new_ring_is_written_out_and_waited_for() -> None:
    clock = SimClock()
    disk = SimDisk(48 * MIB)
    superblock = format_journal(disk, GROUP_ID, [VolumeShape("data", MIB, 512)])
    journal = open_journal(disk, superblock, lambda pack: None).journal
    assert journal.filled_bytes == 0
    assert not journal.fits(1, 512)
    seen: list[int] = []
    filling = Filling(SimScheduler(clock), journal, "commit:x", lambda: seen.append(journal.filled_bytes))
    filling.start()
    clock.run_until(lambda: bool(seen))
    assert journal.fits(1, 512)
    clock.run_until(lambda: journal.filled_bytes == superblock.ring_bytes)
    assert seen == sorted(set(seen))
    assert filled_bytes(disk, superblock) == superblock.ring_bytes
    assert open_journal(disk, superblock, lambda pack: None).journal.filled_bytes == superblock.ring_bytes


def test_filling_goes_on_where_a_crash_ended_it() -> None:
    disk = SimDisk(48 * MIB)
    superblock = format_journal(disk, GROUP_ID, [VolumeShape("data", MIB, 512)])
    disk.pwritev([bytes(5 * MIB)], superblock.ring_offset)
    assert filled_bytes(disk, superblock) == 5 * MIB


def test_filling_never_writes_over_what_was_appended_meanwhile() -> None:
    clock = SimClock()
    disk = SimDisk(48 * MIB)
    superblock = format_journal(disk, GROUP_ID, [VolumeShape("data", MIB, 512)])
    journal = open_journal(disk, superblock, lambda pack: None).journal
    count = 0

    def append_all_that_fits() -> None:
        nonlocal count
        while journal.fits(1, BLOCK_BYTES):
            journal.append([update(count)], TIME_NS)
            count += 1
            if journal.undurable_bytes > 32 * MIB:
                commit(journal)

    Filling(SimScheduler(clock), journal, "commit:x", append_all_that_fits).start()
    clock.run_until(lambda: journal.filled_bytes == superblock.ring_bytes)
    found = list(walk(journal.reader(), superblock.tail, journal.head.lsn, GROUP_ID))
    assert len(found) == count > 1000
