"""What lies below everything: a range of bytes that can be read, written and made durable.

`FileDevice` is a file or a block device of the host. The simulation and the tests have others with the same
methods (a disk that loses its cache, tears, fails): all pass `tests/conformance/test_blockdev.py`. Every call
may block, except `pread_nowait`.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import stat
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

from target.volume import SECTOR_BYTES, Buffer, Space

_BLKGETSIZE64 = 0x80081272  # linux/fs.h
_FALLOC_FL_KEEP_SIZE_PUNCH_HOLE = 0x03  # linux/falloc.h
_MADV_POPULATE_READ = 22  # asm-generic/mman-common.h, since Linux 5.14
_IOV_MAX = 1024
_CALL_BYTES_MAX = 512 << 10
"""The page cache keeps what one call writes in folios as large as that, and at each small write into a folio
later ext4 looks at all its blocks. Measured for 4 KiB: 6.4 us in folios of 2 MiB, 4.2 us in those of 512 KiB.
"""
_VIEW_BYTES_MIN = 32 << 10
"""Shorter views are copies: mapping a page costs as much as copying some."""


class BlockDevice(Protocol):
    """Bytes at offsets. Errors are `OSError`."""

    size_bytes: int

    def pread(self, length: int, offset: int) -> bytes:
        """Exactly `length` bytes; EIO when the device ends before."""

    def pread_into(self, buffer: bytearray | memoryview, offset: int) -> None:
        """Fill the whole buffer."""

    def pread_nowait(self, length: int, offset: int) -> Buffer | None:
        """`length` bytes if they are in memory already, None if reading would block."""

    def view(self, length: int, offset: int) -> Buffer:
        """Exactly `length` bytes to be written elsewhere, perhaps the device's own memory: good until
        `drop_views`, as long as nobody writes there. To be given to `pwritev` only: if such memory cannot be
        read, that call fails, where looking at it would end the process.
        """

    def drop_views(self) -> None:
        """No view is used any more."""

    def will_need(self, offset: int, length: int) -> None:
        """A hint: a range that will be read soon. Does not block, and may do nothing."""

    def pwritev(self, buffers: Sequence[Buffer], offset: int) -> None:
        """Write all buffers, in order, from `offset` on. Volatile until `flush`."""

    def flush(self) -> None:
        """Make everything written before durable (fdatasync)."""

    def punch(self, offset: int, length: int) -> None:
        """Make a range read as zeros, giving its space back where the device can."""

    def data_extents(self, offset: int, length: int) -> Iterator[tuple[int, int]]:
        """(offset, length) of the parts that may hold something else than zeros, ascending."""

    def grow(self, size_bytes: int) -> None:
        """Be at least so large: a file is extended by a hole, a block device must be. ENOSPC otherwise."""

    def close(self) -> None:
        """Give the descriptor back."""


class FileDevice:
    """A regular file or a block device of the host, through the page cache."""

    def __init__(self, path: Path | str, *, create_bytes: int | None = None, read_only: bool = False) -> None:
        self.path = Path(path)
        flags = (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC
        if create_bytes is not None:
            flags |= os.O_CREAT
        self._fd = os.open(self.path, flags, 0o600)
        info = os.fstat(self._fd)
        self._is_file = stat.S_ISREG(info.st_mode)
        if self._is_file and create_bytes is not None and info.st_size < create_bytes:
            os.ftruncate(self._fd, create_bytes)
        self.size_bytes = self._look_at_size()
        self._nowait_flag = os.RWF_NOWAIT
        self._map: mmap.mmap | None = None
        self._viewed = False

    def fileno(self) -> int:
        return self._fd

    def _look_at_size(self) -> int:
        if self._is_file:
            return os.fstat(self._fd).st_size
        raw = fcntl.ioctl(self._fd, _BLKGETSIZE64, b"\0" * 8)
        return int(struct.unpack("=Q", raw)[0])

    def pread(self, length: int, offset: int) -> bytes:
        data = os.pread(self._fd, length, offset)
        if len(data) == length:
            return data
        buffer = bytearray(length)
        self.pread_into(buffer, offset)
        return bytes(buffer)

    def pread_into(self, buffer: bytearray | memoryview, offset: int) -> None:
        view = memoryview(buffer)
        while view:
            count = os.preadv(self._fd, [view], offset)
            if count == 0:
                raise OSError(errno.EIO, f"{self.path} ends before offset {offset + len(view)}")
            view = view[count:]
            offset += count

    def pread_nowait(self, length: int, offset: int) -> Buffer | None:
        buffer = bytearray(length)
        try:
            count = os.preadv(self._fd, [buffer], offset, self._nowait_flag)
        except BlockingIOError:
            return None
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL) or not self._nowait_flag:
                raise
            self._nowait_flag = 0  # this file system has no RWF_NOWAIT: every read may block, and is short
            return self.pread(length, offset)
        return buffer if count == length else None

    def view(self, length: int, offset: int) -> Buffer:
        if length < _VIEW_BYTES_MIN or offset + length > self.size_bytes:
            return self.pread(length, offset)
        try:
            if self._map is None or len(self._map) < offset + length:
                self._map = mmap.mmap(self._fd, self.size_bytes, mmap.MAP_SHARED, mmap.PROT_READ)
            self._viewed = True
            # All pages in one call: at each that is missing a file system begins its write anew. Measured:
            # without this, a map costs what copying does.
            start = offset & -mmap.PAGESIZE
            self._map.madvise(_MADV_POPULATE_READ, start, offset + length - start)
        except OSError:  # an older kernel, a file that cannot be mapped, or pages that cannot be read
            return self.pread(length, offset)
        return memoryview(self._map)[offset : offset + length]

    def drop_views(self) -> None:
        if self._map is not None and self._viewed:
            self._map.madvise(mmap.MADV_DONTNEED)  # it stays in the page cache, and is ours no more
            self._viewed = False

    def will_need(self, offset: int, length: int) -> None:
        with contextlib.suppress(OSError):
            os.posix_fadvise(self._fd, offset, length, os.POSIX_FADV_WILLNEED)

    def pwritev(self, buffers: Sequence[Buffer], offset: int) -> None:
        total = sum(map(len, buffers))
        if total <= _CALL_BYTES_MAX and len(buffers) <= _IOV_MAX:
            self._write_once(buffers, offset, total)
            return
        for part in _calls(buffers):
            total = sum(map(len, part))
            self._write_once(part, offset, total)
            offset += total

    def _write_once(self, buffers: Sequence[Buffer], offset: int, total: int) -> None:
        count = os.pwritev(self._fd, buffers, offset)
        if count != total:
            self._write_rest(buffers, offset + count, count)

    def _write_rest(self, buffers: Sequence[Buffer], offset: int, written: int) -> None:
        """Go on behind a write that was cut. The buffers are not looked at (`view`)."""
        for buffer in buffers:
            view = memoryview(buffer)[written:]
            written -= min(written, len(buffer))
            while view:
                count = os.pwrite(self._fd, view, offset)
                if count == 0:
                    raise OSError(errno.ENOSPC, f"{self.path}: nothing more could be written at {offset}")
                view = view[count:]
                offset += count

    def flush(self) -> None:
        os.fdatasync(self._fd)

    def punch(self, offset: int, length: int) -> None:
        if self._is_file and length:
            with contextlib.suppress(OSError):
                _fallocate(self._fd, _FALLOC_FL_KEEP_SIZE_PUNCH_HOLE, offset, length)
                return
        zeros = memoryview(bytes(min(length, 1 << 20)))
        while length > 0:
            part = zeros[: min(length, len(zeros))]
            self.pwritev([part], offset)
            offset += len(part)
            length -= len(part)

    def data_extents(self, offset: int, length: int) -> Iterator[tuple[int, int]]:
        end = offset + length
        if not self._is_file:
            yield offset, length
            return
        while offset < end:
            try:
                start = os.lseek(self._fd, offset, os.SEEK_DATA)
            except OSError as error:
                if error.errno == errno.ENXIO:  # a hole up to the end
                    return
                raise
            if start >= end:
                return
            stop = min(os.lseek(self._fd, start, os.SEEK_HOLE), end)
            yield start, stop - start
            offset = stop

    def space(self) -> Space:
        """What it takes, and what is left where it lies; a block device has all that it will ever need."""
        if not self._is_file:
            return Space(self.size_bytes, 0)
        below = os.fstatvfs(self._fd)
        # st_blocks counts 512 bytes, whatever a block of the file system is (stat(2)).
        return Space(os.fstat(self._fd).st_blocks * 512, below.f_bavail * below.f_frsize)

    def grow(self, size_bytes: int) -> None:
        if size_bytes > self.size_bytes:
            if self._is_file:
                os.ftruncate(self._fd, size_bytes)
            self.size_bytes = self._look_at_size()
        if size_bytes > self.size_bytes:
            raise OSError(errno.ENOSPC, f"{self.path} has {self.size_bytes} bytes, {size_bytes} are needed")

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def mapped_sectors(device: BlockDevice, offset: int, length: int) -> bytearray:
    """A byte for each sector of a range: 1 where `data_extents` has it, 0 where there is nothing."""
    sectors = bytearray(length // SECTOR_BYTES)
    for start, size in device.data_extents(offset, length):
        low = (start - offset) // SECTOR_BYTES
        high = -(-(start + size - offset) // SECTOR_BYTES)
        sectors[low:high] = b"\1" * (high - low)
    return sectors


def _fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """fallocate(2), which the standard library does not have in full."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    if libc.fallocate(fd, mode, offset, length) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _calls(buffers: Sequence[Buffer]) -> Iterator[list[Buffer]]:
    """The same bytes in lists that one call may write."""
    part: list[Buffer] = []
    room = _CALL_BYTES_MAX
    for buffer in buffers:
        view = memoryview(buffer)
        while view:
            if not room or len(part) == _IOV_MAX:
                yield part
                part, room = [], _CALL_BYTES_MAX
            part.append(view[:room])
            room -= len(part[-1])
            view = view[len(part[-1]) :]
    if part:
        yield part
