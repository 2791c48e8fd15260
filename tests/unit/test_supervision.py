"""What the service manager hears of a daemon, and that silence follows from a loop that hangs."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from target.control.supervision import Supervision
from target.loop import Loop


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "notify"))
        listening.settimeout(20)
        yield listening


def environment(manager: socket.socket, **more: str) -> dict[str, str]:
    return {"NOTIFY_SOCKET": manager.getsockname(), **more}


def test_states_are_told_in_the_managers_words(manager: socket.socket) -> None:
    supervision = Supervision(environment(manager))
    supervision.ready()
    supervision.alive()
    supervision.stopping()
    assert [manager.recv(64) for _ in range(3)] == [b"READY=1", b"WATCHDOG=1", b"STOPPING=1"]


def test_an_abstract_socket_is_understood() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind("")  # unix(7), autobind: the kernel chooses an abstract name
        listening.settimeout(20)
        name = listening.getsockname()[1:].decode()
        Supervision({"NOTIFY_SOCKET": f"@{name}"}).ready()
        assert listening.recv(64) == b"READY=1"


def test_alive_is_wanted_twice_in_the_managers_limit(manager: socket.socket) -> None:
    asked = environment(manager, WATCHDOG_USEC="30000000", WATCHDOG_PID=str(os.getpid()))
    assert Supervision(asked).interval_seconds == 15.0


@pytest.mark.parametrize(
    "more", [{}, {"WATCHDOG_USEC": ""}, {"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}]
)
def test_no_sign_of_life_is_wanted_unless_this_process_was_asked(
    manager: socket.socket, more: dict[str, str]
) -> None:
    assert Supervision(environment(manager, **more)).interval_seconds is None


def test_without_a_manager_nothing_is_told_and_nothing_fails(tmp_path: Path) -> None:
    Supervision({}).ready()
    Supervision({"NOTIFY_SOCKET": str(tmp_path / "nobody")}).ready()


def test_a_loop_that_hangs_is_silent(manager: socket.socket) -> None:
    supervision = Supervision(environment(manager, WATCHDOG_USEC="20000"))
    loop = Loop()
    try:
        supervision.attend(loop)
        assert manager.recv(64) == b"WATCHDOG=1"
        for _ in range(3):
            loop.turn(1.0)
            assert manager.recv(64) == b"WATCHDOG=1"
        manager.settimeout(0.2)  # ten times the limit, in which the loop does not turn
        with pytest.raises(TimeoutError):
            manager.recv(64)
    finally:
        loop.close()


def test_a_subsystem_reports_for_duty_and_says_goodbye(manager: socket.socket, tmp_path: Path) -> None:
    config = tmp_path / "site.toml"
    config.write_text(
        f"""
        [site]
        name = "a"
        state_dir = "{tmp_path}"
        [target]
        control_socket = "control.sock"
        [target.iscsi]
        name = "iqn.2026-01.org.replctl:a"
        portals = ["127.0.0.1:0"]
        [target.san]
        name = "iqn.2026-01.org.replctl:a.san"
        portal = "127.0.0.2:0"
        initiator_name = "iqn.2026-01.org.replctl:a"
        initiators = []
        [[group]]
        name = "group1"
        journal = "journal.img"
        journal_size = "48MiB"
        san_lun = 0
        [[group.volume]]
        name = "data"
        path = "data.img"
        size = "1MiB"
        lun = 0
        """
    )
    daemon = subprocess.Popen(
        [sys.executable, "-m", "target", "--config", str(config)],
        env={**os.environ, **environment(manager, WATCHDOG_USEC="100000")},
        stderr=subprocess.DEVNULL,
    )
    try:
        assert manager.recv(64) == b"READY=1"
        assert manager.recv(64) == b"WATCHDOG=1"
        daemon.terminate()
        while (said := manager.recv(64)) == b"WATCHDOG=1":
            pass
        assert said == b"STOPPING=1"
        assert daemon.wait(timeout=30) == 0
    finally:
        daemon.kill()
        daemon.wait()
