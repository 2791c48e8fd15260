"""How large a target grows that many initiators abuse: measured from outside, on a process of its own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from target.iscsi.registry import OUTPUT_BYTES_LEAST
from target.scsi import cdb as cdbs
from tests.conformance.stranger import Stranger
from tests.unit.iscsi.server import BLOCK

ROOT = Path(__file__).resolve().parents[2]
MIB = 1 << 20
SESSIONS = 100
READS = 32
READ_BYTES = 512 * BLOCK

SERVE = """
import sys
from tests.unit.iscsi.server import node, serving
with serving(node(), ping_seconds=3600.0, login_timeout_seconds=3600.0) as server:
    print(server.address, flush=True)
    sys.stdin.read()
"""


@dataclass(frozen=True)
class Target:
    address: str
    pid: int

    @property
    def resident_bytes(self) -> int:
        status = Path(f"/proc/{self.pid}/status").read_text(encoding="ascii")
        return next(int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("VmRSS"))


@contextmanager
def target() -> Iterator[Target]:
    process = subprocess.Popen(
        [sys.executable, "-c", SERVE], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield Target(process.stdout.readline().strip(), process.pid)
        process.stdin.close()
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()


def test_sessions_that_announce_much_and_read_nothing() -> None:
    with target() as one:
        before = one.resident_bytes
        strangers = [Stranger(one) for _ in range(SESSIONS)]
        for stranger in strangers:
            stranger.login(InitialR2T="Yes", ImmediateData="No", MaxRecvDataSegmentLength="262144")
        idle = one.resident_bytes - before
        assert idle < 40 * MIB, "a session costs little until it is used"
        for stranger in strangers:
            stranger.command(cdbs.write(0, 4096), write=2 * MIB)
            stranger.receive_r2t()
        assert one.resident_bytes - before < 60 * MIB, "what is only announced costs nothing"
        for stranger in strangers:
            for tag in range(10, 10 + READS):
                stranger.command(cdbs.read(0, 512), tag=tag, read=READ_BYTES)
        for stranger in strangers[:10]:  # each answer was made in the turn of its command, or is held back
            for _ in range(READS):
                assert len(stranger.receive()[1]) == READ_BYTES
        most = one.resident_bytes - before
        assert most < (SESSIONS + 40) * (OUTPUT_BYTES_LEAST + READ_BYTES), f"{most >> 20} MiB"
        for stranger in strangers:
            stranger.socket.close()
