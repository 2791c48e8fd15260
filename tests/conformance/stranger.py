"""A peer that says what it likes over a real socket, and a healthy session beside it that must not notice."""

from __future__ import annotations

import itertools
import os
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol

from target.iscsi.address import parse_address
from target.iscsi.client import Client
from target.iscsi.pdu import BHS_BYTES, FINAL, RESERVED_TAG, Pdu, digest, frame_bytes
from target.iscsi.requests import DataOut, LoginRequest, NopOut, ScsiCommandRequest
from target.iscsi.responses import R2T, LoginResponse, NopIn, Reject, ScsiResponse
from target.iscsi.text import decode_text, encode_text
from tests.unit.iscsi.server import BLOCK, TARGET, Server
from tests.unit.iscsi.wire import PDU_CLASSES

SECONDS = 30.0
NAME = "iqn.2024-01.example:stranger"


_numbers = itertools.count(1)


class HasAddress(Protocol):
    """Where to connect to."""

    @property
    def address(self) -> str: ...


class Stranger:
    """A connection, of an initiator port of its own. Nothing is sent but what a test says."""

    def __init__(self, server: HasAddress) -> None:
        self.socket = socket.create_connection(parse_address(server.address), SECONDS)
        self.socket.settimeout(SECONDS)
        self.isid = b"\x80" + next(_numbers).to_bytes(3, "big") + b"\0\0"
        self.cmd_sn = 1
        self.header_digest = 0
        self.data_digest = 0
        self._received = b""

    def __enter__(self) -> Stranger:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    # Sending

    def send(self, raw: bytes) -> None:
        """As far as the target takes it: it may close the connection amid this."""
        try:
            self.socket.sendall(raw)
        except (BrokenPipeError, ConnectionResetError):
            pass

    def encode(
        self,
        pdu: Pdu,
        data: bytes = b"",
        *,
        immediate: bool = False,
        break_digest: str = "",
        ahs: bytes = b"",
    ) -> bytes:
        header = pdu.encode(data_length=len(data), immediate=immediate, ahs=ahs)
        padded = data + bytes(-len(data) % 4)
        raw = header
        if self.header_digest:
            raw += digest(header) if break_digest != "header" else b"\xde\xad\xbe\xef"
        raw += padded
        if self.data_digest and data:
            raw += digest(padded) if break_digest != "data" else b"\xde\xad\xbe\xef"
        return raw

    def send_pdu(self, pdu: Pdu, data: bytes = b"", **options: object) -> None:
        self.send(self.encode(pdu, data, **options))  # type: ignore[arg-type]

    def login_bytes(
        self,
        keys: Mapping[str, str] | None = None,
        *,
        isid: bytes | None = None,
        flags: int = 0x87,
    ) -> bytes:
        pairs = {"InitiatorName": NAME, "TargetName": TARGET, **(keys or {})}
        text = encode_text(pairs.items())
        request = LoginRequest(
            flags=flags,
            version_max=0,
            version_min=0,
            isid=isid or self.isid,
            tsih=0,
            initiator_task_tag=0,
            cid=0,
            cmd_sn=self.cmd_sn,
            exp_stat_sn=0,
        )
        header = request.encode(data_length=len(text), immediate=True)
        return header + text + bytes(-len(text) % 4)

    def login(self, **keys: str) -> None:
        """To full feature phase, past the unit attention of a new session."""
        self.send(self.login_bytes(keys))
        response, text = self.receive()
        assert isinstance(response, LoginResponse)
        assert response.status == 0, hex(response.status)
        answers = dict(decode_text(text))
        self.header_digest = 4 if answers.get("HeaderDigest") == "CRC32C" else 0
        self.data_digest = 4 if answers.get("DataDigest") == "CRC32C" else 0
        self.command(bytes(6))
        assert isinstance(self.receive()[0], ScsiResponse)

    def command(
        self,
        cdb: bytes,
        *,
        tag: int = 1,
        read: int = 0,
        write: int = 0,
        data: bytes = b"",
        final: bool = True,
        cmd_sn: int | None = None,
        break_digest: str = "",
        ahs: bytes = b"",
    ) -> None:
        if cmd_sn is None:
            cmd_sn = self.cmd_sn
            self.cmd_sn = cmd_sn + 1 & 0xFFFFFFFF
        flags = 1 | (FINAL if final else 0)
        flags |= ScsiCommandRequest.READ if read else 0
        flags |= ScsiCommandRequest.WRITE if write else 0
        request = ScsiCommandRequest(flags, 0, tag, read or write, cmd_sn, 0, cdb.ljust(16, b"\0"))
        self.send_pdu(request, data, break_digest=break_digest, ahs=ahs)

    def data_out(
        self,
        tag: int,
        transfer_tag: int,
        data: bytes,
        *,
        data_sn: int = 0,
        offset: int = 0,
        final: bool = True,
        break_digest: str = "",
    ) -> None:
        request = DataOut(FINAL if final else 0, 0, tag, transfer_tag, 0, data_sn, offset)
        self.send_pdu(request, data, break_digest=break_digest)

    def nop(self, data: bytes = b"", tag: int = 7) -> bytes:
        request = NopOut(FINAL, 0, tag, RESERVED_TAG, self.cmd_sn, 0)
        return self.encode(request, data, immediate=True)

    def answer_ping(self, ping: NopIn) -> None:
        answer = NopOut(FINAL, 0, RESERVED_TAG, ping.target_transfer_tag, self.cmd_sn, 0)
        self.send_pdu(answer, immediate=True)

    # Receiving

    def receive(self) -> tuple[Pdu, bytes]:
        """The next PDU. ConnectionError when there is none."""
        self._fill(BHS_BYTES)
        lengths = int.from_bytes(self._received[4:8], "big")
        size = frame_bytes(lengths, self.header_digest, self.data_digest)
        self._fill(size)
        frame, self._received = self._received[:size], self._received[size:]
        start = BHS_BYTES + self.header_digest
        return PDU_CLASSES[frame[0] & 0x3F].decode(frame), frame[start : start + (lengths & 0xFFFFFF)]

    def _fill(self, count: int) -> None:
        while len(self._received) < count:
            more = self.socket.recv(65536)
            if not more:
                raise ConnectionError("closed by the target")
            self._received += more

    def receive_r2t(self) -> R2T:
        pdu, _ = self.receive()
        assert isinstance(pdu, R2T), pdu
        return pdu

    def is_closed(self) -> bool:
        """Waits for the end of the connection."""
        try:
            while self.socket.recv(65536):
                pass
        except ConnectionError:
            pass
        return True

    def is_rejected(self, reason: int) -> bool:
        pdu, _ = self.receive()
        return isinstance(pdu, Reject) and pdu.reason == reason

    def goes_on(self) -> bool:
        """The session answers a ping, and has answered nothing before it."""
        self.send(self.nop(b"still there?"))
        pdu, data = self.receive()
        return isinstance(pdu, NopIn) and data == b"still there?"


