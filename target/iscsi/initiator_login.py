"""The initiator's side of a login (RFC 7143 section 6.3). No I/O; randomness is passed in.

`first` gives the Login Request to begin with, `receive` takes each response and gives the next request, or
None when the login has ended; then `parameters` and `tsih` are set. A refusal is raised: `LoginFailed`,
`AuthenticationError`.
"""

from __future__ import annotations

from dataclasses import dataclass

from target.errors import PeerError
from target.iscsi import negotiation
from target.iscsi.chap import AuthenticationError, ChapCredentials, ChapSupplicant, RandomBytes
from target.iscsi.login import Stage
from target.iscsi.negotiation import Parameters
from target.iscsi.pdu import ProtocolError
from target.iscsi.requests import LoginRequest
from target.iscsi.responses import LoginResponse
from target.iscsi.text import Pairs, TextCollector, encode_text
from target.volume import Buffer

_REFUSALS = {
    0x0200: "the target sees an error of the initiator",
    0x0201: "authentication failed: check user and secret",
    0x0202: "the target does not admit this initiator name",
    0x0203: "there is no such target at this portal",
    0x0204: "the target was removed",
    0x0205: "the target speaks another version of iSCSI",
    0x0206: "the session has all the connections it may have",
    0x0207: "the target misses a parameter",
    0x0208: "the target cannot take this connection into the session",
    0x0209: "the target does not offer this type of session",
    0x020A: "the target does not know the session",
    0x020B: "the target got a request that is not allowed in a login",
    0x0300: "the target has an error",
    0x0301: "the target's service is not available now",
    0x0302: "the target has no resources left",
}


class LoginFailed(PeerError):
    """The target refused the login, and why."""

    def __init__(self, status: int) -> None:
        reason = _REFUSALS.get(status, "the target gives no known reason")
        super().__init__(f"login refused: {reason} (status {status:#06x})")
        self.status = status


@dataclass(frozen=True, slots=True)
class LoginSettings:
    """Who logs in to what. Without `target_name` it is a discovery session."""

    initiator_name: str
    target_name: str | None
    chap: ChapCredentials | None = None
    header_digest: bool = False
    data_digest: bool = False
    initial_r2t: bool = False
    immediate_data: bool = True
    max_recv_data_segment_length: int = 1 << 20
    max_burst_length: int = 1 << 20
    first_burst_length: int = 262144


class InitiatorLogin:
    """One login on one connection."""

    def __init__(self, settings: LoginSettings, isid: bytes, random_bytes: RandomBytes) -> None:
        self._settings = settings
        self._isid = isid
        self._chap = ChapSupplicant(settings.chap, random_bytes) if settings.chap else None
        self._text = TextCollector()
        self._stage = Stage.SECURITY if settings.chap else Stage.OPERATIONAL
        self._chap_step = 0
        self._offered = False
        self._exp_stat_sn = 0
        self._max_cmd_sn = 0
        self.parameters = Parameters()
        self.tsih = 0
        self.done = False

    @property
    def exp_stat_sn(self) -> int:
        return self._exp_stat_sn

    @property
    def max_cmd_sn(self) -> int:
        return self._max_cmd_sn

    def first(self) -> bytes:
        """Header and text of the first request."""
        settings = self._settings
        pairs: Pairs = [("InitiatorName", settings.initiator_name)]
        if settings.target_name is None:
            pairs.append(("SessionType", "Discovery"))
        else:
            pairs += [("SessionType", "Normal"), ("TargetName", settings.target_name)]
        if self._chap is not None:
            pairs.append(("AuthMethod", "CHAP"))
            return self._request(pairs, transit=False)
        return self._request(pairs + self._offers(), transit=True)

    def receive(self, response: LoginResponse, data: Buffer) -> bytes | None:
        """The next request, None when the login has ended well."""
        if response.status >> 8:
            raise LoginFailed(response.status)
        self._exp_stat_sn = response.stat_sn + 1 & 0xFFFFFFFF
        self._max_cmd_sn = response.max_cmd_sn
        pairs = self._text.add(data, response.continues)
        if pairs is None:
            return self._request([], transit=False)
        keys = dict(pairs)
        answers: Pairs = []
        if self._stage == Stage.SECURITY:
            answers = self._authenticate(keys)
        else:
            for name, value in pairs:
                self.parameters = negotiation.accept(self.parameters, name, value)
        if response.transit:
            return self._enter(response)
        if self._stage == Stage.OPERATIONAL and not self._offered:
            answers += self._offers()
        # In the security stage the wish to go on accompanies our proof.
        return self._request(answers, transit=self._stage == Stage.OPERATIONAL or self._chap_step == 2)

    def _enter(self, response: LoginResponse) -> bytes | None:
        if self._chap is not None and (self._chap_step != 2 or self._chap.awaits_proof):
            raise AuthenticationError("the target ends authentication without having proved itself")
        if response.next_stage == Stage.FULL_FEATURE:
            self.tsih = response.tsih
            self.done = True
            return None
        if response.next_stage != Stage.OPERATIONAL or self._stage == Stage.OPERATIONAL:
            raise ProtocolError(f"the target goes on to stage {response.next_stage}")
        self._stage = Stage.OPERATIONAL
        return self._request(self._offers(), transit=True)

    def _authenticate(self, keys: dict[str, str]) -> Pairs:
        if self._chap is None:
            return []
        if self._chap_step == 0:
            if keys.get("AuthMethod") != "CHAP":
                raise AuthenticationError(f"the target answers AuthMethod={keys.get('AuthMethod')}, not CHAP")
            self._chap_step = 1
            return self._chap.offer()
        if self._chap_step == 1:
            self._chap_step = 2
            return self._chap.respond(keys)
        self._chap.verify(keys)
        return []

    def _offers(self) -> Pairs:
        self._offered = True
        settings = self._settings
        digests: Pairs = [
            ("HeaderDigest", "CRC32C,None" if settings.header_digest else "None"),
            ("DataDigest", "CRC32C,None" if settings.data_digest else "None"),
            ("MaxRecvDataSegmentLength", str(settings.max_recv_data_segment_length)),
            ("DefaultTime2Wait", "0"),
            ("DefaultTime2Retain", "0"),
            ("ErrorRecoveryLevel", "0"),
        ]
        if settings.target_name is None:
            return digests
        return [
            *digests,
            ("MaxConnections", "1"),
            ("InitialR2T", "Yes" if settings.initial_r2t else "No"),
            ("ImmediateData", "Yes" if settings.immediate_data else "No"),
            ("MaxBurstLength", str(settings.max_burst_length)),
            ("FirstBurstLength", str(settings.first_burst_length)),
            ("MaxOutstandingR2T", "1"),
            ("DataPDUInOrder", "Yes"),
            ("DataSequenceInOrder", "Yes"),
        ]

    def _request(self, pairs: Pairs, transit: bool) -> bytes:
        text = encode_text(pairs)
        flags = int(self._stage) << 2
        if transit:
            following = Stage.OPERATIONAL if self._stage == Stage.SECURITY else Stage.FULL_FEATURE
            flags |= LoginRequest.TRANSIT | following
        header = LoginRequest(
            flags=flags,
            version_max=0,
            version_min=0,
            isid=self._isid,
            tsih=0,
            initiator_task_tag=0,
            cid=0,
            cmd_sn=1,
            exp_stat_sn=self._exp_stat_sn,
        ).encode(data_length=len(text), immediate=True)
        return header + text + b"\0" * (-len(text) % 4)
