"""The memory of all sessions together: what one holds is not there for others, but for their share."""

from __future__ import annotations

import gc
import weakref

import pytest

from target.iscsi.budget import SHARE_BYTES, MemoryBudget
from target.iscsi.pdu import FINAL, RESERVED_TAG, ProtocolError
from target.iscsi.registry import OUTPUT_BYTES_HIGH, OUTPUT_BYTES_LEAST, SessionRegistry
from target.iscsi.requests import DataOut
from target.iscsi.responses import R2T, ScsiResponse
from target.iscsi.task import CollectingTask
from target.scsi import cdb as cdbs
from tests.unit.iscsi.wire import BLOCK, NORMAL, Wire, node
from tests.unit.scsi.memory_volume import MemoryVolume

R2T_ONLY = {"InitialR2T": "Yes", "ImmediateData": "No", "MaxBurstLength": "1048576"}
MIB = 1 << 20


def test_what_is_taken_is_bounded_and_each_has_a_share() -> None:
    budget = MemoryBudget(10 * MIB)
    assert budget.take(10 * MIB, 0)
    assert not budget.take(2 * MIB, 0)
    assert budget.take(SHARE_BYTES, 0)
    assert not budget.take(1, SHARE_BYTES)
    budget.give(11 * MIB)
    assert budget.taken_bytes == 0


def test_who_waits_is_served_in_order_and_is_not_overtaken() -> None:
    budget = MemoryBudget(10 * MIB)
    served = []

    def want(name: str) -> None:
        if budget.take(4 * MIB, 0):
            served.append(name)
        else:
            budget.wait(lambda: want(name))

    for name in "abcdef":
        want(name)
    assert served == ["a", "b"]
    assert not budget.take(2 * MIB, 0), "there is room, but others wait for it"
    for _ in range(4):
        budget.give(4 * MIB)
    assert served == ["a", "b", "c", "d", "e", "f"]


