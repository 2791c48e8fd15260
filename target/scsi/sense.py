"""Sense data: why a command ended with CHECK CONDITION.

Both sides of the wire use it: the device server makes a `Sense`, a front end encodes it, the initiator
decodes it. Pure values. SPC-4 4.5; the additional sense codes are those of its annex.

Fixed format (SPC-4 4.5.3), 18 bytes:

    0      VALID (bit 7), response code 70h current, 71h deferred
    2      sense key (bits 3-0)
    3-6    INFORMATION, when VALID
    7      additional sense length (10)
    12,13  ASC, ASCQ
    15-17  SKSV (bit 7), C/D (6), BPV (3), bit pointer (2-0), field pointer

Descriptor format (SPC-4 4.5.2), 8 bytes and descriptors: 72h current, 73h deferred; key; ASC; ASCQ; 0; 0; 0;
length.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum

from target.errors import PeerError
from target.volume import Buffer, VolumeError

_FIXED = struct.Struct(">BxBIB4xBBxBH")
_DESCRIPTOR_HEADER = struct.Struct(">BBBB3xB")
_INFORMATION_DESCRIPTOR = struct.Struct(">BBBxQ")
_SENSE_KEY_SPECIFIC_DESCRIPTOR = struct.Struct(">BBxxBHx")

_SKSV = 0x80
_IN_CDB = 0x40
_BIT_POINTER_VALID = 0x08


class SenseKey(IntEnum):
    """SPC-4 4.5.6."""

    NO_SENSE = 0x0
    RECOVERED_ERROR = 0x1
    NOT_READY = 0x2
    MEDIUM_ERROR = 0x3
    HARDWARE_ERROR = 0x4
    ILLEGAL_REQUEST = 0x5
    UNIT_ATTENTION = 0x6
    DATA_PROTECT = 0x7
    BLANK_CHECK = 0x8
    VENDOR_SPECIFIC = 0x9
    COPY_ABORTED = 0xA
    ABORTED_COMMAND = 0xB
    RESERVED = 0xC
    VOLUME_OVERFLOW = 0xD
    MISCOMPARE = 0xE
    COMPLETED = 0xF


@dataclass(frozen=True, slots=True)
class FieldPointer:
    """Which byte, and which bit at most, of the CDB or of the parameter list was wrong."""

    byte: int
    bit: int | None = None
    in_cdb: bool = True


@dataclass(frozen=True, slots=True)
class Sense:
    """Sense data as a value. `information` is an LBA or an offset, as the command's clause says."""

    key: SenseKey
    asc: int
    ascq: int
    information: int | None = None
    field_pointer: FieldPointer | None = None
    deferred: bool = False

    def encode_fixed(self) -> bytes:
        """18 bytes. An information value that needs more than 32 bits is left out, as VALID = 0."""
        information = self.information
        valid = information is not None and information <= 0xFFFFFFFF
        flags, pointer = self._sense_key_specific()
        return _FIXED.pack(
            (0x80 if valid else 0) | (0x71 if self.deferred else 0x70),
            self.key,
            information if valid and information is not None else 0,
            10,
            self.asc,
            self.ascq,
            flags,
            pointer,
        )

    def encode_descriptor(self) -> bytes:
        """8 bytes, and a descriptor each for the information and the field pointer when they are known."""
        descriptors = b""
        if self.information is not None:
            descriptors += _INFORMATION_DESCRIPTOR.pack(0x00, 0x0A, 0x80, self.information)
        if self.field_pointer is not None:
            descriptors += _SENSE_KEY_SPECIFIC_DESCRIPTOR.pack(0x02, 0x06, *self._sense_key_specific())
        code = 0x73 if self.deferred else 0x72
        return _DESCRIPTOR_HEADER.pack(code, self.key, self.asc, self.ascq, len(descriptors)) + descriptors

    def _sense_key_specific(self) -> tuple[int, int]:
        pointer = self.field_pointer
        if pointer is None:
            return 0, 0
        flags = _SKSV | (_IN_CDB if pointer.in_cdb else 0)
        if pointer.bit is not None:
            flags |= _BIT_POINTER_VALID | pointer.bit
        return flags, min(pointer.byte, 0xFFFF)

    def __str__(self) -> str:
        text = f"{self.key.name.replace('_', ' ')}: {additional_sense_text(self.asc, self.ascq)}"
        if self.field_pointer is not None:
            where = "CDB" if self.field_pointer.in_cdb else "parameter list"
            bit = "" if self.field_pointer.bit is None else f" bit {self.field_pointer.bit}"
            text += f", {where} byte {self.field_pointer.byte}{bit}"
        if self.information is not None:
            text += f", information {self.information}"
        return text


