"""The embedded target behind real sockets, with this package's own clients: what a connection may do to the
rest.

One loop in a thread serves; the tests are clients. `AsyncClient` runs on a loop of its own in the test's
thread.
"""

from __future__ import annotations

import logging
import os
import socket
import threading

import pytest

from target.errors import PeerError
from target.iscsi.chap import ChapCredentials
from target.iscsi.client import Client, ScsiError, discover
from target.iscsi.initiator import Response
from target.iscsi.initiator_login import LoginFailed, LoginSettings
from target.iscsi.node import TargetNode
from target.loop import Loop
from target.scsi import cdb as cdbs
from target.scsi.command import ScsiCommand, ScsiResult, Status
from target.scsi.device_server import Device
from target.scsi.logical_unit import LogicalUnit
from tests.unit.iscsi.server import BLOCK, CHAP, INITIATOR, TARGET, Server, async_client, node, serving
from tests.unit.scsi.memory_volume import MemoryVolume


def connect_raw(server: Server) -> socket.socket:
    host, _, port = server.address.rpartition(":")
    return socket.create_connection((host.strip("[]"), int(port)), 30)


def is_closed_by_peer(raw: socket.socket) -> bool:
    raw.settimeout(30)
    try:
        while raw.recv(65536):
            pass
    except ConnectionResetError:
        pass
    return True


# The blocking client


