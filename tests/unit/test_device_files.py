"""A file that was cut is refused before anything makes it whole again; a new one is no error."""

from __future__ import annotations

from pathlib import Path

import pytest

from target.blockdev import FileDevice
from target.device_files import check_volume, journal_is_new
from target.errors import IntegrityError
from target.journal.format import VolumeShape, format_journal

SIZE = 44 << 20


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    path = tmp_path / "journal"
    device = FileDevice(path, create_bytes=SIZE)
    format_journal(device, bytes(16), (VolumeShape("data", 1 << 20, 512),))
    device.close()
    return path


def test_a_missing_journal_and_one_of_zeros_are_new(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    assert journal_is_new(path)
    FileDevice(path, create_bytes=SIZE).close()
    assert journal_is_new(path)


def test_a_whole_journal_is_not_new(journal: Path) -> None:
    assert not journal_is_new(journal)
    with journal.open("r+b") as file:
        file.truncate(SIZE + (1 << 20))  # the configuration has grown
    assert not journal_is_new(journal)


@pytest.mark.parametrize("length", [0, 1, 16383, 32767, 32768, 1 << 20, SIZE - 4096])
def test_a_journal_that_was_cut_is_refused_and_stays_as_it_is(journal: Path, length: int) -> None:
    with journal.open("r+b") as file:
        file.truncate(length)
    with pytest.raises(IntegrityError, match="it was cut"):
        journal_is_new(journal)
    assert journal.stat().st_size == length


def test_a_volume_must_be_there_in_full(tmp_path: Path) -> None:
    path = tmp_path / "volume"
    with pytest.raises(IntegrityError, match="is gone"):
        check_volume(path, 4096)
    path.write_bytes(bytes(4095))
    with pytest.raises(IntegrityError, match="4095 bytes instead of 4096: it was cut"):
        check_volume(path, 4096)
    assert path.stat().st_size == 4095
    path.write_bytes(bytes(4096))
    check_volume(path, 4096)
    check_volume(path, None)
