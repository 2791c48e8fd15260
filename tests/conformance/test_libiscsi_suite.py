"""libiscsi's own test suite against a subsystem as a user runs it: every test that it has.

Once as it comes, with blocks of 512 bytes and all tests of a family in one process; and with blocks of 4096
bytes, each test in a process of its own, so that what skips is known by name. The second portal is given as
the multipath URL. The families run side by side, each against a subsystem of its own: some of their tests
reset a target, and then wait for seconds.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from target.iscsi.node import TargetNode
from target.scsi.device_server import Device
from target.scsi.logical_unit import LogicalUnit
from tests.conformance.data_site import LARGE_BLOCKS, REMOVABLE, SMALL_BLOCKS, DataSite, running
from tests.conformance.libiscsi_skips import ALL_SKIPPED, REMOVABLE_TESTS
from tests.unit.iscsi.server import TARGET, serving
from tests.unit.scsi.memory_volume import MemoryVolume

TOOL = shutil.which("iscsi-test-cu")
SIZE_BYTES = 64 << 20
TESTS = 615
RUN_SECONDS_MAX = 600  # against a run that hangs; on a machine that is idle it takes a minute
FAMILIES = ("SCSI", "iSCSI")
RUNS = (("ALL",), ("SCSI",), ("LINUX", "iSCSI"))
"""All families that the tool has: what it runs when it is not told which."""

RESET_TEST = "iSCSITMF.LUNResetSimpleAsync"
RESET_TEST_MISTAKE = "CU_ASSERT_EQUAL(reconnect_succeeded,1)"
"""Alone, this test of libiscsi 1.19 asserts what only an answer brings before its request was sent: it fails
so with every target.
"""

pytestmark = pytest.mark.skipif(
    TOOL is None, reason="iscsi-test-cu (Debian package libiscsi-bin) is not installed"
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DataSite]:
    with running(tmp_path_factory.mktemp("site")) as one:
        yield one


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Future[dict[str, str]]]]:
    """What the tool prints of each family, run beside the other tests of this module: it waits a lot."""

    def families(names: Sequence[str]) -> dict[str, str]:
        with running(tmp_path_factory.mktemp("site")) as one:
            return {
                name: run("--dataloss", "--normal", "--test", name, *one.urls(SMALL_BLOCKS)).stdout
                for name in names
            }

    with ThreadPoolExecutor(len(RUNS)) as pool:
        yield [pool.submit(families, names) for names in RUNS]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    assert TOOL is not None
    return subprocess.run(
        [TOOL, *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=RUN_SECONDS_MAX,
        check=False,
    )


def names_of_tests() -> list[str]:
    """SUITE.TEST, each once. Tests of two paths come first: one wants a block of zeros behind its range."""
    listed = [line.strip().split(".") for line in run("--list").stdout.splitlines()]
    names = [f"{parts[1]}.{parts[2]}" for parts in listed if len(parts) == 3 and parts[0] in FAMILIES]
    return sorted(dict.fromkeys(names), key=lambda name: not name.startswith("MultipathIO"))


def outcomes(urls: Sequence[str], names: Sequence[str]) -> tuple[dict[str, str], set[str]]:
    """(what each failed test printed, the tests that skipped themselves or a part)."""
    failed: dict[str, str] = {}
    skipped = set()
    for name in names:
        family = "iSCSI" if name.startswith("iSCSI") else "SCSI"
        outcome = run("--dataloss", "--normal", "--fail", "-V", "--test", f"{family}.{name}", *urls)
        output = outcome.stdout + outcome.stderr
        if "[SKIPPED]" in output:
            skipped.add(name)
        if outcome.returncode and not _is_mistake_of_the_test(name, output):
            failed[name] = output[-5000:]
    return failed, skipped


def _is_mistake_of_the_test(name: str, output: str) -> bool:
    assertions = [line for line in output.splitlines() if "CU_" in line]
    return name == RESET_TEST and len(assertions) == 1 and RESET_TEST_MISTAKE in assertions[0]


@pytest.mark.slow
@pytest.mark.timeout(RUN_SECONDS_MAX)
def test_only_those_tests_skip_that_must(site: DataSite, whole_run: list[Future[dict[str, str]]]) -> None:
    failed, skipped = outcomes(site.urls(LARGE_BLOCKS), names_of_tests())
    assert failed == {}
    assert skipped == ALL_SKIPPED


def test_a_removable_unit_passes_the_tests_of_removable_units(site: DataSite) -> None:
    failed, skipped = outcomes(site.urls(REMOVABLE), sorted(REMOVABLE_TESTS))
    assert failed == {}
    assert skipped == set()


def test_a_write_protected_volume_passes_the_read_only_test() -> None:
    volume = MemoryVolume(SIZE_BYTES)
    volume.read_only_now = True
    with serving(TargetNode(TARGET, Device({0: LogicalUnit(volume)}))) as server:
        assert outcomes([server.url()], ["ReadOnly.ReadOnlySBC"]) == ({}, set())
    refused = [name for name in volume.names() if name in ("write", "zero")]
    assert refused, "the test has tried to write"
    assert not any(volume.content)


@pytest.mark.slow
@pytest.mark.timeout(RUN_SECONDS_MAX)
def test_the_whole_suite_by_families(whole_run: list[Future[dict[str, str]]]) -> None:
    """What the tool says of itself; nothing fails."""
    sum_of_totals = 0
    for each in whole_run:
        for family, output in each.result().items():
            counted = re.search(r"tests +(\d+) +(\d+) +(\d+) +(\d+)", output)
            assert counted is not None, (family, output[-5000:])
            total, ran, passed, failures = map(int, counted.groups())
            assert (ran, passed, failures) == (total, total, 0), (family, output[-5000:])
            sum_of_totals += total
    assert sum_of_totals >= TESTS


def test_every_family_of_the_suite_is_run() -> None:
    listed = {line.strip().partition(".")[0] for line in run("--list").stdout.splitlines()} - {""}
    assert listed == {family for families in RUNS for family in families}
