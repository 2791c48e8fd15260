"""The target's side of a login (RFC 7143 section 6.3, 11.12, 11.13): discovery and normal sessions. No I/O.

`TargetLogin.receive` takes one Login Request with its text and gives the Login Response to send. The login
is over when `outcome` is set: an `Admission` with everything the session needs, or `Refusal` with the
status that was sent.

Stages, as a table: from which stage (CSG) the initiator may ask to go on to which (NSG). A stage may be
repeated, and both the first two may be skipped, the first only if nobody has to authenticate.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum

from target.iscsi import negotiation
from target.iscsi.chap import AuthenticationError, ChapAuthenticator, RandomBytes
from target.iscsi.negotiation import KEYS, Parameters, Rule, Scope
from target.iscsi.node import TARGET_PORTAL_GROUP_TAG, TargetNode
from target.iscsi.pdu import ProtocolError
from target.iscsi.requests import LoginRequest
from target.iscsi.responses import LoginResponse
from target.iscsi.text import Pairs, TextCollector, encode_text
from target.volume import Buffer


class Stage(IntEnum):
    """RFC 7143 11.12.3."""

    SECURITY = 0
    OPERATIONAL = 1
    FULL_FEATURE = 3


NAME_BYTES_MAX = 223
"""RFC 7143 4.2.7.1."""

SESSIONS_MAX = 256
"""Of one portal group. Each may hold its share of memory (`target.iscsi.budget`), so they are counted."""

TRANSITS: Mapping[int, frozenset[int]] = {
    Stage.SECURITY: frozenset({Stage.OPERATIONAL, Stage.FULL_FEATURE}),
    Stage.OPERATIONAL: frozenset({Stage.FULL_FEATURE}),
}


class LoginStatus(IntEnum):
    """RFC 7143 11.13.5: Status-Class, Status-Detail."""

    SUCCESS = 0x0000
    INITIATOR_ERROR = 0x0200
    AUTHENTICATION_FAILURE = 0x0201
    AUTHORIZATION_FAILURE = 0x0202
    NOT_FOUND = 0x0203
    UNSUPPORTED_VERSION = 0x0205
    TOO_MANY_CONNECTIONS = 0x0206
    MISSING_PARAMETER = 0x0207
    SESSION_TYPE_NOT_SUPPORTED = 0x0209
    SESSION_DOES_NOT_EXIST = 0x020A
    INVALID_DURING_LOGIN = 0x020B
    OUT_OF_RESOURCES = 0x0302


@dataclass(frozen=True, slots=True)
class Admission:
    """A login that succeeded. `node` is None for a discovery session."""

    node: TargetNode | None
    initiator_name: str
    isid: bytes
    tsih: int
    cid: int
    exp_cmd_sn: int
    stat_sn: int
    parameters: Parameters


@dataclass(frozen=True, slots=True)
class Refusal:
    """A login that failed: close the connection when the response is sent."""

    status: LoginStatus
    reason: str


class _Refused(Exception):
    def __init__(self, status: LoginStatus, reason: str) -> None:
        super().__init__(reason)
        self.refusal = Refusal(status, reason)


class TargetLogin:
    """One login on one connection."""

    def __init__(
        self,
        nodes: Sequence[TargetNode],
        new_tsih: Callable[[], int],
        live: Mapping[int, Admission],
        random_bytes: RandomBytes,
        command_window: int,
    ) -> None:
        """`live`: the sessions that exist, by TSIH, whenever it is looked at."""
        self._nodes = nodes
        self._new_tsih = new_tsih
        self._live = live
        self._random_bytes = random_bytes
        self._command_window = command_window
        self._text = TextCollector()
        self._first: LoginRequest | None = None
        self._stage: int = Stage.SECURITY
        self._stat_sn = 0
        self._node: TargetNode | None = None
        self._discovery = False
        self._chap: ChapAuthenticator | None = None
        self._chap_required = False
        self._parameters = Parameters()
        self._negotiated: set[str] = set()
        self._declared = False
        self.initiator_name = ""
        self.outcome: Admission | Refusal | None = None

    def receive(self, request: LoginRequest, data: Buffer) -> tuple[LoginResponse, bytes]:
        """The response to send, with its text. Raises ProtocolError where no response makes sense."""
        try:
            return self._receive(request, data)
        except _Refused as refused:
            self.outcome = refused.refusal
        except AuthenticationError as error:
            self.outcome = Refusal(LoginStatus.AUTHENTICATION_FAILURE, str(error))
        except ProtocolError as error:
            self.outcome = Refusal(LoginStatus.INITIATOR_ERROR, str(error))
        return self._response(request, request.flags & 0x0C, 0, self.outcome.status), b""

    def _receive(self, request: LoginRequest, data: Buffer) -> tuple[LoginResponse, bytes]:
        self._check_header(request)
        pairs = self._text.add(data, request.continues)
        if pairs is None:
            return self._response(request, request.current_stage << 2, request.tsih), b""
        keys = self._index(pairs)
        answers: Pairs = []
        if self._first is None:
            self._identify(request, keys)
            if not self._discovery:
                answers.append(("TargetPortalGroupTag", str(TARGET_PORTAL_GROUP_TAG)))
        self._stage = request.current_stage
        if self._stage == Stage.SECURITY:
            answers += self._security(keys)
            answers += [
                (name, negotiation.NOT_UNDERSTOOD)
                for name in keys
                if name not in KEYS and not name.startswith("CHAP_")
            ]
        else:
            if self._chap_required and not (self._chap and self._chap.authenticated):
                raise _Refused(LoginStatus.AUTHENTICATION_FAILURE, "authentication is required (CHAP)")
            answers += self._operational(pairs)
        flags = request.current_stage << 2
        tsih = request.tsih
        if request.transit and self._may_leave():
            flags |= LoginRequest.TRANSIT | request.next_stage
            self._stage = request.next_stage
            if self._stage == Stage.FULL_FEATURE:
                self._check_room(request)
                tsih = request.tsih or self._new_tsih()
        response = self._response(request, flags, tsih)
        if self._stage == Stage.FULL_FEATURE:
            self.outcome = self._admission(request, tsih)
        return response, encode_text(answers)

    def _check_header(self, request: LoginRequest) -> None:
        if request.version_min > 0:
            raise _Refused(LoginStatus.UNSUPPORTED_VERSION, f"version {request.version_min} is not supported")
        if request.transit and request.continues:
            raise ProtocolError("a Login Request has both T and C")
        stage = request.current_stage
        if stage not in TRANSITS or (request.transit and request.next_stage not in TRANSITS[stage]):
            raise _Refused(
                LoginStatus.INVALID_DURING_LOGIN, f"no transition from stage {stage} to {request.next_stage}"
            )
        first = self._first
        if first is None:
            return
        if stage != self._stage:
            raise _Refused(
                LoginStatus.INVALID_DURING_LOGIN, f"stage {stage} while in stage {int(self._stage)}"
            )
        if (request.isid, request.tsih, request.cid) != (first.isid, first.tsih, first.cid):
            raise ProtocolError("ISID, TSIH or CID changed during the login")

    @staticmethod
    def _index(pairs: Pairs) -> dict[str, str]:
        keys = dict(pairs)
        if len(keys) != len(pairs):
            raise ProtocolError("a key was sent twice in one exchange")
        return keys

    def _identify(self, request: LoginRequest, keys: Mapping[str, str]) -> None:
        """Who wants what: decided by the keys of the first request (RFC 7143 6.3)."""
        initiator_name = keys.get("InitiatorName", "")
        if not initiator_name:
            raise _Refused(LoginStatus.MISSING_PARAMETER, "InitiatorName is missing")
        # RFC 7143 4.2.7: what is no name would also be no line of a log.
        if not _is_name(initiator_name):
            raise ProtocolError(f"InitiatorName {initiator_name[:NAME_BYTES_MAX]!r} is not an iSCSI name")
        self.initiator_name = initiator_name
        session_type = keys.get("SessionType", "Normal")
        if session_type not in ("Normal", "Discovery"):
            raise _Refused(LoginStatus.SESSION_TYPE_NOT_SUPPORTED, f"SessionType={session_type!r}")
        self._discovery = session_type == "Discovery"
        if not self._discovery:
            name = keys.get("TargetName")
            if name is None:
                raise _Refused(LoginStatus.MISSING_PARAMETER, "TargetName is missing")
            self._node = next((node for node in self._nodes if node.name == name), None)
            if self._node is None:
                raise _Refused(LoginStatus.NOT_FOUND, f"there is no target {name!r} here")
            if not self._node.admits(self.initiator_name):
                raise _Refused(LoginStatus.AUTHORIZATION_FAILURE, f"{name} does not admit this initiator")
            self._chap_required = self._node.chap is not None
        if request.tsih:
            self._check_reinstatement(request)
        self._first = request

    def _check_reinstatement(self, request: LoginRequest) -> None:
        """A TSIH may be named by the initiator port that has the session, for its only connection."""
        live = self._live.get(request.tsih)
        ours = (self.initiator_name, request.isid, self._node)
        if live is None or (live.initiator_name, live.isid, live.node) != ours:
            raise _Refused(LoginStatus.SESSION_DOES_NOT_EXIST, f"there is no session {request.tsih}")
        if live.cid != request.cid:
            raise _Refused(LoginStatus.TOO_MANY_CONNECTIONS, "MaxConnections is 1")

    def _check_room(self, request: LoginRequest) -> None:
        ours = (self.initiator_name, request.isid, self._node)
        if len(self._live) >= SESSIONS_MAX and all(
            (one.initiator_name, one.isid, one.node) != ours for one in self._live.values()
        ):
            raise _Refused(LoginStatus.OUT_OF_RESOURCES, f"there are {SESSIONS_MAX} sessions already")

    def _security(self, keys: Mapping[str, str]) -> Pairs:
        misplaced = [name for name in keys if name in KEYS and KEYS[name].scope is Scope.OPERATIONAL]
        if misplaced:
            raise _Refused(LoginStatus.INVALID_DURING_LOGIN, f"{misplaced[0]} in the security stage")
        if self._chap is not None and "AuthMethod" not in keys:
            if not self._chap.challenged:
                return self._chap.challenge(keys)
            if not self._chap.authenticated:
                return self._chap.verify(keys)
            return []
        if "AuthMethod" not in keys:
            return []
        if "AuthMethod" in self._negotiated:
            raise ProtocolError("AuthMethod was negotiated twice")
        self._negotiated.add("AuthMethod")
        offered = keys["AuthMethod"].split(",")
        if "None" in offered and not self._chap_required:
            return [("AuthMethod", "None")]
        nodes = [self._node] if self._node is not None else self._nodes
        credentials = {node.chap.user: node.chap for node in nodes if node.chap is not None}
        if "CHAP" not in offered or not credentials:
            raise AuthenticationError(f"no authentication method in common with {keys['AuthMethod']!r}")
        self._chap = ChapAuthenticator(credentials, self._random_bytes)
        answers: Pairs = [("AuthMethod", "CHAP")]
        if "CHAP_A" in keys:
            answers += self._chap.challenge(keys)
        return answers

    def _may_leave(self) -> bool:
        """Whether the initiator's wish to transit is granted now."""
        if self._stage != Stage.SECURITY:
            return True
        if self._chap is not None:
            return self._chap.authenticated
        if self._chap_required:
            raise _Refused(LoginStatus.AUTHENTICATION_FAILURE, "authentication is required (CHAP)")
        return True

    def _operational(self, pairs: Pairs) -> Pairs:
        answers: Pairs = []
        for name, value in pairs:
            key = KEYS.get(name)
            if key is not None and key.rule is Rule.DECLARED and not key.field:
                continue
            if key is not None and key.scope is Scope.SECURITY:
                raise _Refused(LoginStatus.INVALID_DURING_LOGIN, f"{name} in the operational stage")
            if value != negotiation.INQUIRY:
                if name in self._negotiated:
                    raise ProtocolError(f"{name!r} was negotiated twice")
                self._negotiated.add(name)
            self._parameters, reply = negotiation.answer(self._parameters, name, value, self._discovery)
            if reply is not None:
                answers.append((name, reply))
        if not self._declared:
            self._declared = True
            answers.append(("MaxRecvDataSegmentLength", str(negotiation.MAX_RECV_DATA_SEGMENT_LENGTH)))
        return answers

    def _response(
        self, request: LoginRequest, flags: int, tsih: int, status: LoginStatus = LoginStatus.SUCCESS
    ) -> LoginResponse:
        if self._first is None or request is self._first:
            self._stat_sn = request.exp_stat_sn
        stat_sn = self._stat_sn
        self._stat_sn = stat_sn + 1 & 0xFFFFFFFF
        return LoginResponse(
            flags=flags,
            version_max=0,
            version_active=0,
            isid=request.isid,
            tsih=tsih,
            initiator_task_tag=request.initiator_task_tag,
            stat_sn=stat_sn,
            exp_cmd_sn=request.cmd_sn,
            max_cmd_sn=request.cmd_sn + self._command_window - 1 & 0xFFFFFFFF,
            status=status,
        )

    def _admission(self, request: LoginRequest, tsih: int) -> Admission:
        return Admission(
            node=self._node,
            initiator_name=self.initiator_name,
            isid=request.isid,
            tsih=tsih,
            cid=request.cid,
            exp_cmd_sn=request.cmd_sn,
            stat_sn=self._stat_sn,
            parameters=self._parameters,
        )


def _is_name(text: str) -> bool:
    return len(text.encode()) <= NAME_BYTES_MAX and text.isprintable() and " " not in text
