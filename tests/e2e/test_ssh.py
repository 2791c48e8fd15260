"""The SSH link between host agents, with real keys, real connections and OpenSSH's own client and server."""

from __future__ import annotations

import contextlib
import getpass
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import paramiko
import pytest

from hostagent.agent_socket import AgentSocketServer
from hostagent.line_stream import SILENCE_SECONDS_MAX
from hostagent.rpc import Caller, Params, Reply, Result, serve
from hostagent.ssh_client import PeerLink
from hostagent.ssh_keys import generate_key, read_authorized_keys
from hostagent.ssh_server import SshServer
from target.control.lines import Message
from target.control.site_file import Address
from target.errors import OperatorError, ReplctlError

WAIT_SECONDS = 20.0

needs_ssh = pytest.mark.skipif(shutil.which("ssh") is None, reason="needs OpenSSH's client (openssh-client)")


def handle(peer: str, op: str, params: Params, reply: Reply) -> None:
    reply({"peer": peer, "op": op, **params})


@dataclass
class Site:
    """Keys and files of a listening agent `a` and of its peer `b`."""

    directory: Path
    host_key: str

    @property
    def identity(self) -> Path:
        return self.directory / "id_b"

    @property
    def authorized_keys(self) -> Path:
        return self.directory / "authorized_keys"

    def server(self, port: int = 0, **options: Any) -> SshServer:
        return SshServer(
            Address(f"127.0.0.1:{port}"),
            self.directory / "host_key",
            self.authorized_keys,
            lambda stream: serve(stream, handle),
            **options,
        )


@pytest.fixture
def site(tmp_path: Path) -> Site:
    host_key = generate_key(tmp_path / "host_key", "a")
    (tmp_path / "authorized_keys").write_text(
        "# the peers of a\n" + generate_key(tmp_path / "id_b", "b") + "\n", encoding="utf-8"
    )
    (tmp_path / "authorized_keys").chmod(0o600)
    return Site(tmp_path, host_key)


@pytest.fixture
def server(site: Site) -> Iterator[SshServer]:
    it = site.server(login_seconds_max=3.0)
    yield it
    it.close()


class Link:
    """A PeerLink with a caller on it, and its ups and downs in a queue."""

    def __init__(self, address: Address, site: Site) -> None:
        self.events: SimpleQueue[str] = SimpleQueue()
        self.caller = Caller(lambda message: self.link.send(message))
        self.link = PeerLink(
            address,
            site.host_key,
            site.identity,
            self.caller.received,
            lambda: self.events.put("up"),
            self._down,
            peer_name="a",
        )

    def _down(self, reason: str) -> None:
        self.caller.lost(reason)
        self.events.put(f"down: {reason}")

    def event(self) -> str:
        return self.events.get(timeout=WAIT_SECONDS)

    def call(self, op: str, params: Params) -> Result:
        answers: SimpleQueue[tuple[Result | None, ReplctlError | None]] = SimpleQueue()
        self.caller.call(op, params, lambda result, error: answers.put((result, error)), WAIT_SECONDS)
        result, error = answers.get(timeout=WAIT_SECONDS)
        if error is not None:
            raise error
        assert result is not None
        return result

    def close(self) -> None:
        self.link.close()
        self.caller.close()


@pytest.fixture
def connect(site: Site) -> Iterator[Callable[[Address], Link]]:
    links: list[Link] = []

    def connected(address: Address) -> Link:
        links.append(Link(address, site))
        return links[-1]

    yield connected
    for link in links:
        link.close()


def test_a_link_comes_up_and_calls_are_answered_under_the_keys_name(
    server: SshServer, connect: Callable[[Address], Link]
) -> None:
    link = connect(server.address)
    assert link.event() == "up"
    for n in range(20):
        assert link.call("positions", {"n": n}) == {"peer": "b", "op": "positions", "n": n}


def test_a_link_comes_back_after_its_peer_restarted(site: Site, connect: Callable[[Address], Link]) -> None:
    first = site.server()
    link = connect(first.address)
    assert link.event() == "up"
    first.close()
    assert link.event().startswith("down: ")
    assert not link.link.send({"note": "x"})
    second = site.server(first.address.port)
    try:
        assert link.event() == "up"
        assert link.call("again", {})["peer"] == "b"
    finally:
        second.close()


