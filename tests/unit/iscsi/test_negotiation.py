"""The key table: each rule gives what RFC 7143 section 13 says, whatever is offered."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from target.iscsi.negotiation import (
    KEYS,
    MAX_RECV_DATA_SEGMENT_LENGTH,
    Parameters,
    Rule,
    accept,
    answer,
)
from target.iscsi.pdu import ProtocolError


def negotiated(name: str, offer: str, discovery: bool = False) -> tuple[object, str | None]:
    parameters, reply = answer(Parameters(), name, offer, discovery)
    return getattr(parameters, KEYS[name].field), reply


@dataclass(frozen=True, slots=True)
class Row:
    """One key as RFC 7143 section 13 has it. `legal`: offer -> (result, answer)."""

    name: str
    rule: Rule
    default: object
    current: str
    legal: dict[str, tuple[object, str | None]]
    illegal: tuple[str, ...]
    in_discovery: bool = False


NOT_NUMBERS = ("", "x", "-1", "+5", "1 ", "0x", "0xg", "1_000", "1e3", "\u0663", "9" * 5000, "None", "Yes")
NOT_BOOLEANS = ("yes", "NO", "", "1", "True", "Yes,No", "None")


def numbers(low: int, high: int) -> tuple[str, ...]:
    """What is not in the range, beside what is no number."""
    below = (str(low - 1),) if low else ()
    return (*below, str(high + 1), hex(high + 1), str(1 << 64), *NOT_NUMBERS)


ROWS = [
    *(
        Row(
            name,
            Rule.LIST,
            False,
            "None",
            {
                "None": (False, "None"),
                "CRC32C": (True, "CRC32C"),
                "CRC32C,None": (True, "CRC32C"),
                "None,CRC32C": (False, "None"),
                "X-private,CRC32C": (True, "CRC32C"),
            },
            ("MD5", "", "crc32c", "CRC32C;None", "none", " None"),
            in_discovery=True,
        )
        for name in ("HeaderDigest", "DataDigest")
    ),
    Row(
        "MaxConnections", Rule.MINIMUM, 1, "1",
        {"1": (1, "1"), "8": (1, "1"), "65535": (1, "1"), "0x10": (1, "1")}, numbers(1, 65535),
    ),
    Row("InitialR2T", Rule.OR, True, "Yes", {"No": (False, "No"), "Yes": (True, "Yes")}, NOT_BOOLEANS),
    Row("ImmediateData", Rule.AND, True, "Yes", {"No": (False, "No"), "Yes": (True, "Yes")}, NOT_BOOLEANS),
    Row(
        "MaxRecvDataSegmentLength", Rule.DECLARED, 8192, "262144",
        {"512": (512, None), "65536": (65536, None), "16777215": (0xFFFFFF, None), "0x400": (1024, None)},
        numbers(512, 0xFFFFFF), in_discovery=True,
    ),
    Row(
        "MaxBurstLength", Rule.MINIMUM, 262144, "262144",
        {"512": (512, "512"), "262144": (262144, "262144"), "16777215": (1 << 20, "1048576")},
        numbers(512, 0xFFFFFF),
    ),
    Row(
        "FirstBurstLength", Rule.MINIMUM, 65536, "65536",
        {"512": (512, "512"), "0x10000": (65536, "65536"), "16777215": (262144, "262144")},
        numbers(512, 0xFFFFFF),
    ),
    Row(
        "DefaultTime2Wait", Rule.MAXIMUM, 2, "2",
        {"0": (0, "0"), "5": (5, "5"), "3600": (3600, "3600")}, numbers(0, 3600), in_discovery=True,
    ),
    Row(
        "DefaultTime2Retain", Rule.MINIMUM, 20, "20",
        {"0": (0, "0"), "20": (0, "0"), "3600": (0, "0")}, numbers(0, 3600), in_discovery=True,
    ),
    Row(
        "MaxOutstandingR2T", Rule.MINIMUM, 1, "1",
        {"1": (1, "1"), "16": (16, "16"), "65535": (16, "16")}, numbers(1, 65535),
    ),
    *(
        Row(name, Rule.OR, True, "Yes", {"No": (True, "Yes"), "Yes": (True, "Yes")}, NOT_BOOLEANS)
        for name in ("DataPDUInOrder", "DataSequenceInOrder")
    ),
    Row(
        "ErrorRecoveryLevel", Rule.MINIMUM, 0, "0",
        {"0": (0, "0"), "1": (0, "0"), "2": (0, "0")}, numbers(0, 2), in_discovery=True,
    ),
    Row(
        "TaskReporting", Rule.LIST, "RFC3720", "RFC3720",
        {"RFC3720": ("RFC3720", "RFC3720"), "FastAbort,ResponseFence,RFC3720": ("RFC3720", "RFC3720")},
        ("FastAbort", "", "rfc3720"),
    ),
    Row(
        "iSCSIProtocolLevel", Rule.MINIMUM, 1, "1",
        {"0": (0, "0"), "1": (1, "1"), "2": (1, "1"), "31": (1, "1")}, numbers(0, 31),
    ),
]  # fmt: skip
OFFERS = [(row, offer) for row in ROWS for offer in row.legal]
NO_OFFERS = [(row, offer) for row in ROWS for offer in row.illegal]


def test_the_table_has_every_key_that_is_negotiated() -> None:
    assert {row.name for row in ROWS} == {name for name, key in KEYS.items() if key.field}
    assert len(ROWS) == len({row.name for row in ROWS})


def test_the_table_has_every_parameter() -> None:
    assert {KEYS[row.name].field for row in ROWS} == {field.name for field in fields(Parameters)}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_rule_and_default(row: Row) -> None:
    key = KEYS[row.name]
    assert key.rule is row.rule
    assert getattr(Parameters(), key.field) == row.default


@pytest.mark.parametrize(("row", "offer"), OFFERS, ids=[f"{row.name}={offer}" for row, offer in OFFERS])
def test_a_legal_offer(row: Row, offer: str) -> None:
    assert negotiated(row.name, offer) == row.legal[offer]
    reply = row.legal[offer][1]
    if reply is not None:
        ours, _ = answer(Parameters(), row.name, offer, discovery=False)
        assert accept(Parameters(), row.name, reply) == ours, "both sides arrive at the same"


@pytest.mark.parametrize(
    ("row", "offer"), NO_OFFERS, ids=[f"{row.name}={offer[:20]!r}" for row, offer in NO_OFFERS]
)
def test_an_illegal_offer_is_rejected_and_changes_nothing(row: Row, offer: str) -> None:
    assert negotiated(row.name, offer) == (row.default, "Reject")


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_an_inquiry_tells_what_is_in_force_and_changes_nothing(row: Row) -> None:
    assert negotiated(row.name, "?") == (row.default, row.current)
    for offer, (result, reply) in row.legal.items():
        parameters, _ = answer(Parameters(), row.name, offer, discovery=False)
        again, told = answer(parameters, row.name, "?", discovery=False)
        assert getattr(again, KEYS[row.name].field) == result
        assert told == (reply if reply is not None else row.current)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_in_discovery_what_concerns_commands_is_irrelevant(row: Row) -> None:
    for offer, (result, reply) in row.legal.items():
        expected = (result, reply) if row.in_discovery else (row.default, "Irrelevant")
        assert negotiated(row.name, offer, discovery=True) == expected


@pytest.mark.parametrize(
    ("name", "reply"),
    [
        ("X-com.example.key", "NotUnderstood"),
        ("headerdigest", "NotUnderstood"),
        ("IFMarker", "No"),
        ("OFMarker", "No"),
        ("IFMarkInt", "Reject"),
        ("OFMarkInt", "Reject"),
    ],
)
def test_other_keys_are_answered_and_change_nothing(name: str, reply: str) -> None:
    """Obsolete ones are refused, but understood (RFC 7143 13.25)."""
    assert answer(Parameters(), name, "1", discovery=False) == (Parameters(), reply)
    assert answer(Parameters(), name, "?", discovery=False) == (Parameters(), reply)


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
    [
        ("HeaderDigest", "MD5"),
        ("TaskReporting", "FastAbort"),
        ("InitialR2T", "Maybe"),
        ("MaxBurstLength", "3"),
        ("MaxBurstLength", "Reject"),
    ],
)
def test_an_initiator_refuses_answers_that_make_no_sense(name: str, value: str) -> None:
    with pytest.raises(ProtocolError, match=name):
        accept(Parameters(), name, value)


def documented_row(name: str) -> str:
    """As docs/iscsi-support.md tells a key; notes may follow."""
    key = KEYS[name]
    rule = {Rule.AND: "AND", Rule.OR: "OR"}.get(key.rule, key.rule.name.lower())
    default = answer(Parameters(), name, "?", discovery=False)[1]
    if isinstance(key.ours, tuple):
        return f"| {name} | {rule} | {', '.join(key.ours)} | {default} | the initiator's first choice |"
    if isinstance(key.ours, bool):
        return f"| {name} | {rule} | Yes, No | {default} | {'Yes' if key.ours else 'No'} |"
    ours = key.ours
    if key.rule is Rule.DECLARED:
        default, ours = str(getattr(Parameters(), key.field)), MAX_RECV_DATA_SEGMENT_LENGTH
    return f"| {name} | {rule} | {key.low} to {key.high} | {default} | {ours}"


def test_the_documented_keys_are_those_of_the_table() -> None:
    text = (Path(__file__).resolve().parents[3] / "docs" / "iscsi-support.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| ")][1:]
    negotiated_keys = [name for name, key in KEYS.items() if key.field]
    assert len([row for row in rows if row.split(" | ")[0][2:] in KEYS]) == len(negotiated_keys)
    for name in negotiated_keys:
        assert any(row.startswith(documented_row(name)) for row in rows), documented_row(name)
