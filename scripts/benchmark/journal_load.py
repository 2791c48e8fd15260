"""What the journal's figures are measured on: journals that were written beforehand, hosts without a network.

A journal with so much unapplied is written by `target.journal.ring` itself, pack by pack, as the write path
would have: so a recovery has to do exactly what it has to do after a crash. The hosts hand writes to the
volume in the event loop's thread, as the SCSI device server does.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from target.blockdev import FileDevice
from target.group import ConsistencyGroup, GroupSettings
from target.group_volume import GroupVolume
from target.journal.format import VolumeShape, format_journal
from target.journal.pack_index import PackIndex
from target.journal.record import PACK_DATA_BYTES_MAX, Lsn, RecordType, SequenceNumber, round_up
from target.journal.ring import Journal, NewRecord
from target.journal.superblock import COPIES, SUPERBLOCK_BYTES, MirrorEntry, MirrorState, Role, Superblock
from target.loop import Loop
from target.open_group import open_group
from target.volume import Buffer, VolumeError

GROUP_ID = bytes(range(16))
PEER = "secondary"
_SLACK_BYTES = 48 << 20
"""Of the ring: so that no measurement has to wait for space."""
_COMMIT_BYTES = 32 << 20
_FILL_BYTES = 8 << 20
_PIECE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Shape:
    """What the records of a journal are: `records` of `record_bytes` a pack, at random places."""

    record_bytes: int
    records: int

    @property
    def name(self) -> str:
        return f"{self.records} of {self.record_bytes >> 10} KiB"

    @property
    def pack_bytes(self) -> int:
        return 4096 + round_up(self.record_bytes * self.records)


class CountingDevice(FileDevice):
    """A file, and how much was written to it and how often it was flushed."""

    def __init__(self, path: Path, *, create_bytes: int | None = None) -> None:
        super().__init__(path, create_bytes=create_bytes)
        self.bytes_written = 0
        self.flushes = 0

    def pwritev(self, buffers: Sequence[Buffer], offset: int) -> None:
        super().pwritev(buffers, offset)
        self.bytes_written += sum(map(len, buffers))

    def flush(self) -> None:
        super().flush()
        self.flushes += 1


def volume_shapes(volume_bytes: int) -> tuple[VolumeShape, ...]:
    return (VolumeShape("volume", volume_bytes, 512),)


class Written(NamedTuple):
    """How much a journal holds."""

    records: int
    end_lsn: Lsn


def write_journal(directory: Path, unapplied_bytes: int, shape: Shape, *, shipped: bool = False) -> Written:
    """Make a `journal` in a directory; each of its records has a place of its own on the volume.

    Everything is durable and nothing is applied. With `shipped` the group is a primary whose one mirror has
    received nothing, so that it keeps all of it.
    """
    changes: dict[str, object] = {}
    if shipped:
        nothing = SequenceNumber(0)
        mirror = MirrorEntry(PEER, MirrorState.PAIR, 0, nothing, nothing, nothing, nothing)
        changes = {"role": Role.PRIMARY, "mirrors": (mirror,)}
    device, superblock = _format(directory, unapplied_bytes, changes)
    journal = Journal(device, superblock, superblock.tail, PackIndex())
    offsets = _offsets(unapplied_bytes, shape.record_bytes)
    pool = os.urandom(_PIECE_BYTES + shape.record_bytes)
    records = 0
    while journal.head.lsn + shape.pack_bytes <= unapplied_bytes:
        pack = []
        for _ in range(shape.records):
            start = records * 4096 % _PIECE_BYTES
            data = memoryview(pool)[start : start + shape.record_bytes]
            offset = offsets[records % len(offsets)]
            pack.append(NewRecord(RecordType.UPDATE, 0, 1, offset, shape.record_bytes, data))
            records += 1
        assert sum(len(record.data) for record in pack) <= PACK_DATA_BYTES_MAX
        journal.append(pack, time.time_ns())
        if journal.undurable_bytes >= _COMMIT_BYTES:
            _commit(journal)
    _commit(journal)
    end = superblock.ring_offset + superblock.ring_bytes
    start = journal.place(journal.head.lsn)
    fill(device, start, end - start)
    device.close()
    return Written(records, journal.head.lsn)


def make_secondary(directory: Path, journal_bytes: int) -> None:
    """Make the `journal` of a site that follows and has nothing yet; the ring is written out."""
    device, superblock = _format(directory, journal_bytes, {"role": Role.SECONDARY, "primary": "primary"})
    fill(device, superblock.ring_offset, superblock.ring_bytes)
    device.close()


def _format(directory: Path, journal_bytes: int, changes: dict[str, object]) -> tuple[FileDevice, Superblock]:
    device = FileDevice(directory / "journal", create_bytes=journal_bytes + _SLACK_BYTES)
    superblock = format_journal(device, GROUP_ID, volume_shapes(journal_bytes))
    superblock = replace(superblock, generation=COPIES, **changes)  # type: ignore[arg-type]
    device.pwritev([superblock.encode()], superblock.generation % COPIES * SUPERBLOCK_BYTES)
    return device, superblock


def _offsets(volume_bytes: int, record_bytes: int) -> list[int]:
    """Every place of the volume once, in random order: many writes to one block would be fewer to apply."""
    offsets = list(range(0, volume_bytes, record_bytes))
    random.Random(1).shuffle(offsets)
    return offsets


def _commit(journal: Journal) -> None:
    commit = journal.begin_commit()
    commit.work()
    journal.finish_commit(commit)


def fill(device: FileDevice, start: int, length: int) -> None:
    """Write a range out with zeros."""
    for offset in range(start, start + length, _FILL_BYTES):
        device.pwritev([bytes(min(_FILL_BYTES, start + length - offset))], offset)
    device.flush()


def forget_pages(path: Path) -> None:
    """The next read of the file comes from the disk, as after a restart of the machine."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fdatasync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def make_file(path: Path, size_bytes: int) -> None:
    """A file that is written out, so that no measurement waits for the file system's allocation."""
    device = FileDevice(path, create_bytes=size_bytes)
    fill(device, 0, size_bytes)
    device.close()


