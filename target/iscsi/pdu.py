"""iSCSI PDUs: the codec that target and initiator share (RFC 7143 section 11). No I/O.

Every PDU starts with a basic header segment (BHS) of 48 bytes, big-endian; all share its first eight bytes
and the initiator task tag:

    byte   0     1 | I (immediate delivery) | opcode (6 bits)
    byte   1     F (final) | opcode-specific flags
    bytes  2-3   opcode-specific
    byte   4     TotalAHSLength, in words of 4 bytes
    bytes  5-7   DataSegmentLength, in bytes, without padding
    bytes  8-15  LUN or opcode-specific
    bytes 16-19  InitiatorTaskTag
    bytes 20-47  opcode-specific

Behind it: AHS (TotalAHSLength x 4), HeaderDigest (4, when negotiated), the data segment padded to 4,
DataDigest (4, when negotiated and the segment is not empty). Digests are CRC-32C, sent least significant
byte first.

The class of each opcode, in `requests` and `responses`, carries the table of its own bytes. `layout` leaves
out byte 0 and bytes 4-7, which `encode` fills in, and yields the fields in the order in which the class
declares them. Sessions read and write the PDUs of the hot path (SCSI Command, SCSI Response, Data-In,
Data-Out) with the `HOT_` structures instead, which are the same bytes in one call;
`tests/unit/iscsi/test_pdu.py` holds them equal.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, fields
from enum import IntEnum
from typing import Any, ClassVar, TypeVar

from target.checksum import crc32c
from target.errors import PeerError
from target.volume import Buffer

BHS_BYTES = 48
DIGEST_BYTES = 4
RESERVED_TAG = 0xFFFFFFFF
"""The value of a task tag or target transfer tag that means *none*."""

IMMEDIATE = 0x40
FINAL = 0x80
PADDING = (b"", b"\0\0\0", b"\0\0", b"\0")
"""Indexed by length modulo 4: what brings a data segment to a multiple of four bytes."""

# opcode, flags, bytes 2-3, lengths, lun, itt, edtl, cmd_sn, exp_stat_sn, cdb
HOT_SCSI_COMMAND = struct.Struct(">BBHIQIIII16s")
# opcode, flags, response, status, lengths, (8 reserved), itt, snack, stat_sn, exp_cmd_sn, max_cmd_sn,
# exp_data_sn, bidirectional residual, residual
HOT_SCSI_RESPONSE = struct.Struct(">BBBBIQIIIIIIII")
# opcode, flags, reserved, status, lengths, lun, itt, ttt, stat_sn, exp_cmd_sn, max_cmd_sn, data_sn, offset,
# residual
HOT_DATA_IN = struct.Struct(">BBBBIQIIIIIIII")
# opcode, flags, bytes 2-3, lengths, lun, itt, ttt, (4 reserved), exp_stat_sn, (4 reserved), data_sn,
# offset, (4 reserved)
HOT_DATA_OUT = struct.Struct(">BBHIQIIIIIIII")


class ProtocolError(PeerError):
    """The peer sent what RFC 7143 does not allow. The connection cannot go on."""


class Opcode(IntEnum):
    """RFC 7143 11.2.1.2."""

    NOP_OUT = 0x00
    SCSI_COMMAND = 0x01
    TASK_MANAGEMENT_REQUEST = 0x02
    LOGIN_REQUEST = 0x03
    TEXT_REQUEST = 0x04
    DATA_OUT = 0x05
    LOGOUT_REQUEST = 0x06
    SNACK_REQUEST = 0x10
    NOP_IN = 0x20
    SCSI_RESPONSE = 0x21
    TASK_MANAGEMENT_RESPONSE = 0x22
    LOGIN_RESPONSE = 0x23
    TEXT_RESPONSE = 0x24
    DATA_IN = 0x25
    LOGOUT_RESPONSE = 0x26
    R2T = 0x31
    ASYNC_MESSAGE = 0x32
    REJECT = 0x3F


@dataclass(frozen=True, slots=True)
class Pdu:
    """Any PDU's header. Subclasses declare the fields that `layout` packs, in order."""

    opcode: ClassVar[Opcode]
    layout: ClassVar[struct.Struct]

    def encode(self, *, data_length: int = 0, ahs: bytes = b"", immediate: bool = False) -> bytes:
        """The BHS, and the AHS behind it; the data segment is the sender's business."""
        header = bytearray(BHS_BYTES)
        self.layout.pack_into(header, 0, *(getattr(self, field.name) for field in fields(self)))
        header[0] = self.opcode | (IMMEDIATE if immediate else 0)
        header[4:8] = ((len(ahs) // 4) << 24 | data_length).to_bytes(4, "big")
        return bytes(header) + ahs

    @classmethod
    def decode(cls: type[P], header: Buffer) -> P:
        """Read the fields of a BHS whose opcode is known to be this one."""
        fields: tuple[Any, ...] = cls.layout.unpack_from(header)
        return cls(*fields)


P = TypeVar("P", bound=Pdu)


def frame_bytes(lengths: int, header_digest: int, data_digest: int) -> int:
    """The size of a whole PDU from bytes 4-7 of its header; digests are 0 or DIGEST_BYTES."""
    data_length = lengths & 0xFFFFFF
    size = BHS_BYTES + (lengths >> 24) * 4 + header_digest + (data_length + 3 & ~3)
    return size + data_digest if data_length else size


def digest(*parts: Buffer) -> bytes:
    """CRC-32C over the parts, as it goes over the wire."""
    value = 0
    for part in parts:
        value = crc32c(part, value)
    return value.to_bytes(4, "little")


def encode_ahs(kind: int, specific: bytes) -> bytes:
    """One additional header segment (RFC 7143 11.2.2): AHSLength (2), AHSType, AHS-Specific, padding."""
    body = len(specific).to_bytes(2, "big") + bytes([kind]) + specific
    return body + PADDING[len(body) & 3]


def decode_ahs(raw: Buffer) -> dict[int, bytes]:
    """AHSType -> AHS-Specific. Type 1 begins with a reserved byte before the rest of the CDB."""
    segments: dict[int, bytes] = {}
    position = 0
    while position < len(raw):
        if position + 4 > len(raw):
            raise ProtocolError("an additional header segment is shorter than its own header")
        length = int.from_bytes(raw[position : position + 2], "big")
        end = position + 3 + length
        if end > len(raw):
            raise ProtocolError(f"an additional header segment of {length} bytes ends behind the header")
        kind = raw[position + 2] & 0x3F
        if kind in segments:
            raise ProtocolError(f"two additional header segments of type {kind}")
        segments[kind] = bytes(raw[position + 3 : end])
        position = end + 3 & ~3
    return segments
