"""Dispatch: the short way equals the long one, garbage is answered, unit attentions are reported once."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from target.scsi import cdb, sense
from target.scsi.cdb import Opcode
from target.scsi.command import GOOD, Nexus, ScsiResult, Status
from target.scsi.logical_unit import LogicalUnit
from target.scsi.operation import Operation
from target.scsi.operations import OPERATIONS, operation_of
from target.scsi.sense import Sense, SenseKey, decode_sense
from tests.unit.scsi.initiator import TARGET_PORT, Initiator, RecordedCommand, data_of, sense_of
from tests.unit.scsi.memory_volume import MemoryVolume

SHORT_WAY = [Opcode.READ_10, Opcode.WRITE_10, Opcode.READ_16, Opcode.WRITE_16]
BLOCKS = 64

Way = Callable[[LogicalUnit, RecordedCommand], None]


def long_way(unit: LogicalUnit, command: RecordedCommand) -> None:
    unit.execute_any(command, command.cdb)


@given(
    st.sampled_from(SHORT_WAY),
    st.one_of(st.integers(0, BLOCKS + 2), st.integers(0, 2**32 - 1)),
    st.one_of(st.integers(0, BLOCKS + 2), st.integers(0, 0xFFFF)),
    st.sampled_from([0, 0, 0, cdb.FUA, cdb.DPO, 0x20, 0x01]),
    st.integers(-1, 1),
    st.booleans(),
)
@example(Opcode.READ_10, BLOCKS, 0, 0, 0, False)
@example(Opcode.WRITE_16, BLOCKS - 1, 1, 0, 0, True)
def test_the_short_way_does_what_the_long_way_does(
    opcode: Opcode, lba: int, blocks: int, flags: int, surplus: int, read_only: bool
) -> None:
    data = bytes(at & 0xFF for at in range(max(0, min(blocks, BLOCKS) * 512 + surplus)))
    built = cdb.block_command(opcode, lba, blocks, flags).ljust(16, b"\0")

    def outcome(way: Way) -> tuple[Status, list[bytes], Sense | None, bytes]:
        volume = MemoryVolume(BLOCKS * 512)
        volume.read_only_now = read_only
        volume.content[:] = bytes(at * 3 & 0xFF for at in range(BLOCKS * 512))
        unit = LogicalUnit(volume)
        nexus = Nexus("initiator", TARGET_PORT)
        unit.execute(RecordedCommand(bytes(6), b"", nexus))
        command = RecordedCommand(built, data, nexus)
        way(unit, command)
        result = command.result
        return result.status, [bytes(part) for part in result.data_in], result.sense, bytes(volume.content)

    assert outcome(LogicalUnit.execute) == outcome(long_way)


def test_the_command_itself_is_the_volumes_request() -> None:
    """What the speed of the short way rests on: no object is made for a plain READ or WRITE."""
    initiator = Initiator()
    initiator.volume.requests.clear()
    commands = [
        initiator.submit(cdb.block_command(opcode, 1, 1), bytes(512) if "WRITE" in opcode.name else b"")
        for opcode in SHORT_WAY
    ]
    assert list(initiator.volume.requests) == commands


# Garbage

LEGAL_KEYS = {SenseKey.ILLEGAL_REQUEST, SenseKey.MISCOMPARE}
opcodes = st.one_of(st.sampled_from([int(opcode) for opcode in Opcode]), st.integers(0, 255))


@given(opcodes, st.binary(max_size=15), st.binary(max_size=2048))
def test_any_cdb_is_answered_once_and_as_declared(opcode: int, rest: bytes, data: bytes) -> None:
    initiator = Initiator()
    command = RecordedCommand(bytes((opcode,)) + rest, data, initiator.nexus)
    initiator.device.execute(0, command)
    assert_declared(command.result)


@given(st.data(), st.sampled_from(OPERATIONS), st.binary(max_size=2048))
def test_any_fields_of_a_known_command_are_answered_as_declared(
    draw: st.DataObject, known: Operation, data: bytes
) -> None:
    built = bytes((known.opcode,)) + bytes(draw.draw(st.integers(0, 255)) & mask for mask in known.usage[1:])
    if known.service_action is not None:
        built = built[:1] + bytes((known.service_action,)) + built[2:]
    assert operation_of(built) is known
    initiator = Initiator()
    assert_declared(initiator.execute(built, data))


def assert_declared(result: ScsiResult) -> None:
    if result.status is Status.GOOD:
        assert result.sense is None
    else:
        found = sense_of(result)
        assert found.key in LEGAL_KEYS
        assert decode_sense(found.encode_descriptor()) == found
        assert "additional sense code" not in str(found)


@pytest.mark.parametrize("built", [b"", b"\x28", bytes(5), cdb.read(0, 1)[:9], cdb.read(0, 1)])
def test_a_cdb_that_is_cut_short_is_refused_at_its_end(built: bytes) -> None:
    initiator = Initiator()
    command = RecordedCommand(built, b"", initiator.nexus)
    initiator.device.execute(0, command)
    if not built:
        assert sense_of(command.result) == sense.INVALID_COMMAND_OPERATION_CODE
    elif len(built) in (6, 10):
        assert command.result.status is Status.GOOD
    else:
        assert sense_of(command.result) == sense.invalid_field_in_cdb(len(built))


@pytest.mark.parametrize("opcode", sorted(set(range(256)) - {operation.opcode for operation in OPERATIONS}))
def test_unknown_opcodes_are_said_to_be_so(opcode: int) -> None:
    result = Initiator().execute(bytes((opcode,)))
    assert sense_of(result) == sense.INVALID_COMMAND_OPERATION_CODE


@pytest.mark.parametrize("opcode", [Opcode.SERVICE_ACTION_IN_16, Opcode.MAINTENANCE_IN])
def test_unknown_service_actions_are_an_invalid_field(opcode: Opcode) -> None:
    assert sense_of(Initiator().execute(bytes((opcode, 0x1F)))) == sense.invalid_field_in_cdb(1, 4)


@pytest.mark.parametrize("known", OPERATIONS, ids=lambda operation: operation.name)
def test_every_bit_outside_the_usage_map_is_pointed_at(known: Operation) -> None:
    base = bytearray(len(known.usage))
    base[0] = known.opcode
    if known.service_action is not None:
        base[1] = known.service_action
    for byte in range(1, len(base)):
        for bit in range(8):
            if known.usage[byte] >> bit & 1:
                continue
            wrong = bytearray(base)
            wrong[byte] |= 1 << bit
            assert operation_of(bytes(wrong)) == sense.invalid_field_in_cdb(byte, bit)


def test_bytes_after_the_cdb_are_not_looked_at() -> None:
    initiator = Initiator()
    command = RecordedCommand(cdb.test_unit_ready() + b"\xff" * 10, b"", initiator.nexus)
    initiator.device.execute(0, command)
    assert command.result is GOOD


# Unit attentions


def test_power_on_is_the_first_answer_to_each_nexus() -> None:
    first = Initiator(power_on=True)
    second = Initiator(first.volume, device=first.device, name="second", power_on=True)
    for initiator in (first, second):
        assert sense_of(initiator.execute(cdb.read(0, 1))) == sense.POWER_ON
        assert len(data_of(initiator.execute(cdb.read(0, 1)))) == 512
    assert first.volume.names() == ["read", "read"]


def test_inquiry_and_report_luns_do_not_report_power_on() -> None:
    initiator = Initiator(power_on=True)
    assert data_of(initiator.execute(cdb.inquiry()))
    assert data_of(initiator.execute(cdb.report_luns(64)))
    assert sense_of(initiator.execute(cdb.test_unit_ready())) == sense.POWER_ON


def test_request_sense_reports_a_unit_attention_as_data() -> None:
    initiator = Initiator(power_on=True)
    assert decode_sense(data_of(initiator.execute(cdb.request_sense()))) == sense.POWER_ON
    assert initiator.execute(cdb.test_unit_ready()) is GOOD


def test_an_unknown_opcode_comes_after_the_unit_attention() -> None:
    initiator = Initiator(power_on=True)
    assert sense_of(initiator.execute(b"\xff")) == sense.POWER_ON
    assert sense_of(initiator.execute(b"\xff")) == sense.INVALID_COMMAND_OPERATION_CODE


def test_an_equal_nexus_is_the_same_nexus() -> None:
    """Front ends may make a new object for each command: identity is only the fast way to find the name."""
    initiator = Initiator()
    initiator.nexus = Nexus(initiator.nexus.initiator_port, TARGET_PORT)
    assert initiator.execute(cdb.test_unit_ready()) is GOOD


def test_a_nexus_that_comes_back_starts_with_power_on() -> None:
    initiator = Initiator()
    initiator.device.nexus_lost(initiator.nexus)
    assert sense_of(initiator.execute(cdb.test_unit_ready())) == sense.POWER_ON


def test_conditions_are_reported_in_order_and_once() -> None:
    initiator = Initiator()
    unit = initiator.device.logical_units[0]
    for condition in (sense.MODE_PARAMETERS_CHANGED, sense.CAPACITY_DATA_HAS_CHANGED):
        unit.raise_unit_attention(condition)
        unit.raise_unit_attention(condition)
    assert sense_of(initiator.execute(cdb.read(0, 1))) == sense.MODE_PARAMETERS_CHANGED
    assert sense_of(initiator.execute(cdb.read(0, 1))) == sense.CAPACITY_DATA_HAS_CHANGED
    assert len(data_of(initiator.execute(cdb.read(0, 1)))) == 512


def test_many_nexuses_are_told_each() -> None:
    first = Initiator()
    others = [Initiator(first.volume, device=first.device, name=f"i{number}") for number in range(1500)]
    first.device.logical_units[0].raise_unit_attention(sense.MODE_PARAMETERS_CHANGED)
    for initiator in others:
        assert sense_of(initiator.execute(cdb.test_unit_ready())) == sense.MODE_PARAMETERS_CHANGED
        assert initiator.execute(cdb.test_unit_ready()) is GOOD


def test_a_grown_volume_is_announced_and_usable() -> None:
    initiator = Initiator(MemoryVolume(1 << 20))
    volume = initiator.volume
    volume.size_bytes = 2 << 20
    volume.content.extend(bytes(1 << 20))
    assert sense_of(initiator.execute(cdb.read(2048, 1))).asc == 0x21
    initiator.device.logical_units[0].capacity_changed()
    assert sense_of(initiator.execute(cdb.read(2048, 1))) == sense.CAPACITY_DATA_HAS_CHANGED
    assert len(data_of(initiator.execute(cdb.read(2048, 1)))) == 512


def test_reset_restores_mode_parameters_and_is_announced() -> None:
    initiator = Initiator()
    page = bytes((0x0A, 10, 2, 0x10, 0x08, 0x40, 0, 0, 0xFF, 0xFF, 0, 0))
    assert initiator.execute(cdb.mode_select_6(16), bytes(4) + page) is GOOD
    assert sense_of(initiator.execute(cdb.write(0, 1), bytes(512))) == sense.SOFTWARE_WRITE_PROTECTED
    assert initiator.device.reset(0)
    found = sense_of(initiator.execute(cdb.write(0, 1), bytes(512)))
    assert found == sense.BUS_DEVICE_RESET_FUNCTION_OCCURRED
    assert initiator.execute(cdb.write(0, 1), bytes(512)) is GOOD
    assert not initiator.device.reset(9)
