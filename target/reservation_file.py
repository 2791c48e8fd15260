"""Persistent reservations of one logical unit in a small file, for those that outlive a restart (APTPL).

The file is written anew each time: a temporary one, fdatasync, rename, fsync of the directory; so it holds
the state before or the state after, whole. Without a file there are no reservations. A damaged one is an
error: to start without what it held could let two hosts write that were fenced from each other.
"""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import msgspec

from target.errors import IntegrityError
from target.scheduler import Scheduler
from target.scsi.command import Nexus
from target.scsi.reservations import ALL_REGISTRANTS, Reservations, Type
from target.volume import Request, VolumeError

_LANE = "reservations"
_VERSION = 1


class _Registration(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    initiator_port: str
    target_port: str
    relative_target_port: int
    key: int


class _Contents(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`holder` is the place of the holder among the registrations."""

    version: int
    registrations: list[_Registration]
    type: int | None = None
    holder: int | None = None


class ReservationFile:
    """A `ReservationStore`; saving is done on a lane of its own."""

    def __init__(self, path: Path, scheduler: Scheduler) -> None:
        self._path = path
        self._scheduler = scheduler

    def load(self) -> Reservations:
        """What was saved last; IntegrityError when it cannot be understood."""
        try:
            raw = self._path.read_bytes()
        except FileNotFoundError:
            return Reservations()
        try:
            return decode(raw)
        except (msgspec.MsgspecError, ValueError) as error:
            raise IntegrityError(
                f"persistent reservations in {self._path} cannot be read: {error}. "
                "Restore the file; or stop all hosts that share the volume, and remove it"
            ) from None

    def save(self, state: Reservations, request: Request) -> None:
        self._scheduler.submit(_LANE, partial(self._write, encode(state)), partial(_answer, request))

    def _write(self, raw: bytes) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._path.with_name(f"{self._path.name}.new")
        with temporary.open("wb") as file:
            file.write(raw)
            file.flush()
            os.fdatasync(file.fileno())
        temporary.replace(self._path)
        directory = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def _answer(request: Request, result: None, error: Exception | None) -> None:
    if error is None:
        request.done()
    else:
        request.failed(VolumeError.WRITE_FAILED)


def encode(state: Reservations) -> bytes:
    """JSON, one object."""
    nexuses = list(state.keys)
    registrations = [
        _Registration(nexus.initiator_port, nexus.target_port, nexus.relative_target_port, key)
        for nexus, key in state.keys.items()
    ]
    holder = None if state.holder is None else nexuses.index(state.holder)
    return msgspec.json.encode(_Contents(_VERSION, registrations, state.type, holder))


def decode(raw: bytes) -> Reservations:
    """ValueError, or msgspec's, when it is no state that `encode` could have written."""
    contents = msgspec.json.decode(raw, type=_Contents)
    if contents.version != _VERSION:
        raise ValueError(f"version {contents.version} is not known")
    keys = {
        Nexus(each.initiator_port, each.target_port, each.relative_target_port): each.key
        for each in contents.registrations
    }
    if contents.type is None:
        if contents.holder is not None:
            raise ValueError("there is a holder, and no reservation")
        return Reservations(keys, persists=bool(keys))
    kind = Type(contents.type)
    if not keys or (contents.holder is None) != (kind in ALL_REGISTRANTS):
        raise ValueError("holder and type of the reservation do not fit")
    holder = None
    if contents.holder is not None:
        if not 0 <= contents.holder < len(keys):
            raise ValueError("the holder is not registered")
        holder = list(keys)[contents.holder]
    return Reservations(keys, kind, holder, persists=True)
