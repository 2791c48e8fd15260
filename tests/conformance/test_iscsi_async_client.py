"""The client on the event loop, against the embedded target behind a real socket."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from functools import partial

import pytest

from target.errors import PeerError
from target.iscsi.async_client import AsyncClient
from target.iscsi.initiator import Response
from target.iscsi.initiator_login import LoginFailed, LoginSettings
from target.loop import Loop
from target.scsi import cdb as cdbs
from target.scsi.command import Status
from tests.unit.iscsi.server import BLOCK, CHAP, INITIATOR, TARGET, async_client, node, serving
from tests.unit.scsi.memory_volume import MemoryVolume


@pytest.fixture
def loop() -> Iterator[Loop]:
    one = Loop()
    yield one
    one.close()


class Watch:
    """What an AsyncClient told."""

    def __init__(self) -> None:
        self.ups = 0
        self.downs: list[PeerError] = []

    def up(self) -> None:
        self.ups += 1

    def down(self, why: PeerError) -> None:
        self.downs.append(why)


def bring_up(loop: Loop, client: AsyncClient) -> Watch:
    watch = Watch()
    client.connect(watch.up, watch.down)
    while not watch.ups and not watch.downs:
        loop.turn(1.0)
    assert watch.ups == 1, watch.downs
    return watch


def test_reads_side_by_side(loop: Loop) -> None:
    volume = MemoryVolume(16 << 20)
    volume.content[:] = os.urandom(16 << 20)
    with serving(node(volume)) as server:
        client = async_client(loop, server)
        watch = bring_up(loop, client)
        results: dict[int, Response | None] = {}
        client.submit(cdbs.test_unit_ready(), b"", 0, lambda response: None)
        for number in range(12):
            client.submit(
                cdbs.block_command(cdbs.Opcode.READ_16, number * 2048, 2048),
                b"",
                1 << 20,
                partial(results.__setitem__, number),
            )
        assert client.outstanding == 13
        while len(results) < 12:
            loop.turn(1.0)
        for number, response in results.items():
            assert response is not None
            assert response.data_in == volume.content[number << 20 : (number + 1) << 20]
        assert client.outstanding == 0
        client.close()
        assert watch.downs == []


def test_writes_on_the_loop(loop: Loop) -> None:
    volume = MemoryVolume(8 << 20)
    data = os.urandom(4 << 20)
    with serving(node(volume)) as server:
        client = async_client(loop, server)
        bring_up(loop, client)
        statuses: list[int] = []

        def done(response: Response | None) -> None:
            assert response is not None
            statuses.append(response.status)

        client.submit(cdbs.test_unit_ready(), b"", 0, done)
        client.submit(cdbs.write(0, len(data) // BLOCK), data, 0, done)
        while len(statuses) < 2:
            loop.turn(1.0)
        assert statuses == [Status.CHECK_CONDITION, Status.GOOD]
        assert volume.content[: len(data)] == data
        client.close()


def test_the_end_of_a_session_answers_what_is_outstanding_and_a_new_one_can_begin(loop: Loop) -> None:
    volume = MemoryVolume(hold=True)
    with serving(node(volume)) as server:
        client = async_client(loop, server)
        watch = bring_up(loop, client)
        results: list[Response | None] = []
        client.submit(cdbs.test_unit_ready(), b"", 0, results.append)
        client.submit(cdbs.synchronize_cache(), b"", 0, results.append)
        while len(results) < 1:
            loop.turn(1.0)
        server.call(server.portal.close)
        server.call(lambda: server.portal.listen(server.address))
        while not watch.downs:
            loop.turn(1.0)
        assert results[1] is None
        assert not client.is_up
        again = bring_up(loop, client)
        assert again.downs == []
        assert len(watch.downs) == 1
        client.close()


def test_a_refused_login_is_told_once(loop: Loop) -> None:
    with serving(node(chap=CHAP)) as server:
        client = async_client(loop, server)
        watch = Watch()
        client.connect(watch.up, watch.down)
        while not watch.downs:
            loop.turn(1.0)
        assert isinstance(watch.downs[0], LoginFailed)
        assert watch.ups == 0


def test_a_connection_that_is_refused_is_told_later_than_connect(loop: Loop) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    client = AsyncClient(loop, "127.0.0.1", port, 0, LoginSettings(INITIATOR, TARGET))
    watch = Watch()
    client.connect(watch.up, watch.down)
    assert watch.downs == []
    while not watch.downs:
        loop.turn(1.0)
    assert "cannot connect" in str(watch.downs[0])


def test_a_target_that_says_nothing_is_given_up(loop: Loop) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        port = mute.getsockname()[1]
        settings = LoginSettings(INITIATOR, TARGET)
        client = AsyncClient(loop, "127.0.0.1", port, 0, settings, timeout_seconds=0.1)
        watch = Watch()
        client.connect(watch.up, watch.down)
        while not watch.downs:
            loop.turn(1.0)
        assert "did not answer" in str(watch.downs[0])


def test_a_link_that_dies_silently_is_found_by_pings(loop: Loop) -> None:
    """The target's loop stands still: nothing answers, and nothing is closed either."""
    with serving(node()) as server:
        host, _, port = server.address.rpartition(":")
        settings = LoginSettings(INITIATOR, TARGET)
        client = AsyncClient(loop, host, int(port), 0, settings, ping_seconds=0.1)
        watch = bring_up(loop, client)
        frozen = threading.Event()
        server.loop.call_from_thread(lambda: frozen.wait(60))
        while not watch.downs:
            loop.turn(1.0)
        frozen.set()
        assert "does not answer" in str(watch.downs[0])


def test_names_are_looked_up_without_blocking_the_loop(loop: Loop) -> None:
    with serving(node()) as server:
        port = int(server.address.rpartition(":")[2])
        client = AsyncClient(loop, "localhost", port, 0, LoginSettings(INITIATOR, TARGET))
        watch = Watch()
        client.connect(watch.up, watch.down)
        while not watch.ups and not watch.downs:
            loop.turn(1.0)
        if watch.downs:
            assert "cannot connect" in str(watch.downs[0])  # localhost is ::1 first here, and nobody listens
        client.close()


def test_a_name_that_does_not_exist_is_told(loop: Loop) -> None:
    client = AsyncClient(loop, "nowhere.invalid", 3260, 0, LoginSettings(INITIATOR, TARGET))
    watch = Watch()
    client.connect(watch.up, watch.down)
    while not watch.downs:
        loop.turn(1.0)
    assert "cannot find" in str(watch.downs[0]) or "did not answer" in str(watch.downs[0])
