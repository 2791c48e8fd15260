"""Unit attention conditions: what an initiator must be told before its next command is executed.

SAM-5, *Unit attention conditions*: they are kept for each I_T nexus, and reported once, in order. Invariant:
`quiet` holds only nexuses that nothing hinders, neither a pending condition nor a reservation, keyed by
identity, so that the hot path asks one dictionary and hashes no name.
"""

from __future__ import annotations

from collections.abc import Collection

from target.scsi.command import Nexus
from target.scsi.sense import POWER_ON, Sense

_QUIET_MAX = 1024


class UnitAttentions:
    """The pending conditions of one logical unit. A nexus never seen before has POWER ON pending."""

    __slots__ = ("_pending", "quiet")

    def __init__(self) -> None:
        self._pending: dict[Nexus, list[Sense]] = {}
        # The value keeps the nexus alive: its id cannot be given to another object while it is a key here.
        self.quiet: dict[int, Nexus] = {}

    @property
    def nexuses(self) -> Collection[Nexus]:
        """Those that have sent a command, and are not gone."""
        return self._pending.keys()

    def establish(self, sense: Sense, except_for: Nexus | None = None) -> None:
        """Make `sense` pending for every nexus but one: the one that caused it."""
        for nexus, pending in self._pending.items():
            # A new condition of the same kind adds nothing to one that was not reported yet.
            if nexus != except_for and sense not in pending:
                pending.append(sense)
        self.quiet.clear()

    def establish_for(self, nexus: Nexus, sense: Sense) -> None:
        """Make `sense` pending for one nexus; one that is not there will begin with POWER ON anyway."""
        pending = self._pending.get(nexus)
        if pending is not None and sense not in pending:
            pending.append(sense)
        self.quiet.clear()

    def take(self, nexus: Nexus) -> Sense | None:
        """The oldest pending condition, which is thereby reported."""
        pending = self._pending.get(nexus)
        if pending is None:
            pending = self._pending[nexus] = [POWER_ON]
        return pending.pop(0) if pending else None

    def rest(self, nexus: Nexus) -> None:
        """Nothing is pending, and nothing else hinders this nexus: it is not looked at until that changes."""
        if len(self.quiet) >= _QUIET_MAX:
            self.quiet.clear()
        self.quiet[id(nexus)] = nexus

    def withdraw(self, nexus: Nexus, sense: Sense) -> None:
        """Another command has told this nexus already."""
        pending = self._pending.get(nexus)
        if pending is not None and sense in pending:
            pending.remove(sense)

    def forget(self, nexus: Nexus) -> None:
        """The nexus is gone; if it comes back it is a new one."""
        self._pending.pop(nexus, None)
        for key in [key for key, kept in self.quiet.items() if kept == nexus]:
            del self.quiet[key]
