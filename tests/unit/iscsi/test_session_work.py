"""Commands that make much work of few bytes: nobody's take the turn of others, or fill the memory."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from target.iscsi.registry import OUTPUT_BYTES_HIGH
from target.iscsi.responses import DataIn, ScsiResponse
from target.iscsi.session import COMMAND_WORK_BYTES
from target.scsi import cdb as cdbs
from target.scsi import sense
from target.scsi.cdb import Opcode
from target.scsi.sense import SenseKey, decode_sense
from tests.unit.iscsi.wire import BLOCK, Wire, node
from tests.unit.scsi.memory_volume import MemoryVolume

MIB = 1 << 20
COMMANDS = 40

AMPLIFIERS: dict[str, Callable[[Wire], object]] = {
    "a verification": lambda wire: wire.command(cdbs.verify(0, 8 * MIB // BLOCK)),
    "a verification at once": lambda wire: wire.command(cdbs.verify(0, 8 * MIB // BLOCK), immediate=True),
    "a comparison that fails at the end": lambda wire: wire.command(
        cdbs.verify(0, 8 * MIB // BLOCK, bytchk=3), write=BLOCK, data=bytes(BLOCK)
    ),
    "a prefetch": lambda wire: wire.command(cdbs.block_command(Opcode.PRE_FETCH_10, 0, 8 * MIB // BLOCK)),
    "a read without room for it": lambda wire: wire.command(cdbs.read(0, 8 * MIB // BLOCK), read=BLOCK),
    "a look at what is mapped": lambda wire: wire.command(cdbs.get_lba_status(0), read=24),
}


@pytest.mark.parametrize("name", AMPLIFIERS)
def test_much_work_for_few_bytes_ends_the_turn(name: str) -> None:
    volume = MemoryVolume(32 * MIB)
    volume.content[8 * MIB - 1] = 1
    wire = Wire([node(volume)])
    wire.login()
    announced = wire.outputs_announced
    for _ in range(COMMANDS):
        AMPLIFIERS[name](wire)
    assert wire.outputs_announced > announced, "the end of the turn is waited for"
    answered = len(wire.take())
    assert 0 < answered <= -(-OUTPUT_BYTES_HIGH // (7 * MIB))
    session = wire.connection.session
    assert session is not None
    assert session.held_back, "the owner goes on with what is in the buffer"
    turns = 1
    while answered < COMMANDS:  # `take` is the end of a turn
        wire.send(b"")
        answered += len(wire.take())
        turns += 1
    assert turns >= COMMANDS * 7 * MIB // OUTPUT_BYTES_HIGH // 2


def test_commands_beside_the_hot_path_count_too() -> None:
    wire = Wire([node()])
    wire.login()
    count = 2 * OUTPUT_BYTES_HIGH // COMMAND_WORK_BYTES
    for _ in range(count):
        wire.command(cdbs.test_unit_ready())
    assert len(wire.take()) <= count // 2


def test_who_is_served_whole_is_not_slowed() -> None:
    """What is sent counts once: a read takes no turn more for it."""
    wire = Wire([node(MemoryVolume(32 * MIB))])
    wire.login()
    session = wire.connection.session
    assert session is not None
    for blocks in (8, MIB // BLOCK):
        wire.command(cdbs.read(0, blocks), read=blocks * BLOCK)
        assert session.output_bytes < 2 * blocks * BLOCK
        wire.take()


def test_what_is_not_sent_of_a_read_is_not_kept() -> None:
    wire = Wire([node(MemoryVolume(32 * MIB))])
    wire.login()
    wire.command(cdbs.read(0, 8 * MIB // BLOCK), read=BLOCK)
    output = wire.connection.output
    kept = [memoryview(each.obj if isinstance(each, memoryview) else each) for each in output]
    assert sum(view.nbytes for view in kept) < 2 * BLOCK
    received = wire.take_one()
    assert isinstance(received.pdu, DataIn)
    assert received.pdu.residual_count == 8 * MIB - BLOCK


def test_writes_that_grow_from_one_block_are_made_one_at_a_time() -> None:
    volume = MemoryVolume(32 * MIB)
    wire = Wire([node(volume)])
    wire.login()
    volume.hold = True
    for number in range(3):
        wire.command(
            cdbs.write_same(number * 2 * MIB // BLOCK, 2 * MIB // BLOCK),
            write=BLOCK,
            data=bytes((number + 1,)) * BLOCK,
        )
    for _ in range(3 * 2):
        begun = len(volume.calls)
        assert volume.release()
        assert len(volume.calls) <= begun + 1, "one piece after the other"
    assert [call[1] for call in volume.calls] == [number * MIB for number in range(6)]
    assert [one.pdu.status for one in wire.take() if isinstance(one.pdu, ScsiResponse)] == [0, 0, 0]
    for number in range(3):
        assert volume.content[number * 2 * MIB : (number + 1) * 2 * MIB] == bytes((number + 1,)) * (2 * MIB)


def test_one_that_fails_lets_the_next_one_in() -> None:
    volume = MemoryVolume(32 * MIB)
    wire = Wire([node(volume)])
    wire.login()
    volume.hold = True
    for _ in range(2):
        wire.command(cdbs.write_same(0, 2 * MIB // BLOCK), write=BLOCK, data=b"\1" * BLOCK)
    volume.read_only_now = True  # meanwhile it became a secondary
    while volume.release():
        pass
    answers = wire.take()
    assert len(answers) == 2
    last = decode_sense(answers[1].data[2:])
    assert (last.key, last.asc) == (SenseKey.DATA_PROTECT, sense.WRITE_PROTECTED.asc)
