"""From the journal to the data volumes: in sequence order, up to the limit, and as often as one likes."""

from __future__ import annotations

import errno
import hashlib
import random
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from target.errors import IntegrityError
from target.journal.record import (
    BLOCK_BYTES,
    EpochStart,
    Marker,
    MarkerKind,
    RecordType,
    SequenceNumber,
)
from target.journal.ring import NewRecord
from target.journal.superblock import BEGINNING, Position
from target.restore import STRETCH_BYTES_MAX, Extent, Restored, Stretch, restore
from target.volume import Buffer
from tests.simulation.sim_disk import SimDisk
from tests.unit.journal.packs import GROUP_ID, TIME_NS, commit, new_journal, update

VOLUME_BYTES = 64 * 4096 + 512
"""A part of a granule at the end."""


class CountingDisk(SimDisk):
    """A disk that remembers (offset, length) of every write and of every punch."""

    def __init__(self, size_bytes: int) -> None:
        super().__init__(size_bytes)
        self.writes: list[tuple[int, int]] = []
        self.punches: list[tuple[int, int]] = []

    def pwritev(self, buffers: Sequence[Buffer], offset: int) -> None:
        super().pwritev(buffers, offset)
        self.writes.append((offset, sum(map(len, buffers))))

    def punch(self, offset: int, length: int) -> None:
        super().punch(offset, length)
        self.writes.pop()
        self.punches.append((offset, length))


class Bench:
    """A journal, two volumes, and what they should hold after each record."""

    def __init__(self, ring_bytes: int = 1 << 20) -> None:
        self.journal_disk, self.journal = new_journal(ring_bytes)
        self.disks = {number: CountingDisk(VOLUME_BYTES) for number in (1, 2)}
        self.expected = [{number: bytes(VOLUME_BYTES) for number in self.disks}]

    def append(self, *records: NewRecord) -> None:
        self.journal.append(records, TIME_NS)
        for record in records:
            state = dict(self.expected[-1])
            if record.type in (RecordType.UPDATE, RecordType.BASE, RecordType.ZERO, RecordType.BASE_ZERO):
                content = bytearray(state[record.volume])
                data = bytes(record.data) or bytes(record.length)
                content[record.offset : record.offset + record.length] = data
                state[record.volume] = bytes(content)
            self.expected.append(state)

    def stretch(
        self,
        limit: int | None = None,
        *,
        start: Position = BEGINNING,
        done: int = 0,
        own_reign: int | None = None,
        verify: bool = True,
    ) -> Stretch:
        return Stretch(
            start,
            SequenceNumber(done),
            self.journal.durable.lsn,
            SequenceNumber(self.journal.head.sequence if limit is None else limit),
            GROUP_ID,
            own_reign,
            verify,
        )

    def restore(
        self, limit: int | None = None, *, own_reign: int | None = None, verify: bool = True
    ) -> Restored:
        """One stretch from the beginning."""
        commit(self.journal)
        stretch = self.stretch(limit, own_reign=own_reign, verify=verify)
        return restore(stretch, self.journal.reader(), self.disks)

    def holds(self, sequence: int) -> bool:
        return all(disk.snapshot() == self.expected[sequence][n] for n, disk in self.disks.items())


def journal_digest(bench: Bench, offset: int, length: int) -> NewRecord:
    """A verify record that fits volume 1 as it is at this point of the sequence."""
    content = bench.expected[-1][1][offset : offset + length]
    return NewRecord(RecordType.VERIFY, 0, 1, offset, length, hashlib.sha256(content).digest())


