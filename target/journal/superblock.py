"""The superblock of a journal volume, version 1. Pure: bytes in, values out.

Two copies, 16 KiB each, at offsets 0 and 16384; a new one goes over the older, so that one good copy always
stands. What is more than progress (`Superblock.history`) is written to both before it counts. All numbers are
little-endian. A text is UTF-8, filled with zeros.

======  ====  ==============================================================================================
offset  size  field
======  ====  ==============================================================================================
0       8     magic ``REPLJRNL``
8       4     version, 1
12      4     flags: bit 0 = the secondary's volumes are consistent, bit 1 = promised to a peer (see below),
              bit 2 = superseded: another site holds a newer epoch
16      16    group id
32      8     generation: grows with every superblock written; the higher of two good copies counts
40      8     offset of the ring, bytes
48      8     size of the ring, bytes, a multiple of 4096
56      4     block size, 4096
60      4     role (`Role`)
64      8     epoch number
72      8     reign
80      8     checkpoint: LSN; everything below is durable on the data volumes
88      8     checkpoint: sequence number of the last record below
96      8     durable mark: LSN
104     8     durable mark: sequence number of the last record below ("last sequence number")
112     8     tail: LSN of the oldest pack that is kept
120     8     tail: sequence number of the last record below
128     32    tail: chain digest of the last pack below
160     8     bitmaps: offset of the area, bytes
168     4     bitmaps: pages for each mirror slot
172     4     bitmaps: number of mirror slots
176     4     bitmaps: extent, the number of bytes of a volume that one bit stands for
180     4     number of volumes
184     4     number of epochs
188     4     number of mirrors
192     8     last restored marker: sequence number
200     8     last restored marker: time, ns since 1970 on the primary's clock
208     64    last restored marker: name
272     64    name of the primary that this group follows (role secondary)
336     8     a copy to this secondary is complete at its marker behind this record, not at an earlier one
512     ...   volume table, 64 entries of 96 bytes
8192    ...   epoch table, 64 entries of 80 bytes, oldest first (`record.EpochStart`)
13312   ...   mirror table, 16 entries of 128 bytes
16380   4     CRC-32C of everything before
======  ====  ==============================================================================================

Volume entry: id (2), zeros (2), logical block size (4), size in bytes (8), first bitmap page (4), bitmap
pages (4), zeros (8), name (64).

Mirror entry: name (64), state (1, `MirrorState`), slot (1), zeros (6), received sequence (8), restored
sequence (8), verified sequence (8), copy complete at sequence (8, 0: not complete), zeros (24).

*Promised*: this site agreed to a planned takeover and must not serve writes before it has heard the outcome.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from enum import IntEnum, IntFlag
from typing import NamedTuple

from target.checksum import crc32c
from target.journal.record import BLOCK_BYTES, NO_DIGEST, EpochStart, Lsn, SequenceNumber
from target.volume import Buffer

VERSION = 1
MAGIC = b"REPLJRNL"
SUPERBLOCK_BYTES = 16384
COPIES = 2
VOLUMES_MAX = 64
EPOCHS_MAX = 64
MIRRORS_MAX = 16

_CORE = struct.Struct("<8sII16sQQQIIQQQQQQQQ32sQIIIIIIQQ64s64sQ")
_VOLUME = struct.Struct("<HxxIQIIxxxxxxxx64s")
_MIRROR = struct.Struct("<64sBBxxxxxxQQQQ24x")
_VOLUMES_OFFSET = 512
_EPOCHS_OFFSET = 8192
_MIRRORS_OFFSET = 13312
_CRC_OFFSET = SUPERBLOCK_BYTES - 4


class Role(IntEnum):
    """What the group is to its peers."""

    SIMPLEX = 0
    """No pair: volumes are served and journalled for their own safety."""
    PRIMARY = 1
    """Serves its hosts; has mirrors."""
    SECONDARY = 2
    """Follows a primary; its volumes are write-protected."""


class Flag(IntFlag):
    """Facts that a restart must not forget."""

    CONSISTENT = 1
    PROMISED = 2
    SUPERSEDED = 4


class MirrorState(IntEnum):
    """A mirror as the primary's journal knows it."""

    COPY = 1
    PAIR = 2
    SPLIT = 3
    """Suspended by an operator (PSUS)."""
    ERROR = 4
    """Suspended by an error or by a journal that was full (PSUE)."""
    LEFT = 5
    """The old primary after a forced takeover (SSWS): its history may have gone another way."""


