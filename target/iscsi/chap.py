"""CHAP, one-way and mutual (RFC 7143 12.1.3, RFC 1994). No I/O; randomness is passed in.

The exchange, carried as text keys in the security stage of the login:

    initiator                               target
    CHAP_A=5,7,8                        ->
                                        <-  CHAP_A, CHAP_I, CHAP_C       (identifier, challenge)
    CHAP_N, CHAP_R [, CHAP_I, CHAP_C]   ->                               (mutual: with a challenge of its own)
                                        <-  [CHAP_N, CHAP_R]

A response is H(identifier, secret, challenge). Secrets appear in no message, `repr` or log.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from target.iscsi.pdu import ProtocolError
from target.iscsi.text import Pairs, decode_binary, encode_binary, parse_number

RandomBytes = Callable[[int], bytes]

# IANA "PPP Authentication Algorithms", in our order of preference.
ALGORITHMS: dict[int, str] = {8: "sha3_256", 7: "sha256", 5: "md5"}
_CHALLENGE_BYTES = 32
_CHALLENGE_BYTES_MAX = 1024


class AuthenticationError(ProtocolError):
    """The other side did not prove who it is, or would not."""


@dataclass(frozen=True, slots=True)
class ChapCredentials:
    """User and secret that the initiator proves, and those that the target proves in return, if any."""

    user: str
    secret: str = field(repr=False)
    mutual_user: str | None = None
    mutual_secret: str | None = field(default=None, repr=False)


def chap_response(algorithm: int, identifier: int, secret: str, challenge: bytes) -> bytes:
    message = bytes([identifier]) + secret.encode() + challenge
    return hashlib.new(ALGORITHMS[algorithm], message, usedforsecurity=False).digest()


def choose_algorithm(offer: str) -> int | None:
    offered = {parse_number(item) for item in offer.split(",")}
    return next((algorithm for algorithm in ALGORITHMS if algorithm in offered), None)


class ChapAuthenticator:
    """The target's side: challenges the initiator and proves itself if asked to."""

    def __init__(self, credentials: Mapping[str, ChapCredentials], random_bytes: RandomBytes) -> None:
        """`credentials` by user name: all that may log in here."""
        self._credentials = credentials
        self._random_bytes = random_bytes
        self._algorithm = 0
        self._identifier = 0
        self._challenge = b""
        self.authenticated = False

    def challenge(self, keys: Mapping[str, str]) -> Pairs:
        """Answer CHAP_A with a challenge."""
        algorithm = choose_algorithm(keys.get("CHAP_A", ""))
        if algorithm is None:
            raise AuthenticationError("no CHAP algorithm in common (CHAP_A)")
        self._algorithm = algorithm
        self._identifier = self._random_bytes(1)[0]
        self._challenge = self._random_bytes(_CHALLENGE_BYTES)
        return [
            ("CHAP_A", str(algorithm)),
            ("CHAP_I", str(self._identifier)),
            ("CHAP_C", encode_binary(self._challenge)),
        ]

    @property
    def challenged(self) -> bool:
        return bool(self._challenge)

    def verify(self, keys: Mapping[str, str]) -> Pairs:
        """Check CHAP_N and CHAP_R; answer the initiator's own challenge if there is one."""
        user = keys.get("CHAP_N", "")
        known = self._credentials.get(user)
        response = decode_binary(keys.get("CHAP_R", ""))
        # An unknown user costs the same work as a wrong secret, and gets the same answer.
        expected = chap_response(
            self._algorithm, self._identifier, known.secret if known else "", self._challenge
        )
        if not hmac.compare_digest(response, expected) or known is None:
            # A name that is not known may be a secret typed in the wrong place: it is not repeated.
            whom = f"for user {user!r}" if known is not None else "for a user who is not known here"
            raise AuthenticationError(f"CHAP failed {whom}")
        answer: Pairs = []
        if "CHAP_I" in keys or "CHAP_C" in keys:
            if known.mutual_user is None or known.mutual_secret is None:
                raise AuthenticationError("the initiator asks for mutual CHAP, which has no credentials here")
            identifier, challenge = _parse_challenge(keys)
            if challenge == self._challenge:
                raise AuthenticationError("the initiator sent our own CHAP challenge back")
            proof = chap_response(self._algorithm, identifier, known.mutual_secret, challenge)
            answer = [("CHAP_N", known.mutual_user), ("CHAP_R", encode_binary(proof))]
        self.authenticated = True
        return answer


class ChapSupplicant:
    """The initiator's side: proves itself and, with mutual credentials, has the target prove itself."""

    def __init__(self, credentials: ChapCredentials, random_bytes: RandomBytes) -> None:
        self._credentials = credentials
        self._random_bytes = random_bytes
        self._expected = b""

    def offer(self) -> Pairs:
        return [("CHAP_A", ",".join(map(str, ALGORITHMS)))]

    def respond(self, keys: Mapping[str, str]) -> Pairs:
        """Answer the target's challenge."""
        algorithm = parse_number(keys.get("CHAP_A", ""))
        if algorithm not in ALGORITHMS:
            raise AuthenticationError("the target chose a CHAP algorithm that was not offered")
        identifier, challenge = _parse_challenge(keys)
        proof = chap_response(algorithm, identifier, self._credentials.secret, challenge)
        answer = [("CHAP_N", self._credentials.user), ("CHAP_R", encode_binary(proof))]
        if self._credentials.mutual_secret is not None:
            own = self._random_bytes(_CHALLENGE_BYTES)
            own_identifier = self._random_bytes(1)[0]
            self._expected = chap_response(algorithm, own_identifier, self._credentials.mutual_secret, own)
            answer += [("CHAP_I", str(own_identifier)), ("CHAP_C", encode_binary(own))]
        return answer

    def verify(self, keys: Mapping[str, str]) -> None:
        """Check the target's proof, where one was asked for."""
        if not self._expected:
            return
        if keys.get("CHAP_N") != self._credentials.mutual_user or not hmac.compare_digest(
            decode_binary(keys.get("CHAP_R", "")), self._expected
        ):
            raise AuthenticationError("the target failed to prove itself by mutual CHAP")
        self._expected = b""

    @property
    def awaits_proof(self) -> bool:
        return bool(self._expected)


def _parse_challenge(keys: Mapping[str, str]) -> tuple[int, bytes]:
    identifier = parse_number(keys.get("CHAP_I", ""))
    challenge = decode_binary(keys.get("CHAP_C", ""))
    if identifier is None or not 0 <= identifier <= 255:
        raise AuthenticationError("CHAP_I is not a number from 0 to 255")
    if not 0 < len(challenge) <= _CHALLENGE_BYTES_MAX:
        raise AuthenticationError(f"CHAP_C has {len(challenge)} bytes")
    return identifier, challenge
