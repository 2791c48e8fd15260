"""COMPARE AND WRITE, ORWRITE and WRITE ATOMIC: what they write, and that nothing comes between."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from target.scsi import cdb, sense
from target.scsi.cdb import Opcode
from target.scsi.command import GOOD, Status
from target.scsi.inquiry import Limits
from target.volume import VolumeError
from tests.unit.scsi.initiator import Initiator, RecordedCommand, sense_of
from tests.unit.scsi.memory_volume import MemoryVolume

BLOCK = 512


def block(value: int, count: int = 1) -> bytes:
    return bytes((value,)) * BLOCK * count


def compare_and_write(initiator: Initiator, lba: int, old: bytes, new: bytes) -> RecordedCommand:
    return initiator.submit(cdb.compare_and_write(lba, len(old) // BLOCK), old + new)


def or_write(lba: int, blocks: int) -> bytes:
    return cdb.block_command(Opcode.ORWRITE_16, lba, blocks)


def release_all(volume: MemoryVolume) -> None:
    while volume.release():
        pass


def test_equal_blocks_are_written() -> None:
    initiator = Initiator()
    assert compare_and_write(initiator, 3, block(0, 2), block(7, 2)).result is GOOD
    assert initiator.volume.content[3 * BLOCK : 5 * BLOCK] == block(7, 2)
    assert initiator.volume.calls[-1] == ("write", 3 * BLOCK, 2 * BLOCK, False)


def test_the_first_byte_that_differs_is_told_and_nothing_is_written() -> None:
    initiator = Initiator()
    initiator.volume.content[2 * BLOCK + 300] = 1
    result = compare_and_write(initiator, 1, block(0, 3), block(7, 3)).result
    assert sense_of(result) == sense.miscompare_during_verify(BLOCK + 300)
    assert "write" not in initiator.volume.names()
    assert initiator.execute(cdb.write(1, 1), block(1)) is GOOD, "the gate is open again"


@pytest.mark.parametrize("data_blocks", [1, 3, 4])
def test_data_that_do_not_fit_the_number_of_blocks_are_refused(data_blocks: int) -> None:
    result = Initiator().execute(cdb.compare_and_write(0, 1), block(0, data_blocks))
    assert sense_of(result) == sense.invalid_field_in_cdb(13)


def test_the_maximum_compare_and_write_length_is_enforced() -> None:
    initiator = Initiator(limits=Limits(compare_and_write_bytes_max=2 * BLOCK))
    assert initiator.execute(cdb.compare_and_write(0, 2), block(0, 4)) is GOOD
    result = initiator.execute(cdb.compare_and_write(0, 3), block(0, 6))
    assert sense_of(result) == sense.invalid_field_in_cdb(13)


def test_zero_blocks_compare_and_write_nothing() -> None:
    initiator = Initiator()
    assert initiator.execute(cdb.compare_and_write(0, 0)) is GOOD
    assert initiator.execute(or_write(0, 0)) is GOOD
    assert initiator.volume.calls == []


def test_fua_waits_for_the_journal() -> None:
    initiator = Initiator()
    assert initiator.execute(cdb.compare_and_write(0, 1, fua=True), block(0) + block(1)) is GOOD
    assert initiator.volume.calls[-1] == ("write", 0, BLOCK, True)


@given(st.binary(min_size=BLOCK, max_size=BLOCK), st.binary(min_size=BLOCK, max_size=BLOCK))
def test_orwrite_sets_bits(before: bytes, mask: bytes) -> None:
    initiator = Initiator()
    initiator.volume.content[BLOCK : 2 * BLOCK] = before
    assert initiator.execute(or_write(1, 1), mask) is GOOD
    assert initiator.volume.content[BLOCK : 2 * BLOCK] == bytes(
        a | b for a, b in zip(before, mask, strict=True)
    )


def test_orwrite_with_less_data_than_blocks_is_refused() -> None:
    assert sense_of(Initiator().execute(or_write(0, 2), block(1))) == sense.PARAMETER_LIST_LENGTH_ERROR


@pytest.mark.parametrize("command", [cdb.compare_and_write(0, 1), or_write(0, 1), cdb.write_atomic(0, 1)])
def test_a_write_protected_volume_refuses_them(command: bytes) -> None:
    initiator = Initiator()
    initiator.volume.read_only_now = True
    blocks = 2 if command[0] == Opcode.COMPARE_AND_WRITE else 1
    assert sense_of(initiator.execute(command, block(0, blocks))) == sense.WRITE_PROTECTED


# One action

WRITES = [
    (cdb.write(1, 1), block(9)),
    (cdb.block_command(Opcode.WRITE_16, 1, 1), block(9)),
    (cdb.block_command(Opcode.WRITE_AND_VERIFY_10, 1, 1), block(9)),
    (cdb.write_same(1, 1), block(9)),
    (cdb.write_same(1, 1), block(0)),
    (cdb.unmap(24), cdb.unmap_parameter_list([(1, 1)])),
    (cdb.write_atomic(1, 1), block(9)),
    (or_write(1, 1), block(9)),
]


@pytest.mark.parametrize(("built", "data"), WRITES, ids=lambda each: f"{each[0]:02x}")
def test_no_write_comes_between_the_comparison_and_the_write(built: bytes, data: bytes) -> None:
    """From the moment the command asked what is written before it, until it has written; else the 7 would
    be what stays.
    """
    initiator = Initiator()
    other = Initiator(device=initiator.device, volume=initiator.volume, name="iqn.2024-01.example:other")
    volume = initiator.volume
    volume.hold = True
    first = compare_and_write(initiator, 1, block(0), block(7))
    while volume.names()[-1] != "barrier":
        assert volume.release()
    buffer = bytearray(data)
    second = other.submit(built, buffer)
    buffer[:] = bytes(len(buffer))  # the receive buffer is used again after the turn
    assert not {"write", "zero"} & set(volume.names())
    release_all(volume)
    assert first.result is GOOD
    assert second.result.status is Status.GOOD
    expected = block(7 | 9) if built[0] == Opcode.ORWRITE_16 else block(data[0] if len(data) == BLOCK else 0)
    assert volume.content[BLOCK : 2 * BLOCK] == expected


def test_of_two_that_compare_with_the_same_only_one_writes() -> None:
    initiator = Initiator()
    volume = initiator.volume
    volume.hold = True
    commands = [compare_and_write(initiator, 0, block(0), block(number)) for number in range(1, 9)]
    release_all(volume)
    results = [command.result.status for command in commands]
    assert results == [Status.GOOD, *[Status.CHECK_CONDITION] * 7]
    assert volume.content[:BLOCK] == block(1)


@pytest.mark.parametrize("call", ["read", "barrier", "write"])
def test_after_a_failure_others_go_on(call: str) -> None:
    initiator = Initiator()
    volume = initiator.volume
    volume.failures[call] = VolumeError.NOT_READY
    result = compare_and_write(initiator, 0, block(0), block(1)).result
    assert sense_of(result) == sense.BECOMING_READY
    volume.failures.clear()
    assert initiator.execute(cdb.write(0, 1), block(3)) is GOOD
    assert compare_and_write(initiator, 0, block(3), block(1)).result is GOOD


# WRITE ATOMIC


def test_an_atomic_write_is_one_write() -> None:
    initiator = Initiator(MemoryVolume(4 << 20))
    data = block(5, 2048)
    assert initiator.execute(cdb.write_atomic(0, 2048), data) is GOOD
    assert initiator.volume.calls == [("write", 0, len(data), False)]


def test_the_maximum_atomic_length_is_enforced() -> None:
    initiator = Initiator(limits=Limits(atomic_bytes_max=BLOCK))
    assert sense_of(initiator.execute(cdb.write_atomic(0, 2), block(0, 2))) == sense.invalid_field_in_cdb(12)


def test_an_atomic_write_that_is_cut_short_is_not_written_in_part() -> None:
    initiator = Initiator()
    result = initiator.execute(cdb.write_atomic(0, 4), block(1, 3))
    assert sense_of(result) == sense.PARAMETER_LIST_LENGTH_ERROR
    assert initiator.volume.calls == []
