"""Commands that arrived ahead of their CmdSN, and their turns (RFC 7143 4.2.2.1). No I/O.

Over one connection this is rare: an initiator that sends out of order, or an ABORT TASK for a command that
has not come. Invariant: what is held lies within the command window and is at most HELD_BYTES_MAX.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from target.iscsi.budget import MemoryBudget
from target.iscsi.pdu import BHS_BYTES, ProtocolError

if TYPE_CHECKING:
    from target.iscsi.session import TargetSession

HELD_BYTES_MAX = 8 << 20
"""How much is kept of commands that arrived ahead of their CmdSN."""


class HeldCommands:
    """By CmdSN: header and data of a command, or nothing for one that was aborted before it ran."""

    def __init__(self, session: TargetSession, budget: MemoryBudget) -> None:
        self._session = session
        self._budget = budget
        self.by_cmd_sn: dict[int, bytes] = {}
        self._bytes = 0

    def take_turn(self, cmd_sn: int, header: memoryview, data: memoryview) -> bool:
        """Whether to run this command now; one that is ahead is held, one outside the window dropped."""
        session = self._session
        ahead = cmd_sn - session.exp_cmd_sn & 0xFFFFFFFF
        if ahead == 0 and session.max_cmd_sn - cmd_sn & 0x80000000 == 0:
            session.exp_cmd_sn = cmd_sn + 1 & 0xFFFFFFFF
            return True
        if ahead < self._window and cmd_sn not in self.by_cmd_sn:
            kept = bytes(header) + bytes(data)
            if self._bytes + len(kept) > HELD_BYTES_MAX or not self._budget.take(len(kept), self._bytes):
                raise ProtocolError(f"CmdSN {session.exp_cmd_sn} does not come: too much arrived behind it")
            self._bytes += len(kept)
            self.by_cmd_sn[cmd_sn] = kept
        return False  # RFC 7143 4.2.2.1: outside the window, or a duplicate, is ignored

    @property
    def _window(self) -> int:
        return self._session.max_cmd_sn - self._session.exp_cmd_sn + 1 & 0xFFFFFFFF

    def run(self) -> None:
        """Run those whose turn has come."""
        session = self._session
        while (kept := self.by_cmd_sn.pop(session.exp_cmd_sn, None)) is not None:
            self._give(len(kept))
            session.exp_cmd_sn = session.exp_cmd_sn + 1 & 0xFFFFFFFF
            if not kept:
                session.max_cmd_sn = session.max_cmd_sn + 1 & 0xFFFFFFFF
                continue
            header_end = BHS_BYTES + kept[4] * 4
            view = memoryview(kept)
            session.run(kept[0] & 0x3F, view[:header_end], view[header_end:], False)

    def skip(self, cmd_sn: int, before: int) -> bool:
        """Take a command that has not run for received, and never run it. False when it is not one that was
        sent before the request with CmdSN `before` (serial number arithmetic, RFC 1982).
        """
        ahead = cmd_sn - self._session.exp_cmd_sn & 0xFFFFFFFF
        if ahead >= self._window or not cmd_sn - before & 0x80000000:
            return False
        self._give(len(self.by_cmd_sn.get(cmd_sn, b"")))
        self.by_cmd_sn[cmd_sn] = b""
        return True

    def clear(self) -> None:
        self.by_cmd_sn.clear()
        self._give(self._bytes)

    def _give(self, count: int) -> None:
        self._bytes -= count
        self._budget.give(count)
