"""`replctl lun` against the embedded target, over a real connection."""

from __future__ import annotations

import io
import json
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hostagent.cli.app import run
from target.iscsi.chap import ChapCredentials
from target.iscsi.node import TargetNode
from target.iscsi.portal import Portal
from target.loop import Loop
from target.scsi.device_server import Device
from target.scsi.logical_unit import LogicalUnit
from target.volume import VolumeError
from tests.unit.scsi.memory_volume import MemoryVolume

BLOCK = 512
OPEN = "iqn.2026-01.org.replctl:open"
GUARDED = "iqn.2026-01.org.replctl:guarded"
SECRET = "a/secret@with%signs"

Replctl = Callable[..., tuple[int, str, str]]


class Unit:
    """A volume in memory, behind a target that lets all in and one that asks for CHAP."""

    def __init__(self) -> None:
        self.volume = MemoryVolume(4 << 20)
        device = Device({0: LogicalUnit(self.volume)})
        self._loop = Loop()
        chap = ChapCredentials("host", SECRET)
        self._portal = Portal(self._loop, [TargetNode(OPEN, device), TargetNode(GUARDED, device, chap=chap)])
        self.address = self._portal.listen("127.0.0.1:0")
        self._thread = threading.Thread(target=self._loop.run)
        self._thread.start()

    def url(self, name: str = OPEN, user: str = "") -> str:
        return f"iscsi://{user}{self.address}/{name}/0"

    def close(self) -> None:
        def stop() -> None:
            self._portal.close()
            self._loop.stop()

        self._loop.call_from_thread(stop)
        self._thread.join()
        self._loop.close()


@pytest.fixture
def unit() -> Iterator[Unit]:
    it = Unit()
    yield it
    it.close()


@pytest.fixture
def replctl(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Replctl]:
    def called(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["replctl", "lun", *words])
        with pytest.raises(SystemExit) as ended:
            run()
        return int(ended.value.code or 0), *capfd.readouterr()

    before = signal.getsignal(signal.SIGINT)
    yield called
    signal.signal(signal.SIGINT, before)


