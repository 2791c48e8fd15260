"""The lab of these tests: made once a module; where it cannot be built they are skipped, but not in CI."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts.vmlab.failure import LabError
from scripts.vmlab.lab import KERNEL, MIRROR, Choices, Lab, images
from tests.lab.two_sites import TwoSites

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "replctl" / "images"
_PROGRAMS = ("qemu-system-x86_64", "qemu-img", "mmdebstrap", "mkfs.ext4", "modprobe", "ssh")


def unavailable(reason: str) -> None:
    """CI goes without nothing; elsewhere the reason is told."""
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def lab_images(pytestconfig: pytest.Config) -> Path:
    """A cache that holds kernel and root file system. Not for who asked for all tests in passing: it takes
    minutes and several GB, and two machines that take all the processors there are.
    """
    if not any("lab" in argument for argument in pytestconfig.invocation_params.args):
        pytest.skip("minutes in virtual machines: run when asked for (scripts/test tests/lab)")
    missing = [program for program in _PROGRAMS if shutil.which(program) is None]
    if missing:
        unavailable(f"not installed: {', '.join(missing)} (scripts/lab installs what it needs)")
    CACHE.mkdir(parents=True, exist_ok=True)
    try:
        images(CACHE, KERNEL, MIRROR)
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
