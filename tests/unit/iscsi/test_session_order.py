"""Order and bounds of a session: sequence numbers, the command window, what is held, what is unsent."""

from __future__ import annotations

import pytest

from target.iscsi.held_commands import HELD_BYTES_MAX
from target.iscsi.pdu import FINAL, ProtocolError
from target.iscsi.registry import OUTPUT_BYTES_HIGH
from target.iscsi.requests import TaskManagementRequest
from target.iscsi.responses import (
    DataIn,
    Reject,
    ScsiResponse,
)
from target.iscsi.session import COMMAND_WINDOW, TASKS_MAX
from target.scsi import cdb as cdbs
from tests.unit.iscsi.wire import BLOCK, Wire, node
from tests.unit.scsi.memory_volume import MemoryVolume


def pattern(length: int, seed: int = 1) -> bytes:
    return bytes((index * 7 + index // 251 + seed) & 0xFF for index in range(length))


def status_of(wire: Wire) -> ScsiResponse:
    received = wire.take_one()
    assert isinstance(received.pdu, ScsiResponse), received
    return received.pdu


def test_sequence_numbers_follow_the_answers() -> None:
    wire = Wire([node()])
    wire.login()
    stat_sns, exp_cmd_sns, max_cmd_sns = [], [], []
    for _ in range(3):
        wire.command(cdbs.test_unit_ready())
        pdu = status_of(wire)
        stat_sns.append(pdu.stat_sn)
        exp_cmd_sns.append(pdu.exp_cmd_sn)
        max_cmd_sns.append(pdu.max_cmd_sn)
    assert stat_sns == [stat_sns[0], stat_sns[0] + 1, stat_sns[0] + 2]
    assert exp_cmd_sns == [3, 4, 5]
    assert max_cmd_sns == [2 + COMMAND_WINDOW, 3 + COMMAND_WINDOW, 4 + COMMAND_WINDOW]


def test_numbers_wrap() -> None:
    wire = Wire([node()])
    wire.cmd_sn = 0xFFFFFFFE
    wire.login()
    for _ in range(4):
        wire.command(cdbs.read(0, 1), read=BLOCK)
        assert isinstance(wire.take_one().pdu, DataIn)
    assert wire.cmd_sn == 3


def test_the_window_closes_while_commands_are_under_way() -> None:
    volume = MemoryVolume(hold=True)
    wire = Wire([node(volume)])
    wire.login()
    for _ in range(COMMAND_WINDOW):
        wire.command(cdbs.read(0, 1), read=BLOCK)
    assert len(volume.calls) == COMMAND_WINDOW
    wire.command(cdbs.read(0, 1), read=BLOCK)
    assert len(volume.calls) == COMMAND_WINDOW, "a command outside the window is ignored"
    volume.release()
    pdu = wire.take_one().pdu
    assert isinstance(pdu, DataIn)
    assert pdu.max_cmd_sn == pdu.exp_cmd_sn, "one place is free"


def test_commands_run_in_order_of_their_numbers() -> None:
    volume = MemoryVolume()
    wire = Wire([node(volume)])
    wire.login()
    first = wire.cmd_sn
    for offset in (2, 1, 3, 0):
        wire.command(cdbs.write(offset, 1), write=BLOCK, data=pattern(BLOCK, offset), cmd_sn=first + offset)
    assert [call[1] // BLOCK for call in volume.calls] == [0, 1, 2, 3]
    assert len(wire.take()) == 4
    for offset in range(4):
        assert volume.content[offset * BLOCK :][:BLOCK] == pattern(BLOCK, offset)


@pytest.mark.parametrize("delta", [-1, -100, COMMAND_WINDOW, COMMAND_WINDOW + 1, 1 << 31])
def test_numbers_outside_the_window_are_ignored(delta: int) -> None:
    volume = MemoryVolume()
    wire = Wire([node(volume)])
    wire.login()
    wire.command(cdbs.read(0, 1), read=BLOCK, cmd_sn=wire.cmd_sn + delta & 0xFFFFFFFF)
    assert wire.take() == []
    assert volume.calls == []


def test_what_is_held_out_of_order_is_bounded() -> None:
    wire = Wire([node()])
    wire.login(InitialR2T="No", FirstBurstLength="262144")
    data = bytes(262144)
    first = wire.cmd_sn + 1
    for number in range(HELD_BYTES_MAX // len(data) - 1):
        wire.command(cdbs.write(0, 512), write=len(data), data=data, cmd_sn=first + number)
    with pytest.raises(ProtocolError, match="does not come"):
        wire.command(cdbs.write(0, 512), write=len(data), data=data, cmd_sn=first + 100)


def test_an_immediate_command_takes_no_place_in_the_window() -> None:
    wire = Wire([node()])
    wire.login()
    before = wire.cmd_sn
    wire.command(cdbs.read(0, 1), read=BLOCK, immediate=True)
    pdu = wire.take_one().pdu
    assert isinstance(pdu, DataIn)
    assert pdu.exp_cmd_sn == before
    assert pdu.max_cmd_sn == before + COMMAND_WINDOW - 1


def test_immediate_commands_have_a_bound_too() -> None:
    """RFC 7143 11.17.1: reason 6. Aborting them does not help while the device has them."""
    volume = MemoryVolume()
    wire = Wire([node(volume)])
    wire.login()
    volume.hold = True
    for number in range(TASKS_MAX):
        wire.command(cdbs.read(0, 1), read=BLOCK, immediate=True)
        if number % 2:
            request = TaskManagementRequest(FINAL | 1, 0, 900, wire.tag, wire.cmd_sn, 0, 0, 0)
            wire.send_pdu(request, immediate=True)
    assert wire.take() == []
    wire.command(cdbs.read(0, 1), read=BLOCK, immediate=True)
    pdu = wire.take_one().pdu
    assert isinstance(pdu, Reject)
    assert pdu.reason == 0x06
    assert len(volume.calls) == TASKS_MAX
    volume.release()
    wire.take()
    wire.command(cdbs.read(0, 1), read=BLOCK, immediate=True)
    assert len(volume.calls) == TASKS_MAX + 1


def test_a_tag_in_use_ends_the_connection() -> None:
    wire = Wire([node(MemoryVolume(hold=True))])
    wire.login()
    wire.command(cdbs.read(0, 1), read=BLOCK, tag=5)
    with pytest.raises(ProtocolError, match="in use"):
        wire.command(cdbs.read(0, 1), read=BLOCK, tag=5)


def test_output_is_announced_once_until_it_is_taken() -> None:
    wire = Wire([node()])
    wire.login()
    wire.take()
    announced = wire.outputs_announced
    for _ in range(3):
        wire.command(cdbs.test_unit_ready())
    assert wire.outputs_announced == announced + 1
    wire.take()
    wire.command(cdbs.test_unit_ready())
    assert wire.outputs_announced == announced + 2


def test_with_much_unsent_no_further_command_is_taken() -> None:
    volume = MemoryVolume(16 << 20)
    wire = Wire([node(volume)])
    wire.login(MaxRecvDataSegmentLength="262144")
    reads = OUTPUT_BYTES_HIGH // (512 * BLOCK) + 1
    for _ in range(reads + 3):
        wire.command(cdbs.read(0, 512), read=512 * BLOCK)
    assert len(volume.calls) == reads - 1
    wire.take()
    wire.send(b"")
    assert len(volume.calls) == reads + 3


def test_large_reads_under_way_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their buffers are the target's memory; who asks for more is told to come back."""
    monkeypatch.setattr("target.iscsi.session.LARGE_READS_BYTES_MAX", 5 << 20)
    volume = MemoryVolume(4 << 20)
    wire = Wire([node(volume)])
    wire.login()
    volume.hold = True
    for _ in range(3):
        wire.command(cdbs.read(0, 4096), read=2 << 20)
    assert status_of(wire).status == 0x28
    assert len(volume.calls) == 2
    volume.release()
    wire.take()
    wire.command(cdbs.read(0, 4096), read=2 << 20)
    assert len(volume.calls) == 3
    assert wire.take() == []
