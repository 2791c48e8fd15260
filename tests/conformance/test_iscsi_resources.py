"""What initiators may take from the target, and from each other: descriptors, memory, turns, time."""

from __future__ import annotations

import os
import resource
import selectors
import socket
import struct
import threading
from collections.abc import Iterator

import pytest

from target.errors import PeerError
from target.iscsi.address import parse_address
from target.iscsi.async_client import AsyncClient
from target.iscsi.client import Client, discover
from target.iscsi.initiator import Response
from target.iscsi.initiator_login import LoginSettings
from target.iscsi.login import SESSIONS_MAX
from target.iscsi.pdu import BHS_BYTES, FINAL, Pdu
from target.iscsi.portal import RECEIVE_BYTES
from target.iscsi.registry import OUTPUT_BYTES_HIGH
from target.iscsi.requests import LogoutRequest
from target.iscsi.responses import R2T, AsyncMessage, LogoutResponse, NopIn, ScsiResponse
from target.iscsi.session import COMMAND_WINDOW, TargetSession
from target.loop import Loop
from target.scsi import cdb as cdbs
from target.volume import Buffer, Request
from tests.conformance.stranger import Stranger, beside
from tests.unit.iscsi.server import BLOCK, INITIATOR, TARGET, Server, async_client, node, serving
from tests.unit.scsi.memory_volume import MemoryVolume

MIB = 1 << 20


