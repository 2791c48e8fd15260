"""Making and opening a journal volume: the only places that read superblocks.

A file that was only made sparse costs about ten times as much at every fdatasync until each of its blocks was
written once. So a new ring is written out with zeros, in the background (`Filling`); appending waits for it
where it must.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from target.bitmap import BITS_PER_PAGE, PAGE_BYTES
from target.blockdev import BlockDevice
from target.checksum import crc32c
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
    unreadable: OSError | None = None
    """The device gave an error: the journal is what was found before it, and nothing may be written."""

    def fault(self, bitmaps_unreadable: OSError | None) -> str:
        """Why nothing can be served, and what to do; '' when all is well."""
        if self.corruption is not None:
            return (
                f"{self.corruption.what}; nothing was guessed and nothing is served. "
                "Take over at a peer, or restore the journal volume"
            )
        error = self.unreadable or bitmaps_unreadable
        if error is not None:
            return (
                f"the journal volume cannot be read or written: {error}; nothing is served. Repair the disk "
                "and restart the subsystem, or take over at a peer"
            )
        return ""


def open_journal(device: BlockDevice, superblock: Superblock, on_unapplied: Callable[[Pack], None]) -> Opened:
    """Recover: walk from the tail to the end, cut a torn tail, make the rest durable.

    `on_unapplied` sees each pack at or above the checkpoint. The journal ends in front of a corruption, and
    in front of what cannot be read: there another start may find more.
    """
    recovery = Recovery(device, superblock, superblock.checkpoint_lsn)
    found = _Found(superblock, on_unapplied)
    filled = superblock.ring_bytes
    unreadable: OSError | None = None
    try:
        for pack in recovery.packs():
            found.take(pack)
        _write_again(device, superblock, recovery.result)  # what was found is durable from here on
        filled = _filled(device, superblock, recovery.result.head)
    except OSError as error:
        unreadable = error
    epochs = found.epochs
    if epochs:
        superblock = replace(superblock, epochs=tuple(epochs), epoch=epochs[-1].epoch, reign=epochs[-1].reign)
    journal = Journal(device, superblock, recovery.result.head, found.index)
    for volume, size in found.grown.items():
        journal.grow_volume(volume, size)
    journal.filled_bytes = filled
    if (
        unreadable is not None
    ):  # what was found is not written again: only what is proven may be told or shipped
        journal.durable = found.index.before_lsn(recovery.result.proven_lsn) or superblock.tail
    return Opened(journal, recovery.result.corruption, found.markers, unreadable)


class _Found:
    """What the packs of a journal say, as they come."""

    def __init__(self, superblock: Superblock, on_unapplied: Callable[[Pack], None]) -> None:
        self._checkpoint_lsn = superblock.checkpoint_lsn
        self._on_unapplied = on_unapplied
        self._position = superblock.tail
        self.index = PackIndex()
        self.markers: list[tuple[SequenceNumber, Marker]] = []
        self.epochs = list(superblock.epochs)
        self.grown: dict[int, int] = {}

    def take(self, pack: Pack) -> None:
        first = pack.header.first_sequence
        self.index.append(Position(pack.header.lsn, self._position.sequence, self._position.digest))
        for number, (kind, _, volume, length, offset, size, start, crc) in enumerate(pack.header.rows()):
            if kind == RecordType.GROW:
                self.grown[volume] = offset + size
            if kind not in (RecordType.MARKER, RecordType.EPOCH):
                continue
            data = pack.view[start : start + length]
            if crc32c(data) != crc:
                continue  # below the checkpoint nothing was checked; who fetches it will be told
            if kind == RecordType.MARKER:
                self.markers.append((SequenceNumber(first + number), Marker.decode(data)))
            else:
                self.epochs = with_epoch(self.epochs, EpochStart.decode(data))
        if pack.header.lsn >= self._checkpoint_lsn:
            self._on_unapplied(pack)
        self._position = pack.end


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


def _filled(device: BlockDevice, superblock: Superblock, head: Position) -> int:
    """As `filled_bytes`, but never less than what packs are kept in: their zeros may be holes of a copied
    file.
    """
    ring, tail = superblock.ring_bytes, superblock.tail
    filled = filled_bytes(device, superblock)
    if head.lsn == tail.lsn:
        return filled
    end = head.lsn % ring
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