class Wire:
    """A forwarder whose packets can be made to vanish."""

    def __init__(self, address: Address) -> None:
        self._to = (address.host, address.port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = Address(f"127.0.0.1:{self._listener.getsockname()[1]}")
        self.whole = threading.Event()
        self.whole.set()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(self._to)
                for source, sink in ((near, far), (far, near)):
                    threading.Thread(target=self._carry, args=(source, sink), daemon=True).start()

    def _carry(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                self.whole.wait()
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self.whole.set()
        self._listener.close()


def test_a_silently_cut_link_is_noticed_within_five_seconds(
    server: SshServer, connect: Callable[[Address], Link]
) -> None:
    wire = Wire(server.address)
    link = connect(wire.address)
    assert link.event() == "up"
    wire.whole.clear()
    cut = time.monotonic()
    assert "fell silent" in link.event()
    assert time.monotonic() - cut < SILENCE_SECONDS_MAX + 1.5
    wire.close()
    assert link.event() == "up"


def test_another_host_key_than_the_pinned_one_is_refused(
    site: Site, server: SshServer, caplog: pytest.LogCaptureFixture, connect: Callable[[Address], Link]
) -> None:
    site.host_key = generate_key(site.directory / "other", "x")
    link = connect(server.address)
    wait_for(lambda: "not the pinned one" in caplog.text)
    assert link.events.empty()


def test_a_key_that_is_not_listed_is_refused_until_it_is_listed(
    site: Site, server: SshServer, connect: Callable[[Address], Link], caplog: pytest.LogCaptureFixture
) -> None:
    listed = site.authorized_keys.read_text()
    site.authorized_keys.write_text("# nobody\n")
    link = connect(server.address)
    wait_for(lambda: "is not authorized: refused" in caplog.text)
    assert link.events.empty()
    site.authorized_keys.write_text(listed)  # read at every login: no restart
    assert link.event() == "up"


def test_authorized_keys_that_others_may_write_let_nobody_in(site: Site) -> None:
    assert [key.site_name for key in read_authorized_keys(site.authorized_keys)] == ["b"]
    site.authorized_keys.chmod(0o622)
    assert read_authorized_keys(site.authorized_keys) == []


def test_a_line_with_options_lets_nobody_in(site: Site) -> None:
    line = site.authorized_keys.read_text().splitlines()[1]
    site.authorized_keys.write_text(f'from="10.0.0.1" {line}\n{line.rsplit(" ", 1)[0]}\n')
    assert read_authorized_keys(site.authorized_keys) == []


def test_a_private_key_that_all_may_read_is_refused(site: Site) -> None:
    (site.directory / "host_key").chmod(0o644)
    with pytest.raises(OperatorError, match=r"host_key has mode 0644"):
        site.server()


@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.1\r\n\r\n" * 50,
        os.urandom(5000),
        b"SSH-2.0-x\r\n" + os.urandom(5000),
        b"\x00" * 100_000,
    ],
    ids=["http", "random", "ssh then random", "zeros"],
)
def test_garbage_closes_its_connection_and_nothing_else(
    server: SshServer, connect: Callable[[Address], Link], garbage: bytes
) -> None:
    link = connect(server.address)
    assert link.event() == "up"
    with socket.create_connection((server.address.host, server.address.port)) as stranger:
        stranger.settimeout(WAIT_SECONDS)
        with contextlib.suppress(ConnectionError):
            stranger.sendall(garbage)
            while stranger.recv(65536):
                pass
    assert link.call("still there", {})["peer"] == "b"
    assert link.events.empty()


def test_garbage_inside_the_channel_closes_that_channel_alone(
    site: Site, server: SshServer, connect: Callable[[Address], Link]
) -> None:
    link = connect(server.address)
    assert link.event() == "up"
    with logged_in(server.address, site.identity) as transport:
        channel = transport.open_session(timeout=WAIT_SECONDS)
        channel.invoke_subsystem("replication")
        channel.settimeout(WAIT_SECONDS)
        channel.sendall(b"\xff\xfe not json\n")
        assert channel.recv(100) == b""
    assert link.call("still there", {})["peer"] == "b"


