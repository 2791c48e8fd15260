"""Task management: what is aborted is not answered, and "complete" means that nothing can come of it."""

from __future__ import annotations

import pytest

from target.iscsi.pdu import FINAL
from target.iscsi.registry import SessionRegistry
from target.iscsi.requests import DataOut, TaskManagementRequest
from target.iscsi.responses import R2T, DataIn, ScsiResponse, TaskManagementResponse
from target.iscsi.task_management import Function, Response
from target.scsi import cdb as cdbs
from target.scsi.command import Nexus
from target.scsi.sense import decode_sense
from target.volume import Buffer, VolumeError
from tests.unit.iscsi.wire import BLOCK, NORMAL, Wire, node
from tests.unit.scsi.memory_volume import MemoryVolume

OTHER_ISID = b"\x80\x09\x09\x09\x00\x00"
WHOLE_SET = [
    Function.ABORT_TASK_SET,
    Function.CLEAR_TASK_SET,
    Function.LOGICAL_UNIT_RESET,
    Function.TARGET_WARM_RESET,
]


def request(
    wire: Wire, function: int, *, referenced: int = 0xFFFFFFFF, ref_cmd_sn: int = 0, lun: int = 0
) -> None:
    wire.send_pdu(
        TaskManagementRequest(FINAL | function, lun << 48, 900, referenced, wire.cmd_sn, 0, ref_cmd_sn, 0),
        immediate=True,
    )


def response_of(wire: Wire) -> int:
    pdu = wire.take_one().pdu
    assert isinstance(pdu, TaskManagementResponse)
    assert pdu.initiator_task_tag == 900
    return pdu.response


def held_session() -> tuple[Wire, MemoryVolume]:
    """A session whose volume answers when it is told to."""
    volume = MemoryVolume()
    wire = Wire([node(volume)])
    wire.login()
    volume.hold = True
    return wire, volume


def test_an_aborted_command_is_not_answered_and_the_response_waits_for_it() -> None:
    wire, volume = held_session()
    tag = wire.command(cdbs.write(0, 1), write=BLOCK, data=bytes(BLOCK))
    request(wire, Function.ABORT_TASK, referenced=tag)
    assert wire.take() == [], "the medium may still change"
    assert volume.release()
    assert response_of(wire) == Response.COMPLETE


def test_only_the_command_that_is_named_is_aborted() -> None:
    wire, volume = held_session()
    first = wire.command(cdbs.read(0, 1), read=BLOCK)
    second = wire.command(cdbs.read(1, 1), read=BLOCK)
    request(wire, Function.ABORT_TASK, referenced=first)
    volume.release()
    volume.release()
    pdus = [one.pdu for one in wire.take()]
    assert isinstance(pdus[0], TaskManagementResponse)
    assert isinstance(pdus[1], DataIn)
    assert pdus[1].initiator_task_tag == second


def test_a_write_that_waits_for_data_is_dropped_at_once() -> None:
    volume = MemoryVolume()
    wire = Wire([node(volume)])
    wire.login(ImmediateData="No", InitialR2T="Yes")
    tag = wire.command(cdbs.write(0, 1), write=BLOCK)
    r2t = wire.take_one().pdu
    assert isinstance(r2t, R2T)
    request(wire, Function.ABORT_TASK, referenced=tag)
    assert response_of(wire) == Response.COMPLETE
    wire.send_pdu(DataOut(FINAL, 0, tag, r2t.target_transfer_tag, 0, 0, 0), bytes(BLOCK))
    assert volume.calls == []
    assert wire.take() == []


@pytest.mark.parametrize("delta", [-1, -2, 127, 128, 1 << 31])
def test_a_task_that_is_not_there(delta: int) -> None:
    """RFC 7143 11.6.1: it was answered already, or is not of this window."""
    wire, _ = held_session()
    request(wire, Function.ABORT_TASK, referenced=12345, ref_cmd_sn=wire.cmd_sn + delta & 0xFFFFFFFF)
    assert response_of(wire) == Response.TASK_DOES_NOT_EXIST


def test_a_command_that_was_answered_is_not_aborted() -> None:
    wire = Wire([node()])
    wire.login()
    tag = wire.command(cdbs.write(0, 1), write=BLOCK, data=bytes(BLOCK))
    assert isinstance(wire.take_one().pdu, ScsiResponse)
    request(wire, Function.ABORT_TASK, referenced=tag, ref_cmd_sn=wire.cmd_sn - 1)
    assert response_of(wire) == Response.TASK_DOES_NOT_EXIST


