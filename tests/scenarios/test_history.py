"""The checker of the scenarios finds what it is there to find."""

from __future__ import annotations

import random

import pytest

from tests.scenarios.history import BLOCK_BYTES, History, Violation, Write, stamp

VOLUMES = {"data": 16, "log": 8}


class Medium:
    """Two volumes that take writes when they are told to."""

    def __init__(self) -> None:
        self.content = {name: bytearray(count * BLOCK_BYTES) for name, count in VOLUMES.items()}
        self.history = History(VOLUMES)

    def begin(self, volume: str, block: int, count: int = 1, fua: bool = False) -> Write:
        write = self.history.submit(volume, block, count, fua)
        assert write is not None
        return write

    def apply(self, write: Write) -> None:
        start = write.block * BLOCK_BYTES
        self.content[write.volume][start : start + write.count * BLOCK_BYTES] = write.data()

    def write(self, volume: str, block: int, count: int = 1, applied: bool = True) -> Write:
        write = self.begin(volume, block, count)
        if applied:
            self.apply(write)
        self.history.acknowledge(write)
        return write

    def bytes(self) -> dict[str, bytes]:
        return {name: bytes(content) for name, content in self.content.items()}


@pytest.fixture
def medium() -> Medium:
    return Medium()


def test_every_prefix_of_a_random_order_is_one_and_nothing_else(medium: Medium) -> None:
    chance = random.Random(4)
    writes = [
        medium.write(volume, chance.randrange(VOLUMES[volume] - 3), chance.randrange(1, 4), applied=False)
        for volume in chance.choices(list(VOLUMES), k=60)
    ]
    for write in writes:
        before = medium.bytes()
        medium.apply(write)
        medium.history.cut(medium.bytes())
        holed = {name: bytearray(content) for name, content in medium.bytes().items()}
        place = slice(write.block * BLOCK_BYTES, (write.block + 1) * BLOCK_BYTES)
        if write.count > 1:
            holed[write.volume][place] = before[write.volume][place]
            with pytest.raises(Violation, match="another block is there"):
                medium.history.cut({name: bytes(content) for name, content in holed.items()})
    assert medium.history.image() == medium.bytes()


def test_a_hole_in_the_order_of_two_volumes_is_found(medium: Medium) -> None:
    medium.write("data", 0)
    medium.write("log", 0, applied=False)
    medium.write("data", 1)
    with pytest.raises(Violation, match="not a prefix: block 0 of log"):
        medium.history.cut(medium.bytes())


def test_writes_outstanding_together_may_come_in_any_order(medium: Medium) -> None:
    first, second = medium.begin("data", 0), medium.begin("log", 0)
    medium.apply(second)
    medium.history.acknowledge(second)
    medium.history.cut(medium.bytes())
    medium.history.acknowledge(first)
    medium.history.cut(medium.bytes())
    medium.write("data", 5)
    with pytest.raises(Violation, match="block 0 of data"):
        medium.history.cut(medium.bytes())


def test_an_old_version_of_a_block_is_found(medium: Medium) -> None:
    medium.write("data", 3)
    medium.write("data", 3, applied=False)
    medium.history.cut(medium.bytes())
    medium.write("log", 1)
    with pytest.raises(Violation, match="not a prefix"):
        medium.history.cut(medium.bytes())


def test_a_block_at_the_wrong_place_or_torn_is_found(medium: Medium) -> None:
    write = medium.write("data", 2)
    medium.content["data"][3 * BLOCK_BYTES : 4 * BLOCK_BYTES] = stamp("data", 2, write.sequence)
    with pytest.raises(Violation, match="no whole stamp"):
        medium.history.cut(medium.bytes())
    medium.content["data"][3 * BLOCK_BYTES : 4 * BLOCK_BYTES] = bytes(BLOCK_BYTES)
    medium.content["data"][2 * BLOCK_BYTES + 300] ^= 1
    with pytest.raises(Violation, match="no whole stamp"):
        medium.history.cut(medium.bytes())


def test_what_was_flushed_is_required(medium: Medium) -> None:
    lost = medium.write("data", 1, applied=False)
    moment = medium.history.now()
    medium.history.flushed("log", moment)
    cut = medium.history.cut(medium.bytes())
    medium.history.require(cut, medium.history.durable(), "flushed")
    medium.history.flushed("data", moment)
    assert medium.history.durable() == [lost]
    with pytest.raises(Violation, match="lost"):
        medium.history.require(cut, medium.history.durable(), "flushed")


def test_fua_is_as_good_as_a_flush(medium: Medium) -> None:
    write = medium.begin("data", 1, fua=True)
    medium.history.acknowledge(write)
    assert medium.history.durable() == [write]


def test_lost_writes_are_forgotten_and_must_not_come_back(medium: Medium) -> None:
    medium.write("data", 1)
    prefix = medium.bytes()
    lost = medium.write("data", 1)
    assert medium.history.truncate(medium.history.cut(prefix)) == 1
    with pytest.raises(Violation, match=f"holds write {lost.sequence}, which never wrote there"):
        medium.history.cut(medium.bytes())
    assert medium.history.image() == prefix


def test_after_compaction_the_last_writes_are_required_still(medium: Medium) -> None:
    medium.write("data", 1, 3)
    old = medium.bytes()
    last = medium.write("data", 2)
    medium.history.compact()
    medium.history.cut(medium.bytes())
    assert medium.history.image() == medium.bytes()
    with pytest.raises(Violation, match="block 2 of data holds write 1"):
        medium.history.cut(old)
    with pytest.raises(Violation, match="block 1 of data holds write 0"):
        medium.history.cut({name: bytes(len(content)) for name, content in old.items()})
    medium.write("log", 0, applied=False)
    medium.history.require(medium.history.cut(medium.bytes()), [last], "there")


def test_blocks_with_a_write_outstanding_are_taken(medium: Medium) -> None:
    write = medium.begin("data", 4, 3)
    assert medium.history.submit("data", 6, 1, False) is None
    medium.history.drop(write)
    assert medium.history.submit("data", 6, 1, False) is not None
