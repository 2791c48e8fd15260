"""Packs and records of the journal volume, version 1. Pure: bytes in, values out.

A pack is what one turn of the loop appends with one pwritev: one header block of 4096 bytes, then the data of
its records, filled up to a multiple of 4096. All numbers are little-endian.

Header block:

======  ====  ==============================================================================================
offset  size  field
======  ====  ==============================================================================================
0       8     magic ``REPLPACK`` (a pad that fills the end of the ring: ``REPLPADD``)
8       2     version, 1
10      2     number of records n (pad: 0)
12      4     length of the data after the header block, without the filling, in bytes
16      16    group id
32      8     epoch number
40      8     reign: a random number drawn when the epoch began; tells apart two epochs with one number
48      8     sequence number of the first record (pad: of the next record)
56      8     time of the primary's clock, nanoseconds since 1970
64      32    chain digest of the previous pack
96      8     LSN of this pack                           -- from here to 128: local to one journal volume
104     8     durable mark: every pack of this volume with a smaller LSN was durable when this was written
112     8     pad only: length of the pad with its header block, in bytes
120     4     zero
124     4     CRC-32C of bytes 0 to 128 + 32 n of the header block, with this field as zero
128     32 n  record descriptors
======  ====  ==============================================================================================

Record descriptor:

======  ====  ==============================================================================================
offset  size  field
======  ====  ==============================================================================================
0       1     type (`RecordType`)
1       1     flags (`FLAG_UNMAP`)
2       2     volume id; 0 for records that belong to the whole group
4       4     length of the record's data in bytes
8       8     offset on the volume, bytes
16      8     length on the volume, bytes
24      4     offset of the data, counted from the start of the pack
28      4     CRC-32C of the data
======  ====  ==============================================================================================

The chain digest of a pack is SHA-256 over bytes 0 to 96 of its header block followed by its descriptors. It
does not cover the local part, so a pack has the same digest in every journal volume that holds it.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple, NewType

from target.checksum import crc32c
from target.errors import IntegrityError
from target.volume import Buffer

Lsn = NewType("Lsn", int)
"""Byte position in one journal volume; it only grows. Place in the ring: LSN modulo ring size."""

SequenceNumber = NewType("SequenceNumber", int)
"""Counts records; the same at every site. The first record of a group is 1; 0 is 'nothing yet'."""

VERSION = 1
BLOCK_BYTES = 4096
PACK_MAGIC = b"REPLPACK"
PAD_MAGIC = b"REPLPADD"
RECORDS_PER_PACK_MAX = (BLOCK_BYTES - 128) // 32
PACK_DATA_BYTES_MAX = 16 << 20
NO_DIGEST = bytes(32)
"""The 'previous digest' of a group's first pack."""

FLAG_UNMAP = 0x01
"""On ZERO: the initiator deallocated the range instead of writing zeros; both read as zeros."""

_FIXED = struct.Struct("<8sHHI16sQQQQ32sQQQII")
_LOCAL = struct.Struct("<QQQII")
_DESCRIPTOR = struct.Struct("<BBHIQQII")
_MARKER = struct.Struct("<BxxxxxxxQ")
_EPOCH = struct.Struct("<QQQQQ32sQ")
_LOCAL_OFFSET = 96
_DESCRIPTORS_OFFSET = 128
_CRC_OFFSET = 124


class RecordType(IntEnum):
    """What a record says about the sequence."""

    UPDATE = 1
    """A host's write: data."""
    ZERO = 2
    """A host made a range read as zeros: no data."""
    BASE = 3
    """The content of an extent at this point of the sequence: data."""
    BASE_ZERO = 4
    """The extent holds zeros at this point: no data."""
    MARKER = 5
    """A named point common to all volumes; data: kind (1), zeros (7), time in ns (8), name in UTF-8."""
    VERIFY = 6
    """SHA-256 of an extent's content at this point (32 bytes of data)."""
    EPOCH = 7
    """First record of an epoch; data: `EpochStart`, 80 bytes."""
    GROW = 8
    """The volume is larger from here on: the range behind its former end, which holds zeros; no data."""


RESTORABLE = frozenset((RecordType.UPDATE, RecordType.ZERO, RecordType.BASE, RecordType.BASE_ZERO))

COPIED = frozenset((RecordType.BASE, RecordType.BASE_ZERO, RecordType.VERIFY))
"""Records that a primary makes from its own volumes, for its mirrors."""


