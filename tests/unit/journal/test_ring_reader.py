"""Reading the ring through windows: the right bytes, each of them once."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from target.journal.scan import RingReader
from tests.simulation.sim_disk import SimDisk

MIB = 1 << 20
RING_OFFSET = 64 << 10
RING_BYTES = 6 * MIB
CONTENT = random.Random(1).randbytes(RING_OFFSET + RING_BYTES)


class CountingDisk(SimDisk):
    """Remembers what was read of it."""

    def __init__(self) -> None:
        super().__init__(len(CONTENT))
        self.pwritev([CONTENT], 0)
        self.reads: list[tuple[int, int]] = []

    def pread_into(self, buffer: bytearray | memoryview, offset: int) -> None:
        self.reads.append((offset, len(buffer)))
        super().pread_into(buffer, offset)


DISK = CountingDisk()


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 3 * MIB // 512), min_size=1, max_size=12),
    start=st.integers(0, RING_BYTES // 512 - 1),
    arena_bytes=st.sampled_from([0, 4096, 2 * MIB, 5 * MIB, 16 * MIB]),
)
def test_every_view_is_right_and_stays_right(sizes: list[int], start: int, arena_bytes: int) -> None:
    """Whatever the arena has room for, and around the ring's end."""
    lsn = 5 * RING_BYTES + start * 512
    end = lsn + sum(sizes) * 512
    reader = RingReader(DISK, RING_OFFSET, RING_BYTES, bytearray(arena_bytes), end)
    views = []
    for sectors in sizes:
        length = min(sectors * 512, reader.room(lsn))
        place = RING_OFFSET + lsn % RING_BYTES
        views.append((reader.view(lsn, min(512, length)), CONTENT[place : place + min(512, length)]))
        views.append((reader.view(lsn, length), CONTENT[place : place + length]))
        lsn += length
    assert all(view == expected for view, expected in views)


def test_a_pack_that_reaches_beyond_the_window_is_not_read_twice() -> None:
    disk = CountingDisk()
    reader = RingReader(disk, RING_OFFSET, RING_BYTES, bytearray(6 * MIB), 5 * MIB)
    pack_bytes = MIB + 4096
    for lsn in range(0, 4 * pack_bytes, pack_bytes):
        reader.view(lsn, 4096)
        reader.view(lsn, pack_bytes)
    ends = [offset + length for offset, length in disk.reads]
    assert [offset for offset, _ in disk.reads] == [RING_OFFSET, *ends[:-1]]


def test_nothing_is_read_behind_the_end() -> None:
    disk = CountingDisk()
    reader = RingReader(disk, RING_OFFSET, RING_BYTES, bytearray(6 * MIB), 12288)
    reader.view(0, 4096)
    reader.view(4096, 8192)
    assert disk.reads == [(RING_OFFSET, 12288)]
