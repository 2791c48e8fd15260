"""Vagrant's way to the same two sites: the Vagrantfile is valid, and with a packed box it ends in a takeover.

libvirtd runs in a network namespace of its own, so that its bridges, dnsmasq and firewall rules are nobody's
but the test's; the machines are emulated in software.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

import pytest

from scripts.vmlab.box import pack_box
from scripts.vmlab.lab import KERNEL, MIRROR, images
from tests.lab.conftest import unavailable

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

VAGRANT = Path(__file__).resolve().parents[2] / "vagrant"
_BOX = "replctl-lab"
_POOL = "replctl-test"
_NAMESPACE = f"replctl-vagrant-{os.getpid()}"
_UP_SECONDS_MAX = 1200.0
_REPLCTL = "replctl --config /etc/replctl/site.toml"
_IQN = "iqn.2026-01.org.replctl"


@pytest.fixture(scope="module")
def directory() -> Iterator[Path]:
    """One that QEMU's user can reach; pytest's own are private."""
    with tempfile.TemporaryDirectory(prefix="replctl-vagrant-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture(scope="module")
def environment(directory: Path) -> dict[str, str]:
    """Vagrant with a home of its own."""
    if shutil.which("vagrant") is None:
        unavailable("vagrant is not installed: apt-get install vagrant vagrant-libvirt")
    home = directory
    return {
        **os.environ,
        "VAGRANT_HOME": str(home / "home"),
        "VAGRANT_DOTFILE_PATH": str(home / "state"),
        "VAGRANT_CHECKPOINT_DISABLE": "1",
        "VAGRANT_DEFAULT_PROVIDER": "libvirt",
        "VAGRANT_NO_COLOR": "1",
        "REPLCTL_BOX": _BOX,
    }


def test_the_vagrantfile_is_valid(environment: dict[str, str]) -> None:
    subprocess.run(["vagrant", "validate"], cwd=VAGRANT, env=environment, check=True, timeout=120)


class Machines:
    """The machines of a Vagrantfile, in the namespace."""

    def __init__(self, environment: dict[str, str]) -> None:
        self._environment = environment

    def vagrant(self, *words: str, timeout_seconds: float = 300) -> str:
        command = ["ip", "netns", "exec", _NAMESPACE, "vagrant", *words]
        # Words of a vagrant that did not come to an end are wanted too, so they go to a file.
        with tempfile.TemporaryFile("w+", errors="replace") as output:
            done = subprocess.Popen(
                command, cwd=VAGRANT, env=self._environment, stdout=output, stderr=subprocess.STDOUT
            )
            try:
                code: int | str = done.wait(timeout=timeout_seconds)
            except subprocess.TimeoutExpired:
                done.send_signal(signal.SIGINT)
                code = f"none after {timeout_seconds:.0f} s"
                done.wait(timeout=timeout_seconds)
            output.seek(0)
            said = output.read()
        assert code == 0, f"vagrant {' '.join(words)}: exit code {code}\n{said}"
        return said

    def run(self, machine: str, script: str) -> str:
        return self.vagrant("ssh", machine, "-c", script)


@contextmanager
def daemon(*command: str) -> Iterator[None]:
    process = subprocess.Popen(
        ["ip", "netns", "exec", _NAMESPACE, *command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def libvirtd(directory: Path) -> AbstractContextManager[None]:
    """Without /dev/kvm: while it is there and does not work, libvirt asks QEMU anew at every look at its
    capabilities (4 s, measured), and Vagrant looks often. So that what is mounted over it may stay, QEMU gets
    no /dev of its own.
    """
    no_kvm, configuration = directory / "no-kvm", directory / "qemu.conf"
    no_kvm.touch(mode=0o600)
    configuration.write_text("namespaces = []\n")
    # `ip netns exec` has made a mount namespace, too: nobody else sees these.
    script = (
        f"[ ! -e /dev/kvm ] || mount --bind {no_kvm} /dev/kvm; "
        f"mount --bind {configuration} /etc/libvirt/qemu.conf; exec libvirtd"
    )
    return daemon("sh", "-e", "-c", script)


@pytest.fixture(scope="module")
def machines(environment: dict[str, str], lab_images: Path, directory: Path) -> Iterator[Machines]:
    """Both machines, up and provisioned by `vagrant up`."""
    missing = [name for name in ("libvirtd", "virtlogd", "virsh", "dnsmasq") if shutil.which(name) is None]
    if missing:
        unavailable(f"not installed: {', '.join(missing)}")
    if os.geteuid() != 0:
        unavailable("libvirtd and a network namespace want root")
    if Path("/run/libvirt/libvirt-sock").is_socket() and _answers():
        unavailable("a libvirtd runs here already, and the test would change its networks")
    pool = directory / "pool"
    pool.mkdir(mode=0o755)
    with ExitStack() as stack:
        run("ip", "netns", "add", _NAMESPACE)
        stack.callback(run, "ip", "netns", "delete", _NAMESPACE)
        run("ip", "-n", _NAMESPACE, "link", "set", "lo", "up")
        stack.enter_context(daemon("virtlogd"))
        stack.enter_context(libvirtd(directory))
        wait_for_libvirtd()
        run("virsh", "pool-define-as", _POOL, "dir", "--target", str(pool))
        stack.callback(run, "virsh", "pool-undefine", _POOL)
        run("virsh", "pool-start", _POOL)
        stack.callback(run, "virsh", "pool-destroy", _POOL)
        environment["REPLCTL_POOL"] = _POOL
        machines = Machines(environment)
        box = pool / "lab.box"
        pack_box(*images(lab_images, KERNEL, MIRROR), box)
        machines.vagrant("box", "add", "--name", _BOX, "--provider", "libvirt", str(box))
        box.unlink()
        stack.callback(machines.vagrant, "destroy", "-f")
        machines.vagrant("up", timeout_seconds=_UP_SECONDS_MAX)
        yield machines


def run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, timeout=120)


def _answers() -> bool:
    return subprocess.run(["virsh", "list"], capture_output=True, check=False, timeout=60).returncode == 0


def wait_for_libvirtd() -> None:
    deadline = time.monotonic() + 60
    while not _answers():
        assert time.monotonic() < deadline, "libvirtd does not answer"
        time.sleep(0.2)


def test_vagrant_up_ends_in_a_mounted_replica_and_a_takeover(machines: Machines) -> None:
    """vagrant/README.md, step by step."""
    machines.run("a", f"{_REPLCTL} pair create group1 --secondary b --wait")
    disk = f"/dev/disk/by-path/ip-198.51.100.11:3260-iscsi-{_IQN}:a-lun-0"
    machines.run(
        "b",
        f"set -e; iscsiadm -m discovery -t sendtargets -p 198.51.100.11; "
        f"iscsiadm -m node -T {_IQN}:a -p 198.51.100.11 -o update"
        " -n node.session.timeo.replacement_timeout -v 10; "
        f"iscsiadm -m node -T {_IQN}:a -p 198.51.100.11 --login; udevadm settle; "
        f"mkfs.ext4 -q -F {disk}; mount {disk} /mnt; echo here >/mnt/proof; sync",
    )
    machines.run("a", f"{_REPLCTL} marker create group1 proof-is-in --wait")
    run("virsh", "destroy", "vagrant_a")
    machines.run(
        "b", f"umount -l /mnt; iscsiadm -m node -T {_IQN}:a --logout; {_REPLCTL} takeover group1 --force"
    )
    disk = f"/dev/disk/by-path/ip-198.51.100.12:3260-iscsi-{_IQN}:b-lun-0"
    found = machines.run(
        "b",
        f"set -e; iscsiadm -m discovery -t sendtargets -p 198.51.100.12 >/dev/null; "
        f"iscsiadm -m node -T {_IQN}:b -p 198.51.100.12 --login >/dev/null; udevadm settle; "
        f"mount {disk} /mnt; cat /mnt/proof",
    )
    assert "here" in found.split()
