"""A peer's journal on a block device of this machine: found by its serial number, lost, and found again."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from target.lio import journal_device
from target.lio.journal_device import DeviceSource, JournalDevices, unit_serial_number
from target.loop import Loop
from target.volume import Buffer

SERIAL = "0123456789abcdef"


class Machine:
    """Block devices that come and go; each is a file."""

    def __init__(self) -> None:
        self.nodes: dict[str, str] = {}
        self._calls: list[Callable[[str], None]] = []

    def find(self, serial: str) -> str | None:
        return self.nodes.get(serial)

    def on_removed(self, call: Callable[[str], None]) -> None:
        self._calls.append(call)

    def take_away(self, serial: str) -> None:
        node = self.nodes.pop(serial)
        for call in self._calls:
            call(node)


class Bench:
    """A source, and what it told."""

    def __init__(self, path: Path) -> None:
        self.loop = Loop()
        self.machine = Machine()
        self.journals = JournalDevices(self.loop, self.machine)
        self.path = path
        self.said: list[str] = []

    def plug_in(self) -> None:
        self.machine.nodes[SERIAL] = str(self.path)

    def source(self) -> DeviceSource:
        source = self.journals.source(SERIAL)
        source.open(lambda: self.said.append("up"), self.said.append)
        self.until(lambda: bool(self.said))
        return source

    def until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self.loop.turn(1.0)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    path = tmp_path / "device"
    path.write_bytes(b"".join(bytes((number,)) * 4096 for number in range(16)))
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_DIRECT))
    except OSError:
        pytest.skip("the file system of the temporary directory has no O_DIRECT")
    it = Bench(path)
    yield it
    it.loop.close()


def test_blocks_are_read_where_they_lie(bench: Bench) -> None:
    bench.plug_in()
    source = bench.source()
    answers: dict[int, bytes] = {}

    def answered(number: int) -> Callable[[Buffer | None, Exception | None], None]:
        def done(data: Buffer | None, error: Exception | None) -> None:
            assert error is None
            assert data is not None
            answers[number] = bytes(data)

        return done

    for number in range(16):
        source.read(number * 4096, 4096, answered(number))
    bench.until(lambda: len(answers) == 16)
    assert answers == {number: bytes((number,)) * 4096 for number in range(16)}
    source.close()
    assert bench.said == ["up"]


def test_a_device_that_is_not_there_is_missed_and_found_later(bench: Bench) -> None:
    bench.source()
    assert SERIAL in bench.said[0]
    bench.said.clear()
    bench.plug_in()
    bench.source()
    assert bench.said == ["up"]


def test_a_device_that_is_taken_away_ends_the_reading(bench: Bench) -> None:
    bench.plug_in()
    source = bench.source()
    bench.machine.take_away(SERIAL)
    assert bench.said[1:] == [f"{bench.path} is gone"]
    source.read(0, 4096, lambda data, error: bench.said.append("answered"))
    bench.loop.turn(0)
    assert "answered" not in bench.said


def test_reading_behind_the_end_is_told(bench: Bench) -> None:
    bench.plug_in()
    source = bench.source()
    errors: list[Exception | None] = []
    source.read(16 * 4096, 4096, lambda data, error: errors.append(error))
    bench.until(lambda: bool(errors))
    assert "could not be read" in str(errors[0])


def test_a_path_that_hangs_is_given_up_and_not_asked_again_before_it_answers(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    let_go = threading.Event()
    reads: list[int] = []

    def hang(self: object, offset: int, length: int) -> memoryview:
        reads.append(offset)
        let_go.wait()
        raise OSError("path lost")

    monkeypatch.setattr(journal_device, "_ANSWER_SECONDS_MAX", 0.05)
    monkeypatch.setattr(journal_device._File, "read", hang)
    bench.plug_in()
    source = bench.source()
    source.read(0, 4096, lambda data, error: bench.said.append("answered"))
    bench.until(lambda: len(bench.said) == 2)
    assert "does not answer" in bench.said[1]
    bench.said.clear()
    bench.source()
    assert "are not answered" in bench.said[0]
    let_go.set()
    bench.until(lambda: not bench.journals.held[SERIAL])
    monkeypatch.undo()
    bench.said.clear()
    bench.source()
    assert bench.said == ["up"]
    assert reads == [0]


def test_a_read_of_the_source_before_is_waited_for(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    let_go = threading.Event()
    read = journal_device._File.read

    def late(self: journal_device._File, offset: int, length: int) -> memoryview:
        let_go.wait()
        return read(self, offset, length)

    monkeypatch.setattr(journal_device._File, "read", late)
    bench.plug_in()
    first = bench.source()
    first.read(0, 4096, lambda data, error: bench.said.append("answered to one who is gone"))
    first.close()
    bench.said.clear()
    second = bench.journals.source(SERIAL)
    second.open(lambda: bench.said.append("up"), bench.said.append)
    bench.loop.turn(0)
    assert bench.said == []
    let_go.set()
    bench.until(lambda: bool(bench.said))
    assert bench.said == ["up"]


@pytest.mark.parametrize(
    ("page", "serial"),
    [
        (b"\x00\x80\x00\x04abcd", "abcd"),
        (b"\x00\x80\x00\x06ab  \0\0junk", "ab"),
        (b"\x00\x83\x00\x04abcd", ""),
        (b"\x00\x80", ""),
    ],
)
def test_the_serial_number_is_that_of_page_80h(tmp_path: Path, page: bytes, serial: str) -> None:
    (tmp_path / "device").mkdir()
    (tmp_path / "device" / "vpd_pg80").write_bytes(page)
    assert unit_serial_number(tmp_path) == serial


def test_what_is_no_scsi_disk_has_no_serial_number(tmp_path: Path) -> None:
    assert unit_serial_number(tmp_path) == ""
