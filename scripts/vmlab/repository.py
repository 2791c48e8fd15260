"""Debian's archive as the guests see it, whatever the host runs: an apt directory of the lab's own.

It needs no root and touches nothing of the host's apt. The versions it names are the key of the cache.
"""

from __future__ import annotations

import re
from pathlib import Path

from scripts.vmlab.failure import LabError, run

SUITE = "bookworm"
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_INSTALLED_LINE = re.compile(r"^Inst (\S+) \((\S+) ", re.MULTILINE)


class Repository:
    """Package lists of one Debian release, its security updates and its backports."""

    def __init__(self, directory: Path, mirror: str) -> None:
        self._directory = directory
        self._mirror = mirror.rstrip("/")

    @property
    def sources(self) -> list[str]:
        """Lines of sources.list. Backports have priority 100: they are there for who asks by version."""
        security = self._mirror.replace("/debian", "/debian-security")
        return [
            f"deb [signed-by={KEYRING}] {self._mirror} {SUITE} main",
            f"deb [signed-by={KEYRING}] {self._mirror} {SUITE}-updates main",
            f"deb [signed-by={KEYRING}] {security} {SUITE}-security main",
            f"deb [signed-by={KEYRING}] {self._mirror} {SUITE}-backports main",
        ]

    def update(self) -> None:
        for part in ("lists/partial", "archives/partial"):
            (self._directory / part).mkdir(parents=True, exist_ok=True)
        (self._directory / "status").touch()
        (self._directory / "sources.list").write_text("".join(f"{line}\n" for line in self.sources))
        self._apt("apt-get", "--quiet", "update")

    def solve(self, packages: list[str]) -> dict[str, str]:
        """Every package that an installation of these in an empty system would bring, with its version."""
        output = self._apt("apt-get", "--simulate", "--no-install-recommends", "install", *packages)
        return dict(sorted(_INSTALLED_LINE.findall(output)))

    def kernel_package(self, release: str) -> str:
        """The package with the newest generic kernel of this release ("6.1", "6.12")."""
        output = self._apt("apt-cache", "show", "linux-image-amd64")
        for paragraph in output.split("\n\n"):
            if re.search(rf"^Version: {re.escape(release)}\.", paragraph, re.MULTILINE):
                found = re.search(r"^Depends: (linux-image-\S+) \(= (\S+)\)", paragraph, re.MULTILINE)
                if found is not None:
                    return f"{found[1]}={found[2]}"
        raise LabError(f"{self._mirror} {SUITE} and its backports have no kernel {release} for amd64")

    def version(self, package: str) -> str:
        found = re.search(r"Candidate: (\S+)", self._apt("apt-cache", "policy", package))
        if found is None or found[1] == "(none)":
            raise LabError(f"{self._mirror} {SUITE} has no package {package}")
        return found[1]

    def unpack(self, package: str, to: Path) -> None:
        """Download one package and unpack it, without installing it."""
        downloads = self._directory / "downloads"
        downloads.mkdir(exist_ok=True)
        for old in downloads.iterdir():
            old.unlink()
        self._apt("apt-get", "--quiet", "download", package, cwd=downloads)
        to.mkdir(parents=True, exist_ok=True)
        for archive in downloads.iterdir():
            run(["dpkg-deb", "--extract", str(archive), str(to)])
            archive.unlink()

    def _apt(self, program: str, *arguments: str, cwd: Path | None = None) -> str:
        settings = {
            "Dir::State": self._directory,
            "Dir::State::lists": self._directory / "lists",
            "Dir::State::status": self._directory / "status",
            "Dir::Cache": self._directory,
            "Dir::Etc::sourcelist": self._directory / "sources.list",
            "Dir::Etc::sourceparts": "/dev/null",
            "Dir::Etc::preferencesparts": "/dev/null",
            "APT::Architecture": "amd64",
            "APT::Sandbox::User": "",
            "Acquire::Languages": "none",
            "Acquire::Retries": 3,
        }
        options = [f"-o{key}={value}" for key, value in settings.items()]
        return run([program, *arguments[:1], *options, *arguments[1:]], cwd=cwd)
