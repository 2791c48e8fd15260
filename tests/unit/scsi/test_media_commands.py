"""What the block commands do to the medium, in both block sizes, and what they refuse."""

from __future__ import annotations

import struct

import pytest

from target.scsi import cdb, sense
from target.scsi.cdb import Opcode
from target.scsi.command import GOOD, ScsiResult, Status
from target.scsi.inquiry import Limits
from target.scsi.media_commands import CHUNK_BYTES
from target.scsi.sense import FieldPointer, SenseKey
from target.volume import VolumeError
from tests.unit.scsi.initiator import Initiator, data_of, sense_of
from tests.unit.scsi.memory_volume import MemoryVolume

READS = [Opcode.READ_6, Opcode.READ_10, Opcode.READ_12, Opcode.READ_16]
WRITES = [Opcode.WRITE_6, Opcode.WRITE_10, Opcode.WRITE_12, Opcode.WRITE_16]
WITH_FLAGS = [Opcode.WRITE_10, Opcode.WRITE_12, Opcode.WRITE_16]
WRITE_AND_VERIFY = [Opcode.WRITE_AND_VERIFY_10, Opcode.WRITE_AND_VERIFY_12, Opcode.WRITE_AND_VERIFY_16]
VERIFIES = [Opcode.VERIFY_10, Opcode.VERIFY_12, Opcode.VERIFY_16]
WRITE_SAMES = [Opcode.WRITE_SAME_10, Opcode.WRITE_SAME_16]
RANGED = [
    *READS,
    *WRITES,
    *WRITE_AND_VERIFY,
    *VERIFIES,
    *WRITE_SAMES,
    *(Opcode.PRE_FETCH_10, Opcode.PRE_FETCH_16),
    *(Opcode.SYNCHRONIZE_CACHE_10, Opcode.SYNCHRONIZE_CACHE_16),
]
MIB = 1 << 20


