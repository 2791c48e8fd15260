"""`scripts/journal-dump` reads what the package writes, though it knows the format from its document only."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from target.blockdev import FileDevice
from target.journal.pack_index import PackIndex
from target.journal.record import (
    BLOCK_BYTES,
    FLAG_UNMAP,
    EpochStart,
    Lsn,
    Marker,
    MarkerKind,
    RecordType,
    SequenceNumber,
    round_up,
)
from target.journal.ring import Journal, NewRecord
from target.journal.superblock import MirrorEntry, MirrorState, Position, Role, Superblock, VolumeEntry

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "journal-dump"
GROUP_ID = bytes(range(16))
RING_OFFSET = 65536
RING_BYTES = 1 << 20
TIME_NS = 1_750_000_000_000_000_000


def update(fill: int, length: int = 512, offset: int = 0) -> NewRecord:
    return NewRecord(RecordType.UPDATE, 0, 1, offset, length, bytes([fill]) * length)


@dataclass(frozen=True)
class Dump:
    """What the script said."""

    exit_code: int
    lines: list[dict[str, Any]]

    @property
    def superblock(self) -> dict[str, Any]:
        return dict(self.lines[0]["superblock"])

    @property
    def end(self) -> dict[str, Any]:
        return dict(self.lines[-1]["end"])

    @property
    def packs(self) -> list[dict[str, Any]]:
        return [line["pack"] for line in self.lines if "pack" in line]

    @property
    def records(self) -> list[dict[str, Any]]:
        return [record for pack in self.packs for record in pack["records"]]


class Site:
    """A journal volume on a file, as its subsystem writes it."""

    def __init__(self, path: Path, start_lsn: int = 0) -> None:
        self.path = path
        self.device = FileDevice(path, create_bytes=RING_OFFSET + RING_BYTES)
        start = Position(Lsn(start_lsn), SequenceNumber(0), bytes(32))
        superblock = Superblock(
            group_id=GROUP_ID,
            ring_offset=RING_OFFSET,
            ring_bytes=RING_BYTES,
            bitmap_offset=32768,
            bitmap_pages=1,
            bitmap_slots=1,
            extent_bytes=65536,
            volumes=(VolumeEntry(1, "data", 1 << 20, 512, 0, 1),),
        )
        superblock = replace(superblock, tail=start, durable_lsn=start.lsn)
        self.journal = Journal(self.device, superblock, start, PackIndex())

    def append(self, *records: NewRecord) -> int:
        """One pack; its LSN."""
        self.journal.append(records, TIME_NS)
        return self.journal.head.lsn - BLOCK_BYTES - round_up(sum(len(record.data) for record in records))

    def commit(self, **changes: object) -> None:
        """Make it durable, and let the superblock say so."""
        for _ in range(2):  # the superblock of a commit knows the durable mark of the one before
            self.journal.change_superblock(**changes)
            commit = self.journal.begin_commit()
            commit.work()
            self.journal.finish_commit(commit)

    def spoil(self, lsn: int, distance: int) -> None:
        """Flip a bit `distance` bytes behind the start of a pack."""
        offset = RING_OFFSET + lsn % RING_BYTES + distance
        (byte,) = self.device.pread(1, offset)
        self.device.pwritev([bytes([byte ^ 1])], offset)

    def dump(self, *options: str) -> Dump:
        done = subprocess.run(
            [sys.executable, "-I", SCRIPT, "--json", *options, self.path],
            capture_output=True,
            text=True,
            check=False,
        )
        assert not done.stderr
        return Dump(done.returncode, [json.loads(line) for line in done.stdout.splitlines()])


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path / "journal")


def test_every_type_of_record_is_told_in_its_own_terms(site: Site) -> None:
    epoch = EpochStart(3, 77, 2, 66, SequenceNumber(41), bytes(32), TIME_NS)
    marker = Marker(MarkerKind.OPERATOR, TIME_NS, "before the weekend").encode()
    site.append(
        NewRecord(RecordType.EPOCH, 0, 0, 0, 0, epoch.encode()),
        update(0xAB, 4096, 8192),
        NewRecord(RecordType.ZERO, FLAG_UNMAP, 1, 1024, 2048, b""),
        NewRecord(RecordType.BASE, 0, 1, 65536, 512, bytes(512)),
        NewRecord(RecordType.BASE_ZERO, 0, 1, 0, 65536, b""),
        NewRecord(RecordType.MARKER, 0, 0, 0, 0, marker),
        NewRecord(RecordType.VERIFY, 0, 1, 0, 65536, bytes(range(32))),
    )
    site.commit()
    dump = site.dump("--data-check")
    assert dump.exit_code == 0
    assert [record["sequence"] for record in dump.records] == [1, 2, 3, 4, 5, 6, 7]
    started, written, zeroed, base, base_zero, point, verify = dump.records
    assert (started["number"], started["reign"], started["parent_number"], started["fork_sequence"]) == (
        3,
        77,
        2,
        41,
    )
    assert (written["type"], written["volume"], written["offset"], written["length"]) == (
        "update",
        1,
        8192,
        4096,
    )
    assert (zeroed["type"], zeroed["offset"], zeroed["length"], zeroed["unmap"]) == ("zero", 1024, 2048, True)
    assert (base["type"], base["offset"], base_zero["type"], base_zero["length"]) == (
        "base",
        65536,
        "base zero",
        65536,
    )
    assert (point["kind"], point["name"]) == ("operator", "before the weekend")
    assert point["time"] == "2025-06-15T15:06:40.000+00:00"
    assert verify["digest"] == bytes(range(32)).hex()


def test_superblock_is_told_with_its_tables(site: Site) -> None:
    epoch = EpochStart(1, 7, 0, 0, SequenceNumber(0), bytes(32), TIME_NS)
    mirror = MirrorEntry("b", MirrorState.PAIR, 0, *map(SequenceNumber, (9, 8, 7, 6)))
    site.append(update(1))
    site.commit(role=Role.PRIMARY, epoch=1, reign=7, epochs=(epoch,), mirrors=(mirror,), primary="a")
    superblock = site.dump().superblock
    assert (superblock["role"], superblock["epoch"], superblock["reign"], superblock["follows"]) == (
        "primary",
        1,
        7,
        "a",
    )
    assert (superblock["ring_offset"], superblock["ring_size"]) == (RING_OFFSET, RING_BYTES)
    assert (superblock["durable_lsn"], superblock["durable_sequence"]) == (8192, 1)
    assert [(volume["name"], volume["size"]) for volume in superblock["volumes"]] == [("data", 1 << 20)]
    assert [(entry["number"], entry["reign"]) for entry in superblock["epochs"]] == [(1, 7)]
    numbers = [superblock["mirrors"][0][key] for key in ("received", "restored", "verified", "base_complete")]
    assert (superblock["mirrors"][0]["name"], superblock["mirrors"][0]["state"], numbers) == (
        "b",
        "pair",
        [9, 8, 7, 6],
    )


def test_spoiled_superblock_copy_leaves_the_other(site: Site) -> None:
    site.append(update(1))
    site.commit()
    newest = site.dump().superblock
    site.device.pwritev([b"\xff"], newest["copy"] * 16384 + 300)
    older = site.dump().superblock
    assert (older["copy"], older["generation"]) == (1 - newest["copy"], newest["generation"] - 1)
    site.device.pwritev([b"\xff"], older["copy"] * 16384 + 300)
    done = subprocess.run([sys.executable, SCRIPT, site.path], capture_output=True, text=True, check=False)
    assert done.returncode == 4
    assert "neither copy of the superblock is good" in done.stderr


def test_walk_goes_around_the_ring_over_its_pad(tmp_path: Path) -> None:
    site = Site(tmp_path / "journal", start_lsn=7 * RING_BYTES - 12288)
    site.append(update(1))
    site.append(update(2, 8192))
    site.append(update(3))
    site.commit()
    dump = site.dump("--data-check")
    assert [next(iter(line)) for line in dump.lines] == ["superblock", "pack", "pad", "pack", "pack", "end"]
    assert [pack["lsn"] for pack in dump.packs] == [
        7 * RING_BYTES - 12288,
        7 * RING_BYTES,
        7 * RING_BYTES + 12288,
    ]
    assert [record["sequence"] for record in dump.records] == [1, 2, 3]
    assert dump.exit_code == 0


def test_from_sequence_begins_in_the_middle_of_a_pack(site: Site) -> None:
    site.append(update(1), update(2))
    site.append(update(3), update(4), update(5))
    site.append(update(6))
    site.commit()
    assert [record["sequence"] for record in site.dump("--from-sequence", "4").records] == [4, 5, 6]


def test_torn_tail_ends_the_journal_and_is_no_fault(site: Site) -> None:
    site.append(update(1))
    site.commit()
    torn = site.append(update(2))
    site.spoil(torn, BLOCK_BYTES + 100)
    dump = site.dump()
    assert dump.exit_code == 0
    assert (dump.end["lsn"], dump.end["last_sequence"], dump.end["corrupt"]) == (torn, 1, False)


@pytest.mark.parametrize(
    "distance",
    [0, 8, 10, 48, 70, 124, 130],
    ids=["magic", "version", "count", "sequence", "chain", "crc", "record"],
)
def test_header_that_was_durable_and_is_bad_is_corruption(site: Site, distance: int) -> None:
    site.append(update(1))
    second = site.append(update(2))
    site.append(update(3))
    site.commit()
    site.spoil(second, distance)
    dump = site.dump()
    assert dump.exit_code == 4
    assert (dump.end["lsn"], dump.end["last_sequence"], dump.end["corrupt"]) == (second, 1, True)
    assert "durable mark" in dump.end["reason"]


def test_pack_of_another_history_breaks_the_chain(tmp_path: Path, site: Site) -> None:
    other = Site(tmp_path / "other")
    for one, fill in ((site, 1), (other, 9)):
        one.append(update(fill))
        second = one.append(update(2))
        one.commit()
    site.device.pwritev([other.device.pread(8192, RING_OFFSET + second)], RING_OFFSET + second)
    dump = site.dump()
    assert dump.exit_code == 4
    assert (dump.end["last_sequence"], "chain" in dump.end["reason"]) == (1, True)


def test_durable_data_are_checked_when_asked(site: Site) -> None:
    site.append(update(1))
    second = site.append(update(2, 4096))
    site.append(update(3))
    site.commit()
    site.spoil(second, BLOCK_BYTES + 4095)
    assert site.dump().exit_code == 0
    dump = site.dump("--data-check")
    assert dump.exit_code == 4
    assert "the data of record 2" in dump.end["reason"]


def test_header_further_on_proves_what_the_superblock_does_not(site: Site) -> None:
    site.commit()
    site.append(update(1))
    second = site.append(update(2))
    site.journal.durable = site.journal.head  # as if flushed without a new superblock
    site.append(update(3))
    assert site.dump().exit_code == 0
    site.spoil(second, 20)
    dump = site.dump()
    assert dump.exit_code == 4
    assert (dump.end["lsn"], dump.end["corrupt"]) == (second, True)
    assert "in the pack at LSN" in dump.end["reason"]


def test_table_for_a_person_names_records_and_the_end(site: Site) -> None:
    site.append(
        update(1),
        NewRecord(RecordType.MARKER, 0, 0, 0, 0, Marker(MarkerKind.OPERATOR, TIME_NS, "here").encode()),
    )
    site.commit()
    done = subprocess.run([sys.executable, SCRIPT, site.path], capture_output=True, text=True, check=True)
    assert "name here" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("end at LSN 8192, after record 2")
