"""One file on one logical unit: what SQLite's VFS needs of a file system, and no more.

The first 4096 bytes of the logical unit hold a header, the file's bytes follow:

    bytes   field
    0-7     magic, "LUNFILE1"
    8-15    length of the file in bytes, big-endian
    16      1 if the file exists
    17-19   zeros
    20-23   CRC-32 (zlib) of bytes 0 to 19

A logical unit that does not begin like this holds no file. Writes leave in the order in which they are
made; contiguous ones travel together. `sync` ends with SYNCHRONIZE CACHE: what was written and the
length are then durable. A greater length is written at the next `sync` (as file systems do it), a
smaller one and a deletion at once.
"""

from __future__ import annotations

import struct
import zlib
from typing import Protocol

HEADER_BYTES = 4096
WRITE_BYTES_MAX = 256 << 10
_EDGES_MAX = 64
_HEADER = struct.Struct(">8sQBxxx")
_CHECKSUM = struct.Struct(">I")
_MAGIC = b"LUNFILE1"


class BlockClient(Protocol):
    """A logical unit as an initiator sees it; `target.iscsi.client.Client` is one."""

    @property
    def block_count(self) -> int:
        """Its size in blocks."""

    @property
    def block_size_bytes(self) -> int:
        """512 or 4096."""

    def read(self, lba: int, blocks: int) -> bytes:
        """The content of `blocks` blocks from `lba` on."""

    def write(self, lba: int, data: bytes) -> None:
        """Write whole blocks; volatile until `flush`."""

    def flush(self) -> None:
        """Make everything written before durable."""


class LunFull(Exception):
    """The file would not fit on its logical unit."""


class LunFile:
    """Bytes at offsets on a logical unit, with a length. Offsets and lengths are bytes of the file."""

    def __init__(self, client: BlockClient) -> None:
        self._client = client
        self.block_bytes = client.block_size_bytes
        self._bytes_max = client.block_count * self.block_bytes - HEADER_BYTES
        self._first_block = HEADER_BYTES // self.block_bytes
        self._pending = bytearray()  # contiguous writes that have not left yet, from _pending_offset on
        self._pending_offset = 0
        self._edges: dict[
            int, bytes
        ] = {}  # blocks that were written in part, oldest first: the next write goes on there
        self.exists, self.length = self._read_header()
        self._length_on_lun = self.length

    def create(self) -> None:
        """Make an empty file where there is none."""
        if not self.exists:
            self.exists = True
            self.length = 0
            self._write_header()

    def delete(self) -> None:
        """End the file's existence, at once but volatile until the next `sync`."""
        self._pending.clear()
        self.exists = False
        self.length = 0
        self._write_header()

    def read(self, offset: int, length: int) -> bytes:
        """Up to `length` bytes: less where the file ends before."""
        length = min(length, self.length - offset)
        if length <= 0:
            return b""
        self._send_pending()
        first = offset // self.block_bytes
        end = -(-(offset + length) // self.block_bytes)
        start = offset - first * self.block_bytes
        return self._client.read(self._first_block + first, end - first)[start : start + length]

    def write(self, offset: int, data: bytes) -> None:
        """Write, and grow the file where needed; a gap before `offset` becomes zeros."""
        if offset + len(data) > self._bytes_max:
            raise LunFull(
                f"{offset + len(data)} bytes do not fit on a logical unit that takes {self._bytes_max}"
            )
        if offset > self.length:
            gap = bytes(offset - self.length)
            offset, data = self.length, gap + data
        if self._pending and offset != self._pending_offset + len(self._pending):
            self._send_pending()
        if not self._pending:
            self._pending_offset = offset
        self._pending += data
        self.length = max(self.length, offset + len(data))
        if len(self._pending) >= WRITE_BYTES_MAX:
            self._send_pending()

    def truncate(self, length: int) -> None:
        """Cut the file, or grow it with zeros. A cut takes effect after every write made before it."""
        if length > self.length:
            self.write(self.length, bytes(length - self.length))
            return
        self._send_pending()
        if length < self.length:
            self.length = length
            self._write_header()

    def sync(self) -> None:
        """Make every write, and the length, durable."""
        self._send_pending()
        if self.length != self._length_on_lun:
            self._write_header()
        self._client.flush()

    def _send_pending(self) -> None:
        """Write the pending bytes as whole blocks; what the first and last lack is read, or still known."""
        if not self._pending:
            return
        offset, size = self._pending_offset, self.block_bytes
        end = offset + len(self._pending)
        first, last = offset // size, (end - 1) // size
        head, tail = b"", b""
        if offset % size:
            head = self._block(first)[: offset % size]
        if end % size:
            tail = self._block(last)[end % size :]
        data = head + bytes(self._pending) + tail
        for start in range(0, len(data), WRITE_BYTES_MAX):
            lba = self._first_block + first + start // size
            self._client.write(lba, data[start : start + WRITE_BYTES_MAX])
        self._pending.clear()
        for block in [block for block in self._edges if first <= block <= last]:
            del self._edges[block]
        for block in {first, last}:
            start = (block - first) * size
            self._edges[block] = data[start : start + size]
        while len(self._edges) > _EDGES_MAX:
            del self._edges[next(iter(self._edges))]

    def _block(self, block: int) -> bytes:
        known = self._edges.get(block)
        return known if known is not None else self._client.read(self._first_block + block, 1)

    def _read_header(self) -> tuple[bool, int]:
        raw = self._client.read(0, 1)
        magic, length, exists = _HEADER.unpack_from(raw)
        (checksum,) = _CHECKSUM.unpack_from(raw, _HEADER.size)
        if magic != _MAGIC or checksum != zlib.crc32(raw[: _HEADER.size]):
            return False, 0
        return bool(exists), length

    def _write_header(self) -> None:
        fields = _HEADER.pack(_MAGIC, self.length, self.exists)
        block = (fields + _CHECKSUM.pack(zlib.crc32(fields))).ljust(self.block_bytes, b"\0")
        self._client.write(0, block)
        self._length_on_lun = self.length
