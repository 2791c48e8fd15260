"""What goes over the control socket: parameters of the operations, and the state of a group. Types only.

Requests, answers and notifications have the form of `target.control.lines`. The state is level, not edges:
after every change the subscriber gets the whole `GroupState` of that group (note "group"), so a lost or
repeated one does no harm. Digests and ids are hexadecimal.
"""

from __future__ import annotations

import msgspec

Extents = list[tuple[int, int, int]]
"""(volume id, offset, length), bytes."""


class CopyProgress(msgspec.Struct, frozen=True):
    """How far a base copy, a resync or a verify pass is."""

    phase: str
    done_bytes: int
    total_bytes: int


class EpochState(msgspec.Struct, frozen=True):
    """One entry of the history."""

    epoch: int
    reign: int
    parent_epoch: int
    parent_reign: int
    fork_sequence: int
    fork_digest: str
    time_ns: int


class MarkerState(msgspec.Struct, frozen=True):
    """A point of the sequence with a name (heartbeats have none)."""

    sequence: int
    time_ns: int
    name: str
    kind: str = ""


class MirrorStatus(msgspec.Struct, frozen=True):
    """A mirror as the primary's journal knows it. `lag_seconds`: None until a point is restored."""

    name: str
    state: str
    received: int
    restored: int
    verified: int
    marked_bytes: int
    behind_percent: int
    """How much of the ring is kept because this mirror has not received it."""
    lag_seconds: float | None
    journal_reaches: bool
    copy: CopyProgress | None
    reason: str
    complete: bool = True
    """Its copy was complete when we heard of it last."""
    confirmed: int = 0
    """What of `received` the mirror has said itself: a new one has not heard of its copy yet."""


class FetchStatus(msgspec.Struct, frozen=True):
    """The transfer over the SAN link, at the secondary. `state`: connecting, reading, down, lost."""

    state: str
    reason: str
    bytes_read: int


class VerifyStatus(msgspec.Struct, frozen=True):
    """At the primary: how far a pass has been appended. `last_sequence`: its last record, when it was."""

    running: bool
    extents_done: int
    extents_total: int
    last_sequence: int | None


class VolumeStatus(msgspec.Struct, frozen=True):
    """A volume of a group."""

    id: int
    name: str
    size_bytes: int
    block_size_bytes: int


class GroupState(msgspec.Struct, frozen=True):
    """Everything about a group that is not data."""

    name: str
    group_id: str
    role: str
    access: str
    reason: str
    primary: str
    promised: bool
    superseded: bool
    changing: str
    consistent: bool
    epoch: int
    reign: int
    epochs: list[EpochState]
    latest: int
    durable: int
    durable_lsn: int
    durable_digest: str
    tail: int
    restored: int
    verified: int
    verified_extents: int
    mismatches: Extents
    restored_marker: MarkerState
    journal_used_percent: int
    journal_filled_percent: int
    volumes: list[VolumeStatus]
    mirrors: list[MirrorStatus]
    fetch: FetchStatus | None
    verify: VerifyStatus | None
    ring_bytes: int = 0
    complete: bool = True
    """A secondary: the copy to it is complete; some of the journal may be restored a second time yet."""


class LioRing(msgspec.Struct, frozen=True):
    """The ring of a volume: `served` when it is open."""

    storage_object: str
    served: bool
    commands: int
    batches: int
    outstanding: int


class LioStatus(msgspec.Struct, frozen=True):
    """What LIO has against what site.toml asks for. `drift`: one line a difference, `applied`: one a step."""

    objects: int
    applied: list[str]
    drift: list[str]
    failures: list[str]
    rings: list[LioRing]


class Nothing(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """No parameters."""


class OfGroup(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A group by name."""

    group: str


class OfMirror(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A mirror of a group, by the name of its site."""

    group: str
    mirror: str


class LioObject(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An object of LIO by its path, '' for all that site.toml asks for."""

    object: str = ""


class SetAccess(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`access`: serve, hold or read_only.

    With `superseded`, that fact is kept over restarts; serve clears promise and supersession.
    """

    group: str
    access: str
    reason: str
    superseded: bool = False


class AddMirror(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`epoch` and `reign` are of the epoch that begins if the group was simplex, or others had newer ones."""

    group: str
    mirror: str
    epoch: int
    reign: int


class SuspendMirror(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`state`: split or error."""

    group: str
    mirror: str
    state: str
    reason: str


class ReportMirror(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How far a mirror says it is; the journal is released up to `received`."""

    group: str
    mirror: str
    received: int
    digest: str
    """Of the last pack it received, hex: it counts only where ours has the same."""
    restored: int
    verified: int


class ResyncMirror(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The secondary shares the history up to `common` and wrote `extents` on its own.

    `journal_damaged`: it could not take what our journal holds behind `common`.
    """

    group: str
    mirror: str
    common: int
    extents: Extents
    journal_damaged: bool = False


class MarkMirror(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Copy these extents again."""

    group: str
    mirror: str
    extents: Extents


class CreateMarker(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A marker with a name."""

    group: str
    name: str


class AtSequence(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A boundary, by the sequence number of the last record before it."""

    group: str
    sequence: int


class ChangedSince(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What was written behind `sequence`; `peer` is the mirror whose bitmap knows what the ring forgot."""

    group: str
    sequence: int
    peer: str


class ExportSince(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Write the packs behind `sequence` to a file of the subsystem's host."""

    group: str
    sequence: int
    path: str


class Follow(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Become a secondary of `primary`, from a boundary of its history on."""

    group: str
    primary: str
    group_id: str
    epochs: list[EpochState]
    sequence: int
    digest: str
    consistent: bool
    latest: int = -1
    """The last record the secondary had when what it wrote alone was collected; -1: it does not matter."""
    sizes: list[tuple[int, int]] = []
    """(volume id, bytes), as at the primary."""
    copy_after: int = 0
    """The last record before the copy that makes this site consistent."""


class PromotedMirror(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A site that may follow the new primary, with what it is known to have."""

    name: str
    state: str
    received: int


class Promote(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Begin an epoch and serve. `split_from`: as a split secondary of this primary; '': as the primary."""

    group: str
    epoch: int
    reign: int
    mirrors: list[PromotedMirror]
    split_from: str = ""


class StartFetch(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Read the peer's journal LUN from `lsn` (the peer's) on, up to `durable_lsn`.

    `portal` "kernel": from the block device with the serial number `target`, which the kernel attached.

    `sequence`: the last record before `lsn`. It must be the last we have: the answer that told the place may
    be from before we began to follow anew.
    """

    group: str
    portal: str
    target: str
    lun: int
    sequence: int
    lsn: int
    durable_lsn: int


class AdvanceFetch(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The peer's journal is durable up to here."""

    group: str
    durable_lsn: int
    ring_bytes: int | None = None
    """The size of the peer's ring; None: it was not told."""
    received: int = 0
    """The peer knows that we have everything up to this record: our journal need not keep it for a merge."""


class GrowVolume(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Give a volume more bytes."""

    group: str
    volume: str
    size_bytes: int


class GrowJournal(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Make the journal volume larger, to this size."""

    group: str
    size_bytes: int


class RestoreTo(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The last record to restore; None: all that is received."""

    group: str
    sequence: int | None
