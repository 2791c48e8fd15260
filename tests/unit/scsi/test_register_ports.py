"""REGISTER with SPEC_I_PT: one initiator registers others along with itself (SPC-4 5.13.7)."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from target.scsi import cdb, sense
from target.scsi.command import GOOD, ScsiResult
from target.scsi.reservation_commands import REGISTRATIONS_MAX
from target.scsi.reservation_data import decode_initiator_ports, encode_transport_id
from target.scsi.reservations import RESERVATION_CONFLICT, Type
from target.scsi.sense import Sense
from tests.unit.scsi.initiator import Initiator, sense_of
from tests.unit.scsi.reservation_hosts import (
    APTPL,
    NAMES,
    REGISTER,
    REGISTER_AND_IGNORE,
    RESERVE,
    Hosts,
    keys,
    out,
)

SPEC_I_PT = 0x08


@pytest.fixture
def hosts() -> Hosts:
    return Hosts()


def parameter_list(key: int, new: int, transport_ids: bytes, *, flags: int = SPEC_I_PT) -> bytes:
    return struct.pack(">QQ4xB3xI", key, new, flags, len(transport_ids)) + transport_ids


def send(host: Initiator, data: bytes, action: int = REGISTER) -> ScsiResult:
    return host.execute(cdb.persistent_reserve_out(action, len(data)), data)


def register(
    host: Initiator, ports: Sequence[str], *, key: int = 0, new: int = 7, flags: int = 0
) -> ScsiResult:
    ids = b"".join(map(encode_transport_id, ports))
    return send(host, parameter_list(key, new, ids, flags=SPEC_I_PT | flags))


def test_the_others_are_registered_too_and_may_write(hosts: Hosts) -> None:
    host, other, third = hosts
    assert register(host, [NAMES[1]]) is GOOD
    assert set(hosts.unit.reservations.keys) == {host.nexus, other.nexus}
    assert keys(third) == [7, 7]
    assert out(host, RESERVE, 7, kind=Type.WRITE_EXCLUSIVE_REGISTRANTS_ONLY) is GOOD
    assert other.execute(cdb.write(0, 1), bytes(512)) is GOOD
    assert third.execute(cdb.write(0, 1), bytes(512)) is RESERVATION_CONFLICT


def test_a_port_that_was_never_here_is_registered_before_it_comes(hosts: Hosts) -> None:
    host, *_ = hosts
    late = "iqn.2024-01.example:late,i,0x00023d00000a"
    assert register(host, [late.replace("d00000a", "D00000A")]) is GOOD, "an ISID is a number"
    assert out(host, RESERVE, 7, kind=Type.EXCLUSIVE_ACCESS_REGISTRANTS_ONLY) is GOOD
    comes = Initiator(hosts.volume, device=hosts.device, name=late)
    assert comes.execute(cdb.write(0, 1), bytes(512)) is GOOD


def test_a_name_stands_for_its_ports_that_are_known(hosts: Hosts) -> None:
    host, other, third = hosts
    name = NAMES[1].partition(",")[0]
    second = Initiator(hosts.volume, device=hosts.device, name=f"{name},i,0x00023d0000ff")
    assert register(host, [name]) is GOOD
    assert set(hosts.unit.reservations.keys) == {host.nexus, other.nexus, second.nexus}
    refused = register(third, ["iqn.2024-01.example:nobody"])
    assert sense_of(refused) == sense.invalid_field_in_parameter_list(28)
    assert third.nexus not in hosts.unit.reservations.keys, "all or none"


def test_who_is_registered_keeps_its_key(hosts: Hosts) -> None:
    host, other, third = hosts
    assert out(other, REGISTER, 0, 2) is GOOD
    assert register(host, NAMES) is GOOD
    assert hosts.unit.reservations.keys == {host.nexus: 7, other.nexus: 2, third.nexus: 7}
    assert hosts.unit.reservations.generation == 2


def test_only_who_is_not_registered_registers_others(hosts: Hosts) -> None:
    host, *_ = hosts
    assert register(host, [NAMES[1]], key=3) is RESERVATION_CONFLICT
    assert register(host, [NAMES[1]], new=0) is GOOD
    assert keys(host) == []
    assert out(host, REGISTER, 0, 1) is GOOD
    assert register(host, [NAMES[1]], key=2) is RESERVATION_CONFLICT
    for new in (0, 5):
        refused = register(host, [NAMES[1]], key=1, new=new)
        assert sense_of(refused) == sense.invalid_field_in_parameter_list(20, 3)
    assert keys(host) == [1]


@pytest.mark.parametrize("action", [REGISTER_AND_IGNORE, RESERVE])
def test_spec_i_pt_is_refused_with_other_service_actions(hosts: Hosts, action: int) -> None:
    host, *_ = hosts
    result = out(host, action, 0, 1, kind=1 if action == RESERVE else 0, flags=SPEC_I_PT)
    assert sense_of(result) == sense.invalid_field_in_parameter_list(20, 3)


def test_registrations_of_others_outlive_a_restart(hosts: Hosts) -> None:
    host, *_ = hosts
    assert register(host, [NAMES[2]], flags=APTPL) is GOOD
    again = hosts.restarted()
    assert set(again.unit.reservations.keys) == {again.hosts[0].nexus, again.hosts[2].nexus}
    refused = register(Initiator(), [NAMES[2]], flags=APTPL)
    assert sense_of(refused) == sense.invalid_field_in_parameter_list(20, 0), "nowhere to save"


def test_lists_that_lie_are_refused(hosts: Hosts) -> None:
    host, *_ = hosts
    port = encode_transport_id(NAMES[1])
    whole = parameter_list(0, 7, port)
    in_list = sense.invalid_field_in_parameter_list
    cases = [
        (whole[:24], sense.PARAMETER_LIST_LENGTH_ERROR),
        (whole[:-4], in_list(24)),
        (whole + bytes(4), in_list(24)),
        (parameter_list(0, 7, port + port[:8]), in_list(28 + len(port))),
        (parameter_list(0, 7, port + bytes(24)), in_list(28 + len(port))),
        (parameter_list(0, 7, b"\x06" + port[1:]), in_list(28)),  # another protocol
    ]
    for data, expected in cases:
        assert sense_of(send(host, data)) == expected, data.hex()
    cut = host.execute(cdb.persistent_reserve_out(REGISTER, len(whole)), whole[:-4])
    assert sense_of(cut) == sense.PARAMETER_LIST_LENGTH_ERROR
    assert keys(host) == []


def test_no_more_ports_are_named_than_can_be_registered(hosts: Hosts) -> None:
    host, *_ = hosts
    ports = [f"iqn.2024-01.example:h,i,0x{number:012x}" for number in range(REGISTRATIONS_MAX + 1)]
    assert sense_of(register(host, ports)) == sense.INSUFFICIENT_REGISTRATION_RESOURCES
    assert sense_of(register(host, ports[:-1])) == sense.INSUFFICIENT_REGISTRATION_RESOURCES, "and itself"
    assert keys(host) == []
    assert register(host, ports[:-2]) is GOOD
    assert len(hosts.unit.reservations.keys) == REGISTRATIONS_MAX


@given(st.binary(max_size=200))
def test_garbage_names_nobody_or_somebody(data: bytes) -> None:
    found = decode_initiator_ports(parameter_list(0, 1, data), NAMES, 10)
    assert isinstance(found, Sense) or all(",i,0x" in port for port in found)
