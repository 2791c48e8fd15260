"""The write path: obtain hosts' writes into the journal, acknowledge them, make them durable, tell who waits.

    write -> append to the journal -> acknowledge           (volatile, as a disk with a write cache)
                  |
                  +- commit: fdatasync of the journal -> durable up to an LSN
                  |        SYNCHRONIZE CACHE and FUA wait for exactly this
                  +- only what is durable is applied, announced and shipped

`WritePath._append` and `WritePath._committed` are that picture, and the only places where a host's write is
answered. Invariants: I1 (what was flushed survives), I3 and I4 (nothing goes on before it is durable).
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from target.journal.record import RecordType
from target.journal.ring import Commit, Journal, NewRecord
from target.overlay import ZERO, Generation
from target.scheduler import Scheduler, Timer
from target.volume import Request, VolumeError

_log = logging.getLogger(__name__)

_APPEND_BYTES_MAX = 8 << 20
_COMMIT_BYTES = 8 << 20
"""So much is made durable without waiting for the interval: the disk works while the next is written."""
_RING_PARTS = 16
"""Writes are appended in parts of at most this part of the ring, so that a small ring has room for each."""


Entry = tuple[NewRecord | None, Request | None, bool]
"""One thing to do in this turn: a record to append, a request to answer, or both; and whether the answer
waits for a commit. A bare tuple, for there is one a command.
"""


class _Part(NamedTuple):
    """So much of a turn as is appended at once; `data_bytes` are those of its `records`."""

    entries: Sequence[Entry]
    records: list[NewRecord]
    data_bytes: int


class Overlay:
    """The two generations above the data volumes; `frozen` is on its way to them."""

    __slots__ = ("current", "frozen")

    def __init__(self, start_lsn: int) -> None:
        self.current = Generation(start_lsn)
        self.frozen: Generation | None = None


class WritePath:
    """Obtains writes for one consistency group, on the loop thread."""

    def __init__(
        self,
        scheduler: Scheduler,
        journal: Journal,
        overlay: Overlay,
        *,
        lane: str,
        commit_interval_seconds: float,
        on_durable: Callable[[], None],
        on_full: Callable[[int], None],
        on_failed: Callable[[OSError], None],
    ) -> None:
        self._scheduler = scheduler
        self._journal = journal
        self._overlay = overlay
        self._lane = lane
        self._interval_seconds = commit_interval_seconds
        self._on_durable = on_durable
        self._on_full = on_full
        self._on_failed = on_failed
        self._part_bytes = min(_APPEND_BYTES_MAX, journal.superblock.ring_bytes // _RING_PARTS)
        self._turn: list[Entry] = []
        self._held: deque[_Part] = deque()
        self._waiting: deque[tuple[int, Request]] = deque()
        self._commit: Commit | None = None
        self._commit_again = False
        self._timer: Timer | None = None
        self.failed = False
        self.paused = False
        """Held writes stay held, whatever space there is: it is not decided whether they will be taken."""

    # -- obtaining --

    def add(self, entry: Entry) -> None:
        """Take part in this turn. The record's data must stay until the end of the turn, not longer."""
        if not self._turn:
            self._scheduler.at_append(self.end_turn)
        self._turn.append(entry)

    @property
    def holding(self) -> bool:
        """True while writes wait for space in the journal."""
        return bool(self._held)

    def append_now(self, records: list[NewRecord]) -> bool:
        """Append records of our own, behind all that was obtained.

        False: there is no space now or the journal cannot be written, and nothing was done.
        """
        self.end_turn()
        if (
            self._held
            or self.failed
            or not self._journal.fits(len(records), sum(len(r.data) for r in records))
        ):
            return False
        size = sum(len(record.data) for record in records)
        return self._append(_Part([(record, None, False) for record in records], records, size))

    def end_turn(self) -> None:
        """Append what was obtained in this turn; called by the loop, or by who needs it sooner."""
        turn, self._turn = self._turn, []
        for part in _parts(turn, self._part_bytes):
            if not self.failed and (self._held or not self._fits(part)):
                self._held.append(_kept(part))
                self._ask_for_room()
            else:
                self._append(part)

    def _fits(self, part: _Part) -> bool:
        return not part.records or self._journal.fits(len(part.records), part.data_bytes)

    def retry_held(self) -> None:
        """There may be space again."""
        if self.paused and not self.failed:
            return
        while self._held and (self.failed or self._fits(self._held[0])):
            self._append(self._held.popleft())
        if self._held:
            self._ask_for_room()

    def _ask_for_room(self) -> None:
        """What is held waits for a commit, or for space in the ring: who makes it is told."""
        if self._journal.has_space(self.held_bytes):
            self.commit(urgent=True)
        else:
            self._on_full(self.held_bytes)

    @property
    def held_bytes(self) -> int:
        """What the ring must have free before the first of the held writes can go on."""
        if not self._held:
            return 0
        return self._journal.needed_bytes(len(self._held[0].records), self._held[0].data_bytes)

    def refuse_held(self, error: VolumeError) -> None:
        """The writes that wait for space will not be taken any more."""
        while self._held:
            _fail(self._held.popleft().entries, error)

    def _append(self, part: _Part) -> bool:
        """Append to the journal, then acknowledge. False: all were refused."""
        journal = self._journal
        entries, records, _ = part
        if self.failed:
            _fail(entries)
            return False
        if records:
            try:
                places = journal.append(records, self._scheduler.wall_ns())
            except OSError as error:
                _log.error(
                    "the journal could not be written, %d writes were refused: %s", len(records), error
                )
                _fail(entries)
                return False
            put = self._overlay.current.put
            for record, place in zip(records, places, strict=True):
                if record.type == RecordType.UPDATE:
                    put(record.volume, record.offset, record.length, place)
                elif record.type == RecordType.ZERO:
                    put(record.volume, record.offset, record.length, ZERO)
        lsn = journal.head.lsn
        for _, request, durable in entries:
            if request is None:
                continue
            if durable and lsn > journal.durable.lsn:
                self._waiting.append((lsn, request))
            else:
                request.done()
        self.commit(urgent=bool(self._waiting) or journal.undurable_bytes >= _COMMIT_BYTES)
        return True

    # -- durability --

    def commit(self, *, urgent: bool) -> None:
        """Make what was appended durable: at once, or within the commit interval."""
        if self._commit is not None:
            self._commit_again |= urgent
        elif self.failed or not self._journal.commit_needed:
            return
        elif urgent:
            self._begin_commit()
        elif self._timer is None:
            self._timer = self._scheduler.call_later(self._interval_seconds, self._timer_fired)

    @property
    def committing(self) -> bool:
        return self._commit is not None

    def _timer_fired(self) -> None:
        self._timer = None
        self.commit(urgent=True)

    def _begin_commit(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._commit_again = False
        self._commit = self._journal.begin_commit()
        self._scheduler.submit(self._lane, self._commit.work, self._committed)

    def _committed(self, _: None, error: Exception | None) -> None:
        """Durable first; then answer who waited for it; then apply, announce and ship (`on_durable`)."""
        commit, self._commit = self._commit, None
        assert commit is not None
        if error is not None:
            # The kernel may have dropped the pages it could not write: what is durable is not known any more.
            _log.critical("the journal cannot be made durable: %s; no write is taken until a restart", error)
            self.failed = True
            while self._waiting:
                self._waiting.popleft()[1].failed(VolumeError.WRITE_FAILED)
            self._on_failed(error if isinstance(error, OSError) else OSError(str(error)))
            self.retry_held()
            return
        self._journal.finish_commit(commit)
        durable_lsn = self._journal.durable.lsn
        while self._waiting and self._waiting[0][0] <= durable_lsn:
            self._waiting.popleft()[1].done()
        self._on_durable()
        self.retry_held()
        self.commit(urgent=bool(self._waiting) or self._commit_again)


def _parts(entries: list[Entry], part_bytes: int) -> Iterator[_Part]:
    """The turn in pieces, so that each can find space; nearly always one."""
    records: list[NewRecord] = []
    size = start = 0
    for index, entry in enumerate(entries):
        record = entry[0]
        if record is None:
            continue
        length = len(record.data)
        if size + length > part_bytes and index > start:
            yield _Part(entries[start:index], records, size)
            records, size, start = [], 0, index
        records.append(record)
        size += length
    if start < len(entries):
        yield _Part(entries[start:] if start else entries, records, size)


def _kept(part: _Part) -> _Part:
    """The part with data of its own: the front end's buffer is used again after the turn."""
    entries = [
        (record if record is None else record._replace(data=bytes(record.data)), request, durable)
        for record, request, durable in part.entries
    ]
    return _Part(entries, [record for record, _, _ in entries if record is not None], part.data_bytes)


def _fail(entries: Sequence[Entry], error: VolumeError = VolumeError.WRITE_FAILED) -> None:
    for _, request, _ in entries:
        if request is not None:
            request.failed(error)
