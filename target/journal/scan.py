"""Reading packs back: the walk from one position to the end of what is there, judged by the recovery table.

Used when a group starts, and by everything that needs records again: restoring, discarding, exporting.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from target.blockdev import BlockDevice
from target.journal.record import (
    BLOCK_BYTES,
    PACK_DATA_BYTES_MAX,
    PACK_MAGIC,
    PAD_MAGIC,
    Lsn,
    PackHeader,
    SequenceNumber,
    check_data,
    decode_header,
)
from target.journal.recovery import Decision, decide
from target.journal.superblock import Position, Superblock

UNDURABLE_BYTES_MAX = 64 << 20
"""A writer appends no more than this beyond its durable mark; a proof of durability is within twice that."""

_WINDOW_BYTES = 1 << 20
_AHEAD_BYTES = 8 << 20
_AHEAD_STEP_BYTES = 4 << 20
_NOTHING = memoryview(b"")


class Pack(NamedTuple):
    """A pack as it stands in the ring: `view` is all of it (see `RingReader`), `end` the boundary behind."""

    header: PackHeader
    view: memoryview
    end: Position


@dataclass(frozen=True, slots=True)
class Corruption:
    """Something durable that is not there any more."""

    lsn: Lsn
    after_sequence: SequenceNumber
    what: str


class RingReader:
    """Reads a ring by LSN through a window of 1 MiB or more; no piece goes over the ring's end.

    A view stays good as long as it is held: every window is a buffer of its own, or a part of `arena`, which
    its owner uses again for the next reader. In the arena a window grows where it ends, so that a pack that
    reaches beyond it is not read twice. Nothing is read behind `end_lsn`, if it is given. With `read_ahead`
    the device is told what will be read next: a start after a power failure finds nothing in memory, and
    would wait for the disk and the disk for it, by turns.
    """

    def __init__(
        self,
        device: BlockDevice,
        ring_offset: int,
        ring_bytes: int,
        arena: bytearray | None = None,
        end_lsn: int | None = None,
        *,
        read_ahead: bool = False,
    ) -> None:
        self._device = device
        self._ring_offset = ring_offset
        self._ring_bytes = ring_bytes
        self._end_lsn = end_lsn
        self._arena = memoryview(b"" if arena is None else arena)
        self._arena_used = 0
        self._window = memoryview(b"")
        self._window_lsn = 0
        self._window_start: int | None = None  # in the arena; None: the window is a buffer of its own
        self._read_ahead = read_ahead
        self._told_lsn = 0  # up to where the device was told

    def room(self, lsn: int) -> int:
        """Bytes from `lsn` to the ring's end."""
        return self._ring_bytes - lsn % self._ring_bytes

    def view(self, lsn: int, length: int) -> memoryview:
        """`length` bytes at `lsn`; they must not go over the ring's end."""
        start = lsn - self._window_lsn
        if start >= 0 and start + length <= len(self._window):
            return self._window[start : start + length]
        if 0 <= start < len(self._window) and self._grow(start + length):
            return self._window[start : start + length]
        self._move(lsn, length)
        return self._window[:length]

    def _size(self, lsn: int, least: int) -> int:
        """How much to read at `lsn` when `least` is asked for."""
        size = _WINDOW_BYTES if self._end_lsn is None else min(_WINDOW_BYTES, self._end_lsn - lsn)
        return min(max(least, size), self.room(lsn))

    def _grow(self, length: int) -> bool:
        """Read on behind the window, to `length` or more of it; False where it cannot grow."""
        if self._window_start is None:
            return False
        lsn = self._window_lsn + len(self._window)
        missing = length - len(self._window)
        size = self._size(lsn, missing)
        if lsn % self._ring_bytes == 0 or size < missing or self._arena_used + size > len(self._arena):
            return False
        self._read(lsn, self._arena[self._arena_used : self._arena_used + size])
        self._arena_used += size
        self._window = self._arena[self._window_start : self._arena_used]
        return True

    def _move(self, lsn: int, length: int) -> None:
        """A new window that begins at `lsn`."""
        size = self._size(lsn, length)
        if self._arena_used + size <= len(self._arena):
            self._window_start = self._arena_used
            window = self._arena[self._arena_used : self._arena_used + size]
            self._arena_used += size
        else:
            self._window_start = None
            window = memoryview(bytearray(size))
        self._read(lsn, window)
        self._window, self._window_lsn = window, lsn

    def _read(self, lsn: int, into: memoryview) -> None:
        if self._read_ahead:
            self._tell(lsn, lsn + len(into))
        self._device.pread_into(into, self._ring_offset + lsn % self._ring_bytes)

    def _tell(self, lsn: int, end_lsn: int) -> None:
        told = max(self._told_lsn, lsn)
        while told < end_lsn + _AHEAD_BYTES:
            length = min(_AHEAD_STEP_BYTES, self.room(told))
            self._device.will_need(self._ring_offset + told % self._ring_bytes, length)
            told += length
        self._told_lsn = told