@pytest.mark.parametrize("digests", [False, True], ids=["plain", "digests"])
@pytest.mark.parametrize("address", ["127.0.0.1:0", "[::1]:0"])
def test_write_and_read(digests: bool, address: str) -> None:
    volume = MemoryVolume(8 << 20)
    login = LoginSettings("", None, header_digest=digests, data_digest=digests)
    with (
        serving(node(volume), address=address) as server,
        Client.connect(server.url(), settings=login) as client,
    ):
        data = os.urandom(5 << 20)
        client.write(3, data)
        client.write(0, data[:BLOCK], fua=True)
        client.flush()
        assert client.read(3, len(data) // BLOCK) == data
        assert client.read(0, 1) == data[:BLOCK]
        assert client.capacity().size_bytes == 8 << 20
        assert client.report_luns() == [0]
        assert client.inquiry()[8:15] == b"REPLCTL"
        client.ping()
        assert "flush" in volume.names()
        assert any(call[3] for call in volume.calls)


def test_many_commands_keep_the_order_of_their_results() -> None:
    with serving(node()) as server, Client.connect(server.url()) as client:
        blocks = {lba: os.urandom(8 * BLOCK) for lba in range(0, 8000, 8)}
        client.write_many(blocks.items(), queue_depth=64)
        assert list(client.read_many(((lba, 8) for lba in blocks), queue_depth=64)) == list(blocks.values())


def test_scsi_errors_are_raised_with_their_sense() -> None:
    with serving(node()) as server, Client.connect(server.url()) as client:
        with pytest.raises(ScsiError, match="READ_10 failed: ILLEGAL REQUEST") as caught:
            client.read(client.block_count, 1)
        assert caught.value.sense is not None
        assert caught.value.sense.asc == 0x21
        assert client.read(0, 1) == bytes(BLOCK), "the session goes on"


class BusyDevice(Device):
    """Answers BUSY a few times before each write."""

    def __init__(self, units: dict[int, LogicalUnit], times: int) -> None:
        super().__init__(units)
        self.left = times

    def execute(self, lun: int, command: ScsiCommand) -> None:
        if command.cdb[0] == cdbs.Opcode.WRITE_10 and self.left:
            self.left -= 1
            command.complete(ScsiResult(Status.BUSY))
            return
        super().execute(lun, command)


def test_busy_is_retried() -> None:
    device = BusyDevice({0: LogicalUnit(MemoryVolume())}, 3)
    with serving(TargetNode(TARGET, device)) as server, Client.connect(server.url()) as client:
        client.write(0, b"x" * BLOCK)
        assert device.left == 0
        assert client.read(0, 1) == b"x" * BLOCK


def test_busy_for_too_long_is_an_error() -> None:
    device = BusyDevice({0: LogicalUnit(MemoryVolume())}, 1 << 30)
    with (
        serving(TargetNode(TARGET, device)) as server,
        Client.connect(server.url(), timeout_seconds=0.3) as client,
        pytest.raises(PeerError),
    ):
        client.write(0, b"x" * BLOCK)


def test_an_answer_that_does_not_come_is_an_error() -> None:
    volume = MemoryVolume(hold=True)
    with (
        serving(node(volume)) as server,
        Client.connect(server.url(), timeout_seconds=0.3) as client,
        pytest.raises(PeerError, match="did not answer in time"),
    ):
        client.flush()


def test_no_target_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(PeerError, match="cannot connect"):
        Client.connect(f"iscsi://127.0.0.1:{port}/{TARGET}/0", timeout_seconds=5)


def test_discovery_finds_what_the_initiator_may_see() -> None:
    hidden = node(name="iqn.2024-01.example:hidden", initiators=frozenset({"iqn.2024-01.example:friend"}))
    with serving(node(), hidden) as server:
        found = discover(server.address)
        assert [(one.name, one.addresses) for one in found] == [(TARGET, (f"{server.address},1",))]
        friend = discover(server.address, initiator_name="iqn.2024-01.example:friend")
        assert len(friend) == 2


def test_two_targets_at_one_portal_are_apart() -> None:
    volumes = [MemoryVolume(), MemoryVolume()]
    names = ["iqn.2024-01.example:one", "iqn.2024-01.example:two"]
    nodes = [node(volume, name) for volume, name in zip(volumes, names, strict=True)]
    with serving(*nodes) as server:
        for index, name in enumerate(names):
            with Client.connect(server.url(target=name)) as client:
                client.write(0, bytes([index + 1]) * BLOCK)
    assert [volume.content[0] for volume in volumes] == [1, 2]


# Who gets in


@pytest.mark.parametrize("mutual", [False, True])
def test_chap(mutual: bool) -> None:
    credentials = CHAP if mutual else ChapCredentials(CHAP.user, CHAP.secret)
    with serving(node(chap=CHAP)) as server, Client.connect(server.url(), chap=credentials) as client:
        client.write(0, bytes(BLOCK))


@pytest.mark.parametrize(
    "credentials",
    [None, ChapCredentials("alice", "wrong-secret-12"), ChapCredentials("bob", "alice-secret-12")],
)
def test_without_the_secret_nobody_gets_in(
    credentials: ChapCredentials | None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with serving(node(chap=CHAP)) as server:
        with pytest.raises(LoginFailed):
            Client.connect(server.url(), chap=credentials)
        server.wait_for(lambda: server.portal.connection_count == 0)
    assert "login refused" in caplog.text
    assert "secret-12" not in caplog.text


def test_an_initiator_that_is_not_listed_is_refused() -> None:
    with serving(node(initiators=frozenset({INITIATOR}))) as server:
        with pytest.raises(LoginFailed, match="does not admit"):
            Client.connect(server.url())
        with Client.connect(server.url(), initiator_name=INITIATOR) as client:
            assert client.read(0, 1) == bytes(BLOCK)


# What a connection may do to the rest


GARBAGE = [
    b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" + b"\r\n" * 40,
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),
    bytes(48),
    b"\xff" * 4096,
    b"\x43\x87" + b"\xff" * 46,
]


@pytest.mark.parametrize("garbage", GARBAGE, ids=["http", "tls", "zeros", "ones", "login"])
def test_garbage_closes_that_connection_and_nothing_else(garbage: bytes) -> None:
    with serving(node()) as server, Client.connect(server.url()) as client:
        with connect_raw(server) as raw:
            raw.sendall(garbage)
            assert is_closed_by_peer(raw)
        client.write(0, b"y" * BLOCK)
        assert client.read(0, 1) == b"y" * BLOCK


def test_random_garbage_closes_that_connection_and_nothing_else() -> None:
    with serving(node()) as server, Client.connect(server.url()) as client:
        for _ in range(20):
            with connect_raw(server) as raw:
                raw.sendall(os.urandom(3000))
                raw.shutdown(socket.SHUT_WR)
                assert is_closed_by_peer(raw)
        assert client.read(0, 1) == bytes(BLOCK)
        server.wait_for(lambda: server.portal.connection_count == 1)


def test_who_does_not_log_in_is_shown_out() -> None:
    with serving(node(), login_timeout_seconds=0.1) as server, connect_raw(server) as raw:
        assert is_closed_by_peer(raw)
        server.wait_for(lambda: server.portal.connection_count == 0)


def test_a_dead_connection_is_found_by_pings_and_a_live_one_stays() -> None:
    with serving(node(), ping_seconds=0.1) as server:
        silent = Client.connect(server.url())
        loop = Loop()
        live = async_client(loop, server)
        up: list[bool] = []
        live.connect(lambda: up.append(True), lambda why: up.append(False))
        # Nobody runs `silent`, so it answers no ping; the other's loop runs.
        while server.portal.connection_count > 1 or not up:
            loop.turn(0.01)
        assert up == [True]
        assert live.is_up
        live.close()
        loop.close()
        with pytest.raises(PeerError):
            silent.read(0, 1)
        silent.close()


def test_a_client_that_does_not_read_is_not_served_further() -> None:
    """What it could not be sent is bounded; when it reads again it gets everything."""
    volume = MemoryVolume(8 << 20)
    volume.content[:] = os.urandom(8 << 20)
    with serving(node(volume)) as server:
        loop = Loop()
        client = async_client(loop, server)
        state: list[bool] = []
        client.connect(lambda: state.append(True), lambda why: state.append(False))
        while not state:
            loop.turn(1.0)
        results: list[Response | None] = []
        count = 100
        for _ in range(count):
            client.submit(cdbs.read(0, 2048), b"", 1 << 20, results.append)
        loop.turn(0.0)
        # Our loop stands still now, and the target's fills the socket and then its backlog.
        server.wait_for(lambda: len(volume.calls) >= 8)
        stalled = -1
        while stalled != len(volume.calls):
            stalled = len(volume.calls)
            threading.Event().wait(0.2)
        assert stalled < 40
        while len(results) < count:
            loop.turn(1.0)
        assert all(
            result is not None
            and (result.status == Status.CHECK_CONDITION or result.data_in == volume.content[: 1 << 20])
            for result in results
        )
        client.close()
        loop.close()


def test_a_client_that_goes_away_amid_its_commands_leaves_nothing_behind() -> None:
    volume = MemoryVolume(8 << 20)
    with serving(node(volume)) as server:
        client = Client.connect(server.url())
        client.read(0, 1)
        server.call(lambda: setattr(volume, "hold", True))
        for _ in range(10):
            client.submit((cdbs.read(0, 8), b"", 8 * BLOCK), lambda response: None)
        client._connection._send()
        server.wait_for(lambda: len(volume.calls) >= 10)
        client._connection._socket.close()
        server.wait_for(lambda: server.portal.connection_count == 0)
        server.call(lambda: [volume.release() for _ in range(10)])
        server.call(lambda: setattr(volume, "hold", False))
        with Client.connect(server.url()) as again:
            assert again.read(0, 1) == bytes(BLOCK)


def test_logging_in_again_replaces_the_session() -> None:
    """Two clients of one initiator port: the newer has it (RFC 7143 6.3.5)."""
    with serving(node()) as server, pytest.MonkeyPatch.context() as patch:
        patch.setattr("target.iscsi.client.new_isid", lambda: b"\x80\x01\x02\x03\x00\x00")
        first = Client.connect(server.url())
        with Client.connect(server.url()) as second:
            assert second.read(0, 1) == bytes(BLOCK)
            with pytest.raises(PeerError):
                first.read(0, 1)
        first.close()


def test_a_closed_portal_closes_its_connections() -> None:
    server = Server([node()])
    client = Client.connect(server.url())
    server.stop()
    with pytest.raises(PeerError):
        client.read(0, 1)
    client.close()
