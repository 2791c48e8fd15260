"""The target's session: commands, data in every legal shape, sequence numbers, what ends the connection."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from target.iscsi.pdu import FINAL, RESERVED_TAG, Opcode, ProtocolError, encode_ahs
from target.iscsi.requests import DataOut, LogoutRequest, NopOut, SnackRequest, TextRequest
from target.iscsi.responses import (
    R2T,
    DataIn,
    LogoutResponse,
    NopIn,
    Reject,
    ScsiResponse,
    TextResponse,
)
from target.iscsi.session import COMMAND_WINDOW, HELD_BYTES_MAX, OUTPUT_BYTES_HIGH
from target.iscsi.text import decode_text, encode_text
from target.scsi import cdb as cdbs
from target.scsi.sense import decode_sense
from tests.unit.iscsi.wire import BLOCK, DISCOVERY, INITIATOR, TARGET, Feed, Wire, node
from tests.unit.scsi.memory_volume import MemoryVolume

NO_R2T = {"InitialR2T": "No", "MaxBurstLength": "4096", "FirstBurstLength": "2048"}
R2T_ONLY = {"InitialR2T": "Yes", "ImmediateData": "No", "MaxBurstLength": "2048"}


def pattern(length: int, seed: int = 1) -> bytes:
    return bytes((index * 7 + index // 251 + seed) & 0xFF for index in range(length))


@pytest.fixture(params=Feed, ids=lambda feed: feed.name.lower())
def feed(request: pytest.FixtureRequest) -> Feed:
    chosen: Feed = request.param
    return chosen


@pytest.fixture(params=[False, True], ids=["plain", "digests"])
def digests(request: pytest.FixtureRequest) -> dict[str, str]:
    return {"HeaderDigest": "CRC32C", "DataDigest": "CRC32C"} if request.param else {}


def status_of(wire: Wire) -> ScsiResponse:
    received = wire.take_one()
    assert isinstance(received.pdu, ScsiResponse), received
    return received.pdu


def data_out(tag: int, ttt: int, data_sn: int, offset: int, final: bool) -> DataOut:
    return DataOut(FINAL if final else 0, 0, tag, ttt, 0, data_sn, offset)


# Reading


def test_a_read_is_one_data_in_with_the_status(feed: Feed, digests: dict[str, str]) -> None:
    volume = MemoryVolume()
    volume.content[BLOCK : 3 * BLOCK] = pattern(2 * BLOCK)
    wire = Wire([node(volume)], feed=feed)
    wire.login(**digests)
    tag = wire.command(cdbs.read(1, 2), read=2 * BLOCK)
    received = wire.take_one()
    pdu = received.pdu
    assert isinstance(pdu, DataIn)
    assert pdu.flags == FINAL | DataIn.STATUS
    assert (pdu.initiator_task_tag, pdu.status, pdu.data_sn, pdu.buffer_offset) == (tag, 0, 0, 0)
    assert received.data == pattern(2 * BLOCK)


def test_a_long_read_is_cut_by_segment_and_burst(digests: dict[str, str]) -> None:
    volume = MemoryVolume()
    volume.content[: 8 * BLOCK] = pattern(8 * BLOCK)
    wire = Wire([node(volume)])
    wire.login(MaxRecvDataSegmentLength="1024", MaxBurstLength="1536", **digests)
    wire.command(cdbs.read(0, 8), read=8 * BLOCK)
    received = wire.take()
    pdus = [one.pdu for one in received if isinstance(one.pdu, DataIn)]
    assert len(pdus) == len(received) == 5
    assert b"".join(one.data for one in received) == pattern(8 * BLOCK)
    assert [pdu.data_sn for pdu in pdus] == list(range(5))
    assert [pdu.buffer_offset for pdu in pdus] == [0, 1024, 1536, 2560, 3072]
    assert [bool(pdu.flags & FINAL) for pdu in pdus] == [False, True, False, True, True]
    assert [bool(pdu.flags & DataIn.STATUS) for pdu in pdus] == [False] * 4 + [True]


@pytest.mark.parametrize(
    ("expected", "flags", "residual", "sent"),
    [
        (BLOCK, 0, 0, BLOCK),
        (BLOCK + 100, ScsiResponse.UNDERFLOW, 100, BLOCK),
        (BLOCK - 100, ScsiResponse.OVERFLOW, 100, BLOCK - 100),
    ],
)
def test_residuals_of_a_read(expected: int, flags: int, residual: int, sent: int) -> None:
    wire = Wire([node()])
    wire.login()
    wire.command(cdbs.read(0, 1), read=expected)
    received = wire.take_one()
    assert isinstance(received.pdu, DataIn)
    assert received.pdu.flags == FINAL | DataIn.STATUS | flags
    assert received.pdu.residual_count == residual
    assert len(received.data) == sent


def test_a_failure_carries_its_sense() -> None:
    wire = Wire([node()])
    wire.login()
    wire.command(cdbs.read(1 << 30, 1), read=BLOCK)
    received = wire.take_one()
    pdu = received.pdu
    assert isinstance(pdu, ScsiResponse)
    assert pdu.status == 2
    assert pdu.flags == FINAL | ScsiResponse.UNDERFLOW
    assert pdu.residual_count == BLOCK
    assert int.from_bytes(received.data[:2], "big") == len(received.data) - 2
    assert decode_sense(received.data[2:]).asc == 0x21


# Writing


def test_a_write_with_immediate_data(feed: Feed, digests: dict[str, str]) -> None:
    volume = MemoryVolume()
    wire = Wire([node(volume)], feed=feed)
    wire.login(**digests)
    wire.command(cdbs.write(1, 2), write=2 * BLOCK, data=pattern(2 * BLOCK))
    assert status_of(wire).status == 0
    assert volume.content[BLOCK : 3 * BLOCK] == pattern(2 * BLOCK)
    assert volume.calls[-1] == ("write", BLOCK, 2 * BLOCK, False)


def test_a_write_with_unsolicited_data(feed: Feed, digests: dict[str, str]) -> None:
    volume = MemoryVolume()
    wire = Wire([node(volume)], feed=feed)
    wire.login(**NO_R2T, **digests)
    data = pattern(4 * BLOCK)
    tag = wire.command(cdbs.write(0, 4), write=len(data), data=data[:500], final=False)
    wire.send_pdu(data_out(tag, RESERVED_TAG, 0, 500, False), data[500:1301])
    wire.send_pdu(data_out(tag, RESERVED_TAG, 1, 1301, True), data[1301:])
    assert status_of(wire).status == 0
    assert volume.content[: len(data)] == data


def solicited(wire: Wire, data: bytes, piece: int) -> Iterator[R2T]:
    """Answer R2Ts until the command has ended; yields each."""
    while True:
        received = wire.take()
        for one in received:
            if not isinstance(one.pdu, R2T):
                assert isinstance(one.pdu, ScsiResponse)
                assert one.pdu.status == 0
                return
            yield one.pdu
            start = one.pdu.buffer_offset
            end = start + one.pdu.desired_data_transfer_length
            for data_sn, offset in enumerate(range(start, end, piece)):
                part = data[offset : min(offset + piece, end)]
                wire.send_pdu(
                    data_out(
                        one.pdu.initiator_task_tag,
                        one.pdu.target_transfer_tag,
                        data_sn,
                        offset,
                        offset + piece >= end,
                    ),
                    part,
                )


def test_a_write_with_solicited_data(feed: Feed, digests: dict[str, str]) -> None:
    volume = MemoryVolume()
    wire = Wire([node(volume)], feed=feed)
    wire.login(**R2T_ONLY, **digests)
    data = pattern(10 * BLOCK)
    wire.command(cdbs.write(0, 10), write=len(data))
    r2ts = list(solicited(wire, data, 700))
    assert [(r2t.r2t_sn, r2t.buffer_offset, r2t.desired_data_transfer_length) for r2t in r2ts] == [
        (0, 0, 2048),
        (1, 2048, 2048),
        (2, 4096, 1024),
    ]
    assert len({r2t.target_transfer_tag for r2t in r2ts}) == 3
    assert volume.content[: len(data)] == data


def test_several_r2ts_may_be_outstanding() -> None:
    wire = Wire([node()])
    wire.login(**R2T_ONLY, MaxOutstandingR2T="3")
    wire.command(cdbs.write(0, 20), write=20 * BLOCK)
    assert [type(one.pdu) for one in wire.take()] == [R2T] * 3


@settings(max_examples=60, deadline=None)
@given(
    blocks=st.integers(1, 24),
    burst=st.integers(512, 6000),
    first=st.integers(512, 6000),
    immediate=st.booleans(),
    initial_r2t=st.booleans(),
    piece=st.integers(100, 3000),
    data=st.data(),
)
def test_any_shape_of_a_write_arrives_whole(
    blocks: int, burst: int, first: int, immediate: bool, initial_r2t: bool, piece: int, data: st.DataObject
) -> None:
    volume = MemoryVolume()
    wire = Wire([node(volume)])
    wire.login(
        ImmediateData="Yes" if immediate else "No",
        InitialR2T="Yes" if initial_r2t else "No",
        MaxBurstLength=str(burst),
        FirstBurstLength=str(first),
    )
    content = pattern(blocks * BLOCK, seed=blocks)
    limit = min(first, burst, len(content))
    with_command = data.draw(st.integers(0, limit)) if immediate else 0
    unsolicited = 0 if initial_r2t else data.draw(st.integers(0, limit - with_command))
    tag = wire.command(
        cdbs.write(0, blocks), write=len(content), data=content[:with_command], final=not unsolicited
    )
    end = with_command + unsolicited
    for data_sn, offset in enumerate(range(with_command, end, piece)):
        stop = min(offset + piece, end)
        wire.send_pdu(data_out(tag, RESERVED_TAG, data_sn, offset, stop == end), content[offset:stop])
    for r2t in solicited(wire, content, piece):
        assert r2t.buffer_offset >= end
        assert r2t.desired_data_transfer_length <= burst
    assert volume.content[: len(content)] == content
    assert len(volume.calls) == 1


def test_other_commands_are_served_while_a_write_waits_for_its_data() -> None:
    wire = Wire([node()])
    wire.login(**R2T_ONLY)
    wire.command(cdbs.write(0, 4), write=4 * BLOCK)
    assert isinstance(wire.take_one().pdu, R2T)
    wire.command(cdbs.read(0, 1), read=BLOCK)
    assert isinstance(wire.take_one().pdu, DataIn)


@pytest.mark.parametrize(
    ("offset", "data_sn", "length", "final", "ttt_delta"),
    [
        (1, 0, 2048, True, 0),  # not where the data are missing
        (0, 1, 2048, True, 0),  # not the next DataSN
        (0, 0, 2048, False, 0),  # the sequence ends without F
        (0, 0, 1024, True, 0),  # F before its end
        (0, 0, 2052, True, 0),  # more than was asked for
        (0, 0, 2048, True, 1),  # another transfer tag
    ],
)
def test_data_that_was_not_asked_for_ends_the_connection(
    offset: int, data_sn: int, length: int, final: bool, ttt_delta: int
) -> None:
    wire = Wire([node()])
    wire.login(**R2T_ONLY)
    tag = wire.command(cdbs.write(0, 8), write=8 * BLOCK)
    r2t = wire.take_one().pdu
    assert isinstance(r2t, R2T)
    with pytest.raises(ProtocolError):
        wire.send_pdu(
            data_out(tag, r2t.target_transfer_tag + ttt_delta, data_sn, offset, final), bytes(length)
        )


def test_data_out_of_an_unknown_task_is_ignored() -> None:
    wire = Wire([node()])
    wire.login()
    wire.send_pdu(data_out(99, 1, 0, 0, True), b"data")
    assert wire.take() == []


@pytest.mark.parametrize(
    ("keys", "data", "final"),
    [
        ({"ImmediateData": "No"}, 512, True),
        ({"FirstBurstLength": "512"}, 1024, True),
        ({"InitialR2T": "Yes"}, 512, False),
        ({"InitialR2T": "No", "FirstBurstLength": "512"}, 512, False),
    ],
)
def test_data_that_may_not_come_ends_the_connection(keys: dict[str, str], data: int, final: bool) -> None:
    wire = Wire([node()])
    wire.login(**keys)
    with pytest.raises(ProtocolError):
        wire.command(cdbs.write(0, 4), write=4 * BLOCK, data=bytes(data), final=final)


def test_a_write_too_large_to_collect_is_refused_by_sense() -> None:
    wire = Wire([node()])
    wire.login(**R2T_ONLY)
    wire.command(cdbs.write(0, 0xFFFFFF), write=0xFFFFFE00)
    assert status_of(wire).status == 2
    wire.command(cdbs.read(0, 1), read=BLOCK)
    assert isinstance(wire.take_one().pdu, DataIn)


def test_what_is_solicited_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Writes beyond the bound are asked for their data when one before them has ended."""
    monkeypatch.setattr("target.iscsi.write_collection.SOLICITED_BYTES_MAX", 3 * BLOCK)
    volume = MemoryVolume()
    wire = Wire([node(volume)])
    wire.login(**R2T_ONLY)
    for number in range(4):
        wire.command(cdbs.write(number * 2, 2), write=2 * BLOCK)
    for number in range(4):
        received = [one.pdu for one in wire.take()]
        r2t = received[-1]
        assert len(received) == (1 if number == 0 else 2)
        assert isinstance(r2t, R2T)
        wire.send_pdu(
            data_out(r2t.initiator_task_tag, r2t.target_transfer_tag, 0, 0, True),
            pattern(2 * BLOCK, number),
        )
    assert status_of(wire).status == 0
    assert volume.content[: 8 * BLOCK] == b"".join(pattern(2 * BLOCK, number) for number in range(4))


