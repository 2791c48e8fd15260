"""LOG SENSE: which pages there are, and that they say what is."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from target.blockdev import FileDevice
from target.scsi import cdb, sense
from target.scsi.inquiry import VpdPage
from target.volume import Space
from tests.unit.scsi.initiator import Initiator, data_of, sense_of
from tests.unit.scsi.memory_volume import MemoryVolume

MIB = 1 << 20
PROVISIONING, EXCEPTIONS = 0x0C, 0x2F


class Below:
    """The device below a volume, as far as space goes."""

    def __init__(self, used_bytes: int = 0, available_bytes: int = 0) -> None:
        self.now = Space(used_bytes, available_bytes)
        self.fails = False

    def __call__(self) -> Space:
        if self.fails:
            raise OSError("gone")
        return self.now


def parameters(initiator: Initiator, page: int, pointer: int = 0) -> dict[int, bytes]:
    data = data_of(initiator.execute(cdb.log_sense(page, parameter_pointer=pointer)))
    assert data[:2] == bytes((0x80 | page, 0)), "not saved, no subpage"
    assert int.from_bytes(data[2:4], "big") == len(data) - 4
    found, rest = {}, data[4:]
    while rest:
        code, control, length = struct.unpack_from(">HBB", rest)
        assert control & 0x03 == 0x03, "a binary list"
        found[code] = rest[4 : 4 + length]
        rest = rest[4 + length :]
    return found


def counts(initiator: Initiator) -> tuple[int, int]:
    """Threshold sets (available, used)."""
    found = parameters(initiator, PROVISIONING)
    assert {code: value[4] for code, value in found.items()} == {1: 0x02, 2: 0x01}, "shared; its own"
    return int.from_bytes(found[1][:4], "big"), int.from_bytes(found[2][:4], "big")


def test_the_pages_that_are_listed_are_there_and_no_others() -> None:
    for initiator in (Initiator(), Initiator(space=Below())):
        data = data_of(initiator.execute(cdb.log_sense(0)))
        assert data[:2] == b"\0\0"
        listed = data[4:]
        assert len(listed) == int.from_bytes(data[2:4], "big")
        found = [page for page in range(0x40) if initiator.execute(cdb.log_sense(page)).status == 0]
        assert list(listed) == found
        with_subpages = data_of(initiator.execute(cdb.log_sense(0, subpage=0xFF)))
        assert with_subpages[:2] == b"\x40\xff"
        pairs = list(struct.iter_unpack("BB", with_subpages[4:]))
        assert pairs == sorted([(page, 0) for page in found] + [(0, 0xFF)])


def test_space_is_told_only_where_it_is_known() -> None:
    assert sense_of(Initiator().execute(cdb.log_sense(PROVISIONING))) == sense.invalid_field_in_cdb(2, 5)


@pytest.mark.parametrize("block_size", [512, 4096])
def test_resource_counts_are_in_the_sets_that_the_vpd_page_tells(block_size: int) -> None:
    below = Below(5 * MIB + 1, 70 * MIB)
    initiator = Initiator(MemoryVolume(8 * MIB, block_size), space=below)
    page = data_of(initiator.execute(cdb.inquiry(page=VpdPage.LOGICAL_BLOCK_PROVISIONING)))
    set_bytes = block_size << page[4]
    assert page[4], "with zero there would be no thresholds, and no counts"
    assert counts(initiator) == (70 * MIB // set_bytes, 5 * MIB // set_bytes)
    below.now = Space(6 * MIB, 69 * MIB)
    assert counts(initiator) == (69 * MIB // set_bytes, 6 * MIB // set_bytes)
    below.now = Space(0, 1 << 60)
    assert counts(initiator) == (0xFFFFFFFF, 0), "more than the field can tell"
    below.fails = True
    assert sense_of(initiator.execute(cdb.log_sense(PROVISIONING))) == sense.UNRECOVERED_READ_ERROR


def test_a_file_takes_what_was_written_to_it(tmp_path: Path) -> None:
    device = FileDevice(tmp_path / "volume", create_bytes=64 * MIB)
    initiator = Initiator(space=device.space)
    assert counts(initiator)[1] == 0
    assert device.space().available_bytes > 0
    device.pwritev([b"x" * (4 * MIB)], 8 * MIB)
    device.flush()
    assert counts(initiator)[1] == 4
    device.punch(8 * MIB, 4 * MIB)
    assert counts(initiator)[1] == 0
    device.close()


def test_a_damaged_volume_is_an_informational_exception() -> None:
    initiator = Initiator()
    assert parameters(initiator, EXCEPTIONS) == {0: b"\0\0\xff\0"}
    initiator.volume.failed_now = True
    assert parameters(initiator, EXCEPTIONS) == {0: b"\x3e\x01\xff\0"}


def test_parameters_before_the_pointer_are_left_out() -> None:
    initiator = Initiator(space=Below())
    assert list(parameters(initiator, PROVISIONING, 1)) == [1, 2]
    assert list(parameters(initiator, PROVISIONING, 2)) == [2]
    whole = data_of(initiator.execute(cdb.log_sense(PROVISIONING)))
    assert data_of(initiator.execute(cdb.log_sense(PROVISIONING, 9))) == whole[:9]


@pytest.mark.parametrize(
    ("built", "expected"),
    [
        (cdb.log_sense(PROVISIONING, parameter_pointer=3), sense.invalid_field_in_cdb(5)),
        (cdb.log_sense(0, parameter_pointer=1), sense.invalid_field_in_cdb(5)),
        (cdb.log_sense(0, subpage=1), sense.invalid_field_in_cdb(2, 5)),
        (cdb.log_sense(EXCEPTIONS, subpage=0xFF), sense.invalid_field_in_cdb(3)),
        (cdb.log_sense(0x0D), sense.invalid_field_in_cdb(2, 5)),
        (b"\x4d\x01" + cdb.log_sense(0)[2:], sense.invalid_field_in_cdb(1, 0)),  # SP
    ],
)
def test_what_is_not_there_is_refused(built: bytes, expected: sense.Sense) -> None:
    assert sense_of(Initiator(space=Below()).execute(built)) == expected
