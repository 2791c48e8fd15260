"""The live sessions of one process's portals: who is logged in, and what a login or a reset does to the
others.

No I/O. Invariant: at most one session for each initiator port (name, ISID) and target (RFC 7143 4.4.3,
6.3.5).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from target.iscsi.login import Admission

if TYPE_CHECKING:
    from target.iscsi.session import TargetSession

_TSIH_MAX = 0xFFFF


class SessionRegistry:
    """Sessions by TSIH."""

    def __init__(self) -> None:
        self._sessions: dict[int, TargetSession] = {}
        self._admissions: dict[int, Admission] = {}
        self._last_tsih = 0

    def new_tsih(self) -> int:
        """A TSIH that no live session has; never zero."""
        while True:
            self._last_tsih = self._last_tsih % _TSIH_MAX + 1
            if self._last_tsih not in self._sessions:
                return self._last_tsih

    @property
    def admissions(self) -> Mapping[int, Admission]:
        """The live ones by TSIH: a view."""
        return self._admissions

    def replaced_by(self, admission: Admission) -> TargetSession | None:
        """The session that this login takes the place of: it is to be closed before the new one starts."""
        old = self._sessions.get(admission.tsih)
        if old is not None:
            return old
        return next(
            (
                session
                for session in self._sessions.values()
                if session.admission.isid == admission.isid
                and session.admission.initiator_name == admission.initiator_name
                and session.node is admission.node
            ),
            None,
        )

    def add(self, session: TargetSession) -> None:
        self._sessions[session.admission.tsih] = session
        self._admissions[session.admission.tsih] = session.admission

    def remove(self, session: TargetSession) -> None:
        if self._sessions.get(session.admission.tsih) is session:
            del self._sessions[session.admission.tsih]
            del self._admissions[session.admission.tsih]

    def sessions_of(self, target_name: str) -> list[TargetSession]:
        return [
            session
            for session in self._sessions.values()
            if session.node and session.node.name == target_name
        ]

    def __len__(self) -> int:
        return len(self._sessions)
