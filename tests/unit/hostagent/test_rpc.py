"""Requests, answers and notifications between two ends of a socket pair."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from queue import SimpleQueue
from typing import Any

import pytest

from hostagent.line_stream import SILENCE_SECONDS_MAX, LineStream
from hostagent.rpc import Caller, Params, Reply, Result, serve
from target.control.lines import LINE_BYTES_MAX, Message
from target.control.wire_error import error_from_wire, error_to_wire
from target.errors import ConflictError, IntegrityError, OperatorError, PeerError, ReplctlError

WAIT_SECONDS = 10.0


class Answers:
    """Collects what `done` was called with."""

    def __init__(self) -> None:
        self._queue: SimpleQueue[tuple[Result | None, ReplctlError | None]] = SimpleQueue()

    def __call__(self, result: Result | None, error: ReplctlError | None) -> None:
        self._queue.put((result, error))

    def next(self) -> tuple[Result | None, ReplctlError | None]:
        return self._queue.get(timeout=WAIT_SECONDS)

    def error(self) -> ReplctlError:
        result, error = self.next()
        assert result is None
        assert error is not None
        return error


class Conversation:
    """A served end, and a caller at the other end."""

    def __init__(self) -> None:
        self.asked: SimpleQueue[tuple[str, str, Params, Reply]] = SimpleQueue()
        near, far = socket.socketpair()
        self.far_socket = far
        self.stream = LineStream(near, "b")
        self.notes: SimpleQueue[tuple[str, Params]] = SimpleQueue()
        self.caller = Caller(self.stream.send, on_note=lambda note, params: self.notes.put((note, params)))
        self.served = LineStream(far, "a")
        self.threads = [
            threading.Thread(target=serve, args=(self.served, self.handle), daemon=True),
            threading.Thread(target=self._receive, daemon=True),
        ]
        for thread in self.threads:
            thread.start()

    def handle(self, peer: str, op: str, params: Params, reply: Reply) -> None:
        if op == "fail":
            raise OperatorError("no such group")
        if op == "break":
            raise KeyError("bug")
        if op == "echo":
            reply(params)
        else:
            self.asked.put((peer, op, params, reply))

    def _receive(self) -> None:
        with contextlib.suppress(PeerError):
            while (message := self.stream.receive()) is not None:
                self.caller.received(message)
        self.caller.lost("the link to b broke")

    def close(self) -> None:
        self.stream.close()
        self.served.close()
        self.caller.close()


@pytest.fixture
def conversation() -> Iterator[Conversation]:
    it = Conversation()
    yield it
    it.close()


def test_answers_find_their_requests_in_any_order(conversation: Conversation) -> None:
    first, second = Answers(), Answers()
    conversation.caller.call("one", {"n": 1}, first)
    conversation.caller.call("two", {"n": 2}, second)
    one = conversation.asked.get(timeout=WAIT_SECONDS)
    two = conversation.asked.get(timeout=WAIT_SECONDS)
    assert one[:3] == ("a", "one", {"n": 1})
    two[3]({"answer": 2})
    assert second.next() == ({"answer": 2}, None)
    one[3]({"answer": 1})
    assert first.next() == ({"answer": 1}, None)


def test_a_handlers_refusal_arrives_as_the_same_error(conversation: Conversation) -> None:
    answers = Answers()
    conversation.caller.call("fail", {}, answers)
    error = answers.error()
    assert isinstance(error, OperatorError)
    assert str(error) == "no such group"


def test_a_handlers_bug_is_answered_and_the_conversation_goes_on(conversation: Conversation) -> None:
    answers = Answers()
    conversation.caller.call("break", {}, answers)
    assert type(answers.error()) is ReplctlError
    conversation.caller.call("echo", {"x": 1}, answers)
    assert answers.next() == ({"x": 1}, None)


def test_notifications_are_delivered_and_their_reply_does_nothing(conversation: Conversation) -> None:
    assert conversation.caller.notify("ready", {"n": 5})
    peer, note, params, reply = conversation.asked.get(timeout=WAIT_SECONDS)
    assert (peer, note, params) == ("a", "ready", {"n": 5})
    reply({"ignored": True})
    conversation.served.send({"note": "received", "params": {"n": 5}})
    assert conversation.notes.get(timeout=WAIT_SECONDS) == ("received", {"n": 5})


def test_a_broken_link_fails_what_is_pending_and_what_comes_after(conversation: Conversation) -> None:
    answers = Answers()
    conversation.caller.call("slow", {}, answers)
    conversation.asked.get(timeout=WAIT_SECONDS)
    conversation.served.close()
    assert isinstance(answers.error(), PeerError)
    conversation.stream.close()
    conversation.caller.call("echo", {}, answers)
    assert "the link is down" in str(answers.error())


def test_a_request_without_answer_fails_in_time_and_a_late_answer_is_dropped(
    conversation: Conversation,
) -> None:
    slow, fast = Answers(), Answers()
    conversation.caller.call("slow", {}, slow, timeout_seconds=60)
    conversation.caller.call("slow", {}, fast, timeout_seconds=0.05)
    assert "slow was not answered in time" in str(fast.error())
    for _ in range(2):
        conversation.asked.get(timeout=WAIT_SECONDS)[3]({"late": True})
    assert slow.next() == ({"late": True}, None)
    conversation.caller.call("echo", {}, fast)
    assert fast.next() == ({}, None)


def test_a_reply_is_sent_once(conversation: Conversation) -> None:
    answers = Answers()
    conversation.caller.call("one", {}, answers)
    reply = conversation.asked.get(timeout=WAIT_SECONDS)[3]
    reply({"n": 1})
    reply({"n": 2})
    assert answers.next() == ({"n": 1}, None)


def test_an_answer_too_long_for_a_line_becomes_an_error(conversation: Conversation) -> None:
    answers = Answers()
    conversation.caller.call("one", {}, answers)
    conversation.asked.get(timeout=WAIT_SECONDS)[3]({"x": "y" * LINE_BYTES_MAX})
    assert "longer than" in str(answers.error())


def test_requests_are_answered_after_the_other_side_ended_its_sending() -> None:
    near, far = socket.socketpair()
    asked: SimpleQueue[Reply] = SimpleQueue()
    served = LineStream(far, "a")
    threading.Thread(
        target=serve, args=(served, lambda _p, _o, _params, reply: asked.put(reply)), daemon=True
    ).start()
    near.sendall(b'{"id": 7, "op": "x", "params": {}}\n')
    near.shutdown(socket.SHUT_WR)
    asked.get(timeout=WAIT_SECONDS)({"done": True})
    near.settimeout(WAIT_SECONDS)
    received = b""
    while data := near.recv(1000):
        received += data
    assert received == b'{"id":7,"result":{"done":true}}\n'


@pytest.mark.parametrize(
    "line",
    [b"nonsense\n", b'{"id": 1}\n', b'{"op": "x"}\n', b'{"id": "1", "op": "x"}\n', b'{"op": 5, "id": 1}\n'],
)
def test_garbage_ends_the_conversation(line: bytes) -> None:
    near, far = socket.socketpair()
    thread = threading.Thread(target=serve, args=(LineStream(far, "a"), lambda *_: None), daemon=True)
    thread.start()
    near.sendall(line)
    near.settimeout(WAIT_SECONDS)
    assert near.recv(10) == b""
    thread.join(WAIT_SECONDS)
    assert not thread.is_alive()


@pytest.fixture
def short_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    assert SILENCE_SECONDS_MAX < 5, "a link that was cut is noticed within five seconds"
    monkeypatch.setattr("hostagent.line_stream.SILENCE_SECONDS_MAX", 0.5)


@pytest.mark.usefixtures("short_silence")
def test_a_silent_peer_is_given_up_in_time() -> None:
    near, far = socket.socketpair()  # nobody reads `far`, and nothing closes it: a cut link
    stream = LineStream(near, "b", pings=True)
    with pytest.raises(PeerError, match="fell silent"):
        stream.receive()
    far.close()
    stream.close()


@pytest.mark.usefixtures("short_silence")
def test_a_peer_that_pinged_is_given_up_too() -> None:
    near, far = socket.socketpair()
    stream = LineStream(near, "b")
    far.sendall(b'{"note":"ping"}\n')
    with pytest.raises(PeerError, match="fell silent"):
        stream.receive()
    assert far.recv(100) == b'{"note":"pong"}\n'
    far.close()
    stream.close()


def test_sending_to_a_peer_that_does_not_read_never_blocks_and_ends() -> None:
    near, far = socket.socketpair()
    stream = LineStream(near, "b")
    message = {"x": "y" * 100_000}
    assert any(not stream.send(message) for _ in range(1000))
    assert not stream.send(message)
    far.close()


@pytest.mark.parametrize(
    "error",
    [
        OperatorError("o"),
        PeerError("p"),
        IntegrityError("i"),
        ConflictError("c", epoch=3, sites=["a", "b"]),
        ReplctlError("r"),
    ],
)
def test_errors_keep_their_class_message_and_facts(error: ReplctlError) -> None:
    wire: dict[str, Any] = error_to_wire(error)
    assert wire["exit_code"] == error.exit_code
    back = error_from_wire(wire)
    assert type(back) is type(error)
    assert (str(back), getattr(back, "facts", None)) == (str(error), getattr(error, "facts", None))


def test_an_unknown_kind_of_error_is_still_an_error() -> None:
    assert type(error_from_wire({"kind": "new", "message": "m"})) is ReplctlError


def test_the_caller_refuses_what_is_no_answer() -> None:
    caller = Caller(lambda _message: True)
    wrong: list[Message] = [{"id": 1}, {"result": {}}, {"op": "x", "id": 1}, {"id": 1, "result": 5}]
    for message in wrong:
        with pytest.raises(PeerError):
            caller.received(message)
    caller.close()
