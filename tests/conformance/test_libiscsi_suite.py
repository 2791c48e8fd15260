"""libiscsi's own test suite against the device server: every SCSI test that it has.

Each test runs in a process of its own: in one process libiscsi 1.19 sends, once it has built a 16-byte CDB,
later ones with bytes 10 to 15 left over from it. Tests of commands that are not supported
(docs/scsi-support.md) skip themselves.
"""

from __future__ import annotations

import shutil
import subprocess

import pytest

from target.iscsi.node import TargetNode
from target.scsi.device_server import Device
from target.scsi.logical_unit import LogicalUnit
from tests.unit.iscsi.server import TARGET, Server, serving
from tests.unit.scsi.memory_volume import MemoryVolume

TOOL = shutil.which("iscsi-test-cu")
SIZE_BYTES = 64 << 20

pytestmark = pytest.mark.skipif(
    TOOL is None, reason="iscsi-test-cu (Debian package libiscsi-bin) is not installed"
)

NEEDS_OTHER_HARDWARE = {"MultipathIO", "NoMedia", "PreventAllow", "Sanitize"}


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    assert TOOL is not None
    return subprocess.run(
        [TOOL, *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=60,
        check=False,
    )


def scsi_tests() -> list[str]:
    """Names as FAMILY.SUITE.TEST."""
    names = [line.strip() for line in run("--list").stdout.splitlines()]
    split = [name.split(".") for name in names if name.startswith("SCSI.")]
    return [".".join(parts) for parts in split if len(parts) == 3 and parts[1] not in NEEDS_OTHER_HARDWARE]


def failures(server: Server, names: list[str]) -> dict[str, str]:
    """What each failed test printed."""
    found = {}
    for name in names:
        outcome = run("--dataloss", "--normal", "--fail", "--test", name, server.url())
        if outcome.returncode:
            found[name] = outcome.stdout + outcome.stderr
    return found


@pytest.mark.slow
@pytest.mark.parametrize("block_size", [512, 4096])
def test_every_scsi_test_of_libiscsi_passes(block_size: int) -> None:
    names = scsi_tests()
    assert len(names) > 100
    device = Device({0: LogicalUnit(MemoryVolume(SIZE_BYTES, block_size))})
    with serving(TargetNode(TARGET, device)) as server:
        assert failures(server, names) == {}


def test_a_write_protected_volume_passes_the_read_only_test() -> None:
    volume = MemoryVolume(SIZE_BYTES)
    volume.read_only_now = True
    with serving(TargetNode(TARGET, Device({0: LogicalUnit(volume)}))) as server:
        assert failures(server, ["SCSI.ReadOnly.ReadOnlySBC"]) == {}
    refused = [name for name in volume.names() if name in ("write", "zero")]
    assert refused, "the test has tried to write"
    assert not any(volume.content)
