"""A recovery tells the device what it will read: all of it, before it reads it, and over the ring's end."""

from __future__ import annotations

from target.journal.scan import RingReader
from tests.simulation.sim_disk import SimDisk

MIB = 1 << 20
RING_OFFSET = 64 << 10


class ToldDisk(SimDisk):
    """Remembers what it was told, and that it was told before it was asked."""

    def __init__(self, size_bytes: int) -> None:
        super().__init__(size_bytes)
        self.told: list[tuple[int, int]] = []

    def will_need(self, offset: int, length: int) -> None:
        self.told.append((offset, length))

    def pread_into(self, buffer: bytearray | memoryview, offset: int) -> None:
        end = offset + len(buffer)
        assert not self.told or any(start <= offset and end <= start + size for start, size in self.merged())
        super().pread_into(buffer, offset)

    def merged(self) -> list[tuple[int, int]]:
        """What was told, neighbours as one."""
        runs: list[tuple[int, int]] = []
        for offset, length in self.told:
            if runs and sum(runs[-1]) == offset:
                runs[-1] = (runs[-1][0], runs[-1][1] + length)
            else:
                runs.append((offset, length))
        return runs


def test_everything_is_told_before_it_is_read_and_only_once_a_lap() -> None:
    ring = 18 * MIB
    disk = ToldDisk(RING_OFFSET + ring)
    reader = RingReader(disk, RING_OFFSET, ring, read_ahead=True)
    start = 7 * MIB
    for lsn in range(start, start + ring, 4096):
        reader.view(lsn, 4096)
    first_lap = disk.merged()[0]
    assert first_lap == (RING_OFFSET + start, ring - start)
    assert disk.merged()[1][0] == RING_OFFSET
    assert sum(length for _, length in disk.told) <= ring + 13 * MIB, "a little more than what was read"


def test_who_does_not_ask_for_it_tells_nothing() -> None:
    disk = ToldDisk(RING_OFFSET + 4 * MIB)
    reader = RingReader(disk, RING_OFFSET, 4 * MIB)
    reader.view(0, 4096)
    assert disk.told == []
