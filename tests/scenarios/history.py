"""What was written, in which order, and whether the content of a site's volumes is a prefix of it. Pure.

The unit is a logical block of 512 bytes. Every block that is written carries its volume, its number, the
sequence number of the write and a digest, so that its content says which write it came from. A `History`
remembers of each write when it was submitted and when it was acknowledged, on one logical clock for all
volumes and writers.

The order that a client can rely on: a write that was acknowledged before another was submitted comes first.
Writes to one block are never outstanding together, so the writes of a block have a total order, that of their
sequence numbers. A content is a
*prefix* when a set of writes exists that explains every block of it and that, with each write, contains all
that come before it in this order. `History.cut` decides that exactly.
"""

from __future__ import annotations

import hashlib
import struct
import threading
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

BLOCK_BYTES = 512
_MAGIC = b"STAMPED\0"
_STAMP = struct.Struct("<8s16sQQ16s")
_FILLING = BLOCK_BYTES - _STAMP.size
_ZEROS = bytes(BLOCK_BYTES)


class Violation(AssertionError):
    """The content of a site cannot be explained by what was written."""


@dataclass(slots=True)
class Write:
    """One write of `count` blocks. `acknowledged_at`: None while nobody knows whether it happened."""

    sequence: int
    volume: str
    block: int
    count: int
    fua: bool
    submitted_at: int
    acknowledged_at: int | None = None

    @property
    def blocks(self) -> range:
        return range(self.block, self.block + self.count)

    def data(self) -> bytes:
        """What it writes."""
        return b"".join(stamp(self.volume, block, self.sequence) for block in self.blocks)


