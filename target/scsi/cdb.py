"""Command descriptor blocks: opcodes, layouts, building and taking apart. Pure.

The initiator builds with it, the device server takes apart. Every block command has one of four layouts, told
by the group code, the opcode's three high bits (SPC-4); SBC-3 puts the same fields at the same place in each:

    6  bytes   opcode, lba (21 bits), blocks (8; 0 is 256), control                READ(6), WRITE(6)
    10 bytes   opcode, flags, lba (32), group, blocks (16), control
    12 bytes   opcode, flags, lba (32), blocks (32), group, control
    16 bytes   opcode, flags, lba (64), blocks (32), group, control
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from enum import IntEnum

from target.volume import Buffer

BLOCK_10 = struct.Struct(">BBIBHB")
BLOCK_12 = struct.Struct(">BBIIBB")
BLOCK_16 = struct.Struct(">BBQIBB")

CDB_BYTES_MAX = 16
_LENGTH_OF_GROUP = (6, 10, 10, 0, 16, 12, 0, 0)

# Flags of byte 1 of the block commands (SBC-3).
DPO = 0x10
FUA = 0x08
BYTCHK_SHIFT = 1
# SYNCHRONIZE CACHE and PRE-FETCH.
IMMED = 0x02
# WRITE SAME.
ANCHOR = 0x10
UNMAP_BIT = 0x08
NDOB = 0x01


class Opcode(IntEnum):
    """The operation codes of SPC-4 and SBC-3, the ones that are built or executed here."""

    TEST_UNIT_READY = 0x00
    REQUEST_SENSE = 0x03
    READ_6 = 0x08
    WRITE_6 = 0x0A
    INQUIRY = 0x12
    MODE_SELECT_6 = 0x15
    RESERVE_6 = 0x16
    RELEASE_6 = 0x17
    MODE_SENSE_6 = 0x1A
    START_STOP_UNIT = 0x1B
    SEND_DIAGNOSTIC = 0x1D
    PREVENT_ALLOW_MEDIUM_REMOVAL = 0x1E
    READ_CAPACITY_10 = 0x25
    READ_10 = 0x28
    WRITE_10 = 0x2A
    WRITE_AND_VERIFY_10 = 0x2E
    VERIFY_10 = 0x2F
    PRE_FETCH_10 = 0x34
    SYNCHRONIZE_CACHE_10 = 0x35
    READ_DEFECT_DATA_10 = 0x37
    WRITE_SAME_10 = 0x41
    UNMAP = 0x42
    LOG_SENSE = 0x4D
    MODE_SELECT_10 = 0x55
    MODE_SENSE_10 = 0x5A
    PERSISTENT_RESERVE_IN = 0x5E
    PERSISTENT_RESERVE_OUT = 0x5F
    EXTENDED_COPY = 0x83
    RECEIVE_COPY_RESULTS = 0x84
    READ_16 = 0x88
    COMPARE_AND_WRITE = 0x89
    WRITE_16 = 0x8A
    ORWRITE_16 = 0x8B
    WRITE_AND_VERIFY_16 = 0x8E
    VERIFY_16 = 0x8F
    PRE_FETCH_16 = 0x90
    SYNCHRONIZE_CACHE_16 = 0x91
    WRITE_SAME_16 = 0x93
    WRITE_ATOMIC_16 = 0x9C
    SERVICE_ACTION_IN_16 = 0x9E
    REPORT_LUNS = 0xA0
    MAINTENANCE_IN = 0xA3
    READ_12 = 0xA8
    WRITE_12 = 0xAA
    WRITE_AND_VERIFY_12 = 0xAE
    VERIFY_12 = 0xAF
    READ_DEFECT_DATA_12 = 0xB7


READ_CAPACITY_16_ACTION = 0x10
GET_LBA_STATUS_ACTION = 0x12
REPORT_TARGET_PORT_GROUPS_ACTION = 0x0A
REPORT_SUPPORTED_OPERATION_CODES_ACTION = 0x0C
REPORT_SUPPORTED_TASK_MANAGEMENT_FUNCTIONS_ACTION = 0x0D


def cdb_length(opcode: int) -> int:
    """Bytes of a CDB with this opcode, 0 where the standard leaves it open (group code, SPC-4)."""
    return _LENGTH_OF_GROUP[opcode >> 5]


def block_range(cdb: Buffer) -> tuple[int, int]:
    """(lba, number of blocks) of a block command in any layout. `cdb` is whole."""
    length = cdb_length(cdb[0])
    if length == 10:
        _, _, lba, _, blocks, _ = BLOCK_10.unpack_from(cdb)
    elif length == 16:
        _, _, lba, blocks, _, _ = BLOCK_16.unpack_from(cdb)
    elif length == 12:
        _, _, lba, blocks, _, _ = BLOCK_12.unpack_from(cdb)
    else:
        lba = (cdb[1] & 0x1F) << 16 | cdb[2] << 8 | cdb[3]
        blocks = cdb[4] or 256  # READ (6) cannot say "none"
    return lba, blocks


def lba_byte(cdb: Buffer) -> int:
    """Where the LBA starts, for a field pointer."""
    return 1 if cdb_length(cdb[0]) == 6 else 2


def blocks_byte(cdb: Buffer) -> int:
    """Where the number of blocks starts, for a field pointer."""
    return {6: 4, 10: 7, 12: 6, 16: 10}[cdb_length(cdb[0])]


def block_command(opcode: int, lba: int, blocks: int, flags: int = 0) -> bytes:
    """A block command in the layout of its opcode; struct.error when a value does not fit."""
    length = cdb_length(opcode)
    if length == 10:
        return BLOCK_10.pack(opcode, flags, lba, 0, blocks, 0)
    if length == 16:
        return BLOCK_16.pack(opcode, flags, lba, blocks, 0, 0)
    if length == 12:
        return BLOCK_12.pack(opcode, flags, lba, blocks, 0, 0)
    if lba > 0x1FFFFF or not 0 < blocks <= 256 or flags:
        raise struct.error(
            f"opcode {opcode:#04x}: lba {lba}, {blocks} blocks, flags {flags:#x} do not fit 6 bytes"
        )
    return bytes((opcode, lba >> 16, lba >> 8 & 0xFF, lba & 0xFF, blocks & 0xFF, 0))


def _shortest(opcode_10: Opcode, opcode_16: Opcode, lba: int, blocks: int, flags: int) -> bytes:
    fits = lba <= 0xFFFFFFFF and blocks <= 0xFFFF
    return block_command(opcode_10 if fits else opcode_16, lba, blocks, flags)


def read(lba: int, blocks: int, *, fua: bool = False) -> bytes:
    """READ(10), or READ(16) when it must be."""
    return _shortest(Opcode.READ_10, Opcode.READ_16, lba, blocks, FUA if fua else 0)


def write(lba: int, blocks: int, *, fua: bool = False) -> bytes:
    """WRITE(10), or WRITE(16) when it must be."""
    return _shortest(Opcode.WRITE_10, Opcode.WRITE_16, lba, blocks, FUA if fua else 0)


def verify(lba: int, blocks: int, *, bytchk: int = 0) -> bytes:
    """VERIFY. `bytchk`: 0 no data, 1 all the data, 3 one block that every block is compared with."""
    return _shortest(Opcode.VERIFY_10, Opcode.VERIFY_16, lba, blocks, bytchk << BYTCHK_SHIFT)


def write_same(lba: int, blocks: int, *, unmap: bool = False) -> bytes:
    """WRITE SAME; the data is one block."""
    return _shortest(Opcode.WRITE_SAME_10, Opcode.WRITE_SAME_16, lba, blocks, UNMAP_BIT if unmap else 0)


def compare_and_write(lba: int, blocks: int, *, fua: bool = False) -> bytes:
    """COMPARE AND WRITE; the data are `blocks` to compare with, then `blocks` to write."""
    return struct.pack(">BBQ3xBBB", Opcode.COMPARE_AND_WRITE, FUA if fua else 0, lba, blocks, 0, 0)


def write_atomic(lba: int, blocks: int) -> bytes:
    """WRITE ATOMIC (16) without an atomic boundary."""
    return struct.pack(">BBQHHBB", Opcode.WRITE_ATOMIC_16, 0, lba, 0, blocks, 0, 0)


def persistent_reserve_in(service_action: int, allocation_length: int = 4096) -> bytes:
    return struct.pack(">BB5xHB", Opcode.PERSISTENT_RESERVE_IN, service_action, allocation_length, 0)


def persistent_reserve_out(service_action: int, parameter_list_length: int = 24, *, kind: int = 0) -> bytes:
    """`kind`: scope and type."""
    return struct.pack(
        ">BBBxxIB", Opcode.PERSISTENT_RESERVE_OUT, service_action, kind, parameter_list_length, 0
    )


def synchronize_cache(lba: int = 0, blocks: int = 0) -> bytes:
    """SYNCHRONIZE CACHE; zero blocks mean up to the end."""
    return _shortest(Opcode.SYNCHRONIZE_CACHE_10, Opcode.SYNCHRONIZE_CACHE_16, lba, blocks, 0)


def test_unit_ready() -> bytes:
    return bytes(6)


def inquiry(allocation_length: int = 255, *, page: int | None = None) -> bytes:
    """INQUIRY: standard data, or a vital product data page."""
    return struct.pack(">BBBHB", Opcode.INQUIRY, page is not None, page or 0, allocation_length, 0)


def request_sense(allocation_length: int = 252, *, descriptor: bool = False) -> bytes:
    return struct.pack(">BBxxBB", Opcode.REQUEST_SENSE, descriptor, allocation_length, 0)


def read_capacity_10() -> bytes:
    return BLOCK_10.pack(Opcode.READ_CAPACITY_10, 0, 0, 0, 0, 0)


def read_capacity_16(allocation_length: int = 32) -> bytes:
    return struct.pack(
        ">BB8xIBB", Opcode.SERVICE_ACTION_IN_16, READ_CAPACITY_16_ACTION, allocation_length, 0, 0
    )


def get_lba_status(lba: int, allocation_length: int = 24) -> bytes:
    return struct.pack(
        ">BBQIBB", Opcode.SERVICE_ACTION_IN_16, GET_LBA_STATUS_ACTION, lba, allocation_length, 0, 0
    )


def report_luns(allocation_length: int, *, select_report: int = 0) -> bytes:
    return struct.pack(">BxB3xIBB", Opcode.REPORT_LUNS, select_report, allocation_length, 0, 0)


def mode_sense_6(page: int, allocation_length: int = 255, *, subpage: int = 0, control: int = 0) -> bytes:
    """`control`: 0 current, 1 changeable, 2 default, 3 saved values."""
    return bytes((Opcode.MODE_SENSE_6, 0, control << 6 | page, subpage, allocation_length, 0))


def mode_sense_10(page: int, allocation_length: int = 4096, *, subpage: int = 0, control: int = 0) -> bytes:
    return struct.pack(
        ">BBBB3xHB", Opcode.MODE_SENSE_10, 0, control << 6 | page, subpage, allocation_length, 0
    )


def mode_select_6(parameter_list_length: int, *, save: bool = False) -> bytes:
    """The PF bit is set: the list holds pages."""
    return struct.pack(">BBxxBB", Opcode.MODE_SELECT_6, 0x10 | save, parameter_list_length, 0)


def mode_select_10(parameter_list_length: int, *, save: bool = False) -> bytes:
    return struct.pack(">BB5xHB", Opcode.MODE_SELECT_10, 0x10 | save, parameter_list_length, 0)


def log_sense(
    page: int, allocation_length: int = 512, *, subpage: int = 0, parameter_pointer: int = 0
) -> bytes:
    """Current cumulative values."""
    return struct.pack(
        ">BBBBxHHB", Opcode.LOG_SENSE, 0, 0x40 | page, subpage, parameter_pointer, allocation_length, 0
    )


def start_stop_unit(*, start: bool) -> bytes:
    return bytes((Opcode.START_STOP_UNIT, 0, 0, 0, start, 0))


def report_supported_operation_codes(
    allocation_length: int = 4096, *, options: int = 0, opcode: int = 0, service_action: int = 0
) -> bytes:
    """`options`: 0 all, 1 one opcode, 2 one opcode with service action, 3 either."""
    return struct.pack(
        ">BBBBHIBB",
        Opcode.MAINTENANCE_IN,
        REPORT_SUPPORTED_OPERATION_CODES_ACTION,
        options,
        opcode,
        service_action,
        allocation_length,
        0,
        0,
    )


def unmap(parameter_list_length: int) -> bytes:
    return struct.pack(">BB4xBHB", Opcode.UNMAP, 0, 0, parameter_list_length, 0)


def unmap_parameter_list(ranges: Iterable[tuple[int, int]]) -> bytes:
    """The data of UNMAP for (lba, blocks) pairs."""
    descriptors = b"".join(struct.pack(">QI4x", lba, blocks) for lba, blocks in ranges)
    return struct.pack(">HH4x", len(descriptors) + 6, len(descriptors)) + descriptors