@dataclass(frozen=True, slots=True)
class VolumeEntry:
    """A volume of the group, by the id that records use."""

    id: int
    name: str
    size_bytes: int
    block_size_bytes: int
    first_page: int
    page_count: int


@dataclass(frozen=True, slots=True)
class MirrorEntry:
    """A mirror and how far it is. Sequence numbers are the last the primary has heard of."""

    name: str
    state: MirrorState
    slot: int
    received: SequenceNumber
    restored: SequenceNumber
    verified: SequenceNumber
    copy_complete: SequenceNumber


@dataclass(frozen=True, slots=True)
class RestoredMarker:
    """The last marker that was restored, kept because the ring forgets."""

    sequence: SequenceNumber = SequenceNumber(0)
    time_ns: int = 0
    name: str = ""


class Position(NamedTuple):
    """A boundary between two packs: LSN, last sequence number below, chain digest of the last pack below."""

    lsn: Lsn = Lsn(0)
    sequence: SequenceNumber = SequenceNumber(0)
    digest: bytes = NO_DIGEST


BEGINNING = Position()
"""In front of the first record of a group."""


@dataclass(frozen=True, slots=True)
class Superblock:
    """Everything the journal volume knows beside the packs."""

    group_id: bytes
    ring_offset: int
    ring_bytes: int
    bitmap_offset: int
    bitmap_pages: int
    bitmap_slots: int
    extent_bytes: int
    volumes: tuple[VolumeEntry, ...]
    generation: int = 0
    role: Role = Role.SIMPLEX
    flags: Flag = Flag.CONSISTENT
    epoch: int = 0
    reign: int = 0
    checkpoint_lsn: Lsn = Lsn(0)
    checkpoint_sequence: SequenceNumber = SequenceNumber(0)
    durable_lsn: Lsn = Lsn(0)
    durable_sequence: SequenceNumber = SequenceNumber(0)
    tail: Position = BEGINNING
    epochs: tuple[EpochStart, ...] = ()
    mirrors: tuple[MirrorEntry, ...] = ()
    restored_marker: RestoredMarker = RestoredMarker()
    primary: str = ""
    copy_after: SequenceNumber = SequenceNumber(0)

    def encode(self) -> bytes:
        """16 KiB, checksummed."""
        block = bytearray(SUPERBLOCK_BYTES)
        marker = self.restored_marker
        _CORE.pack_into(
            block,
            0,
            MAGIC,
            VERSION,
            self.flags,
            self.group_id,
            self.generation,
            self.ring_offset,
            self.ring_bytes,
            BLOCK_BYTES,
            self.role,
            self.epoch,
            self.reign,
            self.checkpoint_lsn,
            self.checkpoint_sequence,
            self.durable_lsn,
            self.durable_sequence,
            self.tail.lsn,
            self.tail.sequence,
            self.tail.digest,
            self.bitmap_offset,
            self.bitmap_pages,
            self.bitmap_slots,
            self.extent_bytes,
            len(self.volumes),
            len(self.epochs),
            len(self.mirrors),
            marker.sequence,
            marker.time_ns,
            _text(marker.name),
            _text(self.primary),
            self.copy_after,
        )
        for index, volume in enumerate(self.volumes):
            _VOLUME.pack_into(
                block,
                _VOLUMES_OFFSET + index * _VOLUME.size,
                volume.id,
                volume.block_size_bytes,
                volume.size_bytes,
                volume.first_page,
                volume.page_count,
                _text(volume.name),
            )
        for index, epoch in enumerate(self.epochs):
            start = _EPOCHS_OFFSET + index * EpochStart.SIZE
            block[start : start + EpochStart.SIZE] = epoch.encode()
        for index, mirror in enumerate(self.mirrors):
            _MIRROR.pack_into(
                block,
                _MIRRORS_OFFSET + index * _MIRROR.size,
                _text(mirror.name),
                mirror.state,
                mirror.slot,
                mirror.received,
                mirror.restored,
                mirror.verified,
                mirror.copy_complete,
            )
        block[_CRC_OFFSET:] = crc32c(memoryview(block)[:_CRC_OFFSET]).to_bytes(4, "little")
        return bytes(block)

    @property
    def history(self) -> Superblock:
        """Without what only moves on: two copies with the same history recover to the same end, from an
        earlier or a later place.
        """
        return replace(
            self,
            generation=0,
            checkpoint_lsn=Lsn(0),
            checkpoint_sequence=SequenceNumber(0),
            durable_lsn=Lsn(0),
            durable_sequence=SequenceNumber(0),
            tail=BEGINNING,
            restored_marker=RestoredMarker(),
            mirrors=tuple(
                replace(
                    mirror,
                    received=SequenceNumber(0),
                    restored=SequenceNumber(0),
                    verified=SequenceNumber(0),
                )
                for mirror in self.mirrors
            ),
        )

    def with_generation(self, generation: int) -> Superblock:
        """The same, to be written as a newer copy."""
        return replace(self, generation=generation)


