"""The project's code on its way to the machines: one archive with its byte code, if this Python can make it.

A machine without hardware acceleration is some twenty times slower at compiling, and byte code depends on
nothing but the release of Python, and on size and time of its source.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

PYTHON_OF_SUITE = "3.11"
SOURCES = ("target", "hostagent", "vagrant", "pyproject.toml", "README.md")
"""What of the project a machine is made of; the rest is for those who work on it."""
_COMPILED = ("target", "hostagent")


def pack_code(source: Path, cache: Path, archive: Path) -> None:
    """Write the archive. `cache` keeps byte code from one time to the next."""
    bytecode = cache / "bytecode"
    compiled = _compile(source, bytecode)
    unfinished = archive.with_suffix(".new")
    with tarfile.open(unfinished, "w") as tar:
        for name in SOURCES:
            tar.add(source / name, name, filter=as_root)
        for path in compiled:
            made = _byte_code_of(path, bytecode)
            if made.exists():  # not of what does not compile
                where = path.parent.relative_to(source) / "__pycache__" / made.name
                tar.add(made, str(where), filter=_owned_by_root)
    unfinished.rename(archive)


def as_root(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """Of a checkout, without what running it has left there."""
    return None if "__pycache__" in member.name else _owned_by_root(member)


def _owned_by_root(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = "root"
    return member


def _compile(source: Path, bytecode: Path) -> Iterator[Path]:
    """The files that are compiled; none where this Python is not the machines'."""
    if sys.version_info[:2] != tuple(map(int, PYTHON_OF_SUITE.split("."))):
        return
    directories = [str(source / name) for name in _COMPILED]
    subprocess.run(
        [sys.executable, "-m", "compileall", "-q", "-j", "0", *directories],
        env={**os.environ, "PYTHONPYCACHEPREFIX": str(bytecode)},
        capture_output=True,
        check=False,  # who starts what does not compile is told by the machine
    )
    for directory in directories:
        yield from sorted(Path(directory).rglob("*.py"))


def _byte_code_of(path: Path, bytecode: Path) -> Path:
    """Where PYTHONPYCACHEPREFIX has it (sys.pycache_prefix)."""
    name = f"{path.stem}.{sys.implementation.cache_tag}.pyc"
    return bytecode.joinpath(*path.absolute().parts[1:-1], name)