RECORDS = st.tuples(
    st.sampled_from([RecordType.UPDATE, RecordType.ZERO, RecordType.BASE, RecordType.BASE_ZERO]),
    st.integers(1, 2),
    st.integers(0, VOLUME_BYTES // 512 - 1),
    st.sampled_from([1, 2, 7, 8, 16, 40]),
    st.integers(0, 255),
)


def made(kind: RecordType, volume: int, sector: int, sectors: int, fill: int) -> NewRecord:
    sectors = min(sectors, VOLUME_BYTES // 512 - sector)
    length = sectors * 512
    data = b"" if kind in (RecordType.ZERO, RecordType.BASE_ZERO) else random.Random(fill).randbytes(length)
    return NewRecord(kind, 0, volume, sector * 512, length, data)


# -- the content --


@settings(max_examples=150)
@given(turns=st.lists(st.lists(RECORDS, min_size=1, max_size=8), min_size=1, max_size=8), data=st.data())
def test_any_limit_gives_exactly_that_point_of_the_sequence(
    turns: list[list[tuple[RecordType, int, int, int, int]]], data: st.DataObject
) -> None:
    """In any number of steps, each beginning where the one before says it ended."""
    bench = Bench(2 << 20)
    for turn in turns:
        bench.append(*(made(*record) for record in turn))
    commit(bench.journal)
    total = bench.journal.head.sequence
    limits = sorted(data.draw(st.sets(st.integers(1, total), max_size=5)) | {total})
    position, done = BEGINNING, SequenceNumber(0)
    for limit in limits:
        stretch = bench.stretch(limit, start=position, done=done)
        result = restore(stretch, bench.journal.reader(), bench.disks)
        assert result.sequence == limit
        assert result.position.sequence <= limit
        assert bench.holds(limit)
        position, done = result.position, result.sequence
    assert position == bench.journal.head


@settings(max_examples=50)
@given(turns=st.lists(st.lists(RECORDS, min_size=1, max_size=6), min_size=2, max_size=6))
def test_restoring_again_changes_nothing(turns: list[list[tuple[RecordType, int, int, int, int]]]) -> None:
    bench = Bench(2 << 20)
    for turn in turns:
        bench.append(*(made(*record) for record in turn))
    bench.restore()
    again = bench.restore()
    assert again.sequence == bench.journal.head.sequence
    assert bench.holds(again.sequence)


def test_a_limit_inside_a_pack_is_kept_to_the_record() -> None:
    bench = Bench()
    bench.append(*(update(number, 512, number * 512) for number in range(5)))
    commit(bench.journal)
    for limit in range(1, 6):
        fresh = {number: CountingDisk(VOLUME_BYTES) for number in (1, 2)}
        result = restore(bench.stretch(limit), bench.journal.reader(), fresh)
        assert result.sequence == limit
        assert result.position == (BEGINNING if limit < 5 else bench.journal.head)
        assert fresh[1].snapshot() == bench.expected[limit][1]


def test_the_rest_of_a_pack_is_restored_from_inside_it() -> None:
    bench = Bench()
    bench.append(*(update(number, 512, number * 512) for number in range(5)))
    first = bench.restore(2)
    bench.disks[1].writes.clear()
    second = restore(
        bench.stretch(start=first.position, done=first.sequence), bench.journal.reader(), bench.disks
    )
    assert second.sequence == 5
    assert bench.holds(5)
    assert min(offset for offset, _ in bench.disks[1].writes) == 2 * 512


# -- how it is written --


def test_many_writes_to_one_block_become_one() -> None:
    bench = Bench()
    for number in range(20):
        bench.append(update(number, 4096, 4096))
    result = bench.restore()
    assert bench.disks[1].writes == [(4096, 4096)]
    assert result.bytes_written == 4096
    assert bench.holds(20)


def test_neighbours_are_written_at_once_and_in_ascending_order() -> None:
    bench = Bench()
    for granule in (7, 3, 5, 4, 6, 20):
        bench.append(update(granule, 4096, granule * 4096))
    bench.restore()
    assert bench.disks[1].writes == [(3 * 4096, 5 * 4096), (20 * 4096, 4096)]
    assert bench.holds(6)


def test_zeros_give_their_space_back() -> None:
    bench = Bench()
    bench.append(update(1, 16 * 4096))
    bench.restore()
    bench.append(NewRecord(RecordType.ZERO, 0, 1, 4096, 8 * 4096, b""))
    bench.append(NewRecord(RecordType.BASE_ZERO, 0, 1, 12 * 4096, 4096, b""))
    bench.restore()
    assert bench.disks[1].punches == [(4096, 8 * 4096), (12 * 4096, 4096)]
    assert bench.holds(3)
    assert (4096, 8 * 4096) not in bench.disks[1].data_extents(0, VOLUME_BYTES)


def test_a_stretch_has_an_end() -> None:
    bench = Bench(48 << 20)
    count = 2 * STRETCH_BYTES_MAX // VOLUME_BYTES
    for number in range(count):
        bench.append(update(number, VOLUME_BYTES - 512))
    result = bench.restore()
    assert STRETCH_BYTES_MAX <= result.position.lsn < STRETCH_BYTES_MAX + 2 * VOLUME_BYTES
    assert 0 < result.sequence < count
    assert bench.holds(result.sequence)
    rest = restore(
        bench.stretch(start=result.position, done=result.sequence), bench.journal.reader(), bench.disks
    )
    assert rest.sequence == count
    assert bench.holds(count)


def test_it_goes_around_the_rings_end() -> None:
    bench = Bench(16 * BLOCK_BYTES)
    bench.append(update(1, 9 * 4096))
    result = bench.restore()
    bench.journal.change_superblock(checkpoint_lsn=result.position.lsn, checkpoint_sequence=result.sequence)
    bench.journal.move_tail(result.position)
    commit(bench.journal)
    bench.append(update(2, 8 * 4096, 4096))
    assert bench.journal.head.lsn > 16 * BLOCK_BYTES + 8 * 4096
    commit(bench.journal)
    again = restore(
        bench.stretch(start=result.position, done=result.sequence), bench.journal.reader(), bench.disks
    )
    assert again.sequence == 2
    assert again.position == bench.journal.head
    assert bench.holds(2)


# -- what else the records say --


def test_markers_and_epochs_are_reported_up_to_the_limit() -> None:
    bench = Bench()
    marker = Marker(MarkerKind.OPERATOR, TIME_NS, "payday")
    start = EpochStart(2, 9, 1, 7, SequenceNumber(0), bytes(32), TIME_NS)
    bench.append(
        NewRecord(RecordType.EPOCH, 0, 0, 0, 0, start.encode()),
        update(1),
        NewRecord(RecordType.MARKER, 0, 0, 0, 0, marker.encode()),
        NewRecord(RecordType.MARKER, 0, 0, 0, 0, marker.encode()),
    )
    result = bench.restore(3)
    assert result.epochs == [start]
    assert result.markers == [(3, marker)]


def test_a_verify_record_compares_at_its_own_point_of_the_sequence() -> None:
    """What was written before it counts, in the same pack too; what comes after does not."""
    bench = Bench()
    bench.append(update(1, 4096))
    bench.append(update(2, 1024, 512), journal_digest(bench, 4096, 4096))
    bench.append(update(3, 512))
    bench.append(journal_digest(bench, 0, 8192), update(4, 8192))
    result = bench.restore()
    assert result.verified_extents == 2
    assert result.verified_sequence == 5
    assert result.mismatches == []
    assert bench.holds(6)


def test_a_mismatch_is_reported_and_restoring_goes_on() -> None:
    bench = Bench()
    bench.append(update(1, 8192))
    bench.append(journal_digest(bench, 0, 4096), journal_digest(bench, 4096, 4096), update(2, 512, 8192))
    bench.restore(1)
    bench.disks[1].corrupt(5000, b"\xff")
    commit(bench.journal)
    after = Position(
        bench.journal.index.boundary(1).lsn, SequenceNumber(1), bench.journal.index.boundary(1).digest
    )
    result = restore(bench.stretch(start=after, done=1), bench.journal.reader(), bench.disks)
    assert result.mismatches == [Extent(1, 4096, 4096)]
    assert result.verified_extents == 2
    assert result.sequence == 4
    assert bench.disks[1].snapshot()[8192:8704] == b"\x02" * 512


def test_without_verify_nothing_is_compared() -> None:
    bench = Bench()
    bench.append(update(1), NewRecord(RecordType.VERIFY, 0, 1, 0, 4096, bytes(32)))
    result = bench.restore(verify=False)
    assert (result.verified_extents, result.mismatches, result.sequence) == (0, [], 2)


def test_a_primary_does_not_apply_its_own_copies() -> None:
    bench = Bench()
    bench.journal.change_superblock(reign=7)
    bench.append(update(1, 4096), update(2, 4096, 4096))
    bench.append(
        NewRecord(RecordType.BASE, 0, 1, 0, 4096, bytes(4096)),
        NewRecord(RecordType.BASE_ZERO, 0, 1, 4096, 4096, b""),
        NewRecord(RecordType.VERIFY, 0, 1, 0, 4096, bytes(32)),
    )
    result = bench.restore(own_reign=7)
    assert result.sequence == 5
    assert bench.holds(2)
    assert result.verified_extents == 0
    other = bench.restore(own_reign=8)
    assert other.mismatches == [Extent(1, 0, 4096)]
    assert bench.holds(5)


# -- damage --


def damage(bench: Bench, pack: int) -> None:
    place = bench.journal.place(bench.journal.index.boundary(pack).lsn)
    bench.journal_disk.corrupt(place + BLOCK_BYTES + 10, b"\xff")


def test_nothing_of_a_bad_pack_is_restored() -> None:
    bench = Bench()
    for number in range(4):
        bench.append(update(number + 1, 4096, number * 4096), update(number + 1, 512, 32 * 4096))
    commit(bench.journal)
    damage(bench, 2)
    result = restore(bench.stretch(), bench.journal.reader(), bench.disks)
    assert result.sequence == 4
    assert bench.holds(4)
    with pytest.raises(IntegrityError, match="record 4 was durable"):
        restore(
            bench.stretch(start=result.position, done=result.sequence), bench.journal.reader(), bench.disks
        )
    assert bench.holds(4)


def test_a_pack_of_another_history_is_not_restored() -> None:
    bench = Bench()
    bench.append(update(1))
    commit(bench.journal)
    foreign = Position(BEGINNING.lsn, BEGINNING.sequence, b"\x11" * 32)
    with pytest.raises(IntegrityError):
        restore(bench.stretch(start=foreign), bench.journal.reader(), bench.disks)
    assert bench.holds(0)


def test_nothing_to_do_is_no_error() -> None:
    bench = Bench()
    commit(bench.journal)
    result = restore(bench.stretch(), bench.journal.reader(), bench.disks)
    assert result.sequence == 0
    bench.append(update(1))
    assert bench.restore(limit=1).sequence == 1
    done = bench.stretch(start=bench.journal.head, done=1)
    assert restore(done, bench.journal.reader(), bench.disks).sequence == 1


def test_a_volume_that_fails_ends_it_with_the_error() -> None:
    bench = Bench()
    bench.append(update(1))
    bench.disks[1].fail_writes = OSError(errno.ENOSPC, "no space is left")
    with pytest.raises(OSError, match="no space is left"):
        bench.restore()
    bench.disks[1].fail_writes = None
    assert bench.restore().sequence == 1
    assert bench.holds(1)
