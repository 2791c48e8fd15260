"""What a session does beside SCSI commands: NOP, text, logout, reject (RFC 7143 11.10 to 11.19). No I/O."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from target.iscsi.negotiation import INQUIRY, KEYS, REJECT, Scope, answer
from target.iscsi.pdu import BHS_BYTES, FINAL, RESERVED_TAG
from target.iscsi.requests import LogoutRequest, NopOut, TextRequest
from target.iscsi.responses import AsyncMessage, LogoutResponse, NopIn, Reject, TextResponse
from target.iscsi.text import Pairs, TextCollector, encode_text
from target.volume import Buffer

if TYPE_CHECKING:
    from target.iscsi.session import TargetSession

SendTargets = Callable[[str, str], Pairs]
"""(initiator name, which) -> keys. `which` is "All" or the name of a target."""


ASYNC_LOGOUT_REQUEST = 1


class RejectReason:
    """RFC 7143 11.17.1."""

    DATA_DIGEST_ERROR = 0x02
    SNACK = 0x03
    PROTOCOL_ERROR = 0x04
    COMMAND_NOT_SUPPORTED = 0x05
    TOO_MANY_IMMEDIATE_COMMANDS = 0x06
    INVALID_PDU_FIELD = 0x09


class Housekeeping:
    """Requests are handed in with their place in the command window taken already."""

    def __init__(self, session: TargetSession, send_targets: SendTargets) -> None:
        self._session = session
        self._send_targets = send_targets
        self._text = TextCollector()
        self._text_left = b""
        self._text_tag = RESERVED_TAG
        """That of the exchange which goes on; there is one at a time."""
        self._ping_tag: int | None = None

    def nop_out(self, header: memoryview, data: memoryview) -> None:
        session = self._session
        request = NopOut.decode(header)
        if request.initiator_task_tag == RESERVED_TAG:
            self._ping_tag = None  # the answer to our ping, or a way to tell ExpStatSN
            return
        echo = bytes(data[: session.peer_segment])
        stat_sn = session.next_stat_sn()
        self._nop_in(request.initiator_task_tag, RESERVED_TAG, stat_sn, echo)

    def ping(self) -> bool:
        """Send a NOP-In that asks for an answer; false if the last one has none yet."""
        if self._ping_tag is not None:
            return False
        self._ping_tag = self._session.next_transfer_tag()
        self._nop_in(RESERVED_TAG, self._ping_tag, self._session.stat_sn, b"")
        return True

    def request_logout(self, seconds: int) -> None:
        """Ask the initiator to log out within so many seconds (RFC 7143 11.9.1, event 1)."""
        session = self._session
        stat_sn = session.next_stat_sn()
        session.emit(
            AsyncMessage(
                flags=FINAL,
                lun=0,
                initiator_task_tag=RESERVED_TAG,
                stat_sn=stat_sn,
                exp_cmd_sn=session.exp_cmd_sn,
                max_cmd_sn=session.max_cmd_sn,
                async_event=ASYNC_LOGOUT_REQUEST,
                async_vcode=0,
                parameter1=0,
                parameter2=0,
                parameter3=seconds,
            ).encode()
        )

    def _nop_in(self, task_tag: int, transfer_tag: int, stat_sn: int, data: bytes) -> None:
        session = self._session
        session.emit(
            NopIn(
                flags=FINAL,
                lun=0,
                initiator_task_tag=task_tag,
                target_transfer_tag=transfer_tag,
                stat_sn=stat_sn,
                exp_cmd_sn=session.exp_cmd_sn,
                max_cmd_sn=session.max_cmd_sn,
            ).encode(data_length=len(data)),
            data,
        )

    def text_request(self, header: memoryview, data: memoryview) -> None:
        request = TextRequest.decode(header)
        if request.target_transfer_tag == RESERVED_TAG:  # a new exchange; one that was under way is over
            self._text = TextCollector()
            self._text_left = b""
        elif request.target_transfer_tag != self._text_tag:
            self.reject(header, RejectReason.INVALID_PDU_FIELD)
            return
        pairs = self._text.add(data, bool(request.flags & TextRequest.CONTINUE))
        if pairs is None:
            self._text_response(request, b"", 0)
            return
        # An empty request asks for what did not fit the last response.
        if pairs or not self._text_left:
            if len(dict(pairs)) != len(pairs):
                self.reject(header, RejectReason.PROTOCOL_ERROR)
                return
            self._text_left = encode_text(self._answer(pairs))
        segment = self._session.peer_segment
        text, self._text_left = self._text_left[:segment], self._text_left[segment:]
        self._text_response(request, text, TextRequest.CONTINUE if self._text_left else FINAL)

    def _answer(self, pairs: Pairs) -> Pairs:
        session = self._session
        node = session.node
        answers: Pairs = []
        for name, value in pairs:
            key = KEYS.get(name)
            if name == "SendTargets":
                which = value or (node.name if node else "")
                # RFC 7143 appendix C: "All" in a discovery session, a name there and here.
                if node is not None and which != node.name:
                    answers.append((name, REJECT))
                else:
                    answers += self._send_targets(session.admission.initiator_name, which)
            elif key is not None and not key.field:
                if key.scope is not Scope.ANY:
                    answers.append((name, REJECT))
            elif key is not None and value != INQUIRY and key.scope is not Scope.ANY:
                answers.append((name, REJECT))  # RFC 7143 13: it may change during the login only
            else:
                parameters = session.admission.parameters
                changed, reply = answer(parameters, name, value, discovery=node is None)
                if reply is not None:
                    answers.append((name, reply))
                elif key is not None:
                    session.declare_segment(changed.peer_max_recv_data_segment_length)
        return answers

    def _text_response(self, request: TextRequest, text: bytes, flags: int) -> None:
        session = self._session
        stat_sn = session.next_stat_sn()
        self._text_tag = RESERVED_TAG if flags == FINAL else session.next_transfer_tag()
        session.emit(
            TextResponse(
                flags=flags,
                lun=request.lun,
                initiator_task_tag=request.initiator_task_tag,
                target_transfer_tag=self._text_tag,
                stat_sn=stat_sn,
                exp_cmd_sn=session.exp_cmd_sn,
                max_cmd_sn=session.max_cmd_sn,
            ).encode(data_length=len(text)),
            text,
        )

    def logout_request(self, header: memoryview, data: memoryview) -> None:
        session = self._session
        request = LogoutRequest.decode(header)
        reason = request.reason & 0x7F
        # 0 closes the session, 1 a connection, which is the same here; 2 needs ErrorRecoveryLevel 2.
        response = 0
        if reason > 1:
            response = 2
        elif reason == 1 and request.cid != session.admission.cid:
            response = 1
        stat_sn = session.next_stat_sn()
        session.emit(
            LogoutResponse(
                flags=FINAL,
                response=response,
                initiator_task_tag=request.initiator_task_tag,
                stat_sn=stat_sn,
                exp_cmd_sn=session.exp_cmd_sn,
                max_cmd_sn=session.max_cmd_sn,
                time2wait_seconds=0,
                time2retain_seconds=0,
            ).encode()
        )
        if response == 0:
            session.end("logout")

    def reject(self, header: Buffer, reason: int) -> None:
        session = self._session
        stat_sn = session.next_stat_sn()
        session.emit(
            Reject(
                flags=FINAL,
                reason=reason,
                initiator_task_tag=RESERVED_TAG,
                stat_sn=stat_sn,
                exp_cmd_sn=session.exp_cmd_sn,
                max_cmd_sn=session.max_cmd_sn,
                data_sn=0,
            ).encode(data_length=BHS_BYTES),
            bytes(header[:BHS_BYTES]),
        )
