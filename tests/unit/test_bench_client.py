"""The benchmark's client: it counts what the target did, however the answers are cut up on the wire."""

from __future__ import annotations

import socket
import struct
from collections import Counter
from collections.abc import Iterator
from types import SimpleNamespace
from typing import cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scripts.benchmark.load import Kind, Row, Stream, drain, measure, payload, run_until
from scripts.benchmark.session import BenchmarkError, Limits, Session
from target.iscsi.node import TargetNode
from target.scsi.device_server import Device
from target.scsi.logical_unit import LogicalUnit
from target.volume import VolumeError
from tests.unit.iscsi.server import TARGET, Server
from tests.unit.scsi.memory_volume import MemoryVolume

VOLUME_BYTES = 4 << 20


@pytest.fixture
def volume() -> MemoryVolume:
    return MemoryVolume(VOLUME_BYTES)


@pytest.fixture
def server(volume: MemoryVolume) -> Iterator[Server]:
    server = Server([TargetNode(TARGET, Device({0: LogicalUnit(volume)}))])
    yield server
    server.stop()


def log_in(server: Server, number: int = 0) -> Session:
    host, port = server.address.rsplit(":", 1)
    session = Session((host, int(port)), TARGET, number)
    session.wait_ready(0)
    return session


def run(session: Session, row: Row, units: int) -> int:
    """At least so many units of work; how many it were."""
    stream = Stream(session, 0, row, VOLUME_BYTES)
    stream.start()
    run_until([stream], lambda: stream.completed >= units)
    drain([stream])
    return stream.completed


@pytest.mark.parametrize("outstanding", [1, 32])
@pytest.mark.parametrize("size_bytes", [4096, 65536, 262144])
@pytest.mark.parametrize("kind", Kind)
def test_counts_what_the_target_did(
    server: Server, volume: MemoryVolume, kind: Kind, size_bytes: int, outstanding: int
) -> None:
    session = log_in(server)
    units = run(session, Row(kind, size_bytes, sequential=True, outstanding=outstanding), 100)
    session.close()
    counts = Counter(call[0] for call in volume.calls)
    assert counts["read"] + counts["write"] == units
    assert {call[2] for call in volume.calls if call[0] != "flush"} == {size_bytes}
    if kind is Kind.MIXED:
        assert counts["read"] > counts["write"] > 0
    else:
        assert counts["read" if kind is Kind.READ else "write"] == units
    if kind is Kind.WRITE_AND_FLUSH:  # behind each set of as many writes as are outstanding; none at the end
        assert units // outstanding - 1 <= counts["flush"] <= units // outstanding
    else:
        assert not counts["flush"]


