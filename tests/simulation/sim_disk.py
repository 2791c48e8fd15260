"""A disk with a volatile write cache: a crash leaves any subset of what is not flushed, torn at 512 bytes."""

from __future__ import annotations

import errno
import random
from collections.abc import Iterator, Sequence

from target.volume import Buffer

ATOMIC_BYTES = 512
_PAGE = 4096


class SimDisk:
    """Passes the same conformance tests as `FileDevice`."""

    def __init__(self, size_bytes: int) -> None:
        self.size_bytes = size_bytes
        self._durable = bytearray(size_bytes)
        self._content = bytearray(size_bytes)
        self._unflushed: list[tuple[int, bytes]] = []
        self._written_pages: set[int] = set()
        self.fail_writes: OSError | None = None
        self.fail_flushes: OSError | None = None
        self.fail_reads: OSError | None = None
        self.flushes = 0
        self.cold = False
        """True: nothing is in memory, `pread_nowait` gives None once for each place read."""

    def pread(self, length: int, offset: int) -> bytes:
        if self.fail_reads is not None:
            raise self.fail_reads
        if offset < 0 or offset + length > self.size_bytes:
            raise OSError(errno.EIO, "read behind the end")
        return bytes(self._content[offset : offset + length])

    def pread_into(self, buffer: bytearray | memoryview, offset: int) -> None:
        memoryview(buffer)[:] = self.pread(len(buffer), offset)
        self.cold = False

    def pread_nowait(self, length: int, offset: int) -> Buffer | None:
        return None if self.cold else self.pread(length, offset)

    def pwritev(self, buffers: Sequence[Buffer], offset: int) -> None:
        if self.fail_writes is not None:
            raise self.fail_writes
        data = b"".join(buffers)
        if offset < 0 or offset + len(data) > self.size_bytes:
            raise OSError(errno.ENOSPC, "write behind the end")
        self._content[offset : offset + len(data)] = data
        self._unflushed.append((offset, data))
        self._written_pages.update(range(offset // _PAGE, (offset + len(data) + _PAGE - 1) // _PAGE))

    def flush(self) -> None:
        if self.fail_flushes is not None:
            raise self.fail_flushes
        self.flushes += 1
        for offset, data in self._unflushed:
            self._durable[offset : offset + len(data)] = data
        self._unflushed.clear()

    def punch(self, offset: int, length: int) -> None:
        self.pwritev([bytes(length)], offset)
        first, last = -(-offset // _PAGE), (offset + length) // _PAGE
        self._written_pages.difference_update(range(first, last))

    def data_extents(self, offset: int, length: int) -> Iterator[tuple[int, int]]:
        end = offset + length
        run: tuple[int, int] | None = None
        for page in range(offset // _PAGE, -(-end // _PAGE)):
            if page in self._written_pages:
                run = (run[0] if run else max(page * _PAGE, offset), min((page + 1) * _PAGE, end))
            elif run:
                yield run[0], run[1] - run[0]
                run = None
        if run:
            yield run[0], run[1] - run[0]

    def close(self) -> None:
        pass

    def power_off(self, rng: random.Random) -> None:
        """The machine stops: of the unflushed writes, any sectors survive, in any order."""
        survivors = [
            (offset + start, data[start : start + ATOMIC_BYTES])
            for offset, data in self._unflushed
            for start in range(0, len(data), ATOMIC_BYTES)
        ]
        style = rng.random()
        if style < 0.25:
            survivors = []
        elif style < 0.9:
            keep = rng.random()
            survivors = [sector for sector in survivors if rng.random() < keep]
        for offset, data in survivors:
            self._durable[offset : offset + len(data)] = data
        self._content = bytearray(self._durable)
        self._unflushed.clear()

    def corrupt(self, offset: int, data: bytes) -> None:
        """Bits change at rest."""
        self._durable[offset : offset + len(data)] = data
        self._content[offset : offset + len(data)] = data

    def snapshot(self) -> bytes:
        return bytes(self._content)
