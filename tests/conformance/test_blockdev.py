"""What every block device must do: the real one and the simulated one pass the same tests."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from target.blockdev import BlockDevice, FileDevice
from target.volume import Buffer
from tests.simulation.sim_disk import SimDisk

SIZE = 64 * 4096
BLOCK = 4096

KINDS = ["FileDevice", "SimDisk"]


@pytest.fixture(params=KINDS)
def device(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[BlockDevice]:
    made: BlockDevice
    made = (
        FileDevice(tmp_path / "volume", create_bytes=SIZE) if request.param == "FileDevice" else SimDisk(SIZE)
    )
    yield made
    made.close()


def test_a_new_device_holds_zeros(device: BlockDevice) -> None:
    assert device.size_bytes == SIZE
    assert device.pread(SIZE, 0) == bytes(SIZE)
    assert list(device.data_extents(0, SIZE)) == []


def test_what_was_written_is_read_by_every_way(device: BlockDevice) -> None:
    data = random.Random(1).randbytes(3 * BLOCK)
    device.pwritev([data], 512)
    assert device.pread(len(data), 512) == data
    buffer = bytearray(b"\xee" * (len(data) + 2))
    device.pread_into(memoryview(buffer)[1:-1], 512)
    assert buffer == b"\xee" + data + b"\xee"
    assert device.pread_nowait(len(data), 512) == data
    assert device.pread(512, 0) == bytes(512)


def test_buffers_are_written_one_behind_the_other(device: BlockDevice) -> None:
    parts: list[Buffer] = [
        b"a" * 512,
        bytearray(b"b" * 1024),
        memoryview(b"c" * 4096)[1000:1512],
        b"",
        b"d" * 512,
    ]
    device.pwritev(parts, 1024)
    assert device.pread(2560, 1024) == b"a" * 512 + b"b" * 1024 + b"c" * 512 + b"d" * 512


def test_more_buffers_than_one_system_call_takes(device: BlockDevice) -> None:
    parts = [bytes([number & 0xFF]) * 8 for number in range(3000)]
    device.pwritev(parts, 4096)
    assert device.pread(24000, 4096) == b"".join(parts)


def test_more_bytes_than_one_system_call_takes(tmp_path: Path) -> None:
    """Buffers that end before, at and behind the places where a call ends."""
    sizes = (300 << 10, 212 << 10, 1, 700_000, 5)
    buffers = [bytes([number]) * size for number, size in enumerate(sizes, 1)]
    device = FileDevice(tmp_path / "volume", create_bytes=2 << 20)
    device.pwritev(buffers, 4096)
    assert device.pread(sum(sizes), 4096) == b"".join(buffers)
    device.close()


def test_a_buffer_may_be_used_again_after_writing(device: BlockDevice) -> None:
    buffer = bytearray(b"a" * BLOCK)
    device.pwritev([buffer], 0)
    buffer[:] = b"b" * BLOCK
    assert device.pread(BLOCK, 0) == b"a" * BLOCK


def test_what_was_read_does_not_change_with_the_device(device: BlockDevice) -> None:
    device.pwritev([b"a" * BLOCK], 0)
    read = device.pread(BLOCK, 0)
    warm = device.pread_nowait(BLOCK, 0)
    device.pwritev([b"b" * BLOCK], 0)
    assert read == warm == b"a" * BLOCK


def test_a_view_is_what_the_device_holds_and_can_be_written_elsewhere(device: BlockDevice) -> None:
    """Short ones and long ones; also what was written since the last view, and what is where it was again."""
    other = SimDisk(SIZE)
    rng = random.Random(1)
    for _ in range(3):
        content = rng.randbytes(SIZE)
        device.pwritev([content], 0)
        for offset, length in ((0, SIZE), (512, 32 * BLOCK), (5 * BLOCK + 512, BLOCK), (SIZE - 512, 512)):
            other.pwritev([device.view(length, offset)], offset)
            assert other.pread(length, offset) == content[offset : offset + length]
        device.drop_views()
    device.grow(2 * SIZE)
    device.pwritev([content], SIZE)
    assert bytes(device.view(SIZE, SIZE)) == content
    device.drop_views()


def test_a_view_behind_the_end_is_an_error(device: BlockDevice) -> None:
    for length in (BLOCK, SIZE):
        with pytest.raises(OSError):
            device.view(length, SIZE - 512)


def test_flushing_changes_nothing_that_is_read(device: BlockDevice) -> None:
    device.pwritev([b"a" * BLOCK], 0)
    device.flush()
    device.flush()
    assert device.pread(BLOCK, 0) == b"a" * BLOCK


def test_a_punched_range_reads_as_zeros_and_its_neighbours_stay(device: BlockDevice) -> None:
    device.pwritev([b"a" * 8 * BLOCK], 0)
    device.punch(BLOCK + 512, 3 * BLOCK)
    assert device.pread(8 * BLOCK, 0) == b"a" * (BLOCK + 512) + bytes(3 * BLOCK) + b"a" * (4 * BLOCK - 512)
    device.punch(0, 0)
    assert device.pread(512, 0) == b"a" * 512


def test_a_punched_range_gives_its_space_back(device: BlockDevice) -> None:
    device.pwritev([b"a" * 8 * BLOCK], 0)
    device.punch(2 * BLOCK, 3 * BLOCK)
    assert list(device.data_extents(0, SIZE)) == [(0, 2 * BLOCK), (5 * BLOCK, 3 * BLOCK)]
    assert device.size_bytes == SIZE


def test_extents_are_cut_to_the_range_that_was_asked_for(device: BlockDevice) -> None:
    device.pwritev([b"a" * 2 * BLOCK], 4 * BLOCK)
    assert list(device.data_extents(0, 4 * BLOCK)) == []
    assert list(device.data_extents(0, 5 * BLOCK)) == [(4 * BLOCK, BLOCK)]
    assert list(device.data_extents(5 * BLOCK + 512, 512)) == [(5 * BLOCK + 512, 512)]
    assert list(device.data_extents(6 * BLOCK, SIZE - 6 * BLOCK)) == []
    assert list(device.data_extents(0, 0)) == []


def test_reading_behind_the_end_is_an_error(device: BlockDevice) -> None:
    with pytest.raises(OSError) as failed:
        device.pread(1024, SIZE - 512)
    assert failed.value.errno == errno.EIO
    with pytest.raises(OSError):
        device.pread_into(bytearray(512), SIZE)
    assert device.pread(512, SIZE - 512) == bytes(512)


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["write", "write", "punch", "flush"]),
        st.integers(0, SIZE // 512 - 1),
        st.integers(1, 40),
    ),
    max_size=25,
)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40, deadline=None)
@given(steps=STEPS)
def test_any_device_is_an_array_of_bytes(
    kind: str, tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int, int]]
) -> None:
    made: BlockDevice
    if kind == "FileDevice":
        made = FileDevice(tmp_path_factory.mktemp("device") / "volume", create_bytes=SIZE)
    else:
        made = SimDisk(SIZE)
    rng = random.Random(len(steps))
    model = bytearray(SIZE)
    for step, sector, sectors in steps:
        offset, length = sector * 512, min(sectors * 512, SIZE - sector * 512)
        if step == "write":
            data = rng.randbytes(length)
            made.pwritev([data[:512], data[512:]], offset)
            model[offset : offset + length] = data
        elif step == "punch":
            made.punch(offset, length)
            model[offset : offset + length] = bytes(length)
        else:
            made.flush()
    assert made.pread(SIZE, 0) == model
    covered = bytearray(SIZE)
    last = 0
    for offset, length in made.data_extents(0, SIZE):
        assert offset >= last
        assert length > 0
        last = offset + length
        covered[offset:last] = model[offset:last]
    assert covered == model, "data lie outside of the extents that were reported"
    made.close()


# -- what only one of them does --


def test_a_file_keeps_its_content_and_its_size(tmp_path: Path) -> None:
    path = tmp_path / "volume"
    first = FileDevice(path, create_bytes=SIZE)
    first.pwritev([b"a" * BLOCK], BLOCK)
    first.flush()
    first.close()
    first.close()
    again = FileDevice(path, create_bytes=BLOCK)
    assert again.size_bytes == SIZE
    assert again.pread(BLOCK, BLOCK) == b"a" * BLOCK
    again.close()
    assert path.stat().st_mode & 0o077 == 0


def test_a_hint_changes_nothing(device: BlockDevice) -> None:
    device.pwritev([b"a" * 4096], 4096)
    for offset, length in ((0, 8192), (SIZE - 512, 4096), (SIZE, 1)):
        device.will_need(offset, length)
    assert device.pread(12288, 0) == bytes(4096) + b"a" * 4096 + bytes(4096)


def test_a_file_opened_for_reading_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "volume"
    path.write_bytes(bytes(SIZE))
    device = FileDevice(path, read_only=True)
    with pytest.raises(OSError) as failed:
        device.pwritev([b"a"], 0)
    assert failed.value.errno == errno.EBADF
    device.close()


def test_a_write_that_is_cut_goes_on_where_it_was_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = FileDevice(tmp_path / "volume", create_bytes=SIZE)
    pwritev = os.pwritev
    for cut in (1, 512, 700, 1500):
        monkeypatch.setattr(
            "os.pwritev", lambda fd, buffers, offset, cut=cut: pwritev(fd, [b"".join(buffers)[:cut]], offset)
        )
        device.pwritev([b"a" * 512, b"", b"b" * 512, memoryview(b"c" * 1024)], BLOCK)
        monkeypatch.undo()
        assert device.pread(2560, BLOCK) == b"a" * 512 + b"b" * 512 + b"c" * 1024 + bytes(512)
        device.punch(BLOCK, BLOCK)
    device.close()


def test_a_view_of_pages_that_are_gone_fails_and_does_not_end_the_process(tmp_path: Path) -> None:
    """As of a medium that cannot be read any more."""
    device = FileDevice(tmp_path / "journal", create_bytes=SIZE)
    other = FileDevice(tmp_path / "volume", create_bytes=SIZE)
    device.pwritev([b"a" * SIZE], 0)
    view = device.view(SIZE, 0)
    os.truncate(tmp_path / "journal", BLOCK)
    with pytest.raises(OSError):
        other.pwritev([view], 0)
    with pytest.raises(OSError):
        device.view(SIZE, 0)


def test_views_that_were_dropped_are_our_memory_no_more(tmp_path: Path) -> None:
    def resident_bytes() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")

    device = FileDevice(tmp_path / "journal", create_bytes=128 << 20)
    before = resident_bytes()
    views = [device.view(1 << 20, offset << 20) for offset in range(128)]
    assert resident_bytes() - before > (120 << 20)
    device.drop_views()
    assert resident_bytes() - before < (8 << 20)
    assert bytes(views[0]) == bytes(1 << 20)


def test_a_missing_file_is_not_made_unless_asked(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        FileDevice(tmp_path / "volume")


@pytest.mark.parametrize("seed", range(20))
def test_the_simulated_disk_loses_only_what_was_not_flushed(seed: int) -> None:
    rng = random.Random(seed)
    disk = SimDisk(SIZE)
    disk.pwritev([b"a" * SIZE], 0)
    disk.flush()
    disk.pwritev([b"b" * 8 * BLOCK], 0)
    disk.power_off(rng)
    content = disk.pread(SIZE, 0)
    assert content[8 * BLOCK :] == b"a" * (SIZE - 8 * BLOCK)
    for sector in range(8 * BLOCK // 512):
        assert content[sector * 512 : (sector + 1) * 512] in (b"a" * 512, b"b" * 512)


def test_the_simulated_disk_loses_all_some_or_nothing() -> None:
    seen = set()
    for seed in range(40):
        disk = SimDisk(SIZE)
        disk.pwritev([b"b" * 8 * BLOCK], 0)
        disk.power_off(random.Random(seed))
        survived = disk.pread(8 * BLOCK, 0).count(b"b" * 512)
        seen.add("all" if survived == 64 else "nothing" if survived == 0 else "some")
    assert seen == {"all", "some", "nothing"}


@pytest.mark.parametrize("what", ["reads", "writes", "flushes"])
def test_the_simulated_disk_fails_when_told_to(what: str) -> None:
    disk = SimDisk(SIZE)
    setattr(disk, f"fail_{what}", OSError(errno.EIO, "told to"))
    calls: dict[str, Callable[[], object]] = {
        "reads": lambda: disk.pread(512, 0),
        "writes": lambda: disk.pwritev([b"a"], 0),
        "flushes": disk.flush,
    }
    for name, call in calls.items():
        if name == what:
            with pytest.raises(OSError, match="told to"):
                call()
        else:
            call()


def test_a_cold_read_of_the_simulated_disk_would_block_once() -> None:
    disk = SimDisk(SIZE)
    disk.cold = True
    assert disk.pread_nowait(512, 0) is None
    disk.pread_into(bytearray(512), 0)
    assert disk.pread_nowait(512, 0) == bytes(512)
