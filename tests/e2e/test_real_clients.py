"""Clients that others wrote, against two replicating sites: what they write at one they read at the other."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.scenarios.site_lab import SiteLab, running

VOLUMES = {"data": 64 << 20, "log": 4 << 20}
ROOT = Path(__file__).resolve().parents[2]


def run(*command: str, code: int = 0) -> str:
    """What a tool prints; it must end like this."""
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    output = done.stdout + done.stderr
    assert done.returncode == code, output
    return output


def qemu(*command: str) -> str:
    if "iscsi" not in run("qemu-img", "--help").rpartition("Supported formats:")[2]:
        pytest.skip("this qemu-img has no iSCSI (Debian: qemu-block-extra)")
    return run(*command)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SiteLab]:
    with running(tmp_path_factory.mktemp("lab"), volumes=VOLUMES) as one:
        one.pair("a", "b")
        yield one


def wait_marker(lab: SiteLab, name: str) -> None:
    """Everything written before is at b."""
    lab.replctl("a", "marker", "create", "group1", name, "--wait")


# A file system


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real directory tree: this repository's sources, with links, an empty file and a file with a hole."""
    top = tmp_path_factory.mktemp("tree") / "tree"
    for name in ("target", "hostagent", "docs", "scripts", "tests"):
        shutil.copytree(ROOT / name, top / name, ignore=shutil.ignore_patterns("__pycache__"), symlinks=True)
    (top / "empty").touch()
    (top / "readme").symlink_to("docs/cli.md")
    (top / "deep" / "er" / "est").mkdir(parents=True)
    with (top / "sparse").open("wb") as file:
        file.seek(3 << 20)
        file.write(os.urandom(100_000))
    return top


def ext4_image(tree: Path, path: Path) -> Path:
    """An image of a volume's size, made without root."""
    path.touch()
    os.truncate(path, VOLUMES["data"])
    run("mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", "-d", str(tree), str(path))
    return path


def facts(top: Path) -> dict[str, tuple[str, object]]:
    """What a tree holds: name -> kind and content."""
    found: dict[str, tuple[str, object]] = {}
    for path in sorted(top.rglob("*")):
        name = str(path.relative_to(top))
        mode = path.lstat().st_mode
        if stat.S_ISLNK(mode):
            found[name] = ("link", os.readlink(path))
        elif stat.S_ISDIR(mode):
            found[name] = ("directory", stat.S_IMODE(mode))
        else:
            found[name] = ("file", (stat.S_IMODE(mode), path.read_bytes()))
    return found


def dumped(image: Path, into: Path) -> dict[str, tuple[str, object]]:
    """The tree inside an ext4 image."""
    into.mkdir()
    run("debugfs", "-R", f"rdump / {into}", str(image))
    found = facts(into)
    found.pop("lost+found", None)
    return found


def test_a_file_system_written_at_a_is_whole_at_b(lab: SiteLab, tree: Path, tmp_path: Path) -> None:
    image = ext4_image(tree, tmp_path / "image")
    qemu("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", str(image), lab.url("a", "data"))
    wait_marker(lab, "file system")
    back = tmp_path / "back"
    qemu("qemu-img", "convert", "-f", "raw", "-O", "raw", lab.url("b", "data"), str(back))
    run("e2fsck", "-fn", str(back))
    assert dumped(back, tmp_path / "found") == facts(tree)
    assert back.read_bytes() == image.read_bytes()


def test_a_file_system_that_was_changed_is_whole_at_b(lab: SiteLab, tree: Path, tmp_path: Path) -> None:
    """Written as differences, block by block, while the pair runs; then verified by both sites themselves."""
    changed = tmp_path / "tree"
    shutil.copytree(tree, changed, symlinks=True)
    shutil.rmtree(changed / "tests")
    (changed / "news").write_bytes(os.urandom(1 << 20))
    image = ext4_image(changed, tmp_path / "image")
    qemu(
        "qemu-img",
        "convert",
        "-n",
        "-W",
        "-m",
        "16",
        "-f",
        "raw",
        "-O",
        "raw",
        str(image),
        lab.url("a", "data"),
    )
    wait_marker(lab, "changed")
    assert "identical" in qemu(
        "qemu-img", "compare", "-f", "raw", "-F", "raw", lab.url("a", "data"), lab.url("b", "data")
    )
    back = tmp_path / "back"
    qemu("qemu-img", "convert", "-f", "raw", "-O", "raw", lab.url("b", "data"), str(back))
    run("e2fsck", "-fn", str(back))
    assert dumped(back, tmp_path / "found") == facts(changed)
    verified = lab.replctl("a", "verify", "group1", "--wait")
    assert verified["mirrors"]["b"]["mismatches"] == 0
    assert verified["mirrors"]["b"]["extents"] > 0


