"""Behind the acknowledgement: apply or restore what is durable, checkpoint, let the ring be reused.

On a primary the goal is the frozen generation of the overlay, written by its index (`target.restore.apply`)
if this process appended all of it. On a secondary, and for what was found at a start, it is a stretch of the
journal, checked again (`target.restore.restore`), up to the restore limit. Both on one worker.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

from target.blockdev import BlockDevice
from target.journal.record import SequenceNumber
from target.journal.ring import Journal
from target.journal.superblock import Flag, Position
from target.obtain import Overlay, WritePath
from target.overlay import Generation
from target.restore import ARENA_BYTES, Restored, Stretch, apply, restore
from target.scheduler import Scheduler, Timer

_log = logging.getLogger(__name__)

_FREEZE_BYTES = 16 << 20
_FREEZE_SECONDS = 0.1
_SMALL_BYTES = 32 << 10
_LAZY_BYTES_MAX = 128 << 20
_LAZY_RING_PARTS = 8
"""Small writes wait until there are so many of them, as long as hosts are busy."""
_BUSY_BYTES_MAX = 1 << 20
_BUSY_RING_PARTS = 64
"""Hosts that write so much in `_FREEZE_SECONDS` are busy."""
_CHECKPOINT_SECONDS = 5.0
_BUSY_CHECKPOINT_SECONDS = 60.0
"""While hosts are busy: what they overwrite meanwhile is flushed once, and the disk is theirs."""
_CHECKPOINT_RING_PARTS = 8
"""So much is won by a checkpoint at the least, when half of the ring waits for one."""


class Background:
    """Applies one group's journal to its data volumes."""

    def __init__(
        self,
        scheduler: Scheduler,
        journal: Journal,
        overlay: Overlay,
        write_path: WritePath,
        volumes: Mapping[int, BlockDevice],
        *,
        lane: str,
        on_restored: Callable[[Restored], None],
        on_checkpoint: Callable[[], None],
        on_failed: Callable[[Exception], None],
    ) -> None:
        self._scheduler = scheduler
        self._journal = journal
        self._overlay = overlay
        self._write_path = write_path
        self._volumes = volumes
        self._lane = lane
        self._on_restored = on_restored
        self._on_checkpoint = on_checkpoint
        self._on_failed = on_failed
        self._frozen_end = journal.head
        self._timer_lsn = journal.head.lsn
        self._busy = False
        self._working = False
        self._arena = bytearray(min(ARENA_BYTES, journal.superblock.ring_bytes))
        self._checkpointing = False
        self._space_wanted = False
        self._timer: Timer | None = None
        self._checkpoint_at = scheduler.monotonic()
        self.following = False
        """True on a secondary: restore what was received, up to `restore_limit`."""
        self.restore_limit: SequenceNumber | None = None
        """The last record to restore; None: everything."""
        superblock = journal.superblock
        self.applied = journal.boundary_before(superblock.checkpoint_sequence)
        """The pack boundary up to which everything is on the data volumes (perhaps not durably)."""
        self.applied_sequence = superblock.checkpoint_sequence
        self.failure: Exception | None = None
        self._when_idle: list[tuple[Callable[[], None], Callable[[Exception], None]]] = []
        self.verify_from = SequenceNumber(0)
        """What is restored up to here may be restored a second time: it cannot be compared."""

    # -- deciding --

    def poke(self, *, freeze: bool = False) -> None:
        """Something may be there to do: the journal grew durable, space is short, or time has passed."""
        if self.failure is not None:
            return
        if self._when_idle:
            if self.idle:
                self._when_idle.pop(0)[0]()
            return
        if not self._working:
            if not self.following and (freeze or self._space_wanted or self._grown):
                self._freeze()
            goal = self._goal()
            if goal is not None:
                self._start(*goal)
        self._checkpoint_if_due()
        behind = self.applied.lsn < self._journal.head.lsn
        if self._timer is None and (behind or self._checkpoint_wanted):
            self._timer = self._scheduler.call_later(_FREEZE_SECONDS, self._timer_fired)

    def make_space(self) -> None:
        """Writes wait for space in the journal: apply and checkpoint at once."""
        self._space_wanted = True
        self.poke(freeze=True)

    def _timer_fired(self) -> None:
        """Apply what there is, unless hosts are busy: then when there is enough of it."""
        self._timer = None
        head_lsn, ring_bytes = self._journal.head.lsn, self._journal.superblock.ring_bytes
        written, self._timer_lsn = head_lsn - self._timer_lsn, head_lsn
        self._busy = written >= min(_BUSY_BYTES_MAX, ring_bytes // _BUSY_RING_PARTS)
        self.poke(freeze=not self._busy)

    @property
    def _grown(self) -> bool:
        """Whether the current generation is to be applied although hosts are busy.

        Small writes cost much to apply, and the longer they wait the more of them are overwritten or have
        neighbours; with large ones nothing is won, and the ring would fill.
        """
        journal = self._journal
        size = journal.head.lsn - self._overlay.current.start_lsn
        if size >= min(_LAZY_BYTES_MAX, journal.superblock.ring_bytes // _LAZY_RING_PARTS):
            return True
        records = journal.head.sequence - self._frozen_end.sequence
        return size >= _FREEZE_BYTES and size >= records * _SMALL_BYTES

    def _freeze(self) -> None:
        """The frozen generation was applied: take the next. It needs a commit before it can be applied."""
        overlay, journal = self._overlay, self._journal
        if overlay.frozen is not None:
            return
        if not overlay.current:
            # Only markers and the like since the last time: nothing to write, the position moves on.
            if journal.durable.lsn > self.applied.lsn and journal.durable.lsn == journal.head.lsn:
                self._frozen_end = journal.durable
                self.applied, self.applied_sequence = journal.durable, journal.durable.sequence
                overlay.current = Generation(journal.head.lsn, appended=True)
            return
        overlay.frozen = overlay.current
        overlay.current = Generation(journal.head.lsn, appended=True)
        self._frozen_end = journal.head
        self._write_path.commit(urgent=self._space_wanted)

    def _goal(self) -> tuple[int, SequenceNumber] | None:
        journal = self._journal
        if self.following:
            limit = journal.durable.sequence
            if self.restore_limit is not None:
                limit = min(limit, self.restore_limit)
            return (journal.durable.lsn, limit) if limit > self.applied_sequence else None
        if self._overlay.frozen is None or journal.durable.lsn < self._frozen_end.lsn:
            return None
        return self._frozen_end.lsn, self._frozen_end.sequence

    # -- applying --

    def _start(self, end_lsn: int, limit: SequenceNumber) -> None:
        self._working = True
        journal, end = self._journal, self._frozen_end
        stretch = Stretch(
            self.applied,
            self.applied_sequence,
            end_lsn,
            limit,
            journal.superblock.group_id,
            own_reign=None if self.following else journal.superblock.reign,
            verify=self.following and bool(journal.superblock.flags & Flag.CONSISTENT),
            verify_from=self.verify_from,
        )
        volumes, frozen = self._volumes, self._overlay.frozen
        if not self.following and frozen is not None and frozen.appended:
            device = journal.device

            def work() -> Restored:
                return Restored(end, limit, apply(frozen, device, volumes))

            self._scheduler.submit(self._lane, work, self._restored)
            return
        reader = journal.reader(self._arena, end_lsn)
        self._scheduler.submit(self._lane, lambda: restore(stretch, reader, volumes), self._restored)

    def _restored(self, result: Restored | None, error: Exception | None) -> None:
        self._working = False
        if result is None:
            self._fail(error or RuntimeError("restoring gave no result"))
            return
        self.applied, self.applied_sequence = result.position, result.sequence
        if (
            not self.following
            and self._overlay.frozen is not None
            and self.applied_sequence >= self._frozen_end.sequence
        ):
            self.applied = self._frozen_end  # behind a pad that a start found at the journal's end, too
            self._overlay.frozen = None
        self._on_restored(result)
        self.poke()

    def _fail(self, error: Exception) -> None:
        _log.error("applying the journal stopped behind record %d: %s", self.applied_sequence, error)
        self.failure = error
        self._on_failed(error)
        waiting, self._when_idle = self._when_idle, []
        for _, failed in waiting:
            failed(error)

    @property
    def idle(self) -> bool:
        """Nothing is on its way to the data volumes."""
        return not self._working and not self._checkpointing

    def when_idle(self, call: Callable[[], None], failed: Callable[[Exception], None]) -> None:
        """Begin nothing new; call when nothing is under way, and go on after that. Or `failed`, for ever."""
        if self.failure is not None:
            failed(self.failure)
            return
        self._when_idle.append((call, failed))
        self.poke()

    # -- checkpoint --

    @property
    def _checkpoint_wanted(self) -> bool:
        return self.applied_sequence > self._journal.superblock.checkpoint_sequence

    def _checkpoint_if_due(self) -> None:
        if self._checkpointing or not self._checkpoint_wanted:
            return
        oldest = self._overlay.frozen or self._overlay.current
        if not self.following and oldest and self.applied.lsn > oldest.start_lsn:
            return  # part of it is on the volumes, and reads still look for all of it in the ring
        superblock = self._journal.superblock
        full = self._journal.head.lsn - superblock.checkpoint_lsn >= superblock.ring_bytes // 2
        won = self.applied.lsn - superblock.checkpoint_lsn
        if (
            self._space_wanted
            or (full and won >= superblock.ring_bytes // _CHECKPOINT_RING_PARTS)
            or self._scheduler.monotonic() - self._checkpoint_at
            >= (_BUSY_CHECKPOINT_SECONDS if self._busy else _CHECKPOINT_SECONDS)
        ):
            self.checkpoint()

    def checkpoint(self) -> None:
        """Make the data volumes durable as far as they are applied; the journal may forget up to there."""
        if self._checkpointing:
            return
        self._checkpointing = True
        self._checkpoint_at = self._scheduler.monotonic()
        applied, sequence = self.applied, self.applied_sequence
        devices = list(self._volumes.values())

        def work() -> tuple[Position, SequenceNumber]:
            for device in devices:
                device.flush()
            return applied, sequence

        self._scheduler.submit(self._lane, work, self._checkpointed)

    def _checkpointed(self, done: tuple[Position, SequenceNumber] | None, error: Exception | None) -> None:
        self._checkpointing = False
        if done is None:
            self._fail(error or RuntimeError("the checkpoint gave no result"))
            return
        position, sequence = done
        if sequence > self._journal.superblock.checkpoint_sequence:
            self._journal.change_superblock(checkpoint_lsn=position.lsn, checkpoint_sequence=sequence)
        self._on_checkpoint()
        self._write_path.commit(urgent=self._space_wanted)
        self._space_wanted = False
        self.poke()

    # -- histories --

    def restart(self) -> None:
        """The journal was restarted (`Journal.restart_at`): what came before is on the volumes."""
        self.applied = self._journal.head
        self.applied_sequence = self._journal.head.sequence
        self._overlay.current = Generation(self._journal.head.lsn)
        self._overlay.frozen = None
        self._frozen_end = self._journal.head
