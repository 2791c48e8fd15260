"""What the copy manager must not forget: SQLite, every transaction durable before it counts.

Truth about data lives with the data, in the journal volumes; what is here is roles, epochs heard of, and
history, and can be rebuilt from there.
"""

from __future__ import annotations

import json
import sqlite3
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from target.errors import OperatorError

_SCHEMA = """
CREATE TABLE IF NOT EXISTS epoch (
    group_name TEXT NOT NULL, group_id TEXT NOT NULL, epoch INTEGER NOT NULL, reign TEXT NOT NULL,
    site TEXT NOT NULL, PRIMARY KEY (group_name, group_id)
);
CREATE TABLE IF NOT EXISTS pair (
    group_name TEXT NOT NULL, site TEXT NOT NULL, role TEXT NOT NULL, state TEXT NOT NULL,
    received INTEGER NOT NULL, restored INTEGER NOT NULL, PRIMARY KEY (group_name, site)
);
CREATE TABLE IF NOT EXISTS event (
    id INTEGER PRIMARY KEY, time_ns INTEGER NOT NULL, group_name TEXT NOT NULL, kind TEXT NOT NULL,
    text TEXT NOT NULL, facts TEXT NOT NULL
);
"""
_EVENTS_KEPT = 10_000


@dataclass(frozen=True, slots=True)
class NewestEpoch:
    """The newest epoch of a group this site has heard of, and who reigns in it."""

    epoch: int
    reign: int
    site: str


class Store:
    """One database file, used from one thread."""

    def __init__(self, path: Path) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")
            self._db.executescript(_SCHEMA)
        except (OSError, sqlite3.Error) as error:
            raise OperatorError(f"database {path}: cannot be used: {error}") from None

    # -- epochs --

    def heard_of(self, group: str, group_id: str, epoch: int, reign: int, site: str) -> bool:
        """Remember an epoch if it is newer than what is known; True when it was."""
        known = self.newest_epoch(group, group_id)
        if known is not None and known.epoch >= epoch:
            return False
        self._db.execute(
            "INSERT OR REPLACE INTO epoch VALUES (?, ?, ?, ?, ?)",
            (group, group_id, epoch, f"{reign:x}", site),
        )
        return True

    def newest_epoch(self, group: str, group_id: str) -> NewestEpoch | None:
        row = self._db.execute(
            "SELECT epoch, reign, site FROM epoch WHERE group_name = ? AND group_id = ?", (group, group_id)
        ).fetchone()
        return None if row is None else NewestEpoch(row[0], int(row[1], 16), row[2])

    def reigned_in(self, group: str, group_id: str, site: str) -> int:
        """The newest epoch, if it is this site's; 0 when it is another's, who may reign in it still."""
        known = self.newest_epoch(group, group_id)
        return known.epoch if known is not None and known.site == site else 0

    # -- pairs --

    def save_pair(self, group: str, site: str, role: str, state: str, received: int, restored: int) -> None:
        """How a pair stands, for a person who looks when nothing runs."""
        self._db.execute(
            "INSERT OR REPLACE INTO pair VALUES (?, ?, ?, ?, ?, ?)",
            (group, site, role, state, received, restored),
        )

    def remove_pair(self, group: str, site: str) -> None:
        self._db.execute("DELETE FROM pair WHERE group_name = ? AND site = ?", (group, site))

    def pairs(self) -> list[dict[str, Any]]:
        names = ("group", "site", "role", "state", "received", "restored")
        return [dict(zip(names, row, strict=True)) for row in self._db.execute("SELECT * FROM pair")]

    # -- events --

    def log(self, time_ns: int, group: str, kind: str, text: str, facts: dict[str, Any]) -> None:
        """Append to the history."""
        cursor = self._db.execute(
            "INSERT INTO event (time_ns, group_name, kind, text, facts) VALUES (?, ?, ?, ?, ?)",
            (time_ns, group, kind, text, json.dumps(facts)),
        )
        if cursor.lastrowid is not None and cursor.lastrowid % 1000 == 0:
            self._db.execute("DELETE FROM event WHERE id <= ?", (cursor.lastrowid - _EVENTS_KEPT,))

    def events(self, group: str | None, limit: int) -> list[dict[str, Any]]:
        """The last events, oldest first."""
        rows = self._db.execute(
            "SELECT time_ns, group_name, kind, text, facts FROM event WHERE ? IS NULL OR group_name = ? "
            "ORDER BY id DESC LIMIT ?",
            (group, group, limit),
        ).fetchall()
        return [
            {
                "time": row[0] / 1e9,
                "group": row[1],
                "kind": row[2],
                "text": row[3],
                "facts": json.loads(row[4]),
            }
            for row in reversed(rows)
        ]

    def close(self) -> None:
        self._db.close()
