"""The mirrors of a group, as its primary keeps them: how far each is, and what it may not have.

The journal is kept for the slowest mirror while there is space. When there is none, the oldest records are
discarded, and before that their blocks are marked in the bitmap of every mirror that has not received them:
durably, in the same commit that moves the tail, in front of it. So nothing is ever lost track of, and the
write path never touches a bitmap.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace

from target.bitmap import BitmapStore, DifferentialBitmap, Extent
from target.errors import IntegrityError, OperatorError
from target.journal.record import RecordType, SequenceNumber
from target.journal.ring import Journal
from target.journal.scan import RingReader, walk_headers
from target.journal.superblock import MirrorEntry, MirrorState, Position, Role
from target.scheduler import Scheduler

_log = logging.getLogger(__name__)

DISCARD_ABOVE_PERCENT = 90
DISCARD_DOWN_TO_PERCENT = 75
FULL_WARNING_PERCENT = 70

_CHANGES = frozenset((RecordType.UPDATE, RecordType.ZERO, RecordType.BASE, RecordType.BASE_ZERO))


class Mirror:
    """One secondary of the group."""

    def __init__(self, entry: MirrorEntry, bitmap: DifferentialBitmap) -> None:
        self.entry = entry
        self.bitmap = bitmap
        self.confirmed = entry.restored
        """What it is known to have received of our journal. `entry.received` says behind which record it is
        known what it lacks: for a new mirror that is where its copy begins.
        """

    @property
    def name(self) -> str:
        return self.entry.name

    @property
    def flows(self) -> bool:
        """The journal goes to it."""
        return self.entry.state in (MirrorState.COPY, MirrorState.PAIR)


def changed_extents(reader: RingReader, start: Position, end: Position, group_id: bytes) -> list[Extent]:
    """The extents that the records between two boundaries write: (volume, offset, length), in order.

    The headers say that, so damaged data do no harm. Blocks. Raises IntegrityError when the headers cannot be
    read from boundary to boundary.
    """
    extents: list[Extent] = []
    last = start.sequence
    for header, _ in walk_headers(reader, start, end.lsn, group_id):
        extents += [
            (record.volume, record.offset, record.length)
            for record in header.descriptors()
            if record.type in _CHANGES
        ]
        last = header.last_sequence
    if last != end.sequence:
        raise IntegrityError(
            f"the journal cannot be read from record {start.sequence} to {end.sequence}: it ends at {last}"
        )
    return extents


class Mirrors:
    """The mirror table of one group. Changes become durable with the next commit."""

    def __init__(
        self,
        scheduler: Scheduler,
        journal: Journal,
        *,
        lane: str,
        throttle: bool,
        on_tail_moved: Callable[[], None],
        on_suspended: Callable[[Mirror, str], None],
    ) -> None:
        self._scheduler = scheduler
        self._journal = journal
        self._lane = lane
        self._throttle = throttle
        self._on_tail_moved = on_tail_moved
        self._on_suspended = on_suspended
        self._discarding = False
        self.primary_knows = SequenceNumber(0)
        """On a secondary: what its primary knows it to have received."""
        self._left: dict[int, int] = {}
        """Slot of a mirror that was removed -> the superblock generation that does not name it any more."""
        self.store = BitmapStore(journal.device, journal.superblock)
        self.unreadable: OSError | None = None
        """Bitmaps could not be read: nothing may be written then."""
        self.table: dict[str, Mirror] = {
            entry.name: Mirror(entry, self._load(entry)) for entry in journal.superblock.mirrors
        }

    def _load(self, entry: MirrorEntry) -> DifferentialBitmap:
        try:
            return self.store.load(entry.slot)
        except OSError as error:
            self.unreadable = error
            bitmap = self.store.create(entry.slot)
            bitmap.mark_all()
            return bitmap

    def __getitem__(self, name: str) -> Mirror:
        mirror = self.table.get(name)
        if mirror is None:
            known = ", ".join(sorted(self.table)) or "none"
            raise OperatorError(f"the group has no mirror {name!r}; its mirrors: {known}")
        return mirror

    # -- the table --

    def add(self, name: str, state: MirrorState, received: SequenceNumber) -> Mirror:
        """A new mirror that has everything up to `received`, with nothing marked; one that is to be copied to
        (COPY) has nothing, and the journal is kept for it from there on.
        """
        if name in self.table:
            raise OperatorError(f"{name!r} is a mirror of this group already: resync or delete that pair")
        used = {mirror.entry.slot for mirror in self.table.values()}
        durable = self._journal.durable_generation
        # Until then a start could find the mirror that was there, and would take these pages for its own.
        used |= {slot for slot, generation in self._left.items() if generation > durable}
        free = [slot for slot in range(self._journal.superblock.bitmap_slots) if slot not in used]
        if not free:
            raise OperatorError(f"a group has {len(used)} mirrors at most: delete one first")
        nothing = SequenceNumber(0)
        restored = nothing if state is MirrorState.COPY else received
        entry = MirrorEntry(name, state, free[0], received, restored, nothing, nothing)
        mirror = Mirror(entry, self.store.create(free[0]))
        self.table[name] = mirror
        self.save(mirror)
        return mirror

    def remove(self, name: str) -> bool:
        """Forget a mirror; its journal may go. False when there is none."""
        mirror = self.table.pop(name, None)
        if mirror is None:
            return False
        self._save_table()
        self._left[mirror.entry.slot] = self._journal.wanted_generation
        self.move_tail()
        return True

    def clear(self) -> None:
        """Forget all: the group follows another primary now."""
        slots = [mirror.entry.slot for mirror in self.table.values()]
        self.table.clear()
        self._save_table()
        self._left.update(dict.fromkeys(slots, self._journal.wanted_generation))

    def update(self, mirror: Mirror, **changes: object) -> None:
        """Change a mirror's entry: a state is written with the next commit, the rest with some later one."""
        state = mirror.entry.state
        mirror.entry = replace(mirror.entry, **changes)  # type: ignore[arg-type]
        if mirror.entry.state is not state:
            self._save_table()

    def save(self, mirror: Mirror) -> None:
        """Write a mirror's bitmap and the table with the next commit."""
        if mirror.bitmap.dirty_pages:
            self._journal.write_with_next_commit(self.store.take_dirty(mirror.entry.slot, mirror.bitmap))
        self._save_table()

    def _save_table(self) -> None:
        self._journal.change_superblock(mirrors=tuple(mirror.entry for mirror in self.table.values()))

    def resized(self) -> None:
        """The volumes have other sizes, the ring perhaps too."""
        self.store.resize(self._journal.superblock)
        for mirror in self.table.values():
            mirror.bitmap.resize(self._journal.superblock.volumes)

    # -- what the ring is kept for --

    def full_percent(self) -> int:
        """How full the journal is."""
        return self._journal.used_bytes * 100 // self._journal.superblock.ring_bytes

    def behind_percent(self, mirror: Mirror) -> int:
        """How much of the ring one mirror has not received."""
        journal = self._journal
        behind = journal.head.lsn - journal.boundary_before(mirror.entry.received).lsn
        return behind * 100 // journal.superblock.ring_bytes

    def flowing_bytes(self) -> int:
        """How much of the ring waits for the checkpoint and for the mirrors the journal goes to."""
        journal = self._journal
        needed = [mirror.entry.received for mirror in self.table.values() if mirror.flows]
        keep = journal.boundary_before(min([journal.superblock.checkpoint_sequence, *needed]))
        return journal.head.lsn - keep.lsn

    def move_tail(self, needed_bytes: int = 0) -> None:
        """Let go of what is checkpointed and received by all; discard and mark where space is short.

        `needed_bytes` is what writes wait for.
        """
        journal = self._journal
        if self._discarding:
            return
        checkpoint = journal.boundary_before(journal.superblock.checkpoint_sequence)
        needed = [mirror.entry.received for mirror in self.table.values()]
        if journal.superblock.role is Role.SECONDARY:
            # Should the primary be put back to an older state, what it does not know of is to be found here.
            needed.append(self.primary_knows)
        keep = journal.boundary_before(min([checkpoint.sequence, *needed]))
        if keep.lsn > journal.superblock.tail.lsn:
            # A mirror that had part of its records discarded keeps the rest, too, until space is short.
            journal.move_tail(keep)
            self._save_table()
            self._on_tail_moved()
        used = journal.head.lsn - journal.superblock.tail.lsn
        ring = journal.superblock.ring_bytes
        short = used * 100 > ring * DISCARD_ABOVE_PERCENT or used + needed_bytes > ring
        if short and not self._throttle and checkpoint.lsn > keep.lsn:
            wanted = journal.head.lsn - min(ring * DISCARD_DOWN_TO_PERCENT // 100, ring - needed_bytes)
            # Not the boundary before: with large packs that may be the tail, and what waits waits for ever.
            boundary = journal.index.behind_lsn(wanted) or journal.head
            to = min(boundary, checkpoint, key=lambda position: position.lsn)
            if to.lsn > journal.superblock.tail.lsn:
                self._discard(to)

    def let_go(self) -> bool:
        """Let go of the whole ring; what suspended mirrors lack is marked. False: it is on its way."""
        head = self._journal.head
        if self._discarding:
            return False
        self.move_tail()
        if self._journal.superblock.tail.lsn == head.lsn:
            return True
        self._discard(head)
        return False

    def _discard(self, to: Position) -> None:
        """Mark what lies between tail and `to` for every mirror that lacks it; then move the tail there."""
        self._discarding = True
        journal = self._journal
        start, group_id, reader = journal.superblock.tail, journal.superblock.group_id, journal.reader()
        for mirror in self.table.values():
            if mirror.entry.received < to.sequence and mirror.flows:
                reason = "the journal was full: its oldest records were discarded and their blocks marked"
                self.update(mirror, state=MirrorState.ERROR)
                self._on_suspended(mirror, reason)

        def collected(extents: list[Extent] | None, error: Exception | None) -> None:
            self._discarding = False
            for mirror in self.table.values():
                if mirror.entry.received >= to.sequence:
                    continue
                if extents is None:
                    # To mark everything instead would be a full copy which nobody was told of (I7).
                    self.update(mirror, received=to.sequence)
                    self._on_suspended(
                        mirror,
                        f"what the journal discarded could not be read ({error}): what {mirror.name} lacks "
                        "is not known any more. Delete the pair and create it again (a full copy)",
                    )
                else:
                    for volume, offset, length in extents:
                        mirror.bitmap.mark(volume, offset, length)
                self.save(mirror)
            if to.lsn > journal.superblock.tail.lsn:
                journal.move_tail(to)
            self._on_tail_moved()

        self._scheduler.submit(self._lane, lambda: changed_extents(reader, start, to, group_id), collected)

    def reaches(self, mirror: Mirror) -> Position | None:
        """Where a mirror goes on if the journal has all it lacks; None when part of it was discarded."""
        return self._journal.keeps_from(mirror.entry.received)

    @property
    def discarding(self) -> bool:
        return self._discarding
