"""Mode pages: what MODE SENSE reports and MODE SELECT may change. Pure.

SPC-4 and SBC-3, *Mode parameters*. Two pages, with these changeable bits:

- caching (08h): WCE. Set: a write is answered when it is journalled, and durable after SYNCHRONIZE CACHE.
  Cleared: every write is answered when it is durable.
- control (0Ah): SWP. Set: writes are refused (27h/02h), until it is cleared or the program starts again.
  D_SENSE. Set: sense data that come with a status have the descriptor format (REQUEST SENSE has a bit of its
  own).

Parameters are shared by all nexuses (TST = 000b policy: one set a logical unit) and are not saved.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace

from target.scsi.sense import (
    PARAMETER_LIST_LENGTH_ERROR,
    SAVING_PARAMETERS_NOT_SUPPORTED,
    Sense,
    invalid_field_in_cdb,
    invalid_field_in_parameter_list,
)
from target.volume import Buffer

CACHING_PAGE = 0x08
CONTROL_PAGE = 0x0A
ALL_PAGES = 0x3F
_ALL_SUBPAGES = 0xFF

_CHANGEABLE, _DEFAULT, _SAVED = 1, 2, 3
_WP = 0x80
_DPOFUA = 0x10
_LONGLBA = 0x01
_WCE = 0x04
_D_SENSE = 0x04
_SWP = 0x08

_CACHING = struct.Struct(">BBB17x")
_CONTROL = struct.Struct(">BBBBBBxxH2x")
_GLTSD = 0x02  # log parameters are not saved: they say what is
_UNRESTRICTED_REORDERING = 0x10
_TAS = 0x40  # a command that another initiator aborted is answered TASK ABORTED
_BUSY_TIMEOUT_UNLIMITED = 0xFFFF


@dataclass(frozen=True, slots=True)
class ModeParameters:
    """The values that MODE SELECT may change; the defaults are those after a start."""

    write_cache_enabled: bool = True
    software_write_protected: bool = False
    descriptor_sense: bool = False


_DEFAULTS = ModeParameters()


@dataclass(frozen=True, slots=True)
class ModeForm:
    """The 6 and 10 byte commands differ in their header, and in where the CDB says how long."""

    header_bytes: int
    length_byte_in_cdb: int

    def header(self, content_bytes: int, device_specific: int, descriptor_bytes: int, *, long: bool) -> bytes:
        total = self.header_bytes + content_bytes
        if self.header_bytes == 4:
            return struct.pack(">BBBB", min(total - 1, 0xFF), 0, device_specific, descriptor_bytes)
        return struct.pack(">HBBBxH", total - 2, 0, device_specific, _LONGLBA * long, descriptor_bytes)

    def descriptor_bytes(self, data: bytes) -> int:
        return data[3] if self.header_bytes == 4 else int.from_bytes(data[6:8], "big")


MODE_6 = ModeForm(4, 4)
MODE_10 = ModeForm(8, 7)


def mode_sense(
    cdb: bytes,
    form: ModeForm,
    parameters: ModeParameters,
    *,
    write_protected: bool,
    block_count: int,
    block_size: int,
) -> bytes | Sense:
    """The parameter data that a MODE SENSE CDB asks for, before its allocation length cuts it."""
    page, control, subpage = cdb[2] & 0x3F, cdb[2] >> 6, cdb[3]
    if control == _SAVED:
        return SAVING_PARAMETERS_NOT_SUPPORTED
    if page not in (CACHING_PAGE, CONTROL_PAGE, ALL_PAGES):
        return invalid_field_in_cdb(2, 5)
    if subpage not in (0, _ALL_SUBPAGES):
        return invalid_field_in_cdb(3)

    pages = b"".join(
        _page(code, control, parameters) for code in (CACHING_PAGE, CONTROL_PAGE) if page in (code, ALL_PAGES)
    )
    descriptor = b""
    long = form is MODE_10 and bool(cdb[1] & 0x10)  # LLBAA
    if not cdb[1] & 0x08:  # DBD
        descriptor = _block_descriptor(block_count, block_size, long=long)
    content = descriptor + pages
    device_specific = (_WP if write_protected else 0) | _DPOFUA
    return form.header(len(content), device_specific, len(descriptor), long=long) + content


def mode_select(
    cdb: bytes,
    data: Buffer,
    form: ModeForm,
    current: ModeParameters,
    *,
    block_count: int,
    block_size: int,
) -> ModeParameters | Sense:
    """The parameters after a MODE SELECT; nothing changes when any part of it is wrong."""
    if not cdb[1] & 0x10:  # PF: pages as the standard has them, not a vendor's
        return invalid_field_in_cdb(1, 4)
    if cdb[1] & 0x01:  # SP
        return invalid_field_in_cdb(1, 0)
    at = form.length_byte_in_cdb
    length = cdb[at] if form is MODE_6 else int.from_bytes(cdb[at : at + 2], "big")
    if length == 0:
        return current
    raw = bytes(data[:length])
    if len(raw) < length or length < form.header_bytes:
        return PARAMETER_LIST_LENGTH_ERROR
    start = form.header_bytes
    end = start + form.descriptor_bytes(raw)
    if end > length:
        return PARAMETER_LIST_LENGTH_ERROR
    if end > start and not _is_current_descriptor(raw[start:end], block_count, block_size):
        return invalid_field_in_parameter_list(start)
    return _pages_selected(raw, end, current)


def _pages_selected(raw: bytes, position: int, parameters: ModeParameters) -> ModeParameters | Sense:
    while position < len(raw):
        code = raw[position] & 0x3F
        if raw[position] & 0x40 or code not in (CACHING_PAGE, CONTROL_PAGE):  # SPF: a subpage
            return invalid_field_in_parameter_list(position)
        expected = _page(code, 0, parameters)
        if position + 2 > len(raw):
            return PARAMETER_LIST_LENGTH_ERROR
        if raw[position + 1] != expected[1]:
            return invalid_field_in_parameter_list(position + 1)
        page = raw[position : position + len(expected)]
        if len(page) < len(expected):
            return PARAMETER_LIST_LENGTH_ERROR
        changeable = _page(code, _CHANGEABLE, parameters)
        for byte in range(2, len(page)):
            if (page[byte] ^ expected[byte]) & ~changeable[byte] & 0xFF:
                return invalid_field_in_parameter_list(position + byte)
        if code == CACHING_PAGE:
            parameters = replace(parameters, write_cache_enabled=bool(page[2] & _WCE))
        else:
            parameters = replace(
                parameters,
                descriptor_sense=bool(page[2] & _D_SENSE),
                software_write_protected=bool(page[4] & _SWP),
            )
        position += len(page)
    return parameters


def _page(code: int, control: int, parameters: ModeParameters) -> bytes:
    if control == _DEFAULT:
        parameters = _DEFAULTS
    if code == CACHING_PAGE:
        wce = _WCE if control == _CHANGEABLE or parameters.write_cache_enabled else 0
        return _CACHING.pack(code, _CACHING.size - 2, wce)
    swp = _SWP if control == _CHANGEABLE or parameters.software_write_protected else 0
    d_sense = _D_SENSE if control == _CHANGEABLE or parameters.descriptor_sense else 0
    if control == _CHANGEABLE:
        return _CONTROL.pack(code, _CONTROL.size - 2, d_sense, 0, swp, 0, 0)
    return _CONTROL.pack(
        code,
        _CONTROL.size - 2,
        d_sense | _GLTSD,
        _UNRESTRICTED_REORDERING,
        swp,
        _TAS,
        _BUSY_TIMEOUT_UNLIMITED,
    )


def _block_descriptor(block_count: int, block_size: int, *, long: bool) -> bytes:
    if long:
        return struct.pack(">Q4xI", block_count, block_size)
    return struct.pack(">II", min(block_count, 0xFFFFFFFF), block_size)


def _is_current_descriptor(descriptor: bytes, block_count: int, block_size: int) -> bool:
    """Neither capacity nor block size can be changed; zero and all ones leave the number of blocks."""
    if len(descriptor) == 8:
        blocks, size = struct.unpack(">II", descriptor)
        unchanged = (0, 0xFFFFFFFF, min(block_count, 0xFFFFFFFF))
    elif len(descriptor) == 16:
        blocks, size = struct.unpack(">Q4xI", descriptor)
        unchanged = (0, 0xFFFFFFFFFFFFFFFF, block_count)
    else:
        return False
    return blocks in unchanged and size & 0xFFFFFF == block_size
