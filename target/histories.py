"""Changing a group's role: begin an epoch, follow a primary, and say what two histories do not share.

Nothing here overwrites anything silently: before a group follows another history it has been asked what it
wrote on its own (`changed_since`), and that part of its journal has been exported (`export_since`).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from target.bitmap import Extent, check_room
from target.blockdev import BlockDevice
from target.errors import ConflictError, IntegrityError, OperatorError
from target.fencing import stop_feeding
from target.group import Access, ConsistencyGroup
from target.journal.record import (
    NO_DIGEST,
    RESTORABLE,
    EpochStart,
    RecordType,
    SequenceNumber,
)
from target.journal.ring import NewRecord
from target.journal.scan import RingReader, walk
from target.journal.superblock import Flag, MirrorState, Position, RestoredMarker, Role
from target.mirrors import changed_extents
from target.overlay import ZERO, Generation
from target.restore import grow
from target.settling import Done, exclusively, settle, when_durable, when_room

_WRITTEN = frozenset((RecordType.UPDATE, RecordType.ZERO))


@dataclass(frozen=True, slots=True)
class History:
    """A history to follow, from a boundary on."""

    primary: str
    group_id: bytes
    epochs: tuple[EpochStart, ...]
    sequence: SequenceNumber
    digest: bytes
    consistent: bool
    sizes: tuple[tuple[int, int], ...] = ()
    """(volume id, bytes): a volume's size is part of a history too."""
    copy_after: SequenceNumber = SequenceNumber(0)
    """`pairing.Begin`"""


def promote(
    group: ConsistencyGroup,
    *,
    epoch: int,
    reign: int,
    mirrors: Sequence[tuple[str, MirrorState, SequenceNumber]],
    split_from: str,
    done: Done,
) -> None:
    """Become the primary: begin an epoch behind the last record held, and serve while the rest is restored.

    `mirrors` are the sites that may follow, with what each is known to have. `split_from`: the primary of
    which this site is a split secondary then, '' after a takeover. Epochs only grow; OperatorError otherwise.
    """
    superblock = group.journal.superblock
    if group.access is Access.FAILED:
        done(IntegrityError(f"group {group.name!r} is damaged: {group.reason}"))
        return
    if epoch <= superblock.epoch and superblock.epochs:
        done(
            OperatorError(
                f"group {group.name!r} is in epoch {superblock.epoch} already: {epoch} is not newer"
            )
        )
        return
    if superblock.role is Role.SECONDARY and not superblock.flags & Flag.CONSISTENT:
        # Whoever asked may have looked before this site began to follow: what it would serve is no point of
        # any history.
        done(OperatorError(f"the copy to group {group.name!r} is not complete: it cannot be served"))
        return
    ended = exclusively(group, "a takeover", done)
    if ended is None:
        return
    journal, background = group.journal, group.background
    group.receiving = False

    def refused(error: Exception | None) -> None:
        group.receiving = background.following
        ended(error)

    def paused() -> None:
        start, end, reader = background.applied, journal.head, journal.reader()
        place, group_id, volumes = journal.place, superblock.group_id, group.devices
        group.scheduler.submit(
            group.lane, lambda: unapplied(reader, start, end, group_id, place, volumes), indexed
        )

    def indexed(generation: Generation | None, error: Exception | None) -> None:
        if generation is None:
            refused(error)
            return
        try:
            begin_epoch(group, epoch, reign, split_from)
        except OperatorError as no_room:
            refused(no_room)
            return
        if background.following:
            group.overlay.current, group.overlay.frozen = generation, None
        background.following = False
        wanted = {name for name, _, _ in mirrors}
        for name in group.mirrors.table.keys() - wanted:
            group.mirrors.remove(name)
        for name, state, received in mirrors:
            known = group.mirrors.table.get(name)
            if known is None:
                group.mirrors.add(name, state, received)
            else:  # what is marked for it stays marked
                group.mirrors.update(known, state=state)
        when_durable(group, begun)

    def begun(error: Exception | None) -> None:
        if error is None:
            group.fenced = None
            group.set_access(Access.SERVE)
            background.poke(freeze=True)
        ended(error)

    def durable(error: Exception | None) -> None:
        if error is not None:
            refused(error)
        else:
            background.when_idle(paused, refused)

    when_room(group, durable)


