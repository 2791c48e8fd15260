"""What fuzzing starts from: inputs that are right, or nearly so, for each target."""

from __future__ import annotations

from collections.abc import Iterator

from target.iscsi.pdu import FINAL, RESERVED_TAG, Pdu, encode_ahs
from target.iscsi.requests import (
    DataOut,
    LogoutRequest,
    NopOut,
    ScsiCommandRequest,
    SnackRequest,
    TaskManagementRequest,
    TextRequest,
)
from target.iscsi.text import encode_text
from target.journal.record import BLOCK_BYTES, EpochStart, Marker, MarkerKind, SequenceNumber
from target.scsi import cdb as cdbs
from target.scsi.sense import FieldPointer, Sense, SenseKey
from tests.unit.iscsi.wire import DISCOVERY, NORMAL
from tests.unit.journal.packs import TIME_NS, update, whole_pack

_LOGIN = {**NORMAL, "HeaderDigest": "None,CRC32C", "InitialR2T": "No", "MaxBurstLength": "0x10000"}


def _frame(pdu: Pdu, data: bytes = b"", *, immediate: bool = True, ahs: bytes = b"") -> bytes:
    header = pdu.encode(data_length=len(data), immediate=immediate, ahs=ahs)
    return header + data + bytes(-len(data) % 4)


def _command(cdb: bytes, flags: int, expected: int, tag: int = 1) -> ScsiCommandRequest:
    return ScsiCommandRequest(FINAL | flags | 1, 0, tag, expected, 0, 0, cdb.ljust(16, b"\0"))


def _session() -> Iterator[bytes]:
    yield _frame(_command(cdbs.read(0, 1), ScsiCommandRequest.READ, 512))
    yield _frame(_command(cdbs.write(0, 1), ScsiCommandRequest.WRITE, 512), bytes(252))
    write = _frame(_command(cdbs.write(0, 2), ScsiCommandRequest.WRITE, 1024))
    yield write + b"".join(
        _frame(DataOut(FINAL if part == 4 else 0, 0, 1, 1, 0, part, part * 252), bytes(252), immediate=False)
        for part in range(5)
    )
    # Found: what comes unasked is on top of what a session was asked for.
    most = _frame(_command(cdbs.write(0, 1), ScsiCommandRequest.WRITE, 64 << 20, tag=2))
    yield most + _frame(
        ScsiCommandRequest(ScsiCommandRequest.WRITE | 1, 0, 3, 1024, 0, 0, bytes(16)), bytes(4)
    )
    yield write + _frame(TaskManagementRequest(FINAL | 1, 0, 9, 1, 0, 0, 0, 0))
    yield write + _frame(TaskManagementRequest(FINAL | 5, 0, 9, RESERVED_TAG, 0, 0, 0, 0)) + write
    yield _frame(NopOut(FINAL, 0, 7, RESERVED_TAG, 0, 0), b"ping") * 3
    yield _frame(TextRequest(FINAL, 0, 5, RESERVED_TAG, 0, 0), b"SendTargets=\0MaxBurstLength=?\0")
    yield _frame(TextRequest(TextRequest.CONTINUE, 0, 5, RESERVED_TAG, 0, 0), b"X-half=")
    yield _frame(LogoutRequest(FINAL, 5, 0, 0, 0))
    yield _frame(SnackRequest(FINAL, 0, 1, RESERVED_TAG, 0, 0, 0))
    yield _frame(_command(b"\x7f", 0, 0), ahs=encode_ahs(1, bytes(5)))


def seeds() -> dict[str, list[bytes]]:
    """By name of the target."""
    session = list(_session())
    good = encode_text(_LOGIN.items())
    commands = (
        cdbs.inquiry(),
        cdbs.inquiry(page=0x83),
        cdbs.read_capacity_16(),
        cdbs.report_luns(64),
        cdbs.mode_sense_6(0x3F),
        cdbs.write(1, 2),
        cdbs.write_same(0, 8, unmap=True),
        cdbs.verify(0, 1, bytchk=1),
        cdbs.get_lba_status(0),
        cdbs.synchronize_cache(),
    )
    return {
        "pdu": [bytes([kind]) + frames for kind in (0, 1, 2, 0x80) for frames in session],
        "stream": session,
        "login": [
            bytes([0x86, 0x86]) + good,
            bytes([0x80, 0x86]) + encode_text([*NORMAL.items(), ("AuthMethod", "None")]) + b"\xfe" + good,
            bytes([0x05, 0x05]) + encode_text([*NORMAL.items(), ("AuthMethod", "CHAP")]) + b"\xfeCHAP_A=5\0",
            bytes([0x86, 0x86]) + encode_text(DISCOVERY.items()),
            bytes([0x44, 0x86]) + good[:20] + b"\xfe" + good[20:],
        ],
        "text": [good, b"HeaderDigest=?\0", b"CHAP_C=0x00ff\0CHAP_R=0bAAAA\0", b"X-a=1\0IFMarker=No\0"],
        "cdb": [bytes([len(cdb)]) + cdb + bytes(1024) for cdb in commands],
        "journal": [
            b"\0" + whole_pack([update(1), update(2)])[1][: BLOCK_BYTES + 64],
            b"\1" + bytes.fromhex("08000002 30010004 00040001"),
            b"\2" + Marker(MarkerKind.HEARTBEAT, TIME_NS, "now").encode(),
            b"\2" + EpochStart(1, 2, 3, 4, SequenceNumber(5), bytes(32), 6).encode(),
        ],
        "recovery": [b"", bytes.fromhex("000001ff"), bytes.fromhex("ff0f0155 00300177 0000027f")],
        "control": [
            b'{"op": "status", "params": {}}\n',
            b'{"group": "g", "mirror": "b", "sequence": 12}\n{"group": 1}\n[]\n',
        ],
        "site_file": [_SITE_FILE, b"iscsi://alice%secret@[::1]:3260/iqn.2024-01.example:a/0"],
        "sense": [
            Sense(SenseKey.ILLEGAL_REQUEST, 0x24, 0, 7, FieldPointer(2, 3)).encode_fixed(),
            Sense(SenseKey.MISCOMPARE, 0x1D, 0, 7, FieldPointer(2)).encode_descriptor(),
            encode_ahs(1, bytes(17)) + encode_ahs(2, bytes(4)),
        ],
    }


_SITE_FILE = b"""\
[site]
name = "a"
state_dir = "state"

[target]
control_socket = "target.sock"

[target.iscsi]
name = "iqn.2024-01.example:a"
portals = ["127.0.0.1:3260", "[::1]:3260"]

[target.san]
name = "iqn.2024-01.example:a.san"
portal = "127.0.0.1:3261"
initiator_name = "iqn.2024-01.example:a.initiator"
initiators = []

[[group]]
name = "group1"
journal = "journal"
journal_size = "64MiB"
san_lun = 0

[[group.volume]]
name = "data"
path = "data"
lun = 0
size = "8MiB"
"""
