"""Two sites in virtual machines, and a Linux host that uses their volumes: what these tests act on.

The host is machine b's kernel: open-iscsi, dm-multipath over both portals of a site, real file systems. A
test waits for states, with limits that fit a machine without hardware acceleration that others use too.
"""

from __future__ import annotations

import json
import re
import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from scripts.vmlab.lab import Lab
from scripts.vmlab.layout import Network
from scripts.vmlab.machine import VirtualMachine

GROUP = "group1"
WAIT_SECONDS_MAX = 400.0
_REPLCTL = "replctl --config /etc/replctl/site.toml"
_IQN = "iqn.2026-01.org.replctl"
_ASK = """
import socket
try:
    link = socket.socket(socket.AF_UNIX)
    link.connect("/run/replctl-hostagent/agent.sock")
    link.sendall(b'{}\\n')
    lines = link.makefile()
    line = "{{}}"
    while line and '"id":1' not in line.replace(" ", ""):
        line = lines.readline()
    print(line or "{{}}")
except OSError:
    print("{{}}")
"""

_KILL = """
state() {{ echo "$(systemctl is-active {unit}) $(systemctl show -P MainPID {unit})"; }}
before=$(state)
began=$(cut -d ' ' -f 1 /proc/uptime)
systemctl kill --signal KILL --kill-whom main {unit}
until now=$(state); [[ $now == 'active '[1-9]* && $now != "$before" ]]; do sleep 0.1; done
awk -v began="$began" '{{ print $1 - began }}' /proc/uptime
"""


@dataclass(frozen=True, slots=True)
class Volume:
    """One logical unit of the group, and the file system that the host makes on it."""

    name: str
    lun: int
    make: str
    check: str
    mount_point: str


DATA = Volume("data", 0, "mkfs.ext4 -q -F", "e2fsck -f -n", "/mnt/data")
LOG = Volume("log", 1, "mkfs.xfs -q -f --unsupported", "xfs_repair -n", "/mnt/log")
VOLUMES = (DATA, LOG)


class TwoSites:
    """Commands to the machines, in the words of the tests."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab

    def machine(self, name: str) -> VirtualMachine:
        return self.lab.machine(name)

    def run(self, name: str, script: str, *, check: bool = True) -> str:
        return self.machine(name).run(script, timeout_seconds=WAIT_SECONDS_MAX, check=check)

    def replctl(self, site: str, *words: str) -> Any:
        """What the command answers, from its JSON."""
        return json.loads(self.run(site, f"{_REPLCTL} {shlex.join(words)} --json") or "null")

    def ask(self, site: str, op: str, **params: object) -> dict[str, Any] | None:
        """The agent's answer, by its socket: replctl takes seconds to start in such a machine.

        None where it is an error, or nobody answers.
        """
        request = json.dumps({"id": 1, "op": op, "params": params})
        answer = json.loads(self.run(site, f"python3 -I -S - <<'END'\n{_ASK.format(request)}\nEND"))
        result: dict[str, Any] | None = answer.get("result")
        return result

    def status(self, site: str) -> dict[str, Any] | None:
        """What `pair status` shows; None while its daemons do not answer."""
        return self.ask(site, "pair.status", group=GROUP)

    def mirror(self, site: str, secondary: str) -> dict[str, Any]:
        """What a primary says of one of its mirrors; nothing while it does not answer."""
        mirrors = (self.status(site) or {"mirrors": []})["mirrors"]
        return next((mirror for mirror in mirrors if mirror["site"] == secondary), {})

    def wait_for(self, what: str, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + WAIT_SECONDS_MAX
        while not condition():
            assert time.monotonic() < deadline, (
                f"not within {WAIT_SECONDS_MAX:.0f} s: {what}\n{self.report()}"
            )
            time.sleep(1)

    def wait_for_pair(self, primary: str, secondary: str) -> None:
        def paired() -> bool:
            return self.mirror(primary, secondary).get("status") == "PAIR"

        self.wait_for(f"{secondary} is PAIR", paired)

    def wait_until_restored(self, primary: str, marker: str) -> None:
        """All that was written before now is at every mirror."""
        self.replctl(
            primary, "marker", "create", GROUP, marker, "--wait", "--timeout", f"{WAIT_SECONDS_MAX:.0f}"
        )

    def wait_until_serving(self, site: str) -> None:
        """Its daemons run and answer each other."""
        self.wait_for(f"{site} answers", lambda: self.status(site) is not None)

    def kill(self, site: str, daemon: str) -> float:
        """SIGKILL; returns when systemd has another one that is ready: the machine's seconds it took."""
        took = self.run(site, _KILL.format(unit=f"replctl-{daemon}"))
        self.wait_until_serving(site)
        return float(took)

    def bytes_sent(self, machine: str, network: Network) -> int:
        return int(self.run(machine, f"cat /sys/class/net/{network.value}/statistics/tx_bytes"))

    def digest(self, site: str, volume: Volume) -> str:
        """Of the whole volume, as a host reads it."""
        address = self.machine(site).machine.address(Network.FRONT)
        url = f"iscsi://{address}:3260/{_IQN}:{site}/{volume.lun}"
        blocks = self.run(site, f"blockdev --getsz /dev/replctl/{volume.name}").strip()
        read = f"replctl lun read {url} --blocks {blocks} --output - | sha256sum"
        return self.run(site, f"set -o pipefail; {read}").split()[0]

    def report(self) -> str:
        """For the message of a test that fails."""
        lines = []
        for machine in self.lab.machines:
            if machine.running:
                script = f"{_REPLCTL} pair status {GROUP}; journalctl -n 15 -o cat -u 'replctl-*'"
                lines.append(f"--- {machine.name}\n{self.run(machine.name, f'{script} 2>&1 || true')}")
            else:
                lines.append(f"--- {machine.name} is off")
        return "\n".join(lines)


