"""On Debian's kernel: a Linux host on two paths, ext4 and XFS, SQLite and fio; cut, killed, powered off.

One pair of machines for all of it, so the order of the tests is the story of a site: in use, disturbed, lost,
back.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from scripts.vmlab.layout import Network
from tests.lab.two_sites import DATA, GROUP, VOLUMES, WAIT_SECONDS_MAX, Host, TwoSites

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3 * WAIT_SECONDS_MAX)]

_WRITER = """
import sqlite3, sys, time
database, told = sys.argv[1:]
connection = sqlite3.connect(database, isolation_level=None)
connection.execute("PRAGMA journal_mode=DELETE")
connection.execute("PRAGMA synchronous=FULL")
connection.execute("CREATE TABLE IF NOT EXISTS ledger (number INTEGER PRIMARY KEY, half TEXT)")
number = connection.execute("SELECT coalesce(max(number), 0) / 2 FROM ledger").fetchone()[0]
while True:
    number += 1
    connection.execute("BEGIN IMMEDIATE")
    connection.execute("INSERT INTO ledger VALUES (?, ?)", (2 * number, "left" * 100))
    connection.execute("INSERT INTO ledger VALUES (?, ?)", (2 * number + 1, "right" * 100))
    connection.execute("COMMIT")
    with open(told, "w") as file:
        file.write(str(number))
    time.sleep(0.05)
