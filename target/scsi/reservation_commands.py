"""PERSISTENT RESERVE IN and OUT, RESERVE (6) and RELEASE (6). SPC-4, and SPC-2 for the latter two.

Handlers as in `media_commands`. Invariant: a change of persistent reservations that must outlive a restart
(APTPL) is durable in the store before it takes effect and before it is answered; one is made at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from target.scsi import reservation_data as data
from target.scsi import reservations as rules
from target.scsi.chain import Steps
from target.scsi.command import GOOD, Nexus, ScsiCommand
from target.scsi.operation import Outcome
from target.scsi.reservations import RESERVATION_CONFLICT, Change, Decision, Request, Reservations, Type
from target.scsi.sense import (
    INSUFFICIENT_REGISTRATION_RESOURCES,
    PARAMETER_LIST_LENGTH_ERROR,
    Sense,
    invalid_field_in_cdb,
    invalid_field_in_parameter_list,
)
from target.scsi.unit_commands import data_in
from target.scsi.unit_state import UnitState

REGISTRATIONS_MAX = 1024
"""What initiators can make one logical unit remember."""

_REGISTRATION_WORK_BYTES = 4 << 10  # to tell of one takes as long as to read so much

_SCOPES_AND_TYPES = {int(each): each for each in Type}  # scope 0h, the logical unit
_MOVE_FLAGS_BYTE = 17


def reserve_in(encode: Callable[[Reservations], bytes]) -> Callable[[UnitState, ScsiCommand, bytes], Outcome]:
    """The handler of one service action of PERSISTENT RESERVE IN."""

    def handler(unit: UnitState, command: ScsiCommand, cdb: bytes) -> Outcome:
        if unit.reserved_by is not None:
            return RESERVATION_CONFLICT
        command.worked(len(unit.reservations.keys) * _REGISTRATION_WORK_BYTES)
        return data_in(encode(unit.reservations), int.from_bytes(cdb[7:9], "big"))

    return handler


def report_capabilities(unit: UnitState, command: ScsiCommand, cdb: bytes) -> Outcome:
    def encode(state: Reservations) -> bytes:
        return data.encode_capabilities(state, can_persist=unit.reservation_store is not None)

    return reserve_in(encode)(unit, command, cdb)


def reserve_out(
    action: rules.Action, *, typed: bool = False, aborts: bool = False
) -> Callable[[UnitState, ScsiCommand, bytes], Outcome]:
    """The handler of one service action of PERSISTENT RESERVE OUT; `typed` ones use scope and type."""

    def handler(unit: UnitState, command: ScsiCommand, cdb: bytes) -> Outcome:
        if typed and cdb[2] not in _SCOPES_AND_TYPES:
            return invalid_field_in_cdb(2)
        length = int.from_bytes(cdb[5:9], "big")
        if length != data.PARAMETER_LIST_BYTES or len(command.data_out) != length:
            return PARAMETER_LIST_LENGTH_ERROR
        key, service_action_key, flags = data.decode_keys(bytes(command.data_out))
        if flags & data.SPEC_I_PT:
            return invalid_field_in_parameter_list(rules.FLAGS_BYTE, 3)
        if flags & data.APTPL and unit.reservation_store is None:
            return invalid_field_in_parameter_list(rules.FLAGS_BYTE, 0)
        request = Request(
            _SCOPES_AND_TYPES[cdb[2]] if typed else None, key, service_action_key, bool(flags & data.APTPL)
        )
        return _change_steps(
            unit, command, lambda state: action(state, command.nexus, request), aborts=aborts
        )

    return handler


_register_alone = reserve_out(rules.register)


def register(unit: UnitState, command: ScsiCommand, cdb: bytes) -> Outcome:
    """REGISTER, with SPEC_I_PT for other initiator ports too, through the same target port."""
    raw = bytes(command.data_out)
    if len(raw) < data.PARAMETER_LIST_BYTES or not raw[rules.FLAGS_BYTE] & data.SPEC_I_PT:
        return _register_alone(unit, command, cdb)
    if len(raw) != int.from_bytes(cdb[5:9], "big"):
        return PARAMETER_LIST_LENGTH_ERROR
    nexus = command.nexus
    known = {each.initiator_port for each in (*unit.attentions.nexuses, *unit.reservations.keys)}
    ports = data.decode_initiator_ports(raw, known, REGISTRATIONS_MAX)
    if isinstance(ports, Sense):
        return ports
    key, service_action_key, flags = data.decode_keys(raw)
    if flags & data.APTPL and unit.reservation_store is None:
        return invalid_field_in_parameter_list(rules.FLAGS_BYTE, 0)
    request = Request(None, key, service_action_key, bool(flags & data.APTPL))
    others = [Nexus(port, nexus.target_port, nexus.relative_target_port) for port in ports]
    return _change_steps(
        unit, command, lambda state: rules.register_ports(state, nexus, request, others), aborts=False
    )


def register_and_move(unit: UnitState, command: ScsiCommand, cdb: bytes) -> Outcome:
    length = int.from_bytes(cdb[5:9], "big")
    if length < data.PARAMETER_LIST_BYTES or len(command.data_out) != length:
        return PARAMETER_LIST_LENGTH_ERROR
    nexus = command.nexus
    decoded = data.decode_move(bytes(command.data_out), [(nexus.relative_target_port, nexus.target_port)])
    if isinstance(decoded, Sense):
        return decoded
    key, service_action_key, flags, to = decoded
    if to == nexus:
        return invalid_field_in_parameter_list(data.PARAMETER_LIST_BYTES)
    if flags & data.APTPL and unit.reservation_store is None:
        return invalid_field_in_parameter_list(_MOVE_FLAGS_BYTE, 0)
    request = Request(None, key, service_action_key, bool(flags & data.APTPL))
    unregister_self = bool(flags & data.MOVE_UNREG)
    return _change_steps(
        unit,
        command,
        lambda state: rules.move(state, nexus, request, to, unregister_self=unregister_self),
        aborts=False,
    )


def _change_steps(
    unit: UnitState, command: ScsiCommand, decide: Callable[[Reservations], Decision], *, aborts: bool
) -> Steps:
    yield unit.reservation_gate.enter
    try:
        if unit.reserved_by is not None:
            return RESERVATION_CONFLICT
        before = unit.reservations
        change = decide(before)
        if not isinstance(change, Change):
            return change
        after = change.state
        if len(after.keys) > REGISTRATIONS_MAX:
            return INSUFFICIENT_REGISTRATION_RESOURCES
        if unit.reservation_store is not None and (after.persists or before.persists):
            kept = after if after.persists else Reservations()
            yield partial(unit.reservation_store.save, kept)
        unit.set_reservations(after)
        for nexus, sense in change.told:
            unit.attentions.establish_for(nexus, sense)
    finally:
        unit.reservation_gate.leave()
    if aborts:
        for nexus in change.preempted:
            unit.removal_prevented_by.discard(nexus)
            yield partial(unit.abort_tasks, nexus)
    return GOOD


def reserve_6(unit: UnitState, command: ScsiCommand, cdb: bytes) -> Outcome:
    """SPC-2: the whole unit, for this nexus, until it releases it, is gone, or the unit is reset."""
    if unit.reservations.keys:
        return RESERVATION_CONFLICT
    unit.set_reserved_by(command.nexus)
    return GOOD


def release_6(unit: UnitState, command: ScsiCommand, cdb: bytes) -> Outcome:
    """SPC-2: good also for who has not reserved it, and then does nothing."""
    if unit.reserved_by == command.nexus:
        unit.set_reserved_by(None)
    return GOOD
