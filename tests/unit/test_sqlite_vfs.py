"""The demo's SQLite VFS: a database on one logical unit, its rollback journal on another, a crash anywhere.

Both logical units write into one log: its order is what a consistency group keeps. The same log tells what
happens when a copy does not keep it.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import apsw
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scripts.demonstration.ledger import Audit, Ledger, audit
from scripts.demonstration.lun_file import HEADER_BYTES, LunFile, LunFull
from scripts.demonstration.sqlite_vfs import LunVfs, connect

UNITS = ("database", "journal")
UNIT_BYTES = 1 << 20
BLOCK_BYTES = 512


@dataclass(frozen=True, slots=True)
class Written:
    """One write, or with no data one flush, of a logical unit."""

    unit: str
    offset: int
    data: bytes | None


@dataclass
class MemoryUnit:
    """A logical unit in memory that logs what it is told."""

    name: str = "unit"
    log: list[Written] = field(default_factory=list)
    block_size_bytes: int = BLOCK_BYTES
    content: bytearray = field(default_factory=lambda: bytearray(UNIT_BYTES))

    @property
    def block_count(self) -> int:
        return len(self.content) // self.block_size_bytes

    def read(self, lba: int, blocks: int) -> bytes:
        assert 0 <= lba <= lba + blocks <= self.block_count
        return bytes(self.content[lba * self.block_size_bytes : (lba + blocks) * self.block_size_bytes])

    def write(self, lba: int, data: bytes) -> None:
        assert data
        assert len(data) % self.block_size_bytes == 0
        assert lba * self.block_size_bytes + len(data) <= len(self.content)
        self.content[lba * self.block_size_bytes : lba * self.block_size_bytes + len(data)] = data
        self.log.append(Written(self.name, lba * self.block_size_bytes, bytes(data)))

    def flush(self) -> None:
        self.log.append(Written(self.name, 0, None))


_names = itertools.count()


class Bank:
    """A ledger on two logical units, opened by a VFS with a name of its own."""

    def __init__(self, units: dict[str, MemoryUnit]) -> None:
        self.name = f"test-{next(_names)}"
        self.vfs = LunVfs(self.name, units["database"], units["journal"])
        self.connection = connect(self.vfs, self.name)

    def close(self) -> None:
        self.connection.close()
        self.vfs.unregister()


@dataclass(frozen=True, slots=True)
class History:
    """Everything that was written, and where in it what was committed: the tables first, then transfers."""

    log: Sequence[Written]
    committed: Sequence[int]

    def transfers_committed(self, cut: int) -> int:
        """How many transfers the application had been told of at `cut`; -1 before the tables were there."""
        return sum(position <= cut for position in self.committed) - 1


@pytest.fixture(scope="module")
def history() -> History:
    log: list[Written] = []
    bank = Bank({name: MemoryUnit(name, log) for name in UNITS})
    ledger = Ledger(bank.connection, seed=1)
    committed = []
    ledger.create()
    committed.append(len(log))
    for _ in range(25):
        ledger.transfer()
        committed.append(len(log))
    bank.close()
    return History(log, committed)


def units_after(writes: Iterator[Written] | Sequence[Written]) -> dict[str, MemoryUnit]:
    units = {name: MemoryUnit(name) for name in UNITS}
    for written in writes:
        if written.data is not None:
            content = units[written.unit].content
            content[written.offset : written.offset + len(written.data)] = written.data
    return units


def audit_after(writes: Sequence[Written]) -> Audit | None:
    """What a database holds that is opened after these writes; None if it has no tables yet."""
    bank = Bank(units_after(writes))
    try:
        if bank.connection.execute("SELECT count(*) FROM sqlite_schema").get == 0:
            return None
        return audit(bank.connection)
    finally:
        bank.close()


def assert_holds_everything_committed(history: History, cut: int, found: Audit | None) -> None:
    """The transfers the application knows of are there, and at most the one that it was waiting for."""
    committed = history.transfers_committed(cut)
    if found is None:
        assert committed < 0, f"cut {cut}: the tables are gone"
    else:
        assert not found.faults, f"cut {cut}: {found.faults}"
        assert committed <= found.transfers <= committed + 1, f"cut {cut}"


def test_history_uses_both_volumes_and_flushes_both(history: History) -> None:
    for name in UNITS:
        assert sum(written.unit == name and written.data is None for written in history.log) >= 25
        assert sum(written.unit == name and written.data is not None for written in history.log) >= 25


def test_crash_after_any_write_keeps_every_committed_transaction(history: History) -> None:
    for cut in range(len(history.log) + 1):
        assert_holds_everything_committed(history, cut, audit_after(history.log[:cut]))


def unflushed(log: Sequence[Written], cut: int) -> list[int]:
    """Positions of the writes before `cut` that no later flush of their own logical unit covers."""
    open_writes: list[int] = []
    for position, written in enumerate(log[:cut]):
        if written.data is None:
            open_writes = [other for other in open_writes if log[other].unit != written.unit]
        else:
            open_writes.append(position)
    return open_writes


@pytest.mark.parametrize("kept_share", [0.0, 0.5])
def test_crash_that_loses_unflushed_writes_keeps_every_committed_transaction(
    history: History, kept_share: float
) -> None:
    chance = random.Random(7)
    for cut in range(len(history.log) + 1):
        lost = {position for position in unflushed(history.log, cut) if chance.random() >= kept_share}
        survived = [written for position, written in enumerate(history.log[:cut]) if position not in lost]
        assert_holds_everything_committed(history, cut, audit_after(survived))


@pytest.mark.parametrize("late", UNITS)
def test_copy_without_the_order_across_volumes_is_found_out(history: History, late: str) -> None:
    """The checks above can fail: a volume that is behind the other by a few writes breaks the database."""
    broken = 0
    for cut in range(history.committed[0], len(history.log)):
        behind = max(0, cut - 12)
        writes = [
            written
            for position, written in enumerate(history.log[:cut])
            if written.unit != late or position < behind
        ]
        try:
            found = audit_after(writes)
            broken += found is not None and bool(found.faults)
        except apsw.CorruptError:
            broken += 1
    assert broken > 0


def test_commit_is_flushed_before_the_application_hears_of_it(history: History) -> None:
    for position in history.committed:
        assert not unflushed(history.log, position)


class TestLunFile:
    """The file below the VFS."""

    def test_length_and_content_survive_a_new_start(self) -> None:
        unit = MemoryUnit()
        file = LunFile(unit)
        file.create()
        file.write(5, b"hello")
        file.sync()
        again = LunFile(unit)
        assert (again.exists, again.length, again.read(0, 100)) == (True, 10, bytes(5) + b"hello")

    def test_deleted_file_is_gone_after_a_new_start(self) -> None:
        unit = MemoryUnit()
        file = LunFile(unit)
        file.create()
        file.write(0, b"x" * 1000)
        file.sync()
        file.delete()
        assert not LunFile(unit).exists
        file.create()
        file.write(2000, b"y")
        assert file.read(0, 2001) == bytes(2000) + b"y"

    def test_foreign_content_is_no_file(self) -> None:
        unit = MemoryUnit()
        unit.content[:] = random.Random(3).randbytes(len(unit.content))
        assert not LunFile(unit).exists

    def test_header_with_a_flipped_bit_is_no_file(self) -> None:
        unit = MemoryUnit()
        LunFile(unit).create()
        unit.content[12] ^= 1
        assert not LunFile(unit).exists

    def test_file_larger_than_its_unit_is_refused(self) -> None:
        file = LunFile(MemoryUnit())
        file.create()
        file.write(UNIT_BYTES - HEADER_BYTES - 1, b"z")
        with pytest.raises(LunFull):
            file.write(UNIT_BYTES - HEADER_BYTES, b"z")

    def test_adjoining_writes_travel_together_and_others_in_order(self) -> None:
        unit = MemoryUnit()
        file = LunFile(unit)
        file.create()
        unit.log.clear()
        file.write(0, b"a" * 512)
        file.write(512, b"b" * 512)
        file.write(2048, b"d" * 512)
        file.write(1024, b"c" * 512)
        file.sync()
        writes = [(w.offset - HEADER_BYTES, len(w.data)) for w in unit.log if w.data is not None and w.offset]
        assert writes == [(0, 2560), (1024, 512)]  # the gap before 2048 went out as zeros, in one write
        assert unit.log[-1].data is None

    @settings(max_examples=150, deadline=None)
    @given(
        st.sampled_from([512, 4096]),
        st.lists(
            st.one_of(
                st.tuples(st.just("write"), st.integers(0, 9000), st.binary(min_size=1, max_size=5000)),
                st.tuples(st.just("truncate"), st.integers(0, 12000), st.just(b"")),
                st.tuples(st.just("read"), st.integers(0, 12000), st.just(b"")),
                st.tuples(st.just("sync"), st.just(0), st.just(b"")),
            ),
            max_size=12,
        ),
    )
    def test_behaves_like_a_file(self, block_bytes: int, steps: list[tuple[str, int, bytes]]) -> None:
        unit = MemoryUnit(block_size_bytes=block_bytes)
        unit.content[HEADER_BYTES:] = b"\xee" * (
            len(unit.content) - HEADER_BYTES
        )  # what somebody left behind
        file = LunFile(unit)
        file.create()
        model = bytearray()
        for step, number, data in steps:
            if step == "write":
                model.extend(bytes(max(0, number - len(model))))
                model[number : number + len(data)] = data
                file.write(number, data)
            elif step == "truncate":
                model = model[:number] + bytearray(max(0, number - len(model)))
                file.truncate(number)
            elif step == "read":
                assert file.read(number, 3000) == model[number : number + 3000]
            else:
                file.sync()
            assert file.length == len(model)
        assert file.read(0, len(model)) == model
        file.sync()
        assert LunFile(unit).read(0, len(model) + 1) == model
