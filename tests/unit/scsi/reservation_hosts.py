"""Three initiators of one logical unit, and PERSISTENT RESERVE commands as they send them."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from target.scsi import cdb, sense
from target.scsi.command import GOOD, ScsiResult
from target.scsi.device_server import Device
from target.scsi.logical_unit import LogicalUnit
from target.scsi.reservation_data import encode_transport_id
from target.scsi.reservations import Reservations
from target.volume import Request, VolumeError
from tests.unit.scsi.initiator import Initiator, data_of, sense_of
from tests.unit.scsi.memory_volume import MemoryVolume

KEYS, RESERVATION, CAPABILITIES, FULL_STATUS = range(4)
REGISTER, RESERVE, RELEASE, CLEAR, PREEMPT, PREEMPT_AND_ABORT, REGISTER_AND_IGNORE, MOVE = range(8)
APTPL = 0x01

NAMES = [f"iqn.2024-01.example:host{number},i,0x00023d00000{number}" for number in range(3)]


class Store:
    """A `ReservationStore` in memory; with `failing` nothing becomes durable, with `hold` not yet."""

    def __init__(self) -> None:
        self.saved = Reservations()
        self.saves = 0
        self.failing = False
        self.held: list[tuple[Reservations, Request]] | None = None

    def load(self) -> Reservations:
        return self.saved

    def save(self, state: Reservations, request: Request) -> None:
        self.saves += 1
        if self.held is not None:
            self.held.append((state, request))
        elif self.failing:
            request.failed(VolumeError.WRITE_FAILED)
        else:
            self.saved = state
            request.done()


class Hosts:
    """Three initiators of one logical unit."""

    def __init__(self, store: Store | None = None) -> None:
        self.store = store or Store()
        self.volume = MemoryVolume()
        self.unit = LogicalUnit(self.volume, reservation_store=self.store)
        self.device = Device({0: self.unit})
        self.hosts = [Initiator(self.volume, device=self.device, name=name) for name in NAMES]

    def __iter__(self) -> Iterator[Initiator]:
        return iter(self.hosts)

    def restarted(self) -> Hosts:
        return Hosts(self.store)


def out(
    host: Initiator, action: int, key: int = 0, new: int = 0, *, kind: int = 0, flags: int = 0
) -> ScsiResult:
    """A PERSISTENT RESERVE OUT."""
    data = struct.pack(">QQ4xB3x", key, new, flags)
    return host.execute(cdb.persistent_reserve_out(action, kind=kind), data)


def read_in(host: Initiator, action: int) -> bytes:
    return data_of(host.execute(cdb.persistent_reserve_in(action)))


def keys(host: Initiator) -> list[int]:
    data = read_in(host, KEYS)
    assert len(data) == 8 + int.from_bytes(data[4:8], "big")
    return [each for (each,) in struct.iter_unpack(">Q", data[8:])]


def reservation(host: Initiator) -> tuple[int, int] | None:
    """(key, scope and type)."""
    data = read_in(host, RESERVATION)
    if len(data) == 8:
        return None
    assert int.from_bytes(data[4:8], "big") == 16
    return int.from_bytes(data[8:16], "big"), data[21]


def attention(host: Initiator) -> sense.Sense | None:
    result = host.execute(cdb.test_unit_ready())
    return None if result is GOOD else sense_of(result)


def move(host: Initiator, key: int, new: int, to: str, *, unreg: bool = False, port: int = 1) -> ScsiResult:
    transport_id = encode_transport_id(to)
    data = struct.pack(">QQxBHI", key, new, 0x02 if unreg else 0, port, len(transport_id)) + transport_id
    return host.execute(cdb.persistent_reserve_out(MOVE, len(data)), data)
