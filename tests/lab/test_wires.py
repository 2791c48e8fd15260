"""The lab's networks by themselves, without machines: who hears whom, and what a cut does."""

from __future__ import annotations

import shutil
import socket
import struct
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts.vmlab.layout import Network, machines
from scripts.vmlab.wires import Wires
from tests.lab.conftest import unavailable

_LENGTH = struct.Struct(">I")  # QEMU's stream netdev: each frame behind its length
_LIMIT_SECONDS = 60.0
_SILENCE_SECONDS = 0.5


class Plug:
    """A machine's end of a wire, without the machine."""

    def __init__(self, wires: Wires, machine: str, network: Network) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(_LIMIT_SECONDS)
        deadline = time.monotonic() + _LIMIT_SECONDS
        while True:
            try:
                self._socket.connect(str(wires.socket(machine, network)))
                return
            except BlockingIOError:  # the hub has not seen yet that the one before is gone
                assert time.monotonic() < deadline, "the wire is not free"
                time.sleep(0.05)

    def send(self, frame: bytes) -> None:
        self._socket.sendall(_LENGTH.pack(len(frame)) + frame)

    def receive(self) -> bytes:
        (length,) = _LENGTH.unpack(self._exactly(_LENGTH.size))
        return self._exactly(length)

    def hears_nothing(self) -> bool:
        self._socket.settimeout(_SILENCE_SECONDS)
        try:
            return not self._socket.recv(1)
        except TimeoutError:
            return True
        finally:
            self._socket.settimeout(_LIMIT_SECONDS)

    def close(self) -> None:
        self._socket.close()

    def _exactly(self, length: int) -> bytes:
        data = b""
        while len(data) < length:
            part = self._socket.recv(length - len(data))
            assert part, "the wire was closed"
            data += part
        return data


def frame(text: str) -> bytes:
    """To everybody, 60 bytes long as the shortest Ethernet frame is without its check sequence."""
    return b"\xff" * 6 + bytes.fromhex("525400020001") + b"\x88\xb5" + text.encode().ljust(46)


@pytest.fixture
def wires() -> Iterator[Wires]:
    if shutil.which("qemu-system-x86_64") is None:
        unavailable("not installed: qemu-system-x86 (scripts/lab installs what it needs)")
    with tempfile.TemporaryDirectory() as directory:  # pytest's own are too long for UNIX sockets
        wires = Wires(Path(directory))
        wires.start(machines(3))
        try:
            yield wires
        finally:
            assert wires.stop()
            assert not wires.running


def test_a_frame_reaches_the_others_of_its_network_alone(wires: Wires) -> None:
    a, b, c = (Plug(wires, name, Network.SAN) for name in "abc")
    elsewhere = Plug(wires, "b", Network.MANAGEMENT)
    a.send(frame("one"))
    assert b.receive() == c.receive() == frame("one")
    assert elsewhere.hears_nothing()


def test_a_cut_wire_carries_nothing_and_a_joined_one_does_again(wires: Wires) -> None:
    a, b, c = (Plug(wires, name, Network.SAN) for name in "abc")
    assert wires.cut("b", Network.SAN)
    assert not wires.cut("b", Network.SAN), "it was cut already"
    assert wires.cuts() == {("b", Network.SAN)}
    a.send(frame("lost"))
    assert c.receive() == frame("lost")
    assert b.hears_nothing()
    b.send(frame("lost too"))
    assert a.hears_nothing()
    assert wires.join("b", Network.SAN)
    assert wires.cuts() == set()
    a.send(frame("heard"))
    assert b.receive() == frame("heard")


def test_a_machine_that_was_powered_off_finds_its_wire_again(wires: Wires) -> None:
    a, b = (Plug(wires, name, Network.FRONT) for name in "ab")
    b.close()
    a.send(frame("to nobody"))
    b = Plug(wires, "b", Network.FRONT)
    b.send(frame("back"))
    assert a.receive() == frame("back")
    a.send(frame("welcome"))
    assert b.receive() == frame("welcome")