def stamp(volume: str, block: int, sequence: int) -> bytes:
    """The content of one block."""
    filling = (sequence * 0x9E3779B97F4A7C15 & (1 << 64) - 1).to_bytes(8, "little") * (_FILLING // 8)
    head = _STAMP.pack(_MAGIC, volume.encode(), block, sequence, bytes(16))
    digest = hashlib.blake2b(head + filling, digest_size=16).digest()
    return _STAMP.pack(_MAGIC, volume.encode(), block, sequence, digest) + filling


def read_stamp(volume: str, block: int, content: bytes) -> int:
    """The sequence number a block carries, 0 for zeros; `Violation` when it is no block of this place."""
    if content == _ZEROS:
        return 0
    magic, its_volume, its_block, sequence, _ = _STAMP.unpack_from(content)
    if content != stamp(volume, block, sequence):
        raise Violation(
            f"block {block} of {volume} holds no whole stamp of its place: magic {magic!r}, "
            f"volume {its_volume!r}, block {its_block}, sequence {sequence}"
        )
    return int(sequence)


def _holds(ascending: list[int], sequence: int) -> bool:
    index = bisect_left(ascending, sequence)
    return index < len(ascending) and ascending[index] == sequence


@dataclass(frozen=True, slots=True)
class Cut:
    """A content that was judged: for each volume, the sequence number in every block."""

    sequences: Mapping[str, list[int]]

    @property
    def newest(self) -> int:
        return max(max(blocks) for blocks in self.sequences.values())


class History:
    """All writes of a run. Safe for several writers at a time."""

    def __init__(self, volumes: Mapping[str, int]) -> None:
        """`volumes`: name -> number of blocks."""
        self.volumes = dict(volumes)
        self._lock = threading.Lock()
        self._clock = 0
        self._last_sequence = 0
        self._writes: dict[int, Write] = {}
        self._of_block: dict[str, dict[int, list[int]]] = {name: {} for name in volumes}
        self._busy: dict[str, set[int]] = {name: set() for name in volumes}
        self._flushed_until = dict.fromkeys(volumes, 0)
        self.acknowledged_count = 0

    def now(self) -> int:
        """A moment: later than all that was told before, earlier than all that is told after."""
        with self._lock:
            return self._tick()

    def _tick(self) -> int:
        self._clock += 1
        return self._clock

    @property
    def last_sequence(self) -> int:
        """Of the newest write."""
        return self._last_sequence

    # -- what a writer tells --

    def submit(self, volume: str, block: int, count: int, fua: bool) -> Write | None:
        """A write is about to be sent; None when one of its blocks has a write outstanding."""
        with self._lock:
            busy = self._busy[volume]
            blocks = range(block, block + count)
            if not busy.isdisjoint(blocks):
                return None
            busy.update(blocks)
            self._last_sequence += 1
            write = Write(self._last_sequence, volume, block, count, fua, self._tick())
            self._writes[write.sequence] = write
            of_block = self._of_block[volume]
            for number in blocks:
                of_block.setdefault(number, [0]).append(write.sequence)
            return write

    def acknowledge(self, write: Write) -> None:
        """It was answered with GOOD, or found on the volume after the connection was lost."""
        with self._lock:
            write.acknowledged_at = self._tick()
            self._busy[write.volume].difference_update(write.blocks)
            self.acknowledged_count += 1

    def drop(self, write: Write) -> None:
        """It did not happen, and never will."""
        with self._lock:
            self._forget(write)

    def _forget(self, write: Write) -> None:
        del self._writes[write.sequence]
        self._busy[write.volume].difference_update(write.blocks)
        for number in write.blocks:
            self._of_block[write.volume][number].remove(write.sequence)

    def flushed(self, volume: str, began_at: int) -> None:
        """A flush of the volume that began at this moment was answered with GOOD."""
        with self._lock:
            self._flushed_until[volume] = max(self._flushed_until[volume], began_at)

    def unanswered(self) -> list[Write]:
        """The writes of which nobody knows whether they happened."""
        with self._lock:
            return [write for write in self._writes.values() if write.acknowledged_at is None]

    # -- what must be there --

    def acknowledged(self, before: int | None = None) -> list[Write]:
        """The writes that were acknowledged, or acknowledged before a moment."""
        with self._lock:
            return [
                write
                for write in self._writes.values()
                if write.acknowledged_at is not None and (before is None or write.acknowledged_at < before)
            ]

    def durable(self) -> list[Write]:
        """The writes that no crash may lose (I1): flushed, or written with FUA."""
        return [
            write
            for write in self.acknowledged()
            if write.fua or (write.acknowledged_at or 0) < self._flushed_until[write.volume]
        ]

    # -- judging --

    def cut(self, content: Mapping[str, bytes]) -> Cut:
        """The prefix that a content of all volumes is; `Violation` when it is none."""
        cut = self.read(content)
        with self._lock:
            self._check_closed(cut.sequences)
        return cut

    def read(self, content: Mapping[str, bytes]) -> Cut:
        """What is in each block, read perhaps while hosts wrote; `Violation` for one that nobody wrote."""
        sequences = {
            name: [
                read_stamp(name, block, content[name][block * BLOCK_BYTES : (block + 1) * BLOCK_BYTES])
                for block in range(count)
            ]
            for name, count in self.volumes.items()
        }
        with self._lock:
            self._check_known(sequences)
        return Cut(sequences)

    def _check_known(self, sequences: Mapping[str, list[int]]) -> None:
        for name, blocks in sequences.items():
            of_block = self._of_block[name]
            for block, sequence in enumerate(blocks):
                if not _holds(of_block.get(block, [0]), sequence):
                    raise Violation(
                        f"block {block} of {name} holds write {sequence}, which never wrote there or was "
                        "lost for good before"
                    )

    def _check_closed(self, sequences: Mapping[str, list[int]]) -> None:
        """A write that is missing in a block must come before nothing that is there."""
        seen = {sequence for blocks in sequences.values() for sequence in blocks if sequence}
        if not seen:
            return
        latest = max((self._writes[sequence] for sequence in seen), key=lambda write: write.submitted_at)
        for name, of_block in self._of_block.items():
            for block, writes in of_block.items():
                here = sequences[name][block]
                if here == writes[-1]:
                    continue
                missing = self._writes[writes[bisect_right(writes, here)]]
                comes_before = missing.acknowledged_at is not None and (
                    missing.acknowledged_at < latest.submitted_at
                )
                if comes_before or missing.sequence in seen:
                    raise Violation(
                        f"not a prefix: block {block} of {name} holds write {here} and lacks {missing}, "
                        + (
                            "of which another block is there"
                            if missing.sequence in seen
                            else f"but {latest} is there"
                        )
                    )

    def require(self, cut: Cut, writes: Iterable[Write], why: str) -> None:
        """All these writes are in the content, or were overwritten there by later ones."""
        for write in writes:
            for block in write.blocks:
                here = cut.sequences[write.volume][block]
                if here < write.sequence:
                    raise Violation(f"lost ({why}): {write}; block {block} of {write.volume} holds {here}")

    def truncate(self, cut: Cut) -> int:
        """The history goes on from this prefix: forget what it lacks. Returns how many writes were lost.

        What is there and was never answered has happened.
        """
        with self._lock:
            lost = [
                write
                for write in self._writes.values()
                if any(cut.sequences[write.volume][block] < write.sequence for block in write.blocks)
            ]
            for write in lost:
                self._forget(write)
            for write in self._writes.values():
                if write.acknowledged_at is None:
                    write.acknowledged_at = self._tick()
                    self._busy[write.volume].difference_update(write.blocks)
            self._flushed_until = dict.fromkeys(self._flushed_until, 0)
            return len(lost)

    def compact(self) -> None:
        """Every site holds everything: only the last write of each block matters from here on."""
        with self._lock:
            for of_block in self._of_block.values():
                for writes in of_block.values():
                    del writes[:-1]
            last = {writes[-1] for of_block in self._of_block.values() for writes in of_block.values()}
            self._writes = {sequence: self._writes[sequence] for sequence in last if sequence}

    def expect_image(self, content: Mapping[str, bytes], site: str) -> None:
        """The content is exactly what every write has left."""
        cut = self.cut(content)
        for name, of_block in self._of_block.items():
            for block, writes in of_block.items():
                here = cut.sequences[name][block]
                if here != writes[-1]:
                    last = self._writes.get(writes[-1])
                    raise Violation(f"{site}: block {block} of {name} holds write {here} instead of {last}")
        if content != self.image():
            raise Violation(f"{site}: blocks that nobody wrote are not zero")

    def image(self) -> dict[str, bytes]:
        """The content of all volumes after every write."""
        images = {name: bytearray(count * BLOCK_BYTES) for name, count in self.volumes.items()}
        for name, of_block in self._of_block.items():
            for block, writes in of_block.items():
                if writes[-1]:
                    images[name][block * BLOCK_BYTES : (block + 1) * BLOCK_BYTES] = stamp(
                        name, block, writes[-1]
                    )
        return {name: bytes(image) for name, image in images.items()}
