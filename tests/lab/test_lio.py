"""The kernel's target behind site a: configured from site.toml, its daemon killed, its machine rebooted.

The host is machine b's kernel. What it writes is verified by fio; errors would be the host's to report.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.lab.fio import VerifiedLoad
from tests.lab.two_sites import DATA, GROUP, LOG, VOLUMES, WAIT_SECONDS_MAX, Host, TwoSites

pytestmark = [pytest.mark.slow, pytest.mark.timeout(6 * WAIT_SECONDS_MAX)]

KILLS = 20
IQN = "iqn.2026-01.org.replctl"
CONFIGFS = "/sys/kernel/config/target"
PORTAL = "198.51.100.11:3260"
_FOREIGN = """
import rtslib_fb as lio
lio.RTSRoot()
store = lio.FileIOStorageObject("foreign", "/var/tmp/foreign", 1 << 20)
tpg = lio.TPG(lio.Target(lio.FabricModule("iscsi"), "iqn.2026-01.org.example:foreign"), 1)
lio.LUN(tpg, 0, store)
"""


def status(sites: TwoSites, site: str) -> dict[str, Any]:
    """Drift is no failure here: the exit code is not looked at."""
    script = "replctl --config /etc/replctl/site.toml lio status --json 2>/dev/null || true"
    found: dict[str, Any] = json.loads(sites.run(site, script))
    return found


@pytest.fixture(scope="module")
def host(sites: TwoSites) -> Iterator[Host]:
    host = Host(sites, "b")
    host.run("dmesg --clear")
    host.log_in("a")
    yield host
    host.log_out("a")


def test_everything_is_as_the_configuration_asks(sites: TwoSites) -> None:
    for site in ("a", "b"):
        found = status(sites, site)
        assert (found["drift"], found["failures"]) == ([], [])
        assert [ring["served"] for ring in found["rings"]] == [True] * len(VOLUMES)


def test_what_others_configured_is_not_touched(sites: TwoSites) -> None:
    sites.run("a", f"python3 - <<'END'\n{_FOREIGN}\nEND")
    sites.run("a", "systemctl restart replctl-target")
    sites.wait_until_serving("a")
    sites.replctl("a", "lio", "restore")
    found = sites.run(
        "a", f"ls -d {CONFIGFS}/core/fileio_*/foreign {CONFIGFS}/iscsi/*:foreign/tpgt_1/lun/lun_0"
    )
    assert len(found.split()) == 2
    assert status(sites, "a")["drift"] == []


def test_drift_is_shown_and_one_object_is_restored_alone(sites: TwoSites) -> None:
    tpg = f"{CONFIGFS}/iscsi/{IQN}:a/tpgt_1"
    sites.run("a", f"rmdir {tpg}/np/203.0.113.11:3260; echo 0 >{tpg}/enable")
    portal, service = (f"iscsi/{IQN}:a/{name}" for name in ("203.0.113.11:3260", "service"))
    assert status(sites, "a")["drift"] == [f"+ {portal}", f"+ {service}"]
    restored = sites.replctl("a", "lio", "restore", portal)
    assert (restored["changed"], restored["applied"], restored["drift"]) == (
        True,
        [f"+ {portal}"],
        [f"+ {service}"],
    )
    assert sites.replctl("a", "lio", "restore")["drift"] == []
    assert not sites.replctl("a", "lio", "restore")["changed"]


def test_identity_is_that_of_the_volume(sites: TwoSites, host: Host) -> None:
    """The same through every portal, which is why multipath joined them."""
    for volume in VOLUMES:
        assert host.paths("a", volume) == 2


def test_a_host_sees_a_pause_and_no_error_when_the_daemon_is_killed(sites: TwoSites, host: Host) -> None:
    load = VerifiedLoad(host)
    load.start(host.device("a", LOG))
    for _ in range(KILLS):
        sites.kill("a", "target")
        load.check_running()
    load.end(sites)
    host.check_no_kernel_complaint()


def test_a_reboot_restores_everything_without_targetcli(sites: TwoSites, host: Host) -> None:
    device = host.device("a", DATA)
    host.run(
        "head -c 4M /dev/urandom >/run/written\n"
        f"dd if=/run/written of={device} bs=1M oflag=direct conv=fsync status=none"
    )
    assert sites.machine("a").power_off()
    sites.lab.up(["a"])
    sites.wait_until_serving("a")
    assert status(sites, "a")["drift"] == []
    sites.wait_for("both paths are back", lambda: host.paths("a", DATA) == 2)
    assert host.run(f"cmp -n {4 << 20} /run/written {device} && echo equal").strip() == "equal"


@pytest.fixture
def kernel_reads_the_journal(sites: TwoSites) -> Iterator[str]:
    """At b, the kernel's initiator is logged in to a's SAN target by the name that may; the agent is told."""
    node = f"iscsiadm -m node -I peer -T {IQN}:a.san -p 203.0.113.11:3261"
    sites.run(
        "b",
        "set -e; iscsiadm -m iface -I peer -o new >/dev/null\n"
        f"iscsiadm -m iface -I peer -o update -n iface.initiatorname -v {IQN}:b >/dev/null\n"
        f"{node} -o new >/dev/null; {node} --login >/dev/null; udevadm settle\n"
        "cp -p /etc/replctl/site.toml /run/site.toml\n"
        """sed -i 's/^san_portal = .*/san_portal = "kernel"/; /^san_target = /d' /etc/replctl/site.toml\n"""
        "systemctl restart replctl-target replctl-hostagent",
    )
    sites.wait_until_serving("b")
    yield node
    sites.run(
        "b",
        f"{node} --logout; {node} -o delete; iscsiadm -m iface -I peer -o delete\n"
        "cp -p /run/site.toml /etc/replctl/site.toml; systemctl restart replctl-hostagent; true",
    )


def test_a_peer_reads_the_journal_from_a_device_of_the_kernel_that_comes_and_goes(
    sites: TwoSites, kernel_reads_the_journal: str
) -> None:
    node = kernel_reads_the_journal
    limit = f"{WAIT_SECONDS_MAX:.0f}"
    sites.replctl("a", "pair", "create", GROUP, "--secondary", "b", "--wait", "--timeout", limit)
    sites.wait_until_restored("a", "by-the-kernel")
    assert "the journal with serial number" in sites.run("b", "journalctl -u replctl-target -o cat")
    journal = sites.run("b", "lsblk -d -n -o NAME,VENDOR,RO | grep LIO-ORG").split()
    assert journal[2] == "1"  # write-protected
    sites.run("b", f"{node} --logout")
    sites.wait_for("the lag shows it", lambda: (sites.mirror("a", "b").get("lag_seconds") or 0) > 5)
    sites.run("b", f"{node} --login")
    sites.wait_until_restored("a", "by-the-kernel-again")


_CHAP = """
import re, pathlib
path = pathlib.Path("/etc/replctl/site.toml")
for name, secret in (("chap", "the hosts' secret"), ("chap-mutual", "the target's secret")):
    file = path.parent / name
    file.write_text(secret)
    file.chmod(0o600)
