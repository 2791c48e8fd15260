"""The journal as its owner writes it: places, limits, what a commit makes durable and in which order."""

from __future__ import annotations

import errno
import random
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from target.journal.format import read_superblock
from target.journal.record import (
    BLOCK_BYTES,
    NO_DIGEST,
    PACK_DATA_BYTES_MAX,
    RECORDS_PER_PACK_MAX,
    EpochStart,
    PackHeader,
    RecordType,
    SequenceNumber,
)
from target.journal.ring import Journal, NewRecord
from target.journal.scan import UNDURABLE_BYTES_MAX, walk
from target.journal.superblock import COPIES, EPOCHS_MAX, SUPERBLOCK_BYTES, Position, decode
from target.volume import Buffer
from tests.simulation.sim_disk import SimDisk
from tests.unit.journal.packs import (
    GROUP_ID,
    RING_OFFSET,
    TIME_NS,
    commit,
    moved_tail,
    new_journal,
    reopen,
    update,
)

RING = 64 * BLOCK_BYTES


class WriteLog(SimDisk):
    """A disk that remembers what it was told, in order: (offset, length) of each write, None for a flush."""

    def __init__(self, size_bytes: int) -> None:
        super().__init__(size_bytes)
        self.log: list[tuple[int, int] | None] = []

    def pwritev(self, buffers: Sequence[Buffer], offset: int) -> None:
        super().pwritev(buffers, offset)
        self.log.append((offset, sum(map(len, buffers))))

    def flush(self) -> None:
        super().flush()
        self.log.append(None)


def logged_journal(ring_bytes: int = RING) -> tuple[WriteLog, Journal]:
    disk, journal = new_journal(ring_bytes)
    log = WriteLog(disk.size_bytes)
    log.pwritev([disk.snapshot()], 0)
    log.flush()
    journal.device = log
    commit(journal)
    log.log.clear()
    return log, journal


# -- appending --


