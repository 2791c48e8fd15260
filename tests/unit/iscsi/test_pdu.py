"""The PDU codec: every field of every opcode survives, the hot structures are the same bytes, digests are
right.
"""

from __future__ import annotations

from dataclasses import fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from target.iscsi import pdu
from target.iscsi.pdu import (
    BHS_BYTES,
    HOT_DATA_IN,
    HOT_DATA_OUT,
    HOT_SCSI_COMMAND,
    HOT_SCSI_RESPONSE,
    Opcode,
    Pdu,
    ProtocolError,
    decode_ahs,
    encode_ahs,
    frame_bytes,
)
from target.iscsi.requests import DataOut, LoginRequest, ScsiCommandRequest
from target.iscsi.responses import R2T, DataIn, ScsiResponse
from tests.unit.iscsi.wire import PDU_CLASSES

BYTE_FIELDS = {
    "flags",
    "response",
    "status",
    "reason",
    "function",
    "version_max",
    "version_min",
    "version_active",
    "async_event",
    "async_vcode",
}
SHORT_FIELDS = {"tsih", "cid", "time2wait_seconds", "time2retain_seconds"}
LONG_FIELDS = {"lun"}


def value_of(cls: type[Pdu], name: str) -> st.SearchStrategy[object]:
    if name == "isid":
        return st.binary(min_size=6, max_size=6)
    if name == "cdb":
        return st.binary(min_size=16, max_size=16)
    if name == "status" and cls.opcode == Opcode.LOGIN_RESPONSE:
        return st.integers(0, 0xFFFF)
    if name in BYTE_FIELDS:
        return st.integers(0, 0xFF)
    if name in SHORT_FIELDS or name.startswith("parameter"):
        return st.integers(0, 0xFFFF)
    if name in LONG_FIELDS:
        return st.integers(0, 0xFFFFFFFFFFFFFFFF)
    return st.integers(0, 0xFFFFFFFF)


@st.composite
def any_pdu(draw: st.DrawFn) -> Pdu:
    cls = draw(st.sampled_from(sorted(PDU_CLASSES.values(), key=lambda one: one.opcode)))
    return cls(**{field.name: draw(value_of(cls, field.name)) for field in fields(cls)})


def test_every_opcode_has_a_codec() -> None:
    assert set(PDU_CLASSES) == set(Opcode)


@given(any_pdu(), st.integers(0, 0xFFFFFF), st.booleans())
def test_encode_and_decode_are_inverse(one: Pdu, data_length: int, immediate: bool) -> None:
    header = one.encode(data_length=data_length, immediate=immediate)
    assert len(header) == BHS_BYTES
    assert header[0] == one.opcode | (0x40 if immediate else 0)
    assert int.from_bytes(header[4:8], "big") == data_length
    assert type(one).decode(header) == one


@given(any_pdu(), st.binary(min_size=BHS_BYTES, max_size=BHS_BYTES))
def test_any_header_decodes_and_keeps_its_fields(one: Pdu, header: bytes) -> None:
    decoded = type(one).decode(header)
    assert type(one).decode(decoded.encode()) == decoded


def test_login_request_has_the_bytes_of_the_standard() -> None:
    header = LoginRequest(
        flags=0x87,
        version_max=0,
        version_min=0,
        isid=bytes.fromhex("00023d000001"),
        tsih=0x1234,
        initiator_task_tag=0x55667788,
        cid=9,
        cmd_sn=0x01020304,
        exp_stat_sn=0x05060708,
    ).encode(data_length=0x112233, immediate=True)
    assert header == bytes.fromhex(
        "43870000 00112233 00023d00 00011234 55667788 00090000 01020304 05060708" + "00000000" * 4
    )


def test_r2t_has_the_bytes_of_the_standard() -> None:
    header = R2T(
        flags=0x80,
        lun=0x0001 << 48,
        initiator_task_tag=1,
        target_transfer_tag=2,
        stat_sn=3,
        exp_cmd_sn=4,
        max_cmd_sn=5,
        r2t_sn=6,
        buffer_offset=7,
        desired_data_transfer_length=8,
    ).encode()
    assert header == bytes.fromhex(
        "31800000 00000000 0001000000000000" + "".join(f"{number:08x}" for number in range(1, 9))
    )


def test_hot_structures_are_the_same_bytes() -> None:
    lun, tag = 3 << 48, 0x11
    command = ScsiCommandRequest(0xA1, lun, tag, 4096, 5, 6, b"0123456789abcdef")
    assert command.encode(data_length=4096) == HOT_SCSI_COMMAND.pack(
        1, 0xA1, 0, 4096, lun, tag, 4096, 5, 6, b"0123456789abcdef"
    )
    response = ScsiResponse(0x82, 0, 2, tag, 0, 7, 8, 9, 10, 11, 12)
    assert response.encode(data_length=20) == HOT_SCSI_RESPONSE.pack(
        0x21, 0x82, 0, 2, 20, 0, tag, 0, 7, 8, 9, 10, 11, 12
    )
    data_in = DataIn(0x81, 0, lun, tag, 0xFFFFFFFF, 7, 8, 9, 10, 11, 12)
    assert data_in.encode(data_length=20) == HOT_DATA_IN.pack(
        0x25, 0x81, 0, 0, 20, lun, tag, 0xFFFFFFFF, 7, 8, 9, 10, 11, 12
    )
    data_out = DataOut(0x80, lun, tag, 3, 4, 5, 6)
    assert data_out.encode(data_length=20) == HOT_DATA_OUT.pack(5, 0x80, 0, 20, lun, tag, 3, 0, 4, 0, 5, 6, 0)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (bytes(32), "aa36918a"),
        (b"\xff" * 32, "43aba862"),
        (bytes(range(32)), "4e79dd46"),
        (bytes(range(31, -1, -1)), "5cdb3f11"),
    ],
)
def test_digests_are_those_of_the_standard(data: bytes, expected: str) -> None:
    """RFC 7143 appendix A.4."""
    assert pdu.digest(data).hex() == expected
    assert pdu.digest(data[:5], data[5:]).hex() == expected


@pytest.mark.parametrize(
    ("lengths", "header_digest", "data_digest", "size"),
    [
        (0, 0, 0, 48),
        (0, 4, 4, 52),  # no data, no data digest
        (1, 0, 0, 52),
        (4, 4, 4, 60),
        (5, 0, 4, 60),
        (2 << 24 | 3, 4, 0, 64),
    ],
)
def test_frame_size(lengths: int, header_digest: int, data_digest: int, size: int) -> None:
    assert frame_bytes(lengths, header_digest, data_digest) == size


@given(st.dictionaries(st.integers(0, 63), st.binary(max_size=40), max_size=4))
def test_additional_headers_are_read_as_they_were_written(segments: dict[int, bytes]) -> None:
    raw = b"".join(encode_ahs(kind, specific) for kind, specific in segments.items())
    assert len(raw) % 4 == 0
    assert decode_ahs(raw) == segments


@given(st.binary(max_size=64))
def test_garbage_in_additional_headers_gives_the_declared_error(raw: bytes) -> None:
    try:
        decode_ahs(raw)
    except ProtocolError:
        pass
