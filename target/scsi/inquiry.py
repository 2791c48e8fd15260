"""INQUIRY data and vital product data pages. Pure: bytes from what describes a logical unit, and back.

SPC-4, *INQUIRY command* and *Vital product data parameters* (00h, 80h, 83h); SBC-3 (B0h, B1h, B2h).

The identity of a logical unit comes from its volume's serial alone, so it is the same through every portal
and front end, and multipath software sees one disk.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from enum import IntEnum

from target.errors import PeerError
from target.volume import Buffer

VENDOR = "REPLCTL"
PRODUCT = "VOLUME"
REVISION = "1"

_STANDARD = struct.Struct(">BBBBBBBB8s16s4s22x8H22x")
_PERIPHERAL_NOT_SUPPORTED = 0x7F  # qualifier 011b, device type 1Fh
_RMB = 0x80
_SPC_4 = 0x06
_HISUP_FORMAT_2 = 0x12
_CMDQUE = 0x02
_TPGS_IMPLICIT = 0x10
_3PC = 0x08
TARGET_PORT_GROUP = 1
"""All portals lead to one target port, in one group."""
_VERSION_DESCRIPTORS = (0x00A0, 0x0460, 0x04C0)  # SAM-5, SPC-4, SBC-3, no version claimed


class VpdPage(IntEnum):
    SUPPORTED_PAGES = 0x00
    UNIT_SERIAL_NUMBER = 0x80
    DEVICE_IDENTIFICATION = 0x83
    THIRD_PARTY_COPY = 0x8F
    BLOCK_LIMITS = 0xB0
    BLOCK_DEVICE_CHARACTERISTICS = 0xB1
    LOGICAL_BLOCK_PROVISIONING = 0xB2


@dataclass(frozen=True, slots=True)
class Limits:
    """The most that one command may ask for, in bytes: what one command can make the device server hold."""

    transfer_bytes_max: int = 8 << 20
    unmap_bytes_max: int = 64 << 20
    unmap_descriptors_max: int = 256
    write_same_bytes_max: int = 8 << 20
    compare_and_write_bytes_max: int = 64 << 10
    atomic_bytes_max: int = 1 << 20
    alignment_bytes: int = 4096


@dataclass(frozen=True, slots=True)
class Inquiry:
    """What an initiator wants to know from standard INQUIRY data."""

    peripheral_qualifier: int
    device_type: int
    version: int
    vendor: str
    product: str
    revision: str


def encode_standard(*, supported: bool = True, removable: bool = False) -> bytes:
    """96 bytes. Not `supported`: the answer for a LUN where there is nothing (qualifier 011b)."""
    return _STANDARD.pack(
        0x00 if supported else _PERIPHERAL_NOT_SUPPORTED,
        _RMB if removable else 0,
        _SPC_4,
        _HISUP_FORMAT_2,
        _STANDARD.size - 5,
        _TPGS_IMPLICIT | _3PC if supported else 0,
        0,
        _CMDQUE,
        _text(VENDOR, 8),
        _text(PRODUCT, 16),
        _text(REVISION, 4),
        *_VERSION_DESCRIPTORS,
        *(0,) * (8 - len(_VERSION_DESCRIPTORS)),
    )


def decode_standard(data: Buffer) -> Inquiry:
    raw = bytes(data)
    if len(raw) < 36:
        raise PeerError(f"INQUIRY answered {len(raw)} bytes: at least 36 are needed")

    def text(start: int, end: int) -> str:
        return raw[start:end].decode("ascii", "replace").strip(" \0")

    return Inquiry(raw[0] >> 5, raw[0] & 0x1F, raw[2], text(8, 16), text(16, 32), text(32, 36))


def encode_vpd(page: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0, page, len(body)) + body


def decode_vpd(data: Buffer, page: VpdPage) -> bytes:
    """The body of a page, as far as it was allocated."""
    if len(data) < 4 or data[1] != page:
        raise PeerError(f"INQUIRY did not answer the page {page:02X}h that was asked for")
    (length,) = struct.unpack_from(">H", data, 2)
    return bytes(data[4 : 4 + length])


def supported_pages() -> bytes:
    return encode_vpd(VpdPage.SUPPORTED_PAGES, bytes(sorted(VpdPage)))


def unit_serial_number(serial: str) -> bytes:
    return encode_vpd(VpdPage.UNIT_SERIAL_NUMBER, serial.encode("ascii", "replace"))


def device_identification(serial: str, target_port: str, relative_target_port: int) -> bytes:
    """Page 83h: the logical unit by T10 vendor id, by NAA and by SCSI name, then port group and port.

    A front end that does not know through which port a command came has "" for it.
    """
    naa = naa_identifier(serial)
    t10 = _text(VENDOR, 8) + _text(PRODUCT, 16) + serial.encode("ascii", "replace")
    body = (
        _designator(code_set=1, association=0, kind=3, value=naa)
        + _designator(code_set=2, association=0, kind=1, value=t10[:252])
        + _designator(code_set=3, association=0, kind=8, value=_scsi_name(f"naa.{naa.hex().upper()}"))
        + _designator(code_set=1, association=1, kind=5, value=struct.pack(">xxH", TARGET_PORT_GROUP))
    )
    if target_port:
        body += _designator(
            code_set=1, association=1, kind=4, value=struct.pack(">xxH", relative_target_port)
        )
        body += _designator(code_set=3, association=1, kind=8, value=_scsi_name(target_port))
    return encode_vpd(VpdPage.DEVICE_IDENTIFICATION, body)


def naa_identifier(serial: str) -> bytes:
    """8 bytes, NAA 3h, locally assigned: the project has no IEEE company id."""
    digest = hashlib.sha256(b"replctl naa " + serial.encode()).digest()
    return bytes((0x30 | digest[0] & 0x0F,)) + digest[1:8]


def block_limits(limits: Limits, block_size: int) -> bytes:
    """WSNZ is set: WRITE SAME must say how many blocks."""
    body = struct.pack(
        ">BBHIIIIIIIQIIIII",
        0x01,
        limits.compare_and_write_bytes_max // block_size,
        limits.alignment_bytes // block_size,
        limits.transfer_bytes_max // block_size,
        limits.transfer_bytes_max // block_size,
        0,
        limits.unmap_bytes_max // block_size,
        limits.unmap_descriptors_max,
        limits.alignment_bytes // block_size,
        0x80000000,  # UGAVALID, alignment 0
        limits.write_same_bytes_max // block_size,
        limits.atomic_bytes_max // block_size,
        0,  # any alignment
        0,  # any granularity
        0,  # no transfer length with an atomic boundary
        0,
    )
    return encode_vpd(VpdPage.BLOCK_LIMITS, body)


def block_device_characteristics() -> bytes:
    """Medium rotation rate 1, not rotating."""
    return encode_vpd(VpdPage.BLOCK_DEVICE_CHARACTERISTICS, struct.pack(">H58x", 1))


def logical_block_provisioning(threshold_exponent: int) -> bytes:
    """UNMAP, WRITE SAME (16) and (10) with UNMAP all work (LBPU, LBPWS, LBPWS10) and unmapped
    blocks read as zeros (LBPRZ); thin provisioned (type 2)."""
    return encode_vpd(VpdPage.LOGICAL_BLOCK_PROVISIONING, bytes((threshold_exponent, 0xE4, 0x02, 0)))


def _designator(*, code_set: int, association: int, kind: int, value: bytes) -> bytes:
    return bytes((code_set, association << 4 | kind, 0, len(value))) + value


def _scsi_name(name: str) -> bytes:
    """Null-terminated, padded to a multiple of four, 256 bytes at the most."""
    raw = name.encode()[:251] + b"\0"
    return raw + bytes(-len(raw) % 4)


def _text(value: str, width: int) -> bytes:
    return value.encode("ascii", "replace")[:width].ljust(width)
