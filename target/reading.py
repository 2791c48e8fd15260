"""Reading a volume's newest content: the overlay first, then the data volume.

A warm read is answered at once, on the loop thread; one that would block goes to a thread. While it is under
way the ring may be reused: then it is planned anew.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

from target.blockdev import BlockDevice, mapped_sectors
from target.journal.ring import Journal
from target.obtain import Overlay
from target.overlay import GRANULE_BYTES, ZERO, Granules, Piece, Source, above, newest, plan_read
from target.scheduler import Scheduler
from target.volume import SECTOR_BYTES, Buffer, Request, VolumeError

_log = logging.getLogger(__name__)
_LANE = "read"


class Reading:
    """Reads the volumes of one group as its host sees them."""

    def __init__(
        self, scheduler: Scheduler, journal: Journal, overlay: Overlay, volumes: Mapping[int, BlockDevice]
    ) -> None:
        self._scheduler = scheduler
        self._journal = journal
        self._overlay = overlay
        self._volumes = volumes

    def read(self, volume: int, offset: int, length: int, request: Request) -> None:
        """Answer with the content now; never later than a write that is acknowledged after this call."""
        try:
            layers = self._layers(volume)
            if layers:
                data = self._read_now(volume, layers, offset, length)
            else:
                data = self._volumes[volume].pread_nowait(length, offset)
        except OSError as error:
            self._refuse(volume, offset, error, request)
            return
        if data is not None:
            request.done(data)
        else:
            self._read_later(volume, offset, length, request)

    def content_now(self, volume: int, offset: int, length: int) -> Buffer | None:
        """The content at this point of the sequence, or None when reading it would block."""
        return self._read_now(volume, self._layers(volume), offset, length)

    def is_unwritten(self, volume: int, offset: int, length: int) -> bool:
        """True when the range holds zeros for certain, without reading it."""
        layers = self._layers(volume)
        if any(piece.source is Source.JOURNAL for piece in plan_read(layers, offset, length)):
            return False
        for piece in plan_read(layers, offset, length):
            if piece.source is Source.VOLUME:
                for _ in self._volumes[volume].data_extents(piece.position, piece.length):
                    return False
        return True

    def allocation(self, volume: int, offset: int, length: int) -> bytearray:
        """A byte for each sector of a range: 1 where it is mapped, 0 where it holds zeros and no space."""
        sectors = bytearray(length // SECTOR_BYTES)
        for source, position, size, at in plan_read(self._layers(volume), offset, length):
            low, count = at // SECTOR_BYTES, size // SECTOR_BYTES
            if source is Source.VOLUME:
                sectors[low : low + count] = mapped_sectors(self._volumes[volume], position, size)
            else:
                sectors[low : low + count] = bytes((source is Source.JOURNAL,)) * count
        return sectors

    def warm(self, volume: int, offset: int, length: int, then: Callable[[Exception | None], None]) -> None:
        """Read a cold range on a thread, for nothing but to have it in memory; then call `then`."""
        device = self._volumes[volume]

        def work() -> None:
            device.pread(length, offset)

        self._scheduler.submit(_LANE, work, lambda _, error: then(error))

    def _layers(self, volume: int) -> list[Granules]:
        layers = []
        for generation in (self._overlay.current, self._overlay.frozen):
            if generation is not None:
                granules = generation.granules.get(volume)
                if granules:
                    layers.append(granules)
        return layers

    def _read_now(self, volume: int, layers: list[Granules], offset: int, length: int) -> Buffer | None:
        device, journal = self._volumes[volume], self._journal.device
        granule = offset // GRANULE_BYTES
        if (offset + length - 1) // GRANULE_BYTES == granule:
            place = newest(layers, granule)
            if isinstance(place, int):
                if place == ZERO:
                    return bytes(length)
                return journal.pread_nowait(length, place + offset % GRANULE_BYTES)
            if place is None:
                return device.pread_nowait(length, offset)
        else:
            layers = above(layers, offset, length)
            if not layers:
                return device.pread_nowait(length, offset)
        pieces = plan_read(layers, offset, length)
        if len(pieces) == 1:
            source, position, _, _ = pieces[0]
            if source is Source.VOLUME:
                return device.pread_nowait(length, position)
            if source is Source.JOURNAL:
                return journal.pread_nowait(length, position)
            return bytes(length)
        answer = bytearray(length)
        for source, position, size, at in pieces:
            if source is Source.ZERO:
                answer[at : at + size] = bytes(size)
                continue
            data = (device if source is Source.VOLUME else journal).pread_nowait(size, position)
            if data is None:
                return None
            answer[at : at + size] = data
        return answer

    def _read_later(self, volume: int, offset: int, length: int, request: Request) -> None:
        device, journal = self._volumes[volume], self._journal.device
        pieces = plan_read(self._layers(volume), offset, length)
        # The journal's part of this plan stays where it is until the head has gone a whole ring further.
        stays_until = self._journal.free_tail_lsn + self._journal.superblock.ring_bytes
        # What is written from now on goes to this generation, and to the volume only after another has begun:
        # until then no part of this plan can change under the read, and none is torn.
        generation = self._overlay.current

        def done(data: Buffer | None, error: Exception | None) -> None:
            if data is None:
                self._refuse(volume, offset, error, request)
            elif self._journal.head.lsn > stays_until or self._overlay.current is not generation:
                self.read(volume, offset, length, request)
            else:
                request.done(data)

        self._scheduler.submit(_LANE, lambda: _assemble(pieces, length, device, journal), done)

    def _refuse(self, volume: int, offset: int, error: Exception | None, request: Request) -> None:
        _log.error("volume %d could not be read at offset %d: %s", volume, offset, error)
        request.failed(VolumeError.READ_FAILED)


def _assemble(pieces: list[Piece], length: int, device: BlockDevice, journal: BlockDevice) -> Buffer:
    """The blocking way, on a thread."""
    answer = bytearray(length)
    view = memoryview(answer)
    for source, position, size, at in pieces:
        if source is Source.ZERO:
            view[at : at + size] = bytes(size)
        else:
            (device if source is Source.VOLUME else journal).pread_into(view[at : at + size], position)
    return answer