def begin_epoch(group: ConsistencyGroup, epoch: int, reign: int, split_from: str = "") -> None:
    """Append the record that begins an epoch; the caller has waited for room (`when_room`).

    OperatorError when it could not be appended; then nothing has changed.
    """
    group.write_path.end_turn()  # what was obtained before belongs to the epoch before
    journal = group.journal
    superblock = journal.superblock
    start = EpochStart(
        epoch,
        reign,
        superblock.epoch,
        superblock.reign,
        journal.head.sequence,
        journal.head.digest,
        group.scheduler.wall_ns(),
    )
    journal.start_epoch(start)
    flags = (superblock.flags | Flag.CONSISTENT) & ~(Flag.PROMISED | Flag.SUPERSEDED)
    journal.change_superblock(role=Role.PRIMARY, flags=flags, primary=split_from)
    if not group.write_path.append_now([NewRecord(RecordType.EPOCH, 0, 0, 0, 0, start.encode())]):
        journal.change_superblock(
            epoch=superblock.epoch,
            reign=superblock.reign,
            epochs=superblock.epochs,
            role=superblock.role,
            flags=superblock.flags,
            primary=superblock.primary,
        )
        raise OperatorError(
            f"the journal of group {group.name!r} could not take the record that begins an epoch: "
            "it has no room now, or cannot be written"
        )


def unapplied(
    reader: RingReader,
    start: Position,
    end: Position,
    group_id: bytes,
    place: Callable[[int], int],
    volumes: Mapping[int, BlockDevice],
) -> Generation:
    """Index what is in the journal and not on the data volumes, and let these grow where it says so. Blocks.

    That is the overlay of a group that serves while it restores.
    """
    generation = Generation(start.lsn)
    last = start.sequence
    for pack in walk(reader, start, end.lsn, group_id):
        base = place(pack.header.lsn)
        for record in pack.header.descriptors():
            if record.type in RESTORABLE:
                position = base + record.data_offset if record.data_length else ZERO
                generation.put(record.volume, record.offset, record.length, position)
            elif record.type == RecordType.GROW:
                grow(record, volumes)
        last = pack.header.last_sequence
    if last != end.sequence:
        raise IntegrityError(f"the journal cannot be read behind record {last}; {end.sequence} was received")
    return generation


def demote(group: ConsistencyGroup, done: Done) -> None:
    """No pair any more: serve, journal for our own safety, forget all mirrors.

    A secondary begins a history of its own: what it writes from here on is no part of its primary's reign,
    and what it holds may be no point of it. Only who reigned itself goes on as it was.
    """
    ended = exclusively(group, "the end of a pair", done)
    if ended is None:
        return
    for name in list(group.base_copies):
        group.stop_copy(name)

    def paused() -> None:
        if group.background.following:
            group.background.following = group.receiving = False
            group.background.restart()
        group.mirrors.clear()
        if group.role is Role.SECONDARY:
            _begin_anew(group)
        flags = group.journal.superblock.flags & ~(Flag.PROMISED | Flag.SUPERSEDED)
        group.journal.change_superblock(role=Role.SIMPLEX, flags=flags | Flag.CONSISTENT, primary="")
        when_durable(group, finished)

    def finished(error: Exception | None) -> None:
        if error is None:
            group.fenced = None
            group.set_access(Access.SERVE)
        ended(error)

    def settled(error: Exception | None) -> None:
        if error is not None:
            ended(error)
        else:
            group.background.when_idle(paused, ended)

    if group.background.following:
        settle(group, settled)
    else:  # hosts write: there is no moment at which all is applied, and nothing that would need it
        paused()


def _begin_anew(group: ConsistencyGroup) -> None:
    """Everything is on the volumes: go on as a group that was just made, under an id that no other has."""
    journal = group.journal
    last = journal.head
    name = b"left" + journal.superblock.group_id + group.settings.site.encode() + last.digest
    journal.restart_at(SequenceNumber(0), NO_DIGEST)
    journal.change_superblock(
        group_id=hashlib.sha256(name).digest()[:16],
        epochs=(),
        epoch=0,
        reign=0,
        restored_marker=RestoredMarker(),
    )
    group.forget_pair()
    group.background.restart()