def test_a_connection_that_does_not_log_in_is_closed(site: Site) -> None:
    server = site.server(login_seconds_max=0.5)
    try:
        with socket.create_connection((server.address.host, server.address.port)) as idle:
            idle.settimeout(WAIT_SECONDS)
            with contextlib.suppress(ConnectionError):
                while idle.recv(100):
                    pass
    finally:
        server.close()


def test_strangers_cannot_use_up_more_than_their_share(site: Site) -> None:
    server = site.server(login_seconds_max=WAIT_SECONDS)
    strangers = []
    try:
        for _ in range(16):
            stranger = socket.create_connection((server.address.host, server.address.port))
            stranger.settimeout(WAIT_SECONDS)
            assert stranger.recv(100).startswith(b"SSH-2.0-")
            strangers.append(stranger)
        with socket.create_connection((server.address.host, server.address.port)) as one_more:
            one_more.settimeout(WAIT_SECONDS)
            assert one_more.recv(100) == b""
    finally:
        for stranger in strangers:
            stranger.close()
        server.close()


@contextlib.contextmanager
def logged_in(address: Address, identity: Path) -> Iterator[paramiko.Transport]:
    transport = paramiko.Transport((address.host, address.port))
    try:
        transport.start_client(timeout=WAIT_SECONDS)
        transport.auth_publickey("anybody", paramiko.PKey.from_path(identity))
        yield transport
    finally:
        transport.close()


def test_nothing_but_the_subsystem_is_served(site: Site, server: SshServer) -> None:
    requests: list[Callable[[paramiko.Channel], None]] = [
        lambda channel: channel.exec_command("id"),
        lambda channel: channel.invoke_shell(),
        lambda channel: channel.get_pty(),
        lambda channel: channel.invoke_subsystem("sftp"),
        lambda channel: channel.invoke_subsystem("shell"),
    ]
    for request in requests:
        with logged_in(server.address, site.identity) as transport:
            channel = transport.open_session(timeout=WAIT_SECONDS)
            with pytest.raises(paramiko.SSHException):
                request(channel)
    with logged_in(server.address, site.identity) as transport:
        with pytest.raises(paramiko.ChannelException):
            transport.open_channel("direct-tcpip", ("127.0.0.1", 22), ("127.0.0.1", 1), timeout=WAIT_SECONDS)
        with pytest.raises(paramiko.SSHException):
            transport.request_port_forward("127.0.0.1", 0)


def test_a_password_is_not_even_asked_for(server: SshServer) -> None:
    transport = paramiko.Transport((server.address.host, server.address.port))
    try:
        transport.start_client(timeout=WAIT_SECONDS)
        with pytest.raises(paramiko.BadAuthenticationType) as caught:
            transport.auth_password("root", "secret")
        assert caught.value.allowed_types == ["publickey"]
    finally:
        transport.close()


def ssh_command(site: Site, port: int, known_host_key: str, *words: str) -> list[str]:
    known_hosts = site.directory / "known_hosts"
    known_hosts.write_text(f"[127.0.0.1]:{port} {known_host_key}\n", encoding="utf-8")
    options = {
        "IdentityFile": site.identity,
        "UserKnownHostsFile": known_hosts,
        "GlobalKnownHostsFile": "none",
        "StrictHostKeyChecking": "yes",
        "IdentitiesOnly": "yes",
        "BatchMode": "yes",
    }
    flags = [word for key, value in options.items() for word in ("-o", f"{key}={value}")]
    return ["ssh", "-F", "none", "-p", str(port), *flags, *words]


def converse(command: list[str], messages: list[Message]) -> subprocess.CompletedProcess[str]:
    lines = "".join(json.dumps(message) + "\n" for message in messages)
    return subprocess.run(command, input=lines, capture_output=True, text=True, timeout=60, check=False)