class Engine:
    """A group on the files of a directory, in an event loop of its own."""

    def __init__(self, directory: Path, volume_bytes: int, *, site: str = "") -> None:
        self.loop = Loop()
        self.journal_device = CountingDevice(directory / "journal")
        self.volume_device = CountingDevice(directory / "volume", create_bytes=volume_bytes)
        self.group: ConsistencyGroup = open_group(
            self.loop,
            GroupSettings("group1", site=site),
            self.journal_device,
            volume_shapes(volume_bytes),
            {"volume": self.volume_device},
        )
        self.volume = GroupVolume(self.group, self.group.volumes[0], "benchmark")

    @property
    def applied(self) -> bool:
        """Everything is on the volume, durably, and a checkpoint says so."""
        journal = self.group.journal
        return journal.superblock.checkpoint_sequence == journal.head.sequence and not journal.commit_needed

    @property
    def bytes_written(self) -> int:
        return self.journal_device.bytes_written + self.volume_device.bytes_written

    def close(self) -> None:
        self.loop.close()
        self.journal_device.close()
        self.volume_device.close()


class Host:
    """Keeps a number of writes outstanding; a `target.volume.Request` for all of them."""

    def __init__(self, engine: Engine, size_bytes: int, outstanding: int, *, fua: bool) -> None:
        self._engine = engine
        self._outstanding = outstanding
        self._size_bytes = size_bytes
        self._fua = fua
        self._data = memoryview(os.urandom(size_bytes))
        self._random = random.Random(1)
        self._places = engine.volume.size_bytes // size_bytes
        self._free = 0
        self.completed = 0
        self.stopping = False

    def start(self) -> None:
        self._free = self._outstanding
        self._engine.loop.call_soon(self._submit)

    def _submit(self) -> None:
        """As an initiator does: what was answered in one turn is sent again together in the next."""
        free, self._free = self._free, 0
        for _ in range(0 if self.stopping else free):
            offset = self._random.randrange(self._places) * self._size_bytes
            self._engine.volume.write(offset, self._data, self._fua, self)

    def done(self, data: Buffer | None = None) -> None:
        self.completed += 1
        if not self._free:
            self._engine.loop.call_soon(self._submit)
        self._free += 1

    def failed(self, error: VolumeError) -> None:
        raise AssertionError(f"a write of the benchmark was refused: {error.value}")
