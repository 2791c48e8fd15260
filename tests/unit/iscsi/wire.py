"""The target side of a connection in memory: bytes in, PDUs out. What the tests of login and session talk to.

Bytes are fed as the test says: whole, one by one, or with the start of the next PDU behind them; the
answers must be the same. The receive buffer is wiped after every turn, as the portal's is reused, so that a
task which keeps a slice of it is found out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from enum import Enum, auto

from target.iscsi.connection import TargetConnection
from target.iscsi.node import TargetNode
from target.iscsi.pdu import BHS_BYTES, FINAL, Pdu, digest, frame_bytes
from target.iscsi.registry import SessionRegistry
from target.iscsi.requests import LoginRequest, ScsiCommandRequest
from target.iscsi.responses import LoginResponse
from target.iscsi.text import Pairs, decode_text, encode_text
from target.scsi import cdb as cdbs
from target.scsi.device_server import Device
from target.scsi.logical_unit import LogicalUnit
from tests.unit.scsi.memory_volume import MemoryVolume

TARGET = "iqn.2024-01.example:target"
INITIATOR = "iqn.2024-01.example:initiator"
ISID = b"\x80\x01\x02\x03\x00\x00"
BLOCK = 512
PDU_CLASSES: dict[int, type[Pdu]] = {cls.opcode: cls for cls in Pdu.__subclasses__()}

NORMAL = {"InitiatorName": INITIATOR, "SessionType": "Normal", "TargetName": TARGET}
DISCOVERY = {"InitiatorName": INITIATOR, "SessionType": "Discovery"}


class Feed(Enum):
    """How bytes arrive."""

    WHOLE = auto()
    BYTE_BY_BYTE = auto()
    UNEVEN = auto()


class Received:
    """One PDU from the target."""

    def __init__(self, pdu: Pdu, data: bytes) -> None:
        self.pdu = pdu
        self.data = data

    def __repr__(self) -> str:
        return f"{self.pdu!r} + {len(self.data)} bytes"


def fixed_random(count: int) -> bytes:
    return bytes(range(1, count + 1))


def node(volume: MemoryVolume | None = None, **options: object) -> TargetNode:
    units = {0: LogicalUnit(volume or MemoryVolume())}
    return TargetNode(TARGET, Device(units), **options)  # type: ignore[arg-type]


class Wire:
    """One connection at the target; it is its owner too."""

    def __init__(
        self,
        nodes: Sequence[TargetNode],
        *,
        feed: Feed = Feed.WHOLE,
        registry: SessionRegistry | None = None,
        random_bytes: Callable[[int], bytes] = fixed_random,
    ) -> None:
        self.feed = feed
        self.registry = registry if registry is not None else SessionRegistry()
        self.logins = 0
        self.ended: str | None = None
        self.outputs_announced = 0
        self.header_digest = 0
        self.data_digest = 0
        self.connection = TargetConnection(
            nodes, self.registry, self, "127.0.0.1:3260", random_bytes, self._count_login
        )
        self._pending = b""
        self.cmd_sn = 1
        self.tag = 0

    def _count_login(self, admission: object) -> None:
        self.logins += 1

    # SessionOwner

    def output_ready(self) -> None:
        self.outputs_announced += 1

    def end(self, reason: str) -> None:
        self.ended = reason

    # Bytes

    def send(self, raw: bytes) -> None:
        """Feed the target. ProtocolError comes through."""
        if self.feed is Feed.WHOLE:
            pieces = [raw]
        elif self.feed is Feed.BYTE_BY_BYTE:
            pieces = [raw[index : index + 1] for index in range(len(raw))]
        else:
            pieces = [raw[:7], raw[7:61], raw[61:]]
        for piece in pieces:
            self._turn(piece)

    def _turn(self, piece: bytes) -> None:
        buffer = bytearray(self._pending + piece)
        with memoryview(buffer) as view:
            taken = self.connection.receive(view, 0, len(view))
        self._pending = bytes(buffer[taken:])
        buffer[:] = b"\xee" * len(buffer)

    def send_pdu(
        self,
        pdu: Pdu,
        data: bytes = b"",
        *,
        immediate: bool = False,
        ahs: bytes = b"",
        break_digest: str = "",
    ) -> None:
        self.send(
            self.encode(pdu, data, immediate=immediate, ahs=ahs, break_digest=break_digest),
        )

    def encode(
        self,
        pdu: Pdu,
        data: bytes = b"",
        *,
        immediate: bool = False,
        ahs: bytes = b"",
        break_digest: str = "",
    ) -> bytes:
        header = pdu.encode(data_length=len(data), immediate=immediate, ahs=ahs)
        raw = header
        if self.header_digest:
            raw += digest(header) if break_digest != "header" else b"\0\0\0\0"
        padded = data + b"\0" * (-len(data) % 4)
        raw += padded
        if self.data_digest and data:
            raw += digest(padded) if break_digest != "data" else b"\0\0\0\0"
        return raw

    def take(self) -> list[Received]:
        """The PDUs the target has sent since the last time, digests checked."""
        output = self.connection.output
        raw = b"".join(bytes(buffer) for buffer in output)
        output.clear()
        session = self.connection.session
        if session is not None:
            session.output_bytes = 0
        found: list[Received] = []
        while raw:
            lengths = int.from_bytes(raw[4:8], "big")
            size = frame_bytes(lengths, self.header_digest, self.data_digest)
            frame, raw = raw[:size], raw[size:]
            start = BHS_BYTES + self.header_digest
            if self.header_digest:
                assert frame[BHS_BYTES:start] == digest(frame[:BHS_BYTES])
            length = lengths & 0xFFFFFF
            padded = start + (length + 3 & ~3)
            if self.data_digest and length:
                assert frame[padded:] == digest(frame[start:padded])
            found.append(Received(PDU_CLASSES[frame[0] & 0x3F].decode(frame), frame[start : start + length]))
        return found

    def take_one(self) -> Received:
        received = self.take()
        assert len(received) == 1, received
        return received[0]

    # Login

    def login_request(
        self,
        keys: Mapping[str, str] | Pairs,
        *,
        csg: int = 1,
        nsg: int = 3,
        transit: bool = True,
        tsih: int = 0,
        isid: bytes = ISID,
        cid: int = 0,
        version_min: int = 0,
        continues: bool = False,
        cut: int | None = None,
    ) -> tuple[LoginResponse, dict[str, str]]:
        """Send one Login Request; the response and its keys."""
        pairs = list(keys.items()) if isinstance(keys, Mapping) else keys
        text = encode_text(pairs)[:cut]
        flags = csg << 2 | (LoginRequest.CONTINUE if continues else 0)
        if transit:
            flags |= LoginRequest.TRANSIT | nsg
        request = LoginRequest(
            flags=flags,
            version_max=0,
            version_min=version_min,
            isid=isid,
            tsih=tsih,
            initiator_task_tag=7,
            cid=cid,
            cmd_sn=self.cmd_sn,
            exp_stat_sn=0,
        )
        self.send_pdu(request, text, immediate=True)
        received = self.take_one()
        response = received.pdu
        assert isinstance(response, LoginResponse)
        assert response.initiator_task_tag == 7
        assert response.isid == isid
        return response, dict(decode_text(received.data))

    def login(self, **keys: str) -> dict[str, str]:
        """A normal session, straight to full feature phase; what was agreed."""
        response, answers = self.login_request({**NORMAL, **keys})
        assert response.status == 0, hex(response.status)
        assert response.transit
        assert self.connection.session is not None
        self.header_digest = 4 if answers.get("HeaderDigest") == "CRC32C" else 0
        self.data_digest = 4 if answers.get("DataDigest") == "CRC32C" else 0
        self._clear_unit_attention()
        return answers

    def _clear_unit_attention(self) -> None:
        """A new nexus is told POWER ON once (SPC-4 5.10)."""
        if self.connection.session is not None and self.connection.session.node is not None:
            self.command(cdbs.test_unit_ready())
            self.take()

    # Commands

    def command(
        self,
        cdb: bytes,
        *,
        read: int = 0,
        write: int = 0,
        data: bytes = b"",
        final: bool = True,
        immediate: bool = False,
        lun: int = 0,
        cmd_sn: int | None = None,
        tag: int | None = None,
        ahs: bytes = b"",
        break_digest: str = "",
    ) -> int:
        """Send a SCSI Command; its initiator task tag."""
        if tag is None:
            self.tag += 1
            tag = self.tag
        flags = (FINAL if final else 0) | 1
        flags |= ScsiCommandRequest.READ if read else 0
        flags |= ScsiCommandRequest.WRITE if write else 0
        if cmd_sn is None:
            cmd_sn = self.cmd_sn
            if not immediate:
                self.cmd_sn = self.cmd_sn + 1 & 0xFFFFFFFF
        request = ScsiCommandRequest(
            flags=flags,
            lun=lun << 48,
            initiator_task_tag=tag,
            expected_data_transfer_length=read or write,
            cmd_sn=cmd_sn,
            exp_stat_sn=0,
            cdb=cdb.ljust(16, b"\0")[:16],
        )
        self.send_pdu(request, data, immediate=immediate, ahs=ahs, break_digest=break_digest)
        return tag
