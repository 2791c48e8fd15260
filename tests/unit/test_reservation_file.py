"""Persistent reservations in a file: durable before they are answered, whole, and never guessed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from target.errors import IntegrityError
from target.loop import Loop
from target.reservation_file import ReservationFile, decode, encode
from target.scsi.command import Nexus
from target.scsi.reservations import ALL_REGISTRANTS, Reservations, Type
from target.volume import Buffer, VolumeError

NEXUS = Nexus("iqn.2024-01.example:host,i,0x00023d000001", "iqn.2024-01.example:target,t,0x0001")
HELD = Reservations({NEXUS: 7}, Type.WRITE_EXCLUSIVE, NEXUS, persists=True)


class Answer:
    def __init__(self) -> None:
        self.error: VolumeError | None = None
        self.answered = False

    def done(self, data: Buffer | None = None) -> None:
        self.answered = True

    def failed(self, error: VolumeError) -> None:
        self.answered, self.error = True, error


def save(path: Path, state: Reservations) -> Answer:
    loop = Loop()
    answer = Answer()
    ReservationFile(path, loop).save(state, answer)
    while not answer.answered:
        loop.turn(1.0)
    loop.close()
    return answer


def load(path: Path) -> Reservations:
    loop = Loop()
    try:
        return ReservationFile(path, loop).load()
    finally:
        loop.close()


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "directory" / "one"
    assert load(path) == Reservations()
    assert save(path, HELD).error is None
    assert load(path) == HELD
    assert save(path, Reservations()).error is None
    assert load(path) == Reservations()
    assert [each.name for each in path.parent.iterdir()] == ["one"]


def test_what_cannot_be_saved_is_told_and_the_old_state_stays(tmp_path: Path) -> None:
    path = tmp_path / "one"
    assert save(path, HELD).error is None
    (tmp_path / "one.new").mkdir()
    assert save(path, Reservations()).error is VolumeError.WRITE_FAILED
    assert load(path) == HELD


nexuses = st.builds(Nexus, st.text(), st.text(), st.integers(1, 65535))


@given(
    st.dictionaries(nexuses, st.integers(1, 2**64 - 1), min_size=1, max_size=5),
    st.none() | st.sampled_from(Type),
)
def test_states_are_read_as_written(keys: dict[Nexus, int], kind: Type | None) -> None:
    holder = None if kind is None or kind in ALL_REGISTRANTS else list(keys)[-1]
    state = Reservations(keys, kind, holder, persists=True)
    assert decode(encode(state)) == state


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"type": 4},
        {"holder": 1},
        {"holder": -1},
        {"holder": None},
        {"type": None},
        {"type": 8},
        {"registrations": []},
        {"unknown": 1},
    ],
)
def test_a_damaged_file_is_an_error_that_names_it(tmp_path: Path, change: dict[str, object]) -> None:
    path = tmp_path / "one"
    path.write_text(json.dumps(json.loads(encode(HELD)) | change))
    with pytest.raises(IntegrityError, match=str(path)):
        load(path)


@given(st.binary(max_size=100))
def test_garbage_is_refused(raw: bytes) -> None:
    with pytest.raises(Exception) as caught:
        decode(raw)
    assert isinstance(caught.value, ValueError)