# QEMU


def test_qemu_io_is_refused_at_the_secondary(lab: SiteLab) -> None:
    """It opens a write-protected unit for reading only."""
    done = subprocess.run(
        ["qemu-io", "-f", "raw", "-c", "write -P 0x11 0 4k", lab.url("b", "log")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode != 0
    assert (
        "read-only" in (done.stdout + done.stderr).lower() or "protect" in (done.stdout + done.stderr).lower()
    )


def test_what_qemu_io_writes_zeroes_and_discards_arrives(lab: SiteLab) -> None:
    at_a, at_b = lab.url("a", "log"), lab.url("b", "log")
    qemu(
        "qemu-io", "-f", "raw",
        "-c", "write -P 0xa5 4k 1M", "-c", "write -P 0x5a 2M 1536k",
        "-c", "write -z 8k 60k", "-c", "discard 2M 512k", "-c", "write -P 0x33 512 1536", "-c", "flush",
        at_a,
    )  # fmt: skip
    wait_marker(lab, "qemu-io")
    output = qemu(
        "qemu-io", "-r", "-f", "raw",
        "-c", "read -P 0xa5 4k 4k", "-c", "read -P 0 8k 60k", "-c", "read -P 0xa5 68k 960k",
        "-c", "read -P 0x5a 2560k 1M", "-c", "read -P 0x33 512 1536", at_b,
    )  # fmt: skip
    assert "verification failed" not in output
    assert output.count("read ") == 5
    assert "identical" in qemu("qemu-img", "compare", "-f", "raw", "-F", "raw", at_a, at_b)


def test_qemu_img_bench_at_the_primary_is_followed(lab: SiteLab) -> None:
    qemu(
        "qemu-img", "bench", "-f", "raw", "-w", "-t", "none", "-c", "3000", "-d", "32", "-s", "4096",
        "--flush-interval", "64", "--pattern", "119", lab.url("a", "log"),
    )  # fmt: skip
    wait_marker(lab, "bench")
    with lab.connect("b", "log") as client:
        assert client.read(0, 8) == bytes([119]) * 4096


# libiscsi


def test_libiscsi_sees_both_sites(lab: SiteLab) -> None:
    for site in "ab":
        iscsi = lab.describe(site)["iscsi"]
        portal = iscsi["portals"][0]
        listing = run("iscsi-ls", "-s", f"iscsi://{portal}")
        assert f"Target:{iscsi['target']} Portal:{portal},1" in listing
        assert listing.count("Type:DIRECT_ACCESS") == len(VOLUMES)
        assert "REPLCTL" in run("iscsi-inq", lab.url(site, "data"))
        for volume, size in VOLUMES.items():
            assert f"Total size:{size}" in run("iscsi-readcapacity16", lab.url(site, volume))
    one, other = (run("iscsi-inq", "-e", "1", "-c", "128", lab.url(site, "data")) for site in "ab")
    assert one != other, "each unit has a serial number of its own"


def test_libiscsi_sees_no_journal(lab: SiteLab) -> None:
    """The SAN portal names its target to nobody but the peers."""
    assert "Target" not in run("iscsi-ls", "-s", f"iscsi://{lab.describe('a')['san']['portal']}")


def test_iscsi_perf_runs_at_both_sites(lab: SiteLab) -> None:
    for site in "ab":
        assert "finished" in run("iscsi-perf", "-r", "-m", "32", "-b", "8", "-t", "1", lab.url(site, "data"))


# OpenSSH


def test_openssh_speaks_to_a_running_agent(lab: SiteLab, tmp_path: Path) -> None:
    """With a peer's key and the host key pinned, the subsystem answers; it knows the peer by its key."""
    if shutil.which("ssh") is None:
        pytest.skip("ssh is not installed")
    agent = lab.describe("a")["agent"]
    host, _, port = agent["ssh"].partition(":")
    known = tmp_path / "known_hosts"
    known.write_text(f"[{host}]:{port} {agent['host_key']}\n")
    identity = Path(lab.describe("b")["configs"]["hostagent"]).with_name("id_ed25519")
    command = [
        "ssh", "-F", "none", "-p", port, "-i", str(identity), "-s", "-T",
        "-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=yes",
        "-o", f"UserKnownHostsFile={known}", host, "replication",
    ]  # fmt: skip
    done = subprocess.run(
        command,
        input='{"id": 1, "op": "ping", "params": {}}\n',
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert '"site":"a"' in done.stdout, done.stderr
    refused = subprocess.run(
        [*command[:-1], "shell"], input="", capture_output=True, text=True, timeout=60, check=False
    )
    assert refused.returncode != 0
