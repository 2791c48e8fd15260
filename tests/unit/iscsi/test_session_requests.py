"""What a session does beside commands: ping, text, logout, rejects, digests; and how it ends."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from target.iscsi.pdu import FINAL, RESERVED_TAG, Opcode, ProtocolError, encode_ahs
from target.iscsi.requests import LogoutRequest, NopOut, SnackRequest, TextRequest
from target.iscsi.responses import (
    AsyncMessage,
    DataIn,
    LogoutResponse,
    NopIn,
    Reject,
    ScsiResponse,
    TextResponse,
)
from target.iscsi.text import TEXT_BYTES_MAX, decode_text, encode_text
from target.scsi import cdb as cdbs
from target.scsi.sense import decode_sense
from tests.unit.iscsi.wire import BLOCK, DISCOVERY, INITIATOR, TARGET, Feed, Wire, node
from tests.unit.scsi.memory_volume import MemoryVolume


def pattern(length: int, seed: int = 1) -> bytes:
    return bytes((index * 7 + index // 251 + seed) & 0xFF for index in range(length))


@pytest.fixture(params=Feed, ids=lambda feed: feed.name.lower())
def feed(request: pytest.FixtureRequest) -> Feed:
    chosen: Feed = request.param
    return chosen


@pytest.fixture(params=[False, True], ids=["plain", "digests"])
def digests(request: pytest.FixtureRequest) -> dict[str, str]:
    return {"HeaderDigest": "CRC32C", "DataDigest": "CRC32C"} if request.param else {}


def nop(wire: Wire, data: bytes, *, immediate: bool = True) -> None:
    wire.send_pdu(NopOut(FINAL, 0, 77, RESERVED_TAG, wire.cmd_sn, 0), data, immediate=immediate)


def test_a_ping_is_answered_with_its_data(feed: Feed, digests: dict[str, str]) -> None:
    wire = Wire([node()], feed=feed)
    wire.login(**digests)
    nop(wire, b"hello")
    received = wire.take_one()
    assert isinstance(received.pdu, NopIn)
    assert received.pdu.initiator_task_tag == 77
    assert received.pdu.target_transfer_tag == RESERVED_TAG
    assert received.data == b"hello"


def test_our_ping_wants_an_answer() -> None:
    wire = Wire([node()])
    wire.login()
    session = wire.connection.session
    assert session is not None
    assert session.housekeeping.ping()
    pdu = wire.take_one().pdu
    assert isinstance(pdu, NopIn)
    assert pdu.target_transfer_tag != RESERVED_TAG
    assert not session.housekeeping.ping(), "the last one was not answered"
    wire.send_pdu(NopOut(FINAL, 0, RESERVED_TAG, pdu.target_transfer_tag, wire.cmd_sn, 0), immediate=True)
    assert wire.take() == []
    assert session.housekeeping.ping()


def text(wire: Wire, raw: bytes, flags: int = FINAL, ttt: int = RESERVED_TAG) -> tuple[TextResponse, bytes]:
    wire.send_pdu(TextRequest(flags, 0, 5, ttt, wire.cmd_sn, 0), raw, immediate=True)
    received = wire.take_one()
    assert isinstance(received.pdu, TextResponse)
    return received.pdu, received.data


def test_discovery_tells_the_targets_that_admit_the_initiator() -> None:
    other = node(portals=("10.0.0.1:3260", "[fd00::1]:3260"), initiators=frozenset({INITIATOR}))
    hidden = node(initiators=frozenset({"iqn.2024-01.example:friend"}))
    wire = Wire([node(), other, hidden])
    wire.login_request(DISCOVERY)
    pdu, data = text(wire, b"SendTargets=All\0")
    assert pdu.flags == FINAL
    assert decode_text(data) == [
        ("TargetName", TARGET),
        ("TargetAddress", "127.0.0.1:3260,1"),
        ("TargetName", TARGET),
        ("TargetAddress", "10.0.0.1:3260,1"),
        ("TargetAddress", "[fd00::1]:3260,1"),
    ]


def test_a_long_answer_is_cut_and_asked_for() -> None:
    wire = Wire([node(portals=tuple(f"host-{number}:3260" for number in range(60)))])
    wire.login_request({**DISCOVERY, "MaxRecvDataSegmentLength": "512"})
    pdu, data = text(wire, b"SendTargets=All\0")
    whole = data
    while not pdu.flags & FINAL:
        assert pdu.flags & TextRequest.CONTINUE
        assert pdu.target_transfer_tag != RESERVED_TAG
        assert len(data) == 512
        pdu, data = text(wire, b"", ttt=pdu.target_transfer_tag)
        whole += data
    assert len(decode_text(whole)) == 61


def test_a_normal_session_is_told_of_its_own_target_only() -> None:
    wire = Wire([node()])
    wire.login()
    assert decode_text(text(wire, b"SendTargets=\0")[1])[0] == ("TargetName", TARGET)
    assert decode_text(text(wire, b"SendTargets=All\0")[1]) == [("SendTargets", "Reject")]
    assert decode_text(text(wire, encode_text([("X-key", "1")]))[1]) == [("X-key", "NotUnderstood")]


def test_segments_may_be_declared_anew() -> None:
    """RFC 7143 13.12: in full feature phase too; what is read from then on comes in such pieces."""
    wire = Wire([node()])
    wire.login()
    assert text(wire, b"MaxRecvDataSegmentLength=512\0")[1] == b""
    wire.command(cdbs.read(0, 2), read=2 * BLOCK)
    assert [len(one.data) for one in wire.take()] == [512, 512]
    assert text(wire, b"MaxRecvDataSegmentLength=511\0")[1] == b"MaxRecvDataSegmentLength=Reject\0"


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        (b"MaxBurstLength=512\0", b"MaxBurstLength=Reject\0"),
        (b"MaxBurstLength=?\0", b"MaxBurstLength=4096\0"),
        (b"HeaderDigest=CRC32C\0", b"HeaderDigest=Reject\0"),
        (b"HeaderDigest=?\0", b"HeaderDigest=None\0"),
        (b"AuthMethod=None\0", b"AuthMethod=Reject\0"),
        (b"InitiatorName=iqn.2024-01.example:other\0", b"InitiatorName=Reject\0"),
        (b"InitiatorAlias=host\0", b""),
        (b"IFMarkInt=1~2\0", b"IFMarkInt=Reject\0"),
        (b"\0\0", b""),
    ],
)
def test_keys_of_the_login_are_settled(asked: bytes, told: bytes) -> None:
    wire = Wire([node()])
    wire.login(MaxBurstLength="4096")
    assert text(wire, asked)[1] == told


def reject_of(wire: Wire, raw: bytes, ttt: int) -> int:
    wire.send_pdu(TextRequest(FINAL, 0, 5, ttt, wire.cmd_sn, 0), raw, immediate=True)
    pdu = wire.take_one().pdu
    assert isinstance(pdu, Reject)
    return pdu.reason


def test_text_requests_that_make_no_sense_are_rejected_and_the_session_goes_on() -> None:
    wire = Wire([node()])
    wire.login()
    assert reject_of(wire, b"X-a=1\0", ttt=17) == 0x09
    assert reject_of(wire, b"X-a=1\0X-a=2\0", ttt=RESERVED_TAG) == 0x04
    assert text(wire, b"X-a=1\0")[1] == b"X-a=NotUnderstood\0"


def test_a_text_request_may_be_split_and_given_up() -> None:
    wire = Wire([node()])
    wire.login()
    pdu, data = text(wire, b"X-a=", flags=TextRequest.CONTINUE)
    assert (pdu.flags, data) == (0, b"")
    assert text(wire, b"1\0", ttt=pdu.target_transfer_tag)[1] == b"X-a=NotUnderstood\0"
    text(wire, b"X-a=", flags=TextRequest.CONTINUE)
    assert text(wire, b"X-b=1\0")[1] == b"X-b=NotUnderstood\0", "a new exchange begins anew"


def test_text_beyond_the_bound_ends_the_connection() -> None:
    wire = Wire([node()])
    wire.login()
    ttt = RESERVED_TAG
    for _ in range(TEXT_BYTES_MAX // 8192):
        ttt = text(wire, b"x" * 8192, flags=TextRequest.CONTINUE, ttt=ttt)[0].target_transfer_tag
    with pytest.raises(ProtocolError, match="bytes of text"):
        text(wire, b"x", flags=TextRequest.CONTINUE, ttt=ttt)


def test_a_discovery_session_executes_no_commands() -> None:
    wire = Wire([node()])
    wire.login_request(DISCOVERY)
    wire.command(cdbs.test_unit_ready())
    pdu = wire.take_one().pdu
    assert isinstance(pdu, Reject)
    assert pdu.reason == 0x04


@pytest.mark.parametrize(
    ("reason", "cid", "response", "ends"),
    [(0, 0, 0, True), (1, 0, 0, True), (1, 9, 1, False), (2, 0, 2, False)],
)
def test_logout(reason: int, cid: int, response: int, ends: bool) -> None:
    wire = Wire([node()])
    wire.login()
    wire.send_pdu(LogoutRequest(FINAL | reason, 5, cid, wire.cmd_sn, 0))
    pdu = wire.take_one().pdu
    assert isinstance(pdu, LogoutResponse)
    assert pdu.response == response
    assert (wire.ended == "logout") == ends


def test_nothing_is_executed_after_the_logout() -> None:
    volume = MemoryVolume()
    wire = Wire([node(volume)])
    wire.login()
    wire.send_pdu(LogoutRequest(FINAL, 5, 0, wire.cmd_sn, 0))
    wire.cmd_sn += 1
    wire.command(cdbs.read(0, 1), read=BLOCK)
    assert volume.calls == []


@pytest.mark.parametrize(("opcode", "reason"), [(0x1C, 0x05), (0x07, 0x05), (0x20, 0x05)])
def test_unknown_opcodes_are_rejected_with_their_header(opcode: int, reason: int) -> None:
    wire = Wire([node()])
    wire.login()
    header = bytes([opcode]) + bytes(47)
    wire.send(header)
    received = wire.take_one()
    assert isinstance(received.pdu, Reject)
    assert received.pdu.reason == reason
    assert received.data == header


def test_snack_is_rejected() -> None:
    wire = Wire([node()])
    wire.login()
    wire.send_pdu(SnackRequest(FINAL, 0, 1, RESERVED_TAG, 0, 0, 0))
    pdu = wire.take_one().pdu
    assert isinstance(pdu, Reject)
    assert pdu.reason == 0x03


def test_a_logout_may_be_asked_for_and_commands_are_served_until_then() -> None:
    """RFC 7143 11.9.1: event 1, with the seconds that are left."""
    wire = Wire([node()])
    wire.login()
    session = wire.connection.session
    assert session is not None
    before = session.stat_sn
    session.housekeeping.request_logout(3)
    pdu = wire.take_one().pdu
    assert isinstance(pdu, AsyncMessage)
    assert (pdu.async_event, pdu.parameter3, pdu.initiator_task_tag) == (1, 3, RESERVED_TAG)
    assert pdu.stat_sn == before
    wire.command(cdbs.read(0, 1), read=BLOCK)
    received = wire.take_one().pdu
    assert isinstance(received, DataIn)
    assert received.stat_sn == before + 1


# Digests and other damage


def test_a_bad_header_digest_ends_the_connection() -> None:
    wire = Wire([node()])
    wire.login(HeaderDigest="CRC32C")
    with pytest.raises(ProtocolError, match="header digest"):
        wire.command(cdbs.test_unit_ready(), break_digest="header")


def test_a_bad_data_digest_is_rejected_and_ends_the_session() -> None:
    volume = MemoryVolume()
    wire = Wire([node(volume)])
    wire.login(DataDigest="CRC32C")
    wire.command(cdbs.write(0, 1), write=BLOCK, data=pattern(BLOCK), break_digest="data")
    pdu = wire.take_one().pdu
    assert isinstance(pdu, Reject)
    assert pdu.reason == 0x02
    assert wire.ended == "data digest error"
    assert volume.calls == []


def test_a_segment_larger_than_declared_ends_the_connection() -> None:
    wire = Wire([node()])
    wire.login()
    with pytest.raises(ProtocolError, match="more than was declared"):
        wire.send(b"\x01\xa1\0\0\0\x04\0\x04" + bytes(40))


def test_an_extended_cdb_arrives_whole() -> None:
    """The device server answers it as unknown, which is the point: it got there, and nothing broke."""
    wire = Wire([node()])
    wire.login()
    wire.command(b"\x7f" + bytes(15), ahs=encode_ahs(1, b"\0" + bytes(16)))
    received = wire.take_one()
    assert isinstance(received.pdu, ScsiResponse)
    assert decode_sense(received.data[2:]).asc == 0x20


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(list(Opcode)), st.binary(min_size=47, max_size=47)), max_size=4))
def test_garbage_gives_answers_or_the_declared_error(frames: list[tuple[Opcode, bytes]]) -> None:
    wire = Wire([node()])
    wire.login()
    try:
        for opcode, rest in frames:
            wire.send(bytes([opcode | 0x40]) + rest[:3] + b"\0\0\0\0" + rest[7:])
    except ProtocolError:
        return
    wire.take()


# The end


def test_answers_that_come_after_the_end_go_nowhere() -> None:
    volume = MemoryVolume(hold=True)
    wire = Wire([node(volume)])
    wire.login()
    wire.command(cdbs.read(0, 1), read=BLOCK)
    wire.connection.close()
    assert volume.release()
    assert wire.take() == []
    assert len(wire.registry) == 0


def test_a_new_session_of_the_same_port_starts_anew() -> None:
    """The device server is told that the nexus was lost: the next one gets POWER ON again."""
    nodes = [node()]
    wire = Wire(nodes)
    wire.login()
    wire.connection.close()
    again = Wire(nodes, registry=wire.registry)
    again.login_request({"InitiatorName": INITIATOR, "TargetName": TARGET})
    again.command(cdbs.test_unit_ready())
    received = again.take_one()
    assert decode_sense(received.data[2:]).asc == 0x29