def decode_sense(data: Buffer) -> Sense:
    """Read either format, whole or cut off by an allocation length. PeerError when it is neither."""
    raw = bytes(data)
    code = raw[0] & 0x7F if raw else 0
    if code in (0x70, 0x71):
        return _decode_fixed(raw)
    if code in (0x72, 0x73):
        return _decode_descriptor(raw)
    raise PeerError(f"sense data of unknown format: {raw[:18].hex() or 'empty'}")


def _decode_fixed(raw: bytes) -> Sense:
    # A short answer is legal: what is missing reads as zero. Bytes past the stated length do
    # not count.
    length = 8 + (raw[7] if len(raw) > 7 else 0)
    first, key, information, _, asc, ascq, flags, pointer = _FIXED.unpack(
        raw[: min(length, 18)].ljust(18, b"\0")
    )
    return Sense(
        SenseKey(key & 0x0F),
        asc,
        ascq,
        information if first & 0x80 else None,
        _field_pointer(SenseKey(key & 0x0F), flags, pointer),
        first & 0x7F == 0x71,
    )


def _decode_descriptor(raw: bytes) -> Sense:
    first, key, asc, ascq, length = _DESCRIPTOR_HEADER.unpack(raw[:8].ljust(8, b"\0"))
    information: int | None = None
    pointer: FieldPointer | None = None
    position, end = 8, min(8 + length, len(raw))
    while position + 2 <= end:
        kind, size = raw[position], raw[position + 1] + 2
        body = raw[position : min(position + size, end)]
        if kind == 0x00 and len(body) >= 12 and body[2] & 0x80:
            information = int.from_bytes(body[4:12], "big")
        elif kind == 0x02 and len(body) >= 7:
            pointer = _field_pointer(SenseKey(key & 0x0F), body[4], int.from_bytes(body[5:7], "big"))
        position += size
    return Sense(SenseKey(key & 0x0F), asc, ascq, information, pointer, first & 0x7F == 0x73)


def _field_pointer(key: SenseKey, flags: int, pointer: int) -> FieldPointer | None:
    # With other keys the same bytes mean retry counts or progress.
    if key is not SenseKey.ILLEGAL_REQUEST or not flags & _SKSV:
        return None
    bit = flags & 0x07 if flags & _BIT_POINTER_VALID else None
    return FieldPointer(pointer, bit, bool(flags & _IN_CDB))


NO_SENSE = Sense(SenseKey.NO_SENSE, 0x00, 0x00)

BECOMING_READY = Sense(SenseKey.NOT_READY, 0x04, 0x01)
MEDIUM_NOT_PRESENT = Sense(SenseKey.NOT_READY, 0x3A, 0x00)
UNRECOVERED_READ_ERROR = Sense(SenseKey.MEDIUM_ERROR, 0x11, 0x00)
WRITE_ERROR = Sense(SenseKey.MEDIUM_ERROR, 0x0C, 0x00)
WRITE_PROTECTED = Sense(SenseKey.DATA_PROTECT, 0x27, 0x00)
SOFTWARE_WRITE_PROTECTED = Sense(SenseKey.DATA_PROTECT, 0x27, 0x02)
SPACE_ALLOCATION_FAILED = Sense(SenseKey.DATA_PROTECT, 0x27, 0x07)
LOGICAL_UNIT_FAILURE = Sense(SenseKey.HARDWARE_ERROR, 0x3E, 0x01)
COMMAND_ABORTED = Sense(SenseKey.ABORTED_COMMAND, 0x00, 0x00)

