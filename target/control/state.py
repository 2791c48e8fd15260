"""The state of a group as the copy manager sees it, never better than the truth (I6); unknown is None."""

from __future__ import annotations

from target.control.messages import (
    CopyProgress,
    EpochState,
    FetchStatus,
    GroupState,
    MarkerState,
    MirrorStatus,
    VerifyStatus,
    VolumeStatus,
)
from target.group import ConsistencyGroup
from target.journal.record import EpochStart, SequenceNumber
from target.journal.superblock import Flag, MirrorState, Role
from target.mirrors import Mirror
from target.san.fetch import Fetch

_COMPLETE = (MirrorState.PAIR, MirrorState.SPLIT, MirrorState.LEFT)


def group_state(group: ConsistencyGroup, fetch: Fetch | None) -> GroupState:
    """Everything about a group that is not data."""
    journal = group.journal
    superblock = journal.superblock
    marker = group.restored_marker
    check = group.verify_pass
    return GroupState(
        name=group.name,
        group_id=superblock.group_id.hex(),
        role=superblock.role.name.lower(),
        access=group.access.name.lower(),
        reason=group.reason,
        primary=superblock.primary,
        promised=bool(superblock.flags & Flag.PROMISED),
        superseded=bool(superblock.flags & Flag.SUPERSEDED),
        changing=group.changing,
        consistent=group.consistent,
        epoch=superblock.epoch,
        reign=superblock.reign,
        epochs=[epoch_state(start) for start in superblock.epochs],
        latest=journal.head.sequence,
        durable=journal.durable.sequence,
        durable_lsn=journal.durable.lsn,
        durable_digest=journal.durable.digest.hex(),
        ring_bytes=superblock.ring_bytes,
        complete=group.role is not Role.SECONDARY or bool(superblock.flags & Flag.CONSISTENT),
        tail=superblock.tail.sequence,
        restored=group.background.applied_sequence,
        verified=group.verified_sequence,
        verified_extents=group.verified_extents,
        mismatches=[(extent.volume, extent.offset, extent.length) for extent in group.mismatches],
        restored_marker=MarkerState(marker.sequence, marker.time_ns, marker.name),
        journal_used_percent=group.mirrors.full_percent(),
        journal_filled_percent=journal.filled_bytes * 100 // superblock.ring_bytes,
        volumes=[VolumeStatus(v.id, v.name, v.size_bytes, v.block_size_bytes) for v in group.volumes],
        mirrors=[_mirror(group, mirror) for mirror in group.mirrors.table.values()],
        fetch=None if fetch is None else FetchStatus(fetch.state.value, fetch.reason, fetch.bytes_read),
        verify=None
        if check is None
        else VerifyStatus(check.running, check.extents_done, check.extents_total, check.last_sequence),
    )


def epoch_state(start: EpochStart) -> EpochState:
    return EpochState(
        start.epoch,
        start.reign,
        start.parent_epoch,
        start.parent_reign,
        start.fork_sequence,
        start.fork_digest.hex(),
        start.time_ns,
    )


def epoch_start(state: EpochState) -> EpochStart:
    return EpochStart(
        state.epoch,
        state.reign,
        state.parent_epoch,
        state.parent_reign,
        SequenceNumber(state.fork_sequence),
        bytes.fromhex(state.fork_digest),
        state.time_ns,
    )


def _mirror(group: ConsistencyGroup, mirror: Mirror) -> MirrorStatus:
    entry = mirror.entry
    copy = group.base_copies.get(entry.name)
    progress = None
    if copy is not None and entry.state is MirrorState.COPY:
        progress = CopyProgress(
            "restore" if entry.copy_complete else "copy", copy.done_bytes, copy.total_bytes
        )
    return MirrorStatus(
        name=entry.name,
        state=entry.state.name.lower(),
        received=entry.received,
        confirmed=mirror.confirmed,
        restored=entry.restored,
        verified=entry.verified,
        marked_bytes=mirror.bitmap.marked_bytes,
        behind_percent=group.mirrors.behind_percent(mirror),
        lag_seconds=_lag_seconds(group, mirror),
        journal_reaches=group.mirrors.reaches(mirror) is not None,
        copy=progress,
        reason=group.reasons.get(entry.name, ""),
        complete=entry.state in _COMPLETE or 0 < entry.copy_complete <= entry.restored,
    )


def _lag_seconds(group: ConsistencyGroup, mirror: Mirror) -> float | None:
    """Now minus the time of the last marker the mirror restored, both on this site's clock."""
    if mirror.entry.state is MirrorState.COPY:
        return None
    last = group.last_marker_at(mirror.entry.restored)
    epochs = group.journal.superblock.epochs
    if last is None or (epochs and last[0] <= epochs[-1].fork_sequence):
        return None  # a marker of an earlier primary has the time of another clock
    return max(0.0, (group.scheduler.wall_ns() - last[1].time_ns) / 1e9)