class MarkerKind(IntEnum):
    """Why a marker was set."""

    HEARTBEAT = 0
    OPERATOR = 1
    COPY_COMPLETE = 2
    """The base copy for the mirror it names is complete: from here on that mirror is consistent."""
    SPLIT = 3


class Descriptor(NamedTuple):
    """One record, without its data. A plain tuple, because millions are made."""

    type: int
    flags: int
    volume: int
    data_length: int
    offset: int
    length: int
    data_offset: int
    crc: int


@dataclass(frozen=True, slots=True)
class Marker:
    """The data of a MARKER record."""

    kind: MarkerKind
    time_ns: int
    name: str

    def encode(self) -> bytes:
        return _MARKER.pack(self.kind, self.time_ns) + self.name.encode()

    @classmethod
    def decode(cls, data: Buffer) -> Marker:
        """Raises IntegrityError when `data` is no marker."""
        try:
            kind, time_ns = _MARKER.unpack_from(data)
            return cls(MarkerKind(kind), time_ns, bytes(data[_MARKER.size :]).decode())
        except (struct.error, ValueError) as error:
            raise IntegrityError(f"a marker record cannot be decoded: {error}") from error


@dataclass(frozen=True, slots=True)
class EpochStart:
    """One reign of one primary: which epoch, and where it left its parent's history."""

    epoch: int
    reign: int
    parent_epoch: int
    parent_reign: int
    fork_sequence: SequenceNumber
    fork_digest: bytes
    time_ns: int

    SIZE = _EPOCH.size

    def encode(self) -> bytes:
        return _EPOCH.pack(
            self.epoch,
            self.reign,
            self.parent_epoch,
            self.parent_reign,
            self.fork_sequence,
            self.fork_digest,
            self.time_ns,
        )

    @classmethod
    def decode(cls, data: Buffer) -> EpochStart:
        """Raises IntegrityError when `data` is not 80 bytes of an epoch start."""
        try:
            return cls(*_EPOCH.unpack(data))
        except struct.error as error:
            raise IntegrityError(f"an epoch record cannot be decoded: {error}") from error


class PackHeader(NamedTuple):
    """A decoded header block. `raw` is its used part, as it stands on the medium.

    A plain tuple, like `Descriptor`: with one write outstanding there is a pack for every write.
    """

    record_count: int
    data_length: int
    group_id: bytes
    epoch: int
    reign: int
    first_sequence: SequenceNumber
    time_ns: int
    previous_digest: bytes
    lsn: Lsn
    durable_lsn: Lsn
    pad_length: int
    raw: bytes

    @property
    def is_pad(self) -> bool:
        return self.record_count == 0

    @property
    def total_length(self) -> int:
        """Bytes of the ring the pack takes, header block and filling included."""
        if self.is_pad:
            return self.pad_length
        return BLOCK_BYTES + round_up(self.data_length)

    @property
    def last_sequence(self) -> SequenceNumber:
        return SequenceNumber(self.first_sequence + self.record_count - 1)

    @property
    def digest(self) -> bytes:
        """The chain digest that the next pack names."""
        return chain_digest(self.raw)

    def descriptors(self) -> Iterator[Descriptor]:
        """The records, in sequence order."""
        return map(Descriptor._make, self.rows())

    def rows(self) -> Iterator[tuple[int, int, int, int, int, int, int, int]]:
        """The same as bare tuples, for the hot path."""
        return _DESCRIPTOR.iter_unpack(self.raw[_DESCRIPTORS_OFFSET:])


def round_up(length: int) -> int:
    """To a multiple of the journal's block size."""
    return (length + BLOCK_BYTES - 1) & ~(BLOCK_BYTES - 1)


def chain_digest(raw_header: Buffer) -> bytes:
    """SHA-256 of the part of a header that is the same at every site."""
    view = memoryview(raw_header)
    digest = hashlib.sha256(view[:_LOCAL_OFFSET])
    digest.update(view[_DESCRIPTORS_OFFSET:])
    return digest.digest()


def describe(
    record_type: int, flags: int, volume: int, offset: int, length: int, data: Buffer, data_offset: int
) -> bytes:
    """Encode one descriptor; `data` is the record's data or b''."""
    return _DESCRIPTOR.pack(
        record_type, flags, volume, len(data), offset, length, data_offset, crc32c(data) if data else 0
    )