INVALID_COMMAND_OPERATION_CODE = Sense(SenseKey.ILLEGAL_REQUEST, 0x20, 0x00, field_pointer=FieldPointer(0))
PARAMETER_LIST_LENGTH_ERROR = Sense(SenseKey.ILLEGAL_REQUEST, 0x1A, 0x00)
LOGICAL_UNIT_NOT_SUPPORTED = Sense(SenseKey.ILLEGAL_REQUEST, 0x25, 0x00)
SAVING_PARAMETERS_NOT_SUPPORTED = Sense(SenseKey.ILLEGAL_REQUEST, 0x39, 0x00)

TOO_MANY_TARGET_DESCRIPTORS = Sense(SenseKey.ILLEGAL_REQUEST, 0x26, 0x06)
UNSUPPORTED_TARGET_DESCRIPTOR_TYPE = Sense(SenseKey.ILLEGAL_REQUEST, 0x26, 0x07)
TOO_MANY_SEGMENT_DESCRIPTORS = Sense(SenseKey.ILLEGAL_REQUEST, 0x26, 0x08)
UNSUPPORTED_SEGMENT_DESCRIPTOR_TYPE = Sense(SenseKey.ILLEGAL_REQUEST, 0x26, 0x09)
COPY_TARGET_UNREACHABLE = Sense(SenseKey.COPY_ABORTED, 0x08, 0x04)
COPY_SEGMENT_FAILED = Sense(SenseKey.COPY_ABORTED, 0x00, 0x00)
MEDIUM_REMOVAL_PREVENTED = Sense(SenseKey.ILLEGAL_REQUEST, 0x53, 0x02)
INVALID_RELEASE_OF_PERSISTENT_RESERVATION = Sense(SenseKey.ILLEGAL_REQUEST, 0x26, 0x04)
INSUFFICIENT_REGISTRATION_RESOURCES = Sense(SenseKey.ILLEGAL_REQUEST, 0x55, 0x04)

MEDIUM_MAY_HAVE_CHANGED = Sense(SenseKey.UNIT_ATTENTION, 0x28, 0x00)
POWER_ON = Sense(SenseKey.UNIT_ATTENTION, 0x29, 0x00)
BUS_DEVICE_RESET_FUNCTION_OCCURRED = Sense(SenseKey.UNIT_ATTENTION, 0x29, 0x03)
MODE_PARAMETERS_CHANGED = Sense(SenseKey.UNIT_ATTENTION, 0x2A, 0x01)
RESERVATIONS_PREEMPTED = Sense(SenseKey.UNIT_ATTENTION, 0x2A, 0x03)
RESERVATIONS_RELEASED = Sense(SenseKey.UNIT_ATTENTION, 0x2A, 0x04)
REGISTRATIONS_PREEMPTED = Sense(SenseKey.UNIT_ATTENTION, 0x2A, 0x05)
CAPACITY_DATA_HAS_CHANGED = Sense(SenseKey.UNIT_ATTENTION, 0x2A, 0x09)
REPORTED_LUNS_DATA_HAS_CHANGED = Sense(SenseKey.UNIT_ATTENTION, 0x3F, 0x0E)


def invalid_field_in_cdb(byte: int, bit: int | None = None) -> Sense:
    """24h/00h; `bit` is the left-most bit of the field when it does not fill whole bytes."""
    return Sense(SenseKey.ILLEGAL_REQUEST, 0x24, 0x00, field_pointer=FieldPointer(byte, bit))


def invalid_field_in_parameter_list(byte: int, bit: int | None = None) -> Sense:
    """26h/00h."""
    return Sense(SenseKey.ILLEGAL_REQUEST, 0x26, 0x00, field_pointer=FieldPointer(byte, bit, in_cdb=False))


def lba_out_of_range(lba: int) -> Sense:
    """21h/00h; the information is the first LBA that is not there."""
    return Sense(SenseKey.ILLEGAL_REQUEST, 0x21, 0x00, information=lba)


def copy_aborted(cause: Sense) -> Sense:
    """A copy that ended for this reason."""
    return Sense(SenseKey.COPY_ABORTED, cause.asc, cause.ascq)


def miscompare_during_verify(offset: int) -> Sense:
    """1Dh/00h; the information is the offset in the Data-Out Buffer of the first byte that differs."""
    return Sense(SenseKey.MISCOMPARE, 0x1D, 0x00, information=offset)


