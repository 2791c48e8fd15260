"""The guests' root file system: Debian's packages, the project's Python packages, and `provision.sh install`.

Made by mmdebstrap, which needs no root where the user may have a user namespace (newuidmap, /etc/subuid); as
root it makes a plain chroot. The key of the cache is every version that goes in.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import sys
import tarfile
import tempfile
import tomllib
from pathlib import Path

from scripts.vmlab.code import PYTHON_OF_SUITE, SOURCES, as_root
from scripts.vmlab.failure import run
from scripts.vmlab.kernel import GUEST_FILES
from scripts.vmlab.repository import KEYRING, SUITE, Repository

PROJECT = Path(__file__).resolve().parents[2]
_ROOT_MIB = 1536
_LAB_PACKAGES = ["iputils-ping", "less"]
_BUILD_TOOLS = ["setuptools>=68", "wheel"]
_PLATFORMS = (
    "manylinux2014_x86_64",
    "manylinux_2_17_x86_64",
    "manylinux_2_28_x86_64",
    "manylinux_2_34_x86_64",
)
_MINIMAL = ("man", "doc", "locale", "info", "i18n/locales", "zoneinfo/right")
"""Directories of /usr/share that nobody reads in a lab."""


def packages() -> list[str]:
    """What provision.sh would install, and what only machines of this lab need."""
    lines = (PROJECT / "vagrant" / "packages").read_text().splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")] + _LAB_PACKAGES


def requirements() -> list[str]:
    """The project's own run-time dependencies."""
    tables = tomllib.loads((PROJECT / "pyproject.toml").read_text())
    return [str(line) for line in tables["project"]["dependencies"]]


def build_root(repository: Repository, cache: Path) -> Path:
    """The image of the root file system, from the cache if nothing that goes in has changed."""
    wheels = _wheels(cache)
    image = cache / f"root-{_inputs_key()}-{_versions_key(repository.solve(packages()), wheels)}.img"
    if not image.exists():
        with tempfile.TemporaryDirectory(dir=cache, prefix="making-") as work:
            made = Path(work) / "root.img"
            _make(repository, wheels, Path(work), made)
            made.rename(image)
    image.touch()  # the newest is the one that `up` takes
    return image


def _wheels(cache: Path) -> Path:
    """A directory with the wheels of the dependencies, for the guests' Python."""
    wanted = [*requirements(), *_BUILD_TOOLS]
    directory = cache / f"wheels-{hashlib.sha256(json.dumps(wanted).encode()).hexdigest()[:12]}"
    if not directory.exists():
        with tempfile.TemporaryDirectory(dir=cache, prefix="making-") as work:
            platforms = [word for name in _PLATFORMS for word in ("--platform", name)]
            run(
                [
                    sys.executable,
                    "-m",
                    "pip",
                    "download",
                    "--quiet",
                    "--disable-pip-version-check",
                    "--dest",
                    work,
                    "--only-binary=:all:",
                    "--python-version",
                    PYTHON_OF_SUITE,
                    "--implementation",
                    "cp",
                    *platforms,
                    *wanted,
                ]
            )
            shutil.copytree(work, directory)
    return directory


def cached_root(cache: Path) -> Path | None:
    """The newest image that was made of this checkout's inputs, whatever the archive has by now."""
    images = sorted(cache.glob(f"root-{_inputs_key()}-*.img"), key=lambda path: path.stat().st_mtime)
    return images[-1] if images else None


def _versions_key(versions: dict[str, str], wheels: Path) -> str:
    names = sorted(path.name for path in wheels.iterdir())
    return hashlib.sha256(json.dumps([versions, names]).encode()).hexdigest()[:12]


def _inputs_key() -> str:
    """Of all that decides what is in the image; the project itself is brought up to date at every start."""
    digest = hashlib.sha256(json.dumps([requirements(), _MINIMAL, _LAB_PACKAGES, _ROOT_MIB]).encode())
    vagrant = PROJECT / "vagrant"
    files = [
        vagrant / "packages",
        vagrant / "provision.sh",
        vagrant / "provision" / "install.sh",
    ]
    for path in sorted(
        [*files, *(path for path in GUEST_FILES.iterdir() if path.name not in ("init", "modules"))]
    ):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


def _make(repository: Repository, wheels: Path, work: Path, image: Path) -> None:
    additions, tree = work / "additions.tar", work / "root.tar"
    _pack_additions(wheels, additions)
    excluded = [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in _MINIMAL]
    run(
        [
            "mmdebstrap",
            "--quiet",
            "--variant=minbase",
            f"--include={','.join(packages())}",
            *excluded,
            "--dpkgopt=force-unsafe-io",
            f"--keyring={KEYRING}",
            f"--customize-hook=tar-in {additions} /",
            '--customize-hook=env --ignore-environment PATH="$PATH" chroot "$1" /lab/install',
            '--customize-hook=rm -rf "$1/lab" "$1/var/cache/apt" "$1"/*/.cache',
            SUITE,
            str(tree),
            *repository.sources,
        ],
        timeout_seconds=900,
    )
    # Owners and devices are kept by root, or by fakeroot for one who is not.
    script = 'mkdir "$1" && tar -xf "$2" -C "$1" && mkfs.ext4 -q -F -L lab -m 0 -d "$1" "$3" "$4"'
    as_root = [] if os.geteuid() == 0 else ["fakeroot", "--"]
    run(
        [*as_root, "sh", "-e", "-c", script, "sh", str(work / "tree"), str(tree), str(image), f"{_ROOT_MIB}M"]
    )
    run(["chmod", "-R", "u+rwX", str(work / "tree")])


def _pack_additions(wheels: Path, to: Path) -> None:
    """Everything that is not a package: /lab, which is gone afterwards, and the guests' own files."""
    with tarfile.open(to, "w") as archive:
        for path in sorted(wheels.iterdir()):
            archive.add(path, f"lab/wheels/{path.name}", filter=as_root)
        for name in SOURCES:
            archive.add(PROJECT / name, f"lab/source/{name}", filter=as_root)
        for path in sorted(GUEST_FILES.iterdir()):
            where = re.sub("^", "lab/guest/", path.name)
            archive.add(path, where, filter=as_root)
        archive.addfile(_executable("lab/install", _INSTALL), io.BytesIO(_INSTALL))


def _executable(name: str, content: bytes) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.size, member.mode = len(content), 0o755
    return member


_INSTALL = b"""#!/bin/sh -e
/lab/source/vagrant/provision.sh install /lab/source /lab/wheels
/lab/guest/install
"""
