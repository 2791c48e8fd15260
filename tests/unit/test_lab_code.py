"""The project's code on its way to a machine of the lab: what the machine's Python need not compile."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from scripts.vmlab import code
from scripts.vmlab.code import SOURCES, pack_code

PACKAGE = "target"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    source = tmp_path / "checkout"
    for name in SOURCES:
        if "." in name:
            source.mkdir(exist_ok=True)
            (source / name).write_text("x\n")
        else:
            (source / name).mkdir(parents=True)
            (source / name / "__init__.py").write_text("VALUE = 1\n")
    left = source / PACKAGE / "__pycache__"
    left.mkdir()
    (left / "old.cpython-39.pyc").write_bytes(b"of somebody's run")
    return source


@pytest.fixture
def same_python(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever runs the tests is what the machines have."""
    monkeypatch.setattr(code, "PYTHON_OF_SUITE", f"{sys.version_info.major}.{sys.version_info.minor}")


def unpacked(source: Path, tmp_path: Path) -> Path:
    archive, to = tmp_path / "code.tar", tmp_path / "machine"
    pack_code(source, tmp_path, archive)
    with tarfile.open(archive) as tar:
        assert {member.uid for member in tar} == {0}
        tar.extractall(to, filter="data") if hasattr(tarfile, "data_filter") else tar.extractall(to)
    return to


def loads_without_compiling(machine: Path) -> bool:
    """-v tells where a module's code came from."""
    told = subprocess.run(
        [sys.executable, "-v", "-S", "-c", f"import {PACKAGE}"],
        cwd=machine,
        env={"PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=True,
    ).stderr
    return f"{machine}/{PACKAGE}/__pycache__/__init__.{sys.implementation.cache_tag}.pyc matches" in told


def test_byte_code_is_of_the_files_beside_it(source: Path, tmp_path: Path, same_python: None) -> None:
    machine = unpacked(source, tmp_path)
    assert loads_without_compiling(machine)
    assert not (machine / PACKAGE / "__pycache__" / "old.cpython-39.pyc").exists()


def test_byte_code_follows_a_change(source: Path, tmp_path: Path, same_python: None) -> None:
    pack_code(source, tmp_path, tmp_path / "first.tar")
    changed = source / PACKAGE / "__init__.py"
    changed.write_text("VALUE = 22\n")
    os.utime(changed, (1, 1))
    assert loads_without_compiling(unpacked(source, tmp_path))


def test_what_does_not_compile_goes_as_it_is(source: Path, tmp_path: Path, same_python: None) -> None:
    (source / PACKAGE / "broken.py").write_text("def\n")
    machine = unpacked(source, tmp_path)
    assert loads_without_compiling(machine)
    assert (machine / PACKAGE / "broken.py").read_text() == "def\n"


def test_another_python_compiles_itself(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(code, "PYTHON_OF_SUITE", "3.2")
    machine = unpacked(source, tmp_path)
    assert not (machine / PACKAGE / "__pycache__").exists()