def stamped(blocks: int) -> bytes:
    return b"".join(n.to_bytes(8, "big") * (BLOCK // 8) for n in range(blocks))


def test_what_is_written_from_a_file_is_read_into_a_file(
    unit: Unit, replctl: Replctl, tmp_path: Path
) -> None:
    data = stamped(5000)  # several commands
    (tmp_path / "in").write_bytes(data)
    code, out, _ = replctl(
        "write", unit.url(), "--lba", "7", "--input", str(tmp_path / "in"), "--flush", "--json"
    )
    assert code == 0
    assert json.loads(out) == {"lba": 7, "blocks": 5000, "bytes": len(data), "fua": False, "flushed": True}
    assert bytes(unit.volume.content[7 * BLOCK :][: len(data)]) == data
    assert unit.volume.calls[-1][0] == "flush"
    words = ("--lba", "7", "--blocks", "5000", "--output", str(tmp_path / "out"), "--json")
    code, out, _ = replctl("read", unit.url(), *words)
    assert (code, json.loads(out)["bytes"]) == (0, len(data))
    assert (tmp_path / "out").read_bytes() == data


def test_reading_to_standard_output_gives_the_bytes_alone(unit: Unit, replctl: Replctl) -> None:
    unit.volume.content[:BLOCK] = b"text" * (BLOCK // 4)
    assert replctl("read", unit.url(), "--blocks", "1") == (0, "text" * (BLOCK // 4), "")


def test_standard_input_is_written(unit: Unit, replctl: Replctl, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"x" * BLOCK)))
    assert replctl("write", unit.url(), "--input", "-")[0] == 0
    assert unit.volume.content[:BLOCK] == b"x" * BLOCK


def test_fua_reaches_the_volume_with_every_write(unit: Unit, replctl: Replctl, tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(bytes(2 * BLOCK))
    assert replctl("write", unit.url(), "--input", str(tmp_path / "in"), "--fua")[0] == 0
    writes = [call for call in unit.volume.calls if call[0] == "write"]
    assert writes
    assert all(fua for *_, fua in writes)


def test_capacity_and_inquiry_say_what_is_there(unit: Unit, replctl: Replctl) -> None:
    assert json.loads(replctl("capacity", unit.url(), "--json")[1]) == {
        "blocks": 8192,
        "block_size_bytes": 512,
        "bytes": 4 << 20,
    }
    assert "8192 blocks of 512 bytes: 4.0 MiB" in replctl("capacity", unit.url())[1]
    facts = json.loads(replctl("inquiry", unit.url(), "--json")[1])
    assert facts["peripheral_device_type"] == 0
    assert facts["vendor"]
    assert facts["vendor"] in replctl("inquiry", unit.url())[1]
    page = json.loads(replctl("inquiry", unit.url(), "--page", "0x80", "--json")[1])
    assert b"serial-1" in bytes.fromhex(page["data"])


@pytest.mark.parametrize(
    ("words", "code", "reason"),
    [
        (("read", "{url}", "--lba", "8192", "--blocks", "1"), 2, "the last is 8191"),
        (("read", "{url}", "--lba", "8191", "--blocks", "2"), 2, "the last is 8191"),
        (("read", "{url}", "--blocks", "1", "--json"), 2, "--output"),
        (("read", "{url}", "--blocks", "1", "--output", "/none/x"), 2, "/none/x"),
        (("write", "{url}", "--input", "/none/x"), 2, "/none/x"),
        (("inquiry", "{url}", "--page", "0x100"), 2, "not between"),
        (("inquiry", "{url}", "--page", "0x33"), 3, "INVALID FIELD IN CDB"),
        (("capacity", "iscsi://127.0.0.1:1/iqn.2026-01.x/0"), 3, "cannot connect"),
    ],
)
def test_what_cannot_be_is_refused(
    unit: Unit, replctl: Replctl, words: tuple[str, ...], code: int, reason: str
) -> None:
    ended, out, err = replctl(*(word.format(url=unit.url()) for word in words))
    assert (ended, out) == (code, "")
    assert reason.lower() in err.lower()


@pytest.mark.parametrize("size", [100, 512 * 3 + 1])
def test_an_input_of_no_whole_blocks_is_refused_unwritten(
    unit: Unit, replctl: Replctl, tmp_path: Path, size: int
) -> None:
    (tmp_path / "in").write_bytes(bytes(size))
    code, _, err = replctl("write", unit.url(), "--input", str(tmp_path / "in"))
    assert code == 2
    assert "no whole number of blocks" in err
    assert "write" not in unit.volume.names()


def test_a_write_protected_unit_says_so(unit: Unit, replctl: Replctl, tmp_path: Path) -> None:
    unit.volume.failures["write"] = VolumeError.WRITE_PROTECTED
    (tmp_path / "in").write_bytes(bytes(BLOCK))
    code, _, err = replctl("write", unit.url(), "--input", str(tmp_path / "in"))
    assert code == 3
    assert "write protected" in err.lower()


def test_chap_credentials_are_given_apart_from_the_url(unit: Unit, replctl: Replctl, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text(SECRET + "\n")
    secret.chmod(0o600)
    with_file = ("--secret-file", str(secret))
    assert replctl("capacity", unit.url(GUARDED), "--user", "host", *with_file)[0] == 0
    assert replctl("capacity", unit.url(GUARDED, "host@"), *with_file)[0] == 0
    assert replctl("capacity", unit.url(GUARDED), "--user", "else", *with_file)[0] == 3
    assert replctl("capacity", unit.url(GUARDED))[0] == 3
    code, _, err = replctl("capacity", unit.url(GUARDED), *with_file)
    assert (code, "--user NAME" in err) == (2, True)
    secret.chmod(0o644)
    code, _, err = replctl("capacity", unit.url(GUARDED, "host@"), *with_file)
    assert (code, "mode 0644" in err, SECRET in err) == (2, True, False)
