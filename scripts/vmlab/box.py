"""Packs a Vagrant box of the lab's kernel and root file system, for places that reach no catalogue of boxes.

For the libvirt provider, and without a boot loader: the box's own Vagrantfile names kernel and initramfs,
which come with it. The initramfs also carries the modules and the key that lets Vagrant in.
"""

from __future__ import annotations

import json
import tarfile
import tempfile
from pathlib import Path

from scripts.vmlab.archive import Archive
from scripts.vmlab.board import CLOCK
from scripts.vmlab.failure import run
from scripts.vmlab.kernel import Kernel

_VIRTUAL_SIZE_GB = 2

_VAGRANTFILE = """\
# Direct boot, and emulation in software: it runs wherever QEMU does.
Vagrant.configure("2") do |config|
  config.ssh.username = "root"
  config.ssh.private_key_path = File.expand_path("id_ed25519", __dir__)
  config.ssh.insert_key = false
  config.vm.provider :libvirt do |libvirt|
    libvirt.driver = "qemu"
    libvirt.cpu_mode = "custom"
    libvirt.cpu_model = "qemu64"
    %w[ssse3 sse4.1 sse4.2 popcnt].each { |name| libvirt.cpu_feature name: name, policy: "require" }
    libvirt.machine_type = "q35"
    libvirt.kernel = File.expand_path("vmlinux", __dir__)
    libvirt.initrd = File.expand_path("initramfs", __dir__)
    libvirt.cmd_line = "console=ttyS0 quiet panic=-1 mitigations=off CLOCK net.ifnames=0 replctl.box"
  end
end
"""


def pack_box(kernel: Kernel, root: Path, box: Path) -> None:
    """Write the box; some 200 MB, half a minute."""
    with tempfile.TemporaryDirectory(dir=box.parent, prefix="making-") as directory:
        work = Path(directory)
        run(["qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", str(root), str(work / "box.img")])
        run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "box", "-f", str(work / "id_ed25519")])
        key = (work / "id_ed25519.pub").read_bytes()
        (work / "initramfs").write_bytes(kernel.initramfs.read_bytes() + _additions(kernel, key))
        (work / "vmlinux").symlink_to(kernel.image)
        metadata = {"provider": "libvirt", "format": "qcow2", "virtual_size": _VIRTUAL_SIZE_GB}
        (work / "metadata.json").write_text(json.dumps(metadata))
        (work / "Vagrantfile").write_text(_VAGRANTFILE.replace("CLOCK", CLOCK))
        unfinished = work / "box"
        with tarfile.open(unfinished, "w:gz", compresslevel=1, dereference=True) as archive:
            for name in ("metadata.json", "Vagrantfile", "box.img", "vmlinux", "initramfs", "id_ed25519"):
                archive.add(work / name, name)
        unfinished.rename(box)


def _additions(kernel: Kernel, key: bytes) -> bytes:
    archive = Archive()
    archive.directory("box")
    archive.tree(kernel.module_tree, "box/modules")
    archive.add("box/authorized_keys", key)
    return archive.close()