# Numbers


def test_sequence_numbers_follow_the_answers() -> None:
    wire = Wire([node()])
    wire.login()
    stat_sns, exp_cmd_sns, max_cmd_sns = [], [], []
    for _ in range(3):
        wire.command(cdbs.test_unit_ready())
        pdu = status_of(wire)
        stat_sns.append(pdu.stat_sn)
        exp_cmd_sns.append(pdu.exp_cmd_sn)
        max_cmd_sns.append(pdu.max_cmd_sn)
    assert stat_sns == [stat_sns[0], stat_sns[0] + 1, stat_sns[0] + 2]
    assert exp_cmd_sns == [3, 4, 5]
    assert max_cmd_sns == [2 + COMMAND_WINDOW, 3 + COMMAND_WINDOW, 4 + COMMAND_WINDOW]


def test_numbers_wrap() -> None:
    wire = Wire([node()])
    wire.cmd_sn = 0xFFFFFFFE
    wire.login()
    for _ in range(4):
        wire.command(cdbs.read(0, 1), read=BLOCK)
        assert isinstance(wire.take_one().pdu, DataIn)
    assert wire.cmd_sn == 3


def test_the_window_closes_while_commands_are_under_way() -> None:
    volume = MemoryVolume(hold=True)
    wire = Wire([node(volume)])
    wire.login()
    for _ in range(COMMAND_WINDOW):
        wire.command(cdbs.read(0, 1), read=BLOCK)
    assert len(volume.calls) == COMMAND_WINDOW
    wire.command(cdbs.read(0, 1), read=BLOCK)
    assert len(volume.calls) == COMMAND_WINDOW, "a command outside the window is ignored"
    volume.release()
    pdu = wire.take_one().pdu
    assert isinstance(pdu, DataIn)
    assert pdu.max_cmd_sn == pdu.exp_cmd_sn, "one place is free"