@pytest.mark.parametrize("came_first", [False, True], ids=["on its way", "held"])
def test_a_command_that_has_not_run_yet_is_aborted_by_its_number(came_first: bool) -> None:
    """RFC 7143 11.6.1: its number counts as received, and it never runs."""
    wire, volume = held_session()
    volume.hold = False
    number = wire.cmd_sn
    if came_first:
        wire.command(cdbs.write(0, 1), write=BLOCK, data=bytes(BLOCK), cmd_sn=number + 1, tag=50)
    wire.cmd_sn = number + 3
    request(wire, Function.ABORT_TASK, referenced=50, ref_cmd_sn=number + 1)
    assert response_of(wire) == Response.COMPLETE
    if not came_first:
        wire.command(cdbs.write(0, 1), write=BLOCK, data=bytes(BLOCK), cmd_sn=number + 1, tag=50)
    for offset in (0, 2):
        wire.command(cdbs.read(offset, 1), read=BLOCK, cmd_sn=number + offset)
    pdus = [one.pdu for one in wire.take()]
    assert [type(pdu) for pdu in pdus] == [DataIn, DataIn]
    assert volume.names() == ["read", "read"]
    last = pdus[-1]
    assert isinstance(last, DataIn)
    assert last.exp_cmd_sn == number + 3
    assert last.max_cmd_sn - last.exp_cmd_sn == 127, "its place in the window is free again"


@pytest.mark.parametrize("function", WHOLE_SET)
def test_a_whole_set_is_aborted(function: Function) -> None:
    wire, volume = held_session()
    for lba in range(3):
        wire.command(cdbs.read(lba, 1), read=BLOCK)
    request(wire, function)
    for _ in range(3):
        assert wire.take() == []
        volume.release()
    assert response_of(wire) == Response.COMPLETE


def test_aborted_commands_give_their_places_in_the_window_back() -> None:
    wire, volume = held_session()
    for lba in range(3):
        wire.command(cdbs.read(lba, 1), read=BLOCK)
    request(wire, Function.ABORT_TASK_SET)
    while volume.release():
        pass
    pdu = wire.take_one().pdu
    assert isinstance(pdu, TaskManagementResponse)
    assert pdu.max_cmd_sn - pdu.exp_cmd_sn == 127


@pytest.mark.parametrize("function", WHOLE_SET[:3])
def test_a_lun_that_does_not_exist(function: Function) -> None:
    wire, _ = held_session()
    request(wire, function, lun=9)
    assert response_of(wire) == Response.LUN_DOES_NOT_EXIST


@pytest.mark.parametrize(
    ("function", "response"),
    [
        (Function.CLEAR_ACA, Response.NOT_SUPPORTED),
        (Function.TASK_REASSIGN, Response.REASSIGN_NOT_SUPPORTED),
        (99, Response.NOT_SUPPORTED),
    ],
)
def test_functions_that_are_not_supported(function: int, response: Response) -> None:
    wire, _ = held_session()
    request(wire, function)
    assert response_of(wire) == response


def two_sessions(volume: MemoryVolume) -> tuple[Wire, Wire]:
    nodes = [node(volume)]
    registry = SessionRegistry()
    first = Wire(nodes, registry=registry)
    first.login()
    second = Wire(nodes, registry=registry)
    second.login_request(NORMAL, isid=OTHER_ISID)
    second.command(cdbs.test_unit_ready())
    second.take()
    volume.hold = True
    return first, second


@pytest.mark.parametrize("function", WHOLE_SET[1:])
def test_the_commands_of_others_are_answered_task_aborted(function: Function) -> None:
    volume = MemoryVolume()
    first, second = two_sessions(volume)
    tag = second.command(cdbs.read(0, 1), read=BLOCK)
    request(first, function)
    volume.release()
    assert response_of(first) == Response.COMPLETE
    pdu = second.take_one().pdu
    assert isinstance(pdu, ScsiResponse)
    assert pdu.initiator_task_tag == tag
    assert pdu.status == 0x40
    assert pdu.max_cmd_sn - pdu.exp_cmd_sn == 127


@pytest.mark.parametrize("again", [Function.ABORT_TASK, *WHOLE_SET])
def test_what_was_aborted_already_is_waited_for_too(again: Function) -> None:
    """A host whose first abort takes too long tries a stronger one: it must not be told that all is over."""
    wire, volume = held_session()
    tag = wire.command(cdbs.write(0, 1), write=BLOCK, data=bytes(BLOCK))
    request(wire, Function.ABORT_TASK, referenced=tag)
    request(wire, again, referenced=tag)
    assert wire.take() == [], "the medium may still change"
    volume.release()
    assert [one.pdu.response for one in wire.take() if isinstance(one.pdu, TaskManagementResponse)] == [0, 0]


