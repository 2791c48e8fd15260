"""iSCSI PDUs: the codec that target and initiator share (RFC 7143 section 11). No I/O.

Every PDU starts with a basic header segment (BHS) of 48 bytes, big-endian; all share its first eight bytes and the
initiator task tag:

    byte   0     1 | I (immediate delivery) | opcode (6 bits)
    byte   1     F (final) | opcode-specific flags
    bytes  2-3   opcode-specific
    byte   4     TotalAHSLength, in words of 4 bytes
    bytes  5-7   DataSegmentLength, in bytes, without padding
    bytes  8-15  LUN or opcode-specific
    bytes 16-19  InitiatorTaskTag
    bytes 20-47  opcode-specific

Behind it: AHS (TotalAHSLength x 4), HeaderDigest (4, when negotiated), the data segment padded to 4, DataDigest (4, when
negotiated and the segment is not empty). Digests are CRC-32C, sent least significant byte first.

The class of each opcode carries the table of its own bytes. `layout` leaves out byte 0 and bytes 4-7, which `encode`
fills in, and yields the fields in the order in which the class declares them. Sessions read and write the PDUs
of the hot path (SCSI Command, SCSI Response, Data-In, Data-Out) with the `HOT_` structures instead, which are the same bytes
in one call; `tests/unit/iscsi/test_pdu.py` holds them equal.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, fields
from enum import IntEnum
from typing import Any, ClassVar, TypeVar

from crc32c import crc32c

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
# opcode, flags, response, status, lengths, (8 reserved), itt, snack, stat_sn, exp_cmd_sn, max_cmd_sn, exp_data_sn,
# bidirectional residual, residual
HOT_SCSI_RESPONSE = struct.Struct(">BBBBIQIIIIIIII")
# opcode, flags, reserved, status, lengths, lun, itt, ttt, stat_sn, exp_cmd_sn, max_cmd_sn, data_sn, offset, residual
HOT_DATA_IN = struct.Struct(">BBBBIQIIIIIIII")
# opcode, flags, bytes 2-3, lengths, lun, itt, ttt, (4 reserved), exp_stat_sn, (4 reserved), data_sn, offset, (4 reserved)
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


@dataclass(frozen=True, slots=True)
class ScsiCommandRequest(Pdu):
    """RFC 7143 11.3.

    1       F | R (read) | W (write) | 2 reserved | ATTR (3 bits)
    8-15    LUN
    16-19   InitiatorTaskTag
    20-23   ExpectedDataTransferLength
    24-27   CmdSN
    28-31   ExpStatSN
    32-47   CDB, zero-padded; more of it in an AHS of type 1
    """

    opcode = Opcode.SCSI_COMMAND
    layout = struct.Struct(">xB6xQIIII16s")
    READ: ClassVar[int] = 0x40
    WRITE: ClassVar[int] = 0x20

    flags: int
    lun: int
    initiator_task_tag: int
    expected_data_transfer_length: int
    cmd_sn: int
    exp_stat_sn: int
    cdb: bytes


@dataclass(frozen=True, slots=True)
class ScsiResponse(Pdu):
    """RFC 7143 11.4. Data segment: SenseLength (2 bytes), sense data.

    1       1 | 2 reserved | o u (bidirectional) | O (overflow) | U (underflow) | reserved
    2       Response (0: command completed at target, 1: target failure)
    3       Status (SAM)
    16-19   InitiatorTaskTag
    20-23   SNACK Tag
    24-27   StatSN
    28-31   ExpCmdSN
    32-35   MaxCmdSN
    36-39   ExpDataSN
    40-43   Bidirectional read residual count
    44-47   Residual count
    """

    opcode = Opcode.SCSI_RESPONSE
    layout = struct.Struct(">xBBB4x8xIIIIIIII")
    OVERFLOW: ClassVar[int] = 0x04
    UNDERFLOW: ClassVar[int] = 0x02

    flags: int
    response: int
    status: int
    initiator_task_tag: int
    snack_tag: int
    stat_sn: int
    exp_cmd_sn: int
    max_cmd_sn: int
    exp_data_sn: int
    bidirectional_residual_count: int
    residual_count: int


@dataclass(frozen=True, slots=True)
class TaskManagementRequest(Pdu):
    """RFC 7143 11.5.

    1       1 | function (7 bits)
    8-15    LUN
    16-19   InitiatorTaskTag
    20-23   ReferencedTaskTag
    24-27   CmdSN
    28-31   ExpStatSN
    32-35   RefCmdSN
    36-39   ExpDataSN
    """

    opcode = Opcode.TASK_MANAGEMENT_REQUEST
    layout = struct.Struct(">xB6xQIIIIII8x")

    function: int
    lun: int
    initiator_task_tag: int
    referenced_task_tag: int
    cmd_sn: int
    exp_stat_sn: int
    ref_cmd_sn: int
    exp_data_sn: int


@dataclass(frozen=True, slots=True)
class TaskManagementResponse(Pdu):
    """RFC 7143 11.6.

    1       1 | 7 reserved
    2       Response
    16-19   InitiatorTaskTag
    24-27   StatSN
    28-31   ExpCmdSN
    32-35   MaxCmdSN
    """

    opcode = Opcode.TASK_MANAGEMENT_RESPONSE
    layout = struct.Struct(">xBB5x8xI4xIII12x")

    flags: int
    response: int
    initiator_task_tag: int
    stat_sn: int
    exp_cmd_sn: int
    max_cmd_sn: int


@dataclass(frozen=True, slots=True)
class LoginRequest(Pdu):
    """RFC 7143 11.12. Data segment: text keys.

    1       T (transit) | C (continue) | 2 reserved | CSG (2 bits) | NSG (2 bits)
    2       Version-max
    3       Version-min
    8-13    ISID
    14-15   TSIH
    16-19   InitiatorTaskTag
    20-21   CID
    24-27   CmdSN
    28-31   ExpStatSN
    """

    opcode = Opcode.LOGIN_REQUEST
    layout = struct.Struct(">xBBB4x6sHIH2xII16x")
    TRANSIT: ClassVar[int] = 0x80
    CONTINUE: ClassVar[int] = 0x40

    flags: int
    version_max: int
    version_min: int
    isid: bytes
    tsih: int
    initiator_task_tag: int
    cid: int
    cmd_sn: int
    exp_stat_sn: int

    @property
    def transit(self) -> bool:
        return bool(self.flags & self.TRANSIT)

    @property
    def continues(self) -> bool:
        return bool(self.flags & self.CONTINUE)

    @property
    def current_stage(self) -> int:
        return self.flags >> 2 & 3

    @property
    def next_stage(self) -> int:
        return self.flags & 3


@dataclass(frozen=True, slots=True)
class LoginResponse(Pdu):
    """RFC 7143 11.13. Data segment: text keys.

    1       T | C | 2 reserved | CSG | NSG
    2       Version-max
    3       Version-active
    8-13    ISID
    14-15   TSIH
    16-19   InitiatorTaskTag
    24-27   StatSN
    28-31   ExpCmdSN
    32-35   MaxCmdSN
    36      Status-Class
    37      Status-Detail
    """

    opcode = Opcode.LOGIN_RESPONSE
    layout = struct.Struct(">xBBB4x6sHI4xIIIH10x")

    flags: int
    version_max: int
    version_active: int
    isid: bytes
    tsih: int
    initiator_task_tag: int
    stat_sn: int
    exp_cmd_sn: int
    max_cmd_sn: int
    status: int
    """Status-Class in the high byte, Status-Detail in the low one."""

    @property
    def transit(self) -> bool:
        return bool(self.flags & LoginRequest.TRANSIT)

    @property
    def continues(self) -> bool:
        return bool(self.flags & LoginRequest.CONTINUE)

    @property
    def next_stage(self) -> int:
        return self.flags & 3


@dataclass(frozen=True, slots=True)
class TextRequest(Pdu):
    """RFC 7143 11.10. Data segment: text keys.

    1       F | C (continue) | 6 reserved
    8-15    LUN
    16-19   InitiatorTaskTag
    20-23   TargetTransferTag
    24-27   CmdSN
    28-31   ExpStatSN
    """

    opcode = Opcode.TEXT_REQUEST
    layout = struct.Struct(">xB6xQIIII16x")
    CONTINUE: ClassVar[int] = 0x40

    flags: int
    lun: int
    initiator_task_tag: int
    target_transfer_tag: int
    cmd_sn: int
    exp_stat_sn: int


@dataclass(frozen=True, slots=True)
class TextResponse(Pdu):
    """RFC 7143 11.11. Data segment: text keys.

    1       F | C | 6 reserved
    8-15    LUN
    16-19   InitiatorTaskTag
    20-23   TargetTransferTag
    24-27   StatSN
    28-31   ExpCmdSN
    32-35   MaxCmdSN
    """

    opcode = Opcode.TEXT_RESPONSE
    layout = struct.Struct(">xB6xQIIIII12x")

    flags: int
    lun: int
    initiator_task_tag: int
    target_transfer_tag: int
    stat_sn: int
    exp_cmd_sn: int
    max_cmd_sn: int


@dataclass(frozen=True, slots=True)
class DataOut(Pdu):
    """RFC 7143 11.7.

    1       F | 7 reserved
    8-15    LUN (with a TargetTransferTag)
    16-19   InitiatorTaskTag
    20-23   TargetTransferTag
    28-31   ExpStatSN
    36-39   DataSN
    40-43   Buffer Offset
    """

    opcode = Opcode.DATA_OUT
    layout = struct.Struct(">xB6xQII4xI4xII4x")

    flags: int
    lun: int
    initiator_task_tag: int
    target_transfer_tag: int
    exp_stat_sn: int
    data_sn: int
    buffer_offset: int


@dataclass(frozen=True, slots=True)
class DataIn(Pdu):
    """RFC 7143 11.7.

    1       F | A (acknowledge) | 3 reserved | O | U | S (status)
    3       Status, with S
    8-15    LUN
    16-19   InitiatorTaskTag
    20-23   TargetTransferTag
    24-27   StatSN, with S
    28-31   ExpCmdSN
    32-35   MaxCmdSN
    36-39   DataSN
    40-43   Buffer Offset
    44-47   Residual count, with S
    """

    opcode = Opcode.DATA_IN
    layout = struct.Struct(">xBxB4xQIIIIIIII")
    STATUS: ClassVar[int] = 0x01
    ACKNOWLEDGE: ClassVar[int] = 0x40

    flags: int
    status: int
    lun: int
    initiator_task_tag: int
    target_transfer_tag: int
    stat_sn: int
    exp_cmd_sn: int
    max_cmd_sn: int
    data_sn: int
    buffer_offset: int
    residual_count: int


@dataclass(frozen=True, slots=True)
class R2T(Pdu):
    """RFC 7143 11.8.

    1       1 | 7 reserved
    8-15    LUN
    16-19   InitiatorTaskTag
    20-23   TargetTransferTag
    24-27   StatSN (the next one; not advanced)
    28-31   ExpCmdSN
    32-35   MaxCmdSN
    36-39   R2TSN
    40-43   Buffer Offset
    44-47   Desired Data Transfer Length
    """

    opcode = Opcode.R2T
    layout = struct.Struct(">xB6xQIIIIIIII")

    flags: int
    lun: int
    initiator_task_tag: int
    target_transfer_tag: int
    stat_sn: int
    exp_cmd_sn: int
    max_cmd_sn: int
    r2t_sn: int
    buffer_offset: int
    desired_data_transfer_length: int


@dataclass(frozen=True, slots=True)
class NopOut(Pdu):
    """RFC 7143 11.18. Data segment: ping data.

    1       1 | 7 reserved
    8-15    LUN
    16-19   InitiatorTaskTag
    20-23   TargetTransferTag
    24-27   CmdSN
    28-31   ExpStatSN
    """

    opcode = Opcode.NOP_OUT
    layout = struct.Struct(">xB6xQIIII16x")

    flags: int
    lun: int
    initiator_task_tag: int
    target_transfer_tag: int
    cmd_sn: int
    exp_stat_sn: int


@dataclass(frozen=True, slots=True)
class NopIn(Pdu):
    """RFC 7143 11.19. Data segment: the ping data returned.

    1       1 | 7 reserved
    8-15    LUN
    16-19   InitiatorTaskTag
    20-23   TargetTransferTag
    24-27   StatSN
    28-31   ExpCmdSN
    32-35   MaxCmdSN
    """

    opcode = Opcode.NOP_IN
    layout = struct.Struct(">xB6xQIIIII12x")

    flags: int
    lun: int
    initiator_task_tag: int
    target_transfer_tag: int
    stat_sn: int
    exp_cmd_sn: int
    max_cmd_sn: int


@dataclass(frozen=True, slots=True)
class LogoutRequest(Pdu):
    """RFC 7143 11.14.

    1       1 | reason (7 bits)
    16-19   InitiatorTaskTag
    20-21   CID
    24-27   CmdSN
    28-31   ExpStatSN
    """

    opcode = Opcode.LOGOUT_REQUEST
    layout = struct.Struct(">xB6x8xIH2xII16x")

    flags: int
    initiator_task_tag: int
    cid: int
    cmd_sn: int
    exp_stat_sn: int


@dataclass(frozen=True, slots=True)
class LogoutResponse(Pdu):
    """RFC 7143 11.15.

    1       1 | 7 reserved
    2       Response
    16-19   InitiatorTaskTag
    24-27   StatSN
    28-31   ExpCmdSN
    32-35   MaxCmdSN
    40-41   Time2Wait
    42-43   Time2Retain
    """

    opcode = Opcode.LOGOUT_RESPONSE
    layout = struct.Struct(">xBB5x8xI4xIII4xHH4x")

    flags: int
    response: int
    initiator_task_tag: int
    stat_sn: int
    exp_cmd_sn: int
    max_cmd_sn: int
    time2wait_seconds: int
    time2retain_seconds: int


@dataclass(frozen=True, slots=True)
class SnackRequest(Pdu):
    """RFC 7143 11.16. Recognised so that it can be rejected: it needs ErrorRecoveryLevel 1.

    1       1 | 3 reserved | type (4 bits)
    8-15    LUN
    16-19   InitiatorTaskTag
    20-23   TargetTransferTag or SNACK Tag
    28-31   ExpStatSN
    40-43   BegRun
    44-47   RunLength
    """

    opcode = Opcode.SNACK_REQUEST
    layout = struct.Struct(">xB6xQII4xI8xII")

    flags: int
    lun: int
    initiator_task_tag: int
    target_transfer_tag: int
    exp_stat_sn: int
    beg_run: int
    run_length: int


@dataclass(frozen=True, slots=True)
class AsyncMessage(Pdu):
    """RFC 7143 11.9.

    1       1 | 7 reserved
    8-15    LUN
    16-19   0xffffffff
    24-27   StatSN
    28-31   ExpCmdSN
    32-35   MaxCmdSN
    36      AsyncEvent
    37      AsyncVCode
    38-43   Parameter1, Parameter2, Parameter3
    """

    opcode = Opcode.ASYNC_MESSAGE
    layout = struct.Struct(">xB6xQI4xIIIBBHHH4x")

    flags: int
    lun: int
    initiator_task_tag: int
    stat_sn: int
    exp_cmd_sn: int
    max_cmd_sn: int
    async_event: int
    async_vcode: int
    parameter1: int
    parameter2: int
    parameter3: int


@dataclass(frozen=True, slots=True)
class Reject(Pdu):
    """RFC 7143 11.17. Data segment: the header of the rejected PDU.

    1       1 | 7 reserved
    2       Reason
    16-19   0xffffffff
    24-27   StatSN
    28-31   ExpCmdSN
    32-35   MaxCmdSN
    36-39   DataSN/R2TSN
    """

    opcode = Opcode.REJECT
    layout = struct.Struct(">xBB5x8xI4xIIII8x")

    flags: int
    reason: int
    initiator_task_tag: int
    stat_sn: int
    exp_cmd_sn: int
    max_cmd_sn: int
    data_sn: int


PDU_OF_OPCODE: dict[int, type[Pdu]] = {
    cls.opcode: cls
    for cls in (
        NopOut,
        ScsiCommandRequest,
        TaskManagementRequest,
        LoginRequest,
        TextRequest,
        DataOut,
        LogoutRequest,
        SnackRequest,
        NopIn,
        ScsiResponse,
        TaskManagementResponse,
        LoginResponse,
        TextResponse,
        DataIn,
        LogoutResponse,
        R2T,
        AsyncMessage,
        Reject,
    )
}


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
    """One additional header segment (RFC 7143 11.2.2): AHSLength (2 bytes), AHSType, AHS-Specific, padding."""
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
