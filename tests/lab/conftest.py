"""The lab of these tests, made once a module, and who runs which of them.

Virtual machines take minutes, several GB and all the processors there are. So the tests that start them are
for who names tests/lab: a machine that cannot have them skips them then. A run of everything leaves them out.
CI names them, in a run of their own behind the others (scripts/test); it goes without them only where there
is nothing to make the machines of.
"""

from __future__ import annotations

import os
import shutil
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts.vmlab.failure import LabError
from scripts.vmlab.image import cached_root
from scripts.vmlab.kernel import newest_kernel
from scripts.vmlab.lab import KERNEL, MIRROR, Choices, Lab, build, images
from scripts.vmlab.repository import SUITE
from tests.lab.two_sites import TwoSites

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "replctl" / "images"
_HERE = Path(__file__).parent
_LEFT_OUT = pytest.StashKey[str]()
_MIRROR_SECONDS_MAX = 30
_PROGRAMS = ("qemu-system-x86_64", "qemu-img", "mmdebstrap", "mkfs.ext4", "modprobe", "ssh")


def unavailable(reason: str) -> None:
    """CI goes without nothing; elsewhere the reason is told."""
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    machines = [item for item in items if item.path.is_relative_to(_HERE) and item.get_closest_marker("slow")]
    named = any("tests/lab" in argument for argument in config.invocation_params.args)
    reason = "they run by name: scripts/test tests/lab"
    if named:
        reason = _missing() if os.environ.get("CI") == "true" else ""
    if not machines or not reason:
        return
    items[:] = [item for item in items if item not in machines]
    config.hook.pytest_deselected(items=machines)
    config.stash[_LEFT_OUT] = f"{len(machines)} tests in virtual machines are left out: {reason}"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if told := config.stash.get(_LEFT_OUT, None):
        terminalreporter.write_line(told)


def _missing() -> str:
    """What there must be, here and in the network, to make the machines."""
    if missing := _missing_programs():
        return missing
    return "" if newest_kernel(CACHE, KERNEL) and cached_root(CACHE) else _why_no_archive()


def _why_no_archive() -> str:
    try:
        with urllib.request.urlopen(f"{MIRROR}/dists/{SUITE}/InRelease", timeout=_MIRROR_SECONDS_MAX):
            return ""
    except OSError as error:
        return f"no answer from {MIRROR}: {error}"


def _missing_programs() -> str:
    missing = [program for program in _PROGRAMS if shutil.which(program) is None]
    return f"not installed: {', '.join(missing)} (scripts/lab installs what it needs)" if missing else ""


@pytest.fixture(scope="session")
def lab_images() -> Path:
    """A cache that holds kernel and root file system; in CI of today's packages, if they can be had."""
    if missing := _missing_programs():
        unavailable(missing)
    CACHE.mkdir(parents=True, exist_ok=True)
    try:
        anew = os.environ.get("CI") == "true" and not _why_no_archive()
        (build if anew else images)(CACHE, KERNEL, MIRROR)
    except LabError as error:
        unavailable(f"the virtual machines cannot be built: {error}")
    return CACHE


@pytest.fixture(scope="module")
def front_end() -> str:
    """What runs in production. A module that wants another says so by a fixture of its own."""
    return "lio"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`fabric`, of the SAN: pytest orders a module's tests so that each fabric has one lab."""
    if "fabric" in metafunc.fixturenames:
        marker = metafunc.definition.get_closest_marker("fabrics")
        metafunc.parametrize("fabric", ["iscsi"] if marker is None else marker.args, scope="module")


@pytest.fixture(scope="module")
def sites(
    lab_images: Path, front_end: str, fabric: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[TwoSites]:
    """Sites a and b, both serving, no pair yet."""
    lab = Lab(tmp_path_factory.mktemp("lab"))
    lab.make(Choices(front_end=front_end, fabric=fabric), lab_images, MIRROR)
    try:
        lab.up([])
        yield TwoSites(lab)
    finally:
        lab.down()