def test_a_session_that_ends_while_it_waits_leaves_nothing_behind() -> None:
    """Who comes and goes while others hold everything must not fill the memory with what it was."""
    holder, waits = sessions(2, 4 * MIB, MemoryVolume(8 * MIB))
    for wire in (holder, waits):
        wire.command(cdbs.write(0, 4 * MIB // BLOCK), write=4 * MIB)
    assert isinstance(holder.take()[0].pdu, R2T)
    assert waits.take() == []
    gone = weakref.ref(waits.connection.session)
    waits.connection.close()
    del waits, wire
    gc.collect()
    assert gone() is None


def sessions(count: int, limit_bytes: int, volume: MemoryVolume) -> list[Wire]:
    registry = SessionRegistry()
    registry.budget = MemoryBudget(limit_bytes)
    nodes = [node(volume)]
    wires = []
    for number in range(count):
        wire = Wire(nodes, registry=registry)
        wire.login_request({**NORMAL, **R2T_ONLY}, isid=bytes([0x80, 0, 0, number, 0, 0]))
        wire.command(cdbs.test_unit_ready())
        wire.take()
        wires.append(wire)
    return wires


def r2t_of(wire: Wire) -> R2T:
    pdu = wire.take_one().pdu
    assert isinstance(pdu, R2T)
    return pdu


def answer(wire: Wire, r2t: R2T) -> None:
    data = bytes(r2t.desired_data_transfer_length)
    for data_sn, offset in enumerate(range(0, len(data), 262144)):
        part = data[offset : offset + 262144]
        final = offset + len(part) == len(data)
        wire.send_pdu(
            DataOut(
                FINAL if final else 0,
                0,
                r2t.initiator_task_tag,
                r2t.target_transfer_tag,
                0,
                data_sn,
                r2t.buffer_offset + offset,
            ),
            part,
        )


def test_a_session_that_sends_nothing_holds_up_large_writes_only_till_it_ends() -> None:
    greedy, other = sessions(2, 4 * MIB, MemoryVolume(16 * MIB))
    greedy.command(cdbs.write(0, 4 * MIB // BLOCK), write=4 * MIB)
    r2t_of(greedy)
    other.command(cdbs.write(0, SHARE_BYTES // BLOCK), write=SHARE_BYTES)
    answer(other, r2t_of(other))
    assert isinstance(other.take_one().pdu, ScsiResponse), "its share is there whatever others hold"
    other.command(cdbs.write(0, 2 * MIB // BLOCK), write=2 * MIB)
    assert other.take() == []
    greedy.connection.close()
    assert r2t_of(other).desired_data_transfer_length == MIB
    other.connection.close()
    assert other.registry.budget.taken_bytes == 0


def test_what_comes_unasked_has_a_bound_too() -> None:
    """It cannot be asked to wait, so its command is: TASK SET FULL, and its data are dropped."""
    volume = MemoryVolume(16 * MIB)
    registry = SessionRegistry()
    registry.budget = MemoryBudget(MIB)
    wire = Wire([node(volume)], registry=registry)
    wire.login(InitialR2T="No", FirstBurstLength="262144")
    tags = [wire.command(cdbs.write(0, 512), write=262144, data=bytes(1024), final=False) for _ in range(5)]
    pdu = wire.take_one().pdu
    assert isinstance(pdu, ScsiResponse)
    assert (pdu.initiator_task_tag, pdu.status) == (tags[4], 0x28)
    for tag in reversed(tags):
        wire.send_pdu(DataOut(FINAL, 0, tag, RESERVED_TAG, 0, 0, 1024), bytes(262144 - 1024))
    assert [one.pdu.status for one in wire.take() if isinstance(one.pdu, ScsiResponse)] == [0] * 4
    assert registry.budget.taken_bytes == 0


def test_what_is_held_out_of_order_is_taken_from_it() -> None:
    registry = SessionRegistry()
    registry.budget = MemoryBudget(0)
    wire = Wire([node()], registry=registry)
    wire.login()
    number = wire.cmd_sn
    for ahead in range(1, SHARE_BYTES // 65536):
        data = bytes(65536)
        wire.command(cdbs.write(0, 128), write=len(data), data=data, cmd_sn=number + ahead)
    assert 0 < registry.budget.taken_bytes <= SHARE_BYTES
    with pytest.raises(ProtocolError, match="does not come"):
        wire.command(cdbs.write(0, 128), write=65536, data=bytes(65536), cmd_sn=number + 60)
    wire.connection.close()
    assert registry.budget.taken_bytes == 0


def test_data_that_do_not_come_are_noticed() -> None:
    (wire,) = sessions(1, 64 * MIB, MemoryVolume(4 * MIB))
    session = wire.connection.session
    assert session is not None
    assert not session.collection.stalled()
    wire.command(cdbs.write(0, 2 * MIB // BLOCK), write=2 * MIB)
    first = r2t_of(wire)
    assert not session.collection.stalled(), "it was asked for just now"
    assert session.collection.stalled()
    answer(wire, first)
    assert not session.collection.stalled()
    answer(wire, r2t_of(wire))
    assert isinstance(wire.take_one().pdu, ScsiResponse)
    assert not session.collection.stalled()
    assert not session.collection.stalled()


def test_what_is_only_announced_costs_nothing() -> None:
    (wire,) = sessions(1, 256 * MIB, MemoryVolume(64 * MIB))
    tag = wire.command(cdbs.write(0, 64 * MIB // BLOCK), write=64 * MIB)
    session = wire.connection.session
    assert session is not None
    task = session.tasks[tag]
    assert isinstance(task, CollectingTask)
    assert len(task.buffer) == 0


def test_what_may_be_unsent_is_shared_out() -> None:
    registry = SessionRegistry()
    nodes = [node(MemoryVolume())]
    assert registry.output_bytes_high == OUTPUT_BYTES_HIGH
    wires = []
    for number in range(100):
        wire = Wire(nodes, registry=registry)
        wire.login_request(NORMAL, isid=bytes([0x80, 0, 0, number, 0, 0]))
        wires.append(wire)
        assert registry.output_bytes_high * len(registry) <= max(64 * MIB, len(registry) * OUTPUT_BYTES_LEAST)
        assert OUTPUT_BYTES_LEAST <= registry.output_bytes_high <= OUTPUT_BYTES_HIGH
    assert registry.output_bytes_high == OUTPUT_BYTES_LEAST
    for wire in wires:
        wire.connection.close()
    assert registry.output_bytes_high == OUTPUT_BYTES_HIGH
