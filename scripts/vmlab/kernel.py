"""Debian's generic kernel, made ready for QEMU's `-kernel`: ELF image, a disk with its modules, an initramfs.

The image is unpacked because QEMU starts an ELF kernel with a PVH note (`CONFIG_PVH`, which Debian sets) at
once, and a guest without hardware acceleration takes three seconds to unpack it itself.
"""

from __future__ import annotations

import hashlib
import lzma
import shutil
import struct
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from scripts.vmlab.archive import Archive
from scripts.vmlab.failure import LabError, run
from scripts.vmlab.repository import Repository

GUEST_FILES = Path(__file__).resolve().parent / "guest"

_BOOT_MODULES = ["virtio_pci", "virtio_blk", "ext4", "crc32c_generic", "9pnet_virtio", "virtio_net"]
"""What the initramfs loads. ext4's checksums come from a module that it names at run time only. The last two
are for guest/boot, which would have to wait for udev to load them (on 6.12 it came first, and found none).
"""

_X86_BOOT_MAGIC, _X86_BOOT_MAGIC_AT = b"HdrS", 0x202
_SETUP_SECTORS_AT, _PAYLOAD_AT = 0x1F1, 0x248  # Documentation/arch/x86/boot.rst
_SECTOR_BYTES = 512
_BUSYBOX = "busybox-static"


@dataclass(frozen=True, slots=True)
class Kernel:
    """The files that a machine is started with."""

    version: str
    image: Path
    modules: Path
    """A disk image; `module_tree` is what is on it."""
    module_tree: Path
    initramfs: Path


def build_kernel(repository: Repository, release: str, cache: Path) -> Kernel:
    """The newest kernel of a release ("6.1"), from the cache if it is there."""
    package = repository.kernel_package(release)
    version = package.partition("=")[0].removeprefix("linux-image-")
    directory = cache / f"kernel-{_inputs_key()}-{package.partition('=')[2].replace('~', '-')}"
    if not directory.exists():
        with tempfile.TemporaryDirectory(dir=cache, prefix="making-") as work:
            unpacked, made = Path(work) / "unpacked", Path(work) / "made"
            made.mkdir()
            repository.unpack(package, unpacked)
            repository.unpack(_BUSYBOX, unpacked)
            image = (unpacked / "boot" / f"vmlinuz-{version}").read_bytes()
            (made / "vmlinux").write_bytes(unpack_image(image))
            _make_module_disk(unpacked, version, made)
            _make_initramfs(unpacked, version, made / "initramfs")
            (made / "version").write_text(f"{version}\n")
            made.rename(directory)
    return cached_kernel(directory)


def cached_kernel(directory: Path) -> Kernel:
    """The kernel that was built into this directory of the cache."""
    version = (directory / "version").read_text().strip()
    return Kernel(
        version,
        image=directory / "vmlinux",
        modules=directory / "modules.img",
        module_tree=directory / "modules",
        initramfs=directory / "initramfs",
    )


def newest_kernel(cache: Path, release: str) -> Kernel | None:
    """Of this release, the one that was built last; its initramfs must be of this checkout."""
    found = sorted(cache.glob(f"kernel-{_inputs_key()}-{release}.*"), key=lambda path: path.stat().st_mtime)
    return cached_kernel(found[-1]) if found else None


def _inputs_key() -> str:
    files = (Path(__file__), GUEST_FILES / "init", GUEST_FILES / "modules")
    return hashlib.sha256(b"\0".join(path.read_bytes() for path in files)).hexdigest()[:8]


def unpack_image(image: bytes) -> bytes:
    """The ELF image inside a bzImage."""
    if image[_X86_BOOT_MAGIC_AT : _X86_BOOT_MAGIC_AT + 4] != _X86_BOOT_MAGIC:
        raise LabError("the kernel package holds no x86 boot image")
    offset, length = struct.unpack_from("<II", image, _PAYLOAD_AT)
    begin = (image[_SETUP_SECTORS_AT] + 1) * _SECTOR_BYTES + offset
    payload = image[begin : begin + length]
    stream = payload[:-4]  # the last four bytes are the unpacked size
    if payload.startswith(b"\xfd7zXZ\x00"):
        return lzma.decompress(stream)
    if payload.startswith(b"\x28\xb5\x2f\xfd"):
        return subprocess.run(["zstd", "-d", "-c"], input=stream, capture_output=True, check=True).stdout
    raise LabError(f"the kernel is compressed in a way the lab does not know: {payload[:6].hex()}")


def _with_dependencies(unpacked: Path, version: str, modules: list[str]) -> list[Path]:
    """Files of these modules and of what they depend on, in an order in which they can be loaded."""
    found: dict[Path, None] = {}
    for module in modules:
        shown = run(["modprobe", "-d", str(unpacked), "-S", version, "--show-depends", module])
        for line in shown.splitlines():
            word, _, rest = line.partition(" ")
            if word == "insmod":
                found[Path(rest.strip())] = None
    return list(found)


def _wanted_modules() -> list[str]:
    lines = (GUEST_FILES / "modules").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def _make_module_disk(unpacked: Path, version: str, made: Path) -> None:
    run(["depmod", "-b", str(unpacked), version])
    source = unpacked / "lib" / "modules" / version
    chosen = made / "modules" / version
    for path in _with_dependencies(unpacked, version, _wanted_modules()):
        to = chosen / path.relative_to(source)
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, to)
    for name in ("modules.order", "modules.builtin", "modules.builtin.modinfo"):
        shutil.copy(source / name, chosen / name)
    # depmod wants them in lib/modules below some directory.
    with tempfile.TemporaryDirectory() as root:
        (Path(root) / "lib").mkdir()
        (Path(root) / "lib" / "modules").symlink_to(made / "modules")
        run(["depmod", "-b", root, version])
    disk = made / "modules.img"
    size = sum(path.stat().st_size for path in chosen.rglob("*") if path.is_file())
    with disk.open("wb") as file:
        file.truncate(size * 5 // 4 + (8 << 20) & ~0xFFF)
    run(["mkfs.ext4", "-q", "-F", "-O", "^has_journal", "-m", "0", "-d", str(made / "modules"), str(disk)])


def _make_initramfs(unpacked: Path, version: str, file: Path) -> None:
    archive = Archive()
    archive.add("init", (GUEST_FILES / "init").read_bytes(), executable=True)
    archive.directory("bin")
    archive.add("bin/busybox", (unpacked / "bin" / "busybox").read_bytes(), executable=True)
    archive.directory("lib")
    modules = _with_dependencies(unpacked, version, _BOOT_MODULES)
    for path in modules:
        content = path.read_bytes()
        archive.add(
            f"lib/{path.name.removesuffix('.xz')}",
            lzma.decompress(content) if path.suffix == ".xz" else content,
        )
    archive.add("lib/order", "".join(f"{path.name.removesuffix('.xz')}\n" for path in modules).encode())
    file.write_bytes(archive.close())