@pytest.mark.parametrize(
    "limits",
    [Limits(0, 0, 8192), Limits(8192, 8192, 8192), Limits(8192, 65536, 8192), Limits(0, 65536, 65536)],
    ids=["solicited", "immediate", "unsolicited", "unsolicited only"],
)
def test_data_arrive_whole_in_every_way_to_send_them(
    server: Server, volume: MemoryVolume, limits: Limits
) -> None:
    session = log_in(server)
    session.limits = limits
    run(session, Row(Kind.WRITE, 262144, sequential=True, outstanding=4), VOLUME_BYTES // 262144)
    session.close()
    assert bytes(volume.content) == payload(262144) * (VOLUME_BYTES // 262144)


def test_random_addresses_cover_the_volume_before_they_repeat(server: Server, volume: MemoryVolume) -> None:
    session = log_in(server)
    blocks = VOLUME_BYTES // 4096
    run(session, Row(Kind.READ, 4096, sequential=False, outstanding=1), blocks)
    session.close()
    offsets = [call[1] for call in volume.calls][:blocks]
    assert sorted(offsets) == list(range(0, VOLUME_BYTES, 4096))
    assert offsets != sorted(offsets)


def test_sessions_share_the_outstanding_commands(server: Server, volume: MemoryVolume) -> None:
    row = Row(Kind.READ, 4096, sequential=False, outstanding=32, sessions=4)
    sessions = [log_in(server, number) for number in range(4)]
    streams = [Stream(session, 0, row, VOLUME_BYTES, seed) for seed, session in enumerate(sessions)]
    result = measure(streams, warm_seconds=0.01, seconds=0.05, target_cpu=lambda: 0.0)
    for session in sessions:
        session.close()
    assert 0 < result.units <= len(volume.calls)
    assert sum(stream.completed for stream in streams) == len(volume.calls)


def test_command_that_fails_ends_the_measurement(server: Server, volume: MemoryVolume) -> None:
    volume.failures["write"] = VolumeError.WRITE_FAILED
    session = log_in(server)
    with pytest.raises(BenchmarkError, match="status 0x02"):
        run(session, Row(Kind.WRITE, 4096, sequential=True, outstanding=1), 1)
    session.close()


def test_login_to_an_unknown_target_is_told(server: Server) -> None:
    host, port = server.address.rsplit(":", 1)
    with pytest.raises(BenchmarkError, match="login was refused"):
        Session((host, int(port)), "iqn.2024-01.example:nobody")


# Answers as bytes, to be cut up: Data-In with status, and a SCSI Response (RFC 7143, 11.4 and 11.8).

DATA_IN = struct.Struct(">BBBBI8sIIIII12x")
SIZE = 512


def data_in(tag: int, stat_sn: int, flags: int = 0x81, length: int = SIZE) -> bytes:
    header = DATA_IN.pack(0x25, flags, 0, 0, length, bytes(8), tag, 0xFFFFFFFF, stat_sn, 1, 1000)
    return header + b"\xa5" * length


def response(tag: int, stat_sn: int) -> bytes:
    return DATA_IN.pack(0x21, 0x80, 0, 0, 0, bytes(8), tag, 0xFFFFFFFF, stat_sn, 1, 1000)


def stream_on(ours: socket.socket, outstanding: int) -> Stream:
    session = SimpleNamespace(
        socket=ours, cmd_sn=1, exp_stat_sn=1, max_cmd_sn=1000, limits=Limits(8192, 8192, 8192)
    )
    row = Row(Kind.READ, SIZE, sequential=True, outstanding=outstanding)
    return Stream(cast(Session, session), 0, row, VOLUME_BYTES)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 700), min_size=1, max_size=12), st.booleans())
def test_answers_may_be_cut_anywhere(cuts: list[int], phase_collapse: bool) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        stream = stream_on(ours, outstanding=4)
        stream.start()
        stream.stopping = True
        answers = b""
        for tag in range(4):
            if phase_collapse:
                answers += data_in(tag, tag + 1)
            else:
                answers += data_in(tag, 0, flags=0x80) + response(tag, tag + 1)
        start = 0
        for cut in [*cuts, len(answers)]:
            piece = answers[start : start + cut]
            if piece:
                theirs.sendall(piece)
                stream.turn()
            start += cut
            whole = start // (len(answers) // 4)
            assert stream.completed == min(whole, 4)  # a read counts when its last byte is here, not before
        stream.check()
        assert stream.session.exp_stat_sn == 5


def test_read_that_returns_less_is_found_out() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        stream = stream_on(ours, outstanding=1)
        stream.start()
        theirs.sendall(data_in(0, 1, length=256))
        stream.stopping = True
        stream.turn()
        with pytest.raises(BenchmarkError, match="256 bytes were read where 512"):
            stream.check()


def test_command_window_is_kept() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        stream = stream_on(ours, outstanding=8)
        stream.session.max_cmd_sn = 3
        stream.start()
        assert len(theirs.recv(4096)) == 3 * 48
        theirs.sendall(data_in(0, 1))  # says MaxCmdSN 1000
        stream.turn()
        assert len(theirs.recv(4096)) == 6 * 48
        assert stream.in_flight == 8
