"""Persistent reservations that outlive a restart, and any order of service actions."""

from __future__ import annotations

import struct

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from target.scsi import cdb, sense
from target.scsi.command import GOOD
from target.scsi.reservations import RESERVATION_CONFLICT, Reservations, Type
from tests.unit.scsi.initiator import Initiator, sense_of
from tests.unit.scsi.reservation_hosts import (
    APTPL,
    CAPABILITIES,
    MOVE,
    NAMES,
    PREEMPT,
    PREEMPT_AND_ABORT,
    REGISTER,
    REGISTER_AND_IGNORE,
    RELEASE,
    RESERVE,
    Hosts,
    keys,
    move,
    out,
    read_in,
    reservation,
)


@pytest.fixture
def hosts() -> Hosts:
    return Hosts()


# Outliving a restart


def test_aptpl_outlives_a_restart(hosts: Hosts) -> None:
    host, *_ = hosts
    assert out(host, REGISTER, 0, 1, flags=APTPL) is GOOD
    assert out(host, RESERVE, 1, kind=Type.WRITE_EXCLUSIVE) is GOOD
    host, other, _ = hosts.restarted()
    assert reservation(host) == (1, Type.WRITE_EXCLUSIVE)
    assert read_in(host, CAPABILITIES)[3] & 0x01
    assert other.execute(cdb.write(0, 1), bytes(512)) is RESERVATION_CONFLICT
    assert out(host, RELEASE, 1, kind=Type.WRITE_EXCLUSIVE) is GOOD
    host, *_ = hosts.restarted()
    assert reservation(host) is None
    assert keys(host) == [1]


def test_without_aptpl_nothing_outlives_a_restart(hosts: Hosts) -> None:
    host, *_ = hosts
    assert out(host, REGISTER, 0, 1, flags=APTPL) is GOOD
    assert out(host, REGISTER_AND_IGNORE, 0, 1) is GOOD
    assert out(host, RESERVE, 1, kind=Type.WRITE_EXCLUSIVE) is GOOD
    host, *_ = hosts.restarted()
    assert keys(host) == []
    assert hosts.store.saves == 2, "a reservation that need not outlive a restart is not saved"


def test_aptpl_without_a_place_to_save_is_refused() -> None:
    result = out(Initiator(), REGISTER, 0, 1, flags=APTPL)
    assert sense_of(result) == sense.invalid_field_in_parameter_list(20, 0)


def test_what_could_not_be_saved_does_not_take_effect(hosts: Hosts) -> None:
    host, other, _ = hosts
    hosts.store.failing = True
    assert sense_of(out(host, REGISTER, 0, 1, flags=APTPL)) == sense.WRITE_ERROR
    assert keys(host) == []
    hosts.store.failing = False
    assert out(other, REGISTER, 0, 2, flags=APTPL) is GOOD
    assert keys(host) == [2]


def test_changes_are_made_one_at_a_time(hosts: Hosts) -> None:
    """The second is decided by what the first has made of the state, however long that takes to save."""
    first, second, _ = hosts
    for number, host in enumerate((first, second)):
        assert out(host, REGISTER, 0, number + 1, flags=APTPL) is GOOD
    hosts.store.held = []
    commands = [
        host.submit(
            cdb.persistent_reserve_out(RESERVE, kind=Type.WRITE_EXCLUSIVE), struct.pack(">QQ8x", key, 0)
        )
        for host, key in ((first, 1), (second, 2))
    ]
    assert [command.results for command in commands] == [[], []]
    state, request = hosts.store.held.pop()
    assert state.holder == first.nexus
    assert reservation(first) is None, "not before it is durable"
    request.done()
    assert commands[0].result is GOOD
    assert commands[1].result is RESERVATION_CONFLICT


# Any order of service actions


class AnyOrder(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.hosts = Hosts()

    @rule(
        host=st.integers(0, 2),
        action=st.integers(0, 7),
        key=st.integers(0, 3),
        new=st.integers(0, 3),
        kind=st.sampled_from(Type),
        flags=st.sampled_from([0, APTPL]),
    )
    def service_action(self, host: int, action: int, key: int, new: int, kind: Type, flags: int) -> None:
        if action == MOVE:
            move(self.hosts.hosts[host], key, new, NAMES[(host + 1) % 3])
        else:
            typed = action in (RESERVE, RELEASE, PREEMPT, PREEMPT_AND_ABORT)
            out(self.hosts.hosts[host], action, key, new, kind=kind if typed else 0, flags=flags)

    @rule()
    def restart(self) -> None:
        before = self.hosts.unit.reservations
        self.hosts = self.hosts.restarted()
        after = self.hosts.unit.reservations
        if before.persists:
            assert (after.keys, after.type, after.holder) == (before.keys, before.type, before.holder)
        else:
            assert after == Reservations()

    @invariant()
    def the_holder_is_registered(self) -> None:
        state = self.hosts.unit.reservations
        assert 0 not in state.keys.values()
        if state.type is None:
            assert state.holder is None
        else:
            assert state.keys
            assert any(state.holds(nexus) for nexus in state.keys)


TestAnyOrder = AnyOrder.TestCase
