"""A cpio archive of the kind that the kernel unpacks at boot: `newc`, buffer-format.rst of its docs."""

from __future__ import annotations

import io
import stat
from pathlib import Path


class Archive:
    """Directories must come before what is in them. Several archives may be put one behind the other."""

    def __init__(self) -> None:
        self._out = io.BytesIO()
        self._count = 0

    def add(self, name: str, content: bytes, *, executable: bool = False) -> None:
        self._entry(name, stat.S_IFREG | (0o755 if executable else 0o644), content)

    def directory(self, name: str) -> None:
        self._entry(name, stat.S_IFDIR | 0o755, b"")

    def tree(self, source: Path, name: str) -> None:
        """A directory of the host with all that is in it."""
        self.directory(name)
        for path in sorted(source.rglob("*")):
            to = f"{name}/{path.relative_to(source)}"
            if path.is_dir():
                self.directory(to)
            else:
                self.add(to, path.read_bytes())

    def close(self) -> bytes:
        self._entry("TRAILER!!!", 0, b"")
        return self._out.getvalue()

    def _entry(self, name: str, mode: int, content: bytes) -> None:
        self._count += 1
        fields = (self._count, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name) + 1, 0)
        self._out.write(b"070701" + b"".join(b"%08X" % field for field in fields))
        self._padded(name.encode() + b"\0")
        self._padded(content)

    def _padded(self, content: bytes) -> None:
        self._out.write(content)
        self._out.write(bytes(-self._out.tell() % 4))
