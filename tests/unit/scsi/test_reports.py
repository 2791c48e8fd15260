"""What is mapped, defects, task management functions and target port groups."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from target.scsi import cdb, sense
from target.scsi.cdb import Opcode
from tests.unit.scsi.initiator import Initiator, data_of, sense_of
from tests.unit.scsi.memory_volume import MemoryVolume

BLOCKS = 3000


def lba_status(host: Initiator, lba: int, room: int) -> list[tuple[int, int, int]]:
    """(lba, blocks, status)."""
    data = data_of(host.execute(cdb.get_lba_status(lba, 8 + 16 * room)))
    assert int.from_bytes(data[:4], "big") == len(data) - 4
    return list(struct.iter_unpack(">QIB3x", data[8:]))


@given(
    st.sampled_from([512, 4096]),
    st.lists(st.tuples(st.integers(0, BLOCKS - 1), st.integers(1, 700), st.integers(0, 7)), max_size=5),
    st.integers(0, BLOCKS - 1),
    st.integers(1, 6),
)
def test_lba_status_tells_runs_of_blocks(
    block_size: int, written: list[tuple[int, int, int]], lba: int, room: int
) -> None:
    volume = MemoryVolume(BLOCKS * block_size, block_size)
    mapped = [False] * BLOCKS
    for start, count, sector in written:
        for block in range(start, min(start + count, BLOCKS)):
            mapped[block] = True
            volume.content[block * block_size + sector * 512 % block_size] = 1  # one sector of it is enough
    found = lba_status(Initiator(volume), lba, room)
    assert len(found) <= room
    at = lba
    for start, count, status in found:
        assert start == at
        assert status == (0 if mapped[at] else 1)
        assert mapped[start : start + count] == [mapped[at]] * count
        at += count
        assert at == BLOCKS or len(found) == 6 or mapped[at] != mapped[start], "a run ends where it must"


@pytest.mark.parametrize("lba", [BLOCKS, 1 << 63, (1 << 64) - 1])
def test_lba_status_behind_the_end_is_refused(lba: int) -> None:
    host = Initiator(MemoryVolume(BLOCKS * 512))
    assert sense_of(host.execute(cdb.get_lba_status(lba))) == sense.lba_out_of_range(max(lba, BLOCKS))


def test_lba_status_looks_at_so_much_and_no_more() -> None:
    volume = MemoryVolume(32 << 20)
    assert lba_status(Initiator(volume), 0, 4) == [(0, (16 << 20) // 512, 1)]


@pytest.mark.parametrize(
    ("built", "answer"),
    [
        ("37 00 1d 00000000 0020 00", "00 1d 0000"),
        ("b7 1d 00000000 00000020 00 00", "00 1d 0000 00000000"),
        ("37 00 05 00000000 0002 00", "00 05"),
    ],
)
def test_defect_lists_are_empty(built: str, answer: str) -> None:
    assert data_of(Initiator().execute(bytes.fromhex(built))) == bytes.fromhex(answer)


@pytest.mark.parametrize(("repd", "answer"), [(0, "da000000"), (0x80, "da00000c" + 12 * "00")])
def test_task_management_functions(repd: int, answer: str) -> None:
    built = struct.pack(">BBBxxxIxB", Opcode.MAINTENANCE_IN, 0x0D, repd, 255, 0)
    assert data_of(Initiator().execute(built)) == bytes.fromhex(answer)


@pytest.mark.parametrize(
    ("format_", "answer"),
    [
        (0x00, "0000000c 00 01 0001 00000001 00000001"),
        (0x20, "00000010 10000000 00 01 0001 00000001 00000001"),
    ],
)
def test_there_is_one_target_port_group_and_it_is_optimized(format_: int, answer: str) -> None:
    built = struct.pack(">BBxxxxIxB", Opcode.MAINTENANCE_IN, format_ | 0x0A, 255, 0)
    host = Initiator()
    assert data_of(host.execute(built)) == bytes.fromhex(answer)
    assert data_of(host.execute(cdb.inquiry()))[5] & 0x30 == 0x10, "implicit asymmetric access"
