"""Persistent reservations of a running subsystem outlive its end, by whatever way it comes."""

from __future__ import annotations

import signal
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from target.errors import IntegrityError
from target.iscsi.client import Client, ScsiError
from target.scsi import cdb
from target.scsi.command import Status
from target.scsi.reservations import Type
from tests.conformance.data_site import SMALL_BLOCKS, DataSite, running

REGISTER, RESERVE, PREEMPT = 0, 1, 4
APTPL = 0x01
BLOCK = bytes(512)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[DataSite]:
    with running(tmp_path) as one:
        yield one


def out(client: Client, action: int, key: int, new: int = 0, *, kind: int = 0, flags: int = 0) -> None:
    data = struct.pack(">QQ4xB3x", key, new, flags)
    client.execute(cdb.persistent_reserve_out(action, kind=kind), data)


def keys(client: Client) -> list[int]:
    data = client.execute(cdb.persistent_reserve_in(0), data_in_length=4096)
    return [key for (key,) in struct.iter_unpack(">Q", data[8:])]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_fence_is_there_after_a_restart(site: DataSite, how: signal.Signals) -> None:
    with site.connect(SMALL_BLOCKS) as holder:
        out(holder, REGISTER, 0, 7, flags=APTPL)
        out(holder, RESERVE, 7, kind=Type.WRITE_EXCLUSIVE)
        holder.write(0, BLOCK)
        site.stop(how)
    site.start()
    with site.connect(SMALL_BLOCKS) as other:
        assert keys(other) == [7]
        with pytest.raises(ScsiError) as refused:
            other.write(0, BLOCK)
        assert refused.value.status == Status.RESERVATION_CONFLICT
        assert other.read(0, 1) == BLOCK
        out(other, REGISTER, 0, 8, flags=APTPL)
        out(other, PREEMPT, 8, 7, kind=Type.WRITE_EXCLUSIVE)
        other.write(0, BLOCK)
        assert keys(other) == [8]


def test_without_a_readable_file_nothing_is_served(site: DataSite, tmp_path: Path) -> None:
    with site.connect(SMALL_BLOCKS) as holder:
        out(holder, REGISTER, 0, 7, flags=APTPL)
    site.stop()
    (file,) = (tmp_path / "state" / "reservations").iterdir()
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(AssertionError, match=f"{file.name} cannot be read"):
        site.start()
    assert site.exit_code == IntegrityError.exit_code
