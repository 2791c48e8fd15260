"""LUNs on the wire: written as the standard wants, read in both forms that an initiator may use."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from target.errors import PeerError
from target.scsi.lun import (
    LUN_MAX,
    UNADDRESSABLE_LUN,
    decode_lun,
    decode_report_luns,
    encode_lun,
    encode_report_luns,
)


@given(st.integers(0, LUN_MAX))
def test_round_trip(lun: int) -> None:
    assert decode_lun(encode_lun(lun)) == lun


@pytest.mark.parametrize(
    ("lun", "field"), [(0, "0000"), (1, "0001"), (255, "00ff"), (256, "4100"), (LUN_MAX, "7fff")]
)
def test_known_fields(lun: int, field: str) -> None:
    assert encode_lun(lun) == int(field + "000000000000", 16)


def test_a_small_lun_in_flat_space_form_is_the_same_lun() -> None:
    assert decode_lun(0x4003 << 48) == 3


@pytest.mark.parametrize(
    "field",
    [
        0x0001_0001_0000_0000,  # a second level
        0x0101_0000_0000_0000,  # bus 1
        0x8001_0000_0000_0000,  # logical unit addressing
        0xC101_0000_0000_0000,  # well known logical unit
    ],
)
def test_other_methods_address_nothing_here(field: int) -> None:
    assert decode_lun(field) == UNADDRESSABLE_LUN


@given(st.integers(0, 2**64 - 1))
def test_every_field_is_decoded(field: int) -> None:
    assert UNADDRESSABLE_LUN <= decode_lun(field) <= LUN_MAX


@given(st.sets(st.integers(0, LUN_MAX), max_size=40))
def test_report_luns_round_trip(luns: set[int]) -> None:
    encoded = encode_report_luns(luns)
    assert decode_report_luns(encoded) == (len(encoded), sorted(luns))


def test_a_cut_off_list_says_how_much_there_is() -> None:
    encoded = encode_report_luns(range(10))
    assert decode_report_luns(encoded[:30]) == (88, [0, 1])


def test_a_list_without_header_is_an_error() -> None:
    with pytest.raises(PeerError):
        decode_report_luns(b"\0\0\0\0")
