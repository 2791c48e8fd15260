"""From the ring to the device server and back, with the kernel in memory and a volume that answers late."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from target.lio.handler import NEXUS, RingHandler
from target.lio.ring import Ring
from target.scsi import cdb as cdbs
from target.scsi.cdb import Opcode
from target.scsi.inquiry import VpdPage, naa_identifier
from target.scsi.logical_unit import LogicalUnit
from target.scsi.sense import CAPACITY_DATA_HAS_CHANGED
from target.volume import Buffer, Request
from tests.unit.lio.kernel_ring import KernelRing
from tests.unit.scsi.memory_volume import MemoryVolume


class TurnVolume(MemoryVolume):
    """Writes are answered at the end of the turn, flushes when told to."""

    def __init__(self, turn: Turn) -> None:
        super().__init__(serial="0123456789abcdef")
        self.turn = turn
        self.flushes: list[Request] = []

    def write(self, offset: int, data: Buffer, fua: bool, request: Request) -> None:
        self.calls.append(("write", offset, len(data), fua))
        self.content[offset : offset + len(data)] = data
        self.turn.append.append(request.done)

    def flush(self, request: Request) -> None:
        self.flushes.append(request)

    @property
    def log(self) -> list[tuple[str, int]]:
        return [(name, offset) for name, offset, _, _ in self.calls]


class Turn:
    """The loop's phases, run by hand."""

    def __init__(self) -> None:
        self.append: list[Callable[[], None]] = []
        self.send: list[Callable[[], None]] = []

    def at_send(self, call: Callable[[], None]) -> None:
        self.send.append(call)

    def end(self) -> None:
        for calls in (self.append, self.send):
            for call in calls:
                call()
            calls.clear()


class Bench:
    """A kernel, a handler, a volume."""

    def __init__(self) -> None:
        self.kernel = KernelRing(cmdr_size=(64 << 10) - 128, pages=128)
        self.turn = Turn()
        self.volume = TurnVolume(self.turn)
        self.unit = LogicalUnit(self.volume)
        self.handler = self.start()

    def start(self) -> RingHandler:
        handler = RingHandler(
            self.turn, Ring(self.kernel.view, self.kernel.words()), self.unit, self.kernel_doorbell
        )
        handler.start()
        return handler

    def kernel_doorbell(self) -> None:
        self.kernel.doorbell()

    def run(self) -> None:
        self.handler.drain()
        self.turn.end()


def read_10(lba: int, blocks: int) -> bytes:
    return cdbs.block_command(Opcode.READ_10, lba, blocks)


def write_10(lba: int, blocks: int) -> bytes:
    return cdbs.block_command(Opcode.WRITE_10, lba, blocks)


def test_a_batch_is_executed_in_order_and_answered_with_one_doorbell() -> None:
    bench = Bench()
    data = bytes(range(256)) * 64
    write = bench.kernel.queue(write_10(8, 32), data_out=data)
    read = bench.kernel.queue(read_10(8, 32), data_in_length=len(data))
    others = [bench.kernel.queue(read_10(0, 1), data_in_length=512) for _ in range(20)]
    bench.run()
    assert bench.kernel.doorbells == 1
    assert bench.volume.log[:2] == [("write", 4096), ("read", 4096)]
    assert write is not None
    assert write.status == 0
    assert read is not None
    assert read.data == data
    assert all(other is not None and other.status == 0 for other in others)
    assert (bench.handler.batches, bench.handler.commands) == (1, 22)


def test_a_command_that_waits_keeps_no_other() -> None:
    bench = Bench()
    flush = bench.kernel.queue(bytes((Opcode.SYNCHRONIZE_CACHE_10, *bytes(9))))
    read = bench.kernel.queue(read_10(0, 1), data_in_length=512)
    bench.run()
    assert read is not None
    assert flush is not None
    assert (read.status, flush.status) == (0, None)
    assert bench.handler.outstanding == 1
    later = bench.kernel.queue(read_10(0, 1), data_in_length=512)
    bench.run()
    assert later is not None
    assert later.status == 0
    bench.volume.flushes.pop().done()
    bench.turn.end()
    assert flush.status == 0
    assert not bench.kernel.commands


def test_what_a_former_life_left_is_executed_before_what_came_later() -> None:
    bench = Bench()
    bench.kernel.queue(write_10(0, 1), data_out=b"a" * 512)
    bench.kernel.queue(write_10(0, 1), data_out=b"b" * 512)
    bench.handler.drain()
    bench.turn = bench.volume.turn = Turn()  # killed: executed, not answered
    bench.kernel.queue(read_10(0, 1), data_in_length=512)
    bench.volume.calls.clear()
    bench.handler = bench.start()
    bench.turn.end()
    assert bench.volume.log == [("write", 0), ("write", 0), ("read", 0)]
    assert bench.volume.content[:512] == b"b" * 512
    assert not bench.kernel.commands


def test_short_data_leave_nothing_of_other_commands() -> None:
    bench = Bench()
    inquiry = bench.kernel.queue(bytes((Opcode.INQUIRY, 0, 0, 0x04, 0, 0)), data_in_length=1024)
    bench.run()
    assert inquiry is not None
    assert inquiry.read_len == 96
    assert inquiry.data[8:15] == b"REPLCTL"


def test_the_identity_is_the_one_of_the_embedded_target() -> None:
    bench = Bench()
    page = bytes((Opcode.INQUIRY, 1, VpdPage.DEVICE_IDENTIFICATION, 0, 255, 0))
    command = bench.kernel.queue(page, data_in_length=255)
    bench.run()
    assert command is not None
    assert naa_identifier(bench.volume.serial) in command.data


