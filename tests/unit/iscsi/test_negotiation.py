"""The key table: each rule gives what RFC 7143 section 13 says, whatever is offered."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from target.iscsi.negotiation import KEYS, Parameters, Rule, accept, answer
from target.iscsi.pdu import ProtocolError


def negotiated(name: str, offer: str, discovery: bool = False) -> tuple[object, str | None]:
    parameters, reply = answer(Parameters(), name, offer, discovery)
    return getattr(parameters, KEYS[name].field), reply


@pytest.mark.parametrize(
    ("name", "offer", "value", "reply"),
    [
        ("HeaderDigest", "None", False, "None"),
        ("HeaderDigest", "CRC32C,None", True, "CRC32C"),
        ("HeaderDigest", "None,CRC32C", False, "None"),
        ("DataDigest", "Private,CRC32C", True, "CRC32C"),
        ("DataDigest", "Private", False, "Reject"),
        ("InitialR2T", "No", False, "No"),
        ("InitialR2T", "Yes", True, "Yes"),
        ("InitialR2T", "yes", True, "Reject"),
        ("ImmediateData", "Yes", True, "Yes"),
        ("ImmediateData", "No", False, "No"),
        ("MaxBurstLength", "262144", 262144, "262144"),
        ("MaxBurstLength", "16776192", 1 << 20, "1048576"),
        ("MaxBurstLength", "511", 262144, "Reject"),
        ("FirstBurstLength", "0x10000", 65536, "65536"),
        ("MaxOutstandingR2T", "1", 1, "1"),
        ("MaxConnections", "8", 1, "1"),
        ("ErrorRecoveryLevel", "2", 0, "0"),
        ("DefaultTime2Wait", "5", 5, "5"),
        ("DefaultTime2Retain", "20", 0, "0"),
        ("DataPDUInOrder", "No", True, "Yes"),
        ("DataSequenceInOrder", "No", True, "Yes"),
        ("MaxRecvDataSegmentLength", "65536", 65536, None),
    ],
)
def test_answer(name: str, offer: str, value: object, reply: str | None) -> None:
    assert negotiated(name, offer) == (value, reply)


@pytest.mark.parametrize(
    ("name", "reply"),
    [("X-com.example.key", "NotUnderstood"), ("OFMarker", "No"), ("IFMarkInt", "Irrelevant")],
)
def test_other_keys_are_answered_and_change_nothing(name: str, reply: str) -> None:
    assert answer(Parameters(), name, "1", discovery=False) == (Parameters(), reply)


def test_keys_of_normal_sessions_are_irrelevant_in_discovery() -> None:
    assert negotiated("MaxBurstLength", "1000", discovery=True) == (262144, "Irrelevant")
    assert negotiated("HeaderDigest", "CRC32C", discovery=True) == (True, "CRC32C")


@given(st.sampled_from(sorted(KEYS)), st.text(max_size=20))
def test_any_offer_is_answered_without_an_error(name: str, offer: str) -> None:
    parameters, reply = answer(Parameters(), name, offer, discovery=False)
    if reply == "Reject":
        assert parameters == Parameters()


@given(st.integers(512, 0xFFFFFF), st.sampled_from(["MaxBurstLength", "FirstBurstLength"]))
def test_both_sides_arrive_at_the_same_number(offer: int, name: str) -> None:
    ours, reply = answer(Parameters(), name, str(offer), discovery=False)
    assert reply is not None
    assert KEYS[name].rule is Rule.MINIMUM
    assert accept(Parameters(), name, reply) == ours
    assert int(reply) <= offer


@pytest.mark.parametrize(
    ("name", "value"),
    [("HeaderDigest", "MD5"), ("InitialR2T", "Maybe"), ("MaxBurstLength", "3"), ("MaxBurstLength", "Reject")],
)
def test_an_initiator_refuses_answers_that_make_no_sense(name: str, value: str) -> None:
    with pytest.raises(ProtocolError, match=name):
        accept(Parameters(), name, value)
