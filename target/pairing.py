"""The primary's side of making and resuming a pair: where the secondary begins, and what is copied to it.

One mechanism for initial copy, resync after an overflow and failback: mark what may differ, say from which
record on the journal will come, copy what is marked. A full copy happens only when a pair is created.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from target.bitmap import Extent
from target.errors import ConflictError, OperatorError, ReplctlError
from target.group import Access, ConsistencyGroup
from target.histories import begin_epoch
from target.journal.record import Lsn, SequenceNumber
from target.journal.superblock import MirrorState, Role
from target.mirrors import changed_extents
from target.settling import when_durable, when_room


@dataclass(frozen=True, slots=True)
class Begin:
    """Where a secondary begins to follow: behind `sequence`, whose pack has `digest`; `lsn` is the primary's.

    `consistent`: its volumes are a point of the sequence already, nothing has to be copied first.
    """

    sequence: SequenceNumber
    digest: bytes
    lsn: Lsn
    consistent: bool
    copy_after: SequenceNumber = SequenceNumber(0)
    """A marker that says *complete* up to here is of an earlier copy."""


Began = Callable[["Begin | None", "Exception | None"], None]


def add_mirror(group: ConsistencyGroup, name: str, epoch: int, reign: int, done: Began) -> None:
    """A new secondary: everything is marked, its journal begins at the end of ours.

    A simplex group becomes a primary, in this epoch or the one behind its own; a primary whose own is not the
    one before it begins it, too: who had a newer one has given it up. Raises OperatorError.
    """
    _check_primary(group)

    _when_ready(group, done, lambda: _add(group, name, epoch, reign, done))


def _when_ready(group: ConsistencyGroup, done: Began, call: Callable[[], None]) -> None:
    """Call when the journal has room and nothing is being discarded, which would move the tail."""

    def ready(error: Exception | None) -> None:
        if error is not None:
            done(None, error)
            return
        try:
            call()
        except ReplctlError as refused:
            done(None, refused)

    when_room(group, ready)


def _add(group: ConsistencyGroup, name: str, epoch: int, reign: int, done: Began) -> None:
    following = group.journal.superblock.epoch + 1  # never less, whatever the copy manager knew of us
    if group.role is Role.SIMPLEX or epoch > following:
        begin_epoch(group, max(epoch, following), reign)
    group.write_path.end_turn()
    mirror = group.mirrors.add(name, MirrorState.COPY, group.journal.head.sequence)
    mirror.bitmap.mark_all()
    group.mirrors.save(mirror)
    head = group.journal.head
    begin = Begin(head.sequence, head.digest, head.lsn, consistent=False, copy_after=head.sequence)
    _begin_copy(group, name, begin, done)


def resync_mirror(
    group: ConsistencyGroup,
    name: str,
    common: SequenceNumber,
    extents: Sequence[Extent],
    done: Began,
    *,
    journal_damaged: bool = False,
) -> None:
    """Resume a pair whose secondary shares our history up to `common` and wrote `extents` on its own.

    The journal if it still reaches back to `common`, else the bitmap. With `journal_damaged`, the secondary
    could not take what the journal holds behind `common`: its blocks are copied instead. Raises ConflictError
    when nothing covers it.
    """
    _check_primary(group)
    if journal_damaged:
        _when_ready(group, done, lambda: _resync_by_blocks(group, name, common, extents, done))
    else:
        _when_ready(group, done, lambda: _resync(group, name, common, common, extents, done))


def _resync_by_blocks(
    group: ConsistencyGroup, name: str, common: SequenceNumber, extents: Sequence[Extent], done: Began
) -> None:
    """Copy what the journal's headers say was written behind `common`, and follow from the end on."""
    journal = group.journal
    start, end = journal.keeps_from(common), journal.head
    if start is None or name not in group.mirrors.table:
        _resync(group, name, common, common, extents, done)
        return
    reader, group_id = journal.reader(), journal.superblock.group_id

    def collected(written: list[Extent] | None, error: Exception | None) -> None:
        if written is None:
            done(
                None,
                ConflictError(
                    f"the journal is damaged behind record {common}, and what was written there is not known "
                    f"({error}). Delete the pair and create it again (a full copy)",
                    secondary=common,
                ),
            )
            return
        # What was written meanwhile is in the journal, or was discarded from it and marked.
        marked = [*extents, *written]
        _when_ready(group, done, lambda: _resync(group, name, common, end.sequence, marked, done))

    group.scheduler.submit(group.lane, lambda: changed_extents(reader, start, end, group_id), collected)