@needs_ssh
def test_opensshs_client_speaks_the_subsystem(site: Site, server: SshServer) -> None:
    command = ssh_command(site, server.address.port, site.host_key, "-s", "peer@127.0.0.1", "replication")
    requests: list[Message] = [{"id": n, "op": "hello", "params": {"n": n}} for n in range(3)]
    done = converse(command, requests)
    assert done.returncode == 0, done.stderr
    assert [json.loads(line) for line in done.stdout.splitlines()] == [
        {"id": n, "result": {"peer": "b", "op": "hello", "n": n}} for n in range(3)
    ]


@needs_ssh
def test_opensshs_client_with_another_key_is_refused(site: Site, server: SshServer) -> None:
    generate_key(site.directory / "stranger", "b")
    shutil.copy(site.directory / "stranger", site.identity)
    done = converse(
        ssh_command(site, server.address.port, site.host_key, "-s", "peer@127.0.0.1", "replication"), []
    )
    assert done.returncode == 255
    assert "Permission denied (publickey)" in done.stderr


@needs_ssh
def test_opensshs_client_gets_no_shell_and_no_command(site: Site, server: SshServer) -> None:
    done = converse(ssh_command(site, server.address.port, site.host_key, "peer@127.0.0.1", "id"), [])
    assert done.returncode != 0
    assert "uid=" not in done.stdout


SSHD = shutil.which("sshd") or "/usr/sbin/sshd"


@pytest.mark.skipif(not os.access(SSHD, os.X_OK), reason="needs OpenSSH's server (openssh-server)")
def test_opensshs_server_carries_the_conversation_over_stdio(
    site: Site, connect: Callable[[Address], Link]
) -> None:
    """A system's sshd serves the subsystem with `--stdio`; a PeerLink sees no difference."""
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # as the package's service does before it starts sshd as root
    port = free_port()
    agent_socket = site.directory / "agent.sock"
    runner = site.directory / "stdio.py"
    runner.write_text(
        "import sys\n"
        "from pathlib import Path\n"
        "from hostagent.config import load_config\n"
        "from hostagent.stdio import run_stdio\n"
        f"run_stdio(load_config(Path({str(site_file(site, agent_socket))!r})), sys.argv[1])\n",
        encoding="utf-8",
    )
    sshd_config = site.directory / "sshd_config"
    sshd_config.write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {site.directory / 'host_key'}\n"
        f"AuthorizedKeysFile {site.authorized_keys}\nStrictModes no\nUsePAM no\nPidFile none\n"
        f"PasswordAuthentication no\nPermitRootLogin prohibit-password\n"
        f"Subsystem replication {sys.executable} {runner} b\n",
        encoding="utf-8",
    )
    socket_server = AgentSocketServer(agent_socket, handle, on_peer=lambda stream: serve(stream, handle))
    sshd = subprocess.Popen(
        [SSHD, "-D", "-E", str(site.directory / "sshd.log"), "-f", str(sshd_config)], stdin=subprocess.DEVNULL
    )
    try:
        link = connect(Address(f"{getpass.getuser()}@127.0.0.1:{port}"))
        assert link.event() == "up"
        assert link.call("hello", {"n": 1}) == {"peer": "b", "op": "hello", "n": 1}
        link.close()
    finally:
        sshd.terminate()
        sshd.wait(WAIT_SECONDS)
        socket_server.close()


def site_file(site: Site, agent_socket: Path) -> Path:
    path = site.directory / "site.toml"
    path.write_text(
        f"""
[site]
name = "a"
state_dir = "."
[target]
control_socket = "target.sock"
[[group]]
name = "group1"
[hostagent]
socket = "{agent_socket}"
database = "x.sqlite"
ssh_listen = "127.0.0.1:0"
host_key_file = "host_key"
identity_file = "id_b"
authorized_keys_file = "authorized_keys"
[[peer]]
name = "b"
ssh = "127.0.0.1:1"
host_key = "{site.host_key}"
san_portal = "127.0.0.1:1"
san_target = "iqn.2026-01.org.replctl:b.san"
""",
        encoding="utf-8",
    )
    return path


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
