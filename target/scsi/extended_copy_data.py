"""Parameter data of EXTENDED COPY and RECEIVE COPY RESULTS, with list identifiers of one byte (LID1). Pure.

SPC-4. Parameter list of EXTENDED COPY: a header of 16 bytes, CSCD descriptors, segment descriptors.

    0      LIST IDENTIFIER
    1      LIST ID USAGE (4-3): 00b results are held, 10b and 11b not
    2-3    length of the CSCD descriptors
    8-11   length of the segment descriptors
    12-15  length of inline data

CSCD (copy source and copy destination) descriptor E4h, 32 bytes: code set (4), association and designator
type (5), designator length (7), designator (8-27). LU ID TYPE and NUL in byte 1 are obsolete, and ignored.

Segment descriptor 02h, block to block, 28 bytes: indexes of source (4-5) and destination (6-7), blocks
(10-11), source LBA (12-19), destination LBA (20-27).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from target.scsi.sense import (
    PARAMETER_LIST_LENGTH_ERROR,
    TOO_MANY_SEGMENT_DESCRIPTORS,
    TOO_MANY_TARGET_DESCRIPTORS,
    UNSUPPORTED_SEGMENT_DESCRIPTOR_TYPE,
    UNSUPPORTED_TARGET_DESCRIPTOR_TYPE,
    Sense,
    invalid_field_in_parameter_list,
)

IDENTIFICATION, BLOCK_TO_BLOCK = 0xE4, 0x02
CSCD_MAX, SEGMENTS_MAX = 2, 8
_CSCD_BYTES, _SEGMENT_BYTES = 32, 28
_DESCRIPTORS_BYTES_MAX = CSCD_MAX * _CSCD_BYTES + SEGMENTS_MAX * _SEGMENT_BYTES
_SEGMENT_BYTES_MAX = 0xFFFF * 512
_HEADER = struct.Struct(">BBH4xII")
_SEGMENT = struct.Struct(">BBHHHxxHQQ")
_OPERATING = struct.Struct(">IB3xHHIIIIIxxHBBBB3xB")
_HOLDS_RESULTS = 0
_NAA_OF_LOGICAL_UNIT = (1, 0x03)  # binary code set; association 0, type 3


@dataclass(frozen=True, slots=True)
class Segment:
    """Copy blocks; `source` and `destination` are places in the list of CSCD descriptors."""

    source: int
    destination: int
    blocks: int
    source_lba: int
    destination_lba: int


@dataclass(frozen=True, slots=True)
class CopyList:
    """What one EXTENDED COPY is to do. A CSCD is the NAA identifier of a logical unit, or None: nowhere."""

    list_id: int
    holds_results: bool
    cscds: tuple[bytes | None, ...]
    segments: tuple[Segment, ...]


@dataclass(frozen=True, slots=True)
class CopyStatus:
    """How a copy ended."""

    good: bool
    segments: int
    kibibytes: int

    def encode(self) -> bytes:
        return struct.pack(">IBHBI", 8, 0x01 if self.good else 0x02, self.segments, 0x01, self.kibibytes)


def decode_copy_list(data: bytes) -> CopyList | Sense:
    """Everything is checked before anything is copied."""
    if len(data) < _HEADER.size:
        return PARAMETER_LIST_LENGTH_ERROR
    list_id, flags, cscd_bytes, segment_bytes, inline_bytes = _HEADER.unpack_from(data)
    if cscd_bytes + segment_bytes > _DESCRIPTORS_BYTES_MAX or inline_bytes:
        return PARAMETER_LIST_LENGTH_ERROR
    start = _HEADER.size + cscd_bytes
    if len(data) < start + segment_bytes:
        return PARAMETER_LIST_LENGTH_ERROR
    cscds = _cscds(data, _HEADER.size, start)
    if isinstance(cscds, Sense):
        return cscds
    segments = _segments(data, start, start + segment_bytes)
    if isinstance(segments, Sense):
        return segments
    return CopyList(list_id, flags >> 3 & 3 == _HOLDS_RESULTS, cscds, segments)


def _cscds(data: bytes, at: int, end: int) -> tuple[bytes | None, ...] | Sense:
    if (end - at) // _CSCD_BYTES > CSCD_MAX:
        return TOO_MANY_TARGET_DESCRIPTORS
    found: list[bytes | None] = []
    for position in range(at, end, _CSCD_BYTES):
        descriptor = data[position : position + _CSCD_BYTES]
        if descriptor[0] != IDENTIFICATION:
            return UNSUPPORTED_TARGET_DESCRIPTOR_TYPE
        if position + _CSCD_BYTES > end:
            return PARAMETER_LIST_LENGTH_ERROR
        named = (descriptor[4] & 0x0F, descriptor[5] & 0x3F) == _NAA_OF_LOGICAL_UNIT
        found.append(descriptor[8 : 8 + descriptor[7]] if named and descriptor[7] <= 20 else None)
    return tuple(found)


def _segments(data: bytes, at: int, end: int) -> tuple[Segment, ...] | Sense:
    found: list[Segment] = []
    while at < end:
        if data[at] != BLOCK_TO_BLOCK:
            return UNSUPPORTED_SEGMENT_DESCRIPTOR_TYPE
        if at + _SEGMENT_BYTES > end:
            return PARAMETER_LIST_LENGTH_ERROR
        if len(found) == SEGMENTS_MAX:
            return TOO_MANY_SEGMENT_DESCRIPTORS
        _, _, length, *fields = _SEGMENT.unpack_from(data, at)
        if length != _SEGMENT_BYTES - 4:
            return invalid_field_in_parameter_list(at + 2)
        found.append(Segment(*fields))
        at += _SEGMENT_BYTES
    return tuple(found)


def encode_operating_parameters() -> bytes:
    """RECEIVE COPY RESULTS, service action 03h."""
    codes = bytes((BLOCK_TO_BLOCK, IDENTIFICATION))
    return (
        _OPERATING.pack(
            _OPERATING.size + len(codes) - 4,
            0x01,  # SNLID: copies without a list identifier
            CSCD_MAX,
            SEGMENTS_MAX,
            _DESCRIPTORS_BYTES_MAX,
            _SEGMENT_BYTES_MAX,
            0,
            0,
            0,
            1,
            1,
            9,  # copied in units of 512 bytes
            0,
            0,
            len(codes),
        )
        + codes
    )


def third_party_copy_descriptors() -> bytes:
    """The body of VPD page 8Fh: commands (0001h), limits (0004h), descriptor types (0008h)."""
    commands = bytes((0x83, 1, 0x00, 0x84, 2, 0x00, 0x03))
    types = bytes((BLOCK_TO_BLOCK, IDENTIFICATION))
    limits = struct.pack(">4xHHII12x", CSCD_MAX, SEGMENTS_MAX, _DESCRIPTORS_BYTES_MAX, 0)
    return (
        _third_party(0x0001, bytes((len(commands),)) + commands)
        + _third_party(0x0004, limits)
        + _third_party(0x0008, bytes((len(types),)) + types)
    )


def _third_party(kind: int, body: bytes) -> bytes:
    body += bytes(-len(body) % 4)
    return struct.pack(">HH", kind, len(body)) + body
