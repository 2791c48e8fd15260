"""What a hostile or broken initiator may do: lose its command, or its connection. Never more.

Each test attacks a real portal with a healthy session beside it. `beside` checks the rest: the healthy
session goes on, and of the attacker no connection, no session and no memory is left.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Iterator

import pytest

from target.iscsi.pdu import FINAL, RESERVED_TAG, encode_ahs
from target.iscsi.requests import (
    LogoutRequest,
    NopOut,
    SnackRequest,
    TaskManagementRequest,
    TextRequest,
)
from target.iscsi.responses import LoginResponse, ScsiResponse
from target.scsi import cdb as cdbs
from target.scsi.sense import decode_sense
from tests.conformance.stranger import Bystander, Stranger, beside
from tests.unit.iscsi.server import BLOCK, Server, node, serving
from tests.unit.scsi.memory_volume import MemoryVolume

R2T_ONLY = {"InitialR2T": "Yes", "ImmediateData": "No", "MaxBurstLength": "2048"}
DIGESTS = {"HeaderDigest": "CRC32C", "DataDigest": "CRC32C"}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving(node(MemoryVolume(64 << 20))) as one:
        yield one


@pytest.fixture
def bystander(server: Server) -> Iterator[Bystander]:
    with beside(server) as one:
        yield one


@pytest.fixture
def stranger(server: Server, bystander: Bystander) -> Iterator[Stranger]:
    with Stranger(server) as one:
        yield one


# Before the login


def header(opcode: int, flags: int, lengths: int, rest: bytes = b"") -> bytes:
    return (struct.pack(">BBHI", opcode, flags, 0, lengths) + rest).ljust(48, b"\0")


BEFORE_LOGIN = {
    **{
        f"opcode {opcode:#04x}": header(opcode, 0x80, 0)
        for opcode in (0x00, 0x01, 0x02, 0x04, 0x05, 0x06, 0x10, 0x1C, 0x20, 0x23, 0x3F, 0x40, 0x41, 0xFF)
    },
    "a login of 16 MiB": header(0x43, 0x87, 0xFFFFFF) + bytes(1 << 16),
    "stages that do not exist": header(0x43, 0x8B, 0),
    "T and C": header(0x43, 0xC7, 0),
    "no keys": header(0x43, 0x87, 0),
    "no text": header(0x43, 0x87, 8) + b"\xff\xfe\xfd\xfc\0\0\0\0",
    "no pairs": header(0x43, 0x87, 8) + b"NoEquals",
    "a key of 64 bytes": header(0x43, 0x87, 72) + b"k" * 64 + b"=value\0\0",
    "a TSIH of nobody": header(0x43, 0x87, 40, bytes(6) + b"\x12\x34")
    + b"InitiatorName=iqn.2024-01.example:me\0\0\0\0",
}


@pytest.mark.parametrize("name", BEFORE_LOGIN)
def test_what_is_no_login_closes_the_connection(stranger: Stranger, name: str) -> None:
    stranger.send(BEFORE_LOGIN[name])
    assert stranger.is_closed()


@pytest.mark.parametrize("cut", [1, 47, 48, 60])
@pytest.mark.parametrize("lengths", [0, 64, 0xFF << 24, 0xFF << 24 | 16384])
def test_a_login_that_announces_more_than_comes(stranger: Stranger, cut: int, lengths: int) -> None:
    raw = stranger.login_bytes()
    stranger.send((raw[:4] + lengths.to_bytes(4, "big") + raw[8:])[:cut])
    stranger.socket.shutdown(socket.SHUT_WR)
    assert stranger.is_closed()


def test_a_login_with_additional_headers_is_read_past_them(stranger: Stranger) -> None:
    raw = stranger.login_bytes()
    lengths = 0xFF << 24 | int.from_bytes(raw[4:8], "big")
    stranger.send(raw[:4] + lengths.to_bytes(4, "big") + raw[8:48] + b"\xff" * 1020 + raw[48:])
    response, _ = stranger.receive()
    assert isinstance(response, LoginResponse)
    assert response.status == 0


def test_text_without_an_end_is_refused(stranger: Stranger) -> None:
    """The C bit for ever: 64 KiB are kept, then the login fails."""
    for _ in range(20):
        raw = stranger.login_bytes({"X-padding": "y" * 8000}, flags=0x44)
        stranger.send(raw)
    statuses: list[int] = []
    while not statuses or statuses[-1] == 0:
        response, _ = stranger.receive()
        assert isinstance(response, LoginResponse)
        statuses.append(response.status)
    assert statuses[-1] == 0x0200
    assert stranger.is_closed()


def test_who_sends_slowly_is_shown_out() -> None:
    """A byte now and then does not prolong the time that a login may take."""
    with serving(node(), login_timeout_seconds=3.0) as server, beside(server), Stranger(server) as stranger:
        raw = stranger.login_bytes({"X-padding": "y" * 8000})
        stranger.socket.settimeout(0.01)
        sent = 0
        while sent < len(raw):
            try:
                stranger.socket.sendall(raw[sent : sent + 1])
                sent += 1
                if not stranger.socket.recv(100):
                    break
            except TimeoutError:
                continue
            except ConnectionError:
                break
        assert sent < len(raw)


def test_connections_that_say_nothing_keep_nobody_out() -> None:
    with serving(node(), login_timeout_seconds=5.0) as server, beside(server) as bystander:
        silent = [Stranger(server) for _ in range(300)]
        server.wait_for(lambda: server.portal.connection_count > 200)
        with Stranger(server) as another:
            another.login()
            assert another.goes_on()
        assert bystander.goes_on()
        assert all(one.is_closed() for one in silent)
        for one in silent:
            one.socket.close()


def test_of_too_many_that_say_nothing_the_oldest_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("target.iscsi.portal._LOGINS_MAX", 10)
    with serving(node()) as server, beside(server):
        silent = [Stranger(server) for _ in range(10)]
        server.wait_for(lambda: server.portal.connection_count == 11)
        with Stranger(server) as another:
            another.login()
            assert silent[0].is_closed()
            assert another.goes_on()
            silent[1].login()
            assert silent[1].goes_on()
        for one in silent:
            one.socket.close()


def test_connections_that_are_reset(server: Server, bystander: Bystander) -> None:
    for count in range(100):
        with Stranger(server) as one:
            one.send(one.login_bytes()[: count * 2])
            one.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


# In full feature phase: what ends the connection


def lying_segment(stranger: Stranger) -> None:
    stranger.send(header(0x01, 0xA1, 0xFFFFFF))


def segment_beyond_what_was_declared(stranger: Stranger) -> None:
    stranger.send(header(0x01, 0xA1, 262145))


def lying_additional_header(stranger: Stranger) -> None:
    stranger.command(cdbs.read(0, 1), read=BLOCK, ahs=b"\xff\xff\x01\0")


def additional_header_too_short(stranger: Stranger) -> None:
    stranger.command(cdbs.read(0, 1), read=BLOCK, ahs=encode_ahs(1, b"\0" * 9) + b"\0\x05\x01\0")


def two_extended_cdbs(stranger: Stranger) -> None:
    stranger.command(cdbs.read(0, 1), read=BLOCK, ahs=encode_ahs(1, bytes(5)) * 2)


def tag_in_use(stranger: Stranger) -> None:
    for _ in range(2):
        stranger.command(cdbs.write(0, 8), write=8 * BLOCK, tag=5)


def reserved_tag(stranger: Stranger) -> None:
    stranger.command(cdbs.read(0, 1), read=BLOCK, tag=RESERVED_TAG)


def data_with_a_read(stranger: Stranger) -> None:
    stranger.command(cdbs.read(0, 1), read=BLOCK, data=bytes(BLOCK))


def immediate_data_where_none_may_come(stranger: Stranger) -> None:
    stranger.command(cdbs.write(0, 1), write=BLOCK, data=bytes(BLOCK))


def more_immediate_data_than_expected(stranger: Stranger) -> None:
    stranger.command(cdbs.write(0, 1), write=4, data=bytes(BLOCK))


def unsolicited_data_where_none_may_come(stranger: Stranger) -> None:
    stranger.command(cdbs.write(0, 1), write=BLOCK, final=False)


def transfer_tag_of_nobody(stranger: Stranger) -> None:
    stranger.command(cdbs.write(0, 8), write=8 * BLOCK)
    r2t = stranger.receive_r2t()
    stranger.data_out(1, r2t.target_transfer_tag + 99, bytes(2048))


def much_ahead_of_its_turn(stranger: Stranger) -> None:
    stranger.send(
        b"".join(
            stranger.encode(
                NopOut(FINAL, 0, number, RESERVED_TAG, stranger.cmd_sn + number, 0), bytes(262144)
            )
            for number in range(1, 40)
        )
    )


def text_without_an_end(stranger: Stranger) -> None:
    transfer_tag = RESERVED_TAG
    for _ in range(8):
        request = TextRequest(TextRequest.CONTINUE, 0, 5, transfer_tag, stranger.cmd_sn, 0)
        stranger.send_pdu(request, b"x" * 8192, immediate=True)
        pdu, _ = stranger.receive()
        transfer_tag = pdu.target_transfer_tag  # type: ignore[attr-defined]
    request = TextRequest(TextRequest.CONTINUE, 0, 5, transfer_tag, stranger.cmd_sn, 0)
    stranger.send_pdu(request, b"x", immediate=True)


def text_that_is_none(stranger: Stranger) -> None:
    stranger.send_pdu(TextRequest(FINAL, 0, 5, RESERVED_TAG, stranger.cmd_sn, 0), b"\xff\xff", immediate=True)


def logout(stranger: Stranger) -> None:
    stranger.send_pdu(LogoutRequest(FINAL, 5, 0, stranger.cmd_sn, 0), immediate=True)
    stranger.command(cdbs.read(0, 1), read=BLOCK)


ENDS = [
    lying_segment,
    segment_beyond_what_was_declared,
    lying_additional_header,
    additional_header_too_short,
    two_extended_cdbs,
    tag_in_use,
    reserved_tag,
    data_with_a_read,
    immediate_data_where_none_may_come,
    more_immediate_data_than_expected,
    unsolicited_data_where_none_may_come,
    transfer_tag_of_nobody,
    much_ahead_of_its_turn,
    text_without_an_end,
    text_that_is_none,
    logout,
]


@pytest.mark.parametrize("attack", ENDS, ids=lambda attack: attack.__name__)
def test_what_ends_the_connection(stranger: Stranger, attack: Callable[[Stranger], None]) -> None:
    stranger.login(**R2T_ONLY)
    attack(stranger)
    assert stranger.is_closed()


@pytest.mark.parametrize("which", ["header", "data"])
def test_a_wrong_digest_of_a_command_ends_the_connection(stranger: Stranger, which: str) -> None:
    stranger.login(**DIGESTS)
    stranger.command(cdbs.write(0, 1), write=BLOCK, data=bytes(BLOCK), break_digest=which)
    if which == "data":
        assert stranger.is_rejected(0x02)
    assert stranger.is_closed()


# What only the command pays for, or nobody


def test_commands_outside_the_window_are_ignored(stranger: Stranger) -> None:
    stranger.login()
    for delta in (-1, -2, 128, 129, 1 << 31, (1 << 31) - 1):
        stranger.command(cdbs.write(0, 1), write=BLOCK, cmd_sn=stranger.cmd_sn + delta & 0xFFFFFFFF)
    assert stranger.goes_on()


def test_unknown_opcodes_are_rejected(stranger: Stranger) -> None:
    stranger.login()
    for opcode in (0x03, 0x07, 0x0F, 0x1C, 0x1F, 0x20, 0x21, 0x25, 0x31, 0x32, 0x3F):
        stranger.send(header(opcode | 0x40, 0x80, 0))
        assert stranger.is_rejected(0x05)
    assert stranger.goes_on()


def test_snack_is_rejected(stranger: Stranger) -> None:
    stranger.login()
    for kind in range(4):
        stranger.send_pdu(SnackRequest(FINAL | kind, 0, 1, RESERVED_TAG, 0, 0, 100))
        assert stranger.is_rejected(0x03)
    assert stranger.goes_on()


def test_data_of_unknown_commands_are_dropped(stranger: Stranger) -> None:
    stranger.login()
    for tag in (0, 1, 2, RESERVED_TAG):
        stranger.data_out(tag, RESERVED_TAG, bytes(262144))
        stranger.data_out(tag, 1, bytes(262144), offset=0xFFFFFFFF)
    assert stranger.goes_on()


WRONG_DATA = {
    "too much": {"length": 4096},
    "too little": {"length": 100},
    "no F": {"length": 2048, "final": False},
    "another DataSN": {"length": 2048, "data_sn": 9},
    "another offset": {"length": 2048, "offset": 512},
    "an offset beyond all": {"length": 2048, "offset": 0xFFFFFE00},
}


@pytest.mark.parametrize("name", WRONG_DATA)
def test_data_that_were_not_asked_for_fail_their_command(stranger: Stranger, name: str) -> None:
    options = dict(WRONG_DATA[name])
    length = options.pop("length")
    stranger.login(**R2T_ONLY)
    stranger.command(cdbs.write(40000, 8), write=8 * BLOCK)
    r2t = stranger.receive_r2t()
    stranger.data_out(1, r2t.target_transfer_tag, bytes(length), **options)  # type: ignore[arg-type]
    pdu, sense = stranger.receive()
    assert isinstance(pdu, ScsiResponse)
    assert pdu.status == 2
    assert decode_sense(sense[2:]).key == 0x0B
    assert stranger.goes_on()


def test_a_damaged_data_out_fails_its_command(stranger: Stranger) -> None:
    stranger.login(**R2T_ONLY, **DIGESTS)
    stranger.command(cdbs.write(40000, 4), write=4 * BLOCK)
    r2t = stranger.receive_r2t()
    stranger.data_out(1, r2t.target_transfer_tag, bytes(2048), break_digest="data")
    assert stranger.is_rejected(0x02)
    pdu, _ = stranger.receive()
    assert isinstance(pdu, ScsiResponse)
    assert pdu.status == 2
    assert stranger.goes_on()


def test_task_management_of_nothing(stranger: Stranger) -> None:
    stranger.login()
    for function in range(128):
        if function in (5, 6, 7):
            continue  # resets are legal, and told to others
        request = TaskManagementRequest(FINAL | function, 1 << 62, 9, 77, stranger.cmd_sn, 0, 0xFFFF, 0)
        stranger.send_pdu(request, immediate=True)
        assert type(stranger.receive()[0]).__name__ == "TaskManagementResponse"
    assert stranger.goes_on()
