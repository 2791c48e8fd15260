"""One connection at the target, from its first byte: login, then the session it leads to. No I/O.

The portal reads bytes and calls `receive`, and sends `output`; both lists and counters are shared with the
session once there is one. Before the login has succeeded nothing but Login Requests is accepted (RFC 7143
6.3).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from target.iscsi import pdu
from target.iscsi.address import reachable
from target.iscsi.chap import RandomBytes
from target.iscsi.login import Admission, TargetLogin
from target.iscsi.node import TARGET_PORTAL_GROUP_TAG, TargetNode
from target.iscsi.pdu import BHS_BYTES, PADDING, Opcode, ProtocolError
from target.iscsi.registry import SessionRegistry
from target.iscsi.requests import LoginRequest
from target.iscsi.session import COMMAND_WINDOW, SessionOwner, TargetSession
from target.iscsi.text import Pairs
from target.volume import Buffer

LOGIN_SEGMENT_BYTES_MAX = 16384
"""RFC 7143 13.12 says 8192 for the time before the login has ended; some initiators round up."""


class TargetConnection:
    """Bytes in, buffers out."""

    def __init__(
        self,
        nodes: Sequence[TargetNode],
        registry: SessionRegistry,
        owner: SessionOwner,
        local_address: str,
        random_bytes: RandomBytes,
        on_login: Callable[[Admission], None],
    ) -> None:
        self._nodes = nodes
        self._registry = registry
        self._owner = owner
        self._local_address = local_address
        self._on_login = on_login
        self._login = TargetLogin(nodes, registry.new_tsih, registry.admissions, random_bytes, COMMAND_WINDOW)
        self._login_output: list[Buffer] = []
        self._held_output: list[Buffer] = []
        self._ending = False
        self._closed = False
        self.session: TargetSession | None = None

    @property
    def identified(self) -> bool:
        """Whether somebody began to log in."""
        return bool(self._login.initiator_name)

    @property
    def initiator_name(self) -> str:
        return self._login.initiator_name or "unknown initiator"

    @property
    def output(self) -> list[Buffer]:
        return self._login_output if self.session is None else self.session.output

    def receive(self, view: memoryview, position: int, end: int) -> int:
        """Take every complete PDU in `view[position:end]`; the position of the first byte not taken."""
        while self.session is None:
            if self._ending or self._held_output or end - position < BHS_BYTES:
                return position
            opcode = view[position] & 0x3F
            if opcode != Opcode.LOGIN_REQUEST:
                raise ProtocolError(f"PDU with opcode {opcode:#04x} before the login")
            lengths = int.from_bytes(view[position + 4 : position + 8], "big")
            if lengths & 0xFFFFFF > LOGIN_SEGMENT_BYTES_MAX:
                raise ProtocolError(f"Login Request with {lengths & 0xFFFFFF} bytes of text")
            size = pdu.frame_bytes(lengths, 0, 0)
            if end - position < size:
                return position
            text = position + BHS_BYTES + (lengths >> 24) * 4
            self._receive_login(
                LoginRequest.decode(view[position : position + BHS_BYTES]),
                view[text : text + (lengths & 0xFFFFFF)],
            )
            position += size
        return self.session.receive(view, position, end)

    def _receive_login(self, request: LoginRequest, data: memoryview) -> None:
        response, text = self._login.receive(request, data)
        if not self._login_output:
            self._owner.output_ready()
        self._login_output.append(response.encode(data_length=len(text)))
        if text:
            self._login_output += [text, PADDING[len(text) & 3]]
        outcome = self._login.outcome
        if outcome is None:
            return
        if not isinstance(outcome, Admission):
            self._ending = True
            self._owner.end(f"login refused ({outcome.status:#06x}): {outcome.reason}")
            return
        self._held_output, self._login_output = self._login_output, []
        self._enter(outcome)

    def _enter(self, admission: Admission) -> None:
        """The last Login Response leaves when nothing of an earlier session is under way, and not before
        (RFC 7143 6.3.5): a write of that one must not land on what this one writes.
        """
        if self._closed:
            return
        registry = self._registry
        replaced = registry.replaced_by(admission)
        if replaced is not None:
            replaced.end("replaced: the initiator logged in again")
            replaced.close()
        if registry.drains(admission):
            registry.when_drained(lambda: self._enter(admission))
            return
        session = TargetSession(admission, self._owner, self._registry, self._send_targets)
        session.output += self._held_output
        session.output_bytes = sum(map(len, self._held_output))
        registry.add(session)
        self.session = session
        self._owner.output_ready()
        self._on_login(admission)

    def _send_targets(self, initiator_name: str, which: str) -> Pairs:
        """RFC 7143 appendix C: names and addresses of the targets that admit this initiator."""
        pairs: Pairs = []
        for node in self._nodes:
            if which not in ("All", node.name) or not node.admits(initiator_name):
                continue
            pairs.append(("TargetName", node.name))
            for address in node.portals or (self._local_address,):
                told = reachable(address, self._local_address)
                pairs.append(("TargetAddress", f"{told},{TARGET_PORTAL_GROUP_TAG}"))
        return pairs

    def close(self) -> None:
        """The connection is gone."""
        self._closed = True
        if self.session is not None:
            self.session.close()
