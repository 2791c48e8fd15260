"""The embedded target and Linux's own initiator: open-iscsi on two portals, joined by dm-multipath."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from scripts.vmlab.layout import Network
from tests.lab.fio import VerifiedLoad
from tests.lab.two_sites import DATA, LOG, VOLUMES, WAIT_SECONDS_MAX, Host, TwoSites

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3 * WAIT_SECONDS_MAX)]


@pytest.fixture(scope="module")
def front_end() -> str:
    return "embedded"


@pytest.fixture(scope="module")
def host(sites: TwoSites) -> Iterator[Host]:
    """Machine b's kernel has both volumes of site a, and a file system on each."""
    host = Host(sites, "b")
    host.run("dmesg --clear")
    host.log_in("a")
    for volume in VOLUMES:
        host.run(f"{volume.make} {host.device('a', volume)}")
        host.mount("a", volume)
    yield host
    host.log_out("a")


def test_both_portals_lead_to_one_volume(sites: TwoSites, host: Host) -> None:
    for volume in VOLUMES:
        disks = host.run(f"lsblk -s -n -r -o TYPE,TRAN,WWN {host.device('a', volume)} | grep ^disk")
        paths = [line.split() for line in disks.splitlines()]
        assert [path[1] for path in paths] == ["iscsi", "iscsi"]
        assert len({path[2] for path in paths}) == 1


def test_a_host_goes_on_by_the_portal_that_is_left(sites: TwoSites, host: Host) -> None:
    load = VerifiedLoad(host)
    load.start("/mnt/log/fio")
    for network in (Network.FRONT, Network.SAN):
        sites.lab.wires.cut("a", network)
        sites.wait_for("a path is lost", lambda: host.paths("a", DATA) == 1)
        load.check_running()
        sites.lab.wires.join("a", network)
        sites.wait_for("it is back", lambda: host.paths("a", DATA) == 2)
    load.end(sites)


def test_a_host_sees_a_pause_and_no_error_when_the_daemon_is_killed(sites: TwoSites, host: Host) -> None:
    load = VerifiedLoad(host)
    load.start("/mnt/log/fio")
    for _ in range(3):
        sites.kill("a", "target")
        sites.wait_for("both paths are back", lambda: host.paths("a", LOG) == 2)
        load.check_running()
    load.end(sites)


def test_what_a_host_trims_reads_as_zeros(sites: TwoSites, host: Host) -> None:
    host.unmount(DATA)
    device = host.device("a", DATA)
    host.run(f"head -c 1M /dev/urandom | dd of={device} bs=64k oflag=direct conv=fsync status=none")
    host.run(f"blkdiscard --offset 65536 --length 131072 {device}")
    assert host.run(f"cmp -i 65536 -n 131072 {device} /dev/zero && echo zeros").strip() == "zeros"
    assert host.run(f"cmp -n 65536 {device} /dev/zero >/dev/null 2>&1 || echo kept").strip() == "kept"
    host.run(f"{DATA.make} {device}")
    host.mount("a", DATA)


def test_file_systems_are_whole_and_the_kernel_reported_nothing(sites: TwoSites, host: Host) -> None:
    for volume in VOLUMES:
        host.unmount(volume)
        host.run(f"{volume.check} {host.device('a', volume)}")
    # A path that is lost is told; what was written by it went by the other.
    said = host.run("dmesg --level err,crit,alert,emerg")
    assert "dm-" not in said, said