def encode_header(
    *,
    group_id: bytes,
    epoch: int,
    reign: int,
    first_sequence: int,
    time_ns: int,
    previous_digest: bytes,
    lsn: int,
    durable_lsn: int,
    descriptors: Sequence[bytes],
    data_length: int,
) -> bytes:
    """The used part of a header block (128 + 32 n bytes); the caller fills up to 4096."""
    fixed = _FIXED.pack(
        PACK_MAGIC,
        VERSION,
        len(descriptors),
        data_length,
        group_id,
        epoch,
        reign,
        first_sequence,
        time_ns,
        previous_digest,
        lsn,
        durable_lsn,
        0,
        0,
        0,
    )
    return _sealed(bytearray(b"".join((fixed, *descriptors))))


def encode_pad(
    *, group_id: bytes, epoch: int, reign: int, next_sequence: int, lsn: int, durable_lsn: int, length: int
) -> bytes:
    """A pad's header. Pads belong to one ring and are not part of the chain."""
    return _sealed(
        bytearray(
            _FIXED.pack(
                PAD_MAGIC,
                VERSION,
                0,
                0,
                group_id,
                epoch,
                reign,
                next_sequence,
                0,
                NO_DIGEST,
                lsn,
                durable_lsn,
                length,
                0,
                0,
            )
        )
    )


def relocate(header: PackHeader, lsn: int, durable_lsn: int) -> bytes:
    """The same pack as it stands in another journal volume: only the local part differs."""
    raw = bytearray(header.raw)
    _LOCAL.pack_into(raw, _LOCAL_OFFSET, lsn, durable_lsn, 0, 0, 0)
    return _sealed(raw)


def relocated(header: PackHeader, lsn: int, durable_lsn: int) -> PackHeader:
    """`relocate`, as a value."""
    raw = relocate(header, lsn, durable_lsn)
    return header._replace(lsn=Lsn(lsn), durable_lsn=Lsn(durable_lsn), raw=raw)


def decode_header(block: Buffer) -> PackHeader | None:
    """The header that starts `block`, or None when there is none whose own CRC is right.

    Torn, foreign or never written blocks all give None: what that means is for `recovery` to decide.
    """
    if len(block) < BLOCK_BYTES:
        return None
    view = memoryview(block)
    (
        magic,
        version,
        count,
        data_length,
        group_id,
        epoch,
        reign,
        first_sequence,
        time_ns,
        previous_digest,
        lsn,
        durable_lsn,
        pad_length,
        _,
        crc,
    ) = _FIXED.unpack_from(view)
    if version != VERSION or count > RECORDS_PER_PACK_MAX or data_length > PACK_DATA_BYTES_MAX:
        return None
    if magic == PACK_MAGIC:
        if count == 0 or pad_length:
            return None
    elif magic == PAD_MAGIC:
        if count or data_length or pad_length < BLOCK_BYTES or pad_length % BLOCK_BYTES:
            return None
    else:
        return None
    raw = bytes(view[: _DESCRIPTORS_OFFSET + _DESCRIPTOR.size * count])
    if _seal(raw) != crc:
        return None
    return PackHeader(
        count,
        data_length,
        group_id,
        epoch,
        reign,
        SequenceNumber(first_sequence),
        time_ns,
        previous_digest,
        Lsn(lsn),
        Lsn(durable_lsn),
        pad_length,
        raw,
    )


def check_data(header: PackHeader, pack: Buffer) -> int | None:
    """Check every record's data CRC in a whole pack; the index of the first bad record, or None."""
    view = memoryview(pack)
    end = BLOCK_BYTES + header.data_length
    for index, (_, _, _, length, _, _, start, crc) in enumerate(header.rows()):
        if length and (
            start < BLOCK_BYTES or start + length > end or crc32c(view[start : start + length]) != crc
        ):
            return index
    return None


def _seal(raw: Buffer) -> int:
    view = memoryview(raw)
    return crc32c(view[_DESCRIPTORS_OFFSET:], crc32c(b"\0\0\0\0", crc32c(view[:_CRC_OFFSET])))


def _sealed(raw: bytearray) -> bytes:
    raw[_CRC_OFFSET:_DESCRIPTORS_OFFSET] = _seal(raw).to_bytes(4, "little")
    return bytes(raw)
