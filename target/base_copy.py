"""Base and verify records: the content, or the digest, of extents at a point of the sequence.

Copying a marked extent means: read its newest content through the overlay and append it, in the same order as
the hosts' updates. What is appended at sequence N is the content at N: the read that counts is made on the
loop thread, in the turn that appends; a cold extent is first read on a thread so that it is warm then.
Extents that were never written, or hold nothing but zeros, travel as records without data.

The bit of an extent is cleared when its base record is durable. If that record is discarded before the mirror
has it, it is marked again like every discarded record; so nothing else needs to be remembered.
"""

from __future__ import annotations

import hashlib
import logging
from collections import deque
from collections.abc import Callable, Iterator
from itertools import chain

from target.bitmap import Extent
from target.journal.record import Marker, MarkerKind, RecordType, SequenceNumber
from target.journal.ring import Journal, NewRecord
from target.journal.superblock import MirrorState
from target.mirrors import Mirror, Mirrors
from target.obtain import WritePath
from target.reading import Reading
from target.scheduler import Scheduler, Timer
from target.volume import Buffer

_log = logging.getLogger(__name__)

_STEP_BYTES = 1 << 20
_RING_USED_PERCENT_MAX = 45
_UNDURABLE_BYTES_MAX = 16 << 20
_AGAIN_SECONDS = 1.0
_WAIT_SECONDS = 0.02
VERIFY_EXTENT_BYTES = 1 << 20


class _Feeder:
    """Appends records made from volume content, step by step, as long as the journal has room to spare."""

    def __init__(
        self,
        scheduler: Scheduler,
        journal: Journal,
        write_path: WritePath,
        reading: Reading,
        mirrors: Mirrors,
        on_change: Callable[[], None],
    ) -> None:
        self._mirrors = mirrors
        self._scheduler = scheduler
        self._journal = journal
        self._write_path = write_path
        self._reading = reading
        self._on_change = on_change
        self._timer: Timer | None = None
        self._warming = False
        self.running = False

    def start(self) -> None:
        self.running = True
        self._soon(0.0)

    def stop(self) -> None:
        self.running = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _soon(self, delay_seconds: float) -> None:
        if self._timer is None and self.running:
            self._timer = self._scheduler.call_later(delay_seconds, self._fired)

    def _fired(self) -> None:
        self._timer = None
        if not self.running or self._warming:
            return
        journal = self._journal
        crowded = (
            self._mirrors.flowing_bytes() * 100 > journal.superblock.ring_bytes * _RING_USED_PERCENT_MAX
            or journal.undurable_bytes > _UNDURABLE_BYTES_MAX
        )
        if crowded:
            self._soon(_WAIT_SECONDS)
            return
        # What this turn obtained comes first in the sequence, so it has to be in what is read now.
        self._write_path.end_turn()
        if self._write_path.holding:
            self._soon(_WAIT_SECONDS)
            return
        try:
            self._step()
        except OSError as error:
            # What was taken and not appended is still marked: it comes again in the next round.
            _log.error("a volume or the journal could not be read for a mirror, trying again: %s", error)
            self._soon(_AGAIN_SECONDS)

    def _step(self) -> None:
        raise NotImplementedError

    def _warm(self, extent: Extent) -> None:
        self._warming = True

        def warmed(error: Exception | None) -> None:
            self._warming = False
            self._soon(0.0 if error is None else _AGAIN_SECONDS)

        self._reading.warm(*extent, warmed)


