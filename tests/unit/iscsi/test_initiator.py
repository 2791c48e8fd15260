"""The initiator, in memory against the target of this package: all shapes of data, login, and a target that
lies.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from target.iscsi.chap import AuthenticationError, ChapCredentials
from target.iscsi.initiator import Initiator, Response
from target.iscsi.initiator_login import LoginFailed, LoginSettings
from target.iscsi.node import TargetNode
from target.iscsi.pdu import FINAL, Pdu, ProtocolError
from target.iscsi.responses import R2T, AsyncMessage, DataIn, NopIn, Reject, ScsiResponse
from target.iscsi.session import COMMAND_WINDOW
from target.iscsi.text import Pairs
from target.scsi import cdb as cdbs
from tests.unit.iscsi.wire import BLOCK, INITIATOR, ISID, TARGET, Wire, fixed_random, node
from tests.unit.scsi.memory_volume import MemoryVolume

SETTINGS = LoginSettings(INITIATOR, TARGET)
CHAP = ChapCredentials("alice", "alice-secret-12")
MUTUAL = ChapCredentials("alice", "alice-secret-12", "target", "target-secret-12")


def other_random(count: int) -> bytes:
    return bytes(range(100, 100 + count))


class Pair:
    """An initiator and a target with a wire between them that carries at most `step` bytes at a time."""

    def __init__(self, nodes: list[TargetNode], login: LoginSettings = SETTINGS, step: int = 1 << 20) -> None:
        self.wire = Wire(nodes)
        self.step = step
        self.initiator = Initiator(login, ISID, other_random)

    def run(self) -> None:
        """Carry bytes until neither side has any more to say."""
        moved = True
        while moved:
            moved = False
            sent = b"".join(bytes(buffer) for buffer in self.initiator.output)
            self.initiator.output.clear()
            for start in range(0, len(sent), self.step):
                self.wire.send(sent[start : start + self.step])
                moved = True
            output = self.wire.connection.output
            answer = b"".join(bytes(buffer) for buffer in output)
            output.clear()
            session = self.wire.connection.session
            if session is not None:
                session.output_bytes = 0
            if answer:
                self.receive(answer)
                moved = True

    def receive(self, raw: bytes) -> None:
        """Hand bytes to the initiator as a socket would: into the buffers it names."""
        while raw:
            buffers = self.initiator.receive_buffers()
            count = 0
            for buffer in buffers:
                part = raw[: min(len(buffer), self.step - count)]
                buffer[: len(part)] = part
                raw = raw[len(part) :]
                count += len(part)
            assert count
            self.initiator.received(count)

    def execute(self, cdb: bytes, data_out: bytes = b"", data_in_length: int = 0) -> Response:
        responses: list[Response] = []
        self.initiator.submit(0, cdb, data_out, data_in_length, responses.append)
        self.run()
        assert len(responses) == 1
        return responses[0]


def connected(
    volume: MemoryVolume | None = None, login: LoginSettings = SETTINGS, step: int = 1 << 20
) -> Pair:
    pair = Pair([node(volume)], login, step)
    pair.run()
    assert pair.initiator.logged_in
    assert pair.execute(cdbs.test_unit_ready()).status == 2  # POWER ON
    return pair


def pattern(length: int, seed: int = 1) -> bytes:
    return bytes((index * 7 + index // 251 + seed) & 0xFF for index in range(length))


@settings(max_examples=60, deadline=None)
@given(
    blocks=st.integers(1, 400),
    step=st.sampled_from([1, 47, 1000, 5000, 70000, 1 << 20]),
    segment=st.sampled_from([512, 3000, 8192, 65536, 262144]),
    burst=st.sampled_from([512, 5000, 262144]),
    first=st.sampled_from([512, 5000, 262144]),
    header_digest=st.booleans(),
    data_digest=st.booleans(),
    immediate_data=st.booleans(),
    initial_r2t=st.booleans(),
)
def test_what_is_written_is_read_in_any_shape(
    blocks: int,
    step: int,
    segment: int,
    burst: int,
    first: int,
    header_digest: bool,
    data_digest: bool,
    immediate_data: bool,
    initial_r2t: bool,
) -> None:
    if step < 1000:
        blocks = min(blocks, 6)
    login = replace(
        SETTINGS,
        header_digest=header_digest,
        data_digest=data_digest,
        immediate_data=immediate_data,
        initial_r2t=initial_r2t,
        max_recv_data_segment_length=segment,
        max_burst_length=burst,
        first_burst_length=first,
    )
    volume = MemoryVolume()
    pair = connected(volume, login, step)
    data = pattern(blocks * BLOCK, blocks)
    assert pair.execute(cdbs.write(3, blocks), data).status == 0
    assert volume.content[3 * BLOCK :][: len(data)] == data
    response = pair.execute(cdbs.read(3, blocks), b"", len(data))
    assert response.status == 0
    assert response.data_in == data
    assert response.residual_count == 0


def test_long_data_goes_straight_into_the_buffer_of_its_command() -> None:
    pair = connected(MemoryVolume(), step=1 << 20)
    pair.initiator.submit(0, cdbs.read(0, 512), b"", 512 * BLOCK, lambda response: None)
    pair.wire.send(b"".join(bytes(buffer) for buffer in pair.initiator.output))
    raw = b"".join(bytes(buffer) for buffer in pair.wire.connection.output)
    staging = pair.initiator.receive_buffers()
    assert len(staging) == 1
    staging[0][:1000] = raw[:1000]
    pair.initiator.received(1000)
    direct, behind = pair.initiator.receive_buffers()
    assert len(direct) == 512 * BLOCK - (1000 - 48)
    assert len(behind) > 0


def test_residuals() -> None:
    pair = connected()
    assert pair.execute(cdbs.read(0, 1), b"", BLOCK + 88).residual_count == 88
    response = pair.execute(cdbs.read(0, 2), b"", BLOCK)
    assert response.residual_count == -BLOCK
    assert len(response.data_in) == BLOCK


def test_failures_carry_their_sense() -> None:
    response = connected().execute(cdbs.read(1 << 30, 1), b"", BLOCK)
    assert response.status == 2
    assert response.sense[2] & 0x0F == 5
    assert len(response.data_in) == 0


def test_commands_beyond_the_window_wait_and_keep_their_order() -> None:
    volume = MemoryVolume()
    pair = connected(volume)
    count = 3 * COMMAND_WINDOW
    done: list[int] = []

    def note(number: int, response: Response) -> None:
        done.append(number)

    for number in range(count):
        pair.initiator.submit(0, cdbs.read(number, 1), b"", BLOCK, partial(note, number))
    assert pair.initiator.outstanding == count
    pair.run()
    assert done == list(range(count))
    assert pair.initiator.outstanding == 0


def test_commands_may_be_submitted_before_the_login_has_ended() -> None:
    pair = Pair([node()])
    done: list[Response] = []
    pair.initiator.submit(0, cdbs.inquiry(), b"", 255, done.append)
    pair.run()
    assert len(done) == 1


def test_discovery() -> None:
    pair = Pair([node(portals=("10.0.0.1:3260",))], LoginSettings(INITIATOR, None))
    pair.run()
    answers: list[Pairs] = []
    pair.initiator.text([("SendTargets", "All")], answers.append)
    pair.run()
    assert answers == [[("TargetName", TARGET), ("TargetAddress", "10.0.0.1:3260,1")]]


def test_a_long_text_answer_is_put_together() -> None:
    portals = tuple(f"host-{number}:3260" for number in range(100))
    login = LoginSettings(INITIATOR, None, max_recv_data_segment_length=512)
    pair = Pair([node(portals=portals)], login)
    pair.run()
    answers: list[Pairs] = []
    pair.initiator.text([("SendTargets", "All")], answers.append)
    pair.run()
    assert len(answers[0]) == 101


def test_ping_and_logout() -> None:
    pair = connected()
    answered: list[bool] = []
    pair.initiator.ping(lambda: answered.append(True))
    pair.run()
    assert answered == [True]
    pair.initiator.logout()
    pair.run()
    assert pair.initiator.logged_out
    assert pair.wire.ended == "logout"


def test_pings_of_the_target_are_answered() -> None:
    pair = connected()
    session = pair.wire.connection.session
    assert session is not None
    assert session.housekeeping.ping()
    pair.run()
    assert session.housekeeping.ping(), "the first was answered"


# Login


@pytest.mark.parametrize("credentials", [CHAP, MUTUAL], ids=["one-way", "mutual"])
def test_chap(credentials: ChapCredentials) -> None:
    pair = Pair([node(chap=MUTUAL)], replace(SETTINGS, chap=credentials))
    pair.run()
    assert pair.initiator.logged_in


def test_a_wrong_secret_is_told() -> None:
    pair = Pair([node(chap=CHAP)], replace(SETTINGS, chap=ChapCredentials("alice", "wrong-secret-12")))
    with pytest.raises(LoginFailed, match="check user and secret") as caught:
        pair.run()
    assert caught.value.status == 0x0201


def test_a_target_that_does_not_know_its_secret_is_not_believed() -> None:
    theirs = ChapCredentials("alice", "alice-secret-12", "target", "some-other-1234")
    pair = Pair([node(chap=theirs)], replace(SETTINGS, chap=MUTUAL))
    with pytest.raises(AuthenticationError, match="prove itself"):
        pair.run()


def test_a_target_that_skips_authentication_is_not_believed() -> None:
    """Who asks for mutual CHAP wants to know whom it talks to."""
    pair = Pair([node()], replace(SETTINGS, chap=MUTUAL))
    with pytest.raises((AuthenticationError, LoginFailed)):
        pair.run()


def test_a_missing_target_is_told() -> None:
    pair = Pair([node()], replace(SETTINGS, target_name="iqn.2024-01.example:nowhere"))
    with pytest.raises(LoginFailed, match="no such target"):
        pair.run()


# A target that lies


def busy_pair() -> Pair:
    """With a read and a write of one block under way, tags 2 and 3."""
    pair = connected(login=replace(SETTINGS, immediate_data=False, initial_r2t=True))
    pair.initiator.submit(0, cdbs.read(0, 1), b"", BLOCK, lambda response: None)
    pair.initiator.submit(0, cdbs.write(0, 1), bytes(BLOCK), 0, lambda response: None)
    pair.initiator.output.clear()
    return pair


@pytest.mark.parametrize(
    ("pdu", "data"),
    [
        (DataIn(FINAL, 0, 0, 2, 0xFFFFFFFF, 0, 0, 0, 0, 4, 0), b"1234"),  # not where data are missing
        (DataIn(FINAL, 0, 0, 2, 0xFFFFFFFF, 0, 0, 0, 0, 0, 0), bytes(BLOCK + 4)),  # more than there is room
        (ScsiResponse(FINAL, 0, 0, 55, 0, 0, 0, 0, 0, 0, 0), b""),  # an unknown task
        (ScsiResponse(FINAL, 1, 0, 2, 0, 0, 0, 0, 0, 0, 0), b""),  # target failure
        (R2T(FINAL, 0, 3, 1, 0, 0, 0, 0, 0, BLOCK + 1), b""),  # more than the command has
        (R2T(FINAL, 0, 3, 1, 0, 0, 0, 0, 0, 0), b""),  # nothing
        (R2T(FINAL, 0, 55, 1, 0, 0, 0, 0, 0, 8), b""),  # an unknown task
        (Reject(FINAL, 4, 0xFFFFFFFF, 0, 0, 0, 0), bytes(48)),
        (AsyncMessage(FINAL, 0, 0xFFFFFFFF, 0, 0, 0, 1, 0, 0, 0, 0), b""),  # asks for logout
    ],
)
def test_what_a_target_must_not_send_is_a_protocol_error(pdu: Pdu, data: bytes) -> None:
    pair = busy_pair()
    with pytest.raises(ProtocolError):
        pair.receive(pair.wire.encode(pdu, data))


def test_a_pdu_larger_than_declared_is_a_protocol_error() -> None:
    pair = busy_pair()
    with pytest.raises(ProtocolError, match="more than was declared"):
        pair.receive(NopIn(FINAL, 0, 1, 2, 0, 0, 0).encode(data_length=0xFFFFFF))


@settings(max_examples=200, deadline=None)
@given(st.binary(min_size=48, max_size=300))
def test_garbage_from_a_target_gives_the_declared_error_or_nothing(raw: bytes) -> None:
    pair = busy_pair()
    try:
        pair.receive(raw)
    except ProtocolError:
        return


def test_a_damaged_header_is_found_by_its_digest() -> None:
    pair = connected(login=replace(SETTINGS, header_digest=True))
    raw = NopIn(FINAL, 0, 1, 0xFFFFFFFF, 0, 0, 0).encode() + b"\0\0\0\0"
    with pytest.raises(ProtocolError, match="header digest"):
        pair.receive(raw)


def test_random_bytes_are_passed_in() -> None:
    one = Initiator(SETTINGS, ISID, fixed_random)
    two = Initiator(SETTINGS, ISID, fixed_random)
    assert one.output == two.output
