"""The differential bitmap: what was marked stays marked, through any crash."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from crc32c import crc32c
from hypothesis import given
from hypothesis import strategies as st

from target.bitmap import BITS_PER_PAGE, PAGE_BYTES, BitmapStore, DifferentialBitmap
from target.journal.superblock import COPIES, SUPERBLOCK_BYTES, Superblock, VolumeEntry
from tests.simulation.sim_disk import SimDisk
from tests.unit.journal.format_document import fields
from tests.unit.journal.packs import GROUP_ID

EXTENT = 65536
PAGE_SPAN = BITS_PER_PAGE * EXTENT
"""The bytes of a volume that one page stands for."""
BITMAP_OFFSET = COPIES * SUPERBLOCK_BYTES
SIZES = {1: 10 * EXTENT + 512, 2: 2 * PAGE_SPAN + 3 * EXTENT, 3: 512}


def volumes() -> tuple[VolumeEntry, ...]:
    entries: list[VolumeEntry] = []
    page = 0
    for number, size in SIZES.items():
        count = max(1, -(-size // PAGE_SPAN))
        entries.append(VolumeEntry(number, f"volume{number}", size, 512, page, count))
        page += count
    return tuple(entries)


PAGES = sum(volume.page_count for volume in volumes())
SLOTS = 2


def superblock() -> Superblock:
    return Superblock(
        group_id=GROUP_ID,
        ring_offset=1 << 20,
        ring_bytes=1 << 20,
        bitmap_offset=BITMAP_OFFSET,
        bitmap_pages=PAGES,
        bitmap_slots=SLOTS,
        extent_bytes=EXTENT,
        volumes=volumes(),
    )


def disk() -> SimDisk:
    return SimDisk(BITMAP_OFFSET + SLOTS * PAGES * 2 * PAGE_BYTES)


def bitmap() -> DifferentialBitmap:
    return DifferentialBitmap(volumes(), EXTENT)


def save(device: SimDisk, store: BitmapStore, slot: int, content: DifferentialBitmap) -> list[int]:
    """Write what changed, durably; the offsets written."""
    writes = store.take_dirty(slot, content)
    for offset, page in writes:
        device.pwritev([page], offset)
    device.flush()
    return [offset for offset, _ in writes]


def place(slot: int, page: int, copy: int) -> int:
    return BITMAP_OFFSET + ((slot * PAGES + page) * 2 + copy) * PAGE_BYTES


RANGES = st.sampled_from(sorted(SIZES)).flatmap(
    lambda number: st.integers(0, SIZES[number] // 512 - 1).flatmap(
        lambda sector: st.tuples(
            st.just(number),
            st.just(sector * 512),
            st.integers(1, min(40 * EXTENT // 512, SIZES[number] // 512 - sector)).map(lambda n: n * 512),
        )
    )
)


def touched(ranges: list[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    """Every extent that the ranges touch, cut off at the volume's end."""
    found = {
        (number, index * EXTENT)
        for number, offset, length in ranges
        for index in range(offset // EXTENT, (offset + length - 1) // EXTENT + 1)
    }
    return [(number, offset, min(EXTENT, SIZES[number] - offset)) for number, offset in sorted(found)]


# -- in memory --


@given(ranges=st.lists(RANGES, max_size=10))
def test_every_extent_that_a_range_touches_is_marked(ranges: list[tuple[int, int, int]]) -> None:
    marked = bitmap()
    for each in ranges:
        marked.mark(*each)
    assert list(marked.extents()) == touched(ranges)
    assert bool(marked) == bool(ranges)
    assert marked.marked_bytes == len(touched(ranges)) * EXTENT


@given(ranges=st.lists(RANGES, min_size=1, max_size=5), rng=st.randoms(use_true_random=False))
def test_a_cleared_extent_is_cleared_alone(ranges: list[tuple[int, int, int]], rng: random.Random) -> None:
    marked = bitmap()
    for each in ranges:
        marked.mark(*each)
    extents = touched(ranges)
    gone = rng.choice(extents)
    marked.clear(gone[0], gone[1])
    assert list(marked.extents()) == [extent for extent in extents if extent != gone]


def test_all_marked_is_every_volume_to_its_end() -> None:
    marked = bitmap()
    marked.mark_all()
    total = dict.fromkeys(SIZES, 0)
    for number, offset, length in marked.extents():
        assert offset == total[number]
        total[number] += length
    assert total == SIZES


def test_a_range_beyond_the_end_marks_up_to_the_end() -> None:
    marked = bitmap()
    marked.mark(3, 0, EXTENT)
    assert list(marked.extents()) == [(3, 0, 512)]


def test_marking_while_walking_is_allowed() -> None:
    marked = bitmap()
    marked.mark(1, 0, EXTENT)
    seen = []
    for extent in marked.extents():
        seen.append(extent)
        marked.clear(extent[0], extent[1])
        if extent[1] == 0:
            marked.mark(1, 9 * EXTENT, 512)
    assert seen == [(1, 0, EXTENT), (1, 9 * EXTENT, EXTENT)]
    assert not marked


# -- on the medium --


@given(first=st.lists(RANGES, max_size=6), second=st.lists(RANGES, max_size=6))
def test_what_was_written_is_loaded(
    first: list[tuple[int, int, int]], second: list[tuple[int, int, int]]
) -> None:
    device = disk()
    store = BitmapStore(device, superblock())
    content = store.create(1)
    for ranges in (first, second):
        for each in ranges:
            content.mark(*each)
        save(device, store, 1, content)
    again = BitmapStore(device, superblock()).load(1)
    assert list(again.extents()) == list(content.extents())
    assert not again.dirty_pages


def test_only_pages_that_changed_are_written_each_over_its_older_copy() -> None:
    device = disk()
    store = BitmapStore(device, superblock())
    content = store.create(0)
    first = save(device, store, 0, content)
    assert sorted(first) == sorted(place(0, page, copy) for page in range(PAGES) for copy in (0, 1))
    content.mark(2, PAGE_SPAN, 512)
    page = volumes()[1].first_page + 1
    copies = [save(device, store, 0, content)]
    assert save(device, store, 0, content) == []
    content.clear(2, PAGE_SPAN)
    copies.append(save(device, store, 0, content))
    assert copies == [[place(0, page, 1)], [place(0, page, 0)]]


def test_a_page_is_byte_for_byte_what_the_document_says() -> None:
    device = disk()
    store = BitmapStore(device, superblock())
    content = store.create(1)
    save(device, store, 1, content)
    content.mark(2, PAGE_SPAN + 9 * EXTENT, EXTENT)
    (offset,) = save(device, store, 1, content)
    page = volumes()[1].first_page + 1
    parts = {
        0: b"REPLBITM",
        8: bytes.fromhex("0100"),
        10: bytes.fromhex("0100"),
        12: page.to_bytes(4, "little"),
        16: bytes.fromhex("0300000000000000"),
        24: GROUP_ID,
        40: bytes(20),
        60: bytes(4),
        64: bytes.fromhex("0002").ljust(4032, b"\0"),
    }
    assert [(start, len(value)) for start, value in parts.items()] == fields("Bitmap pages")
    expected = bytearray(b"".join(parts.values()))
    expected[60:64] = crc32c(bytes(expected)).to_bytes(4, "little")
    assert offset == place(1, page, 1)
    assert device.pread(PAGE_BYTES, offset) == bytes(expected)


@pytest.mark.parametrize("seed", range(20))
def test_a_torn_page_leaves_the_one_before(seed: int) -> None:
    rng = random.Random(seed)
    device = disk()
    store = BitmapStore(device, superblock())
    content = store.create(0)
    content.mark(1, 3 * EXTENT, 512)
    save(device, store, 0, content)
    before = list(content.extents())
    content.mark(1, 5 * EXTENT, 512)
    after = list(content.extents())
    for offset, page in store.take_dirty(0, content):
        device.pwritev([page], offset)
    device.power_off(rng)
    assert list(BitmapStore(device, superblock()).load(0).extents()) in (before, after)


@pytest.mark.parametrize("spoil", ["header", "bits", "crc", "zeros"])
def test_a_page_without_a_good_copy_counts_as_all_marked(spoil: str) -> None:
    device = disk()
    store = BitmapStore(device, superblock())
    content = store.create(0)
    save(device, store, 0, content)
    content.mark(2, PAGE_SPAN, 512)
    save(device, store, 0, content)
    page = volumes()[1].first_page + 1
    for copy in (0, 1):
        if spoil == "zeros":
            device.corrupt(place(0, page, copy), bytes(PAGE_BYTES))
        else:
            device.corrupt(place(0, page, copy) + {"header": 12, "bits": 100, "crc": 61}[spoil], b"\xff")
    again = BitmapStore(device, superblock())
    loaded = again.load(0)
    assert list(loaded.extents()) == [
        (2, PAGE_SPAN + index * EXTENT, EXTENT) for index in range(BITS_PER_PAGE)
    ]
    save(device, again, 0, loaded)
    assert list(BitmapStore(device, superblock()).load(0).extents()) == list(loaded.extents())


def test_a_slot_that_was_never_written_counts_as_all_marked() -> None:
    loaded = BitmapStore(disk(), superblock()).load(1)
    everything = bitmap()
    everything.mark_all()
    assert list(loaded.extents()) == list(everything.extents())


@pytest.mark.parametrize("other", ["slot", "group"])
def test_a_page_of_another_place_is_not_believed(other: str) -> None:
    device = disk()
    theirs = superblock()
    if other == "group":
        theirs = replace(theirs, group_id=bytes(16))
    store = BitmapStore(device, theirs)
    content = store.create(0)
    for _ in range(2):
        content.dirty_pages.update(range(PAGES))
        save(device, store, 0, content)
    if other == "slot":
        half = PAGES * 2 * PAGE_BYTES
        device.corrupt(BITMAP_OFFSET + half, device.pread(half, BITMAP_OFFSET))
    loaded = BitmapStore(device, superblock()).load(1 if other == "slot" else 0)
    everything = bitmap()
    everything.mark_all()
    assert list(loaded.extents()) == list(everything.extents())


def test_a_slot_that_is_used_again_begins_empty_whatever_was_there() -> None:
    device = disk()
    store = BitmapStore(device, superblock())
    old = store.create(0)
    for _ in range(3):
        old.mark_all()
        old.dirty_pages.update(range(PAGES))
        save(device, store, 0, old)
    fresh = BitmapStore(device, superblock())
    content = fresh.create(0)
    assert not content
    save(device, fresh, 0, content)
    assert not BitmapStore(device, superblock()).load(0)
