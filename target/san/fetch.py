"""Pull: read a peer's journal LUN and append what it holds to our own journal.

Several READs are outstanding, in LSN order, never beyond what the peer said is durable (I4). What arrives is
judged by `Intake`, appended, committed; the copy manager sees *received* grow when it is durable here. Errors
end the fetch with a reason; the copy manager decides.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import Protocol

from target.errors import IntegrityError, PeerError
from target.group import ConsistencyGroup
from target.growing import let_grow
from target.journal.record import Lsn
from target.journal.superblock import COPIES, SUPERBLOCK_BYTES, Position, Superblock, decode, newest
from target.san.intake import Intake, Taken
from target.volume import Buffer

_log = logging.getLogger(__name__)

READ_BYTES = 1 << 20
OUTSTANDING_MAX = 4
_RETRY_SECONDS = 0.01


class JournalSource(Protocol):
    """A peer's journal LUN. `san.source.IscsiSource` is the real one; tests read a device."""

    def open(self, on_up: Callable[[], None], on_down: Callable[[str], None]) -> None:
        """Connect; `on_up` once, then `on_down` once when it is lost or could not be reached."""

    def read(self, offset: int, length: int, done: Callable[[Buffer | None, Exception | None], None]) -> None:
        """Read bytes of the LUN. Never answered after `close`."""

    def close(self) -> None:
        """Give it up; no callback comes any more."""


class FetchState(Enum):
    """What a fetch is doing."""

    CONNECTING = "connecting"
    READING = "reading"
    DOWN = "down"
    """The link is gone or was refused; try again."""
    LOST = "lost"
    """The peer's journal does not hold what we need, or not as we know it; ask where to go on."""


@dataclass(slots=True)
class _Read:
    lsn: int
    length: int
    data: Buffer | None = None


class Fetch:
    """One connection's worth of fetching for one group."""

    def __init__(
        self, group: ConsistencyGroup, source: JournalSource, start_lsn: Lsn, on_change: Callable[[], None]
    ) -> None:
        self._group = group
        self._source = source
        self._on_change = on_change
        head = group.journal.head
        self._intake = Intake(
            Position(start_lsn, head.sequence, head.digest),
            group.journal.superblock.group_id,
            {volume.id: volume.size_bytes for volume in group.volumes},
        )
        self._peer: Superblock | None = None
        self._copies: list[Superblock | None] = []
        self._limit_lsn = 0
        self._next_lsn: int = start_lsn
        self._reads: deque[_Read] = deque()
        self._waiting: Taken | None = None
        self.state = FetchState.CONNECTING
        self.reason = ""
        self.bytes_read = 0
        source.open(self._up, self._down)

    def advance(self, durable_lsn: int, ring_bytes: int | None = None) -> None:
        """The peer's journal is durable up to this LSN of its own; `ring_bytes` is the size of its ring."""
        if self._peer is not None and ring_bytes not in (None, self._peer.ring_bytes):
            self._end(
                FetchState.DOWN, "the peer's journal has another size now: its places are looked up anew"
            )
            return
        self._limit_lsn = max(self._limit_lsn, durable_lsn)
        self._fill()

    def close(self) -> None:
        """Stop; what arrived stays."""
        self._source.close()
        if self.state in (FetchState.CONNECTING, FetchState.READING):
            self.state, self.reason = FetchState.DOWN, "stopped"

    def _up(self) -> None:
        for copy in range(COPIES):
            self._source.read(copy * SUPERBLOCK_BYTES, SUPERBLOCK_BYTES, self._superblock_read)

    def _superblock_read(self, data: Buffer | None, error: Exception | None) -> None:
        if data is None:
            self._end(FetchState.DOWN, f"the peer's superblock could not be read: {error}")
            return
        self._copies.append(decode(data))
        if len(self._copies) < COPIES or self.state is not FetchState.CONNECTING:
            return
        peer = newest(self._copies)
        if peer is None:
            self._end(FetchState.LOST, "the LUN holds no journal volume of version 1")
        elif peer.group_id != self._group.journal.superblock.group_id:
            self._end(FetchState.LOST, "the LUN holds the journal of another group")
        else:
            self._peer = peer
            self.state = FetchState.READING
            self._on_change()
            self._fill()

    def _fill(self) -> None:
        """Keep READs outstanding, up to what is durable at the peer; none goes over the ring's end."""
        if self._peer is None or self.state is not FetchState.READING or self._waiting is not None:
            return
        ring = self._peer.ring_bytes
        while len(self._reads) < OUTSTANDING_MAX and self._next_lsn < self._limit_lsn:
            length = min(READ_BYTES, self._limit_lsn - self._next_lsn, ring - self._next_lsn % ring)
            read = _Read(self._next_lsn, length)
            self._reads.append(read)
            self._next_lsn += length
            self._source.read(
                self._peer.ring_offset + read.lsn % ring,
                length,
                partial(self._arrived, read),
            )

    def _arrived(self, read: _Read, data: Buffer | None, error: Exception | None) -> None:
        if self.state is not FetchState.READING:
            return
        if data is None:
            self._end(FetchState.DOWN, f"the peer's journal could not be read: {error}")
            return
        read.data = data
        while self._reads and self._reads[0].data is not None and self._waiting is None:
            first = self._reads.popleft()
            assert first.data is not None
            self.bytes_read += first.length
            try:
                taken = self._intake.feed(first.data)
            except IntegrityError as wrong:
                self._end(FetchState.LOST, str(wrong))
                return
            self._take(taken)
        self._fill()

    def _take(self, taken: Taken) -> None:
        """Append what is right, as soon as our own journal has room."""
        journal = self._group.journal
        while taken.packs:
            count, size = 0, 0
            for header, _ in taken.packs:
                if count and size + header.total_length > READ_BYTES:
                    break
                count, size = count + 1, size + header.total_length
            if not journal.fits(count * 128, size):
                self._waiting = taken
                self._group.make_room(journal.needed_bytes(count * 128, size))
                self._group.scheduler.call_later(_RETRY_SECONDS, self._retry)
                return
            # An epoch is known when the last of these packs is ours, not before its own record is.
            last = count == len(taken.packs)
            try:
                if taken.grown:
                    let_grow(self._group, taken.grown)
                self._group.receive(
                    taken.packs[:count], taken.epochs if last else [], taken.grown if last else {}
                )
            except OSError as error:
                self._end(FetchState.DOWN, f"our own journal could not be written: {error}")
                return
            except PeerError as error:
                self._end(FetchState.DOWN, str(error))
                return
            del taken.packs[:count]

    def _retry(self) -> None:
        waiting, self._waiting = self._waiting, None
        if waiting is None or self.state is not FetchState.READING:
            return
        self._take(waiting)
        if self._waiting is None and self._reads and self._reads[0].data is not None:
            first = self._reads[0]
            self._arrived(first, first.data, None)
        self._fill()

    def _down(self, reason: str) -> None:
        self._end(FetchState.DOWN, reason)

    def _end(self, state: FetchState, reason: str) -> None:
        if self.state in (FetchState.DOWN, FetchState.LOST):
            return
        self.state, self.reason = state, reason
        _log.warning("group %s: fetching ended (%s): %s", self._group.name, state.value, reason)
        self._source.close()
        self._on_change()
