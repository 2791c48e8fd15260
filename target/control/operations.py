"""What the copy manager may ask: a method an operation, found in one table, parameters validated by type."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import msgspec

from target.bitmap import Extent
from target.control.messages import (
    AddMirror,
    AdvanceFetch,
    AtSequence,
    ChangedSince,
    CreateMarker,
    ExportSince,
    Follow,
    GrowJournal,
    GrowVolume,
    LioObject,
    LioStatus,
    MarkerState,
    MarkMirror,
    Nothing,
    OfGroup,
    OfMirror,
    Promote,
    ReportMirror,
    RestoreTo,
    ResyncMirror,
    SetAccess,
    StartFetch,
    SuspendMirror,
)
from target.control.server import Reply
from target.control.state import epoch_start, group_state
from target.engine import Engine
from target.errors import ConflictError, OperatorError, ReplctlError
from target.fencing import fence, keep_fence, quiesce, unfence
from target.group import Access
from target.growing import answered, grow_journal, grow_volume
from target.histories import (
    History,
    changed_since,
    demote,
    export_since,
    follow,
    promote,
)
from target.journal.record import MarkerKind, SequenceNumber
from target.journal.superblock import Flag, MirrorState, Position, Role
from target.pairing import Begin, add_mirror, mark_extents, resync_mirror

_ACCESS = {"serve": Access.SERVE, "hold": Access.HOLD, "read_only": Access.READ_ONLY}
_MIRROR_STATES = {state.name.lower(): state for state in MirrorState}


class Lio(Protocol):
    """Of the LIO front end, what can be asked from outside."""

    def status(self, done: Callable[[LioStatus | None, ReplctlError | None], None]) -> None:
        """What differs from site.toml."""

    def restore(self, name: str, done: Callable[[LioStatus | None, ReplctlError | None], None]) -> None:
        """Make an object what it should be."""


class Operations:
    """Does what is asked, on the loop thread."""

    def __init__(self, engine: Engine, lio: Lio | None = None) -> None:
        self._engine = engine
        self._lio = lio
        self._table: dict[str, tuple[type[msgspec.Struct], Callable[[Any, Reply], None]]] = {
            "ping": (Nothing, self._ping),
            "group.state": (OfGroup, self._state),
            "group.access": (SetAccess, self._access),
            "group.quiesce": (OfGroup, self._quiesce),
            "group.promote": (Promote, self._promote),
            "group.demote": (OfGroup, self._demote),
            "group.follow": (Follow, self._follow),
            "group.fence": (OfGroup, self._fence),
            "group.unfence": (OfGroup, self._unfence),
            "group.changed": (ChangedSince, self._changed),
            "group.export": (ExportSince, self._export),
            "group.verify": (OfGroup, self._verify),
            "volume.grow": (GrowVolume, self._grow_volume),
            "journal.grow": (GrowJournal, self._grow_journal),
            "group.restore": (RestoreTo, self._restore),
            "journal.at": (AtSequence, self._journal_at),
            "mirror.add": (AddMirror, self._add_mirror),
            "mirror.remove": (OfMirror, self._remove_mirror),
            "mirror.suspend": (SuspendMirror, self._suspend_mirror),
            "mirror.resync": (ResyncMirror, self._resync_mirror),
            "mirror.report": (ReportMirror, self._report_mirror),
            "mirror.mark": (MarkMirror, self._mark_mirror),
            "marker.create": (CreateMarker, self._create_marker),
            "marker.list": (OfGroup, self._list_markers),
            "fetch.start": (StartFetch, self._start_fetch),
            "fetch.advance": (AdvanceFetch, self._advance_fetch),
            "fetch.stop": (OfGroup, self._stop_fetch),
            "lio.status": (Nothing, self._lio_status),
            "lio.restore": (LioObject, self._lio_restore),
        }

    def handle(self, op: str, params: dict[str, Any], reply: Reply) -> None:
        """Do an operation; raises ReplctlError or replies, now or later."""
        entry = self._table.get(op)
        if entry is None:
            raise OperatorError(f"the storage subsystem knows no operation {op!r}")
        kind, method = entry
        try:
            typed = msgspec.convert(params, kind)
        except msgspec.ValidationError as error:
            raise OperatorError(f"{op}: {error}") from None
        method(typed, reply)

    # -- the group --

    def _ping(self, _: Nothing, reply: Reply) -> None:
        reply({"ready": True, "groups": sorted(self._engine.groups)})

    def _state(self, params: OfGroup, reply: Reply) -> None:
        group = self._engine.group(params.group)
        reply(group_state(group, self._engine.fetches.get(group.name)))

    def _access(self, params: SetAccess, reply: Reply) -> None:
        group = self._engine.group(params.group)
        access = _ACCESS.get(params.access)
        if access is None:
            raise OperatorError(f"access {params.access!r} is none of {', '.join(_ACCESS)}")
        if group.role is Role.SECONDARY:
            if access is not Access.READ_ONLY:
                raise OperatorError(
                    f"group {group.name!r} is a secondary here: its volumes stay write-protected"
                )
            # It began to follow while this was on its way: write-protected it is, and superseded no more.
            reply()
            return
        if params.superseded:
            group.set_flag(Flag.SUPERSEDED, True)
        elif access is Access.SERVE:
            group.set_flag(Flag.SUPERSEDED | Flag.PROMISED, False)
            group.resume_copies()
        group.set_access(access, params.reason)
        reply()

    def _quiesce(self, params: OfGroup, reply: Reply) -> None:
        group = self._engine.group(params.group)
        if group.role is not Role.PRIMARY:
            raise OperatorError(f"group {group.name!r} is no primary here: there is nothing to hand over")
        quiesce(group, lambda position, error: _answer_position(reply, position, error))

    def _promote(self, params: Promote, reply: Reply) -> None:
        group = self._engine.group(params.group)
        self._engine.stop_fetch(group)
        mirrors = [
            (mirror.name, _mirror_state(mirror.state), SequenceNumber(mirror.received))
            for mirror in params.mirrors
        ]
        promote(
            group,
            epoch=params.epoch,
            reign=params.reign,
            mirrors=mirrors,
            split_from=params.split_from,
            done=_answer(reply),
        )

    def _demote(self, params: OfGroup, reply: Reply) -> None:
        group = self._engine.group(params.group)
        self._engine.stop_fetch(group)
        demote(group, _answer(reply))

    def _fence(self, params: OfGroup, reply: Reply) -> None:
        group = self._engine.group(params.group)
        self._engine.stop_fetch(group)
        fence(group, _answer(reply))

    def _unfence(self, params: OfGroup, reply: Reply) -> None:
        unfence(self._engine.group(params.group))
        reply()

    def _follow(self, params: Follow, reply: Reply) -> None:
        group = self._engine.group(params.group)
        if params.latest not in (-1, group.journal.head.sequence):
            raise ConflictError(
                f"group {group.name!r} was written meanwhile (record {group.journal.head.sequence}, not "
                f"{params.latest}): resync again"
            )
        self._engine.stop_fetch(group)
        history = History(
            params.primary,
            bytes.fromhex(params.group_id),
            tuple(epoch_start(epoch) for epoch in params.epochs),
            SequenceNumber(params.sequence),
            bytes.fromhex(params.digest),
            params.consistent,
            tuple(params.sizes),
            SequenceNumber(params.copy_after),
        )
        follow(group, history, _answer(reply))

    def _changed(self, params: ChangedSince, reply: Reply) -> None:
        group = self._engine.group(params.group)

        keep_fence(group)

        def collected(extents: list[Extent] | None, error: Exception | None) -> None:
            keep_fence(group)
            if extents is None:
                reply(error=_operation_error(error))
            else:
                reply({"extents": extents})

        changed_since(group, SequenceNumber(params.sequence), params.peer, collected)

    def _export(self, params: ExportSince, reply: Reply) -> None:
        group = self._engine.group(params.group)

        keep_fence(group)

        def exported(records: int | None, error: Exception | None) -> None:
            keep_fence(group)
            if records is None:
                reply(error=_operation_error(error))
            else:
                reply({"records": records, "path": params.path if records else ""})

        export_since(group, SequenceNumber(params.sequence), Path(params.path), exported)

    def _verify(self, params: OfGroup, reply: Reply) -> None:
        group = self._engine.group(params.group)
        if group.role is not Role.PRIMARY:
            raise OperatorError(f"group {group.name!r} has no mirrors here: verify at its primary")
        group.start_verify()
        reply()

    def _grow_volume(self, params: GrowVolume, reply: Reply) -> None:
        group = self._engine.group(params.group)
        grow_volume(group, params.volume, params.size_bytes, answered(reply))

    def _grow_journal(self, params: GrowJournal, reply: Reply) -> None:
        grow_journal(self._engine.group(params.group), params.size_bytes, answered(reply))

    def _restore(self, params: RestoreTo, reply: Reply) -> None:
        group = self._engine.group(params.group)
        limit = None if params.sequence is None else SequenceNumber(params.sequence)
        group.background.restore_limit = limit
        group.background.poke()
        reply()

    def _journal_at(self, params: AtSequence, reply: Reply) -> None:
        """Where the journal goes on behind a record, and the digest there, if a kept pack ends there."""
        group = self._engine.group(params.group)
        position = group.journal.keeps_from(params.sequence)
        if position is not None and position.lsn <= group.journal.durable.lsn:
            lun, serial = self._engine.san_lun(group.name)
            durable_lsn = group.journal.durable.lsn
            place = {"lun": lun, "serial": serial, "durable_lsn": durable_lsn}
            reply({"found": True, **place, **_position(position)})
        else:
            reply({"found": False})

    # -- LIO --

    def _lio_status(self, _: Nothing, reply: Reply) -> None:
        self._front_end_lio().status(lambda status, error: reply(status, error))

    def _lio_restore(self, params: LioObject, reply: Reply) -> None:
        self._front_end_lio().restore(params.object, lambda status, error: reply(status, error))

    def _front_end_lio(self) -> Lio:
        if self._lio is None:
            raise OperatorError(
                'this site\'s front end is the embedded one: site.toml has no front_end = "lio"'
            )
        return self._lio

    # -- mirrors --

    def _add_mirror(self, params: AddMirror, reply: Reply) -> None:
        group = self._engine.group(params.group)
        add_mirror(group, params.mirror, params.epoch, params.reign, _answer_begin(reply))

    def _remove_mirror(self, params: OfMirror, reply: Reply) -> None:
        group = self._engine.group(params.group)
        group.stop_copy(params.mirror)
        changed = group.mirrors.remove(params.mirror)
        if (
            changed
            and not group.mirrors.table
            and group.role is Role.PRIMARY
            and group.access is Access.SERVE
        ):
            demote(group, lambda error: _answer_changed(reply, error))
            return
        group.write_path.commit(urgent=True)
        group.changed()
        reply({"changed": changed})

    def _suspend_mirror(self, params: SuspendMirror, reply: Reply) -> None:
        group = self._engine.group(params.group)
        mirror = group.mirrors[params.mirror]
        state = _mirror_state(params.state)
        changed = mirror.entry.state is not state
        if changed:
            group.suspend(mirror, state, params.reason)
        reply({"changed": changed})

    def _resync_mirror(self, params: ResyncMirror, reply: Reply) -> None:
        group = self._engine.group(params.group)
        resync_mirror(
            group,
            params.mirror,
            SequenceNumber(params.common),
            params.extents,
            _answer_begin(reply),
            journal_damaged=params.journal_damaged,
        )

    def _report_mirror(self, params: ReportMirror, reply: Reply) -> None:
        group = self._engine.group(params.group)
        mirror = group.mirrors[params.mirror]
        place = group.journal.keeps_from(params.received)
        fits = place is not None and place.digest.hex() == params.digest
        if fits:
            group.report_mirror(
                mirror,
                SequenceNumber(params.received),
                SequenceNumber(params.restored),
                SequenceNumber(params.verified),
            )
        reply({"fits": fits})

    def _mark_mirror(self, params: MarkMirror, reply: Reply) -> None:
        mark_extents(self._engine.group(params.group), params.mirror, params.extents)
        reply()

    # -- markers --

    def _create_marker(self, params: CreateMarker, reply: Reply) -> None:
        group = self._engine.group(params.group)
        if group.role is Role.SECONDARY:
            raise OperatorError(f"group {group.name!r} takes no markers here: set them at its primary")
        if group.access is not Access.SERVE:
            raise OperatorError(f"group {group.name!r} takes no markers now: {group.reason}")
        if not params.name or len(params.name.encode()) > 64:
            raise OperatorError(f"{params.name!r} is no name for a marker: 1 to 64 bytes")
        made = group.mark(MarkerKind.OPERATOR, params.name)
        if made is None:
            raise OperatorError(f"the journal of group {group.name!r} has no room now; try again")
        reply(MarkerState(made[0], made[1].time_ns, made[1].name, made[1].kind.name.lower()))

    def _list_markers(self, params: OfGroup, reply: Reply) -> None:
        group = self._engine.group(params.group)
        reply(
            {
                "markers": [
                    MarkerState(sequence, marker.time_ns, marker.name, marker.kind.name.lower())
                    for sequence, marker in group.markers
                    if marker.kind is not MarkerKind.HEARTBEAT
                ]
            }
        )

    # -- the SAN link --

    def _start_fetch(self, params: StartFetch, reply: Reply) -> None:
        group = self._engine.group(params.group)
        if group.role is not Role.SECONDARY:
            raise OperatorError(f"group {group.name!r} is no secondary here: it fetches from nobody")
        latest = group.journal.head.sequence
        if params.sequence != latest:
            raise OperatorError(
                f"group {group.name!r} has record {latest}: reading on from {params.sequence} does not fit"
            )
        fetch = self._engine.start_fetch(group, params.portal, params.target, params.lun, params.lsn)
        fetch.advance(params.durable_lsn)
        reply()

    def _advance_fetch(self, params: AdvanceFetch, reply: Reply) -> None:
        fetch = self._engine.fetches.get(params.group)
        if fetch is None:
            raise OperatorError(f"nothing is being fetched for group {params.group!r}")
        fetch.advance(params.durable_lsn, params.ring_bytes)
        mirrors = self._engine.group(params.group).mirrors
        mirrors.primary_knows = max(mirrors.primary_knows, SequenceNumber(params.received))
        reply()

    def _stop_fetch(self, params: OfGroup, reply: Reply) -> None:
        self._engine.stop_fetch(self._engine.group(params.group))
        reply()


def _mirror_state(name: str) -> MirrorState:
    state = _MIRROR_STATES.get(name)
    if state is None:
        raise OperatorError(f"mirror state {name!r} is none of {', '.join(_MIRROR_STATES)}")
    return state


def _operation_error(error: Exception | None) -> ReplctlError:
    return (
        error
        if isinstance(error, ReplctlError)
        else ReplctlError(f"it failed in the storage subsystem: {error}")
    )


def _answer(reply: Reply) -> Callable[[Exception | None], None]:
    return lambda error: reply() if error is None else reply(error=_operation_error(error))


def _answer_changed(reply: Reply, error: Exception | None) -> None:
    if error is None:
        reply({"changed": True})
    else:
        reply(error=_operation_error(error))


def _position(position: Position) -> dict[str, object]:
    return {"sequence": position.sequence, "digest": position.digest.hex(), "lsn": position.lsn}


def _answer_position(reply: Reply, position: Position | None, error: Exception | None) -> None:
    if position is None:
        reply(error=_operation_error(error))
    else:
        reply(_position(position))


def _answer_begin(reply: Reply) -> Callable[[Begin | None, Exception | None], None]:
    def answer(begin: Begin | None, error: Exception | None) -> None:
        if begin is None:
            reply(error=_operation_error(error))
        else:
            position = Position(begin.lsn, begin.sequence, begin.digest)
            reply({**_position(position), "consistent": begin.consistent, "copy_after": begin.copy_after})

    return answer
