"""The TCMU ring against a kernel in memory: order, wraps, moves, and a kill at every store."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from target.errors import OperatorError
from target.lio.ring import Entry, Response, Ring, busy
from tests.unit.lio.kernel_ring import KernelCommand, KernelRing, Killed, RingBroken

GOOD, BUSY = 0x00, 0x08


def cdb(number: int) -> bytes:
    return bytes((0x28, 0)) + number.to_bytes(4, "big") + bytes(10)


def number_of(entry: Entry) -> int:
    return int.from_bytes(entry.cdb[2:6], "big")


def data_of(ring: Ring, entry: Entry) -> bytes:
    return b"".join(ring.view[start:end] for start, end in entry.extents)


def test_a_command_is_taken_whole_and_answered() -> None:
    kernel = KernelRing()
    command = kernel.queue(cdb(7), data_out=bytes(range(256)) * 40)
    assert command is not None
    ring = Ring(kernel.view, kernel.words())
    (entry,) = ring.recover()
    assert entry.cdb == cdb(7)
    assert data_of(ring, entry) == bytes(range(256)) * 40
    assert len(entry.extents) == 3
    assert ring.outstanding == 1
    assert ring.answer([Response(entry, GOOD)])
    assert kernel.doorbell() == [command]
    assert command.status == GOOD
    assert ring.outstanding == 0


def test_sense_and_read_length_reach_the_kernel() -> None:
    kernel = KernelRing()
    command = kernel.queue(cdb(1), data_in_length=4096)
    assert command is not None
    ring = Ring(kernel.view, kernel.words())
    (entry,) = ring.recover()
    start, _ = entry.extents[0]
    ring.view[start : start + 5] = b"hello"
    ring.answer([Response(entry, 2, b"\x70\x00\x05", 5)])
    kernel.doorbell()
    assert (command.status, command.sense[:3], command.read_len) == (2, b"\x70\x00\x05", 5)
    assert command.data == b"hello"


def test_nothing_taken_nothing_answered_no_doorbell() -> None:
    kernel = KernelRing()
    ring = Ring(kernel.view, kernel.words())
    assert ring.recover() == []
    assert not ring.answer([])


def test_later_commands_do_not_wait_for_an_earlier_one() -> None:
    kernel = KernelRing()
    commands = [kernel.queue(cdb(number), data_in_length=512) for number in range(4)]
    ring = Ring(kernel.view, kernel.words())
    entries = ring.recover()
    ring.answer([Response(entries[3], GOOD), Response(entries[1], GOOD)])
    assert kernel.doorbell() == [commands[3], commands[1]]
    ring.answer([Response(entries[0], GOOD), Response(entries[2], GOOD)])
    assert kernel.doorbell() == [commands[0], commands[2]]
    assert kernel.tail == kernel.head


def test_a_reset_by_the_operator_is_noticed() -> None:
    kernel = KernelRing()
    kernel.queue(cdb(1))
    kernel.queue(cdb(2))
    ring = Ring(kernel.view, kernel.words())
    first, second = ring.recover()
    ring.answer([Response(first, GOOD)])
    kernel.doorbell()
    kernel.commands.clear()
    kernel.memory[12:16] = kernel.memory[64:68] = bytes(4)
    kernel._cleaned = 0
    again = kernel.queue(cdb(3))
    (taken,) = ring.take()
    assert number_of(taken) == 3
    assert not ring.answer([Response(second, GOOD)])  # the kernel answered it itself
    ring.answer([Response(taken, GOOD)])
    assert kernel.doorbell() == [again]


@pytest.mark.parametrize(("version", "flags"), [(1, 0xF), (2, 0x1), (2, 0x2), (3, 0xF)])
def test_another_ring_is_refused(version: int, flags: int) -> None:
    kernel = KernelRing()
    kernel.memory[0:4] = version.to_bytes(2, "little") + flags.to_bytes(2, "little")
    with pytest.raises(OperatorError, match=f"version {version}"):
        Ring(kernel.view, kernel.words())


class Handler:
    """A handler that answers in any order and may be killed. `numbers` gives each command its content."""

    def __init__(self, kernel: KernelRing, chance: random.Random) -> None:
        self.kernel = kernel
        self.chance = chance
        self.words = kernel.words()
        self.ring = Ring(kernel.view, self.words)
        self.waiting = self.ring.recover()

    def turn(self) -> None:
        self.waiting += self.ring.take()
        for entry in self.waiting:
            if not entry.lost:
                self.check(entry)
        self.chance.shuffle(self.waiting)
        count = self.chance.randint(0, len(self.waiting))
        done, self.waiting = self.waiting[:count], self.waiting[count:]
        responses = [self.respond(entry) for entry in done]
        if self.ring.answer(responses):
            self.kernel.doorbell()

    def check(self, entry: Entry) -> None:
        """The request is that of the command which the kernel knows under this identifier."""
        command = self.kernel.commands[entry.cmd_id]
        assert entry.cdb == command.cdb
        assert sum(end - start for start, end in entry.extents) == command.length

    def respond(self, entry: Entry) -> Response:
        if entry.lost:
            return busy(entry)
        for start, end in entry.extents:
            self.ring.view[start:end] = bytes((number_of(entry) & 0xFF,)) * (end - start)
        return Response(entry, GOOD)


@settings(max_examples=300, deadline=None)
@given(seed=st.integers(0, 1 << 32), kills=st.integers(0, 12), slots=st.integers(8, 40))
def test_every_command_is_answered_once_and_rightly_whatever_the_moment_of_the_kill(
    seed: int, kills: int, slots: int
) -> None:
    chance = random.Random(seed)
    kernel = KernelRing(cmdr_size=slots * 64, pages=32)
    handler = Handler(kernel, chance)
    queued: list[KernelCommand] = []
    for _ in range(60):
        for _ in range(chance.randint(0, 6)):
            command = kernel.queue(cdb(len(queued)), data_in_length=chance.choice((0, 512, 4096, 9000)))
            if command is not None:
                queued.append(command)
        if kills and chance.random() < 0.4:
            kills -= 1
            handler.words.stores_left = chance.randint(0, 20)
        try:
            handler.turn()
            handler.words.stores_left = None
        except Killed:
            handler = Handler(kernel, chance)
        named = [entry.cmd_id for entry in handler.waiting]
        assert len(set(named)) == len(named)
        assert set(named) <= set(kernel.commands)
    while kernel.commands:
        handler.turn()
    assert kernel.tail == kernel.head
    for number, command in enumerate(queued):
        assert command.answers == 1
        assert command.status in (GOOD, BUSY)
        if command.status == GOOD:
            assert command.data == bytes((number & 0xFF,)) * command.length


def test_the_kernel_of_the_tests_finds_a_wrong_answer() -> None:
    kernel = KernelRing()
    kernel.queue(cdb(1))
    ring = Ring(kernel.view, kernel.words())
    (entry,) = ring.recover()
    entry.cmd_id = 99
    ring.answer([Response(entry, GOOD)])
    with pytest.raises(RingBroken):
        kernel.doorbell()


def test_a_kill_at_each_store_of_a_move_loses_no_command() -> None:
    """Two commands, the second answered first: the one case in which identifiers move, store by store."""
    for stores in range(20):
        kernel = KernelRing()
        commands = [kernel.queue(cdb(1), data_in_length=512), kernel.queue(cdb(2), data_in_length=512)]
        words = kernel.words()
        ring = Ring(kernel.view, words)
        _, second = ring.recover()
        words.stores_left = stores
        try:
            ring.answer([Response(second, GOOD)])
        except Killed:
            pass
        else:
            break
        restarted = Ring(kernel.view, kernel.words())
        entries = restarted.recover()
        assert {entry.cmd_id for entry in entries} == {1, 2}, stores
        restarted.answer([busy(entry) if entry.lost else Response(entry, GOOD) for entry in entries])
        assert kernel.doorbell()
        assert not kernel.commands
        assert all(command is not None and command.answers == 1 for command in commands)
    else:
        pytest.fail("the answer takes more stores than were tried")
    assert stores > 5
