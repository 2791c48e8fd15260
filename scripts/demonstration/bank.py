"""The application: a bank whose database lies on two logical units of one site."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable

import apsw

from scripts.demonstration.lab import DATABASE_VOLUME, LOG_VOLUME, Lab
from scripts.demonstration.ledger import Audit, Ledger, audit
from scripts.demonstration.lun_file import BlockClient
from scripts.demonstration.sqlite_vfs import LunVfs, connect
from target.errors import PeerError

_vfs_numbers = itertools.count(1)


class WatchedUnit:
    """A logical unit that tells of each write after it was done."""

    def __init__(self, client: BlockClient, wrote: Callable[[], None]) -> None:
        self._client = client
        self._wrote = wrote
        self.block_count = client.block_count
        self.block_size_bytes = client.block_size_bytes
        self.read = client.read
        self.flush = client.flush

    def write(self, lba: int, data: bytes) -> None:
        self._client.write(lba, data)
        self._wrote()


class Bank:
    """An open database at a site, and the ledger in it."""

    def __init__(self, lab: Lab, site: str, seed: int) -> None:
        self._sessions = contextlib.ExitStack()
        database = self._sessions.enter_context(lab.connect(site, DATABASE_VOLUME))
        journal = self._sessions.enter_context(lab.connect(site, LOG_VOLUME))
        self.on_database_write: Callable[[], None] = lambda: None
        name = f"lun-{next(_vfs_numbers)}"
        self._vfs = LunVfs(name, WatchedUnit(database, lambda: self.on_database_write()), journal)
        self.was_in_transaction = self._vfs.journal_is_hot
        self.connection = connect(self._vfs, name)
        self.ledger = Ledger(self.connection, seed)

    def audit(self) -> Audit:
        """Is it all there?"""
        return audit(self.connection)

    def transfer_until_killed(self, kill: Callable[[], None]) -> None:
        """Begin one more transaction; kill the site when the database was written, but not committed yet."""

        def kill_once() -> None:
            self.on_database_write = lambda: None
            kill()

        self.on_database_write = kill_once
        try:
            self.ledger.transfer()
        except (apsw.Error, PeerError):
            return
        raise AssertionError("a transaction was committed by a site that is dead")

    def close(self) -> None:
        """Give everything back; a dead site cannot be asked to finish anything."""
        with contextlib.suppress(apsw.Error, PeerError):
            self.connection.close(True)
        with contextlib.suppress(apsw.Error, PeerError):
            self._sessions.close()
        self._vfs.unregister()

    def __enter__(self) -> Bank:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
