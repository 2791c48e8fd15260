"""Sense data survive both formats, whole or cut, and say in words what they mean."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from target.errors import PeerError
from target.scsi import sense
from target.scsi.sense import FieldPointer, Sense, SenseKey, decode_sense
from target.volume import VolumeError

field_pointers = st.builds(
    FieldPointer,
    byte=st.integers(0, 0xFFFF),
    bit=st.none() | st.integers(0, 7),
    in_cdb=st.booleans(),
)
codes = st.integers(0, 0xFF)


def senses(information_max: int) -> st.SearchStrategy[Sense]:
    information = st.none() | st.integers(0, information_max)
    plain = st.builds(
        Sense, st.sampled_from(SenseKey), codes, codes, information, st.none(), deferred=st.booleans()
    )
    pointing = st.builds(
        Sense, st.just(SenseKey.ILLEGAL_REQUEST), codes, codes, information, field_pointers, st.booleans()
    )
    return plain | pointing


@given(senses(0xFFFFFFFF))
def test_fixed_format_round_trip(value: Sense) -> None:
    encoded = value.encode_fixed()
    assert len(encoded) == 18
    assert decode_sense(encoded) == value


@given(senses((1 << 64) - 1))
def test_descriptor_format_round_trip(value: Sense) -> None:
    encoded = value.encode_descriptor()
    assert encoded[7] == len(encoded) - 8
    assert decode_sense(encoded) == value


def test_fixed_format_bytes() -> None:
    assert sense.invalid_field_in_cdb(2, 5).encode_fixed() == bytes.fromhex(
        "70 00 05 00000000 0a 00000000 24 00 00 cd 0002"
    )
    assert sense.lba_out_of_range(0x1234).encode_fixed() == bytes.fromhex(
        "f0 00 05 00001234 0a 00000000 21 00 00 00 0000"
    )


def test_descriptor_format_bytes() -> None:
    assert sense.lba_out_of_range(0x1234).encode_descriptor() == bytes.fromhex(
        "72 05 21 00 000000 0c 00 0a 80 00 0000000000001234"
    )
    assert sense.invalid_field_in_parameter_list(8).encode_descriptor() == bytes.fromhex(
        "72 05 26 00 000000 08 02 06 0000 80 0008 00"
    )


def test_fixed_format_leaves_out_an_information_that_does_not_fit() -> None:
    encoded = sense.lba_out_of_range(1 << 32).encode_fixed()
    assert encoded[0] == 0x70
    assert decode_sense(encoded).information is None


@given(senses(0xFFFFFFFF), st.integers(1, 30), st.booleans())
def test_cut_off_sense_keeps_what_came(value: Sense, length: int, fixed: bool) -> None:
    encoded = value.encode_fixed() if fixed else value.encode_descriptor()
    got = decode_sense(encoded[:length])
    if length >= (14 if fixed else 4):
        assert (got.key, got.asc, got.ascq) == (value.key, value.asc, value.ascq)


@given(st.binary(max_size=64))
def test_garbage_is_a_peer_error_or_a_sense(data: bytes) -> None:
    try:
        decoded = decode_sense(data)
    except PeerError:
        assert not data or data[0] & 0x7F not in (0x70, 0x71, 0x72, 0x73)
    else:
        assert str(decoded)


def test_unknown_descriptors_are_passed_over() -> None:
    raw = bytes.fromhex("72 03 11 00 000000 12 01 04 00000000 00 0a 80 00 0000000000000007")
    assert decode_sense(raw) == Sense(SenseKey.MEDIUM_ERROR, 0x11, 0x00, information=7)


@pytest.mark.parametrize(
    ("error", "key", "asc", "ascq"),
    [
        (VolumeError.WRITE_PROTECTED, SenseKey.DATA_PROTECT, 0x27, 0x00),
        (VolumeError.READ_FAILED, SenseKey.MEDIUM_ERROR, 0x11, 0x00),
        (VolumeError.WRITE_FAILED, SenseKey.MEDIUM_ERROR, 0x0C, 0x00),
        (VolumeError.NO_SPACE, SenseKey.DATA_PROTECT, 0x27, 0x07),
        (VolumeError.NOT_READY, SenseKey.NOT_READY, 0x04, 0x01),
        (VolumeError.ABORTED, SenseKey.ABORTED_COMMAND, 0x00, 0x00),
    ],
)
def test_volume_errors_have_their_sense(error: VolumeError, key: SenseKey, asc: int, ascq: int) -> None:
    assert sense.sense_of_volume_error(error) == Sense(key, asc, ascq)


def test_every_volume_error_has_sense() -> None:
    assert len({sense.sense_of_volume_error(error) for error in VolumeError}) == len(VolumeError)


def test_text_says_key_meaning_and_place() -> None:
    assert str(sense.WRITE_PROTECTED) == "DATA PROTECT: write protected"
    assert str(sense.invalid_field_in_cdb(2, 5)) == "ILLEGAL REQUEST: invalid field in CDB, CDB byte 2 bit 5"
    assert "information 99" in str(sense.lba_out_of_range(99))
    assert str(Sense(SenseKey.HARDWARE_ERROR, 0xAB, 0xCD)) == (
        "HARDWARE ERROR: additional sense code ABh/CDh"
    )


def test_every_named_sense_has_words() -> None:
    named = [value for value in vars(sense).values() if isinstance(value, Sense)]
    assert named
    assert not [str(value) for value in named if "additional sense code" in str(value)]
