"""CDBs are built and taken apart alike, in every layout."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from target.scsi import cdb
from target.scsi.cdb import Opcode

LIMITS = {
    6: (0x1FFFFF, 256),
    10: (2**32 - 1, 2**16 - 1),
    12: (2**32 - 1, 2**32 - 1),
    16: (2**64 - 1, 2**32 - 1),
}
BLOCK_OPCODES = [
    opcode for opcode in Opcode if opcode.name.startswith(("READ_1", "WRITE", "VERIFY", "READ_6"))
]


@given(st.data(), st.sampled_from(BLOCK_OPCODES))
def test_block_command_round_trip(data: st.DataObject, opcode: Opcode) -> None:
    length = cdb.cdb_length(opcode)
    lba_max, blocks_max = LIMITS[length]
    lba = data.draw(st.integers(0, lba_max))
    blocks = data.draw(st.integers(1 if length == 6 else 0, blocks_max))
    built = cdb.block_command(opcode, lba, blocks)
    assert len(built) == length
    assert built[0] == opcode
    assert built[1:2] == b"\0" or length == 6
    assert cdb.block_range(built) == (lba, blocks)
    assert cdb.block_range(memoryview(built.ljust(16, b"\xff"))) == (lba, blocks)


@given(st.data(), st.sampled_from(BLOCK_OPCODES))
def test_field_pointers_point_at_the_fields(data: st.DataObject, opcode: Opcode) -> None:
    lba_max, blocks_max = LIMITS[cdb.cdb_length(opcode)]
    plain = cdb.block_command(opcode, 0, 1)
    with_lba = cdb.block_command(opcode, lba_max, 1)
    with_blocks = cdb.block_command(opcode, 0, blocks_max - 1)

    def first_change(other: bytes) -> int:
        return next(at for at in range(len(plain)) if plain[at] != other[at])

    assert first_change(with_lba) == cdb.lba_byte(plain)
    assert first_change(with_blocks) == cdb.blocks_byte(plain)


@pytest.mark.parametrize(
    ("opcode", "lba", "blocks", "flags"),
    [
        (Opcode.READ_6, 0x200000, 1, 0),
        (Opcode.READ_6, 0, 257, 0),
        (Opcode.READ_6, 0, 0, 0),
        (Opcode.READ_6, 0, 1, cdb.FUA),
        (Opcode.READ_10, 1 << 32, 1, 0),
        (Opcode.READ_10, 0, 1 << 16, 0),
        (Opcode.READ_12, 0, 1 << 32, 0),
        (Opcode.READ_16, 1 << 64, 1, 0),
    ],
)
def test_what_does_not_fit_is_refused(opcode: Opcode, lba: int, blocks: int, flags: int) -> None:
    with pytest.raises(struct.error):
        cdb.block_command(opcode, lba, blocks, flags)


def test_the_shortest_form_that_fits_is_taken() -> None:
    assert cdb.read(0xFFFFFFFF, 0xFFFF)[0] == Opcode.READ_10
    assert cdb.read(0x100000000, 1)[0] == Opcode.READ_16
    assert cdb.write(0, 0x10000)[0] == Opcode.WRITE_16


def test_known_bytes() -> None:
    assert cdb.read(0x11223344, 0x5566, fua=True) == bytes.fromhex("28 08 11223344 00 5566 00")
    assert cdb.write(1 << 33, 2) == bytes.fromhex("8a 00 0000000200000000 00000002 00 00")
    assert cdb.block_command(Opcode.READ_6, 0x1F2233, 256) == bytes.fromhex("08 1f2233 00 00")
    assert cdb.inquiry(0x1234, page=0x83) == bytes.fromhex("12 01 83 1234 00")
    assert cdb.inquiry(36) == bytes.fromhex("12 00 00 0024 00")
    assert cdb.read_capacity_10() == bytes.fromhex("25 00 00000000 0000 00 00")
    assert cdb.read_capacity_16() == bytes.fromhex("9e 10 0000000000000000 00000020 00 00")
    assert cdb.report_luns(0x01020304) == bytes.fromhex("a0 00 00 000000 01020304 00 00")
    assert cdb.mode_sense_6(0x08, 0x40, control=2) == bytes.fromhex("1a 00 88 00 40 00")
    assert cdb.mode_sense_10(0x3F, 0x1234, subpage=0xFF) == bytes.fromhex("5a 00 3f ff 000000 1234 00")
    assert cdb.mode_select_6(24) == bytes.fromhex("15 10 0000 18 00")
    assert cdb.mode_select_10(24, save=True) == bytes.fromhex("55 11 0000000000 0018 00")
    assert cdb.unmap(24) == bytes.fromhex("42 00 00000000 00 0018 00")
    assert cdb.write_same(5, 6, unmap=True) == bytes.fromhex("41 08 00000005 00 0006 00")
    assert cdb.verify(5, 6, bytchk=3) == bytes.fromhex("2f 06 00000005 00 0006 00")
    assert cdb.synchronize_cache() == bytes.fromhex("35 00 00000000 00 0000 00")
    assert cdb.request_sense(18, descriptor=True) == bytes.fromhex("03 01 0000 12 00")
    assert cdb.start_stop_unit(start=True) == bytes.fromhex("1b 00 00 00 01 00")
    assert cdb.test_unit_ready() == bytes(6)
    assert cdb.report_supported_operation_codes(512, options=3, opcode=0x9E, service_action=0x10) == (
        bytes.fromhex("a3 0c 03 9e 0010 00000200 00 00")
    )


def test_unmap_parameter_list() -> None:
    assert cdb.unmap_parameter_list([(1, 2), (1 << 40, 3)]) == bytes.fromhex(
        "0026 0020 00000000 0000000000000001 00000002 00000000 0000010000000000 00000003 00000000"
    )


def test_every_opcode_has_a_length() -> None:
    assert all(cdb.cdb_length(opcode) in (6, 10, 12, 16) for opcode in Opcode)
