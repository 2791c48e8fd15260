"""Text segments: pairs survive, split as they may be; garbage gives the declared error."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from target.iscsi.pdu import ProtocolError
from target.iscsi.text import (
    TEXT_BYTES_MAX,
    Pairs,
    TextCollector,
    decode_binary,
    decode_text,
    encode_binary,
    encode_text,
    parse_number,
)

KEYS = st.text(st.characters(codec="ascii", exclude_characters="=\0"), min_size=1, max_size=63)
VALUES = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=100)


@given(st.lists(st.tuples(KEYS, VALUES), max_size=10), st.data())
def test_pairs_survive_any_split_over_pdus(pairs: Pairs, data: st.DataObject) -> None:
    raw = encode_text(pairs)
    cut = data.draw(st.integers(0, len(raw)))
    collector = TextCollector()
    assert collector.add(raw[:cut], continues=True) is None
    assert collector.add(raw[cut:], continues=False) == pairs
    assert collector.add(b"", continues=False) == []


@given(st.binary(max_size=200))
def test_garbage_gives_the_declared_error(raw: bytes) -> None:
    try:
        pairs = decode_text(raw)
    except ProtocolError:
        return
    assert decode_text(encode_text(pairs)) == pairs


@pytest.mark.parametrize("raw", [b"NoEquals\0", b"=value\0", b"k" * 64 + b"=1\0", b"\xff\xfe=1\0"])
def test_what_is_no_pair_is_refused(raw: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode_text(raw)


def test_an_exchange_is_bounded() -> None:
    collector = TextCollector()
    part = b"x=" + b"1" * 8000 + b"\0"
    for _ in range(TEXT_BYTES_MAX // len(part)):
        collector.add(part, continues=True)
    with pytest.raises(ProtocolError, match=str(TEXT_BYTES_MAX)):
        collector.add(part, continues=True)


@given(st.binary(max_size=100))
def test_binary_values_in_both_notations(value: bytes) -> None:
    assert decode_binary(encode_binary(value)) == value
    assert decode_binary("0b" + base64.b64encode(value).decode()) == value


@pytest.mark.parametrize("value", ["", "12", "0xzz", "0x1 2", "0x\u0663", "0b!", "0babc", "0b\u00e9"])
def test_malformed_binary_values_are_refused(value: str) -> None:
    with pytest.raises(ProtocolError):
        decode_binary(value)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("0", 0),
        ("262144", 262144),
        ("0x40", 64),
        ("0X40", 64),
        ("", None),
        ("-1", None),
        ("0xq", None),
        ("1_0", None),
        ("\u0663", None),
        ("9" * 5000, None),
    ],
)
def test_numbers(text: str, number: int | None) -> None:
    assert parse_number(text) == number
