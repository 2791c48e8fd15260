"""The overlay, against a plain array of bytes."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from target.overlay import (
    GRANULE_BYTES,
    ZERO,
    Generation,
    Granules,
    Piece,
    Source,
    above,
    newest,
    plan_read,
)

SECTOR = 512
VOLUME_SECTORS = 5 * 8 + 3
"""Five granules and a part of one."""
VOLUME_BYTES = VOLUME_SECTORS * SECTOR


class Model:
    """A volume, a journal, generations newest first, and what the volume should hold."""

    def __init__(self, seed: int = 0) -> None:
        rng = random.Random(seed)
        self.volume = bytearray(rng.randbytes(VOLUME_BYTES))
        self.expected = bytearray(self.volume)
        self.journal = bytearray(rng.randbytes(3 * SECTOR))
        self.generations = [Generation()]
        self._rng = rng

    def put(self, sector: int, sectors: int) -> None:
        offset, length = sector * SECTOR, sectors * SECTOR
        data = self._rng.randbytes(length)
        self.generations[0].put(1, offset, length, len(self.journal))
        self.journal += data
        self.expected[offset : offset + length] = data

    def zero(self, sector: int, sectors: int) -> None:
        offset, length = sector * SECTOR, sectors * SECTOR
        self.generations[0].put(1, offset, length, ZERO)
        self.expected[offset : offset + length] = bytes(length)

    def freeze(self) -> None:
        self.generations.insert(0, Generation())

    def apply_oldest(self) -> None:
        """Write the oldest generation to the volume, then drop it whole."""
        oldest = self.generations.pop()
        layer = oldest.granules.get(1, {})
        self.volume[:] = self._assembled([layer], 0, VOLUME_BYTES)
        if not self.generations:
            self.generations = [Generation()]

    def layers(self) -> list[Granules]:
        return [generation.granules.get(1, {}) for generation in self.generations]

    def read(self, sector: int, sectors: int) -> bytes:
        """By all layers, by those that hold something, and whole granules by their newest layer alone."""
        layers, offset, length = self.layers(), sector * SECTOR, sectors * SECTOR
        answer = self._assembled(layers, offset, length)
        assert self._assembled(above(layers, offset, length), offset, length) == answer
        for at in range(-offset % GRANULE_BYTES, length - GRANULE_BYTES + 1, GRANULE_BYTES):
            granule = (offset + at) // GRANULE_BYTES
            place = newest(layers, granule)
            if place is None:
                expected = bytes(self.volume[offset + at : offset + at + GRANULE_BYTES])
            elif isinstance(place, int):
                expected = bytes(GRANULE_BYTES)
                if place != ZERO:
                    expected = bytes(self.journal[place : place + GRANULE_BYTES])
            else:
                continue
            assert answer[at : at + GRANULE_BYTES] == expected
        return answer

    def _assembled(self, layers: list[Granules], offset: int, length: int) -> bytes:
        answer = bytearray(b"\xee" * length)
        for source, position, size, at in plan_read(layers, offset, length):
            assert 0 < size <= length - at
            if source is Source.ZERO:
                answer[at : at + size] = bytes(size)
            else:
                origin = self.volume if source is Source.VOLUME else self.journal
                assert 0 <= position <= len(origin) - size
                answer[at : at + size] = origin[position : position + size]
        return bytes(answer)


RANGES = st.integers(0, VOLUME_SECTORS - 1).flatmap(
    lambda sector: st.tuples(st.just(sector), st.integers(1, VOLUME_SECTORS - sector))
)
SHORT = st.integers(0, VOLUME_SECTORS - 1).flatmap(
    lambda sector: st.tuples(st.just(sector), st.integers(1, min(3, VOLUME_SECTORS - sector)))
)
ALIGNED = st.tuples(st.integers(0, 4), st.integers(1, 5)).map(
    lambda pair: (pair[0] * 8, min(pair[1], 5 - pair[0]) * 8)
)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["put", "zero"]), RANGES | SHORT | ALIGNED),
        st.tuples(st.sampled_from(["freeze", "apply"]), st.just((0, 0))),
    ),
    max_size=60,
)


@settings(max_examples=300)
@given(steps=STEPS, reads=st.lists(RANGES, max_size=4))
def test_reads_see_the_newest_content(
    steps: list[tuple[str, tuple[int, int]]], reads: list[tuple[int, int]]
) -> None:
    model = Model()
    for step, where in steps:
        if step == "put":
            model.put(*where)
        elif step == "zero":
            model.zero(*where)
        elif step == "freeze":
            model.freeze()
        else:
            model.apply_oldest()
    for sector, sectors in [(0, VOLUME_SECTORS), *reads]:
        start = sector * SECTOR
        assert model.read(sector, sectors) == model.expected[start : start + sectors * SECTOR]


@given(sectors=st.lists(st.tuples(st.integers(0, 7), st.booleans()), min_size=20, max_size=200))
def test_a_granule_written_sector_by_sector_stays_small(sectors: list[tuple[int, bool]]) -> None:
    model = Model()
    for sector, zeros in sectors:
        if zeros:
            model.zero(sector, 1)
        else:
            model.put(sector, 1)
    value = model.layers()[0][0]
    assert isinstance(value, tuple)
    assert len(value) <= 9
    assert model.read(0, 8) == model.expected[:GRANULE_BYTES]


def test_sequential_writes_are_read_in_one_piece() -> None:
    generation = Generation()
    for granule in range(8):
        generation.put(1, granule * GRANULE_BYTES, GRANULE_BYTES, 100_000 + granule * GRANULE_BYTES)
    whole = plan_read([generation.granules[1]], 1024, 7 * GRANULE_BYTES)
    assert whole == [Piece(Source.JOURNAL, 101_024, 7 * GRANULE_BYTES, 0)]


def test_a_large_write_and_large_zeros_are_one_piece_each() -> None:
    generation = Generation()
    generation.put(1, 0, 16 * GRANULE_BYTES, 4096)
    generation.put(1, 16 * GRANULE_BYTES, 16 * GRANULE_BYTES, ZERO)
    assert plan_read([generation.granules[1]], 0, 40 * GRANULE_BYTES) == [
        Piece(Source.JOURNAL, 4096, 16 * GRANULE_BYTES, 0),
        Piece(Source.ZERO, 0, 16 * GRANULE_BYTES, 16 * GRANULE_BYTES),
        Piece(Source.VOLUME, 32 * GRANULE_BYTES, 8 * GRANULE_BYTES, 32 * GRANULE_BYTES),
    ]


def test_without_layers_everything_comes_from_the_volume() -> None:
    assert plan_read([], 512, 9000 * 512) == [Piece(Source.VOLUME, 512, 9000 * 512, 0)]


def test_volumes_do_not_see_each_other() -> None:
    generation = Generation()
    generation.put(1, 0, GRANULE_BYTES, 100)
    generation.put(2, 0, GRANULE_BYTES, 200)
    assert plan_read([generation.granules[1]], 0, 512) == [Piece(Source.JOURNAL, 100, 512, 0)]
    assert plan_read([generation.granules[2]], 0, 512) == [Piece(Source.JOURNAL, 200, 512, 0)]


def test_a_generation_without_puts_is_empty() -> None:
    generation = Generation(4096)
    assert not generation
    generation.put(1, 512, 512, ZERO)
    assert generation
