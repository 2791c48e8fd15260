"""Recovery: what is found when a journal volume is opened again, after every kind of end and damage."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from target.errors import IntegrityError
from target.journal.format import (
    read_superblock,
)
from target.journal.record import (
    BLOCK_BYTES,
    EpochStart,
    Lsn,
    Marker,
    MarkerKind,
    PackHeader,
    RecordType,
    SequenceNumber,
    decode_header,
)
from target.journal.ring import Journal, NewRecord
from target.journal.superblock import COPIES, SUPERBLOCK_BYTES
from tests.simulation.sim_disk import SimDisk
from tests.unit.journal.packs import (
    RING_OFFSET,
    TIME_NS,
    commit,
    moved_tail,
    new_journal,
    reopen,
    update,
    whole_pack,
)

RING = 64 * BLOCK_BYTES
PACK = 2 * BLOCK_BYTES
"""One block of data behind one header block."""


def append(journal: Journal, fill: int, blocks: int = 1) -> None:
    journal.append([update(fill, blocks * BLOCK_BYTES)], TIME_NS)


def fills(seen: Sequence[tuple[int, PackHeader, bytes]]) -> list[int]:
    """The first data byte of each pack."""
    return [pack[BLOCK_BYTES] for _, _, pack in seen]


# -- what was durable is there, what was not is cut --


def test_a_new_journal_is_empty() -> None:
    disk, _ = new_journal(RING)
    opened, seen = reopen(disk)
    assert seen == []
    assert opened.corruption is None
    assert opened.journal.head.sequence == 0
    assert opened.journal.head.lsn == 0


def test_every_pack_comes_back_with_its_place() -> None:
    disk, journal = new_journal(RING)
    for number in range(5):
        append(journal, number)
    commit(journal)
    opened, seen = reopen(disk)
    assert fills(seen) == [0, 1, 2, 3, 4]
    assert [place for place, _, _ in seen] == [RING_OFFSET + number * PACK for number in range(5)]
    assert opened.journal.head == journal.head
    assert [opened.journal.index.boundary(n) for n in range(5)] == [
        journal.index.boundary(n) for n in range(5)
    ]


def test_only_what_is_above_the_checkpoint_is_unapplied() -> None:
    disk, journal = new_journal(RING)
    for number in range(5):
        append(journal, number)
    third = journal.index.boundary(3)
    commit(journal)
    journal.change_superblock(checkpoint_lsn=third.lsn, checkpoint_sequence=third.sequence)
    commit(journal)
    opened, seen = reopen(disk)
    assert fills(seen) == [3, 4]
    assert len(opened.journal.index) == 5


def test_packs_in_front_of_the_tail_are_gone() -> None:
    disk, journal = new_journal(RING)
    append(journal, 0)
    commit(journal)
    moved_tail(journal)
    append(journal, 1)
    commit(journal)
    opened, seen = reopen(disk)
    assert fills(seen) == [1]
    assert opened.journal.superblock.tail.sequence == 1
    assert opened.journal.head == journal.head


@pytest.mark.parametrize("seed", range(60))
def test_power_loss_leaves_a_prefix_with_everything_durable(seed: int) -> None:
    rng = random.Random(seed)
    disk, journal = new_journal(RING)
    written: list[int] = []
    for _ in range(4):
        durable = len(written)
        for _ in range(rng.randrange(1, 6)):
            if journal.fits(1, 3 * BLOCK_BYTES):
                append(journal, len(written), rng.randrange(1, 4))
                written.append(len(written))
            if rng.random() < 0.4:
                commit(journal)
                durable = len(written)
            if rng.random() < 0.3:
                moved_tail(journal)
                durable = len(written)
        disk.power_off(rng)
        opened, seen = reopen(disk)
        assert opened.corruption is None
        journal = opened.journal
        assert durable <= journal.head.sequence <= len(written)
        del written[journal.head.sequence :]
        first = journal.superblock.checkpoint_sequence
        assert fills(seen) == written[first:]


@pytest.mark.parametrize("lost", range(4))
def test_behind_a_pack_that_never_arrived_nothing_counts(lost: int) -> None:
    """The packs behind it did arrive: they are cut with it, and can be written over."""
    disk, journal = new_journal(RING)
    append(journal, 100)
    commit(journal)
    for number in range(4):
        append(journal, number)
    disk.corrupt(RING_OFFSET + (1 + lost) * PACK, bytes(PACK))
    opened, seen = reopen(disk)
    assert opened.corruption is None
    assert fills(seen) == [100, 0, 1, 2, 3][: 1 + lost]
    append(opened.journal, 50)
    commit(opened.journal)
    again, seen = reopen(disk)
    assert again.corruption is None
    assert fills(seen) == [100, *range(lost), 50]


def test_a_pack_whose_data_were_torn_is_cut() -> None:
    disk, journal = new_journal(RING)
    append(journal, 1)
    append(journal, 2, blocks=2)
    disk.corrupt(RING_OFFSET + PACK + BLOCK_BYTES + 512, bytes(512))
    opened, seen = reopen(disk)
    assert opened.corruption is None
    assert fills(seen) == [1]


def test_what_recovery_found_is_durable_afterwards() -> None:
    disk, journal = new_journal(RING)
    append(journal, 1)
    opened, _ = reopen(disk)
    assert opened.journal.durable.sequence == 1
    disk.power_off(random.Random(0))
    assert fills(reopen(disk)[1]) == [1]


# -- around the ring --


def test_packs_of_an_earlier_lap_are_not_taken() -> None:
    """All packs have one size: behind the head, at the very place, a whole pack of the lap before begins."""
    disk, journal = new_journal(8 * PACK)
    for number in range(8):
        append(journal, number)
        commit(journal)
        moved_tail(journal)
    for number in range(8, 11):
        append(journal, number)
    commit(journal)
    stale = decode_header(disk.pread(BLOCK_BYTES, journal.place(journal.head.lsn)))
    assert stale is not None
    assert stale.lsn < journal.head.lsn
    opened, seen = reopen(disk)
    assert opened.corruption is None
    assert fills(seen) == [8, 9, 10]
    assert opened.journal.head == journal.head


def test_a_pack_that_does_not_fit_goes_behind_a_pad() -> None:
    disk, journal = new_journal(8 * BLOCK_BYTES)
    append(journal, 1, blocks=2)
    append(journal, 2, blocks=1)
    commit(journal)
    moved_tail(journal)
    append(journal, 3, blocks=3)
    pad = decode_header(disk.pread(BLOCK_BYTES, RING_OFFSET + 5 * BLOCK_BYTES))
    assert pad is not None
    assert pad.is_pad
    assert pad.total_length == 3 * BLOCK_BYTES
    assert pad.first_sequence == 3
    commit(journal)
    opened, seen = reopen(disk)
    assert opened.corruption is None
    assert [(place, pack[BLOCK_BYTES]) for place, _, pack in seen] == [(RING_OFFSET, 3)]
    assert opened.journal.head == journal.head
    assert opened.journal.index.boundary(0).lsn == 8 * BLOCK_BYTES


def test_a_journal_may_end_behind_its_pad() -> None:
    """The pad arrived, the pack behind it did not."""
    disk, journal = new_journal(8 * BLOCK_BYTES)
    append(journal, 1, blocks=5)
    commit(journal)
    moved_tail(journal)
    append(journal, 2, blocks=3)
    disk.corrupt(RING_OFFSET, bytes(BLOCK_BYTES))
    opened, seen = reopen(disk)
    assert opened.corruption is None
    assert seen == []
    assert opened.journal.head.sequence == 1
    append(opened.journal, 3, blocks=3)
    commit(opened.journal)
    assert fills(reopen(disk)[1]) == [3]


@pytest.mark.parametrize("seed", range(10))
def test_many_laps_with_packs_of_any_size(seed: int) -> None:
    rng = random.Random(seed)
    disk, journal = new_journal(32 * BLOCK_BYTES)
    kept: list[int] = []
    for number in range(120):
        blocks = rng.randrange(1, 6)
        if not journal.fits(1, blocks * BLOCK_BYTES):
            commit(journal)
            moved_tail(journal)
            kept.clear()
        append(journal, number, blocks)
        kept.append(number)
        if rng.random() < 0.2:
            commit(journal)
            opened, seen = reopen(disk)
            assert opened.corruption is None
            assert fills(seen) == kept
            assert opened.journal.head == journal.head
    assert journal.head.lsn > 5 * 32 * BLOCK_BYTES


# -- corruption: what was durable and is gone --

DAMAGES: dict[str, Callable[[SimDisk, int], None]] = {
    "its header": lambda disk, place: disk.corrupt(place + 20, b"\xff"),
    "its data": lambda disk, place: disk.corrupt(place + BLOCK_BYTES + 7, b"\xff"),
    "its chain digest": lambda disk, place: _replace_with_foreign_pack(disk, place),
}


def _replace_with_foreign_pack(disk: SimDisk, place: int) -> None:
    """A pack that is right in itself, at the right place, of another history."""
    header = decode_header(disk.pread(BLOCK_BYTES, place))
    assert header is not None
    _, block = whole_pack(
        [update(99)],
        first_sequence=header.first_sequence,
        previous_digest=b"\x11" * 32,
        lsn=header.lsn,
        durable_lsn=header.durable_lsn,
    )
    disk.corrupt(place, block)


@pytest.mark.parametrize("what", DAMAGES)
def test_a_later_header_proves_that_a_pack_was_durable(what: str) -> None:
    disk, journal = new_journal(RING)
    for number in range(4):
        append(journal, number)
        commit(journal)
    superblock = read_superblock(disk)
    assert superblock is not None
    assert superblock.durable_lsn == 0
    DAMAGES[what](disk, RING_OFFSET + 2 * PACK)
    opened, seen = reopen(disk)
    assert fills(seen) == [0, 1]
    assert opened.corruption is not None
    assert opened.corruption.lsn == 2 * PACK
    assert opened.corruption.after_sequence == 2
    assert what in opened.corruption.what
    assert opened.journal.head.sequence == 2


@pytest.mark.parametrize("what", DAMAGES)
def test_the_superblock_proves_that_a_pack_was_durable(what: str) -> None:
    disk, journal = new_journal(RING)
    for number in range(3):
        append(journal, number)
    commit(journal)
    journal.change_superblock(primary="")
    commit(journal)
    DAMAGES[what](disk, RING_OFFSET + 2 * PACK)
    opened, seen = reopen(disk)
    assert fills(seen) == [0, 1]
    assert opened.corruption is not None
    assert opened.corruption.after_sequence == 2
    assert what in opened.corruption.what


@pytest.mark.parametrize("what", DAMAGES)
def test_without_proof_the_same_damage_is_a_torn_tail(what: str) -> None:
    disk, journal = new_journal(RING)
    for number in range(4):
        append(journal, number)
    commit(journal)
    DAMAGES[what](disk, RING_OFFSET + 2 * PACK)
    opened, seen = reopen(disk)
    assert fills(seen) == [0, 1]
    assert opened.corruption is None


def test_a_pad_further_on_is_proof_too() -> None:
    disk, journal = new_journal(8 * BLOCK_BYTES)
    append(journal, 0, blocks=2)
    append(journal, 1, blocks=2)
    commit(journal)
    journal.change_superblock(tail=journal.index.boundary(1))
    pending = journal.begin_commit()
    pending.work()
    journal.finish_commit(pending)
    append(journal, 2, blocks=2)
    pad = decode_header(disk.pread(BLOCK_BYTES, RING_OFFSET + 6 * BLOCK_BYTES))
    assert pad is not None
    assert pad.is_pad
    assert pad.durable_lsn == 6 * BLOCK_BYTES
    disk.corrupt(RING_OFFSET, bytes(3 * BLOCK_BYTES))  # the pack behind the pad never arrived
    disk.corrupt(RING_OFFSET + 4 * BLOCK_BYTES, b"\xff")
    _forget_durable_mark(disk)
    opened, _ = reopen(disk)
    assert opened.corruption is not None
    assert opened.corruption.after_sequence == 1


def _forget_durable_mark(disk: SimDisk) -> None:
    """Superblocks of a time when less was durable, so that the proof must come from elsewhere."""
    superblock = read_superblock(disk)
    assert superblock is not None
    older = replace(superblock, durable_lsn=Lsn(0), durable_sequence=SequenceNumber(0))
    for copy in range(COPIES):
        disk.corrupt(copy * SUPERBLOCK_BYTES, older.encode())


def test_data_below_the_checkpoint_are_on_the_volumes_and_not_checked() -> None:
    disk, journal = new_journal(RING)
    for number in range(3):
        append(journal, number)
    commit(journal)
    second = journal.index.boundary(2)
    journal.change_superblock(checkpoint_lsn=second.lsn, checkpoint_sequence=second.sequence)
    commit(journal)
    disk.corrupt(RING_OFFSET + PACK + BLOCK_BYTES, b"\xff")
    opened, seen = reopen(disk)
    assert opened.corruption is None
    assert fills(seen) == [2]


def test_a_pack_of_another_group_is_no_pack_of_ours() -> None:
    disk, journal = new_journal(RING)
    append(journal, 1)
    commit(journal)
    _, block = whole_pack(
        [update(2)],
        first_sequence=2,
        previous_digest=journal.head.digest,
        lsn=journal.head.lsn,
        durable_lsn=journal.head.lsn,
        group_id=bytes(16),
    )
    disk.corrupt(journal.place(journal.head.lsn), block)
    opened, seen = reopen(disk)
    assert fills(seen) == [1]
    assert opened.corruption is None


# -- superblocks --


def test_a_volume_of_zeros_holds_no_journal() -> None:
    assert read_superblock(SimDisk(1 << 20)) is None


def test_two_damaged_superblocks_are_never_formatted_over() -> None:
    disk, _ = new_journal(RING)
    for copy in range(COPIES):
        disk.corrupt(copy * SUPERBLOCK_BYTES + 100, b"\xff")
    with pytest.raises(IntegrityError, match="neither copy"):
        read_superblock(disk)


def test_what_never_was_a_journal_volume_is_not_formatted_over() -> None:
    disk = SimDisk(1 << 20)
    disk.pwritev([b"somebody's file system"], 1024)
    with pytest.raises(IntegrityError, match="not empty"):
        read_superblock(disk)


@pytest.mark.parametrize("copy", range(COPIES))
def test_one_good_superblock_is_enough(copy: int) -> None:
    disk, journal = new_journal(RING)
    append(journal, 1)
    commit(journal)
    disk.corrupt(copy * SUPERBLOCK_BYTES + 5000, b"\xff")
    opened, seen = reopen(disk)
    assert fills(seen) == [1]
    assert opened.corruption is None


@pytest.mark.parametrize("sectors", range(0, SUPERBLOCK_BYTES // 512 + 1, 4))
def test_a_superblock_torn_while_it_was_written_leaves_the_one_before(sectors: int) -> None:
    """The tail moved, the superblock that says so was torn: the ring is kept from the old tail on."""
    disk, journal = new_journal(16 * PACK)
    for number in range(4):
        append(journal, number)
    commit(journal)
    before = read_superblock(disk)
    assert before is not None
    journal.move_tail(journal.index.boundary(1))
    pending = journal.begin_commit()
    assert pending.superblock is not None
    place = pending.superblock.generation % COPIES * SUPERBLOCK_BYTES
    old = disk.pread(SUPERBLOCK_BYTES, place)
    pending.work()
    torn = disk.pread(SUPERBLOCK_BYTES, place)[: sectors * 512] + old[sectors * 512 :]
    disk.corrupt(place, torn)
    opened, _ = reopen(disk)
    whole = torn == pending.superblock.encode()
    assert opened.journal.superblock.generation == before.generation + whole
    assert opened.journal.superblock.tail.sequence == (1 if whole else 0)
    assert opened.corruption is None
    assert opened.journal.head == journal.head


# -- what the packs tell beside data --


def test_markers_and_epochs_are_found_again() -> None:
    disk, journal = new_journal(RING)
    marker = Marker(MarkerKind.OPERATOR, TIME_NS, "before payday")
    start = EpochStart(1, 77, 0, 0, SequenceNumber(1), b"\x22" * 32, TIME_NS)
    append(journal, 1)
    journal.start_epoch(start)
    journal.append(
        [
            NewRecord(RecordType.EPOCH, 0, 0, 0, 0, start.encode()),
            update(2),
            NewRecord(RecordType.MARKER, 0, 0, 0, 0, marker.encode()),
        ],
        TIME_NS,
    )
    journal.device.flush()  # the superblock that names the epoch was never written
    opened, _ = reopen(disk)
    assert opened.markers == [(4, marker)]
    assert opened.journal.superblock.epochs == (start,)
    assert (opened.journal.superblock.epoch, opened.journal.superblock.reign) == (1, 77)
    append(opened.journal, 3)
    commit(opened.journal)
    again, seen = reopen(disk)
    assert seen[-1][1].epoch == 1
    assert again.journal.superblock.epochs == (start,)
