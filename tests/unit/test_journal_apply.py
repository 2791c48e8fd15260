"""`scripts/journal-apply`: what a lost site alone had is listed, and put on an image."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from target.journal.record import NO_DIGEST, RecordType, chain_digest
from target.journal.ring import NewRecord
from tests.unit.journal.packs import update, whole_pack

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "journal-apply"


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


@pytest.fixture
def export(tmp_path: Path) -> Path:
    """Five records in two packs, for two volumes; the later write to block 0 counts."""
    first = [update(1), update(2, offset=4096), update(7, 512, 1024, volume=2)]
    header, pack = whole_pack(first, first_sequence=101, previous_digest=NO_DIGEST)
    second = [update(3), NewRecord(RecordType.ZERO, 0, 1, 4096, 4096, b"")]
    _, following = whole_pack(second, first_sequence=104, previous_digest=chain_digest(header.raw))
    path = tmp_path / "group1.journal"
    path.write_bytes(pack + following)
    return path


def test_the_writes_are_listed_in_their_order(export: Path) -> None:
    shown = run(export)
    assert shown.returncode == 0, shown.stderr
    lines = shown.stdout.splitlines()
    assert [line.split()[1] for line in lines] == ["101", "102", "103", "104", "105"]
    assert "volume 2  offset 1024  length 512  update" in lines[2]
    assert lines[4].endswith("volume 1  offset 4096  length 4096  zero")


def test_they_are_put_on_a_copy_of_the_volume(export: Path, tmp_path: Path) -> None:
    image = tmp_path / "copy"
    image.write_bytes(b"\xaa" * 16384)
    done = run(export, "--image", f"1={image}")
    assert done.returncode == 0, done.stderr
    assert image.read_bytes() == b"\x03" * 4096 + bytes(4096) + b"\xaa" * 8192


def test_a_missing_image_is_made_and_holds_these_blocks_alone(export: Path, tmp_path: Path) -> None:
    image = tmp_path / "new"
    assert run(export, "--image", f"2={image}").returncode == 0
    assert image.read_bytes() == bytes(1024) + b"\x07" * 512


@pytest.mark.parametrize(
    ("damage", "what"),
    [
        (lambda data: data[:-1], "it is not whole"),
        (lambda data: b"x" + data[1:], "no pack at byte 0"),
        (lambda data: data[:4096] + b"x" + data[4097:], "are not what was written"),
        (lambda data: data + data, "does not follow the one before it"),
    ],
)
def test_what_is_damaged_is_refused_and_nothing_written(
    export: Path, tmp_path: Path, damage: object, what: str
) -> None:
    assert callable(damage)
    export.write_bytes(damage(export.read_bytes()))
    image = tmp_path / "new"
    refused = run(export, "--image", f"1={image}")
    assert refused.returncode == 4
    assert what in refused.stderr
    assert not image.exists()


def test_an_image_that_is_too_small_is_refused(export: Path, tmp_path: Path) -> None:
    image = tmp_path / "small"
    image.write_bytes(bytes(4096))
    refused = run(export, "--image", f"1={image}")
    assert refused.returncode == 4
    assert "ends at byte 4096" in refused.stderr
    assert image.read_bytes() == bytes(4096)


def test_a_missing_file_and_a_wrong_volume_say_so(export: Path, tmp_path: Path) -> None:
    missing = run(tmp_path / "none")
    assert missing.returncode == 2
    assert "No such file" in missing.stderr
    nothing = run(export, "--image", f"9={tmp_path / 'nine'}")
    assert nothing.returncode == 4
    assert "nothing of volume 9" in nothing.stderr