def test_commands_run_in_order_of_their_numbers() -> None:
    volume = MemoryVolume()
    wire = Wire([node(volume)])
    wire.login()
    first = wire.cmd_sn
    for offset in (2, 1, 3, 0):
        wire.command(cdbs.write(offset, 1), write=BLOCK, data=pattern(BLOCK, offset), cmd_sn=first + offset)
    assert [call[1] // BLOCK for call in volume.calls] == [0, 1, 2, 3]
    assert len(wire.take()) == 4
    for offset in range(4):
        assert volume.content[offset * BLOCK :][:BLOCK] == pattern(BLOCK, offset)


@pytest.mark.parametrize("delta", [-1, -100, COMMAND_WINDOW, COMMAND_WINDOW + 1, 1 << 31])
def test_numbers_outside_the_window_are_ignored(delta: int) -> None:
    volume = MemoryVolume()
    wire = Wire([node(volume)])
    wire.login()
    wire.command(cdbs.read(0, 1), read=BLOCK, cmd_sn=wire.cmd_sn + delta & 0xFFFFFFFF)
    assert wire.take() == []
    assert volume.calls == []


def test_what_is_held_out_of_order_is_bounded() -> None:
    wire = Wire([node()])
    wire.login(InitialR2T="No", FirstBurstLength="262144")
    data = bytes(262144)
    first = wire.cmd_sn + 1
    for number in range(HELD_BYTES_MAX // len(data) - 1):
        wire.command(cdbs.write(0, 512), write=len(data), data=data, cmd_sn=first + number)
    with pytest.raises(ProtocolError, match="does not come"):
        wire.command(cdbs.write(0, 512), write=len(data), data=data, cmd_sn=first + 100)


def test_an_immediate_command_takes_no_place_in_the_window() -> None:
    wire = Wire([node()])
    wire.login()
    before = wire.cmd_sn
    wire.command(cdbs.read(0, 1), read=BLOCK, immediate=True)
    pdu = wire.take_one().pdu
    assert isinstance(pdu, DataIn)
    assert pdu.exp_cmd_sn == before
    assert pdu.max_cmd_sn == before + COMMAND_WINDOW - 1


def test_a_tag_in_use_ends_the_connection() -> None:
    wire = Wire([node(MemoryVolume(hold=True))])
    wire.login()
    wire.command(cdbs.read(0, 1), read=BLOCK, tag=5)
    with pytest.raises(ProtocolError, match="in use"):
        wire.command(cdbs.read(0, 1), read=BLOCK, tag=5)


def test_output_is_announced_once_until_it_is_taken() -> None:
    wire = Wire([node()])
    wire.login()
    wire.take()
    announced = wire.outputs_announced
    for _ in range(3):
        wire.command(cdbs.test_unit_ready())
    assert wire.outputs_announced == announced + 1
    wire.take()
    wire.command(cdbs.test_unit_ready())
    assert wire.outputs_announced == announced + 2


def test_with_much_unsent_no_further_command_is_taken() -> None:
    volume = MemoryVolume(16 << 20)
    wire = Wire([node(volume)])
    wire.login(MaxRecvDataSegmentLength="262144")
    reads = OUTPUT_BYTES_HIGH // (512 * BLOCK) + 1
    for _ in range(reads + 3):
        wire.command(cdbs.read(0, 512), read=512 * BLOCK)
    assert len(volume.calls) == reads - 1
    wire.take()
    wire.send(b"")
    assert len(volume.calls) == reads + 3


# Other requests


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
