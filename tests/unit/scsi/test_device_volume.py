"""The journal logical unit: a device that is read as it is, and never written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest

from target.blockdev import FileDevice
from target.device_volume import ReadOnlyVolume
from target.scheduler import Timer
from target.scsi import cdb, sense
from target.scsi.command import GOOD, Nexus
from target.scsi.logical_unit import LogicalUnit
from tests.unit.scsi.initiator import TARGET_PORT, RecordedCommand, data_of, sense_of

T = TypeVar("T")


class ColdDevice(FileDevice):
    """Nothing is in memory; reads of `bad` fail."""

    bad = -1

    def pread_nowait(self, length: int, offset: int) -> bytes | None:
        return None

    def pread(self, length: int, offset: int) -> bytes:
        if offset == self.bad:
            raise OSError("medium error")
        return super().pread(length, offset)


class RecordingScheduler:
    """Keeps submitted work until `run`."""

    def __init__(self) -> None:
        self.submitted: list[tuple[str, Callable[[], None]]] = []

    def run(self) -> None:
        while self.submitted:
            self.submitted.pop(0)[1]()

    def submit(
        self, lane: str, work: Callable[[], T], done: Callable[[T | None, Exception | None], None]
    ) -> None:
        def run() -> None:
            try:
                result = work()
            except OSError as error:
                done(None, error)
            else:
                done(result, None)

        self.submitted.append((lane, run))

    def monotonic(self) -> float:
        raise AssertionError("a read-only volume needs no clock")

    def wall_ns(self) -> int:
        raise AssertionError("a read-only volume needs no clock")

    def call_soon(self, call: Callable[[], None]) -> None:
        raise AssertionError("a read-only volume defers nothing")

    def call_later(self, delay_seconds: float, call: Callable[[], None]) -> Timer:
        raise AssertionError("a read-only volume defers nothing")

    def at_append(self, call: Callable[[], None]) -> None:
        raise AssertionError("a read-only volume appends nothing")

    def at_send(self, call: Callable[[], None]) -> None:
        raise AssertionError("a read-only volume sends nothing")


CONTENT = bytes(range(256)) * 32


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "journal"
    path.write_bytes(CONTENT + b"tail that is no whole block")
    return path


def logical_unit(device: FileDevice, scheduler: RecordingScheduler, block_size: int = 512) -> LogicalUnit:
    volume = ReadOnlyVolume(device, scheduler, name="group1", serial="journal-1", block_size_bytes=block_size)
    return LogicalUnit(volume)


def submit(unit: LogicalUnit, built: bytes, data: bytes = b"") -> RecordedCommand:
    nexus = Nexus("peer", TARGET_PORT)
    unit.execute(RecordedCommand(bytes(6), b"", nexus))
    command = RecordedCommand(built.ljust(16, b"\0"), data, nexus)
    unit.execute(command)
    return command


def test_a_warm_read_is_answered_at_once(file: Path) -> None:
    scheduler = RecordingScheduler()
    unit = logical_unit(FileDevice(file, read_only=True), scheduler)
    command = submit(unit, cdb.read(1, 2))
    scheduler.run()  # where the file system cannot tell warm from cold, or the page is gone
    assert data_of(command.result) == CONTENT[512:1536]


def test_a_cold_read_goes_to_the_read_lane(file: Path) -> None:
    scheduler = RecordingScheduler()
    unit = logical_unit(ColdDevice(file, read_only=True), scheduler)
    command = submit(unit, cdb.read(1, 2))
    assert command.results == []
    assert [lane for lane, _ in scheduler.submitted] == ["read"]
    scheduler.run()
    assert data_of(command.result) == CONTENT[512:1536]


def test_a_failing_read_is_a_medium_error(file: Path) -> None:
    scheduler = RecordingScheduler()
    device = ColdDevice(file, read_only=True)
    device.bad = 512
    command = submit(logical_unit(device, scheduler), cdb.read(1, 1))
    scheduler.run()
    assert sense_of(command.result) == sense.UNRECOVERED_READ_ERROR


def test_a_read_that_fails_at_once_is_a_medium_error(file: Path) -> None:
    device = FileDevice(file, read_only=True)
    unit = logical_unit(device, RecordingScheduler())
    device.close()
    assert sense_of(submit(unit, cdb.read(1, 1)).result) == sense.UNRECOVERED_READ_ERROR


@pytest.mark.parametrize("built", [cdb.write(0, 1), cdb.write_same(0, 1)])
@pytest.mark.parametrize("fill", [0, 1])
def test_nothing_is_ever_written(file: Path, built: bytes, fill: int) -> None:
    unit = logical_unit(FileDevice(file), RecordingScheduler())
    assert sense_of(submit(unit, built, bytes((fill,)) * 512).result) == sense.WRITE_PROTECTED
    assert file.read_bytes().startswith(CONTENT)
    assert data_of(submit(unit, cdb.mode_sense_6(0x3F)).result)[2] & 0x80, "WP"
    assert submit(unit, cdb.synchronize_cache()).result is GOOD


@pytest.mark.parametrize(("block_size", "blocks"), [(512, 16), (4096, 2)])
def test_size_is_whole_blocks(file: Path, block_size: int, blocks: int) -> None:
    unit = logical_unit(FileDevice(file, read_only=True), RecordingScheduler(), block_size)
    assert unit.capacity.block_count == blocks
