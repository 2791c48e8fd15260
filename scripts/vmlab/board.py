"""What QEMU is told of a machine: one board for all, so that each can go on where another one was stopped.

Disks: vda (root file system) and vdc (data) are copy-on-write and keep what the machine flushed, vdb
(modules) is read only. `cache=writeback`: a flush of the guest is one of the host's, and what it did not
flush may be lost with QEMU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from scripts.vmlab.kernel import Kernel
from scripts.vmlab.layout import CONTROL_GUEST, CONTROL_NETWORK, Machine, Network

CPU = "qemu64,+ssse3,+sse4.1,+sse4.2,+popcnt"
"""The second level of the x86-64 ABI: wheels are built for it, and SSE 4.2 has the CRC-32C instruction."""

CLOCK = "tsc=reliable"
"""For a guest's kernel. An emulated time stamp counter is the host's own, and costs next to nothing to read.
Linux does not trust it on an AMD of this kind with two processors, and takes the HPET instead, a device:
each look at the clock was an exit to QEMU, and a fifth of a busy subsystem's time (perf, cpu-clock).
"""

COMMAND_LINE = (
    f"console=ttyS0 quiet panic=-1 mitigations=off {CLOCK} nokaslr net.ifnames=0 systemd.show_status=no"
)


@dataclass(frozen=True, slots=True)
class Hardware:
    """What every machine of a lab has."""

    memory_mib: int = 768
    cpus: int = 2
    data_mib: int = 2048


@dataclass(frozen=True, slots=True)
class Files:
    """A machine's own. `go_on`: the socket of its second serial line; `seed`, `source`: shared with it."""

    root: Path
    data: Path
    serial: Path
    go_on: Path
    seed: Path
    source: Path


def qemu_arguments(
    machine: Machine,
    files: Files,
    kernel: Kernel,
    hardware: Hardware,
    networks: Sequence[str],
    command_line: str,
) -> list[str]:
    """`networks`: QEMU's back end of each, in order."""
    arguments = ["-name", machine.name, "-machine", "q35", "-accel", "tcg,thread=multi,tb-size=256"]
    arguments += ["-cpu", CPU, "-smp", str(hardware.cpus), "-m", str(hardware.memory_mib)]
    arguments += ["-kernel", str(kernel.image), "-initrd", str(kernel.initramfs), "-append", command_line]
    arguments += ["-serial", f"file:{files.serial}", "-serial", f"unix:{files.go_on},server=on,wait=off"]
    arguments += ["-device", "virtio-rng-pci"]
    for path, settings in (
        (files.root, "format=qcow2"),
        (kernel.modules, "format=raw,readonly=on"),
        (files.data, "format=qcow2"),
    ):
        arguments += ["-drive", f"file={path},if=virtio,cache=writeback,discard=unmap,{settings}"]
    for network, back_end in zip(Network, networks, strict=True):
        arguments += ["-netdev", f"{back_end},id={network.word}"]
        arguments += ["-device", _card(network.word, machine.mac(network))]
    # Port 0: the host's kernel chooses a free one. restrict=on: the guest reaches no network of the host.
    forward = f"restrict=on,net={CONTROL_NETWORK},hostfwd=tcp:127.0.0.1:0-{CONTROL_GUEST}:22"
    arguments += ["-netdev", f"user,id=control,ipv6=off,{forward}"]
    arguments += ["-device", _card("control", machine.control_mac)]
    for tag, path in (("seed", files.seed), ("source", files.source)):
        share = f"local,path={path},mount_tag={tag},security_model=none,readonly=on,multidevs=remap"
        arguments += ["-virtfs", share]
    return arguments


def _card(netdev: str, mac: str) -> str:
    return f"virtio-net-pci,netdev={netdev},mac={mac},romfile="
