"""A consistency group: volumes with one journal, one order of writes, one role. Here the parts meet.

`obtain.WritePath` takes the writes, `background.Background` applies them, `reading.Reading` finds the newest
content, `mirrors.Mirrors` knows what each secondary has, `base_copy` fills gaps, `histories` changes the
role. This module decides who may write now, and tells the copy manager what changed.
"""

from __future__ import annotations

import logging
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum

from target.background import Background
from target.base_copy import BaseCopy, VerifyPass, copies
from target.blockdev import BlockDevice
from target.errors import OperatorError, PeerError
from target.journal.format import Filling, Opened
from target.journal.record import (
    EpochStart,
    Marker,
    MarkerKind,
    PackHeader,
    RecordType,
    SequenceNumber,
)
from target.journal.ring import NewRecord
from target.journal.superblock import Flag, MirrorState, RestoredMarker, Role, VolumeEntry
from target.listeners import Listeners
from target.mirrors import FULL_WARNING_PERCENT, Mirror, Mirrors
from target.obtain import Overlay, WritePath
from target.reading import Reading
from target.restore import Extent, Restored
from target.scheduler import Scheduler
from target.volume import Buffer, Request, VolumeError

_log = logging.getLogger(__name__)

HEARTBEAT_SECONDS = 1.0
_MARKERS_MAX = 65536
_MISMATCHES_MAX = 4096


class Access(Enum):
    """What hosts may do with the volumes."""

    SERVE = "read and write"
    HOLD = "read; writes wait until the role is confirmed"
    READ_ONLY = "read; writes are refused with DATA PROTECT"
    FAILED = "nothing: the journal or a volume is damaged"


@dataclass(frozen=True, slots=True)
class GroupSettings:
    """What the configuration says of a group's behaviour."""

    name: str
    site: str = ""
    commit_interval_seconds: float = 0.05
    throttle: bool = False
    verify_bytes_per_second: int = 200 << 20


