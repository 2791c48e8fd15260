"""The pack index, against a plain list."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from target.journal.pack_index import PackIndex
from target.journal.record import Lsn, SequenceNumber
from target.journal.superblock import Position

STEPS = st.lists(st.tuples(st.integers(1, 9), st.integers(1, 3)), max_size=40)


def positions(steps: list[tuple[int, int]]) -> list[Position]:
    """Boundaries of packs of so many blocks with so many records."""
    made: list[Position] = []
    lsn, sequence = 7 * 4096, 100
    for blocks, records in steps:
        made.append(Position(Lsn(lsn), SequenceNumber(sequence), bytes([len(made)]) * 32))
        lsn += blocks * 4096
        sequence += records
    return made


def indexed(model: list[Position]) -> PackIndex:
    index = PackIndex()
    for position in model:
        index.append(position)
    return index


@given(steps=STEPS, sequence=st.integers(90, 240))
def test_the_latest_boundary_at_or_before_a_sequence_number_is_found(
    steps: list[tuple[int, int]], sequence: int
) -> None:
    model = positions(steps)
    expected = [position for position in model if position.sequence <= sequence]
    assert indexed(model).before(sequence) == (expected[-1] if expected else None)


@given(steps=STEPS, lsn=st.integers(0, 400 * 4096))
def test_the_latest_boundary_at_or_before_an_lsn_is_found(steps: list[tuple[int, int]], lsn: int) -> None:
    model = positions(steps)
    expected = [position for position in model if position.lsn <= lsn]
    assert indexed(model).before_lsn(lsn) == (expected[-1] if expected else None)


@given(steps=STEPS, lsn=st.integers(0, 400 * 4096))
def test_the_earliest_boundary_at_or_behind_an_lsn_is_found(steps: list[tuple[int, int]], lsn: int) -> None:
    model = positions(steps)
    expected = [position for position in model if position.lsn >= lsn]
    assert indexed(model).behind_lsn(lsn) == (expected[0] if expected else None)


@given(steps=STEPS, blocks=st.integers(0, 60), step=st.sampled_from([-1, 0, 1, 2048]))
def test_what_begins_below_the_tail_is_forgotten(
    steps: list[tuple[int, int]], blocks: int, step: int
) -> None:
    model = positions(steps)
    lsn = max(0, blocks * 4096 + step)
    index = indexed(model)
    index.forget_before(lsn)
    kept = [position for position in model if position.lsn >= lsn]
    assert [index.boundary(number) for number in range(len(index))] == kept


def test_a_cleared_index_knows_nothing() -> None:
    index = indexed(positions([(1, 1)] * 5))
    assert len(index) == 5
    index.clear()
    assert len(index) == 0
    assert index.before(1 << 60) is None
