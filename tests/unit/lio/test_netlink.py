"""Messages of the family TCM-USER, as the kernel writes them, and garbage."""

from __future__ import annotations

import struct

from hypothesis import given
from hypothesis import strategies as st

from target.lio.netlink import (
    Command,
    Event,
    Family,
    decode_attributes,
    decode_event,
    decode_family,
    decode_messages,
    encode_attribute,
    encode_message,
)

NAME = encode_attribute(1, b"tcm-user/1/replctl:a:g:data/replctl/00aa\0") + encode_attribute(
    2, (3).to_bytes(4, "little")
)


def body(command: int, attributes: bytes) -> bytes:
    return bytes((command, 2, 0, 0)) + attributes


def test_a_new_size_is_told() -> None:
    event = decode_event(body(3, NAME + encode_attribute(5, (1 << 30).to_bytes(8, "little"))))
    assert event == Event(Command.RECONFIGURED, "replctl:a:g:data", 3, 1 << 30, None)


def test_the_write_cache_is_told() -> None:
    event = decode_event(body(3, NAME + encode_attribute(6, b"\0")))
    assert event == Event(Command.RECONFIGURED, "replctl:a:g:data", 3, None, False)


def test_other_users_of_the_ring_are_of_no_interest() -> None:
    assert decode_event(body(7, NAME)) is None
    assert decode_event(body(1, encode_attribute(1, b"uio-thing\0"))) is None


def test_several_messages_in_one_buffer() -> None:
    first, second = encode_message(30, 1, NAME), encode_message(30, 2, NAME)
    decoded = [decode_event(each) for kind, each in decode_messages(first + second) if kind == 30]
    assert [event and event.command for event in decoded] == [Command.ADDED, Command.REMOVED]


def test_the_family_is_found_in_the_controllers_answer() -> None:
    group = encode_attribute(1, b"config\0") + encode_attribute(2, struct.pack("<I", 9))
    other = encode_attribute(1, b"other\0") + encode_attribute(2, struct.pack("<I", 8))
    groups = encode_attribute(1, other) + encode_attribute(2, group)
    answer = encode_attribute(1, struct.pack("<H", 31)) + encode_attribute(7 | 0x8000, groups)
    assert decode_family(bytes(4) + answer) == Family(31, 9)
    assert decode_family(bytes(4)) is None


@given(st.binary(max_size=200))
def test_garbage_is_no_message(data: bytes) -> None:
    for _, each in decode_messages(data):
        decode_event(each)
        decode_family(each)
    decode_event(data)
    decode_attributes(data)
