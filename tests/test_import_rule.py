"""The import rule of the design, held by reading every module's syntax tree.

Pure modules decide and do no I/O, so that the same engine runs in the deterministic simulation; and the
layers know each other in one direction only.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("target", "hostagent")

IMPURE = {
    *("asyncio", "random", "secrets", "select", "selectors", "socket", "subprocess", "threading", "time"),
    *("paramiko", "pyudev", "rtslib", "rtslib_fb"),
}

PURE_MODULES = {
    *(
        f"target.iscsi.{name}"
        for name in (
            *("pdu", "text", "negotiation", "chap", "login", "connection", "session", "registry", "budget"),
            *("task", "task_management", "write_collection", "held_commands", "housekeeping", "peer_log"),
            *("initiator", "initiator_login"),
        )
    ),
    *("target.scsi.cdb", "target.scsi.sense"),
    *("target.journal.record", "target.journal.superblock", "target.journal.recovery"),
    *(f"target.lio.{name}" for name in ("ring", "handler", "objects", "desired", "difference")),
    *("hostagent.pair_states", "hostagent.plan"),
}

KERNEL_TARGET_LIBRARIES = ("rtslib", "rtslib_fb", "pyudev")


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_names(source: str, module: str, is_package: bool = False) -> Iterator[str]:
    """Every module, and name taken from a module, that `source` imports anywhere, in full dotted form."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = module.split(".")
                keep = len(parents) - node.level + (1 if is_package else 0)
                base = ".".join([*parents[:keep], *filter(None, [base])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def is_in(name: str, *packages: str) -> bool:
    return any(name == package or name.startswith(package + ".") for package in packages)


def violation(module: str, imported: str) -> str | None:
    """Why `module` must not import `imported`, or None when it may."""
    if module in PURE_MODULES and imported.split(".")[0] in IMPURE:
        return "a pure module gets I/O, time and randomness passed in"
    if is_in(imported, *KERNEL_TARGET_LIBRARIES) and not is_in(module, "target.lio"):
        return "the kernel's target and its devices are known in target.lio alone"
    if is_in(imported, "paramiko") and module != "hostagent.ssh_library":
        return "what paramiko brings along is decided in hostagent.ssh_library"
    if is_in(module, "target.scsi") and is_in(imported, "target.iscsi", "target.lio", "target.fc"):
        return "the device server knows no front end"
    if is_in(module, "target.journal") and is_in(imported, "target.san"):
        return "the journal does not know how it is transferred"
    if is_in(module, "target") and is_in(imported, "hostagent"):
        return "storage does not know who manages it"
    if is_in(module, "hostagent") and is_in(imported, "target"):
        allowed = ["target.errors", "target.control"]
        if is_in(module, "hostagent.cli"):
            allowed.append("target.iscsi.client")
        if not is_in(imported, *allowed):
            return "the copy manager reaches the subsystem through its control socket only"
    return None


def all_modules() -> list[Path]:
    return sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


@pytest.mark.parametrize("path", all_modules(), ids=module_name)
def test_module_imports_only_what_its_layer_may(path: Path) -> None:
    module = module_name(path)
    names = imported_names(path.read_text(encoding="utf-8"), module, path.name == "__init__.py")
    found = [f"{name}: {reason}" for name in names if (reason := violation(module, name))]
    assert not found, f"{module} imports " + "; ".join(found)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("target.journal.record", "import time"),
        ("target.journal.record", "def f():\n    from socket import create_connection"),
        ("target.scsi.cdb", "import os, random"),
        ("target.scsi.device", "from target.iscsi import pdu"),
        ("target.scsi.device", "from ..iscsi.pdu import Pdu"),
        ("target.scsi.device", "from target import lio"),
        ("target.journal.ring", "from target.san import pull"),
        ("target.group", "import hostagent.plan"),
        ("target.subsystem", "def f():\n    import pyudev"),
        ("hostagent.cli.lio", "from rtslib_fb import RTSRoot"),
        ("target.lio.ring", "import time"),
        ("hostagent.ssh_client", "import paramiko"),
        ("hostagent.agent", "from target.journal import record"),
        ("hostagent.agent", "import target"),
        ("hostagent.agent", "from target.iscsi.client import Client"),
    ],
)
def test_rule_finds_a_forbidden_import(module: str, source: str) -> None:
    assert any(violation(module, name) for name in imported_names(source, module))


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("target.journal.record", "import struct"),
        ("target.loop", "import time, socket"),
        ("target.lio.configfs", "import rtslib_fb"),
        ("target.scsi.device", "from target.scsi.sense import Sense"),
        ("hostagent.agent", "from target.errors import PeerError\nfrom target.control.messages import Hello"),
        ("hostagent.ssh_library", "import paramiko.common"),
        ("hostagent.cli.lun", "from target.iscsi.client import Client"),
    ],
)
def test_rule_lets_a_good_import_pass(module: str, source: str) -> None:
    assert not any(violation(module, name) for name in imported_names(source, module))