def pattern(length: int, seed: int = 1) -> bytes:
    return bytes((at * 7 + at // 256 + seed) & 0xFF for at in range(length))


@pytest.fixture(params=[512, 4096])
def initiator(request: pytest.FixtureRequest) -> Initiator:
    return Initiator(MemoryVolume(block_size_bytes=request.param))


def block_size(initiator: Initiator) -> int:
    return initiator.volume.block_size_bytes


@pytest.mark.parametrize("read", READS)
@pytest.mark.parametrize("write", WRITES)
def test_what_is_written_is_read(initiator: Initiator, read: Opcode, write: Opcode) -> None:
    data = pattern(3 * block_size(initiator))
    assert initiator.execute(cdb.block_command(write, 5, 3), data) is GOOD
    assert data_of(initiator.execute(cdb.block_command(read, 5, 3))) == data
    assert initiator.volume.calls[0] == ("write", 5 * block_size(initiator), len(data), False)


def test_zero_blocks_of_read_6_are_256() -> None:
    initiator = Initiator()
    assert len(data_of(initiator.execute(bytes((Opcode.READ_6, 0, 0, 0, 0, 0))))) == 256 * 512


@pytest.mark.parametrize("opcode", [*READS[1:], *WRITES[1:], *WRITE_AND_VERIFY, *VERIFIES])
def test_zero_blocks_are_no_error_and_touch_nothing(opcode: Opcode) -> None:
    initiator = Initiator()
    assert initiator.execute(cdb.block_command(opcode, 0, 0)) is GOOD
    assert not initiator.volume.calls


@pytest.mark.parametrize("opcode", RANGED)
def test_last_block_is_reached_and_the_next_is_out_of_range(initiator: Initiator, opcode: Opcode) -> None:
    blocks = initiator.volume.size_bytes // block_size(initiator)
    data = pattern(2 * block_size(initiator))
    one = data[: block_size(initiator)]
    assert initiator.execute(cdb.block_command(opcode, blocks - 1, 1), one).status == 0
    initiator.volume.calls.clear()
    for lba, count, first_missing in (
        (blocks - 1, 2, blocks),
        (blocks, 1, blocks),
        (blocks + 9, 1, blocks + 9),
    ):
        result = initiator.execute(cdb.block_command(opcode, lba, count), data)
        assert sense_of(result) == sense.lba_out_of_range(first_missing)
    assert not initiator.volume.calls


@pytest.mark.parametrize("opcode", [Opcode.READ_16, Opcode.WRITE_16, Opcode.WRITE_SAME_16, Opcode.VERIFY_16])
def test_the_largest_lba_does_not_wrap(opcode: Opcode) -> None:
    result = Initiator().execute(cdb.block_command(opcode, 2**64 - 1, 2**32 - 1), bytes(512))
    assert sense_of(result).asc == 0x21


@pytest.mark.parametrize("opcode", WITH_FLAGS)
def test_fua_reaches_the_volume(opcode: Opcode) -> None:
    initiator = Initiator()
    assert initiator.execute(cdb.block_command(opcode, 1, 1, cdb.FUA), bytes(512)) is GOOD
    assert initiator.volume.calls == [("write", 512, 512, True)]


def test_dpo_is_accepted_and_changes_nothing() -> None:
    initiator = Initiator()
    assert initiator.execute(cdb.block_command(Opcode.WRITE_10, 1, 1, cdb.DPO), bytes(512)) is GOOD
    assert initiator.volume.calls == [("write", 512, 512, False)]


@pytest.mark.parametrize("opcode", READS[1:])
def test_read_with_fua_makes_the_data_durable_first(opcode: Opcode) -> None:
    initiator = Initiator()
    assert len(data_of(initiator.execute(cdb.block_command(opcode, 1, 1, cdb.FUA)))) == 512
    assert initiator.volume.names() == ["flush", "read"]


@pytest.mark.parametrize("opcode", [*READS[1:], *WRITES[1:], *VERIFIES, *WRITE_AND_VERIFY, *WRITE_SAMES])
def test_protection_information_is_refused(opcode: Opcode) -> None:
    result = Initiator().execute(cdb.block_command(opcode, 0, 1, 0x20), bytes(512))
    assert sense_of(result) == sense.invalid_field_in_cdb(1, 5)


@pytest.mark.parametrize("opcode", RANGED)
def test_naca_is_refused(opcode: Opcode) -> None:
    built = bytearray(cdb.block_command(opcode, 0, 1))
    built[-1] = 0x04
    result = Initiator().execute(bytes(built), bytes(512))
    assert sense_of(result) == sense.invalid_field_in_cdb(len(built) - 1, 2)


@pytest.mark.parametrize("opcode", [*READS[1:], *WRITES[1:], *VERIFIES, *WRITE_AND_VERIFY])
def test_transfer_limit_is_enforced(opcode: Opcode) -> None:
    initiator = Initiator(limits=Limits(transfer_bytes_max=64 * 512))
    data = bytes(65 * 512)
    assert initiator.execute(cdb.block_command(opcode, 0, 64), data[: 64 * 512]).status == 0
    result = initiator.execute(cdb.block_command(opcode, 0, 65), data)
    assert sense_of(result) == sense.invalid_field_in_cdb(cdb.blocks_byte(cdb.block_command(opcode, 0, 0)))


@pytest.mark.parametrize("opcode", [*WRITES, *WRITE_AND_VERIFY])
def test_less_data_than_announced_writes_the_whole_blocks_that_came(opcode: Opcode) -> None:
    initiator = Initiator()
    initiator.volume.content[:2048] = b"\xff" * 2048
    result = initiator.execute(cdb.block_command(opcode, 0, 4), pattern(1000))
    assert result == ScsiResult(Status.GOOD, data_out_length=2048)
    assert initiator.volume.content[:512] == pattern(512)
    assert initiator.volume.content[512:2048] == b"\xff" * 1536
    initiator.volume.calls.clear()
    result = initiator.execute(cdb.block_command(opcode, 0, 1), b"")
    assert result == ScsiResult(Status.GOOD, data_out_length=512)
    assert not initiator.volume.calls


@pytest.mark.parametrize("opcode", [*WRITES, *WRITE_AND_VERIFY])
def test_more_data_than_announced_is_not_written(opcode: Opcode) -> None:
    initiator = Initiator()
    result = initiator.execute(cdb.block_command(opcode, 0, 1), pattern(1024))
    assert result == ScsiResult(Status.GOOD, data_out_length=512)
    assert initiator.volume.content[:1024] == pattern(512) + bytes(512)


@pytest.mark.parametrize(
    "built",
    [
        *(cdb.block_command(opcode, 0, 1) for opcode in [*WRITES, *WRITE_AND_VERIFY, *WRITE_SAMES]),
        cdb.write(0, 1, fua=True),
        cdb.unmap(24),
    ],
)
@pytest.mark.parametrize("sent", [0, 512])
def test_a_write_protected_volume_answers_data_protect(built: bytes, sent: int) -> None:
    """That comes first: whatever else is wrong with the data, sending it again would not help."""
    initiator = Initiator()
    initiator.volume.read_only_now = True
    assert sense_of(initiator.execute(built, pattern(sent))) == sense.WRITE_PROTECTED
    assert not any(initiator.volume.content)


@pytest.mark.parametrize(
    ("name", "built"),
    [
        ("read", cdb.read(0, 1)),
        ("read", cdb.read(0, 1, fua=True)),
        ("flush", cdb.read(0, 1, fua=True)),
        ("write", cdb.write(0, 1)),
        ("write", cdb.block_command(Opcode.WRITE_AND_VERIFY_10, 0, 1)),
        ("read", cdb.block_command(Opcode.WRITE_AND_VERIFY_10, 0, 1)),
        ("read", cdb.verify(0, 1)),
        ("flush", cdb.synchronize_cache()),
        ("write", cdb.write_same(0, 1)),
        ("read", cdb.block_command(Opcode.PRE_FETCH_10, 0, 1)),
    ],
)
@pytest.mark.parametrize("hold", [False, True])
def test_a_failing_volume_ends_the_command_once(name: str, built: bytes, hold: bool) -> None:
    initiator = Initiator()
    initiator.volume.hold = hold
    initiator.volume.failures[name] = VolumeError.READ_FAILED
    command = initiator.submit(built, pattern(512))
    while initiator.volume.release():
        pass
    assert sense_of(command.result) == sense.UNRECOVERED_READ_ERROR


# WRITE AND VERIFY, VERIFY


@pytest.mark.parametrize("opcode", WRITE_AND_VERIFY)
@pytest.mark.parametrize("bytchk", [0, 1])
def test_write_and_verify_is_durable_and_read_again(opcode: Opcode, bytchk: int) -> None:
    initiator = Initiator()
    built = cdb.block_command(opcode, 2, 2, bytchk << cdb.BYTCHK_SHIFT)
    assert initiator.execute(built, pattern(1024)) is GOOD
    assert initiator.volume.calls == [("write", 1024, 1024, True), ("read", 1024, 1024, False)]


def test_write_and_verify_finds_what_the_medium_changed() -> None:
    initiator = Initiator()
    initiator.volume.hold = True
    command = initiator.submit(
        cdb.block_command(Opcode.WRITE_AND_VERIFY_10, 0, 2, 1 << cdb.BYTCHK_SHIFT), pattern(1024)
    )
    initiator.volume.content[700] ^= 1
    while initiator.volume.release():
        pass
    assert sense_of(command.result) == sense.miscompare_during_verify(700)


@pytest.mark.parametrize(
    "built",
    [
        cdb.block_command(Opcode.WRITE_AND_VERIFY_10, 0, 2, 1 << cdb.BYTCHK_SHIFT),
        cdb.verify(0, 2, bytchk=1),
    ],
)
def test_data_out_is_not_looked_at_after_the_turn(built: bytes) -> None:
    """A front end reads the next commands into the same buffer."""
    initiator = Initiator()
    initiator.volume.content[:1024] = pattern(1024)
    initiator.volume.hold = True
    received = bytearray(pattern(1024))
    command = initiator.submit(built, memoryview(received))
    received[:] = bytes(1024)
    while initiator.volume.release():
        pass
    assert command.result is GOOD


@pytest.mark.parametrize("opcode", VERIFIES)
def test_verify_compares_every_byte(initiator: Initiator, opcode: Opcode) -> None:
    size = 3 * block_size(initiator)
    initiator.volume.content[: 2 * size] = pattern(2 * size)
    built = cdb.block_command(opcode, 0, 3, 1 << cdb.BYTCHK_SHIFT)
    assert initiator.execute(built, pattern(size)) is GOOD
    for place in (0, 511, size // 2, size - 1):
        changed = bytearray(pattern(size))
        changed[place] ^= 0x80
        assert sense_of(initiator.execute(built, changed)) == sense.miscompare_during_verify(place)


def test_verify_with_one_block_compares_all_blocks_with_it() -> None:
    initiator = Initiator()
    block = pattern(512)
    initiator.volume.content[:2048] = block * 4
    built = cdb.verify(0, 4, bytchk=3)
    assert initiator.execute(built, block) is GOOD
    initiator.volume.content[1024 + 10] ^= 1
    assert sense_of(initiator.execute(built, block)) == sense.miscompare_during_verify(10)


def test_verify_of_the_medium_takes_no_data_and_reads_all() -> None:
    initiator = Initiator(MemoryVolume(4 * MIB))
    assert initiator.execute(cdb.verify(0, 3 * MIB // 512)) is GOOD
    assert initiator.volume.calls == [
        ("read", at, CHUNK_BYTES, False) for at in range(0, 3 * MIB, CHUNK_BYTES)
    ]


def test_verify_compares_beyond_the_first_chunk() -> None:
    initiator = Initiator(MemoryVolume(4 * MIB))
    data = bytearray(2 * MIB)
    data[-1] = 1
    result = initiator.execute(cdb.verify(0, 2 * MIB // 512, bytchk=1), data)
    assert sense_of(result) == sense.miscompare_during_verify(2 * MIB - 1)


@pytest.mark.parametrize(
    ("opcode", "bytchk"),
    [*((opcode, 2) for opcode in VERIFIES + WRITE_AND_VERIFY), *((opcode, 3) for opcode in WRITE_AND_VERIFY)],
)
def test_reserved_bytchk_is_an_invalid_field(opcode: Opcode, bytchk: int) -> None:
    result = Initiator().execute(cdb.block_command(opcode, 0, 1, bytchk << cdb.BYTCHK_SHIFT), bytes(512))
    assert sense_of(result) == sense.invalid_field_in_cdb(1, 2)


@pytest.mark.parametrize(
    "built",
    [
        cdb.verify(0, 2, bytchk=1),
        cdb.verify(0, 2, bytchk=3),
        cdb.write_same(0, 2),
        cdb.write_same(0, 2, unmap=True),
    ],
)
def test_too_little_data_is_a_parameter_list_length_error(built: bytes) -> None:
    initiator = Initiator()
    assert sense_of(initiator.execute(built, bytes(511))) == sense.PARAMETER_LIST_LENGTH_ERROR
    assert not initiator.volume.calls


@pytest.mark.parametrize("opcode", WRITE_SAMES)
@pytest.mark.parametrize("size", [0, 513, 1024])
def test_write_same_takes_exactly_one_block(opcode: Opcode, size: int) -> None:
    result = Initiator().execute(cdb.block_command(opcode, 0, 2), bytes(size))
    assert sense_of(result) == sense.PARAMETER_LIST_LENGTH_ERROR


# SYNCHRONIZE CACHE, PRE-FETCH


@pytest.mark.parametrize("opcode", [Opcode.SYNCHRONIZE_CACHE_10, Opcode.SYNCHRONIZE_CACHE_16])
def test_synchronize_cache_is_answered_when_the_flush_is(opcode: Opcode) -> None:
    initiator = Initiator()
    initiator.volume.hold = True
    command = initiator.submit(cdb.block_command(opcode, 0, 0, cdb.IMMED))
    assert command.results == []
    assert initiator.volume.release()
    assert command.result is GOOD


@pytest.mark.parametrize("opcode", [Opcode.PRE_FETCH_10, Opcode.PRE_FETCH_16])
def test_pre_fetch_reads_and_returns_nothing(opcode: Opcode) -> None:
    initiator = Initiator()
    assert initiator.execute(cdb.block_command(opcode, 4, 8)) is GOOD
    assert initiator.volume.calls == [("read", 2048, 4096, False)]


def test_pre_fetch_up_to_the_end_reads_one_transfer_at_most() -> None:
    initiator = Initiator(MemoryVolume(2 * MIB), limits=Limits(transfer_bytes_max=MIB))
    assert initiator.execute(cdb.block_command(Opcode.PRE_FETCH_10, 0, 0)) is GOOD
    assert initiator.volume.calls == [("read", 0, MIB, False)]


# WRITE SAME, UNMAP


@pytest.mark.parametrize("opcode", WRITE_SAMES)
@pytest.mark.parametrize("flags", [0, cdb.UNMAP_BIT])
def test_write_same_of_a_pattern_writes_it(initiator: Initiator, opcode: Opcode, flags: int) -> None:
    block = pattern(block_size(initiator))
    assert initiator.execute(cdb.block_command(opcode, 1, 5, flags), block) is GOOD
    size = block_size(initiator)
    assert initiator.volume.content[: 7 * size] == bytes(size) + block * 5 + bytes(size)
    assert set(initiator.volume.names()) == {"write"}


@pytest.mark.parametrize("opcode", WRITE_SAMES)
@pytest.mark.parametrize("flags", [0, cdb.UNMAP_BIT])
def test_write_same_of_zeros_is_one_zero(initiator: Initiator, opcode: Opcode, flags: int) -> None:
    size = block_size(initiator)
    initiator.volume.content[: 7 * size] = b"\xff" * (7 * size)
    assert initiator.execute(cdb.block_command(opcode, 1, 5, flags), bytes(size)) is GOOD
    assert initiator.volume.content[: 7 * size] == b"\xff" * size + bytes(5 * size) + b"\xff" * size
    assert initiator.volume.calls == [("zero", size, 5 * size, False)]


def test_write_same_without_data_out_is_zeros() -> None:
    initiator = Initiator()
    built = cdb.block_command(Opcode.WRITE_SAME_16, 1, 5, cdb.NDOB)
    assert initiator.execute(built) is GOOD
    assert initiator.volume.calls == [("zero", 512, 5 * 512, False)]


def test_write_same_10_has_no_ndob() -> None:
    result = Initiator().execute(cdb.block_command(Opcode.WRITE_SAME_10, 1, 5, cdb.NDOB), bytes(512))
    assert sense_of(result) == sense.invalid_field_in_cdb(1, 0)


def test_a_long_write_same_goes_in_chunks() -> None:
    initiator = Initiator(MemoryVolume(4 * MIB))
    block = pattern(512)
    assert initiator.execute(cdb.write_same(1, 2 * MIB // 512 + 3), block) is GOOD
    assert initiator.volume.content[512 : 512 + 2 * MIB + 1536] == block * (2 * MIB // 512 + 3)
    assert [length for _, _, length, _ in initiator.volume.calls] == [MIB, MIB, 1536]


@pytest.mark.parametrize("opcode", WRITE_SAMES)
def test_write_same_must_say_how_many(opcode: Opcode) -> None:
    built = cdb.block_command(opcode, 0, 0)
    assert sense_of(Initiator().execute(built, bytes(512))) == sense.invalid_field_in_cdb(
        cdb.blocks_byte(built)
    )


@pytest.mark.parametrize("opcode", WRITE_SAMES)
def test_write_same_limit_is_enforced(opcode: Opcode) -> None:
    initiator = Initiator(limits=Limits(write_same_bytes_max=8 * 512))
    assert initiator.execute(cdb.block_command(opcode, 0, 8), bytes(512)) is GOOD
    built = cdb.block_command(opcode, 0, 9)
    assert sense_of(initiator.execute(built, bytes(512))) == sense.invalid_field_in_cdb(
        cdb.blocks_byte(built)
    )


@pytest.mark.parametrize("opcode", WRITE_SAMES)
def test_write_same_with_anchor_is_refused(opcode: Opcode) -> None:
    result = Initiator().execute(cdb.block_command(opcode, 0, 1, cdb.UNMAP_BIT | cdb.ANCHOR), bytes(512))
    assert sense_of(result) == sense.invalid_field_in_cdb(1, 4)


def unmap(initiator: Initiator, *ranges: tuple[int, int]) -> ScsiResult:
    data = cdb.unmap_parameter_list(ranges)
    return initiator.execute(cdb.unmap(len(data)), data)


def test_unmap_zeroes_every_range(initiator: Initiator) -> None:
    size = block_size(initiator)
    initiator.volume.content[: 16 * size] = b"\xff" * (16 * size)
    assert unmap(initiator, (1, 2), (9, 0), (4, 1)) is GOOD
    assert initiator.volume.calls == [("zero", size, 2 * size, False), ("zero", 4 * size, size, False)]


def test_a_bad_descriptor_stops_all_of_the_command(initiator: Initiator) -> None:
    blocks = initiator.volume.size_bytes // block_size(initiator)
    assert sense_of(unmap(initiator, (1, 2), (blocks - 1, 2))) == sense.lba_out_of_range(blocks)
    assert sense_of(unmap(initiator, (1, 2), (2**64 - 1, 2**32 - 1))).asc == 0x21
    assert not initiator.volume.calls


def test_unmap_limits_are_enforced() -> None:
    initiator = Initiator(limits=Limits(unmap_bytes_max=8 * 512, unmap_descriptors_max=2))
    assert unmap(initiator, (0, 4), (8, 4)) is GOOD
    assert sense_of(unmap(initiator, (0, 4), (8, 5))) == sense.invalid_field_in_parameter_list(8 + 16 + 8)
    assert sense_of(unmap(initiator, (0, 1), (1, 1), (2, 1))) == sense.invalid_field_in_parameter_list(2)


def test_unmap_without_ranges_is_no_error() -> None:
    initiator = Initiator()
    assert initiator.execute(cdb.unmap(0)) is GOOD
    assert unmap(initiator) is GOOD
    assert not initiator.volume.calls


def test_an_incomplete_last_descriptor_is_ignored() -> None:
    initiator = Initiator()
    data = struct.pack(">HH4x", 6 + 24, 24) + struct.pack(">QI4x", 1, 1) + bytes(8)
    assert initiator.execute(cdb.unmap(len(data)), data) is GOOD
    assert initiator.volume.calls == [("zero", 512, 512, False)]


@pytest.mark.parametrize(("length", "sent"), [(7, 7), (24, 23), (24, 0)])
def test_a_short_unmap_list_is_a_parameter_list_length_error(length: int, sent: int) -> None:
    data = cdb.unmap_parameter_list([(0, 1)])[:sent]
    assert sense_of(Initiator().execute(cdb.unmap(length), data)) == sense.PARAMETER_LIST_LENGTH_ERROR


def test_unmap_with_anchor_is_refused() -> None:
    built = bytearray(cdb.unmap(24))
    built[1] = 1
    result = Initiator().execute(bytes(built), cdb.unmap_parameter_list([(0, 1)]))
    assert sense_of(result) == sense.invalid_field_in_cdb(1, 0)


def test_a_failure_in_the_middle_of_an_unmap_ends_it() -> None:
    initiator = Initiator()
    initiator.volume.hold = True
    data = cdb.unmap_parameter_list([(0, 1), (8, 1), (16, 1)])
    command = initiator.submit(cdb.unmap(len(data)), data)
    assert initiator.volume.release()
    initiator.volume.failures["zero"] = VolumeError.NO_SPACE
    assert initiator.volume.release()
    while initiator.volume.release():
        pass
    assert sense_of(command.result) == sense.SPACE_ALLOCATION_FAILED
    assert initiator.volume.names() == ["zero", "zero", "zero"]


def test_many_steps_answered_at_once_do_not_deepen_the_stack() -> None:
    limits = Limits(unmap_descriptors_max=4000)
    initiator = Initiator(MemoryVolume(4 * MIB), limits=limits)
    assert unmap(initiator, *((at, 1) for at in range(4000))) is GOOD
    assert len(initiator.volume.calls) == 4000


def test_sense_points_into_the_parameter_list() -> None:
    initiator = Initiator(limits=Limits(unmap_descriptors_max=1))
    got = sense_of(unmap(initiator, (0, 1), (1, 1)))
    assert got.key is SenseKey.ILLEGAL_REQUEST
    assert got.field_pointer == FieldPointer(2, None, in_cdb=False)
