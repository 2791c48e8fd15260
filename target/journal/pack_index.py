"""Where each kept pack begins: sequence number -> LSN and the digest of the pack before. Pure.

48 bytes a pack, in one bytearray; looked up when a mirror says how far it is, and when the tail moves.
"""

from __future__ import annotations

import struct
from bisect import bisect_left, bisect_right

from target.journal.record import Lsn, SequenceNumber
from target.journal.superblock import Position

_ENTRY = struct.Struct("<QQ32s")


class PackIndex:
    """Boundaries of the packs from the tail to the head, ascending."""

    def __init__(self) -> None:
        self._entries = bytearray()

    def __len__(self) -> int:
        return len(self._entries) // _ENTRY.size

    def append(self, position: Position) -> None:
        """A pack begins at this boundary; its first record has sequence number `position.sequence` + 1."""
        self._entries += _ENTRY.pack(position.sequence, position.lsn, position.digest)

    def boundary(self, number: int) -> Position:
        """The boundary before the pack of this number, counted from the tail."""
        sequence, lsn, digest = _ENTRY.unpack_from(self._entries, number * _ENTRY.size)
        return Position(Lsn(lsn), SequenceNumber(sequence), digest)

    def before(self, sequence: int) -> Position | None:
        """The latest boundary at or before `sequence`: who has `sequence` has everything up to there."""
        number = bisect_right(range(len(self)), sequence, key=lambda n: self.boundary(n).sequence) - 1
        return self.boundary(number) if number >= 0 else None

    def before_lsn(self, lsn: int) -> Position | None:
        """The latest boundary at or before `lsn`."""
        number = bisect_right(range(len(self)), lsn, key=lambda n: self.boundary(n).lsn) - 1
        return self.boundary(number) if number >= 0 else None

    def behind_lsn(self, lsn: int) -> Position | None:
        """The earliest boundary at or behind `lsn`; None: no pack begins there or later."""
        number = bisect_left(range(len(self)), lsn, key=lambda n: self.boundary(n).lsn)
        return self.boundary(number) if number < len(self) else None

    def forget_before(self, lsn: int) -> None:
        """Drop the entries of packs that begin below `lsn`."""
        number = bisect_right(range(len(self)), lsn - 1, key=lambda n: self.boundary(n).lsn)
        del self._entries[: number * _ENTRY.size]

    def clear(self) -> None:
        self._entries.clear()
