"""Making and opening a journal volume: the only places that read superblocks.

A file that was only made sparse costs about ten times as much at every fdatasync until each of its blocks was
written once. So a new ring is written out with zeros, in the background (`Filling`); appending waits for it
where it must.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from crc32c import crc32c

from target.bitmap import BITS_PER_PAGE, PAGE_BYTES
from target.blockdev import BlockDevice
from target.errors import IntegrityError, OperatorError
from target.journal.pack_index import PackIndex
from target.journal.record import EpochStart, Marker, RecordType, SequenceNumber
from target.journal.ring import Journal
from target.journal.scan import Corruption, Pack, Recovered, Recovery
from target.journal.superblock import (
    COPIES,
    EPOCHS_MAX,
    MIRRORS_MAX,
    SUPERBLOCK_BYTES,
    VOLUMES_MAX,
    Position,
    Superblock,
    VolumeEntry,
    decode,
    newest,
)
from target.scheduler import Scheduler

EXTENT_BYTES = 64 << 10
BITMAP_SLOTS = MIRRORS_MAX
RING_BYTES_MIN = 40 << 20
"""Room for the largest pack, a pad before it, and some history."""

_FILL_BYTES = 8 << 20
_AGAIN_BYTES = 1 << 20
_GROWTH = 4
"""Bitmaps have room for volumes so many times as large."""


@dataclass(frozen=True, slots=True)
class VolumeShape:
    """What a group's configuration says of one volume."""

    name: str
    size_bytes: int
    block_size_bytes: int