"""
_FIO = (
    "fio --name=verified --filename=/mnt/log/fio --size=8m --rw=randwrite --bs=4k --iodepth=16 --direct=1"
    " --ioengine=libaio --end_fsync=1 --verify=crc32c --verify_fatal=1 --do_verify=1 --output-format=terse"
)


class Ledger:
    """A SQLite database on a mounted volume: numbered transactions of two rows, told when committed."""

    def __init__(self, host: Host) -> None:
        self._host = host

    def start(self) -> None:
        self._host.run(
            f"rm -f /run/told; cat >/run/writer.py <<'END'\n{_WRITER}\nEND\n"
            "systemd-run --quiet --collect --unit ledger"
            " python3 /run/writer.py /mnt/data/ledger.sqlite /run/told"
        )

    def stop(self) -> None:
        """It must have run without an error until now."""
        assert self._host.run("systemctl is-active ledger || true").strip() == "active", self.log()
        self._host.run("systemctl stop ledger")

    def abandon(self) -> None:
        self._host.run("systemctl kill --signal KILL ledger; true", check=False)

    def committed(self) -> int:
        return int(self._host.run("cat /run/told 2>/dev/null || echo 0"))

    def wait_for_progress(self, sites: TwoSites, transactions: int = 3) -> int:
        """Until that many more are committed; returns the last."""
        goal = self.committed() + transactions
        sites.wait_for(f"transaction {goal} is committed\n{self.log()}", lambda: self.committed() >= goal)
        return self.committed()

    def check(self) -> int:
        """Whole, and without a gap or half a transaction; returns how many there are."""
        query = "PRAGMA integrity_check; SELECT count(*), max(number), count(DISTINCT number / 2) FROM ledger"
        verdict, counts = self._host.run(f'sqlite3 /mnt/data/ledger.sqlite "{query}"').split()
        rows, last, transactions = (int(word) for word in counts.split("|"))
        assert verdict == "ok"
        assert rows == 2 * transactions
        assert last == rows + 1
        return transactions

    def log(self) -> str:
        return self._host.run("journalctl -n 5 -o cat -u ledger")


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


def test_no_volume_data_crosses_the_management_network(sites: TwoSites, host: Host) -> None:
    mebibytes = 8
    san, management = (sites.bytes_sent("a", network) for network in (Network.SAN, Network.MANAGEMENT))
    host.run(f"head -c {mebibytes}M /dev/urandom >/mnt/log/random; sync -f /mnt/log")
    sites.wait_until_restored("a", "random-is-in")
    assert sites.bytes_sent("a", Network.SAN) - san > mebibytes << 20
    assert sites.bytes_sent("a", Network.MANAGEMENT) - management < 1 << 20


def test_the_kernel_sees_that_a_secondary_is_write_protected(sites: TwoSites, host: Host) -> None:
    other = Host(sites, "a")
    other.log_in("b")
    device = other.device("b", DATA)
    assert other.run(f"blockdev --getro {device}").strip() == "1"
    refused = other.run(f"dd if=/dev/zero of={device} bs=4k count=1 oflag=direct 2>&1 || true")
    assert "dd:" in refused
    other.log_out("b")


def test_cutting_the_san_costs_a_host_one_path_and_the_pair_its_lag(
    sites: TwoSites, ledger: Ledger, host: Host
) -> None:
    sites.lab.wires.cut("a", Network.SAN)
    ledger.wait_for_progress(sites, 10)
    sites.wait_for("a path is lost", lambda: host.paths("a", DATA) == 1)
    sites.wait_for("the lag shows it", lambda: (sites.mirror("a", "b")["lag_seconds"] or 0) > 5)
    sites.lab.wires.join("a", Network.SAN)
    sites.wait_for_pair("a", "b")
    sites.wait_until_restored("a", "san-is-back")
    sites.wait_for("both paths are back", lambda: host.paths("a", DATA) == 2)


def test_cutting_the_management_network_stops_no_host(sites: TwoSites, ledger: Ledger) -> None:
    sites.lab.wires.cut("a", Network.MANAGEMENT)
    ledger.wait_for_progress(sites, 10)
    sites.lab.wires.join("a", Network.MANAGEMENT)
    sites.wait_for_pair("a", "b")
    sites.wait_until_restored("a", "management-is-back")


def test_cutting_both_networks_stops_no_host(sites: TwoSites, ledger: Ledger) -> None:
    for network in (Network.SAN, Network.MANAGEMENT):
        sites.lab.wires.cut("a", network)
    ledger.wait_for_progress(sites, 10)
    for network in (Network.SAN, Network.MANAGEMENT):
        sites.lab.wires.join("a", network)
    sites.wait_for_pair("a", "b")
    sites.wait_until_restored("a", "both-are-back")


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
    host.run(f"systemd-run --quiet --unit verified --property StandardOutput=file:/run/fio.out {_FIO}")
    sites.kill("a", "target")
    sites.wait_for("fio ends", lambda: host.run("systemctl is-active verified || true").strip() != "active")
    assert host.run("systemctl is-failed verified || true").strip() == "inactive", host.run(
        "cat /run/fio.out"
    )


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
    ledger = Ledger(host)
    ledger.start()
    ledger.wait_for_progress(sites)
    sites.lab.up(["a"])
    sites.wait_until_serving("a")
    sites.wait_for(
        "a knows that it was superseded",
        lambda: sites.replctl("a", "pair", "status", GROUP)["role"] == "superseded",
    )
    san = sites.bytes_sent("b", Network.SAN)
    sites.replctl(
        "b", "pair", "resync", GROUP, "--secondary", "a", "--wait", "--timeout", f"{WAIT_SECONDS_MAX:.0f}"
    )
    whole = sum(int(host.run(f"blockdev --getsize64 /dev/replctl/{volume.name}")) for volume in VOLUMES)
    assert sites.bytes_sent("b", Network.SAN) - san < whole / 2
    ledger.stop()
    for volume in VOLUMES:
        host.unmount(volume)
    sites.wait_until_restored("b", "quiet")
    for volume in VOLUMES:
        assert sites.digest("a", volume) == sites.digest("b", volume), f"{volume.name} differs"


def test_a_takes_its_place_again_and_nothing_is_lost(sites: TwoSites, host: Host) -> None:
    host.log_out("b")
    assert sites.replctl("a", "takeover", GROUP)["changed"]
    sites.wait_for_pair("a", "b")
    host.log_in("a")
    host.mount("a", DATA)
    assert Ledger(host).check() > 0
    host.unmount(DATA)
    host.log_out("a")