def _resync(
    group: ConsistencyGroup,
    name: str,
    common: SequenceNumber,
    behind: SequenceNumber,
    extents: Sequence[Extent],
    done: Began,
) -> None:
    """The secondary has everything up to `common`, and is to go on behind `behind`, if that is kept."""
    journal = group.journal
    if name not in group.mirrors.table and journal.keeps_from(common) is not None:
        group.mirrors.add(name, MirrorState.ERROR, common)  # a site that followed another primary before
    mirror = group.mirrors[name]
    group.stop_copy(name)
    position = journal.keeps_from(behind)
    reaches = position is not None
    if position is None:
        if mirror.entry.received > common:
            raise ConflictError(
                f"{name!r} has record {common}, and our journal and bitmap begin at {mirror.entry.received}: "
                "what lies between is not known. Delete the pair and create it again (a full copy)",
                secondary=common,
                known=mirror.entry.received,
            )
        position = journal.superblock.tail
    for volume, offset, length in extents:
        mirror.bitmap.mark(volume, offset, length)
    # Until the secondary says that it follows, it has no more than before: this may have to be repeated. What
    # it had of another history behind `common` does not count, wherever that came from.
    received = common if reaches else mirror.entry.received
    mirror.confirmed = received
    group.mirrors.update(
        mirror,
        state=MirrorState.COPY,
        received=received,
        restored=min(received, mirror.entry.restored),
        verified=min(received, mirror.entry.verified),
        copy_complete=SequenceNumber(0),
    )
    group.mirrors.save(mirror)
    consistent = reaches and not mirror.bitmap
    # With nothing marked, the marker of a copy that the journal holds in full is the one that counts.
    copy_after = SequenceNumber(0) if consistent else journal.head.sequence
    begin = Begin(position.sequence, position.digest, position.lsn, consistent, copy_after)
    _begin_copy(group, name, begin, done)


def mark_extents(group: ConsistencyGroup, name: str, extents: Sequence[Extent]) -> None:
    """These extents of a mirror differ: copy them again (the repair of a mismatch that a verify found)."""
    _check_primary(group)
    mirror = group.mirrors[name]
    for volume, offset, length in extents:
        mirror.bitmap.mark(volume, offset, length)
    if mirror.flows:
        group.repair(mirror)
    else:
        group.mirrors.save(mirror)
        group.write_path.commit(urgent=True)


def _check_primary(group: ConsistencyGroup) -> None:
    if group.role is Role.SECONDARY:
        primary = group.journal.superblock.primary
        raise OperatorError(f"group {group.name!r} is a secondary here: ask at its primary, {primary!r}")
    if group.access is not Access.SERVE:
        raise OperatorError(f"group {group.name!r} does not serve writes now: {group.reason}")


def _begin_copy(group: ConsistencyGroup, name: str, begin: Begin, done: Began) -> None:
    def durable(error: Exception | None) -> None:
        if error is not None:
            done(None, error)
            return
        mirror = group.mirrors.table.get(name)
        kept = group.journal.keeps_from(begin.sequence) is not None
        if mirror is None or mirror.entry.state is MirrorState.ERROR or not kept:
            # Discarded meanwhile, and marked: the place to begin at is gone.
            done(None, ConflictError(f"the journal was full as {name!r} was to follow: resync again"))
            return
        group.start_copy(mirror)
        done(begin, None)

    when_durable(group, durable)