def format_journal(
    device: BlockDevice,
    group_id: bytes,
    volumes: Sequence[VolumeShape],
    ring_bytes_min: int = RING_BYTES_MIN,
) -> Superblock:
    """Write both superblocks of a new journal volume and make them durable.

    Raises OperatorError when the device is too small or there are too many volumes. A smaller minimum is for
    the simulation, whose writes are small too.
    """
    if len(volumes) > VOLUMES_MAX:
        raise OperatorError(
            f"a consistency group has {VOLUMES_MAX} volumes at most, this one has {len(volumes)}"
        )
    entries = []
    page = 0
    for number, volume in enumerate(volumes, start=1):
        room = volume.size_bytes * _GROWTH if volume.size_bytes > BITS_PER_PAGE * EXTENT_BYTES else 0
        pages = max(1, -(-room // (BITS_PER_PAGE * EXTENT_BYTES)))
        entries.append(
            VolumeEntry(number, volume.name, volume.size_bytes, volume.block_size_bytes, page, pages)
        )
        page += pages
    bitmap_offset = COPIES * SUPERBLOCK_BYTES
    ring_offset = bitmap_offset + BITMAP_SLOTS * page * 2 * PAGE_BYTES
    ring_bytes = (device.size_bytes - ring_offset) // PAGE_BYTES * PAGE_BYTES
    if ring_bytes < ring_bytes_min:
        raise OperatorError(
            f"the journal volume has {device.size_bytes} bytes (journal_size), which leaves "
            f"{max(ring_bytes, 0)} for the ring: make it at least {ring_offset + ring_bytes_min} bytes"
        )
    superblock = Superblock(
        group_id=group_id,
        ring_offset=ring_offset,
        ring_bytes=ring_bytes,
        bitmap_offset=bitmap_offset,
        bitmap_pages=page,
        bitmap_slots=BITMAP_SLOTS,
        extent_bytes=EXTENT_BYTES,
        volumes=tuple(entries),
    )
    for generation in range(COPIES):
        superblock = superblock.with_generation(generation)
        device.pwritev([superblock.encode()], generation * SUPERBLOCK_BYTES)
    device.flush()
    return superblock


def read_superblock(device: BlockDevice) -> Superblock | None:
    """The newest good copy; None when the device holds none at all (it may be formatted).

    Raises IntegrityError when there was one and both copies are damaged.
    """
    copies = [device.pread(SUPERBLOCK_BYTES, copy * SUPERBLOCK_BYTES) for copy in range(COPIES)]
    best = newest([decode(copy) for copy in copies])
    if best is None and any(any(copy) for copy in copies):
        raise IntegrityError(
            "the journal volume is not empty but neither copy of its superblock is good: "
            "if it never was a journal volume, clear its first 32 KiB; otherwise restore it from the peer"
        )
    return best


@dataclass(slots=True)
class Opened:
    """A journal volume after recovery."""

    journal: Journal
    corruption: Corruption | None
    markers: list[tuple[SequenceNumber, Marker]]


def open_journal(device: BlockDevice, superblock: Superblock, on_unapplied: Callable[[Pack], None]) -> Opened:
    """Recover: walk from the tail to the end, cut a torn tail, make the rest durable.

    `on_unapplied` sees each pack at or above the checkpoint. With a corruption the journal ends in front of
    it.
    """
    index = PackIndex()
    markers: list[tuple[SequenceNumber, Marker]] = []
    epochs = list(superblock.epochs)
    grown: dict[int, int] = {}
    recovery = Recovery(device, superblock, superblock.checkpoint_lsn)
    position = superblock.tail
    for pack in recovery.packs():
        index.append(Position(pack.header.lsn, position.sequence, position.digest))
        for number, (kind, _, volume, length, offset, size, start, crc) in enumerate(pack.header.rows()):
            if kind == RecordType.GROW:
                grown[volume] = offset + size
            if kind not in (RecordType.MARKER, RecordType.EPOCH):
                continue
            data = pack.view[start : start + length]
            if crc32c(data) != crc:
                continue  # below the checkpoint nothing was checked; who fetches it will be told
            if kind == RecordType.MARKER:
                markers.append((SequenceNumber(pack.header.first_sequence + number), Marker.decode(data)))
            else:
                epochs = with_epoch(epochs, EpochStart.decode(data))
        if pack.header.lsn >= superblock.checkpoint_lsn:
            on_unapplied(pack)
        position = recovery.result.head
    _write_again(device, superblock, recovery.result)  # what was found is durable from here on
    if epochs:
        superblock = replace(superblock, epochs=tuple(epochs), epoch=epochs[-1].epoch, reign=epochs[-1].reign)
    journal = Journal(device, superblock, recovery.result.head, index)
    for volume, size in grown.items():
        journal.grow_volume(volume, size)
    journal.filled_bytes = _filled(device, journal)
    return Opened(journal, recovery.result.corruption, markers)


def _write_again(device: BlockDevice, superblock: Superblock, found: Recovered) -> None:
    """Make what a start has found durable, whatever happened before.

    A flush alone does not: pages that Linux could not write once are marked clean, can be read until the
    machine stops, and no later flush writes them (fsync(2), EIO). So what nothing proves to be on the medium
    is written again as it stands: packs and bitmap pages, then the superblock that relies on them.
    """
    lsn = min(found.proven_lsn, found.head.lsn)
    while lsn < found.head.lsn:
        place = superblock.ring_offset + lsn % superblock.ring_bytes
        length = min(
            found.head.lsn - lsn, _AGAIN_BYTES, superblock.ring_offset + superblock.ring_bytes - place
        )
        device.pwritev([device.pread(length, place)], place)
        lsn += length
    slot_bytes = superblock.bitmap_pages * 2 * PAGE_BYTES
    for mirror in superblock.mirrors:
        start = superblock.bitmap_offset + mirror.slot * slot_bytes
        for place in range(start, start + slot_bytes, _AGAIN_BYTES):
            length = min(_AGAIN_BYTES, start + slot_bytes - place)
            device.pwritev([device.pread(length, place)], place)
    device.flush()
    device.pwritev([superblock.encode()], superblock.generation % COPIES * SUPERBLOCK_BYTES)
    device.flush()


def with_epoch(epochs: Sequence[EpochStart], start: EpochStart) -> list[EpochStart]:
    """The history with one epoch more, unless it is there already."""
    known = any((e.epoch, e.reign) == (start.epoch, start.reign) for e in epochs)
    return list(epochs) if known else [*epochs, start][-EPOCHS_MAX:]


def _filled(device: BlockDevice, journal: Journal) -> int:
    """As `filled_bytes`, but never less than what packs are kept in: their zeros may be holes of a copied
    file.
    """
    ring, tail = journal.superblock.ring_bytes, journal.superblock.tail
    filled = filled_bytes(device, journal.superblock)
    if journal.head.lsn == tail.lsn:
        return filled
    end = journal.head.lsn % ring
    return ring if end <= tail.lsn % ring else max(filled, end)


def filled_bytes(device: BlockDevice, superblock: Superblock) -> int:
    """How much of the ring, from its start, was written at least once."""
    end = superblock.ring_offset + superblock.ring_bytes
    filled = superblock.ring_offset
    for offset, length in device.data_extents(superblock.ring_offset, superblock.ring_bytes):
        if offset > filled:
            break
        filled = offset + length
    return min(filled, end) - superblock.ring_offset


class Filling:
    """Writes a new ring out, 8 MiB at a time, on the lane of its journal; `on_progress` after each."""

    def __init__(
        self, scheduler: Scheduler, journal: Journal, lane: str, on_progress: Callable[[], None]
    ) -> None:
        self._scheduler = scheduler
        self._journal = journal
        self._lane = lane
        self._on_progress = on_progress

    def start(self) -> None:
        """Go on from where the ring is filled to; nothing to do when it is whole."""
        journal = self._journal
        left = journal.superblock.ring_bytes - journal.filled_bytes
        if left <= 0:
            return
        length = min(left, _FILL_BYTES)
        place = journal.superblock.ring_offset + journal.filled_bytes
        device = journal.device

        def work() -> int:
            device.pwritev([bytes(length)], place)
            return length

        self._scheduler.submit(self._lane, work, self._filled)

    def _filled(self, length: int | None, error: Exception | None) -> None:
        if error is not None or length is None:
            self._journal.filled_bytes = (
                self._journal.superblock.ring_bytes
            )  # the append will meet the error itself
        else:
            self._journal.filled_bytes += length
        self._on_progress()
        self.start()