def test_an_error_carries_its_sense_data() -> None:
    bench = Bench()
    unknown = bench.kernel.queue(bytes((0xC0, *bytes(9))))
    bench.run()
    assert unknown is not None
    assert (unknown.status, unknown.sense[2], unknown.sense[12]) == (2, 5, 0x20)


def test_an_error_carries_its_sense_data_in_the_format_that_was_chosen() -> None:
    bench = Bench()
    d_sense = bytes((0, 0, 0, 0, 0x0A, 0x0A, 0x06, 0x10, 0, 0x40, 0, 0, 0xFF, 0xFF, 0, 0))
    selected = bench.kernel.queue(cdbs.mode_select_6(len(d_sense)), data_out=d_sense)
    unknown = bench.kernel.queue(bytes((0xC0, *bytes(9))))
    kernels = bench.kernel.queue(bytes((Opcode.RESERVE_6, *bytes(5))))
    bench.run()
    assert selected is not None
    assert unknown is not None
    assert kernels is not None
    assert selected.status == 0
    for refused in (unknown, kernels):
        assert (refused.status, *refused.sense[:3]) == (2, 0x72, 5, 0x20)


@pytest.mark.parametrize(
    "cdb",
    [
        bytes((Opcode.PERSISTENT_RESERVE_OUT, 0, 1, *bytes(5), 24, 0)),
        bytes((Opcode.PERSISTENT_RESERVE_IN, *bytes(6), 0, 8, 0)),
        bytes((Opcode.RESERVE_6, *bytes(5))),
        bytes((Opcode.RELEASE_6, *bytes(5))),
    ],
)
def test_reservations_are_the_kernels(cdb: bytes) -> None:
    bench = Bench()
    command = bench.kernel.queue(cdb, data_out=bytes(24))
    bench.run()
    assert command is not None
    assert (command.status, command.sense[2], command.sense[12]) == (2, 5, 0x20)


def test_all_paths_are_one_group_and_alike() -> None:
    bench = Bench()
    command = bench.kernel.queue(bytes((Opcode.MAINTENANCE_IN, 0x0A, *bytes(7), 64, 0, 0)), data_in_length=64)
    page = bytes((Opcode.INQUIRY, 1, VpdPage.DEVICE_IDENTIFICATION, 0, 255, 0))
    identification = bench.kernel.queue(page, data_in_length=255)
    bench.run()
    assert command is not None
    assert identification is not None
    assert command.data[:4] == bytes((0, 0, 0, 8))
    assert command.data[4] & 0x0F == 0  # active/optimized
    assert command.data[11] == 0  # the kernel knows its ports, we do not
    assert b"\x01\x15\x00\x04\x00\x00" + command.data[6:8] in identification.data


def compare_and_write(old: bytes, new: bytes) -> tuple[bytes, bytes]:
    return bytes((Opcode.COMPARE_AND_WRITE, *bytes(12), 1, 0, 0)), old.ljust(512, b".") + new.ljust(512, b".")


def test_a_compare_and_write_that_was_done_before_the_kill_is_not_refused_after_it() -> None:
    bench = Bench()
    bench.volume.content[:512] = b"old".ljust(512, b".")
    done = bench.kernel.queue(*compare_and_write(b"old", b"new"))
    bench.handler.drain()
    assert bench.volume.content[:3] == b"new"
    bench.turn = bench.volume.turn = Turn()  # killed: executed, not answered
    refused = bench.kernel.queue(*compare_and_write(b"other", b"wrong"))
    bench.unit = LogicalUnit(bench.volume)
    bench.handler = bench.start()
    bench.turn.end()
    assert done is not None
    assert refused is not None
    assert bench.volume.content[:3] == b"new"
    assert (done.status, refused.status, refused.sense[2]) == (0, 2, 0x0E)


def test_supported_operation_codes_are_told() -> None:
    bench = Bench()
    command = bench.kernel.queue(
        bytes((Opcode.MAINTENANCE_IN, 0x0C, *bytes(4), 0, 0, 16, 0, 0, 0)), data_in_length=4096
    )
    bench.run()
    assert command is not None
    assert command.status == 0
    assert int.from_bytes(command.data[:4], "big") > 100


def test_power_on_is_the_kernels_to_report_and_a_new_capacity_ours() -> None:
    bench = Bench()
    ready = bench.kernel.queue(bytes(6))
    bench.run()
    assert ready is not None
    assert ready.status == 0
    bench.unit.raise_unit_attention(CAPACITY_DATA_HAS_CHANGED)
    told, silent = bench.kernel.queue(bytes(6)), bench.kernel.queue(bytes(6))
    bench.run()
    assert told is not None
    assert (told.status, told.sense[2], told.sense[12]) == (2, 6, 0x2A)
    assert silent is not None
    assert silent.status == 0


def test_after_the_ring_is_gone_its_memory_is_not_touched() -> None:
    bench = Bench()
    bench.kernel.queue(bytes((Opcode.SYNCHRONIZE_CACHE_10, *bytes(9))))
    bench.kernel.queue(read_10(0, 1), data_in_length=512)
    bench.handler.drain()
    bench.handler.close()
    before = bytes(bench.kernel.memory)
    bench.volume.flushes.pop().done()
    bench.turn.end()
    assert bytes(bench.kernel.memory) == before


def test_the_nexus_has_no_port() -> None:
    assert NEXUS.target_port == ""