def walk(reader: RingReader, start: Position, end_lsn: int, group_id: bytes) -> Iterator[Pack]:
    """The packs of [start, end_lsn), which are known to be there; stops early where one is not right.

    Checks header, place, chain and data. The caller compares where it ended with where it should have.
    """
    for header, end in walk_headers(reader, start, end_lsn, group_id):
        view = reader.view(header.lsn, header.total_length)
        if check_data(header, view) is not None:
            return
        yield Pack(header, view, end)


def walk_headers(
    reader: RingReader, start: Position, end_lsn: int, group_id: bytes
) -> Iterator[tuple[PackHeader, Position]]:
    """The same without the data: for who wants to know what was written where, and not what."""
    position = start
    while position.lsn < end_lsn:
        header = decode_header(reader.view(position.lsn, BLOCK_BYTES))
        if not _belongs(header, position, group_id, reader) or header is None:
            return
        if header.is_pad:
            position = Position(Lsn(position.lsn + header.total_length), position.sequence, position.digest)
            continue
        if header.previous_digest != position.digest:
            return
        position = behind(header)
        yield header, position


def behind(header: PackHeader) -> Position:
    """The boundary behind a pack, as it stands in this ring."""
    return Position(Lsn(header.lsn + header.total_length), header.last_sequence, header.digest)


@dataclass(slots=True)
class Recovered:
    """Where the journal ends, and whether something durable is missing there."""

    head: Position
    proven_lsn: int
    corruption: Corruption | None = None


class Recovery:
    """The walk at start: `packs()` yields every pack from the tail on; then `result` says how it ended.

    Data are checked from `check_from_lsn` on (below, they are on the data volumes already).
    """

    def __init__(self, device: BlockDevice, superblock: Superblock, check_from_lsn: int) -> None:
        self._reader = RingReader(device, superblock.ring_offset, superblock.ring_bytes, read_ahead=True)
        self._superblock = superblock
        self._check_from_lsn = check_from_lsn
        self.result = Recovered(superblock.tail, superblock.durable_lsn)

    def packs(self) -> Iterator[Pack]:
        result = self.result
        limit = result.head.lsn + self._superblock.ring_bytes
        while result.head.lsn < limit:
            position = result.head
            header = decode_header(self._reader.view(position.lsn, BLOCK_BYTES))
            header_ok = _belongs(header, position, self._superblock.group_id, self._reader)
            if header is not None and header_ok and header.is_pad:
                result.proven_lsn = max(result.proven_lsn, header.durable_lsn)
                result.head = Position(
                    Lsn(position.lsn + header.total_length), position.sequence, position.digest
                )
                continue
            chain_ok = header is not None and header.previous_digest == position.digest
            view = _NOTHING
            if header is not None and header_ok:
                view = self._reader.view(position.lsn, header.total_length)
            data_ok = header is not None and header_ok and self._data_ok(header, view)
            decision = decide(
                header_ok=header_ok, chain_ok=chain_ok, data_ok=data_ok, proven=self._proven(position)
            )
            if decision is Decision.ACCEPT and header is not None:
                result.proven_lsn = max(result.proven_lsn, header.durable_lsn)
                result.head = Position(Lsn(position.lsn + len(view)), header.last_sequence, header.digest)
                yield Pack(header, view, result.head)
                continue
            if decision is Decision.CUT:
                # A header further on may prove that this place was durable: then it is no torn tail.
                decision = decide(
                    header_ok=header_ok,
                    chain_ok=chain_ok,
                    data_ok=data_ok,
                    proven=self._proven_further_on(position),
                )
            if decision is Decision.CORRUPT:
                what = "its header" if not header_ok else "its chain digest" if not chain_ok else "its data"
                result.corruption = Corruption(
                    position.lsn,
                    position.sequence,
                    f"the pack behind record {position.sequence} (LSN {position.lsn}) was durable, "
                    f"but {what} is wrong",
                )
            return

    def _data_ok(self, header: PackHeader, pack: memoryview) -> bool:
        return header.lsn < self._check_from_lsn or check_data(header, pack) is None

    def _proven(self, position: Position) -> bool:
        return position.lsn < self.result.proven_lsn

    def _proven_further_on(self, position: Position) -> bool:
        lsn = position.lsn + BLOCK_BYTES
        limit = min(
            position.lsn + 2 * UNDURABLE_BYTES_MAX,
            self._superblock.tail.lsn + self._superblock.ring_bytes,
        )
        while lsn < limit:
            block = self._reader.view(lsn, BLOCK_BYTES)
            magic = bytes(block[:8])
            if magic in (PACK_MAGIC, PAD_MAGIC):
                header = decode_header(block)
                if (
                    header is not None
                    and header.lsn == lsn
                    and header.group_id == self._superblock.group_id
                    and header.durable_lsn > position.lsn
                ):
                    return True
            lsn += BLOCK_BYTES
        return False


def _belongs(header: PackHeader | None, position: Position, group_id: bytes, reader: RingReader) -> bool:
    """Whether a header is the one expected at a position."""
    return (
        header is not None
        and header.lsn == position.lsn
        and header.group_id == group_id
        and header.first_sequence == position.sequence + 1
        and header.total_length <= reader.room(position.lsn)
        and header.data_length <= PACK_DATA_BYTES_MAX
    )
