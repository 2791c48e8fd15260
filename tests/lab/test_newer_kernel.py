"""A site on the kernel of Debian's backports: it boots, and exports what is written and read.

One machine, which is its own host; the rest of the story was told on Debian's own kernel.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts.vmlab.lab import MIRROR, Choices, Lab
from tests.lab.two_sites import DATA, LOG, WAIT_SECONDS_MAX, Host, TwoSites

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3 * WAIT_SECONDS_MAX)]

KERNEL = "6.12"


@pytest.fixture(scope="module")
def host(lab_images: Path, front_end: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    lab = Lab(tmp_path_factory.mktemp("lab"))
    lab.make(Choices(kernel=KERNEL, front_end=front_end), lab_images, MIRROR)
    try:
        lab.up(["a"])
        yield Host(TwoSites(lab), "a")
    finally:
        lab.down()


def test_a_file_system_on_the_newer_kernels_target_reads_as_it_was_written(host: Host) -> None:
    assert host.run("uname -r").startswith(f"{KERNEL}.")
    host.log_in("a")
    for volume in (DATA, LOG):
        host.run(f"{volume.make} {host.device('a', volume)}")
        host.mount("a", volume)
        host.run(
            f"head -c 16M /dev/urandom | tee {volume.mount_point}/file | sha256sum >/run/{volume.name}.sum"
        )
        host.unmount(volume)
    host.run("sync; echo 3 >/proc/sys/vm/drop_caches")
    for volume in (DATA, LOG):
        host.run(f"{volume.check} {host.device('a', volume)}")
        host.mount("a", volume)
        read = host.run(f"sha256sum <{volume.mount_point}/file")
        assert read == host.run(f"cat /run/{volume.name}.sum")
