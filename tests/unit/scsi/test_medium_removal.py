"""A removable unit: ejecting, loading, and who prevents it."""

from __future__ import annotations

import pytest

from target.scsi import cdb, sense
from target.scsi.cdb import Opcode
from target.scsi.command import GOOD, ScsiResult
from target.scsi.device_server import Device
from target.scsi.inquiry import Limits
from target.scsi.logical_unit import LogicalUnit
from target.scsi.operations import OPERATIONS
from target.scsi.sense import decode_sense
from tests.unit.scsi.initiator import Initiator, data_of, sense_of
from tests.unit.scsi.memory_volume import MemoryVolume

START, LOEJ = 0x01, 0x02


def start_stop(host: Initiator, flags: int) -> ScsiResult:
    return host.execute(bytes((Opcode.START_STOP_UNIT, 0, 0, 0, flags, 0)))


def prevent(host: Initiator, on: bool) -> ScsiResult:
    return host.execute(bytes((Opcode.PREVENT_ALLOW_MEDIUM_REMOVAL, 0, 0, 0, on, 0)))


def hosts() -> tuple[Initiator, Initiator]:
    volume = MemoryVolume()
    device = Device({0: LogicalUnit(volume, Limits(), removable=True)})
    first = Initiator(volume, device=device)
    return first, Initiator(volume, device=device, name="iqn.2024-01.example:other")


def test_it_says_that_it_is_removable() -> None:
    host, _ = hosts()
    assert data_of(host.execute(cdb.inquiry()))[1] == 0x80
    assert data_of(Initiator().execute(cdb.inquiry()))[1] == 0


def test_without_a_medium_only_what_needs_none_is_executed() -> None:
    host, other = hosts()
    assert other.execute(cdb.write(0, 1), b"x" * 512) is GOOD
    assert start_stop(host, LOEJ) is GOOD
    assert host.volume.names()[-1] == "flush"
    before = len(host.volume.calls)
    for operation in OPERATIONS:
        if operation.handler is None:
            continue
        built = bytes((operation.opcode, operation.service_action or 0)).ljust(16, b"\0")
        result = other.execute(built)
        refused = result.sense == sense.MEDIUM_NOT_PRESENT
        assert refused == operation.needs_medium, operation
    assert len(host.volume.calls) == before
    assert decode_sense(data_of(other.execute(cdb.request_sense()))) == sense.MEDIUM_NOT_PRESENT
    assert start_stop(host, LOEJ | START) is GOOD
    assert data_of(host.execute(cdb.read(0, 1))) == b"x" * 512, "it holds what it held"


def test_others_are_told_that_a_medium_was_loaded() -> None:
    host, other = hosts()
    for flags in (LOEJ, LOEJ | START):
        assert start_stop(host, flags) is GOOD
    assert host.execute(cdb.test_unit_ready()) is GOOD
    assert sense_of(other.execute(cdb.test_unit_ready())) == sense.MEDIUM_MAY_HAVE_CHANGED
    assert other.execute(cdb.test_unit_ready()) is GOOD


@pytest.mark.parametrize("end", ["allow", "logout", "reset"])
def test_one_that_prevents_removal_prevents_it_for_all(end: str) -> None:
    host, other = hosts()
    assert prevent(host, True) is GOOD
    for each in (host, other):
        assert sense_of(start_stop(each, LOEJ)) == sense.MEDIUM_REMOVAL_PREVENTED
    assert prevent(other, False) is GOOD
    assert sense_of(start_stop(other, LOEJ)) == sense.MEDIUM_REMOVAL_PREVENTED
    if end == "allow":
        assert prevent(host, False) is GOOD
    elif end == "logout":
        host.device.nexus_lost(host.nexus)
    else:
        host.device.reset(0)
        sense_of(other.execute(cdb.test_unit_ready()))
    assert start_stop(other, LOEJ) is GOOD


@pytest.mark.parametrize("flags", [0x10, 0x12, 0x13, 0x70, 0xF2])
def test_power_conditions_change_nothing(flags: int) -> None:
    host, other = hosts()
    assert start_stop(host, flags) is GOOD
    assert other.execute(cdb.test_unit_ready()) is GOOD
    assert host.volume.names() == []


def test_what_is_not_removable_cannot_be_locked() -> None:
    host = Initiator()
    assert sense_of(prevent(host, True)) == sense.invalid_field_in_cdb(4, 1)
    assert prevent(host, False) is GOOD
