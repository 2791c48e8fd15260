"""The live sessions of one process's portals: who is logged in, and what a login or a reset does to the
others.

No I/O. Invariant: at most one session for each initiator port (name, ISID) and target (RFC 7143 4.4.3,
6.3.5).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING

from target.iscsi.budget import MemoryBudget
from target.iscsi.login import Admission
from target.iscsi.task_management import abort_for_another
from target.scsi.command import Nexus
from target.scsi.lun import decode_lun
from target.volume import Request

if TYPE_CHECKING:
    from target.iscsi.session import TargetSession

_TSIH_MAX = 0xFFFF

OUTPUT_BYTES_HIGH = 8 << 20
OUTPUT_BYTES_LEAST = 1 << 20
_OUTPUT_BYTES_TOGETHER = 64 << 20
"""With so much unsent a session takes no further command: who does not read must not fill our memory. What
all sessions together may have is shared out, but nobody gets less than OUTPUT_BYTES_LEAST.
"""


class SessionRegistry:
    """Sessions by TSIH."""

    def __init__(self) -> None:
        self._sessions: dict[int, TargetSession] = {}
        self._admissions: dict[int, Admission] = {}
        self._last_tsih = 0
        self._draining: list[TargetSession] = []
        self._waiting: list[Callable[[], None]] = []
        self.budget = MemoryBudget()
        self.output_bytes_high = OUTPUT_BYTES_HIGH

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
        return next((one for one in self._sessions.values() if _same_port(one.admission, admission)), None)

    def drains(self, admission: Admission) -> bool:
        """Whether the device still has commands of an earlier session of this initiator port."""
        return any(_same_port(one.admission, admission) for one in self._draining)

    def drains_units(self, target_name: str, luns: Collection[int]) -> bool:
        """Whether a device still has commands of sessions that are gone for any of these units."""
        return any(
            decode_lun(task.lun_field) in luns
            for session in self._draining
            if session.node is not None and session.node.name == target_name
            for task in session.draining
        )

    def when_drained(self, call: Callable[[], None]) -> None:
        """Call once, when the last command of some closed session has ended."""
        self._waiting.append(call)

    def drained(self, session: TargetSession) -> None:
        """A command of a closed session has ended."""
        if session.draining or session not in self._draining:
            return
        self._draining.remove(session)
        waiting, self._waiting = self._waiting, []
        for call in waiting:
            call()

    def abort_tasks(self, lun: int, nexus: Nexus, request: Request) -> None:
        """PREEMPT AND ABORT: answer `request` when nothing of that nexus can change the unit any more."""
        if any(one.nexus == nexus for one in self._draining):
            self.when_drained(lambda: self.abort_tasks(lun, nexus, request))
            return
        theirs = [one for one in self._sessions.values() if one.nexus == nexus]
        abort_for_another(theirs, lun, request.done)

    def add(self, session: TargetSession) -> None:
        self._sessions[session.admission.tsih] = session
        self._admissions[session.admission.tsih] = session.admission
        self._share_out()

    def remove(self, session: TargetSession) -> None:
        if self._sessions.get(session.admission.tsih) is session:
            del self._sessions[session.admission.tsih]
            del self._admissions[session.admission.tsih]
            self._share_out()
        if session.draining:
            self._draining.append(session)

    def _share_out(self) -> None:
        share = _OUTPUT_BYTES_TOGETHER // max(1, len(self._sessions))
        self.output_bytes_high = max(OUTPUT_BYTES_LEAST, min(OUTPUT_BYTES_HIGH, share))

    def sessions_of(self, target_name: str) -> list[TargetSession]:
        return [
            session
            for session in self._sessions.values()
            if session.node and session.node.name == target_name
        ]

    def __len__(self) -> int:
        return len(self._sessions)


def _same_port(one: Admission, other: Admission) -> bool:
    return (one.isid, one.initiator_name) == (other.isid, other.initiator_name) and one.node is other.node
