"""What holds for every file of the tree: modules are small and say what they are, no file names a machine."""

from __future__ import annotations

import ast
import os
import re
import subprocess
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MODULE_LINES_MAX = 500
EMPTY_NAMES = {"utils", "util", "helpers", "helper", "common", "misc", "manager"}
GENERATED = {
    ".git",
    ".venv",
    "__pycache__",
    ".mypy_cache",
    ".ruff_cache",
    ".pytest_cache",
    ".hypothesis",
    "build",
}
MACHINE_PATH = re.compile("/" + r"(?:work|farm|root|home/[a-z]+)/|/" + r"tmp/[a-z]+-[a-z0-9]{6,}")


@cache
def tracked_files() -> list[Path]:
    """What git knows, or in an exported tree every file that is not generated."""
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listing.returncode == 0 and listing.stdout:
        found = [ROOT / name for name in listing.stdout.split("\0") if name]
    else:
        found = [path for path in ROOT.rglob("*") if not GENERATED & set(path.relative_to(ROOT).parts)]
    return [path for path in found if path.is_file()]


def python_modules() -> list[Path]:
    return [path for path in tracked_files() if path.suffix == ".py"]


def relative(paths: list[Path]) -> list[str]:
    return [str(path.relative_to(ROOT)) for path in paths]


def test_modules_stay_small() -> None:
    large = [
        path for path in python_modules() if path.read_text(encoding="utf-8").count("\n") > MODULE_LINES_MAX
    ]
    assert not relative(large)


def test_modules_say_what_they_are() -> None:
    silent = [
        path
        for path in python_modules()
        if path.name not in ("__init__.py", "conftest.py")
        and not ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert not relative(silent)


def test_no_module_has_a_name_that_says_nothing() -> None:
    empty = [path for path in python_modules() if EMPTY_NAMES & {path.stem, path.parent.name}]
    assert not relative(empty)


def test_no_file_names_the_machine_it_was_written_on() -> None:
    found = []
    for path in tracked_files():
        text = path.read_bytes().decode("utf-8", errors="replace")
        found += [f"{path.relative_to(ROOT)}: {match.group()}" for match in MACHINE_PATH.finditer(text)]
    assert not found


@pytest.mark.parametrize("directory", ["scripts", ".ci"])
def test_scripts_can_be_run(directory: str) -> None:
    scripts = [path for path in (ROOT / directory).iterdir() if path.is_file() and path.suffix == ""]
    assert scripts
    for script in scripts:
        assert os.access(script, os.X_OK), f"{script.name} is not executable"
        assert script.read_bytes().startswith(b"#!"), f"{script.name} does not say what runs it"