@pytest.fixture
def descriptors() -> Iterator[int]:
    """As many as this process may have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield hard
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# Descriptors and logins


def statuses_of_logins(server: Server, count: int) -> list[int]:
    """The Login Response status of so many initiators that come at once; they stay until all have one."""
    selector = selectors.DefaultSelector()
    statuses = []
    with Stranger(server) as template:
        for number in range(count):
            one = socket.socket()
            one.setblocking(False)
            one.connect_ex(parse_address(server.address))
            isid = b"\x80" + number.to_bytes(3, "big") + b"\0\0"
            raw = template.login_bytes({"InitiatorName": f"iqn.2024-01.example:host-{number}"}, isid=isid)
            selector.register(one, selectors.EVENT_WRITE, raw)
        waiting = count
        while waiting:
            for key, events in selector.select():
                one = key.fileobj  # type: ignore[assignment]
                if events & selectors.EVENT_WRITE:
                    assert one.send(key.data) == len(key.data)
                    selector.modify(one, selectors.EVENT_READ)
                else:
                    answer = one.recv(BHS_BYTES)
                    statuses.append(int.from_bytes(answer[36:38], "big"))
                    selector.modify(one, 0)
                    waiting -= 1
        for key in list(selector.get_map().values()):
            key.fileobj.close()  # type: ignore[union-attr]
        selector.close()
    return statuses


def test_a_thousand_logins_at_once(descriptors: int) -> None:
    """Everybody gets an answer: a session, or the word that there is no room (RFC 7143 11.13.5)."""
    count = 1000
    assert descriptors > 2 * count + 100, "this process needs both ends of each connection"
    with serving(node()) as server, beside(server):
        statuses = statuses_of_logins(server, count)
        assert statuses.count(0) == SESSIONS_MAX - 1, "the healthy one has one"
        assert statuses.count(0x0302) == count - SESSIONS_MAX + 1
        server.wait_for(lambda: len(server.portal.registry) == 1)
        with Stranger(server) as again:
            again.login()
            assert again.goes_on()


def test_without_a_free_descriptor_those_who_are_in_go_on() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with serving(node()) as server, beside(server) as bystander:
        late = socket.socket()
        late.settimeout(30)
        highest = max(int(name) for name in os.listdir("/proc/self/fd"))
        # Descriptors below the limit that happen to be free are used up first.
        fillers = [os.open(os.devnull, os.O_RDONLY)]
        while fillers[-1] <= highest:
            fillers.append(os.open(os.devnull, os.O_RDONLY))
        resource.setrlimit(resource.RLIMIT_NOFILE, (fillers[-1] + 1, hard))
        try:
            late.connect(parse_address(server.address))
            assert bystander.goes_on(100)
            assert server.portal.connection_count == 1
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            for one in fillers:
                os.close(one)
        server.wait_for(lambda: server.portal.connection_count == 2)
        late.close()


# Memory


def unsent(server: Server) -> int:
    return max((one.unsent_bytes for one in server.portal._connections), default=0)


def test_who_floods_with_pings_and_reads_nothing_is_not_read_either() -> None:
    with serving(node()) as server, beside(server) as bystander, Stranger(server) as stranger:
        stranger.login(MaxRecvDataSegmentLength="262144")
        stranger.socket.setblocking(False)
        nop = stranger.nop(bytes(262144))
        sent = 0
        refused = 0
        while refused < 20:  # the target's socket buffer fills, then ours; then nothing moves
            try:
                sent += stranger.socket.send(nop[sent % len(nop) :])
                refused = 0
            except BlockingIOError:
                refused += 1
                assert bystander.goes_on(20)
        assert server.call(lambda: unsent(server)) <= OUTPUT_BYTES_HIGH + 5 * len(nop)  # type: ignore[operator]


def test_when_all_together_leave_too_much_unread_the_worst_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("target.iscsi.portal.UNSENT_BYTES_MAX", 6 * MIB)
    volume = MemoryVolume(16 * MIB)
    with (
        serving(node(volume)) as server,
        beside(server),
        Stranger(server) as small,
        Stranger(server) as large,
    ):
        for one, reads in ((small, 12), (large, 80)):
            one.login(MaxRecvDataSegmentLength="262144")
            for tag in range(reads):
                one.command(cdbs.read(0, 512), tag=tag, read=512 * BLOCK)
        server.wait_for(lambda: server.portal.connection_count == 2)
        assert large.is_closed()
        for _ in range(12):
            assert len(small.receive()[1]) == 512 * BLOCK
        assert small.goes_on()


def until_closed(stranger: Stranger) -> Iterator[Pdu]:
    while True:
        try:
            yield stranger.receive()[0]
        except ConnectionError:
            return


def test_who_announces_writes_and_sends_no_data_is_shown_out() -> None:
    """It answers pings, so it lives; but what was set aside for its writes is wanted elsewhere."""
    with (
        serving(node(MemoryVolume(128 * MIB)), ping_seconds=0.5) as server,
        beside(server) as bystander,
        Stranger(server) as stranger,
    ):
        stranger.login(InitialR2T="Yes", ImmediateData="No")
        for tag in range(4):
            stranger.command(cdbs.write(0, 32 * MIB // BLOCK), tag=tag, write=32 * MIB)
        seen = set()
        for pdu in until_closed(stranger):
            seen.add(type(pdu))
            if isinstance(pdu, NopIn):
                stranger.answer_ping(pdu)
        assert seen == {R2T, NopIn}
        assert bystander.goes_on()


# Turns


class WatchingVolume(MemoryVolume):
    """Tells at each write how far another session has come."""

    def __init__(self) -> None:
        super().__init__(8 * MIB)
        self.watched: TargetSession | None = None
        self.marks: list[int] = []

    def write(self, offset: int, data: Buffer, fua: bool, request: Request) -> None:
        if self.watched is not None:
            self.marks.append(self.watched.stat_sn)
        super().write(offset, data, fua, request)


def test_who_sends_without_end_gets_one_turn_after_another_like_everybody() -> None:
    """Of what one initiator has piled up, one buffer is executed; then it is the next one's turn."""
    volume = WatchingVolume()
    with serving(node(volume)) as server, Stranger(server) as greedy, Stranger(server) as modest:
        greedy.login()
        modest.login()
        (watched,) = [
            one for one in server.portal.registry.sessions_of(TARGET) if one.admission.isid == greedy.isid
        ]
        before = watched.stat_sn
        volume.watched = watched
        gate = threading.Event()
        server.loop.call_from_thread(gate.wait)  # meanwhile both pile up
        pings = greedy.nop() * (3 * RECEIVE_BYTES // BHS_BYTES)
        flood = threading.Thread(target=greedy.send, args=(pings,))
        flood.start()
        reader = threading.Thread(target=greedy.is_closed)
        modest.command(cdbs.write(0, 1), write=BLOCK, data=bytes(BLOCK))
        gate.set()
        reader.start()
        assert isinstance(modest.receive()[0], ScsiResponse)
        assert len(volume.marks) == 1
        assert volume.marks[0] - before <= 2 * RECEIVE_BYTES // BHS_BYTES
        greedy.socket.shutdown(socket.SHUT_RDWR)
        flood.join(30)
        reader.join(30)


def _fail(why: PeerError) -> None:
    raise AssertionError(why)


# Preempting another


def status(stranger: Stranger) -> tuple[int, int]:
    """(tag, status) of the next answer, which must be a SCSI Response."""
    pdu, _ = stranger.receive()
    assert isinstance(pdu, ScsiResponse)
    return pdu.initiator_task_tag, pdu.status


def reserve_out(stranger: Stranger, action: int, key: int, other: int = 0, kind: int = 0) -> None:
    data = struct.pack(">QQ8x", key, other)
    stranger.command(cdbs.persistent_reserve_out(action, kind=kind), tag=9, write=len(data), data=data)


def test_preempt_and_abort_waits_for_what_the_other_one_has_under_way() -> None:
    """From the CDB to the sessions and back (SPC-4, PREEMPT AND ABORT)."""
    volume = MemoryVolume(8 * MIB)
    with serving(node(volume)) as server, Stranger(server) as holder, Stranger(server) as other:
        for key, one in enumerate((holder, other), start=1):
            one.login()
            reserve_out(one, 0, 0, key)
            assert status(one) == (9, 0)
        reserve_out(holder, 1, 1, kind=1)
        assert status(holder) == (9, 0)
        server.call(lambda: setattr(volume, "hold", True))
        holder.command(cdbs.write(0, 1), tag=5, write=BLOCK, data=bytes(BLOCK))
        server.wait_for(lambda: "write" in volume.names())
        reserve_out(other, 5, 2, 1, kind=1)
        other.send(other.nop(b"after it"))
        assert isinstance(other.receive()[0], NopIn), "it is not answered yet"
        server.call(lambda: setattr(volume, "hold", False))
        server.call(volume.release)
        assert status(holder) == (5, 0x40)
        assert status(other) == (9, 0)


# The end of a target


def test_before_it_stops_the_target_asks_for_a_logout_and_serves_until_then() -> None:
    with serving(node()) as server, Stranger(server) as one, Stranger(server) as pending:
        one.login()
        stopped = threading.Event()
        server.call(lambda: server.portal.drain(20, stopped.set))
        pdu, _ = one.receive()
        assert isinstance(pdu, AsyncMessage)
        assert (pdu.async_event, pdu.parameter3) == (1, 20)
        assert pending.is_closed()
        with pytest.raises(ConnectionRefusedError):
            Stranger(server)
        assert one.goes_on()
        assert not stopped.is_set()
        one.send_pdu(LogoutRequest(FINAL, 5, 0, one.cmd_sn, 0), immediate=True)
        assert isinstance(one.receive()[0], LogoutResponse)
        assert stopped.wait(30)
        assert one.is_closed()


def test_who_does_not_log_out_is_cut_off() -> None:
    with serving(node()) as server, Stranger(server) as one:
        one.login()
        stopped = threading.Event()
        server.call(lambda: server.portal.drain(0, stopped.set))
        assert stopped.wait(30)
        assert one.is_closed()


def test_our_own_initiator_leaves_when_it_is_asked_to() -> None:
    with serving(node()) as server:
        loop = Loop()
        client = async_client(loop, server)
        state: list[str] = []
        client.connect(lambda: state.append("up"), lambda why: state.append(str(why)))
        while not state:
            loop.turn(1.0)
        stopped = threading.Event()
        server.call(lambda: server.portal.drain(60, stopped.set))
        while len(state) < 2:
            loop.turn(1.0)
        assert "ends the session" in state[1]
        assert stopped.wait(30)
        loop.close()


def test_nobody_there_is_a_short_goodbye() -> None:
    with serving(node()) as server:
        stopped = threading.Event()
        server.call(lambda: server.portal.drain(60, stopped.set))
        assert stopped.wait(30)


# A broken connection


class Log:
    """Which of the writes that a session sent were answered GOOD."""

    def __init__(self, client: AsyncClient) -> None:
        self.acknowledged: list[int] = []
        self._client = client

    def write(self, lba: int, data: bytes) -> None:
        def ended(response: Response | None) -> None:
            if response is not None and response.status == 0:
                self.acknowledged.append(lba)

        self._client.submit(cdbs.write(lba, 1), data, 0, ended)


def test_no_acknowledged_write_is_lost_with_its_connection() -> None:
    """ErrorRecoveryLevel 0: the session fails, what was answered stays, and the initiator logs in again."""
    with serving(node(MemoryVolume(8 * MIB))) as server, beside(server):
        loop = Loop()
        for attempt in range(20):
            client = async_client(loop, server)
            connect(loop, client)
            log = Log(client)
            for number in range(64):
                log.write(2000 + number, bytes([attempt, number]) * 256)
            while len(log.acknowledged) < 3 * attempt:
                loop.turn(1.0)
            client.close()  # with all the rest under way
            with Client.connect(server.url(), initiator_name=INITIATOR) as again:
                for lba in log.acknowledged:
                    assert again.read(lba, 1) == bytes([attempt, lba - 2000]) * 256
        loop.close()


def connect(loop: Loop, client: AsyncClient) -> None:
    up: list[bool] = []
    client.connect(lambda: up.append(True), _fail)
    while not up:
        loop.turn(1.0)


# Addresses


def test_discovery_tells_every_portal_in_the_form_of_the_standard() -> None:
    """RFC 7143 appendix C: all portals of the group, IPv6 in brackets, each with its tag."""
    portals = ("10.0.0.1:3260", "[fd00::1]:3261", "san-a.example:3260")
    with serving(node(portals=portals)) as server:
        (found,) = discover(server.address)
        assert found.addresses == ("10.0.0.1:3260,1", "[fd00::1]:3261,1", "san-a.example:3260,1")


@pytest.mark.parametrize(
    ("listens", "asked_at"), [("0.0.0.0:0", "127.0.0.7"), ("[::]:0", "[::1]"), ("localhost:0", "localhost")]
)
def test_a_portal_on_every_address_tells_the_one_it_was_asked_at(listens: str, asked_at: str) -> None:
    server = Server([], listens)
    port = parse_address(server.address)[1]
    server.call(lambda: server.portal.nodes.append(node(portals=(listens.replace(":0", f":{port}"),))))
    try:
        (found,) = discover(f"{asked_at}:{port}")
        assert found.addresses == (f"{asked_at}:{port},1",)
        with Client.connect(f"iscsi://{asked_at}:{port}/{TARGET}/0") as client:
            assert client.read(0, 1) == bytes(BLOCK)
    finally:
        server.stop()


def test_ipv4_and_ipv6_portals_share_the_sessions_of_their_group() -> None:
    with serving(node()) as server:
        port = parse_address(server.address)[1]
        six = server.call(lambda: server.portal.listen(f"[::1]:{port}"))
        assert six == f"[::1]:{port}"
        with Client.connect(server.url()) as four, Client.connect(f"iscsi://{six}/{TARGET}/0") as other:
            four.write(5, b"4" * BLOCK)
            assert other.read(5, 1) == b"4" * BLOCK
            assert server.call(lambda: len(server.portal.registry)) == 2
        loop = Loop()
        client = AsyncClient(loop, "::1", port, 0, LoginSettings(INITIATOR, TARGET))
        connect(loop, client)
        client.close()
        loop.close()


def test_the_window_is_what_the_standard_says() -> None:
    """MaxCmdSN - ExpCmdSN + 1 commands may be sent, and no more are taken (RFC 7143 4.2.2.1)."""
    volume = MemoryVolume(8 * MIB)
    with serving(node(volume)) as server, Stranger(server) as one:
        one.login()
        server.call(lambda: setattr(volume, "hold", True))
        for tag in range(COMMAND_WINDOW + 50):
            one.command(cdbs.read(0, 1), tag=tag, read=BLOCK)
        server.wait_for(lambda: len(volume.calls) >= COMMAND_WINDOW)
        one.send(one.nop(b"all was read"))
        pdu, data = one.receive()
        assert isinstance(pdu, NopIn)
        assert data == b"all was read"
        assert pdu.max_cmd_sn == (pdu.exp_cmd_sn - 1) & 0xFFFFFFFF, "the window is closed"
        assert server.call(lambda: len(volume.calls)) == COMMAND_WINDOW
        server.call(lambda: setattr(volume, "hold", False))
        server.call(lambda: [volume.release() for _ in range(COMMAND_WINDOW)])