class Bystander:
    """A healthy session that writes and verifies without a pause."""

    def __init__(self, server: Server) -> None:
        self.rounds = 0
        self.error: Exception | None = None
        self._client = Client.connect(server.url(), initiator_name="iqn.2024-01.example:bystander")
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="bystander")
        self._thread.start()

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                lba = 8 * (self.rounds % 100)
                data = os.urandom(8 * BLOCK)
                self._client.write(lba, data)
                if self._client.read(lba, 8) != data:
                    raise AssertionError(f"block {lba} does not hold what was written")
                self.rounds += 1
        except Exception as error:  # told in the test's thread
            self.error = error

    def goes_on(self, rounds: int = 3) -> bool:
        """Waits until so many more rounds were done in the one session."""
        goal = self.rounds + rounds
        while self.rounds < goal:
            if self.error is not None:
                raise self.error
            self._stop.wait(0.001)
        return True

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(SECONDS)
        self._client.close()
        if self.error is not None:
            raise self.error


@contextmanager
def beside(server: Server) -> Iterator[Bystander]:
    """A bystander; at the end it must have gone on, and of everybody else nothing may be left."""
    bystander = Bystander(server)
    try:
        bystander.goes_on()
        yield bystander
        bystander.goes_on()
        server.wait_for(lambda: server.portal.connection_count == 1)
        assert bystander.goes_on()
        server.wait_for(lambda: server.portal.registry.budget.taken_bytes <= 8 * BLOCK)
    finally:
        bystander.stop()
