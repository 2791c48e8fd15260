"""One JSON object a line, bounded; nothing else."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from target.control.lines import LINE_BYTES_MAX, LineDecoder, encode_line
from target.control.site_file import ByteSize, Name
from target.errors import PeerError

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)
messages = st.lists(st.dictionaries(st.text(), json_values, max_size=4), max_size=5)


@given(messages, st.lists(st.integers(1, 40), min_size=1))
def test_any_cutting_of_the_stream_gives_the_same_messages(
    sent: list[dict[str, Any]], cuts: list[int]
) -> None:
    data = b"".join(map(encode_line, sent))
    decoder = LineDecoder()
    received = []
    position = turn = 0
    while position < len(data):
        size = cuts[turn % len(cuts)]
        received += decoder.feed(data[position : position + size])
        position += size
        turn += 1
    assert received == sent


@given(st.binary(max_size=200))
def test_garbage_gives_the_declared_error_and_nothing_else(data: bytes) -> None:
    try:
        received = LineDecoder().feed(data + b"\n")
    except PeerError:
        return
    assert received == [json.loads(line) for line in data.split(b"\n") if line.strip()]


@pytest.mark.parametrize(
    "line", [b"[]", b"1", b'"x"', b"{", b'{"a":1}{"b":2}', b'{"a":"\xff"}', b"[" * 100_000]
)
def test_what_is_not_an_object_is_refused(line: bytes) -> None:
    with pytest.raises(PeerError, match="not a JSON object"):
        LineDecoder().feed(line + b"\n")


def test_names_and_sizes_of_the_configuration_are_sent_as_what_they_are() -> None:
    message = {"site": Name.parse("a"), "size": ByteSize.parse("1KiB")}
    assert encode_line(message) == b'{"site":"a","size":1024}\n'


def test_a_line_without_end_is_refused_before_it_fills_memory() -> None:
    decoder = LineDecoder()
    assert decoder.feed(b'{"a":"' + b"x" * (LINE_BYTES_MAX - 10)) == []
    with pytest.raises(PeerError, match="longer than"):
        decoder.feed(b"x" * 10)


def test_the_longest_line_passes_and_one_more_byte_does_not() -> None:
    room = LINE_BYTES_MAX - len('{"a":""}\n')
    longest = {"a": "x" * room}
    assert LineDecoder().feed(encode_line(longest)) == [longest]
    with pytest.raises(PeerError, match="was not sent"):
        encode_line({"a": "x" * (room + 1)})
    with pytest.raises(PeerError, match="longer than"):
        LineDecoder().feed(b'{"a":"' + b"x" * (room + 1) + b'"}\n')