@pytest.mark.parametrize(
    "sizes",
    [
        [512] * (RECORDS_PER_PACK_MAX + 1),
        [0] * (3 * RECORDS_PER_PACK_MAX),
        [PACK_DATA_BYTES_MAX, 512],
        [512, PACK_DATA_BYTES_MAX, 512],
        [9 << 20] * 3,
        [PACK_DATA_BYTES_MAX // 8] * 9,
    ],
    ids=["records", "no data", "full first", "full second", "large", "nine eighths"],
)
def test_one_append_makes_as_many_packs_as_it_needs(sizes: list[int]) -> None:
    disk, journal = new_journal(60 << 20)
    records = [
        NewRecord(
            RecordType.UPDATE if size else RecordType.ZERO, 0, 1, 0, size or 512, bytes([n & 255]) * size
        )
        for n, size in enumerate(sizes)
    ]
    assert journal.fits(len(records), sum(sizes))
    places = journal.append(records, TIME_NS)
    for place, record in zip(places, records, strict=True):
        assert disk.pread(len(record.data), place) == record.data
    commit(journal)
    opened, seen = reopen(disk)
    assert opened.journal.head == journal.head
    assert sum(header.record_count for _, header, _ in seen) == len(sizes)
    assert all(0 < header.record_count <= RECORDS_PER_PACK_MAX for _, header, _ in seen)
    assert all(header.data_length <= PACK_DATA_BYTES_MAX for _, header, _ in seen)


def test_a_turn_is_one_write() -> None:
    log, journal = logged_journal()
    journal.append([update(1, 512), update(2, 1024)], TIME_NS)
    assert log.log == [(RING_OFFSET, 2 * BLOCK_BYTES)]


def test_an_append_that_fails_appended_nothing() -> None:
    disk, journal = new_journal(RING)
    journal.append([update(1)], TIME_NS)
    head, packs = journal.head, len(journal.index)
    disk.fail_writes = OSError(errno.EIO, "the medium is gone")
    with pytest.raises(OSError, match="the medium is gone"):
        journal.append([update(2)], TIME_NS)
    assert (journal.head, len(journal.index)) == (head, packs)
    disk.fail_writes = None
    journal.append([update(3)], TIME_NS)
    commit(journal)
    assert [pack[BLOCK_BYTES] for _, _, pack in reopen(disk)[1]] == [1, 3]


@settings(max_examples=60)
@given(
    turns=st.lists(
        st.lists(st.sampled_from([0, 512, 4096, 4608, 9000 // 512 * 512, 65536]), min_size=1, max_size=140),
        min_size=1,
        max_size=25,
    ),
    commits=st.randoms(use_true_random=False),
)
def test_what_fits_never_writes_over_what_is_kept(turns: list[list[int]], commits: random.Random) -> None:
    """`fits` knows the worst case: pads, headers, fillings, several packs."""
    _, journal = new_journal(320 * BLOCK_BYTES)
    for sizes in turns:
        if not journal.fits(len(sizes), sum(sizes)):
            commit(journal)
            moved_tail(journal)
        if not journal.fits(len(sizes), sum(sizes)):
            continue
        before = journal.head.lsn
        journal.append(
            [NewRecord(RecordType.UPDATE, 0, 1, 0, size or 512, bytes(size)) for size in sizes], TIME_NS
        )
        assert journal.head.lsn > before
        assert journal.used_bytes <= journal.superblock.ring_bytes
        assert journal.undurable_bytes <= UNDURABLE_BYTES_MAX
        if commits.random() < 0.3:
            commit(journal)
    kept = list(walk(journal.reader(), journal.superblock.tail, journal.head.lsn, GROUP_ID))
    assert len(kept) == len(journal.index)


def test_no_more_than_64_mib_are_ever_undurable() -> None:
    _, journal = new_journal(200 << 20)
    record = update(0, 8 << 20)
    while journal.fits(1, 8 << 20):
        journal.append([record], TIME_NS)
    assert 32 << 20 < journal.undurable_bytes <= UNDURABLE_BYTES_MAX == 64 << 20
    commit(journal)
    assert journal.fits(1, 8 << 20)


def test_behind_what_is_filled_nothing_is_appended() -> None:
    _, journal = new_journal(RING)
    journal.filled_bytes = 8 * BLOCK_BYTES
    while journal.fits(1, BLOCK_BYTES):
        journal.append([update(1)], TIME_NS)
    assert 0 < journal.head.lsn <= 8 * BLOCK_BYTES


# -- committing --


def test_nothing_counts_as_durable_before_the_commit_is_finished() -> None:
    _, journal = new_journal(RING)
    journal.append([update(1)], TIME_NS)
    head = journal.head
    pending = journal.begin_commit()
    journal.append([update(2)], TIME_NS)
    pending.work()
    assert journal.durable.sequence == 0
    journal.finish_commit(pending)
    assert journal.durable == head
    assert journal.undurable_bytes == 2 * BLOCK_BYTES
    assert journal.commit_needed


def test_a_quiet_journal_needs_no_commit() -> None:
    _, journal = new_journal(RING)
    commit(journal)
    assert not journal.commit_needed
    journal.append([update(1)], TIME_NS)
    assert journal.commit_needed
    commit(journal)
    assert not journal.commit_needed


def test_a_superblock_never_says_that_something_is_durable_which_is_not() -> None:
    disk, journal = new_journal(RING)
    journal.append([update(1)], TIME_NS)
    journal.change_superblock(primary="a")
    commit(journal)
    superblock = read_superblock(disk)
    assert superblock is not None
    assert superblock.durable_lsn == 0
    journal.change_superblock(primary="b")
    commit(journal)
    superblock = read_superblock(disk)
    assert superblock is not None
    assert superblock.durable_lsn == journal.durable.lsn == 2 * BLOCK_BYTES


def test_superblocks_are_written_over_the_older_copy() -> None:
    log, journal = logged_journal()
    commit(journal)
    log.log.clear()
    for number in range(4):
        journal.change_superblock(checkpoint_sequence=SequenceNumber(number))
        commit(journal)
    offsets = [entry[0] for entry in log.log if entry is not None]
    first = offsets[0]
    assert first in (0, SUPERBLOCK_BYTES)
    assert offsets == [first, SUPERBLOCK_BYTES - first] * 2


def test_a_change_of_role_counts_when_both_copies_of_the_superblock_have_it() -> None:
    log, journal = logged_journal()
    commit(journal)
    log.log.clear()
    journal.change_superblock(primary="a")
    wanted = journal.wanted_generation
    pending = journal.begin_commit()
    pending.work()
    assert journal.durable_generation < wanted
    journal.finish_commit(pending)
    assert journal.durable_generation >= wanted
    first, second = (entry[0] for entry in log.log if entry is not None)
    assert {first, second} == {0, SUPERBLOCK_BYTES}
    assert log.log[1] is None  # one good copy stands at every moment
    copies = [decode(log.pread(SUPERBLOCK_BYTES, copy * SUPERBLOCK_BYTES)) for copy in range(COPIES)]
    assert [copy.primary for copy in copies if copy is not None] == ["a", "a"]


def test_the_older_copy_of_the_superblock_leads_to_the_same_end_however_far_the_ring_went_on() -> None:
    """The newer one may rot: then nothing that was durable is lost, and no older history comes back."""
    disk, journal = new_journal(RING)
    journal.change_superblock(primary="a")
    commit(journal)
    for number in range(200):
        assert journal.fits(1, BLOCK_BYTES)
        journal.append([update(number)], TIME_NS)
        commit(journal)
        if number % 3 == 0:
            moved_tail(journal)
        newest = journal.superblock.generation % COPIES * SUPERBLOCK_BYTES
        good = disk.pread(SUPERBLOCK_BYTES, newest)
        disk.corrupt(newest, bytes(512))
        opened, _ = reopen(disk)
        assert opened.corruption is None
        assert opened.journal.head == journal.durable
        assert opened.journal.superblock.primary == "a"
        disk.corrupt(newest, good)


def test_bitmap_pages_are_durable_before_the_superblock_is_written() -> None:
    log, journal = logged_journal()
    commit(journal)
    log.log.clear()
    journal.write_with_next_commit([(40960, bytes(4096)), (49152, bytes(4096))])
    journal.change_superblock(checkpoint_sequence=SequenceNumber(0))
    commit(journal)
    assert log.log[:3] == [(40960, 4096), (49152, 4096), None]
    assert log.log[3] in [(copy * SUPERBLOCK_BYTES, SUPERBLOCK_BYTES) for copy in range(COPIES)]
    assert log.log[4:] == [None]
    assert not journal.commit_needed


def test_an_epoch_is_not_in_the_superblock_before_its_record_is_durable() -> None:
    """Else a crash could leave an epoch that forks from records which nobody has."""
    log, journal = logged_journal()
    journal.append([update(1)], TIME_NS)
    start = EpochStart(1, 77, 0, 0, journal.head.sequence, journal.head.digest, TIME_NS)
    journal.start_epoch(start)
    journal.append([NewRecord(RecordType.EPOCH, 0, 0, 0, 0, start.encode())], TIME_NS)
    log.log.clear()
    commit(journal)
    assert log.log[0] is None
    superblock = read_superblock(log)
    assert superblock is not None
    assert superblock.epochs == (start,)
    journal.change_superblock(primary="a")
    log.log.clear()
    commit(journal)
    assert log.log[0] is not None


def test_only_the_newest_epochs_are_kept() -> None:
    disk, journal = new_journal(RING)
    for number in range(1, EPOCHS_MAX + 3):
        journal.start_epoch(EpochStart(number, 1, number - 1, 1, SequenceNumber(0), bytes(32), TIME_NS))
    commit(journal)
    superblock = read_superblock(disk)
    assert superblock is not None
    assert [epoch.epoch for epoch in superblock.epochs] == list(range(3, EPOCHS_MAX + 3))
    assert superblock.epoch == EPOCHS_MAX + 2


# -- the tail --


def test_the_ring_is_reused_only_when_the_superblock_that_allows_it_is_durable() -> None:
    _, journal = new_journal(8 * BLOCK_BYTES)
    journal.append([update(1, 5 * BLOCK_BYTES)], TIME_NS)
    commit(journal)
    assert not journal.fits(1, BLOCK_BYTES)
    journal.move_tail(journal.durable)
    assert not journal.fits(1, BLOCK_BYTES)
    pending = journal.begin_commit()
    pending.work()
    assert not journal.fits(1, BLOCK_BYTES)
    journal.finish_commit(pending)
    assert journal.used_bytes == 0
    assert journal.fits(1, BLOCK_BYTES)


def test_the_tail_never_goes_back() -> None:
    _, journal = new_journal(RING)
    for number in range(3):
        journal.append([update(number)], TIME_NS)
    commit(journal)
    earlier, later = journal.index.boundary(1), journal.index.boundary(2)
    journal.move_tail(later)
    journal.move_tail(earlier)
    assert journal.superblock.tail == later
    assert journal.index.boundary(0) == later


def test_boundaries_are_found_by_sequence_number() -> None:
    _, journal = new_journal(RING)
    for count in (2, 1, 3):
        journal.append([update(n, 512) for n in range(count)], TIME_NS)
    boundaries = [journal.index.boundary(n) for n in range(3)]
    assert [position.sequence for position in boundaries] == [0, 2, 3]
    assert [journal.boundary_before(sequence) for sequence in range(8)] == [
        boundaries[0],
        boundaries[0],
        boundaries[1],
        boundaries[2],
        boundaries[2],
        boundaries[2],
        journal.head,
        journal.head,
    ]
    assert [journal.keeps_from(sequence) is not None for sequence in range(8)] == [
        True,
        False,
        True,
        True,
        False,
        False,
        True,
        False,
    ]
    commit(journal)
    journal.move_tail(boundaries[2])
    assert journal.keeps_from(2) is None
    assert journal.keeps_from(3) == boundaries[2]


# -- a peer's packs --


def unpacked(journal: Journal) -> list[tuple[PackHeader, bytes]]:
    start = Position()
    return [
        (pack.header, bytes(pack.view)) for pack in walk(journal.reader(), start, journal.head.lsn, GROUP_ID)
    ]


def test_received_packs_are_the_same_but_for_their_place() -> None:
    _, journal = new_journal(RING)
    for count in (1, 3, 2):
        journal.append([update(n) for n in range(count)], TIME_NS)
    theirs = unpacked(journal)
    own_disk, own = new_journal(16 * BLOCK_BYTES)
    own.append([update(0, 3 * BLOCK_BYTES)], TIME_NS)
    commit(own)
    own.restart_at(SequenceNumber(0), NO_DIGEST)
    own.receive(theirs)
    assert (own.head.sequence, own.head.digest) == (journal.head.sequence, journal.head.digest)
    commit(own)
    opened, seen = reopen(own_disk)
    assert opened.corruption is None
    for (_, header, pack), (original, block) in zip(seen, theirs, strict=True):
        assert pack[:96] + pack[128:] == block[:96] + block[128:]
        assert header.digest == original.digest
        assert header.lsn != original.lsn


def test_received_packs_are_one_write() -> None:
    _, journal = new_journal(RING)
    for number in range(3):
        journal.append([update(number)], TIME_NS)
    log, own = logged_journal()
    own.receive(unpacked(journal))
    assert log.log == [(RING_OFFSET, 6 * BLOCK_BYTES)]


# -- another history --


def test_after_a_restart_elsewhere_no_old_pack_is_ever_taken() -> None:
    disk, journal = new_journal(8 * BLOCK_BYTES)
    for number in range(4):
        journal.append([update(number)], TIME_NS)
    commit(journal)
    journal.restart_at(SequenceNumber(1000), b"\x33" * 32)
    commit(journal)
    opened, seen = reopen(disk)
    assert seen == []
    assert opened.corruption is None
    assert (opened.journal.head.sequence, opened.journal.head.digest) == (1000, b"\x33" * 32)
    opened.journal.append([update(9)], TIME_NS)
    commit(opened.journal)
    again, seen = reopen(disk)
    assert [header.first_sequence for _, header, _ in seen] == [1001]
    assert seen[0][1].previous_digest == b"\x33" * 32
    assert again.journal.head.sequence == 1001


def test_a_restart_that_did_not_become_durable_did_not_happen() -> None:
    disk, journal = new_journal(RING)
    journal.append([update(1)], TIME_NS)
    commit(journal)
    journal.restart_at(SequenceNumber(1000), b"\x33" * 32)
    journal.begin_commit()
    disk.power_off(random.Random(0))
    opened, seen = reopen(disk)
    assert opened.journal.head.sequence == 1
    assert len(seen) == 1
