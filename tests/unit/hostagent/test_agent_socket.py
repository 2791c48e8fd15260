"""The agent's UNIX socket: who may come, what is asked, and what a dead daemon leaves behind."""

from __future__ import annotations

import socket
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hostagent.agent_socket import AgentClient, AgentSocketServer
from hostagent.rpc import Params, Reply, serve
from target.errors import ConflictError, OperatorError, PeerError


def handle(peer: str, op: str, params: Params, reply: Reply) -> None:
    if op == "conflict":
        raise ConflictError("two histories", fork=7)
    if op != "silence":
        reply({"peer": peer, "op": op, **params})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "agent.sock"


@pytest.fixture
def start(path: Path) -> Iterator[Callable[[], AgentSocketServer]]:
    servers: list[AgentSocketServer] = []

    def started() -> AgentSocketServer:
        servers.append(AgentSocketServer(path, handle, on_peer=lambda stream: serve(stream, handle)))
        return servers[-1]

    yield started
    for server in servers:
        server.close()


def test_calls_are_answered(path: Path, start: Callable[[], AgentSocketServer]) -> None:
    start()
    with AgentClient(path) as client:
        for n in range(3):
            assert client.call("ping", {"n": n}) == {"peer": "", "op": "ping", "n": n}


def test_an_error_is_raised_with_its_facts(path: Path, start: Callable[[], AgentSocketServer]) -> None:
    start()
    with AgentClient(path) as client:
        with pytest.raises(ConflictError, match="two histories") as caught:
            client.call("conflict", {})
        assert caught.value.facts == {"fork": 7}
        assert client.call("ping", {})["op"] == "ping"


def test_no_answer_in_time_is_a_peer_error(path: Path, start: Callable[[], AgentSocketServer]) -> None:
    start()
    with AgentClient(path) as client, pytest.raises(PeerError, match=r"silence within 0\.1 s"):
        client.call("silence", {}, 0.1)


def test_only_the_owner_may_come_in(path: Path, start: Callable[[], AgentSocketServer]) -> None:
    start()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_dead_daemons_socket_is_replaced(path: Path, start: Callable[[], AgentSocketServer]) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    start()
    with AgentClient(path) as client:
        assert client.call("ping", {})["op"] == "ping"


def test_a_live_daemons_socket_is_left_alone(path: Path, start: Callable[[], AgentSocketServer]) -> None:
    start()
    with pytest.raises(OperatorError, match="serves there already"):
        AgentSocketServer(path, handle)
    with AgentClient(path) as client:
        assert client.call("ping", {})["op"] == "ping"


def test_a_file_in_the_way_is_left_alone(path: Path) -> None:
    path.write_text("mine")
    with pytest.raises(OperatorError, match="not a socket"):
        AgentSocketServer(path, handle)
    assert path.read_text() == "mine"


def test_without_a_daemon_the_client_says_how_to_start_it(path: Path) -> None:
    with pytest.raises(PeerError, match="is not running; start it"):
        AgentClient(path)


def test_closing_takes_the_socket_away(path: Path, start: Callable[[], AgentSocketServer]) -> None:
    start().close()
    assert not path.exists()


def test_an_attached_conversation_is_the_peers(path: Path, start: Callable[[], AgentSocketServer]) -> None:
    start()
    with AgentClient(path) as client:
        assert client.call("peer.attach", {"site": "b"}) == {}
        assert client.call("ready", {"n": 1}) == {"peer": "b", "op": "ready", "n": 1}


@pytest.mark.parametrize("params", [{}, {"site": ""}, {"site": 5}])
def test_attaching_without_a_name_is_refused(
    path: Path, start: Callable[[], AgentSocketServer], params: Params
) -> None:
    start()
    with AgentClient(path) as client, pytest.raises(OperatorError, match="not a site's name"):
        client.call("peer.attach", params)


def test_garbage_closes_its_connection_and_nothing_else(
    path: Path, start: Callable[[], AgentSocketServer]
) -> None:
    start()
    with AgentClient(path) as client, socket.socket(socket.AF_UNIX) as garbage:
        garbage.connect(str(path))
        garbage.settimeout(10)
        garbage.sendall(b"\x00\xff" * 100 + b"\n")
        assert garbage.recv(10) == b""
        assert client.call("ping", {})["op"] == "ping"
