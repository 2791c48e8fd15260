"""One iSCSI session of the benchmark's client: a login without security, and the parameters it ended with.

Kept apart from the project's own initiator on purpose: the client that measures shares no code with the
target that is measured, and prepares its PDUs before the clock runs. Every key is offered as libiscsi offers
it (RFC 7143, section 13), so that the targets see what a real initiator asks for.
"""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass

BHS_BYTES = 48
LOGIN_REQUEST, LOGIN_RESPONSE, SCSI_RESPONSE, DATA_IN = 0x03, 0x23, 0x21, 0x25
_COMMAND_BHS = struct.Struct(">BBxx I 8s II II 16s")
_LOGIN_BHS = struct.Struct(">BBBB I 6s H IHH II 16x")
_RESPONSE_NUMBERS = struct.Struct(">III")  # StatSN, ExpCmdSN, MaxCmdSN: bytes 24 to 35 of every answer
_SECURITY_STAGE, _OPERATIONAL_STAGE, _FULL_FEATURE_PHASE = 0, 1, 3
_BURST_BYTES = 262144

OFFERED = {
    "HeaderDigest": "None",
    "DataDigest": "None",
    "InitialR2T": "No",
    "ImmediateData": "Yes",
    "MaxBurstLength": str(_BURST_BYTES),
    "FirstBurstLength": str(_BURST_BYTES),
    "MaxRecvDataSegmentLength": str(_BURST_BYTES),
    "MaxOutstandingR2T": "1",
    "MaxConnections": "1",
    "DefaultTime2Wait": "2",
    "DefaultTime2Retain": "0",
    "ErrorRecoveryLevel": "0",
    "DataPDUInOrder": "Yes",
    "DataSequenceInOrder": "Yes",
    "IFMarker": "No",
    "OFMarker": "No",
}


class BenchmarkError(Exception):
    """A target did not do what a benchmark needs; the message says which and what."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What the login ended with, from the view of data that the initiator sends. Lengths are bytes."""

    immediate_bytes: int
    """Data that may travel in the command PDU itself."""
    unsolicited_bytes: int
    """Data that may be sent without being asked for, the immediate data included."""
    segment_bytes: int
    """The longest data segment that the target takes."""


class Session:
    """A logged-in connection and its counters. `cmd_sn` is the next to use."""

    def __init__(self, portal: tuple[str, int], target_name: str, number: int = 0) -> None:
        self.socket = socket.create_connection(portal)
        # The kernel's time limit: that of Python's socket object costs a poll(2) before every call.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("@ll", 60, 0))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.cmd_sn = 1
        self.exp_stat_sn = 0
        self.max_cmd_sn = 1
        self._isid = struct.pack(">BHBH", 0x80, 0, 0, number)  # 10b: "random" format, RFC 7143 11.12.5
        answers = self._login(target_name)
        # What was not answered keeps what was offered, or for the declared one its default (section 13.12).
        segment = int(answers.get("MaxRecvDataSegmentLength", "8192"))
        first_burst = min(_BURST_BYTES, int(answers.get("FirstBurstLength", _BURST_BYTES)))
        immediate = min(segment, first_burst) if answers.get("ImmediateData", "Yes") == "Yes" else 0
        unsolicited = first_burst if answers.get("InitialR2T", "No") == "No" else immediate
        self.limits = Limits(immediate, unsolicited, segment)

    def wait_ready(self, lun: int) -> None:
        """Take delivery of unit attentions (SPC-4 5.14): the first commands after a login may get them."""
        for _ in range(8):
            if self.command(lun, bytes(6), 0)[0] == 0:
                return
        raise BenchmarkError(f"logical unit {lun} is not ready")

    def command(self, lun: int, cdb: bytes, data_in_bytes: int) -> tuple[int, bytes]:
        """One command without data out, and nothing else outstanding: (status, data in)."""
        flags = 0xC1 if data_in_bytes else 0x81
        lun_field = bytes([lun >> 8, lun & 0xFF]) + bytes(6)
        header = _COMMAND_BHS.pack(
            0x01, flags, 0, lun_field, 0, data_in_bytes, self.cmd_sn, self.exp_stat_sn, cdb.ljust(16, b"\0")
        )
        self.cmd_sn += 1
        self.socket.sendall(header)
        data_in = b""
        while True:
            bhs, data = self.receive()
            stat_sn, _, self.max_cmd_sn = _RESPONSE_NUMBERS.unpack_from(bhs, 24)
            if bhs[0] == DATA_IN:
                data_in += data
            if bhs[0] == SCSI_RESPONSE or (bhs[0] == DATA_IN and bhs[1] & 1):
                self.exp_stat_sn = stat_sn + 1
                return bhs[3], data_in

    def close(self) -> None:
        """Drop the connection; targets take that for a logout."""
        self.socket.close()

    def _login(self, target_name: str) -> dict[str, str]:
        keys = {
            "InitiatorName": "iqn.2026-01.org.replctl:benchmark",
            "TargetName": target_name,
            "SessionType": "Normal",
            "AuthMethod": "None",
        }
        tsih, first = self._exchange(_SECURITY_STAGE, _OPERATIONAL_STAGE, keys, 0)
        _, second = self._exchange(_OPERATIONAL_STAGE, _FULL_FEATURE_PHASE, OFFERED, tsih)
        return first | second

    def _exchange(
        self, stage: int, next_stage: int, keys: dict[str, str], tsih: int
    ) -> tuple[int, dict[str, str]]:
        """One login request with transit, and its response: (TSIH, keys)."""
        text = b"".join(f"{key}={value}\0".encode() for key, value in keys.items())
        flags = 0x80 | stage << 2 | next_stage
        bhs = _LOGIN_BHS.pack(
            0x40 | LOGIN_REQUEST,
            flags,
            0,
            0,
            len(text),
            self._isid,
            tsih,
            1,
            0,
            0,
            self.cmd_sn,
            self.exp_stat_sn,
        )
        self.socket.sendall(bhs + text + bytes(-len(text) % 4))
        response, data = self.receive()
        if (
            response[0] & 0x3F != LOGIN_RESPONSE
            or response[36:38] != b"\0\0"
            or response[1] & 0x83 != 0x80 | next_stage
        ):
            raise BenchmarkError(f"the login was refused: response {response.hex()}, {data!r}")
        stat_sn, self.cmd_sn, self.max_cmd_sn = _RESPONSE_NUMBERS.unpack_from(response, 24)
        self.exp_stat_sn = stat_sn + 1
        answers = dict(pair.decode().split("=", 1) for pair in data.split(b"\0") if pair)
        return struct.unpack_from(">H", response, 14)[0], answers

    def receive(self) -> tuple[bytes, bytes]:
        """One whole PDU: (BHS, data segment)."""
        bhs = self._receive_exactly(BHS_BYTES)
        length = int.from_bytes(bhs[5:8], "big")
        return bhs, self._receive_exactly(length + -length % 4)[:length]

    def _receive_exactly(self, length: int) -> bytes:
        parts = []
        while length:
            part = self.socket.recv(length)
            if not part:
                raise BenchmarkError("the target closed the connection")
            parts.append(part)
            length -= len(part)
        return b"".join(parts)
