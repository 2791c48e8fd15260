"""Clients that others wrote, against the embedded target: libiscsi's tools and QEMU's.

libiscsi's own tests are in tests/conformance/test_libiscsi_suite.py.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from target.iscsi.address import parse_address
from target.iscsi.chap import ChapCredentials
from target.iscsi.node import TargetNode
from tests.unit.iscsi.server import CHAP, TARGET, Server, node, serving
from tests.unit.scsi.memory_volume import MemoryVolume

VOLUME_BYTES = 32 << 20
ONE_WAY = ChapCredentials(CHAP.user, CHAP.secret)


def run(*command: str, succeeds: bool = True) -> str:
    """What a tool prints; it must end well, or must not."""
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    output = done.stdout + done.stderr
    assert (done.returncode == 0) == succeeds, output
    return output


@pytest.fixture
def volume() -> MemoryVolume:
    return MemoryVolume(VOLUME_BYTES)


@pytest.fixture
def server(volume: MemoryVolume) -> Iterator[Server]:
    with serving(node(volume)) as one:
        yield one


def serve_with_chap(volume: MemoryVolume, credentials: ChapCredentials) -> TargetNode:
    return node(volume, chap=credentials)


def with_user(server: Server, secret: str) -> str:
    return server.url().replace("iscsi://", f"iscsi://{CHAP.user}%{secret}@")


# libiscsi


def test_iscsi_ls_discovers_targets_and_units(server: Server) -> None:
    output = run("iscsi-ls", "-s", f"iscsi://{server.address}")
    assert f"Target:{TARGET} Portal:{server.address},1" in output
    assert "Lun:0    Type:DIRECT_ACCESS" in output


def test_iscsi_inq_reads_the_pages(server: Server) -> None:
    assert "Vendor:REPLCTL" in run("iscsi-inq", server.url())
    assert "Unit Serial Number" in run("iscsi-inq", "-e", "1", "-c", "128", server.url())


def test_iscsi_readcapacity16(server: Server) -> None:
    assert f"Total size:{VOLUME_BYTES}" in run("iscsi-readcapacity16", server.url())


def test_iscsi_perf_reads(server: Server) -> None:
    assert "finished" in run("iscsi-perf", "-r", "-m", "32", "-b", "512", "-t", "1", server.url())


def test_libiscsi_authenticates_by_chap(volume: MemoryVolume) -> None:
    with serving(serve_with_chap(volume, ONE_WAY)) as server:
        assert "REPLCTL" in run("iscsi-inq", with_user(server, CHAP.secret))
        assert "Authentication failure" in run(
            "iscsi-inq", with_user(server, "wrong-secret-12"), succeeds=False
        )
        assert "Authentication failure" in run("iscsi-inq", server.url(), succeeds=False)


def test_libiscsi_authenticates_by_mutual_chap(volume: MemoryVolume) -> None:
    with serving(serve_with_chap(volume, CHAP)) as server:
        mutual = f"?target_user={CHAP.mutual_user}&target_password="
        good = f"{with_user(server, CHAP.secret)}{mutual}{CHAP.mutual_secret}"
        assert "REPLCTL" in run("iscsi-inq", good)
        run("iscsi-inq", f"{with_user(server, CHAP.secret)}{mutual}not-its-secret-1", succeeds=False)


def test_libiscsi_uses_header_digests(server: Server) -> None:
    assert "REPLCTL" in run("iscsi-inq", f"{server.url()}?header_digest=crc32c")


@pytest.mark.parametrize("listens", ["[::1]:0", "[::]:0", "0.0.0.0:0"])
def test_tools_come_in_by_any_address(volume: MemoryVolume, listens: str) -> None:
    """Discovery tells an address that leads back in, whatever the portal listens on."""
    server = Server([], listens)
    port = server.address.rpartition(":")[2]
    host = "127.0.0.1" if "0.0.0.0" in listens else "[::1]"
    try:
        server.call(lambda: server.portal.nodes.append(node(volume, portals=(f"{listens[:-2]}:{port}",))))
        assert f"Portal:{host}:{port},1" in run("iscsi-ls", "-s", f"iscsi://{host}:{port}")
        assert f"Total size:{VOLUME_BYTES}" in run(
            "iscsi-readcapacity16", f"iscsi://{host}:{port}/{TARGET}/0"
        )
    finally:
        server.stop()


# QEMU


def qemu(*command: str) -> str:
    listing = run("qemu-img", "--help")
    if "iscsi" not in listing.rpartition("Supported formats:")[2]:
        pytest.skip("this qemu-img has no iSCSI (Debian: qemu-block-extra)")
    return run(*command)


def test_qemu_img_writes_and_reads_an_image(server: Server, volume: MemoryVolume, tmp_path: Path) -> None:
    image = tmp_path / "image"
    content = os.urandom(20 << 20) + bytes(VOLUME_BYTES - (20 << 20))
    image.write_bytes(content)
    qemu("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", str(image), server.url())
    assert volume.content == content
    back = tmp_path / "back"
    qemu("qemu-img", "convert", "-f", "raw", "-O", "raw", server.url(), str(back))
    assert back.read_bytes() == content
    assert "identical" in qemu("qemu-img", "compare", "-f", "raw", "-F", "raw", str(image), server.url())


def test_qemu_img_bench_writes_and_flushes(server: Server, volume: MemoryVolume) -> None:
    qemu(
        "qemu-img", "bench", "-f", "raw", "-w", "-t", "none", "-c", "2000", "-d", "32", "-s", "4096",
        "--flush-interval", "100", server.url(),
    )  # fmt: skip
    assert "flush" in volume.names()
    assert volume.names().count("write") >= 2000


def test_qemu_io_writes_what_it_verifies(server: Server, volume: MemoryVolume) -> None:
    """One megabyte is more than a burst, three are several; zeroing and discarding are commands too."""
    output = qemu(
        "qemu-io", "-f", "raw",
        "-c", "write -P 0xa5 4k 1M", "-c", "write -P 0x5a 2M 3M", "-c", "flush",
        "-c", "read -P 0xa5 4k 1M", "-c", "read -P 0x5a 2M 3M",
        "-c", "write -z 4k 64k", "-c", "read -P 0 4k 64k", "-c", "discard 2M 1M",
        server.url(),
    )  # fmt: skip
    assert "verification failed" not in output
    assert volume.content[(4 << 10) + (64 << 10) : (4 << 10) + (1 << 20)] == b"\xa5" * (
        (1 << 20) - (64 << 10)
    )
    assert "flush" in volume.names()


def test_qemu_logs_in_with_chap_and_digests_over_ipv6(volume: MemoryVolume) -> None:
    with serving(serve_with_chap(volume, ONE_WAY), address="[::1]:0") as server:
        host, port = parse_address(server.address)
        options = (
            f"driver=iscsi,transport=tcp,portal=[{host}]:{port},target={TARGET},lun=0,"
            f"user={CHAP.user},password-secret=secret,header-digest=crc32c"
        )
        output = qemu(
            "qemu-io", "--object", f"secret,id=secret,data={CHAP.secret}", "--image-opts", options,
            "-c", "write -P 0xa5 4k 1M", "-c", "read -P 0xa5 4k 1M", "-c", "flush",
        )  # fmt: skip
        assert "verification failed" not in output
        assert volume.content[4 << 10 : (4 << 10) + (1 << 20)] == b"\xa5" * (1 << 20)


def wait_for_calls(server: Server, volume: MemoryVolume, count: int) -> None:
    server.wait_for(lambda: len(volume.calls) > count)


def is_drained(server: Server) -> bool:
    stopped = threading.Event()
    server.call(lambda: server.portal.drain(20, stopped.set))
    return stopped.wait(15)


def test_qemu_goes_on_when_the_target_comes_back(volume: MemoryVolume) -> None:
    """Asked to log out amid its writes it does so, comes back, and sends again what was not answered."""
    qemu("qemu-img", "--version")
    server = Server([node(volume)])
    address = server.address
    bench = subprocess.Popen(
        ["qemu-img", "bench", "-f", "raw", "-w", "-t", "none", "-c", "20000", "-d", "16", "-s", "4096",
         "--pattern=165", server.url()],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        for written in (500, 8000):
            wait_for_calls(server, volume, written)
            assert is_drained(server), "the initiator logs out when it is asked to"
            server.stop()
            server = Server([node(volume)], address)
        output, _ = bench.communicate(timeout=100)
    finally:
        bench.kill()
        bench.wait()
        server.stop()
    assert bench.returncode == 0, output
    assert volume.content == b"\xa5" * VOLUME_BYTES
