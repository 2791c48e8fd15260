"""A VFS of SQLite whose database lies on one logical unit and whose rollback journal lies on another.

Nothing is mounted and no kernel takes part: SQLite's reads, writes and fsyncs become SCSI READ, WRITE
and SYNCHRONIZE CACHE on two volumes. SQLite keeps the database intact by the order of its writes: the
journal is durable before the database is touched, and made invalid after the database is durable. With
the two on different volumes, a copy is good only if it kept that order across both.

The journal mode is PERSIST: a commit overwrites the journal's header with zeros, an ordinary write that
SQLite itself follows by a sync, so that the moment of the commit needs no file system to put it in
order. There is one connection at a time: locks are granted.

https://www.sqlite.org/vfs.html, https://www.sqlite.org/atomiccommit.html
"""

# ruff: noqa: N802 - the names of the methods are SQLite's

from __future__ import annotations

import apsw

from scripts.demonstration.lun_file import BlockClient, LunFile, LunFull

DATABASE_NAME = "database"
_JOURNAL_NAME = DATABASE_NAME + "-journal"
_JOURNAL_MAGIC = bytes.fromhex("d9d505f920a163d7")  # https://www.sqlite.org/fileformat.html, 3


class LunVfs(apsw.VFS):
    """The two files of one database, by name. Everything that is not a file comes from SQLite's own VFS."""

    def __init__(self, name: str, database: BlockClient, journal: BlockClient) -> None:
        self._files = {DATABASE_NAME: LunFile(database), _JOURNAL_NAME: LunFile(journal)}
        super().__init__(name, base="")

    @property
    def journal_is_hot(self) -> bool:
        """True if a transaction was under way when the copy ended: opening it will roll that one back."""
        journal = self._files[_JOURNAL_NAME]
        return journal.exists and journal.read(0, len(_JOURNAL_MAGIC)) == _JOURNAL_MAGIC

    def xFullPathname(self, name: str) -> str:
        return name

    def xAccess(self, pathname: str, flags: int) -> bool:
        file = self._files.get(pathname)
        return file is not None and file.exists

    def xDelete(self, filename: str, syncdir: bool) -> None:
        file = self._files[filename]
        file.delete()
        if syncdir:
            file.sync()

    def xOpen(self, name: str | apsw.URIFilename | None, flags: list[int]) -> LunVfsFile:  # type: ignore[override]
        file = self._files.get(str(name.filename() if isinstance(name, apsw.URIFilename) else name))
        if file is None:
            raise apsw.CantOpenError(f"{name}: only {' and '.join(self._files)} are on a logical unit")
        if flags[0] & apsw.SQLITE_OPEN_CREATE:
            file.create()
        if not file.exists:
            raise apsw.CantOpenError(f"{name}: its logical unit holds no file")
        flags[1] = flags[0]
        return LunVfsFile(file)


class LunVfsFile:
    """An open file, in SQLite's terms."""

    def __init__(self, file: LunFile) -> None:
        self._file = file

    def xRead(self, amount: int, offset: int) -> bytes:
        return self._file.read(offset, amount)

    def xWrite(self, data: bytes, offset: int) -> None:
        try:
            self._file.write(offset, data)
        except LunFull as error:
            raise apsw.FullError(str(error)) from error

    def xTruncate(self, newsize: int) -> None:
        self._file.truncate(newsize)

    def xSync(self, flags: int) -> None:
        self._file.sync()

    def xFileSize(self) -> int:
        return self._file.length

    def xSectorSize(self) -> int:
        return self._file.block_bytes

    def xDeviceCharacteristics(self) -> int:
        return 0

    def xFileControl(self, op: int, ptr: int) -> bool:
        return False

    def xLock(self, level: int) -> None:
        """One connection at a time."""

    def xUnlock(self, level: int) -> None:
        """One connection at a time."""

    def xCheckReservedLock(self) -> bool:
        return False

    def xClose(self) -> None:
        """What was not synced may be lost: SQLite has synced what must not."""


def connect(vfs: LunVfs, name: str) -> apsw.Connection:
    """Open, or make, the database of the VFS registered as `name`.

    A hot journal (one that a crash left valid) is rolled back by the first statement.
    """
    connection = apsw.Connection(DATABASE_NAME, vfs=name)
    for pragma in ("locking_mode=EXCLUSIVE", "journal_mode=PERSIST", "synchronous=FULL", "temp_store=MEMORY"):
        connection.execute(f"PRAGMA {pragma}").fetchall()
    return connection
