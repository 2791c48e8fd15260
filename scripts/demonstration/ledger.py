"""The workload: a bank that moves money between accounts, one SQLite transaction a transfer.

A copy of the database proves its own history: the sum of all balances never changes, transfers are
numbered without gaps, and each carries a digest over itself and the one before. So a copy that lost,
doubled or mixed anything up cannot pass `audit`.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass

import apsw

ACCOUNTS = 200
OPENING_BALANCE = 1000
_NOTE_BYTES_MAX = 3000


@dataclass(frozen=True, slots=True)
class Audit:
    """What a database turned out to hold. `faults` is empty if all is well."""

    transfers: int
    faults: tuple[str, ...]


class Ledger:
    """The bank on an open connection."""

    def __init__(self, connection: apsw.Connection, seed: int) -> None:
        self._connection = connection
        self._random = random.Random(seed)
        self._last_number, self._last_digest = 0, b""

    def create(self) -> None:
        """Make the tables and open the accounts, in one transaction."""
        with self._connection as connection:
            connection.execute(
                "CREATE TABLE account (id INTEGER PRIMARY KEY, balance INTEGER NOT NULL);"
                "CREATE TABLE transfer (number INTEGER PRIMARY KEY, debtor INTEGER NOT NULL,"
                " creditor INTEGER NOT NULL, amount INTEGER NOT NULL, note BLOB NOT NULL,"
                " digest BLOB NOT NULL);"
                "CREATE INDEX transfer_by_debtor ON transfer (debtor, number)"
            )
            connection.executemany(
                "INSERT INTO account VALUES (?, ?)",
                ((account, OPENING_BALANCE) for account in range(ACCOUNTS)),
            )

    def resume(self) -> None:
        """Go on where the database ends."""
        row = self._connection.execute(
            "SELECT number, digest FROM transfer ORDER BY number DESC LIMIT 1"
        ).fetchone()
        self._last_number, self._last_digest = (0, b"") if row is None else row

    def transfer(self) -> int:
        """One committed transaction; its number."""
        debtor, creditor = self._random.sample(range(ACCOUNTS), 2)
        amount = self._random.randrange(1, 50)
        note = self._random.randbytes(self._random.randrange(_NOTE_BYTES_MAX))
        number = self._last_number + 1
        digest = _digest(self._last_digest, number, debtor, creditor, amount, note)
        with self._connection as connection:
            connection.execute("UPDATE account SET balance = balance - ? WHERE id = ?", (amount, debtor))
            connection.execute("UPDATE account SET balance = balance + ? WHERE id = ?", (amount, creditor))
            connection.execute(
                "INSERT INTO transfer VALUES (?, ?, ?, ?, ?, ?)",
                (number, debtor, creditor, amount, note, digest),
            )
        self._last_number, self._last_digest = number, digest
        return number


def _digest(before: bytes, number: int, debtor: int, creditor: int, amount: int, note: bytes) -> bytes:
    head = f"{number}:{debtor}:{creditor}:{amount}:".encode()
    return hashlib.blake2b(before + head + note, digest_size=16).digest()


def audit(connection: apsw.Connection) -> Audit:
    """Check the database file (SQLite's own check) and the history in it."""
    faults = [row[0] for row in connection.execute("PRAGMA integrity_check") if row[0] != "ok"]
    if faults:
        return Audit(0, tuple(faults))
    if connection.execute("SELECT count(*) FROM sqlite_schema").get == 0:
        return Audit(0, ("there are no tables",))
    balance = dict.fromkeys(range(ACCOUNTS), OPENING_BALANCE)
    digest = b""
    expected = 0
    for number, debtor, creditor, amount, note, stored in connection.execute(
        "SELECT number, debtor, creditor, amount, note, digest FROM transfer ORDER BY number"
    ):
        expected += 1
        digest = _digest(digest, number, debtor, creditor, amount, note)
        if number != expected or digest != stored:
            return Audit(expected - 1, (f"transfer {number} does not continue the history",))
        balance[debtor] -= amount
        balance[creditor] += amount
    if dict(connection.execute("SELECT id, balance FROM account")) != balance:
        return Audit(expected, ("the balances are not what the transfers make of them",))
    return Audit(expected, ())
