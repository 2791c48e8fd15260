"""Persistent reservations and RESERVE (6): rules, access, what others are told, what outlives a restart."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from target.scsi import cdb, sense
from target.scsi.cdb import Opcode
from target.scsi.command import GOOD, Nexus, Status
from target.scsi.device_server import Device
from target.scsi.logical_unit import LogicalUnit
from target.scsi.operations import OPERATIONS
from target.scsi.reservation_data import decode_transport_id, encode_transport_id
from target.scsi.reservations import RESERVATION_CONFLICT, Access, Reservations, Type
from target.volume import Request
from tests.unit.scsi.initiator import TARGET_PORT, Initiator, sense_of
from tests.unit.scsi.memory_volume import MemoryVolume
from tests.unit.scsi.reservation_hosts import (
    CAPABILITIES,
    CLEAR,
    FULL_STATUS,
    KEYS,
    NAMES,
    PREEMPT,
    PREEMPT_AND_ABORT,
    REGISTER,
    REGISTER_AND_IGNORE,
    RELEASE,
    RESERVE,
    Hosts,
    attention,
    keys,
    move,
    out,
    read_in,
    reservation,
)


@pytest.fixture
def hosts() -> Hosts:
    return Hosts()


@pytest.fixture
def registered(hosts: Hosts) -> Hosts:
    """Host 0 has key 1, host 1 has key 2, host 2 none."""
    for number, host in enumerate(hosts.hosts[:2]):
        assert out(host, REGISTER, 0, number + 1) is GOOD
    return hosts


# Registering


def test_register_needs_the_key_one_has(hosts: Hosts) -> None:
    host, *_ = hosts
    assert out(host, REGISTER, 9, 1) is RESERVATION_CONFLICT
    assert out(host, REGISTER, 0, 1) is GOOD
    assert out(host, REGISTER, 0, 2) is RESERVATION_CONFLICT
    assert out(host, REGISTER, 1, 2) is GOOD
    assert keys(host) == [2]
    assert out(host, REGISTER_AND_IGNORE, 77, 3) is GOOD
    assert keys(host) == [3]
    assert out(host, REGISTER, 3, 0) is GOOD
    assert keys(host) == []


def test_the_generation_counts_registrations_and_not_reservations(registered: Hosts) -> None:
    host, *_ = registered
    before = int.from_bytes(read_in(host, KEYS)[:4], "big")
    assert out(host, RESERVE, 1, kind=Type.WRITE_EXCLUSIVE) is GOOD
    assert int.from_bytes(read_in(host, KEYS)[:4], "big") == before
    assert out(host, CLEAR, 1) is GOOD
    assert int.from_bytes(read_in(host, KEYS)[:4], "big") == before + 1


@pytest.mark.parametrize("length", [0, 16, 23, 25])
def test_a_parameter_list_of_another_length_is_refused(hosts: Hosts, length: int) -> None:
    host, *_ = hosts
    result = host.execute(cdb.persistent_reserve_out(REGISTER, length), bytes(length))
    assert sense_of(result) == sense.PARAMETER_LIST_LENGTH_ERROR


@pytest.mark.parametrize("kind", [0, 2, 4, 9, 0x11])
def test_other_types_and_scopes_are_refused(registered: Hosts, kind: int) -> None:
    host, *_ = registered
    assert sense_of(out(host, RESERVE, 1, kind=kind)) == sense.invalid_field_in_cdb(2)


def test_registrations_are_bounded() -> None:
    unit = LogicalUnit(MemoryVolume())
    device = Device({0: unit})
    for number in range(1024):
        nexus = Nexus(f"host{number}", TARGET_PORT)
        unit.set_reservations(Reservations({**unit.reservations.keys, nexus: 1}))
    result = out(Initiator(device=device), REGISTER, 0, 1)
    assert sense_of(result) == sense.INSUFFICIENT_REGISTRATION_RESOURCES


# Who may do what


ACCESS = {
    # type: (registered other reads, writes; unregistered other reads, writes)
    Type.WRITE_EXCLUSIVE: (True, False, True, False),
    Type.EXCLUSIVE_ACCESS: (False, False, False, False),
    Type.WRITE_EXCLUSIVE_REGISTRANTS_ONLY: (True, True, True, False),
    Type.EXCLUSIVE_ACCESS_REGISTRANTS_ONLY: (True, True, False, False),
    Type.WRITE_EXCLUSIVE_ALL_REGISTRANTS: (True, True, True, False),
    Type.EXCLUSIVE_ACCESS_ALL_REGISTRANTS: (True, True, False, False),
}


@pytest.mark.parametrize("kind", Type)
def test_access(registered: Hosts, kind: Type) -> None:
    holder, other, stranger = registered
    assert out(holder, RESERVE, 1, kind=kind) is GOOD

    def may(host: Initiator) -> tuple[bool, bool]:
        for _ in range(2):  # the second time on the short way, if at all
            reads = host.execute(cdb.read(0, 1))
            writes = host.execute(cdb.write(0, 1), bytes(512))
            for result in (reads, writes):
                assert result.status in (Status.GOOD, Status.RESERVATION_CONFLICT)
        return reads.status is Status.GOOD, writes.status is Status.GOOD

    assert may(holder) == (True, True)
    assert may(other) + may(stranger) == ACCESS[kind]
    assert out(holder, RELEASE, 1, kind=kind) is GOOD
    attention(other)
    assert may(other) + may(stranger) == (True,) * 4


def test_every_command_has_its_place_in_the_table_of_access(registered: Hosts) -> None:
    """What changes the medium, or the unit for all, is for those whom a reservation admits."""
    holder, _, stranger = registered
    assert out(holder, RESERVE, 1, kind=Type.WRITE_EXCLUSIVE) is GOOD
    for operation in OPERATIONS:
        built = bytes((operation.opcode, operation.service_action or 0)).ljust(16, b"\0")
        refused = stranger.execute(built) is RESERVATION_CONFLICT
        # Some say themselves whether there is a conflict, and one does so only when it prevents.
        if "RESERVE" not in operation.name and operation.opcode != Opcode.PREVENT_ALLOW_MEDIUM_REMOVAL:
            assert refused == (operation.access is Access.HOLDERS), operation
    assert stranger.execute(cdb.start_stop_unit(start=True)) is GOOD
    assert stranger.execute(cdb.start_stop_unit(start=False)) is RESERVATION_CONFLICT
    prevent = bytes((Opcode.PREVENT_ALLOW_MEDIUM_REMOVAL, 0, 0, 0, 1, 0))
    assert stranger.execute(prevent) is RESERVATION_CONFLICT


def test_a_reservation_counts_for_who_was_on_the_short_way(registered: Hosts) -> None:
    holder, other, _ = registered
    assert other.execute(cdb.write(0, 1), bytes(512)) is GOOD
    assert out(holder, RESERVE, 1, kind=Type.EXCLUSIVE_ACCESS) is GOOD
    assert other.execute(cdb.write(0, 1), bytes(512)) is RESERVATION_CONFLICT


# Reserving and releasing


def test_only_one_holds(registered: Hosts) -> None:
    host, other, stranger = registered
    assert out(host, RESERVE, 1, kind=Type.WRITE_EXCLUSIVE) is GOOD
    assert out(host, RESERVE, 1, kind=Type.WRITE_EXCLUSIVE) is GOOD
    assert out(host, RESERVE, 1, kind=Type.EXCLUSIVE_ACCESS) is RESERVATION_CONFLICT
    assert out(other, RESERVE, 2, kind=Type.WRITE_EXCLUSIVE) is RESERVATION_CONFLICT
    assert out(stranger, RESERVE, 0, kind=Type.WRITE_EXCLUSIVE) is RESERVATION_CONFLICT
    assert reservation(stranger) == (1, Type.WRITE_EXCLUSIVE)


def test_release_by_another_does_nothing_and_with_another_type_is_refused(registered: Hosts) -> None:
    host, other, stranger = registered
    assert out(host, RESERVE, 1, kind=Type.WRITE_EXCLUSIVE) is GOOD
    assert out(other, RELEASE, 2, kind=Type.WRITE_EXCLUSIVE) is GOOD
    assert out(stranger, RELEASE, 0, kind=Type.WRITE_EXCLUSIVE) is RESERVATION_CONFLICT
    result = out(host, RELEASE, 1, kind=Type.EXCLUSIVE_ACCESS)
    assert sense_of(result) == sense.INVALID_RELEASE_OF_PERSISTENT_RESERVATION
    assert reservation(host) == (1, Type.WRITE_EXCLUSIVE)


@pytest.mark.parametrize("kind", Type)
def test_other_registrants_are_told_of_a_release(registered: Hosts, kind: Type) -> None:
    host, other, stranger = registered
    assert out(host, RESERVE, 1, kind=kind) is GOOD
    assert out(host, RELEASE, 1, kind=kind) is GOOD
    shared = kind not in (Type.WRITE_EXCLUSIVE, Type.EXCLUSIVE_ACCESS)
    assert attention(other) == (sense.RESERVATIONS_RELEASED if shared else None)
    assert attention(stranger) is None
    assert attention(host) is None


@pytest.mark.parametrize("kind", Type)
def test_a_holder_that_unregisters_takes_the_reservation_along(registered: Hosts, kind: Type) -> None:
    host, other, _ = registered
    assert out(host, RESERVE, 1, kind=kind) is GOOD
    assert out(host, REGISTER, 1, 0) is GOOD
    if kind in (Type.WRITE_EXCLUSIVE_ALL_REGISTRANTS, Type.EXCLUSIVE_ACCESS_ALL_REGISTRANTS):
        assert reservation(other) == (0, kind)
        assert out(other, REGISTER, 2, 0) is GOOD
    attention(other)
    assert reservation(other) is None


def test_clear_removes_everything_and_tells_the_others(registered: Hosts) -> None:
    host, other, _ = registered
    assert out(host, RESERVE, 1, kind=Type.EXCLUSIVE_ACCESS) is GOOD
    assert out(other, CLEAR, 2) is GOOD
    assert attention(host) == sense.RESERVATIONS_PREEMPTED
    assert keys(host) == []
    assert reservation(host) is None


# Preempting


def test_preempt_takes_the_reservation_of_the_key(registered: Hosts) -> None:
    host, other, _ = registered
    assert out(host, RESERVE, 1, kind=Type.WRITE_EXCLUSIVE) is GOOD
    assert out(other, PREEMPT, 2, 1, kind=Type.EXCLUSIVE_ACCESS) is GOOD
    assert attention(host) == sense.REGISTRATIONS_PREEMPTED
    assert reservation(other) == (2, Type.EXCLUSIVE_ACCESS)
    assert keys(other) == [2]
    assert host.execute(cdb.read(0, 1)) is RESERVATION_CONFLICT


def test_preempt_of_another_key_only_removes_registrations(registered: Hosts) -> None:
    host, other, stranger = registered
    assert out(stranger, REGISTER, 0, 2) is GOOD
    assert out(host, RESERVE, 1, kind=Type.WRITE_EXCLUSIVE) is GOOD
    assert out(host, PREEMPT, 1, 2, kind=Type.EXCLUSIVE_ACCESS) is GOOD
    assert [attention(other), attention(stranger)] == [sense.REGISTRATIONS_PREEMPTED] * 2
    assert keys(host) == [1]
    assert reservation(host) == (1, Type.WRITE_EXCLUSIVE)


def test_preempt_of_a_key_nobody_has_is_a_conflict(registered: Hosts) -> None:
    host, other, stranger = registered
    assert out(host, PREEMPT, 1, 99, kind=Type.WRITE_EXCLUSIVE) is RESERVATION_CONFLICT
    assert out(stranger, PREEMPT, 0, 1, kind=Type.WRITE_EXCLUSIVE) is RESERVATION_CONFLICT
    result = out(other, PREEMPT, 2, 0, kind=Type.WRITE_EXCLUSIVE)
    assert sense_of(result) == sense.invalid_field_in_parameter_list(8)


def test_preempt_of_all_registrants_with_key_zero_takes_everything(registered: Hosts) -> None:
    host, other, _ = registered
    assert out(host, RESERVE, 1, kind=Type.WRITE_EXCLUSIVE_ALL_REGISTRANTS) is GOOD
    assert out(other, PREEMPT, 2, 0, kind=Type.EXCLUSIVE_ACCESS) is GOOD
    assert keys(other) == [2]
    assert reservation(other) == (2, Type.EXCLUSIVE_ACCESS)
    assert attention(host) == sense.REGISTRATIONS_PREEMPTED


def test_a_change_of_type_is_told_to_who_stays_registered(registered: Hosts) -> None:
    host, other, third = registered
    assert out(third, REGISTER, 0, 3) is GOOD
    assert out(host, RESERVE, 1, kind=Type.WRITE_EXCLUSIVE_REGISTRANTS_ONLY) is GOOD
    assert out(other, PREEMPT, 2, 1, kind=Type.EXCLUSIVE_ACCESS_REGISTRANTS_ONLY) is GOOD
    assert attention(third) == sense.RESERVATIONS_RELEASED
    assert attention(other) is None


def test_preempt_and_abort_waits_until_the_tasks_are_gone(registered: Hosts) -> None:
    host, other, _ = registered
    asked: list[tuple[int, Nexus, Request]] = []
    registered.device.on_abort(lambda lun, nexus, request: asked.append((lun, nexus, request)))
    assert out(host, RESERVE, 1, kind=Type.WRITE_EXCLUSIVE) is GOOD
    data = struct.pack(">QQ8x", 2, 1)
    command = other.submit(cdb.persistent_reserve_out(PREEMPT_AND_ABORT, kind=Type.WRITE_EXCLUSIVE), data)
    assert [(lun, nexus) for lun, nexus, _ in asked] == [(0, host.nexus)]
    assert command.results == []
    asked[0][2].done()
    assert command.result is GOOD
    assert reservation(other) == (2, Type.WRITE_EXCLUSIVE)


# Moving


def test_a_reservation_moves_to_another_port(registered: Hosts) -> None:
    host, _, third = registered
    assert out(host, RESERVE, 1, kind=Type.EXCLUSIVE_ACCESS) is GOOD
    assert move(host, 1, 7, NAMES[2], unreg=True) is GOOD
    assert keys(third) == [2, 7]
    assert reservation(third) == (7, Type.EXCLUSIVE_ACCESS)
    assert third.execute(cdb.write(0, 1), bytes(512)) is GOOD
    assert host.execute(cdb.write(0, 1), bytes(512)) is RESERVATION_CONFLICT


def test_only_a_holder_moves_and_not_to_itself(registered: Hosts) -> None:
    host, other, _ = registered
    assert move(host, 1, 7, NAMES[2]) is RESERVATION_CONFLICT
    assert out(host, RESERVE, 1, kind=Type.EXCLUSIVE_ACCESS) is GOOD
    assert move(other, 2, 7, NAMES[2]) is RESERVATION_CONFLICT
    assert sense_of(move(host, 1, 0, NAMES[2])) == sense.invalid_field_in_parameter_list(8)
    assert sense_of(move(host, 1, 7, NAMES[0])) == sense.invalid_field_in_parameter_list(24)
    assert sense_of(move(host, 1, 7, NAMES[2], port=2)) == sense.invalid_field_in_parameter_list(18)
    assert sense_of(move(host, 1, 7, "no port")) == sense.invalid_field_in_parameter_list(20)


@given(st.text(max_size=40), st.text("0123456789abcdef", min_size=12, max_size=12))
def test_transport_ids_are_read_as_written(name: str, isid: str) -> None:
    port = f"{name.replace(chr(0), '')},i,0x{isid}"
    encoded = encode_transport_id(port)
    assert len(encoded) % 4 == 0
    assert decode_transport_id(encoded) == port


@given(st.binary(max_size=64))
def test_garbage_is_no_transport_id_or_one_that_is_a_port(data: bytes) -> None:
    name = decode_transport_id(data)
    assert name is None or ",i,0x" in name


# What is read


def test_full_status_names_the_ports(registered: Hosts) -> None:
    host, *_ = registered
    assert out(host, RESERVE, 1, kind=Type.WRITE_EXCLUSIVE) is GOOD
    data = read_in(host, FULL_STATUS)
    assert int.from_bytes(data[4:8], "big") == len(data) - 8
    first = data[8:]
    assert int.from_bytes(first[:8], "big") == 1
    assert first[12:14] == bytes((1, Type.WRITE_EXCLUSIVE))
    assert int.from_bytes(first[18:20], "big") == 1
    length = int.from_bytes(first[20:24], "big")
    assert decode_transport_id(first[24 : 24 + length]) == NAMES[0]
    second = first[24 + length :]
    assert second[12:14] == b"\0\0"


def test_capabilities() -> None:
    host, *_ = Hosts()
    assert read_in(host, CAPABILITIES) == bytes.fromhex("0008 0d b0 ea01 0000")
    without = Initiator()
    assert read_in(without, CAPABILITIES) == bytes.fromhex("0008 0c b0 ea01 0000")


# RESERVE (6)

RESERVE_6, RELEASE_6 = bytes((Opcode.RESERVE_6,)).ljust(6, b"\0"), bytes((Opcode.RELEASE_6,)).ljust(6, b"\0")


def test_reserve_6_keeps_everybody_else_out(hosts: Hosts) -> None:
    host, other, _ = hosts
    assert host.execute(RESERVE_6) is GOOD
    assert host.execute(RESERVE_6) is GOOD
    for built in (RESERVE_6, cdb.test_unit_ready(), cdb.read(0, 1), cdb.persistent_reserve_in(KEYS)):
        assert other.execute(built) is RESERVATION_CONFLICT
    for built in (cdb.inquiry(), cdb.request_sense(), RELEASE_6):
        assert other.execute(built).status is Status.GOOD
    assert host.execute(cdb.write(0, 1), bytes(512)) is GOOD
    assert host.execute(RELEASE_6) is GOOD
    assert other.execute(cdb.read(0, 1)).status is Status.GOOD


def test_reserve_6_ends_with_the_session(hosts: Hosts) -> None:
    host, other, _ = hosts
    assert host.execute(RESERVE_6) is GOOD
    hosts.device.nexus_lost(host.nexus)
    assert other.execute(cdb.test_unit_ready()) is GOOD


def test_reserve_6_ends_with_a_reset(hosts: Hosts) -> None:
    host, other, _ = hosts
    assert host.execute(RESERVE_6) is GOOD
    hosts.device.reset(0)
    assert attention(other) == sense.BUS_DEVICE_RESET_FUNCTION_OCCURRED
    assert other.execute(cdb.test_unit_ready()) is GOOD


def test_reserve_6_and_registrations_exclude_each_other(registered: Hosts) -> None:
    host, *_ = registered
    assert host.execute(RESERVE_6) is RESERVATION_CONFLICT
    assert out(host, CLEAR, 1) is GOOD
    assert host.execute(RESERVE_6) is GOOD
    assert out(host, REGISTER, 0, 1) is RESERVATION_CONFLICT
