"""EXTENDED COPY: what it copies, what it refuses, whose reservations count."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from target.scsi import cdb, sense
from target.scsi.cdb import Opcode
from target.scsi.command import GOOD, ScsiResult
from target.scsi.device_server import Device
from target.scsi.extended_copy_data import CopyList, decode_copy_list
from target.scsi.inquiry import naa_identifier
from target.scsi.logical_unit import LogicalUnit
from target.scsi.sense import Sense, SenseKey
from tests.unit.scsi.initiator import Initiator, data_of, sense_of
from tests.unit.scsi.memory_volume import MemoryVolume

SMALL, LARGE = 0, 1
SIZE = 8 << 20
RESERVE_6 = bytes((Opcode.RESERVE_6, 0, 0, 0, 0, 0))


class Hosts:
    """Two initiators of a device with a unit of 512-byte and one of 4096-byte blocks."""

    def __init__(self) -> None:
        self.volumes = [MemoryVolume(SIZE, 512, serial="small"), MemoryVolume(SIZE, 4096, serial="large")]
        for at, volume in enumerate(self.volumes):
            volume.content[:] = bytes((at + 1,)) * SIZE
        device = Device({at: LogicalUnit(volume) for at, volume in enumerate(self.volumes)})
        self.host = Initiator(self.volumes[0], device=device)
        self.other = Initiator(self.volumes[0], device=device, name="iqn.2024-01.example:other")


def cscd(serial: str) -> bytes:
    return struct.pack(">B3xBBxB20s4x", 0xE4, 1, 3, 8, naa_identifier(serial))


def segment(blocks: int, source: tuple[int, int], destination: tuple[int, int]) -> bytes:
    """`source` and `destination`: (place of the descriptor, lba)."""
    return struct.pack(">BxHHHxxHQQ", 0x02, 24, source[0], destination[0], blocks, source[1], destination[1])


def copy(
    host: Initiator, cscds: list[bytes], segments: list[bytes], *, list_id: int = 1, flags: int = 0
) -> ScsiResult:
    names, plan = b"".join(cscds), b"".join(segments)
    data = struct.pack(">BBH4xII", list_id, flags, len(names), len(plan), 0) + names + plan
    return host.execute(struct.pack(">B9xIxx", Opcode.EXTENDED_COPY, len(data)), data)


def results(host: Initiator, action: int, list_id: int = 0) -> ScsiResult:
    return host.execute(struct.pack(">BBB7xIxx", Opcode.RECEIVE_COPY_RESULTS, action, list_id, 255))


def test_blocks_are_copied_between_units_and_within_one() -> None:
    hosts = Hosts()
    small, large = hosts.volumes
    small.content[512:1024] = b"x" * 512
    plan = [segment(4096, (0, 0), (1, 100)), segment(8, (0, 1), (0, 8000))]
    assert copy(hosts.host, [cscd("small"), cscd("large")], plan) is GOOD
    assert large.content[100 * 4096 : 100 * 4096 + (2 << 20)] == small.content[: 2 << 20]
    assert large.content[99 * 4096 : 100 * 4096] == b"\2" * 4096
    assert small.content[8000 * 512 : 8001 * 512] == b"x" * 512
    assert data_of(results(hosts.host, 0, 1)) == struct.pack(">IBHBI", 8, 1, 2, 1, 2052)
    assert sense_of(results(hosts.host, 0, 1)) == sense.invalid_field_in_cdb(2), "told once"


def test_zeros_take_no_space() -> None:
    hosts = Hosts()
    small, large = hosts.volumes
    small.content[: 1 << 20] = bytes(1 << 20)
    assert copy(hosts.host, [cscd("small"), cscd("large")], [segment(2048, (0, 0), (1, 0))]) is GOOD
    assert large.calls == [("zero", 0, 1 << 20, False)]


@pytest.mark.parametrize(
    ("plan", "expected"),
    [
        (segment(8, (0, 0), (2, 0)), sense.COPY_TARGET_UNREACHABLE),
        (segment(8, (7, 0), (0, 0)), sense.COPY_TARGET_UNREACHABLE),
        (segment(8, (0, SIZE // 512 - 4), (0, 0)), sense.COPY_SEGMENT_FAILED),
        (segment(8, (0, 0), (1, SIZE // 4096)), sense.COPY_SEGMENT_FAILED),
        (segment(4, (0, 0), (1, 0)), sense.COPY_SEGMENT_FAILED),
    ],
)
def test_a_segment_that_cannot_be_copied_aborts_the_copy(plan: bytes, expected: Sense) -> None:
    hosts = Hosts()
    good = segment(8, (0, 0), (1, 5))
    result = copy(hosts.host, [cscd("small"), cscd("large")], [good, plan])
    assert sense_of(result) == expected
    assert hosts.volumes[1].names() == ["write"], "the first was copied"
    assert data_of(results(hosts.host, 0, 1))[4:7] == bytes((2, 0, 1))


def test_a_unit_that_is_not_of_this_device_is_unreachable() -> None:
    hosts = Hosts()
    result = copy(hosts.host, [cscd("elsewhere")], [segment(1, (0, 0), (0, 1))])
    assert sense_of(result) == sense.COPY_TARGET_UNREACHABLE


def test_reservations_and_write_protection_of_the_other_unit_count() -> None:
    hosts = Hosts()
    plan = [segment(8, (0, 0), (1, 0))]
    names = [cscd("small"), cscd("large")]
    assert hosts.other.execute(RESERVE_6, lun=LARGE) is GOOD
    assert sense_of(copy(hosts.host, names, plan)) == sense.COPY_TARGET_UNREACHABLE
    hosts.host.device.reset(LARGE)
    hosts.volumes[LARGE].read_only_now = True
    assert sense_of(copy(hosts.host, names, plan)) == Sense(SenseKey.COPY_ABORTED, 0x27, 0x00)
    assert hosts.volumes[LARGE].calls == []


def test_a_copy_waits_at_the_gate_of_its_destination() -> None:
    hosts = Hosts()
    volume = hosts.volumes[SMALL]
    volume.content[:512] = bytes(512)
    volume.hold = True
    first = hosts.other.submit(cdb.compare_and_write(0, 1), bytes(512) + b"\7" * 512)
    while volume.names()[-1] != "barrier":
        assert volume.release()
    names, plan = cscd("small"), segment(1, (0, 9), (0, 0))
    data = struct.pack(">BBH4xII", 1, 0, len(names), len(plan), 0) + names + plan
    second = hosts.host.submit(struct.pack(">B9xIxx", Opcode.EXTENDED_COPY, len(data)), data)
    while volume.release():
        pass
    assert first.result is GOOD
    assert second.result is GOOD
    assert volume.content[:512] == b"\1" * 512


@pytest.mark.parametrize(
    ("names", "plans", "expected"),
    [
        (3, 1, sense.TOO_MANY_TARGET_DESCRIPTORS),
        (1, 9, sense.TOO_MANY_SEGMENT_DESCRIPTORS),
        (3, 9, sense.PARAMETER_LIST_LENGTH_ERROR),
    ],
)
def test_descriptors_are_bounded(names: int, plans: int, expected: Sense) -> None:
    result = copy(Hosts().host, [cscd("small")] * names, [segment(1, (0, 0), (0, 1))] * plans)
    assert sense_of(result) == expected


def test_other_descriptors_are_refused() -> None:
    hosts = Hosts()
    plan = segment(1, (0, 0), (0, 1))
    assert (
        sense_of(copy(hosts.host, [b"\xe0" + bytes(31)], [plan])) == sense.UNSUPPORTED_TARGET_DESCRIPTOR_TYPE
    )
    result = copy(hosts.host, [cscd("small")], [b"\3" + plan[1:]])
    assert sense_of(result) == sense.UNSUPPORTED_SEGMENT_DESCRIPTOR_TYPE


def test_results_that_are_not_to_be_held_are_not() -> None:
    hosts = Hosts()
    plan = [segment(1, (0, 0), (0, 1))]
    assert copy(hosts.host, [cscd("small")], plan, flags=0x10) is GOOD
    assert sense_of(results(hosts.host, 0, 1)) == sense.invalid_field_in_cdb(2)


def test_operating_parameters_tell_the_limits() -> None:
    data = data_of(results(Initiator(), 3))
    assert int.from_bytes(data[:4], "big") == len(data) - 4
    assert struct.unpack_from(">HHI", data, 8) == (2, 8, 2 * 32 + 8 * 28)
    assert data[43:] == bytes((2, 0x02, 0xE4))


@given(st.binary(max_size=120))
def test_any_parameter_list_is_a_copy_or_refused(data: bytes) -> None:
    assert isinstance(decode_copy_list(data), CopyList | Sense)


@given(st.binary(max_size=120), st.integers(0, 96), st.integers(0, 96))
def test_lengths_that_lie_are_refused(body: bytes, cscd_bytes: int, segment_bytes: int) -> None:
    data = struct.pack(">BBH4xII", 1, 0, cscd_bytes, segment_bytes, 0) + body
    decoded = decode_copy_list(data)
    if isinstance(decoded, CopyList):
        assert cscd_bytes + segment_bytes <= len(body)
