"""Persistent reservations: who is registered, who holds what, and what each service action makes of it. Pure.

SPC-4 5.13 and the clauses of PERSISTENT RESERVE OUT. The state of a logical unit is one value,
`Reservations`; every service action is a function from it to a `Change`, or to why nothing changes.
Invariant: the holder is registered, and there is a holder only while there is a type.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum, IntEnum
from typing import Protocol

from target.scsi.command import Nexus, ScsiResult, Status
from target.scsi.sense import (
    INVALID_RELEASE_OF_PERSISTENT_RESERVATION,
    REGISTRATIONS_PREEMPTED,
    RESERVATIONS_PREEMPTED,
    RESERVATIONS_RELEASED,
    Sense,
    invalid_field_in_parameter_list,
)
from target.volume import Request as VolumeRequest

RESERVATION_CONFLICT = ScsiResult(Status.RESERVATION_CONFLICT)

SERVICE_ACTION_KEY_BYTE, FLAGS_BYTE = 8, 20
"""Where these fields are in the parameter list, for a field pointer."""


class Access(Enum):
    """Who may use a command while another initiator holds a persistent reservation (SPC-4 and SBC-3,
    *commands that are allowed in the presence of various reservations*).
    """

    EVERYBODY = "always"
    READERS = "unless access is exclusive"
    HOLDERS = "by those the reservation admits"


class Type(IntEnum):
    WRITE_EXCLUSIVE = 1
    EXCLUSIVE_ACCESS = 3
    WRITE_EXCLUSIVE_REGISTRANTS_ONLY = 5
    EXCLUSIVE_ACCESS_REGISTRANTS_ONLY = 6
    WRITE_EXCLUSIVE_ALL_REGISTRANTS = 7
    EXCLUSIVE_ACCESS_ALL_REGISTRANTS = 8


ALL_REGISTRANTS = frozenset({Type.WRITE_EXCLUSIVE_ALL_REGISTRANTS, Type.EXCLUSIVE_ACCESS_ALL_REGISTRANTS})
_ADMITS_REGISTRANTS = ALL_REGISTRANTS | {
    Type.WRITE_EXCLUSIVE_REGISTRANTS_ONLY,
    Type.EXCLUSIVE_ACCESS_REGISTRANTS_ONLY,
}
_ADMITS_READERS = frozenset(
    {Type.WRITE_EXCLUSIVE, Type.WRITE_EXCLUSIVE_REGISTRANTS_ONLY, Type.WRITE_EXCLUSIVE_ALL_REGISTRANTS}
)


@dataclass(frozen=True, slots=True)
class Reservations:
    """Registrations (nexus -> key), the reservation, and whether both outlive a restart.

    `holder` is None with an all-registrants type: all are. `generation` counts changes of registrations.
    """

    keys: Mapping[Nexus, int] = field(default_factory=dict)
    type: Type | None = None
    holder: Nexus | None = None
    generation: int = 0
    persists: bool = False

    def holds(self, nexus: Nexus) -> bool:
        if self.type in ALL_REGISTRANTS:
            return nexus in self.keys
        return self.type is not None and nexus == self.holder

    def admits(self, nexus: Nexus, access: Access) -> bool:
        """May this nexus send such a command?"""
        if self.type is None or access is Access.EVERYBODY or nexus == self.holder:
            return True
        if self.type in _ADMITS_REGISTRANTS and nexus in self.keys:
            return True
        return access is Access.READERS and self.type in _ADMITS_READERS


class ReservationStore(Protocol):
    """Where the reservations of one logical unit outlive a restart."""

    def load(self) -> Reservations:
        """What was saved last; none when nothing was."""

    def save(self, state: Reservations, request: VolumeRequest) -> None:
        """Answer when `state` is durable and has taken the place of the one before."""


@dataclass(frozen=True, slots=True)
class Change:
    """The new state, what others are to be told, and whose registrations or reservation were preempted."""

    state: Reservations
    told: tuple[tuple[Nexus, Sense], ...] = ()
    preempted: tuple[Nexus, ...] = ()


@dataclass(frozen=True, slots=True)
class Request:
    """What a PERSISTENT RESERVE OUT asks for: CDB and parameter list."""

    type: Type | None
    key: int
    service_action_key: int
    persists: bool


Decision = Change | Sense | ScsiResult
Action = Callable[[Reservations, Nexus, Request], Decision]


def register(state: Reservations, nexus: Nexus, request: Request) -> Decision:
    """SPC-4 5.13.7: who is not registered gives the key 0, who is gives its own."""
    if state.keys.get(nexus, 0) != request.key:
        return RESERVATION_CONFLICT
    return register_and_ignore_existing_key(state, nexus, request)


def register_ports(state: Reservations, nexus: Nexus, request: Request, others: Iterable[Nexus]) -> Decision:
    """REGISTER with SPEC_I_PT (SPC-4 5.13.7): who is not registered yet registers others along with itself.
    Whoever of them is registered keeps its key.
    """
    if state.keys.get(nexus, 0) != request.key:
        return RESERVATION_CONFLICT
    if nexus in state.keys:
        return invalid_field_in_parameter_list(FLAGS_BYTE, 3)
    if not request.service_action_key:
        return Change(state)
    added = dict.fromkeys((nexus, *others), request.service_action_key)
    return Change(
        replace(
            state,
            keys={**added, **state.keys},
            generation=state.generation + 1,
            persists=request.persists,
        )
    )


def register_and_ignore_existing_key(state: Reservations, nexus: Nexus, request: Request) -> Decision:
    state = replace(state, generation=state.generation + 1, persists=request.persists)
    if request.service_action_key:
        return Change(replace(state, keys={**state.keys, nexus: request.service_action_key}))
    return unregister(state, nexus)


def unregister(state: Reservations, nexus: Nexus) -> Change:
    """SPC-4 5.13.11.3: a holder takes its reservation with it."""
    left = _without(state.keys, {nexus})
    after = replace(state, keys=left)
    released = state.holder == nexus if state.holder else state.type is not None and not left
    if not released:
        return Change(after)
    told = left if state.type in _ADMITS_REGISTRANTS else ()
    return Change(
        replace(after, type=None, holder=None), tuple((each, RESERVATIONS_RELEASED) for each in told)
    )


def reserve(state: Reservations, nexus: Nexus, request: Request) -> Decision:
    if not _has_key(state, nexus, request):
        return RESERVATION_CONFLICT
    if state.type is not None:
        same = state.holds(nexus) and state.type is request.type
        return Change(state) if same else RESERVATION_CONFLICT
    return Change(_reserved(state, nexus, request))


def release(state: Reservations, nexus: Nexus, request: Request) -> Decision:
    if not _has_key(state, nexus, request):
        return RESERVATION_CONFLICT
    if not state.holds(nexus):
        return Change(state)
    if state.type is not request.type:
        return INVALID_RELEASE_OF_PERSISTENT_RESERVATION
    told = _without(state.keys, {nexus}) if state.type in _ADMITS_REGISTRANTS else ()
    return Change(
        replace(state, type=None, holder=None), tuple((each, RESERVATIONS_RELEASED) for each in told)
    )


def clear(state: Reservations, nexus: Nexus, request: Request) -> Decision:
    if not _has_key(state, nexus, request):
        return RESERVATION_CONFLICT
    others = _without(state.keys, {nexus})
    return Change(
        Reservations(generation=state.generation + 1, persists=state.persists),
        tuple((each, RESERVATIONS_PREEMPTED) for each in others),
    )


def preempt(state: Reservations, nexus: Nexus, request: Request) -> Decision:
    """SPC-4 5.13.11.2: remove the registrations with a key; with the holder's key, take its reservation."""
    if not _has_key(state, nexus, request):
        return RESERVATION_CONFLICT
    wanted = request.service_action_key
    everybody = state.type in ALL_REGISTRANTS and not wanted
    if not wanted and not everybody:
        return invalid_field_in_parameter_list(SERVICE_ACTION_KEY_BYTE)
    found = {each for each, key in state.keys.items() if everybody or key == wanted}
    if not found:
        return RESERVATION_CONFLICT
    takes = everybody or (state.holder is not None and state.keys[state.holder] == wanted)
    removed = tuple(each for each in state.keys if each in found and each != nexus)
    left = _without(state.keys, set(removed))
    after = replace(state, keys=left, generation=state.generation + 1)
    told = [(each, REGISTRATIONS_PREEMPTED) for each in removed]
    if takes:
        after = _reserved(after, nexus, request)
        if state.type is not request.type:
            told += [(each, RESERVATIONS_RELEASED) for each in left if each != nexus]
    return Change(after, tuple(told), removed)


def move(
    state: Reservations, nexus: Nexus, request: Request, to: Nexus, *, unregister_self: bool
) -> Decision:
    """REGISTER AND MOVE (SPC-4 5.13.8): the reservation goes to another nexus, which is registered for it."""
    if not _has_key(state, nexus, request) or state.holder != nexus:
        return RESERVATION_CONFLICT
    if not request.service_action_key:
        return invalid_field_in_parameter_list(SERVICE_ACTION_KEY_BYTE)
    keys = {**state.keys, to: request.service_action_key}
    if unregister_self:
        keys = _without(keys, {nexus})
    return Change(
        replace(state, keys=keys, holder=to, generation=state.generation + 1, persists=request.persists)
    )


def _has_key(state: Reservations, nexus: Nexus, request: Request) -> bool:
    return state.keys.get(nexus) == request.key


def _reserved(state: Reservations, nexus: Nexus, request: Request) -> Reservations:
    return replace(state, type=request.type, holder=None if request.type in ALL_REGISTRANTS else nexus)


def _without(keys: Mapping[Nexus, int], gone: set[Nexus]) -> dict[Nexus, int]:
    return {each: key for each, key in keys.items() if each not in gone}