def follow(group: ConsistencyGroup, history: History, done: Done) -> None:
    """Become a secondary: go on behind `history.sequence`.

    Our own journal is dropped; it is on the volumes by then.
    """
    ended = exclusively(group, "the beginning of a pair", done)
    if ended is None:
        return
    access, reason = group.access, group.reason
    group.set_access(Access.READ_ONLY, f"secondary of {history.primary}")
    group.receiving = False
    stop_feeding(group)
    group.background.restore_limit = None
    sizes = dict(history.sizes)
    grown = [v for v in group.volumes if sizes.get(v.id, 0) > v.size_bytes]

    def extend() -> None:
        for volume in grown:
            check_room(group.journal.superblock, volume, sizes[volume.id])
            device = group.devices[volume.id]
            device.grow(sizes[volume.id])
            device.punch(volume.size_bytes, sizes[volume.id] - volume.size_bytes)
            device.flush()

    def paused() -> None:
        journal = group.journal
        # A copy that was not complete here is not completed by following on.
        flags = Flag.CONSISTENT if history.consistent and group.consistent else Flag(0)
        epochs = history.epochs
        journal.restart_at(history.sequence, history.digest)
        journal.change_superblock(
            role=Role.SECONDARY,
            group_id=history.group_id,
            epochs=epochs,
            epoch=epochs[-1].epoch if epochs else 0,
            reign=epochs[-1].reign if epochs else 0,
            flags=flags,
            primary=history.primary,
            copy_after=history.copy_after,
            mirrors=(),
            volumes=tuple(
                replace(volume, size_bytes=sizes.get(volume.id, volume.size_bytes))
                for volume in group.volumes
            ),
        )
        group.forget_pair()
        group.background.following = True
        group.background.restart()
        when_durable(group, followed)

    def refused(error: Exception | None) -> None:
        """Nothing was given up yet: go on as before."""
        if group.access is not Access.FAILED and group.fenced is None:
            group.receiving = group.background.following
            group.set_access(access, reason)
            group.resume_copies()
        ended(error)

    def followed(error: Exception | None) -> None:
        if error is None:  # before this, the old superblock stood, and the ring was not to be overwritten
            group.receiving = True
            group.fenced = None
        ended(error)

    def extended(_: None, error: Exception | None) -> None:
        if error is not None:
            refused(error)
        else:
            group.background.when_idle(paused, refused)

    def settled(error: Exception | None) -> None:
        if error is not None:
            refused(error)
        elif grown:
            group.scheduler.submit(group.lane, extend, extended)
        else:
            group.background.when_idle(paused, refused)

    settle(group, settled)


def changed_since(
    group: ConsistencyGroup,
    sequence: SequenceNumber,
    peer: str,
    done: Callable[[list[Extent] | None, Exception | None], None],
) -> None:
    """Every extent this group wrote behind `sequence`.

    From the journal, and where the ring forgot, from the bitmap kept for `peer`. ConflictError when neither
    reaches back far enough.
    """
    journal = group.journal
    tail = journal.superblock.tail
    marked: list[Extent] = []
    start = tail
    if sequence >= tail.sequence:
        start = journal.boundary_before(sequence)
    else:
        mirror = group.mirrors.table.get(peer)
        if mirror is None or mirror.entry.received > sequence:
            done(
                None,
                ConflictError(
                    f"group {group.name!r} does not know any more what it wrote between record {sequence} "
                    f"and {tail.sequence}: delete the pair and create it again (a full copy)",
                    sequence=sequence,
                    tail=tail.sequence,
                ),
            )
            return
        marked = list(mirror.bitmap.extents())
    end, group_id, reader = journal.head, journal.superblock.group_id, journal.reader()

    def collected(extents: list[Extent] | None, error: Exception | None) -> None:
        done(None if extents is None else coalesce(marked + extents, journal.superblock.extent_bytes), error)

    group.scheduler.submit(group.lane, lambda: changed_extents(reader, start, end, group_id), collected)


def coalesce(extents: list[Extent], unit: int) -> list[Extent]:
    """Runs of whole units that cover all the extents, ascending, without overlap."""
    units: dict[int, set[int]] = {}
    for volume, offset, length in extents:
        units.setdefault(volume, set()).update(range(offset // unit, -(-(offset + length) // unit)))
    runs: list[Extent] = []
    for volume in sorted(units):
        for index in sorted(units[volume]):
            if runs and runs[-1][0] == volume and runs[-1][1] + runs[-1][2] == index * unit:
                runs[-1] = (volume, runs[-1][1], runs[-1][2] + unit)
            else:
                runs.append((volume, index * unit, unit))
    return runs


def export_since(
    group: ConsistencyGroup,
    sequence: SequenceNumber,
    path: Path,
    done: Callable[[int | None, Exception | None], None],
) -> None:
    """Write the packs behind `sequence` to a file, as they stand, durably.

    Answers with the number of records; 0, and no file, when no host wrote any of them.
    """
    journal = group.journal
    start, end = journal.boundary_before(sequence), journal.head
    group_id, reader = journal.superblock.group_id, journal.reader()

    def work() -> int:
        count = 0
        written = False
        if start.sequence == end.sequence:
            return 0
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            for pack in walk(reader, start, end.lsn, group_id):
                file.write(pack.view)
                count += pack.header.record_count
                written = written or any(record.type in _WRITTEN for record in pack.header.descriptors())
            if start.sequence + count != end.sequence:
                raise IntegrityError(
                    f"the journal cannot be read behind record {start.sequence + count}: what this site "
                    f"wrote alone up to record {end.sequence} could not be kept"
                )
            file.flush()
            os.fsync(file.fileno())
        if not written:  # markers and the like alone: nothing that anybody would miss
            part.unlink()
            return 0
        part.replace(path)
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
        return count

    group.scheduler.submit(group.lane, work, done)
