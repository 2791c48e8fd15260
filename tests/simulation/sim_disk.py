"""A disk with a volatile write cache: a crash leaves any subset of what is not flushed, torn at 512 bytes.

Content lies in pages of 4096 bytes, and what was never written takes no memory, so that a journal volume
costs nothing to make or to read. `on_operation` is called before everything that changes the disk: the
machine it belongs to may stop right there, in the middle of a longer piece of work.
"""

from __future__ import annotations

import errno
import random
from collections.abc import Callable, Iterator, Sequence

from target.volume import Buffer

ATOMIC_BYTES = 512
_PAGE = 4096
_ZEROS = bytes(_PAGE)

Pages = dict[int, bytes]


class SimDisk:
    """Passes the same conformance tests as `FileDevice`."""

    def __init__(self, size_bytes: int) -> None:
        self.size_bytes = self.durable_size_bytes = size_bytes
        self.limit_bytes = 1 << 40
        """It cannot grow further."""
        self._durable: Pages = {}
        self._content: Pages = {}
        """Page number -> what it holds; none: zeros."""
        self._dirty: set[int] = set()
        self._unflushed: list[tuple[int, bytes]] = []
        self._allocated = bytearray(-(-size_bytes // _PAGE))
        """A byte a page: 1 when it was written and not punched since."""
        self.fail_writes: OSError | None = None
        self.fail_flushes: OSError | None = None
        self.fail_reads: OSError | None = None
        self.fail_after = 0
        """So many operations of the failing kind go well before."""
        self.fail_random: random.Random | None = None
        """Given: a write that fails may have written a part, and what a failed flush leaves is forgotten."""
        self.flushes = 0
        self.cold = False
        """True: nothing is in memory, `pread_nowait` gives None once for each place read."""
        self.cold_chance: Callable[[], bool] | None = None
        """Asked at every `pread_nowait`: is this place cold?"""
        self.on_operation: Callable[[], None] | None = None
        self.on_write: Callable[[int, bytes], None] | None = None
        self.on_flush: Callable[[], None] | None = None

    @property
    def failing(self) -> bool:
        return any((self.fail_reads, self.fail_writes, self.fail_flushes))

    def mend(self) -> None:
        """Nothing fails any more."""
        self.fail_reads = self.fail_writes = self.fail_flushes = None

    def _fail(self, error: OSError | None) -> bool:
        if error is None:
            return False
        self.fail_after -= 1
        return self.fail_after < 0

    def pread(self, length: int, offset: int) -> bytes:
        if self._fail(self.fail_reads) and self.fail_reads is not None:
            raise OSError(*self.fail_reads.args)
        if offset < 0 or offset + length > self.size_bytes:
            raise OSError(errno.EIO, "read behind the end")
        return _read(self._content, length, offset)

    def pread_into(self, buffer: bytearray | memoryview, offset: int) -> None:
        memoryview(buffer)[:] = self.pread(len(buffer), offset)
        self.cold = False

    def pread_nowait(self, length: int, offset: int) -> Buffer | None:
        if self.cold or (self.cold_chance is not None and self.cold_chance()):
            return None
        return self.pread(length, offset)

    def view(self, length: int, offset: int) -> Buffer:
        return self.pread(length, offset)

    def drop_views(self) -> None:
        pass

    def will_need(self, offset: int, length: int) -> None:
        pass

    def pwritev(self, buffers: Sequence[Buffer], offset: int) -> None:
        if self.on_operation is not None:
            self.on_operation()
        data = b"".join(buffers)
        if self._fail(self.fail_writes) and self.fail_writes is not None:
            if self.fail_random is not None:
                self._write(
                    offset, data[: self.fail_random.randrange(len(data) // ATOMIC_BYTES + 1) * ATOMIC_BYTES]
                )
            raise OSError(*self.fail_writes.args)
        if offset < 0 or offset + len(data) > self.size_bytes:
            raise OSError(errno.ENOSPC, "write behind the end")
        if self.on_write is not None:
            self.on_write(offset, data)
        self._write(offset, data)

    def _write(self, offset: int, data: bytes) -> None:
        if not data:
            return
        self._dirty.update(_write(self._content, offset, data))
        self._unflushed.append((offset, data))
        first, last = offset // _PAGE, -(-(offset + len(data)) // _PAGE)
        self._allocated[first:last] = b"\1" * (last - first)

    def flush(self) -> None:
        if self.on_operation is not None:
            self.on_operation()
        if self._fail(self.fail_flushes) and self.fail_flushes is not None:
            if self.fail_random is not None and self.fail_random.random() < 0.5:
                # Linux marks pages clean that it could not write: they stay in memory, and no later flush
                # writes them.
                self._dirty.clear()
                self._unflushed.clear()
            raise OSError(*self.fail_flushes.args)
        self.flushes += 1
        self._make_durable()
        if self.on_flush is not None:
            self.on_flush()

    def _make_durable(self) -> None:
        self.durable_size_bytes = self.size_bytes
        for page in self._dirty:
            content = self._content.get(page)
            if content is None:
                self._durable.pop(page, None)
            else:
                self._durable[page] = content
        self._dirty.clear()
        self._unflushed.clear()

    @property
    def unflushed_writes(self) -> int:
        """How many writes a loss of power could take."""
        return len(self._unflushed)

    def punch(self, offset: int, length: int) -> None:
        self.pwritev([bytes(length)], offset)
        first, last = -(-offset // _PAGE), (offset + length) // _PAGE
        if last > first:
            self._allocated[first:last] = bytes(last - first)

    def fill(self) -> None:
        """Every page counts as written once, as a disk does that was used before."""
        self._allocated[:] = b"\1" * len(self._allocated)

    def data_extents(self, offset: int, length: int) -> Iterator[tuple[int, int]]:
        end = offset + length
        limit = -(-end // _PAGE)
        page = self._allocated.find(1, offset // _PAGE, limit)
        while page >= 0:
            stop = self._allocated.find(0, page, limit)
            stop = limit if stop < 0 else stop
            start = max(page * _PAGE, offset)
            yield start, min(stop * _PAGE, end) - start
            page = self._allocated.find(1, stop, limit)

    def grow(self, size_bytes: int) -> None:
        if size_bytes > self.limit_bytes:
            raise OSError(errno.ENOSPC, f"it cannot have more than {self.limit_bytes} bytes")
        if size_bytes > self.size_bytes:
            if self.on_operation is not None:
                self.on_operation()
            self.size_bytes = size_bytes
            self._allocated.extend(bytes(-(-size_bytes // _PAGE) - len(self._allocated)))

    def close(self) -> None:
        pass

    def power_off(self, rng: random.Random) -> None:
        """The machine stops: of the unflushed writes, any survive, whole or any sectors, in any order."""
        style = rng.random()
        writes = self._unflushed if style >= 0.25 else []
        if 0.25 <= style < 0.5:
            keep = rng.random()
            writes = [write for write in writes if rng.random() < keep]
        survivors = [
            (offset + start, data[start : start + ATOMIC_BYTES])
            for offset, data in writes
            for start in range(0, len(data), ATOMIC_BYTES)
        ]
        if 0.5 <= style < 0.9:
            keep = rng.random()
            survivors = [sector for sector in survivors if rng.random() < keep]
        if self.size_bytes != self.durable_size_bytes and rng.random() < 0.5:
            self.size_bytes = self.durable_size_bytes
            survivors = [(at, data) for at, data in survivors if at + len(data) <= self.size_bytes]
            del self._allocated[-(-self.size_bytes // _PAGE) :]
        self.durable_size_bytes = self.size_bytes
        for offset, data in survivors:
            _write(self._durable, offset, data)
        self._begin_again()

    def _begin_again(self) -> None:
        """Memory is empty: what is durable is all there is."""
        self._content = dict(self._durable)
        for page in self._content:
            self._allocated[page] = 1  # what was punched and not flushed may be back
        self._dirty.clear()
        self._unflushed.clear()

    def peek(self, length: int, offset: int) -> bytes:
        """What it holds, whatever fails: for who looks from outside."""
        return _read(self._content, length, offset)

    def corrupt(self, offset: int, data: bytes) -> None:
        """Bits change at rest."""
        _write(self._durable, offset, data)
        _write(self._content, offset, data)

    def backup(self) -> tuple[Pages, bytes]:
        """What is durable, to be put back with `restore_backup`."""
        return dict(self._durable), bytes(self._allocated)

    def restore_backup(self, backup: tuple[Pages, bytes]) -> None:
        """The disk is as it was when the backup was made, but not smaller."""
        self._durable = dict(backup[0])
        self._allocated[: len(backup[1])] = backup[1]
        self._allocated[len(backup[1]) :] = bytes(len(self._allocated) - len(backup[1]))
        self._begin_again()

    def snapshot(self) -> bytes:
        return _read(self._content, self.size_bytes, 0)


def _read(pages: Pages, length: int, offset: int) -> bytes:
    first, start = divmod(offset, _PAGE)
    last = -(-(offset + length) // _PAGE)
    if last - first == 1:
        page = pages.get(first)
        return bytes(length) if page is None else page[start : start + length]
    get = pages.get
    whole = b"".join([get(number, _ZEROS) for number in range(first, last)])
    return whole if len(whole) == length else whole[start : start + length]


def _write(pages: Pages, offset: int, data: bytes) -> range:
    """Returns the pages that were touched."""
    first, start = divmod(offset, _PAGE)
    touched = range(first, -(-(offset + len(data)) // _PAGE))
    if start or (start + len(data)) % _PAGE:
        length = len(touched) * _PAGE
        old = _read(pages, length, first * _PAGE)
        data = old[:start] + data + old[start + len(data) :]
    if len(data) >= 1 << 20 and not any(page in pages for page in touched) and not data.strip(b"\0"):
        return range(0)  # a new ring being written out
    at = 0
    for number in touched:
        page = data[at : at + _PAGE]
        if page == _ZEROS:
            pages.pop(number, None)
        else:
            pages[number] = page
        at += _PAGE
    return touched