chap = '{ user = "hosts", secret_file = "chap", mutual_user = "a", mutual_secret_file = "chap-mutual" }'
lines = f"[target.iscsi]\\nchap = {chap}\\ndiscovery_chap = {chap}\\n"
path.write_text(path.read_text().replace("[target.iscsi]\\n", lines, 1))
"""


def test_chap_is_asked_for_both_ways_and_at_discovery(sites: TwoSites, host: Host) -> None:
    host.log_out("a")
    sites.run("a", f"python3 - <<'END'\n{_CHAP}\nEND\nsystemctl restart replctl-target")
    sites.wait_until_serving("a")
    assert status(sites, "a")["drift"] == []
    node = f"iscsiadm -m node -T {IQN}:a -p {PORTAL}"

    def log_in(**settings: str) -> str:
        lines = [f"{node} -o delete >/dev/null 2>&1; {node} -o new >/dev/null"]
        for name, value in settings.items():
            lines.append(f'{node} -o update -n node.session.auth.{name} -v "{value}" >/dev/null')
        lines.append(f"{node} --login 2>&1 && {node} --logout >/dev/null")
        return host.run("\n".join(lines), check=False)

    one_way = {"authmethod": "CHAP", "username": "hosts", "password": "the hosts' secret"}
    mutual = {**one_way, "username_in": "a", "password_in": "the target's secret"}
    assert "successful" not in log_in()
    assert "successful" not in log_in(**{**one_way, "password": "no secret at all"})
    assert "successful" in log_in(**one_way)
    assert "successful" in log_in(**mutual)
    assert "successful" not in log_in(**{**mutual, "password_in": "another target's"})
    discovery = f"iscsiadm -m discovery -t st -p {PORTAL}"
    assert f"{IQN}:a" not in host.run(f"{discovery} 2>&1 || true")
    record = f"iscsiadm -m discoverydb -t st -p {PORTAL}"
    settings = {"authmethod": "CHAP", "username": "hosts", "password": "the hosts' secret"}
    lines = [f"{record} -o new >/dev/null"]
    for name, value in settings.items():
        lines.append(f'{record} -o update -n discovery.sendtargets.auth.{name} -v "{value}" >/dev/null')
    with_chap = "\n".join([*lines, f"{record} --discover"])
    assert f"{IQN}:a" in host.run(with_chap)
    host.run(f"iscsiadm -m discoverydb -t st -p {PORTAL} -o delete; iscsiadm -m node -o delete; true")
