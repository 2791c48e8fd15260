"""Data of commands at the target: reads and writes in every legal shape, and what ends the connection."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from target.iscsi.pdu import FINAL, RESERVED_TAG, ProtocolError
from target.iscsi.requests import DataOut
from target.iscsi.responses import (
    R2T,
    DataIn,
    Reject,
    ScsiResponse,
)
from target.scsi import cdb as cdbs
from target.scsi.sense import SenseKey, decode_sense
from tests.unit.iscsi.wire import BLOCK, Feed, Wire, node
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


@pytest.mark.parametrize("read", [0, BLOCK])
def test_a_write_that_does_not_say_so_is_told_that_nothing_came(read: int) -> None:
    """GOOD alone would mean that the blocks were written."""
    volume = MemoryVolume()
    wire = Wire([node(volume)])
    wire.login()
    wire.command(cdbs.write(0, 8), read=read)
    pdu = wire.take_one().pdu
    assert isinstance(pdu, ScsiResponse)
    assert (pdu.flags, pdu.residual_count) == (FINAL | ScsiResponse.OVERFLOW, 8 * BLOCK)
    assert "write" not in volume.names()


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


def test_a_failure_carries_its_sense_in_the_format_that_was_chosen() -> None:
    """A descriptor has room for an LBA that fixed format cannot tell."""
    wire = Wire([node()])
    wire.login()
    d_sense = bytes((0, 0, 0, 0, 0x0A, 0x0A, 0x06, 0x10, 0, 0x40, 0, 0, 0xFF, 0xFF, 0, 0))
    wire.command(cdbs.mode_select_6(len(d_sense)), write=len(d_sense), data=d_sense)
    selected = wire.take_one().pdu
    assert isinstance(selected, ScsiResponse)
    assert selected.status == 0
    wire.command(cdbs.read(1 << 40, 1), read=BLOCK)
    raw = wire.take_one().data
    assert int.from_bytes(raw[:2], "big") == len(raw) - 2
    assert raw[2] == 0x72
    assert decode_sense(raw[2:]).information == 1 << 40


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


LOST = (0x47, 0x05)
AMOUNT = (0x0C, 0x0D)
UNSOLICITED = (0x0C, 0x0C)


def check_condition(wire: Wire) -> tuple[int, int]:
    """ASC and ASCQ of the one answer there is, which must be ABORTED COMMAND (RFC 7143 11.4.7.2)."""
    received = wire.take_one()
    assert isinstance(received.pdu, ScsiResponse)
    assert received.pdu.status == 2
    sense = decode_sense(received.data[2:])
    assert sense.key == SenseKey.ABORTED_COMMAND
    return sense.asc, sense.ascq


def goes_on(wire: Wire) -> bool:
    wire.command(cdbs.read(0, 1), read=BLOCK)
    return isinstance(wire.take_one().pdu, DataIn)


@pytest.mark.parametrize(
    ("offset", "data_sn", "length", "final", "told"),
    [
        (1, 0, 2048, True, LOST),  # not where the data are missing
        (0, 1, 2048, True, LOST),  # not the next DataSN
        (0, 0xFFFFFFFF, 2048, True, LOST),
        (0xFFFFFFFF, 0, 2048, True, LOST),
        (0, 0, 2048, False, AMOUNT),  # the sequence ends without F
        (0, 0, 1024, True, AMOUNT),  # F before its end
        (0, 0, 2052, True, AMOUNT),  # more than was asked for
    ],
)
def test_data_that_do_not_fit_end_their_command_and_nothing_else(
    offset: int, data_sn: int, length: int, final: bool, told: tuple[int, int]
) -> None:
    volume = MemoryVolume()
    wire = Wire([node(volume)])
    wire.login(**R2T_ONLY)
    tag = wire.command(cdbs.write(0, 8), write=8 * BLOCK)
    r2t = wire.take_one().pdu
    assert isinstance(r2t, R2T)
    wire.send_pdu(data_out(tag, r2t.target_transfer_tag, data_sn, offset, final), bytes(length))
    assert check_condition(wire) == told
    wire.send_pdu(data_out(tag, r2t.target_transfer_tag, 1, 0, True), bytes(512))
    assert volume.calls == [], "nothing was written, and what comes late is dropped"
    assert goes_on(wire)


def test_the_answer_to_a_failed_write_waits_for_every_sequence() -> None:
    """RFC 7143 7.8: until then the initiator still sends what the R2Ts asked for."""
    wire = Wire([node()])
    wire.login(**R2T_ONLY, MaxOutstandingR2T="2")
    tag = wire.command(cdbs.write(0, 8), write=8 * BLOCK)
    first, second = (one.pdu for one in wire.take())
    assert isinstance(first, R2T)
    assert isinstance(second, R2T)
    wire.send_pdu(data_out(tag, first.target_transfer_tag, 5, 0, False), bytes(512))
    wire.send_pdu(data_out(tag, first.target_transfer_tag, 6, 512, True), bytes(1536))
    assert wire.take() == []
    wire.send_pdu(data_out(tag, second.target_transfer_tag, 0, 2048, True), bytes(2048))
    assert check_condition(wire) == LOST
    assert goes_on(wire)


def test_a_damaged_data_out_is_rejected_and_fails_its_command() -> None:
    volume = MemoryVolume()
    wire = Wire([node(volume)])
    wire.login(**R2T_ONLY, DataDigest="CRC32C")
    tag = wire.command(cdbs.write(0, 4), write=4 * BLOCK)
    r2t = wire.take_one().pdu
    assert isinstance(r2t, R2T)
    wire.send_pdu(data_out(tag, r2t.target_transfer_tag, 0, 0, False), pattern(1024), break_digest="data")
    rejected = wire.take_one()
    assert isinstance(rejected.pdu, Reject)
    assert rejected.pdu.reason == 0x02
    wire.send_pdu(data_out(tag, r2t.target_transfer_tag, 1, 1024, True), pattern(1024))
    assert check_condition(wire) == LOST
    assert volume.calls == []
    assert goes_on(wire)


def test_unsolicited_data_where_none_may_come_end_their_command() -> None:
    wire = Wire([node()])
    wire.login(**R2T_ONLY)
    tag = wire.command(cdbs.write(0, 8), write=8 * BLOCK)
    r2t = wire.take_one().pdu
    assert isinstance(r2t, R2T)
    wire.send_pdu(data_out(tag, RESERVED_TAG, 0, 0, True), bytes(512))
    assert wire.take() == []
    wire.send_pdu(data_out(tag, r2t.target_transfer_tag, 0, 0, True), bytes(2048))
    assert check_condition(wire) == UNSOLICITED
    assert goes_on(wire)


def test_more_unsolicited_data_than_the_first_burst_end_their_command() -> None:
    wire = Wire([node()])
    wire.login(**NO_R2T)
    tag = wire.command(cdbs.write(0, 8), write=8 * BLOCK, final=False)
    wire.send_pdu(data_out(tag, RESERVED_TAG, 0, 0, True), bytes(2560))
    assert check_condition(wire) == AMOUNT
    assert goes_on(wire)


@pytest.mark.parametrize("delta", [1, 0x7FFFFFFF])
def test_data_for_a_transfer_tag_that_nobody_gave_end_the_connection(delta: int) -> None:
    wire = Wire([node()])
    wire.login(**R2T_ONLY)
    tag = wire.command(cdbs.write(0, 8), write=8 * BLOCK)
    r2t = wire.take_one().pdu
    assert isinstance(r2t, R2T)
    with pytest.raises(ProtocolError, match="not in use"):
        wire.send_pdu(data_out(tag, r2t.target_transfer_tag + delta, 0, 0, True), bytes(2048))


def test_data_for_a_write_that_is_being_executed_end_the_connection() -> None:
    volume = MemoryVolume(hold=True)
    wire = Wire([node(volume)])
    wire.login(**R2T_ONLY)
    tag = wire.command(cdbs.write(0, 4), write=4 * BLOCK)
    r2t = wire.take_one().pdu
    assert isinstance(r2t, R2T)
    wire.send_pdu(data_out(tag, r2t.target_transfer_tag, 0, 0, True), bytes(2048))
    with pytest.raises(ProtocolError, match="not in use"):
        wire.send_pdu(data_out(tag, RESERVED_TAG, 0, 0, True), bytes(2048))


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
    monkeypatch.setattr("target.iscsi.write_collection.COLLECTED_BYTES_MAX", 3 * BLOCK)
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
