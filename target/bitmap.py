"""The differential bitmap of one mirror: which extents of the volumes it may not have.

docs/journal-format.md has the page. Marking happens when unshipped records are discarded, when a pair is
made, and when two histories are merged; clearing when an extent's base record is durable in the journal. The
write path never comes here.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator

from target.blockdev import BlockDevice
from target.checksum import crc32c
from target.errors import OperatorError
from target.journal.superblock import Superblock, VolumeEntry

PAGE_BYTES = 4096
BITS_PER_PAGE = (PAGE_BYTES - 64) * 8
_HEADER = struct.Struct("<8sHHIQ16s20xI")
_MAGIC = b"REPLBITM"
_VERSION = 1

Extent = tuple[int, int, int]
"""Volume id, offset, length: bytes."""


def check_room(superblock: Superblock, volume: VolumeEntry, size_bytes: int) -> None:
    """OperatorError when the journal volume's bitmaps have no bits for a volume of this size."""
    limit = volume.page_count * BITS_PER_PAGE * superblock.extent_bytes
    if size_bytes > limit:
        raise OperatorError(
            f"the bitmaps of this journal volume have room for {limit} bytes of volume {volume.name!r}: "
            "for more, delete the pair, make a new journal volume and create the pair again"
        )


class DifferentialBitmap:
    """In memory, with the pages that changed since they were written last."""

    def __init__(self, volumes: Iterable[VolumeEntry], extent_bytes: int) -> None:
        self.extent_bytes = extent_bytes
        self._volumes = {volume.id: volume for volume in volumes}
        self._bits = {
            volume.id: bytearray(volume.page_count * (BITS_PER_PAGE // 8))
            for volume in self._volumes.values()
        }
        self.dirty_pages: set[int] = set()

    def resize(self, volumes: Iterable[VolumeEntry]) -> None:
        """The volumes have these sizes now; there is room (`check_room`)."""
        self._volumes = {volume.id: volume for volume in volumes}

    def mark(self, volume: int, offset: int, length: int) -> None:
        """Set the bits of every extent the range touches. An unknown volume is an error of ours."""
        size = self._volumes[volume].size_bytes
        first = offset // self.extent_bytes
        last = (min(offset + length, size) - 1) // self.extent_bytes
        bits = self._bits[volume]
        for index in range(first, last + 1):
            byte, bit = index >> 3, 1 << (index & 7)
            if not bits[byte] & bit:
                bits[byte] |= bit
                self.dirty_pages.add(self._volumes[volume].first_page + index // BITS_PER_PAGE)

    def mark_all(self) -> None:
        """Every extent of every volume."""
        for volume in self._volumes.values():
            self.mark(volume.id, 0, volume.size_bytes)

    def clear(self, volume: int, offset: int) -> None:
        """Clear the bit of the extent that begins at `offset`."""
        index = offset // self.extent_bytes
        self._bits[volume][index >> 3] &= ~(1 << (index & 7)) & 0xFF
        self.dirty_pages.add(self._volumes[volume].first_page + index // BITS_PER_PAGE)

    def __bool__(self) -> bool:
        return any(any(bits) for bits in self._bits.values())

    def extents(self) -> Iterator[Extent]:
        """The marked extents, ascending; the set may change while iterating."""
        for volume in self._volumes.values():
            bits = self._bits[volume.id]
            for byte in range(len(bits)):
                value = bits[byte]
                while value:
                    bit = (value & -value).bit_length() - 1
                    value &= value - 1
                    offset = ((byte << 3) + bit) * self.extent_bytes
                    yield volume.id, offset, min(self.extent_bytes, volume.size_bytes - offset)

    @property
    def marked_bytes(self) -> int:
        """How much is to be copied at most."""
        return (
            sum(int.from_bytes(bits, "little").bit_count() for bits in self._bits.values())
            * self.extent_bytes
        )

    def page_bits(self, page: int) -> bytes:
        """The 4032 bytes of a page, by its number within the slot."""
        for volume in self._volumes.values():
            index = page - volume.first_page
            if 0 <= index < volume.page_count:
                step = BITS_PER_PAGE // 8
                return bytes(self._bits[volume.id][index * step : (index + 1) * step])
        return bytes(BITS_PER_PAGE // 8)

    def load_page(self, page: int, bits: bytes | None) -> None:
        """Take a page as read; None (no good copy) marks everything it stands for."""
        step = BITS_PER_PAGE // 8
        for volume in self._volumes.values():
            index = page - volume.first_page
            if 0 <= index < volume.page_count:
                if bits is None:
                    low = index * BITS_PER_PAGE * self.extent_bytes
                    if low < volume.size_bytes:
                        self.mark(
                            volume.id, low, min(BITS_PER_PAGE * self.extent_bytes, volume.size_bytes - low)
                        )
                else:
                    self._bits[volume.id][index * step : (index + 1) * step] = bits


class BitmapStore:
    """The bitmap pages of all mirrors in the journal volume. Durable once the device is flushed."""

    def __init__(self, device: BlockDevice, superblock: Superblock) -> None:
        self._device = device
        self._superblock = superblock
        self._generations: dict[tuple[int, int], int] = {}
        self._unwritten: set[tuple[int, int]] = set()
        """Pages of a new bitmap: nothing is known of what either copy holds."""

    def resize(self, superblock: Superblock) -> None:
        """The volumes have other sizes now."""
        self._superblock = superblock

    def load(self, slot: int) -> DifferentialBitmap:
        """Read a slot's pages; a page without a good copy counts as marked. Blocks. Raises OSError: a copy
        that cannot be read now may be the newer one.
        """
        bitmap = DifferentialBitmap(self._superblock.volumes, self._superblock.extent_bytes)
        for page in range(self._superblock.bitmap_pages):
            best: tuple[int, bytes] | None = None
            for copy in (0, 1):
                found = self._decode(
                    self._device.pread(PAGE_BYTES, self._offset(slot, page, copy)), slot, page
                )
                if found is not None and (best is None or found[0] > best[0]):
                    best = found
            self._generations[slot, page] = best[0] if best else 0
            bitmap.load_page(page, best[1] if best else None)
        return bitmap

    def create(self, slot: int) -> DifferentialBitmap:
        """A bitmap with no bit set; all its pages are to be written, both copies of each.

        So what an earlier bitmap left in the slot needs not be read, and none of it is ever found again: no
        superblock names the slot before both are durable.
        """
        bitmap = DifferentialBitmap(self._superblock.volumes, self._superblock.extent_bytes)
        for page in range(self._superblock.bitmap_pages):
            bitmap.dirty_pages.add(page)
            self._generations[slot, page] = 0
            self._unwritten.add((slot, page))
        return bitmap

    def take_dirty(self, slot: int, bitmap: DifferentialBitmap) -> list[tuple[int, bytes]]:
        """(offset, page) of every page to be written, each over its older copy; they count as written."""
        writes = []
        for page in sorted(bitmap.dirty_pages):
            copies = 1
            if (slot, page) in self._unwritten:
                self._unwritten.discard((slot, page))
                copies = 2
            for _ in range(copies):
                generation = self._generations[slot, page] + 1
                self._generations[slot, page] = generation
                block = self._encode(slot, page, generation, bitmap.page_bits(page))
                writes.append((self._offset(slot, page, generation & 1), block))
        bitmap.dirty_pages.clear()
        return writes

    def _encode(self, slot: int, page: int, generation: int, bits: bytes) -> bytes:
        block = bytearray(
            _HEADER.pack(_MAGIC, _VERSION, slot, page, generation, self._superblock.group_id, 0) + bits
        )
        block[60:64] = crc32c(block).to_bytes(4, "little")
        return bytes(block)

    def _offset(self, slot: int, page: int, copy: int) -> int:
        index = (slot * self._superblock.bitmap_pages + page) * 2 + copy
        return self._superblock.bitmap_offset + index * PAGE_BYTES

    def _decode(self, block: bytes, slot: int, page: int) -> tuple[int, bytes] | None:
        magic, version, its_slot, its_page, generation, group_id, crc = _HEADER.unpack_from(block)
        if (magic, version, its_slot, its_page) != (_MAGIC, _VERSION, slot, page):
            return None
        if group_id != self._superblock.group_id:
            return None
        if crc32c(block[64:], crc32c(b"\0\0\0\0", crc32c(block[:60]))) != crc:
            return None
        return generation, block[64:]