class ConsistencyGroup:
    """One group, on the loop thread."""

    def __init__(
        self,
        scheduler: Scheduler,
        settings: GroupSettings,
        opened: Opened,
        overlay: Overlay,
        devices: Mapping[int, BlockDevice],
    ) -> None:
        self.scheduler = scheduler
        self.settings = settings
        self.name = settings.name
        self.journal = opened.journal
        self.overlay = overlay
        self.devices = devices
        self.lane = f"apply:{self.name}"
        self.write_path = WritePath(
            scheduler,
            self.journal,
            overlay,
            lane=f"commit:{self.name}",
            commit_interval_seconds=settings.commit_interval_seconds,
            on_durable=self._durable,
            on_full=self.make_room,
            on_failed=self._failed,
        )
        self.background = Background(
            scheduler,
            self.journal,
            overlay,
            self.write_path,
            devices,
            lane=self.lane,
            on_restored=self._restored,
            on_checkpoint=self._checkpointed,
            on_failed=self._failed,
        )
        self.reading = Reading(scheduler, self.journal, overlay, devices)
        self.mirrors = self._make_mirrors()
        self.base_copies: dict[str, BaseCopy] = {}
        self.verify_pass: VerifyPass | None = None
        self.markers: deque[tuple[SequenceNumber, Marker]] = deque(opened.markers, maxlen=_MARKERS_MAX)
        self.reasons: dict[str, str] = {}
        """Mirror name -> why it is suspended."""
        self.reason = ""
        self.restored_marker = self.journal.superblock.restored_marker
        self.verified_sequence = SequenceNumber(0)
        self.verified_extents = 0
        self.mismatches: list[Extent] = []
        self.redo_until = self.journal.head.sequence
        """After a crash a secondary's volumes may be ahead of the checkpoint; consistent from here on."""
        self.background.verify_from = self.redo_until
        self.changing = ""
        """The change of role that is under way, one at a time."""
        self.fenced: Access | None = None
        """While a primary merges what we wrote into its history: the access we had before."""
        self.fenced_until = 0.0
        self._held: list[Callable[[], None]] = []
        self._listeners = Listeners(scheduler)
        self.access = self._first_access(opened)
        self.background.following = self.receiving = self.role is Role.SECONDARY
        """`receiving`: packs of the primary may be appended; over as soon as a takeover begins."""
        Filling(scheduler, self.journal, f"commit:{self.name}", self.filled).start()
        self.write_path.commit(urgent=True)
        self.background.poke()
        self.resume_copies()
        scheduler.call_later(HEARTBEAT_SECONDS, self._heartbeat)

    def _make_mirrors(self) -> Mirrors:
        return Mirrors(
            self.scheduler,
            self.journal,
            lane=self.lane,
            throttle=self.settings.throttle,
            on_tail_moved=self._tail_moved,
            on_suspended=self._suspended,
        )

    def _first_access(self, opened: Opened) -> Access:
        superblock = self.journal.superblock
        self.reason = opened.fault(self.mirrors.unreadable)
        if self.reason:
            _log.critical("group %s: %s", self.name, self.reason)
            self.background.failure = RuntimeError(self.reason)
            self.write_path.failed = True
            return Access.FAILED
        if superblock.role is Role.SECONDARY:
            return Access.READ_ONLY
        if superblock.flags & Flag.SUPERSEDED:
            self.reason = "superseded: another site holds a newer epoch"
            return Access.READ_ONLY
        if superblock.role is Role.PRIMARY:
            self.reason = "waiting for the copy manager to confirm that this site is still the primary"
            return Access.HOLD
        return Access.SERVE

    # -- roles and access --

    @property
    def role(self) -> Role:
        return self.journal.superblock.role

    @property
    def volumes(self) -> tuple[VolumeEntry, ...]:
        return self.journal.superblock.volumes

    def volume_id(self, name: str) -> int:
        """The id of a volume by its name; OperatorError when there is none."""
        for volume in self.volumes:
            if volume.name == name:
                return volume.id
        raise OperatorError(f"group {self.name!r} has no volume {name!r}")

    def set_access(self, access: Access, reason: str = "") -> None:
        """Let hosts write, wait, or be refused; what waited goes on or is refused now."""
        if self.access is Access.FAILED:
            return
        self.write_path.end_turn()
        self.access, self.reason = access, reason
        self.write_path.paused = access is Access.HOLD
        if access is Access.READ_ONLY:
            self.write_path.refuse_held(VolumeError.WRITE_PROTECTED)
        self.write_path.retry_held()
        if access is not Access.HOLD:
            held, self._held = self._held, []
            for call in held:
                call()
        self.changed()

    def set_flag(self, flag: Flag, on: bool) -> None:
        """Change a flag of the superblock; durable with the next commit, which is begun at once."""
        flags = self.journal.superblock.flags
        wanted = flags | flag if on else flags & ~flag
        if wanted != flags:
            self.journal.change_superblock(flags=wanted)
            self.write_path.commit(urgent=True)

    @property
    def consistent(self) -> bool:
        """Whether the data volumes, with the overlay, are one point of the sequence."""
        if self.access is Access.FAILED:
            return False
        if self.role is not Role.SECONDARY:
            return True
        return bool(self.journal.superblock.flags & Flag.CONSISTENT) and (
            self.background.applied_sequence >= self.redo_until
        )

    # -- what hosts do --

    def write(self, volume: int, offset: int, data: Buffer, fua: bool, request: Request) -> None:
        """Obtain a write."""
        if self.access is Access.SERVE:
            record = NewRecord(RecordType.UPDATE, 0, volume, offset, len(data), data)
            self.write_path.add((record, request, fua))
        else:
            kept = bytes(data) if self.access is Access.HOLD else data
            self._not_now(request, lambda: self.write(volume, offset, kept, fua, request))

    def zero(self, volume: int, offset: int, length: int, fua: bool, request: Request) -> None:
        """Obtain a write of zeros."""
        if self.access is Access.SERVE:
            record = NewRecord(RecordType.ZERO, 0, volume, offset, length, b"")
            self.write_path.add((record, request, fua))
        else:
            self._not_now(request, lambda: self.zero(volume, offset, length, fua, request))

    def flush(self, request: Request) -> None:
        """Answer when everything obtained so far is durable."""
        if self.access is Access.FAILED:
            request.failed(VolumeError.WRITE_FAILED)
        else:
            self.write_path.add((None, request, True))

    def barrier(self, request: Request) -> None:
        """Answer when all writes so far are in the journal and the overlay: behind them, in their order."""
        if self.access is Access.SERVE:
            self.write_path.add((None, request, False))
        else:
            self._not_now(request, lambda: self.barrier(request))

    def read(self, volume: int, offset: int, length: int, request: Request) -> None:
        """Read the newest content."""
        if self.access is Access.FAILED:
            request.failed(VolumeError.READ_FAILED)
        else:
            self.reading.read(volume, offset, length, request)

    def _not_now(self, request: Request, again: Callable[[], None]) -> None:
        if self.access is Access.HOLD:
            self._held.append(again)
        elif self.access is Access.READ_ONLY:
            request.failed(VolumeError.WRITE_PROTECTED)
        else:
            request.failed(VolumeError.WRITE_FAILED)

    # -- what the parts report --

    def _durable(self) -> None:
        for copy in list(self.base_copies.values()):
            copy.durable()
        self.background.poke()
        if self.role is not Role.SECONDARY and self.mirrors.full_percent() >= FULL_WARNING_PERCENT:
            self.mirrors.move_tail()
        self.changed()

    def make_room(self, needed_bytes: int) -> None:
        """So much is to be appended, and the journal has no room for it."""
        self.background.make_space()
        self.mirrors.move_tail(needed_bytes)

    def _restored(self, result: Restored) -> None:
        if self.background.following:
            self._note_restored(result)
        self.changed()

    def _note_restored(self, result: Restored) -> None:
        for sequence, marker in result.markers:
            self.restored_marker = RestoredMarker(sequence, marker.time_ns, marker.name)
            self.add_marker(sequence, marker)
            ours = marker.kind is MarkerKind.COPY_COMPLETE and marker.name == self.settings.site
            if ours and sequence > self.journal.superblock.copy_after:
                self.set_flag(Flag.CONSISTENT, True)
        if result.verified_extents:
            self.verified_extents += result.verified_extents
            self.verified_sequence = result.verified_sequence
            for extent in result.mismatches:
                _log.error("verify: volume %d differs at %d+%d", extent.volume, extent.offset, extent.length)
            self.mismatches = [*self.mismatches, *result.mismatches][-_MISMATCHES_MAX:]

    def _checkpointed(self) -> None:
        if self.role is Role.SECONDARY:
            self.journal.change_superblock(restored_marker=self.restored_marker)
        self.mirrors.move_tail(self.write_path.held_bytes)

    def _tail_moved(self) -> None:
        self.write_path.commit(urgent=self.write_path.holding)
        self.changed()

    def filled(self) -> None:
        """A piece of a new ring was written out."""
        self.write_path.retry_held()
        self.changed()

    def _suspended(self, mirror: Mirror, reason: str) -> None:
        self.reasons[mirror.name] = reason
        self.stop_copy(mirror.name)
        _log.warning("group %s, mirror %s: suspended: %s", self.name, mirror.name, reason)
        self.changed()

    def _failed(self, error: Exception) -> None:
        self.access = Access.FAILED
        self.reason = str(error)
        held, self._held = self._held, []
        for call in held:
            call()
        self.changed()

    # -- listeners --

    def listen(self, listener: Callable[[], None]) -> None:
        """Call after changes, a moment later."""
        self._listeners.add(listener)

    def changed(self) -> None:
        """Something that the copy manager can see is different."""
        self._listeners.changed()

    # -- markers --

    def add_marker(self, sequence: SequenceNumber, marker: Marker) -> None:
        """Remember a marker; ascending."""
        if not self.markers or self.markers[-1][0] < sequence:
            self.markers.append((sequence, marker))

    def mark(self, kind: MarkerKind, name: str) -> tuple[SequenceNumber, Marker] | None:
        """Append a marker; None when the journal has no space now."""
        marker = Marker(kind, self.scheduler.wall_ns(), name)
        if not self.write_path.append_now([NewRecord(RecordType.MARKER, 0, 0, 0, 0, marker.encode())]):
            return None
        sequence = self.journal.head.sequence
        self.add_marker(sequence, marker)
        self.write_path.commit(urgent=kind is not MarkerKind.HEARTBEAT)
        return sequence, marker

    def last_marker_at(self, sequence: int) -> tuple[SequenceNumber, Marker] | None:
        """The last marker at or before a sequence number, of those that are remembered."""
        number = bisect_right(self.markers, sequence, key=lambda entry: entry[0])
        return self.markers[number - 1] if number else None

    def _heartbeat(self) -> None:
        self.scheduler.call_later(HEARTBEAT_SECONDS, self._heartbeat)
        if self.role is Role.PRIMARY and self.access is Access.SERVE and self.mirrors.table:
            self.mark(MarkerKind.HEARTBEAT, "")
        self.changed()  # lag grows by itself

    # -- mirrors --

    def start_copy(self, mirror: Mirror) -> None:
        """Copy what is marked for this mirror; it is in COPY until it has restored the last of it."""
        self.stop_copy(mirror.name)
        self.reasons.pop(mirror.name, None)
        self.mirrors.update(mirror, state=MirrorState.COPY, copy_complete=SequenceNumber(0))
        self.mirrors.save(mirror)
        self.write_path.commit(urgent=True)
        copy = BaseCopy(
            self.scheduler,
            self.journal,
            self.write_path,
            self.reading,
            self.mirrors,
            self.changed,
            mirror=mirror,
        )
        self.base_copies[mirror.name] = copy
        copy.start()
        self.changed()

    def repair(self, mirror: Mirror) -> None:
        """Copy what was marked now; a pair stays a pair, for its content is repaired in sequence."""
        state = mirror.entry.state
        self.start_copy(mirror)
        self.mirrors.update(mirror, state=state)

    def stop_copy(self, name: str) -> None:
        copy = self.base_copies.pop(name, None)
        if copy is not None:
            copy.stop()

    def resume_copies(self) -> None:
        """Go on with base copies that a restart, or a takeover that did not happen, interrupted."""
        if self.role is Role.PRIMARY and self.access is not Access.FAILED:
            for mirror in self.mirrors.table.values():
                if mirror.entry.state is MirrorState.PAIR and mirror.bitmap:
                    self.repair(mirror)
                elif copies(mirror) and mirror.name not in self.base_copies:
                    self.start_copy(mirror)

    def suspend(self, mirror: Mirror, state: MirrorState, reason: str) -> None:
        """The mirror gets no journal any more; what it lacks is kept, or marked."""
        self.mirrors.update(mirror, state=state)
        self._suspended(mirror, reason)
        self.write_path.commit(urgent=True)

    def report_mirror(
        self, mirror: Mirror, received: SequenceNumber, restored: SequenceNumber, verified: SequenceNumber
    ) -> None:
        """How far the mirror says it is: release the journal, and see whether its copy is complete."""
        entry = mirror.entry
        if not mirror.flows:
            return
        mirror.confirmed = max(received, mirror.confirmed)
        self.mirrors.update(
            mirror,
            received=max(received, entry.received),
            restored=restored,
            verified=max(verified, entry.verified),
        )
        if entry.state is MirrorState.COPY and entry.copy_complete and restored >= entry.copy_complete:
            self.stop_copy(mirror.name)
            self.mirrors.update(mirror, state=MirrorState.PAIR)
            self.write_path.commit(urgent=True)
        self.mirrors.move_tail()
        self.changed()

    def start_verify(self) -> VerifyPass:
        """Append digests of all extents, once; a pass that runs already goes on."""
        if self.verify_pass is None or not self.verify_pass.running:
            self.verify_pass = VerifyPass(
                self.scheduler,
                self.journal,
                self.write_path,
                self.reading,
                self.mirrors,
                self.changed,
                volumes=[(volume.id, volume.size_bytes) for volume in self.volumes],
                bytes_per_second=self.settings.verify_bytes_per_second,
            )
            self.verify_pass.start()
        return self.verify_pass

    # -- a secondary --

    def forget_pair(self) -> None:
        """Follow another history from here on: mirrors, markers and findings were the old one's."""
        self.mirrors = self._make_mirrors()
        self.markers.clear()
        self.reasons.clear()
        self.mismatches = []
        self.verified_extents = 0
        self.verified_sequence = SequenceNumber(0)
        self.restored_marker = RestoredMarker()
        self.redo_until = self.background.verify_from = self.journal.head.sequence

    def resized(self) -> None:
        """The superblock has other volume sizes."""
        self.mirrors.resized()
        self.changed()

    def receive(
        self,
        packs: list[tuple[PackHeader, Buffer]],
        epochs: list[EpochStart],
        grown: Mapping[int, int] | None = None,
    ) -> None:
        """Append packs that came over the SAN link and were checked; raises OSError.

        PeerError once a takeover has begun: what is served then must not grow by another's records. And when
        a disk has failed: the superblock that lets the ring be written anew may not be durable.
        """
        if not self.receiving or self.access is Access.FAILED:
            raise PeerError(f"group {self.name!r} follows nobody any more")
        first, head = packs[0][0], self.journal.head
        if first.first_sequence != head.sequence + 1 or first.previous_digest != head.digest:
            raise PeerError(f"group {self.name!r}: its journal went on elsewhere, behind {head.sequence}")
        self.journal.receive(packs)
        for start in epochs:
            if (start.epoch, start.reign) != (self.journal.superblock.epoch, self.journal.superblock.reign):
                self.journal.start_epoch(start)
        for volume, size in (grown or {}).items():
            self.journal.grow_volume(volume, size)
            self.resized()
        self.write_path.commit(urgent=True)
