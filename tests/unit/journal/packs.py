"""Packs, superblocks and small journal volumes for the tests, on a simulated disk."""

from __future__ import annotations

from collections.abc import Sequence

from target.journal.format import Opened, open_journal, read_superblock
from target.journal.pack_index import PackIndex
from target.journal.record import (
    BLOCK_BYTES,
    NO_DIGEST,
    PackHeader,
    RecordType,
    decode_header,
    describe,
    encode_header,
    round_up,
)
from target.journal.ring import Journal, NewRecord
from target.journal.scan import Pack
from target.journal.superblock import COPIES, SUPERBLOCK_BYTES, Superblock, VolumeEntry
from tests.simulation.sim_disk import SimDisk

GROUP_ID = bytes(range(16))
TIME_NS = 1_750_000_000_000_000_000
RING_OFFSET = 64 << 10


def update(fill: int, length: int = BLOCK_BYTES, offset: int = 0, volume: int = 1) -> NewRecord:
    """A host's write of one byte over and over."""
    return NewRecord(RecordType.UPDATE, 0, volume, offset, length, bytes([fill & 0xFF]) * length)


def whole_pack(
    records: Sequence[NewRecord],
    *,
    first_sequence: int = 1,
    previous_digest: bytes = NO_DIGEST,
    lsn: int = 0,
    durable_lsn: int = 0,
    group_id: bytes = GROUP_ID,
    reign: int = 7,
) -> tuple[PackHeader, bytes]:
    """A pack as it stands in a ring: header block, data, filling."""
    descriptors = []
    data = b""
    for record in records:
        place = BLOCK_BYTES + len(data)
        descriptors.append(
            describe(
                record.type,
                record.flags,
                record.volume,
                record.offset,
                record.length,
                record.data,
                place,
            )
        )
        data += record.data
    raw = encode_header(
        group_id=group_id,
        epoch=3,
        reign=reign,
        first_sequence=first_sequence,
        time_ns=TIME_NS,
        previous_digest=previous_digest,
        lsn=lsn,
        durable_lsn=durable_lsn,
        descriptors=descriptors,
        data_length=len(data),
    )
    block = raw.ljust(BLOCK_BYTES, b"\0") + data.ljust(round_up(len(data)), b"\0")
    header = decode_header(block)
    assert header is not None
    return header, block


def small_journal(ring_bytes: int, volume_bytes: Sequence[int] = (1 << 20,)) -> tuple[SimDisk, Superblock]:
    """A formatted journal volume whose ring is as small as the test wants; both superblocks are durable."""
    superblock = Superblock(
        group_id=GROUP_ID,
        ring_offset=RING_OFFSET,
        ring_bytes=ring_bytes,
        bitmap_offset=COPIES * SUPERBLOCK_BYTES,
        bitmap_pages=0,
        bitmap_slots=0,
        extent_bytes=65536,
        volumes=tuple(
            VolumeEntry(number, f"volume{number}", size, 512, 0, 0)
            for number, size in enumerate(volume_bytes, start=1)
        ),
    )
    disk = SimDisk(RING_OFFSET + ring_bytes)
    for generation in range(COPIES):
        superblock = superblock.with_generation(generation)
        disk.pwritev([superblock.encode()], generation * SUPERBLOCK_BYTES)
    disk.pwritev([bytes(ring_bytes)], RING_OFFSET)
    disk.flush()
    return disk, superblock


def new_journal(ring_bytes: int) -> tuple[SimDisk, Journal]:
    """A journal that was never written to."""
    disk, superblock = small_journal(ring_bytes)
    return disk, Journal(disk, superblock, superblock.tail, PackIndex())


def commit(journal: Journal) -> None:
    """Make all that was appended durable, in one go."""
    pending = journal.begin_commit()
    pending.work()
    journal.finish_commit(pending)


def reopen(disk: SimDisk) -> tuple[Opened, list[tuple[int, PackHeader, bytes]]]:
    """Recover from what the disk holds; also what was unapplied: (place, header, whole pack)."""
    superblock = read_superblock(disk)
    assert superblock is not None
    seen: list[tuple[int, PackHeader, bytes]] = []

    def unapplied(pack: Pack) -> None:
        place = superblock.ring_offset + pack.header.lsn % superblock.ring_bytes
        seen.append((place, pack.header, bytes(pack.view)))

    return open_journal(disk, superblock, unapplied), seen


def moved_tail(journal: Journal) -> None:
    """Everything so far is applied and received by all: let the ring be reused up to the durable mark."""
    journal.change_superblock(
        checkpoint_lsn=journal.durable.lsn, checkpoint_sequence=journal.durable.sequence
    )
    journal.move_tail(journal.durable)
    commit(journal)