class Host:
    """A machine's own kernel as the user of a site's volumes."""

    def __init__(self, sites: TwoSites, machine: str) -> None:
        self._sites = sites
        self.machine = machine

    def run(self, script: str, *, check: bool = True) -> str:
        return self._sites.run(self.machine, script, check=check)

    def log_in(self, site: str) -> None:
        """By both portals of the site; multipath joins what has one identity."""
        address = self._sites.machine(site).machine
        node = f"iscsiadm -m node -T {_IQN}:{site}"
        lines = ["set -e", "systemctl start iscsid multipathd"]
        for network in (Network.FRONT, Network.SAN):
            portal = f"-p {address.address(network)}:3260"
            # A session that is lost this long gives its commands to the other path.
            seconds = "-n node.session.timeo.replacement_timeout -v 5"
            lines += [f"{node} {portal} -o new >/dev/null", f"{node} {portal} -o update {seconds}"]
            lines.append(f"{node} {portal} --login >/dev/null")
        # A device is as read-only as Linux saw it last, and those of a port never went away.
        lines.append(self._of_ports("rescan"))
        self.run("\n".join([*lines, "udevadm settle"]))

        def complete() -> bool:
            return all(self.paths(site, volume) == self.paths_max(site) for volume in VOLUMES)

        self._sites.wait_for(f"every volume of {site} has all its paths", complete)

    def rescan(self) -> None:
        """Ask every device how large it is now."""
        self.run(f"set -e; iscsiadm -m session --rescan >/dev/null; {self._of_ports('rescan')}")

    def log_out(self, site: str) -> None:
        """Of all its portals; nothing of it is mounted."""
        node = f"iscsiadm -m node -T {_IQN}:{site}"
        self.run(f"multipath -F; {node} --logout; {node} -o delete; multipath -F; true")

    def abandon(self, site: str) -> None:
        """What is mounted from a site that is gone for good: whoever waits for it is told that it failed."""
        mount_points = " ".join(volume.mount_point for volume in VOLUMES)
        self.run(f"multipathd disablequeueing maps; umount -l {mount_points}; true")
        self.log_out(site)
        # Fibre Channel keeps the devices of a port that is gone, and multipath makes no map with such a one.
        self.run(self._of_ports("delete"))

    @contextmanager
    def off_fibre_channel(self) -> Iterator[None]:
        """Commands to volumes go by iSCSI alone, as before a fabric's maintenance.

        Who cuts a fabric with writes on it may have to reboot the target's machine: docs/lab.md, *A write
        whose data are lost*.
        """
        quiet = "until awk '{ exit $1 + $2 > 0 }' /sys/block/$disk/inflight; do sleep 0.05; done"
        self.run(self._for_ports(f"echo offline >/sys/block/$disk/device/state; {quiet}"))
        yield
        # Linux takes no word for a device whose port is not back yet.
        self.run(
            self._for_ports(
                "until echo running >/sys/block/$disk/device/state; do sleep 0.5; done 2>/dev/null"
            )
        )

    def _of_ports(self, action: str) -> str:
        """A script: rescan or delete each device that came by Fibre Channel and is a volume."""
        return self._for_ports(f"echo 1 >/sys/block/$disk/device/{action}")

    def _for_ports(self, script: str) -> str:
        found = 'lsblk -S -n -o NAME,TRAN,VENDOR | awk \'$2 == "fcoe" && $3 == "REPLCTL" { print $1 }\''
        return f"{found} | while read -r disk; do {script}; done"

    def device(self, site: str, volume: Volume) -> str:
        """The multipath device with this site's identity of the volume."""
        path = f"/dev/disk/by-path/ip-*-iscsi-{_IQN}:{site}-lun-{volume.lun}"
        script = (
            f"for path in {path}; do lsblk -n -r -o NAME,TYPE $path; done | awk '$2 == \"mpath\"' | head -n 1"
        )
        words = self.run(script).split()
        return f"/dev/mapper/{words[0]}" if words else ""

    def paths_max(self, site: str) -> int:
        """By both portals, and by Fibre Channel to another machine."""
        return 2 + (self._sites.lab.choices.fabric == "fc" and site != self.machine)

    def paths(self, site: str, volume: Volume) -> int:
        """How many paths to the volume work now."""
        device = self.device(site, volume)
        if not device:
            return 0
        return len(re.findall(r"active +ready +running", self.run(f"multipath -ll {device}")))

    def check_no_kernel_complaint(self) -> None:
        """Neither the block layer nor the initiator reported an error since its log was cleared."""
        said = self.run("dmesg --level err,crit,alert,emerg")
        assert not re.search(r"I/O error|blk_update_request|critical (medium|target) error", said), said

    def mount(self, site: str, volume: Volume) -> None:
        # XFS refuses a second file system with the same identity; a copy has the same.
        options = "-o nouuid" if volume is LOG else ""
        self.run(
            f"mkdir -p {volume.mount_point}; mount {options} {self.device(site, volume)} {volume.mount_point}"
        )

    def unmount(self, volume: Volume) -> None:
        self.run(f"umount {volume.mount_point}")
