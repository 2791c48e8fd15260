"""CHAP: a side believes the other exactly if it knows the secret. A reflected challenge proves nothing."""

from __future__ import annotations

import hashlib

import pytest

from target.iscsi.chap import (
    AuthenticationError,
    ChapAuthenticator,
    ChapCredentials,
    ChapSupplicant,
    chap_response,
    choose_algorithm,
)
from target.iscsi.pdu import ProtocolError
from target.iscsi.text import encode_binary
from tests.unit.iscsi.wire import fixed_random

ONE_WAY = ChapCredentials("alice", "alice-secret-12")
MUTUAL = ChapCredentials("alice", "alice-secret-12", "target", "target-secret-12")


def other_random(count: int) -> bytes:
    return bytes(range(100, 100 + count))


def exchange(ours: ChapCredentials, theirs: ChapCredentials) -> tuple[ChapAuthenticator, ChapSupplicant]:
    """A whole exchange; raises what either side raises."""
    target = ChapAuthenticator({ours.user: ours}, fixed_random)
    initiator = ChapSupplicant(theirs, other_random)
    challenge = dict(target.challenge(dict(initiator.offer())))
    proof = dict(target.verify(dict(initiator.respond(challenge))))
    initiator.verify(proof)
    return target, initiator


@pytest.mark.parametrize("credentials", [ONE_WAY, MUTUAL])
def test_who_knows_the_secret_is_believed(credentials: ChapCredentials) -> None:
    target, initiator = exchange(credentials, credentials)
    assert target.authenticated
    assert not initiator.awaits_proof


def test_the_target_needs_not_prove_itself_when_nobody_asks() -> None:
    target, _ = exchange(MUTUAL, ChapCredentials("alice", "alice-secret-12"))
    assert target.authenticated


@pytest.mark.parametrize(
    "theirs",
    [
        ChapCredentials("alice", "wrong-secret-12"),
        ChapCredentials("mallory", "alice-secret-12"),
        ChapCredentials("mallory", ""),
        ChapCredentials("", ""),
    ],
)
def test_others_are_not(theirs: ChapCredentials) -> None:
    with pytest.raises(AuthenticationError):
        exchange(ONE_WAY, theirs)


@pytest.mark.parametrize(
    ("user", "secret"), [("target", "another-secret-1"), ("other", "target-secret-12"), ("target", None)]
)
def test_a_target_that_cannot_prove_itself_is_not_believed(user: str, secret: str | None) -> None:
    """Also when the target has no credentials of its own (None)."""
    ours = ChapCredentials("alice", "alice-secret-12", user if secret else None, secret)
    with pytest.raises(AuthenticationError):
        exchange(ours, MUTUAL)


def test_a_reflected_challenge_is_refused() -> None:
    """RFC 7143 12.1.3: else an attacker has the target answer its own challenge on a second connection."""
    target = ChapAuthenticator({"alice": MUTUAL}, fixed_random)
    challenge = dict(target.challenge({"CHAP_A": "5"}))
    answer = chap_response(5, int(challenge["CHAP_I"]), "alice-secret-12", fixed_random(32))
    with pytest.raises(AuthenticationError, match="back"):
        target.verify(
            {
                "CHAP_N": "alice",
                "CHAP_R": encode_binary(answer),
                "CHAP_I": "3",
                "CHAP_C": challenge["CHAP_C"],
            }
        )
    assert not target.authenticated


def test_md5_response_is_that_of_rfc_1994() -> None:
    expected = hashlib.md5(b"\x27" + b"secret" + b"challenge").digest()
    assert chap_response(5, 0x27, "secret", b"challenge") == expected


@pytest.mark.parametrize(
    ("offer", "chosen"), [("5", 5), ("5,7", 7), ("8,7,5", 8), ("6", None), ("", None), ("x", None)]
)
def test_the_strongest_algorithm_in_common_is_chosen(offer: str, chosen: int | None) -> None:
    assert choose_algorithm(offer) == chosen


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"CHAP_N": "alice"},
        {"CHAP_N": "alice", "CHAP_R": "garbage"},
        {"CHAP_N": "alice", "CHAP_R": "0x00"},
        {"CHAP_N": "alice", "CHAP_R": "0x"},
    ],
)
def test_a_malformed_answer_gives_the_declared_error(keys: dict[str, str]) -> None:
    target = ChapAuthenticator({"alice": ONE_WAY}, fixed_random)
    target.challenge({"CHAP_A": "5"})
    with pytest.raises(ProtocolError):
        target.verify(keys)
    assert not target.authenticated


@pytest.mark.parametrize(
    "keys",
    [
        {"CHAP_A": "6", "CHAP_I": "1", "CHAP_C": "0x01"},
        {"CHAP_A": "5", "CHAP_I": "256", "CHAP_C": "0x01"},
        {"CHAP_A": "5", "CHAP_I": "1", "CHAP_C": "0x"},
        {"CHAP_A": "5", "CHAP_I": "1", "CHAP_C": "0x" + "00" * 1025},
        {},
    ],
)
def test_a_malformed_challenge_gives_the_declared_error(keys: dict[str, str]) -> None:
    initiator = ChapSupplicant(ONE_WAY, other_random)
    with pytest.raises(ProtocolError):
        initiator.respond(keys)


def test_secrets_are_not_shown() -> None:
    assert "secret-12" not in repr(MUTUAL)