_VOLUME_ERRORS = {
    VolumeError.WRITE_PROTECTED: WRITE_PROTECTED,
    VolumeError.READ_FAILED: UNRECOVERED_READ_ERROR,
    VolumeError.WRITE_FAILED: WRITE_ERROR,
    VolumeError.NO_SPACE: SPACE_ALLOCATION_FAILED,
    VolumeError.NOT_READY: BECOMING_READY,
    VolumeError.ABORTED: COMMAND_ABORTED,
}


def sense_of_volume_error(error: VolumeError) -> Sense:
    """What the initiator is told when a volume fails."""
    return _VOLUME_ERRORS[error]


_TEXTS = {
    (0x00, 0x00): "no additional sense information",
    (0x04, 0x00): "logical unit not ready, cause not reportable",
    (0x04, 0x01): "logical unit is in process of becoming ready",
    (0x04, 0x02): "logical unit not ready, initializing command required",
    (0x04, 0x03): "logical unit not ready, manual intervention required",
    (0x04, 0x0B): "logical unit not accessible, target port in standby state",
    (0x04, 0x0C): "logical unit not accessible, target port in unavailable state",
    (0x08, 0x00): "logical unit communication failure",
    (0x08, 0x04): "unreachable copy target",
    (0x0C, 0x00): "write error",
    (0x0C, 0x0C): "write error, unexpected unsolicited data",
    (0x0C, 0x0D): "write error, not enough unsolicited data",
    (0x10, 0x01): "logical block guard check failed",
    (0x11, 0x00): "unrecovered read error",
    (0x1A, 0x00): "parameter list length error",
    (0x1D, 0x00): "miscompare during verify operation",
    (0x20, 0x00): "invalid command operation code",
    (0x21, 0x00): "logical block address out of range",
    (0x24, 0x00): "invalid field in CDB",
    (0x25, 0x00): "logical unit not supported",
    (0x26, 0x00): "invalid field in parameter list",
    (0x26, 0x06): "too many target descriptors",
    (0x26, 0x07): "unsupported target descriptor type code",
    (0x26, 0x08): "too many segment descriptors",
    (0x26, 0x09): "unsupported segment descriptor type code",
    (0x26, 0x04): "invalid release of persistent reservation",
    (0x27, 0x00): "write protected",
    (0x27, 0x01): "hardware write protected",
    (0x27, 0x02): "logical unit software write protected",
    (0x27, 0x07): "space allocation failed write protect",
    (0x28, 0x00): "not ready to ready change, medium may have changed",
    (0x29, 0x00): "power on, reset, or bus device reset occurred",
    (0x29, 0x01): "power on occurred",
    (0x29, 0x02): "SCSI bus reset occurred",
    (0x29, 0x03): "bus device reset function occurred",
    (0x29, 0x07): "I_T nexus loss occurred",
    (0x2A, 0x00): "parameters changed",
    (0x2A, 0x01): "mode parameters changed",
    (0x2A, 0x03): "reservations preempted",
    (0x2A, 0x04): "reservations released",
    (0x2A, 0x05): "registrations preempted",
    (0x2A, 0x06): "asymmetric access state changed",
    (0x2A, 0x09): "capacity data has changed",
    (0x2C, 0x00): "command sequence error",
    (0x2F, 0x00): "commands cleared by another initiator",
    (0x38, 0x07): "thin provisioning soft threshold reached",
    (0x39, 0x00): "saving parameters not supported",
    (0x3A, 0x00): "medium not present",
    (0x3E, 0x01): "logical unit failure",
    (0x3F, 0x0E): "reported LUNs data has changed",
    (0x44, 0x00): "internal target failure",
    (0x47, 0x05): "protocol service CRC error",
    (0x4B, 0x00): "data phase error",
    (0x53, 0x02): "medium removal prevented",
    (0x55, 0x03): "insufficient resources",
    (0x55, 0x04): "insufficient registration resources",
}


def additional_sense_text(asc: int, ascq: int) -> str:
    """The standard's words for a code, or the code itself."""
    return _TEXTS.get((asc, ascq), f"additional sense code {asc:02X}h/{ascq:02X}h")