class BaseCopy(_Feeder):
    """Copies what is marked for one mirror; ends with a marker that names it."""

    def __init__(
        self,
        scheduler: Scheduler,
        journal: Journal,
        write_path: WritePath,
        reading: Reading,
        mirrors: Mirrors,
        on_change: Callable[[], None],
        *,
        mirror: Mirror,
    ) -> None:
        super().__init__(scheduler, journal, write_path, reading, mirrors, on_change)
        self._mirror = mirror
        self._undurable: deque[tuple[int, list[Extent]]] = deque()
        self._extents: Iterator[Extent] = iter(())
        self._next: Extent | None = None
        self.total_bytes = mirror.bitmap.marked_bytes
        self.done_bytes = 0

    def durable(self) -> None:
        """The journal grew durable: clear the bits of what is safe now."""
        cleared = False
        while self._undurable and self._undurable[0][0] <= self._journal.durable.lsn:
            for volume, offset, length in self._undurable.popleft()[1]:
                self._mirror.bitmap.clear(volume, offset)
                self.done_bytes += length
                cleared = True
        if cleared:
            self._on_change()
            self._soon(0.0)

    def _step(self) -> None:
        records: list[NewRecord] = []
        taken: list[Extent] = []
        size = 0
        while size < _STEP_BYTES:
            extent = self._next or next(self._extents, None)
            if extent is None:
                break
            self._next = None
            record = self._record(extent)
            if record is None:
                self._next = extent
                if not records:
                    self._warm(extent)
                    return
                break
            records.append(record)
            taken.append(extent)
            size += len(record.data) + 4096
        if records:
            self._append(records, taken)
        elif self._undurable:
            self._soon(_WAIT_SECONDS)  # `durable` calls sooner
            self._write_path.commit(urgent=True)
        else:
            self._begin_round()

    def _record(self, extent: Extent) -> NewRecord | None:
        if self._reading.is_unwritten(*extent):
            return NewRecord(RecordType.BASE_ZERO, 0, *extent, b"")
        data = self._reading.content_now(*extent)
        if data is None:
            return None
        if _is_zero(data):  # a block device does not tell what was never written
            return NewRecord(RecordType.BASE_ZERO, 0, *extent, b"")
        return NewRecord(RecordType.BASE, 0, *extent, data)

    def _append(self, records: list[NewRecord], taken: list[Extent]) -> None:
        if self._write_path.append_now(records):
            self._undurable.append((self._journal.head.lsn, taken))
            self._soon(0.0)
        else:
            self._extents = chain(taken, [self._next] if self._next else [], self._extents)
            self._next = None
            self._soon(_WAIT_SECONDS)

    def _begin_round(self) -> None:
        """All of this round is durable: what was marked meanwhile makes the next; nothing: complete."""
        self._extents = self._mirror.bitmap.extents()
        self._next = next(self._extents, None)
        if self._next is not None:
            self._soon(0.0)
            return
        marker = Marker(MarkerKind.COPY_COMPLETE, self._scheduler.wall_ns(), self._mirror.name)
        if not self._write_path.append_now([NewRecord(RecordType.MARKER, 0, 0, 0, 0, marker.encode())]):
            self._soon(_WAIT_SECONDS)
            return
        self.stop()
        self._mirrors.update(self._mirror, copy_complete=self._journal.head.sequence)
        self._mirrors.save(self._mirror)
        self._write_path.commit(urgent=True)
        self._on_change()


class VerifyPass(_Feeder):
    """One pass over all volumes: a digest of every extent, appended in sequence."""

    def __init__(
        self,
        scheduler: Scheduler,
        journal: Journal,
        write_path: WritePath,
        reading: Reading,
        mirrors: Mirrors,
        on_change: Callable[[], None],
        *,
        volumes: list[tuple[int, int]],
        bytes_per_second: int,
    ) -> None:
        super().__init__(scheduler, journal, write_path, reading, mirrors, on_change)
        self._extents = deque(
            (volume, offset, min(VERIFY_EXTENT_BYTES, size - offset))
            for volume, size in volumes
            for offset in range(0, size, VERIFY_EXTENT_BYTES)
        )
        self._delay_seconds = VERIFY_EXTENT_BYTES / bytes_per_second
        self.extents_total = len(self._extents)
        self.last_sequence: SequenceNumber | None = None
        """Sequence number of the pass's last verify record, when it was appended."""

    @property
    def extents_done(self) -> int:
        return self.extents_total - len(self._extents)

    def _step(self) -> None:
        extent = self._extents[0]
        if self._reading.is_unwritten(*extent):
            digest = hashlib.sha256(bytes(extent[2])).digest()
        else:
            data = self._reading.content_now(*extent)
            if data is None:
                self._warm(extent)
                return
            digest = hashlib.sha256(data).digest()
        if not self._write_path.append_now([NewRecord(RecordType.VERIFY, 0, *extent, digest)]):
            self._soon(_WAIT_SECONDS)
            return
        self._extents.popleft()
        if self._extents:
            self._soon(self._delay_seconds)
            return
        self.last_sequence = self._journal.head.sequence
        self.stop()
        self._write_path.commit(urgent=True)
        self._on_change()


def _is_zero(data: Buffer) -> bool:
    """One comparison in C at the most: data that begin with another byte cost nothing."""
    return not data[0] and data == bytes(len(data))


def copies(mirror: Mirror) -> bool:
    """Whether a base copy has to run for this mirror."""
    return mirror.entry.state is MirrorState.COPY and not mirror.entry.copy_complete
