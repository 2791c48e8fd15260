"""On Debian's kernel: a Linux host on two paths, ext4 and XFS, SQLite and fio; cut, killed, powered off.

One pair of machines for all of it, so the order of the tests is the story of a site: in use, disturbed, lost,
back. It is told once more on another pair, whose SAN is a Fibre Channel fabric: hosts come by iSCSI and by
their ports, and the kernel brings the peer's journal as a block device.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial

import pytest

from scripts.vmlab.layout import Network
from tests.lab.fio import VerifiedLoad
from tests.lab.ledger import Ledger
from tests.lab.two_sites import DATA, GROUP, VOLUMES, WAIT_SECONDS_MAX, Host, TwoSites

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3 * WAIT_SECONDS_MAX),
    pytest.mark.fabrics("iscsi", "fc"),
]


@pytest.fixture(scope="module")
def host(sites: TwoSites) -> Host:
    """Machine b's kernel uses site a's volumes: two file systems in one group, and the group has a mirror."""
    host = Host(sites, "b")
    host.log_in("a")
    for volume in VOLUMES:
        host.run(f"{volume.make} {host.device('a', volume)}")
        host.mount("a", volume)
    sites.replctl(
        "a", "pair", "create", GROUP, "--secondary", "b", "--wait", "--timeout", f"{WAIT_SECONDS_MAX:.0f}"
    )
    return host


@pytest.fixture
def ledger(host: Host, sites: TwoSites) -> Iterator[Ledger]:
    """Transactions are committed from before the test until after it, and none fails."""
    ledger = Ledger(host)
    ledger.start()
    ledger.wait_for_progress(sites)
    yield ledger
    ledger.stop()


_RANDOM_MIB = 24
"""What a full copy would carry at least."""


def test_no_volume_data_crosses_the_management_network(sites: TwoSites, host: Host) -> None:
    san, management = (sites.bytes_sent("a", network) for network in (Network.SAN, Network.MANAGEMENT))
    host.run(f"head -c {_RANDOM_MIB}M /dev/urandom >/mnt/log/random; sync -f /mnt/log")
    sites.wait_until_restored("a", "random-is-in")
    assert sites.bytes_sent("a", Network.SAN) - san > _RANDOM_MIB << 20
    assert sites.bytes_sent("a", Network.MANAGEMENT) - management < 1 << 20


@pytest.mark.fabrics("fc")
def test_a_volume_is_one_by_fibre_channel_and_by_iscsi(sites: TwoSites, host: Host) -> None:
    for volume in VOLUMES:
        device = host.device("a", volume)
        listed = host.run(f"lsblk -s -n -r -o TYPE,TRAN,SERIAL {device} | grep ^disk").split("\n")
        paths = [line.split() for line in listed if line]
        assert sorted(path[1] for path in paths) == ["fcoe", "iscsi", "iscsi"]
        assert len({path[2] for path in paths}) == 1


@pytest.mark.fabrics("fc")
def test_the_peers_journal_is_a_device_of_the_kernel_that_cannot_be_written(
    sites: TwoSites, host: Host
) -> None:
    found = sites.run("b", "lsblk -d -n -o TRAN,VENDOR,RO | grep LIO-ORG").split()
    assert found == ["fcoe", "LIO-ORG", "1"]


def test_the_kernel_sees_that_a_secondary_is_write_protected(sites: TwoSites, host: Host) -> None:
    other = Host(sites, "a")
    other.log_in("b")
    device = other.device("b", DATA)
    assert other.run(f"blockdev --getro {device}").strip() == "1"
    refused = other.run(f"dd if=/dev/zero of={device} bs=4k count=1 oflag=direct 2>&1 || true")
    assert "dd:" in refused
    other.log_out("b")


def test_cutting_the_san_costs_a_host_its_paths_there_and_the_pair_its_lag(
    sites: TwoSites, ledger: Ledger, host: Host
) -> None:
    with host.off_fibre_channel():
        sites.lab.wires.cut("a", Network.SAN)
        ledger.wait_for_progress(sites, 10)
        sites.wait_for("a path is lost", lambda: host.paths("a", DATA) == 1)
        sites.wait_for("the lag shows it", lambda: (sites.mirror("a", "b").get("lag_seconds") or 0) > 5)
        sites.lab.wires.join("a", Network.SAN)
    sites.wait_for_pair("a", "b")
    sites.wait_until_restored("a", "san-is-back")
    sites.wait_for("all paths are back", lambda: host.paths("a", DATA) == host.paths_max("a"))


def test_cutting_the_management_network_stops_no_host(sites: TwoSites, ledger: Ledger) -> None:
    sites.lab.wires.cut("a", Network.MANAGEMENT)
    ledger.wait_for_progress(sites, 10)
    sites.lab.wires.join("a", Network.MANAGEMENT)
    sites.wait_for_pair("a", "b")
    sites.wait_until_restored("a", "management-is-back")


def test_cutting_both_networks_stops_no_host(sites: TwoSites, ledger: Ledger, host: Host) -> None:
    with host.off_fibre_channel():
        for network in (Network.SAN, Network.MANAGEMENT):
            sites.lab.wires.cut("a", network)
        ledger.wait_for_progress(sites, 10)
        for network in (Network.SAN, Network.MANAGEMENT):
            sites.lab.wires.join("a", network)
    sites.wait_for_pair("a", "b")
    sites.wait_until_restored("a", "both-are-back")


def test_a_volume_that_grows_is_larger_at_its_host(sites: TwoSites, ledger: Ledger, host: Host) -> None:
    mebibytes = 96
    for site in ("a", "b"):
        sites.run(site, f"lvextend -q -L {mebibytes}m /dev/replctl/{DATA.name}")
    assert sites.replctl("a", "group", "grow-volume", GROUP, DATA.name, f"{mebibytes}MiB")["changed"]
    device = host.device("a", DATA)
    host.rescan()
    host.run(f"multipathd resize map {device.removeprefix('/dev/mapper/')}")
    assert int(host.run(f"blockdev --getsize64 {device}")) == mebibytes << 20
    host.run(f"resize2fs {device}")
    sites.wait_until_restored("a", "it-is-larger")

    def follows(site: str) -> bool:
        group, lio = sites.ask(site, "group.status", group=GROUP), sites.ask(site, "lio.status")
        sizes = [] if group is None else [each["size_bytes"] for each in group["volumes"]]
        return mebibytes << 20 in sizes and lio is not None and lio["drift"] == []

    for site in ("a", "b"):
        sites.wait_for(f"{site} has it, and so has its LIO", partial(follows, site))


@pytest.mark.parametrize(
    ("site", "daemon"), [("a", "target"), ("b", "target"), ("a", "hostagent"), ("b", "hostagent")]
)
def test_a_killed_daemon_is_back_and_no_transaction_fails(
    sites: TwoSites, ledger: Ledger, site: str, daemon: str
) -> None:
    sites.kill(site, daemon)
    ledger.wait_for_progress(sites)
    sites.wait_for_pair("a", "b")
    sites.wait_until_restored("a", f"{daemon}-of-{site}-is-back")


def test_fio_reads_what_it_wrote_while_the_subsystem_is_killed(sites: TwoSites, host: Host) -> None:
    load = VerifiedLoad(host)
    load.start("/mnt/log/fio")
    sites.kill("a", "target")
    load.end(sites)


def test_what_was_restored_at_the_last_marker_survives_the_loss_of_a(sites: TwoSites, host: Host) -> None:
    ledger = Ledger(host)
    ledger.start()
    before_marker = ledger.wait_for_progress(sites, 10)
    sites.wait_until_restored("a", "the-last")
    ledger.wait_for_progress(sites)
    assert sites.machine("a").power_off()
    ledger.abandon()
    host.abandon("a")

    plan = sites.replctl("b", "takeover", GROUP, "--plan", "--force")
    assert plan["refused"] is None
    taken = sites.replctl("b", "takeover", GROUP, "--force")
    assert taken["changed"]
    host.log_in("b")
    for volume in VOLUMES:
        host.mount("b", volume)  # replays the file system's journal
        host.unmount(volume)
        host.run(f"{volume.check} {host.device('b', volume)}")
        host.mount("b", volume)
    assert ledger.check() >= before_marker


def test_a_comes_back_fenced_and_follows_with_differences_only(sites: TwoSites, host: Host) -> None:
    journal = durable_lsn(sites, "b")
    ledger = Ledger(host)
    ledger.start()
    ledger.wait_for_progress(sites)
    sites.lab.up(["a"])
    sites.wait_until_serving("a")
    sites.wait_for(
        "a knows that it was superseded", lambda: (sites.status("a") or {}).get("role") == "superseded"
    )
    host.log_in("a")
    for volume in VOLUMES:
        assert host.run(f"blockdev --getro {host.device('a', volume)}").strip() == "1"
    host.log_out("a")
    san = sites.bytes_sent("b", Network.SAN)
    sites.replctl(
        "b", "pair", "resync", GROUP, "--secondary", "a", "--wait", "--timeout", f"{WAIT_SECONDS_MAX:.0f}"
    )
    sent = sites.bytes_sent("b", Network.SAN) - san
    appended = durable_lsn(sites, "b") - journal  # by the ledger, too, which goes on all the time
    events = sites.ask("b", "events", group=GROUP, limit=100)
    assert events is not None
    resync = next(event["text"] for event in reversed(events["events"]) if event["kind"] == "pair resync")
    own = re.search(r"(\d+) bytes it wrote on its own are copied back", resync)
    assert own is not None, resync
    assert int(own[1]) < _RANDOM_MIB << 19, "a did not write so much behind the last marker"
    # Besides: what b wrote between its takeover and this test, when it mounted the file systems.
    assert sent < 1.5 * appended + (_RANDOM_MIB << 19), resync
    ledger.stop()
    for volume in VOLUMES:
        host.unmount(volume)
    assert_equal_block_by_block(sites, "b")


def test_a_takes_its_place_again_and_nothing_is_lost(sites: TwoSites, host: Host) -> None:
    host.log_out("b")
    assert sites.replctl("a", "takeover", GROUP)["changed"]
    sites.wait_for_pair("a", "b")
    host.log_in("a")
    for volume in VOLUMES:
        host.mount("a", volume)
    ledger = Ledger(host)
    before = ledger.check()
    ledger.start()
    ledger.wait_for_progress(sites)
    ledger.stop()
    assert ledger.check() > before
    for volume in VOLUMES:
        host.unmount(volume)
    host.log_out("a")
    assert_equal_block_by_block(sites, "a")


def durable_lsn(sites: TwoSites, site: str) -> int:
    """Bytes that its journal volume ever took."""
    state = sites.ask(site, "group.status", group=GROUP)
    assert state is not None
    return int(state["durable_lsn"])


def assert_equal_block_by_block(sites: TwoSites, primary: str) -> None:
    """Nobody writes now."""
    sites.wait_until_restored(primary, f"quiet-at-{primary}")
    for volume in VOLUMES:
        assert sites.digest("a", volume) == sites.digest("b", volume), f"{volume.name} differs"
