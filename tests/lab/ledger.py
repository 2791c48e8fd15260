"""A SQLite database on a mounted volume: what was committed is known, so that what is missing shows."""

from __future__ import annotations

from tests.lab.two_sites import Host, TwoSites

_WRITER = """
import os, sqlite3, sys, time
database, told = sys.argv[1:]
connection = sqlite3.connect(database, isolation_level=None)
connection.execute("PRAGMA journal_mode=DELETE")
connection.execute("PRAGMA synchronous=FULL")
connection.execute("CREATE TABLE IF NOT EXISTS ledger (number INTEGER PRIMARY KEY, half TEXT)")
number = connection.execute("SELECT coalesce(max(number), 0) / 2 FROM ledger").fetchone()[0]
while True:
    number += 1
    connection.execute("BEGIN IMMEDIATE")
    connection.execute("INSERT INTO ledger VALUES (?, ?)", (2 * number, "left" * 100))
    connection.execute("INSERT INTO ledger VALUES (?, ?)", (2 * number + 1, "right" * 100))
    connection.execute("COMMIT")
    with open(told + ".new", "w") as file:
        file.write(str(number))
    os.rename(told + ".new", told)  # who looks finds a number at every moment
    time.sleep(0.05)
"""


class Ledger:
    """A SQLite database on a mounted volume: numbered transactions of two rows, told when committed."""

    def __init__(self, host: Host) -> None:
        self._host = host

    def start(self) -> None:
        self._host.run(
            f"rm -f /run/told; cat >/run/writer.py <<'END'\n{_WRITER}\nEND\n"
            "systemd-run --quiet --collect --unit ledger"
            " python3 /run/writer.py /mnt/data/ledger.sqlite /run/told"
        )

    def stop(self) -> None:
        """It must have run without an error until now."""
        assert self._host.run("systemctl is-active ledger || true").strip() == "active", self.log()
        self._host.run("systemctl stop ledger")

    def abandon(self) -> None:
        self._host.run("systemctl kill --signal KILL ledger; true", check=False)

    def committed(self) -> int:
        return int(self._host.run("cat /run/told 2>/dev/null || echo 0"))

    def wait_for_progress(self, sites: TwoSites, transactions: int = 3) -> int:
        """Until that many more are committed; returns the last."""
        goal = self.committed() + transactions
        sites.wait_for(f"transaction {goal} is committed\n{self.log()}", lambda: self.committed() >= goal)
        return self.committed()

    def check(self) -> int:
        """Whole, and without a gap or half a transaction; returns how many there are."""
        query = "PRAGMA integrity_check; SELECT count(*), max(number), count(DISTINCT number / 2) FROM ledger"
        verdict, counts = self._host.run(f'sqlite3 /mnt/data/ledger.sqlite "{query}"').split()
        rows, last, transactions = (int(word) for word in counts.split("|"))
        assert verdict == "ok"
        assert rows == 2 * transactions
        assert last == rows + 1
        return transactions

    def log(self) -> str:
        return self._host.run("journalctl -n 5 -o cat -u ledger")