@pytest.mark.parametrize("function", WHOLE_SET[1:])
def test_what_others_left_behind_is_waited_for(function: Function) -> None:
    volume = MemoryVolume()
    first, second = two_sessions(volume)
    second.command(cdbs.write(0, 1), write=BLOCK, data=bytes(BLOCK))
    second.connection.close()
    request(first, Function.ABORT_TASK_SET)
    assert response_of(first) == Response.COMPLETE, "that is about its own"
    request(first, function)
    assert first.take() == [], "the medium may still change"
    volume.release()
    assert response_of(first) == Response.COMPLETE


@pytest.mark.parametrize("function", WHOLE_SET[1:])
def test_others_may_leave_while_they_are_waited_for(function: Function) -> None:
    volume = MemoryVolume()
    first, second = two_sessions(volume)
    for lba in range(2):
        second.command(cdbs.write(lba, 1), write=BLOCK, data=bytes(BLOCK))
    request(first, function)
    second.connection.close()
    volume.release()
    assert first.take() == [], "the medium may still change"
    volume.release()
    assert response_of(first) == Response.COMPLETE


def test_abort_task_set_leaves_others_alone() -> None:
    volume = MemoryVolume()
    first, second = two_sessions(volume)
    second.command(cdbs.read(0, 1), read=BLOCK)
    request(first, Function.ABORT_TASK_SET)
    assert response_of(first) == Response.COMPLETE
    volume.release()
    assert isinstance(second.take_one().pdu, DataIn)


@pytest.mark.parametrize("function", [Function.LOGICAL_UNIT_RESET, Function.TARGET_WARM_RESET])
def test_a_reset_is_told_as_a_unit_attention(function: Function) -> None:
    wire = Wire([node()])
    wire.login()
    request(wire, function)
    assert response_of(wire) == Response.COMPLETE
    wire.command(cdbs.test_unit_ready())
    sense = decode_sense(wire.take_one().data[2:])
    assert (sense.asc, sense.ascq) == (0x29, 0x03)


def test_a_cold_reset_ends_all_sessions() -> None:
    first, second = two_sessions(MemoryVolume())
    request(first, Function.TARGET_COLD_RESET)
    assert response_of(first) == Response.COMPLETE
    assert first.ended == "target cold reset"
    assert second.ended == "target cold reset by another initiator"


class Answered:
    """A request that counts its answers."""

    def __init__(self) -> None:
        self.count = 0

    def done(self, data: Buffer | None = None) -> None:
        self.count += 1

    def failed(self, error: VolumeError) -> None:
        raise AssertionError(error)


def nexus_of(wire: Wire) -> Nexus:
    session = wire.connection.session
    assert session is not None
    return session.nexus


def test_the_commands_of_who_was_preempted_end_before_the_answer() -> None:
    """PREEMPT AND ABORT: its own are not touched, others of that nexus and unit are aborted and told so."""
    volume = MemoryVolume()
    first, second = two_sessions(volume)
    first.command(cdbs.read(0, 1), read=BLOCK)
    tag = second.command(cdbs.write(0, 1), write=BLOCK, data=bytes(BLOCK))
    request_ = Answered()
    first.registry.abort_tasks(1, nexus_of(second), request_)
    assert request_.count == 1, "another unit has nothing to wait for"
    first.registry.abort_tasks(0, nexus_of(second), request_)
    assert request_.count == 1
    volume.release()
    assert isinstance(first.take_one().pdu, DataIn)
    assert request_.count == 1, "the write may still change the medium"
    volume.release()
    assert request_.count == 2
    pdu = second.take_one().pdu
    assert isinstance(pdu, ScsiResponse)
    assert (pdu.initiator_task_tag, pdu.status) == (tag, 0x40)


def test_who_was_preempted_may_have_gone_already() -> None:
    volume = MemoryVolume()
    first, second = two_sessions(volume)
    second.command(cdbs.write(0, 1), write=BLOCK, data=bytes(BLOCK))
    nexus = nexus_of(second)
    second.connection.close()
    request_ = Answered()
    first.registry.abort_tasks(0, nexus, request_)
    assert request_.count == 0
    volume.release()
    assert request_.count == 1


def test_who_is_preempted_may_leave_before_its_commands_have_ended() -> None:
    """As a host does that is fenced and dies: the one who fences it must not wait for ever."""
    volume = MemoryVolume()
    first, second = two_sessions(volume)
    second.command(cdbs.write(0, 1), write=BLOCK, data=bytes(BLOCK))
    request_ = Answered()
    first.registry.abort_tasks(0, nexus_of(second), request_)
    second.connection.close()
    assert request_.count == 0
    volume.release()
    assert request_.count == 1