def decode(block: Buffer) -> Superblock | None:
    """A superblock, or None when the block holds no good one of this version."""
    view = memoryview(block)
    if len(view) != SUPERBLOCK_BYTES or bytes(view[:8]) != MAGIC:
        return None
    if crc32c(view[:_CRC_OFFSET]) != int.from_bytes(view[_CRC_OFFSET:], "little"):
        return None
    core = _CORE.unpack_from(view)
    if core[1] != VERSION or core[7] != BLOCK_BYTES:
        return None
    volume_count, epoch_count, mirror_count = core[22:25]
    if volume_count > VOLUMES_MAX or epoch_count > EPOCHS_MAX or mirror_count > MIRRORS_MAX:
        return None
    if not core[6] or core[6] % BLOCK_BYTES:
        return None
    try:
        return Superblock(
            flags=Flag(core[2]),
            group_id=core[3],
            generation=core[4],
            ring_offset=core[5],
            ring_bytes=core[6],
            role=Role(core[8]),
            epoch=core[9],
            reign=core[10],
            checkpoint_lsn=Lsn(core[11]),
            checkpoint_sequence=SequenceNumber(core[12]),
            durable_lsn=Lsn(core[13]),
            durable_sequence=SequenceNumber(core[14]),
            tail=Position(Lsn(core[15]), SequenceNumber(core[16]), core[17]),
            bitmap_offset=core[18],
            bitmap_pages=core[19],
            bitmap_slots=core[20],
            extent_bytes=core[21],
            restored_marker=RestoredMarker(SequenceNumber(core[25]), core[26], _string(core[27])),
            primary=_string(core[28]),
            copy_after=SequenceNumber(core[29]),
            volumes=tuple(_volumes(view, volume_count)),
            epochs=tuple(
                EpochStart.decode(view[start : start + EpochStart.SIZE])
                for start in range(
                    _EPOCHS_OFFSET, _EPOCHS_OFFSET + epoch_count * EpochStart.SIZE, EpochStart.SIZE
                )
            ),
            mirrors=tuple(_mirrors(view, mirror_count)),
        )
    except ValueError:
        return None


def newest(copies: list[Superblock | None]) -> Superblock | None:
    """The good copy with the highest generation."""
    return max((copy for copy in copies if copy), key=lambda copy: copy.generation, default=None)


def _volumes(view: memoryview, count: int) -> list[VolumeEntry]:
    entries = []
    for index in range(count):
        number, block_size, size, first_page, pages, name = _VOLUME.unpack_from(
            view, _VOLUMES_OFFSET + index * _VOLUME.size
        )
        entries.append(VolumeEntry(number, _string(name), size, block_size, first_page, pages))
    return entries


def _mirrors(view: memoryview, count: int) -> list[MirrorEntry]:
    entries = []
    for index in range(count):
        name, state, slot, *sequences = _MIRROR.unpack_from(view, _MIRRORS_OFFSET + index * _MIRROR.size)
        entries.append(
            MirrorEntry(_string(name), MirrorState(state), slot, *(SequenceNumber(s) for s in sequences))
        )
    return entries


def _text(text: str) -> bytes:
    """At most 64 bytes, and no piece of a character: a marker's name may be a peer's, of any length."""
    return text.encode()[:64].decode(errors="ignore").encode()


def _string(raw: bytes) -> str:
    return raw.rstrip(b"\0").decode()
