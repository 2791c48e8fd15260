"""The write path: nothing is answered before it may be, and nothing is forgotten."""

from __future__ import annotations

import errno
import random

import pytest

from target.journal.record import BLOCK_BYTES, RecordType
from target.journal.ring import NewRecord
from target.obtain import Overlay, WritePath
from target.overlay import ZERO
from target.volume import VolumeError
from tests.simulation.sim_disk import SimDisk
from tests.simulation.sim_scheduler import SimClock, SimScheduler
from tests.simulation.site import Answer
from tests.unit.journal.packs import moved_tail, new_journal, reopen, update

INTERVAL_SECONDS = 0.05


class Bench:
    """A write path on a small journal; what it reports is remembered."""

    def __init__(self, ring_bytes: int = 256 * BLOCK_BYTES, seed: int = 0) -> None:
        self.clock = SimClock(seed)
        self.scheduler = SimScheduler(self.clock)
        self.disk, self.journal = new_journal(ring_bytes)
        self.overlay = Overlay(0)
        self.durable_seen: list[int] = []
        self.full = 0
        self.failures: list[OSError] = []
        self.path = WritePath(
            self.scheduler,
            self.journal,
            self.overlay,
            lane="commit:x",
            commit_interval_seconds=INTERVAL_SECONDS,
            on_durable=lambda: self.durable_seen.append(self.journal.durable.sequence),
            on_full=self._full,
            on_failed=self.failures.append,
        )

    def _full(self, needed_bytes: int) -> None:
        assert needed_bytes > 0
        self.full += 1

    def write(self, fill: int, length: int = 512, *, offset: int = 0, fua: bool = False) -> Answer:
        """A host's write from a buffer that the front end uses again after the turn."""
        answer = Answer()
        buffer = bytearray([fill & 0xFF]) * length
        record = NewRecord(RecordType.UPDATE, 0, 1, offset, length, memoryview(buffer))
        self.path.add((record, answer, fua))

        def reuse() -> None:
            buffer[:] = b"\xee" * length

        self.scheduler.at_send(reuse)
        return answer

    def flush(self) -> Answer:
        answer = Answer()
        self.path.add((None, answer, True))
        return answer

    def end_turn(self) -> None:
        """Let the loop's turn end: append, then send. No time passes."""
        ended: list[bool] = []
        self.scheduler.at_send(lambda: ended.append(True))
        self.clock.run_until(lambda: bool(ended), limit_seconds=0.0001)

    def settle(self) -> None:
        self.clock.run_until(lambda: not self.journal.commit_needed and not self.path.committing)

    def fill_up(self) -> int:
        """Write until the next write has to wait; the number of writes."""
        count = 0
        while self.journal.fits(1, BLOCK_BYTES):
            self.write(count, BLOCK_BYTES)
            self.end_turn()
            count += 1
        return count

    def make_space(self) -> None:
        self.settle()
        moved_tail(self.journal)
        self.path.retry_held()


def journalled(disk: SimDisk) -> list[tuple[int, int]]:
    """(first byte, length) of every record with data that recovery finds."""
    found = []
    for _, header, pack in reopen(disk)[1]:
        for record in header.descriptors():
            if record.data_length:
                found.append((pack[record.data_offset], record.length))
    return found


# -- acknowledging --


def test_a_write_is_acknowledged_when_it_is_in_the_journal_and_not_before() -> None:
    bench = Bench()
    answer = bench.write(1)
    assert not answer.ended
    assert bench.journal.head.sequence == 0
    bench.end_turn()
    assert answer.ended
    assert answer.error is None
    assert bench.journal.head.sequence == 1
    assert bench.journal.durable.sequence == 0


def test_the_writes_of_a_turn_are_one_pack_in_their_order() -> None:
    bench = Bench()
    answers = [bench.write(number, 512, offset=number * 512) for number in range(5)]
    bench.end_turn()
    assert all(answer.ended for answer in answers)
    assert len(bench.journal.index) == 1
    bench.settle()
    assert journalled(bench.disk) == [(number, 512) for number in range(5)]


def test_reads_find_what_was_acknowledged_in_the_overlay() -> None:
    bench = Bench()
    bench.write(1, 4096, offset=8192)
    bench.path.add((NewRecord(RecordType.ZERO, 0, 1, 4096, 4096, b""), Answer(), False))
    assert not bench.overlay.current
    bench.end_turn()
    granules = bench.overlay.current.granules[1]
    assert granules[1] == ZERO
    place = granules[2]
    assert isinstance(place, int)
    assert bench.disk.pread(4096, place) == b"\x01" * 4096


def test_records_of_our_own_do_not_enter_the_overlay() -> None:
    bench = Bench()
    assert bench.path.append_now([NewRecord(RecordType.BASE, 0, 1, 0, 4096, bytes(4096))])
    assert not bench.overlay.current
    assert bench.journal.head.sequence == 1


# -- durability --


def test_fua_is_answered_only_when_durable() -> None:
    bench = Bench()
    plain, forced = bench.write(1), bench.write(2, fua=True)
    bench.end_turn()
    assert plain.ended
    assert not forced.ended
    flushes = bench.disk.flushes
    bench.clock.run_until(lambda: forced.ended)
    assert forced.error is None
    assert bench.disk.flushes > flushes
    assert bench.journal.durable.sequence == 2
    assert bench.clock.now < INTERVAL_SECONDS


def test_a_flush_waits_for_everything_acknowledged_before_it() -> None:
    bench = Bench()
    for number in range(3):
        bench.write(number)
        bench.end_turn()
    answer = bench.flush()
    bench.end_turn()
    assert not answer.ended
    bench.clock.run_until(lambda: answer.ended)
    assert bench.journal.durable.sequence == 3
    bench.disk.power_off(random.Random(1))
    assert journalled(bench.disk) == [(0, 512), (1, 512), (2, 512)]


def test_a_flush_with_nothing_to_flush_is_answered_at_once() -> None:
    bench = Bench()
    bench.write(1)
    bench.end_turn()
    bench.settle()
    answer = bench.flush()
    bench.end_turn()
    assert answer.ended


def test_a_flush_during_a_commit_waits_for_the_next_one() -> None:
    """What was written after the commit began is not in it."""
    bench = Bench()
    first = bench.write(1, fua=True)
    bench.end_turn()
    assert bench.path.committing
    bench.write(2)
    second = bench.flush()
    bench.end_turn()
    bench.clock.run_until(lambda: first.ended)
    assert not second.ended
    bench.clock.run_until(lambda: second.ended)
    assert bench.durable_seen == [1, 2]


def test_without_a_flush_a_write_is_durable_within_the_commit_interval() -> None:
    bench = Bench()
    bench.write(1)
    bench.end_turn()
    bench.clock.run_until(lambda: bench.journal.durable.sequence == 1)
    assert INTERVAL_SECONDS <= bench.clock.now < 2 * INTERVAL_SECONDS


def test_many_flushes_share_a_commit() -> None:
    bench = Bench()
    bench.path.commit(urgent=True)
    bench.settle()
    flushes = bench.disk.flushes
    answers = [bench.write(number, fua=True) for number in range(20)]
    bench.end_turn()
    bench.clock.run_until(lambda: all(answer.ended for answer in answers))
    assert bench.disk.flushes == flushes + 1


@pytest.mark.parametrize("seed", range(25))
def test_what_was_answered_durably_survives_power_loss(seed: int) -> None:
    rng = random.Random(seed)
    bench = Bench(seed=seed)
    forced: list[tuple[int, Answer]] = []
    flushed: list[tuple[int, Answer]] = []
    for number in range(1, rng.randrange(5, 40)):
        answer = bench.write(number, 512 * rng.randrange(1, 9), fua=rng.random() < 0.3)
        forced.append((number, answer))
        if rng.random() < 0.2:
            flushed.append((number, bench.flush()))
        if rng.random() < 0.5:
            bench.end_turn()
        if rng.random() < 0.5:
            bench.clock.run_for(rng.random() * 0.004)
    bench.disk.power_off(rng)
    present = [fill for fill, _ in journalled(bench.disk)]
    assert present == list(range(1, len(present) + 1))
    durable = [number for number, answer in flushed if answer.ended]
    assert len(present) >= max(durable, default=0)
    assert len(present) >= bench.journal.durable.sequence


# -- a journal that cannot be written --


def test_a_write_error_refuses_the_turn_and_appends_nothing() -> None:
    bench = Bench()
    bench.write(1)
    bench.end_turn()
    bench.disk.fail_writes = OSError(errno.EIO, "the medium is gone")
    head = bench.journal.head
    answers = [bench.write(2), bench.write(3, fua=True), bench.flush()]
    bench.end_turn()
    assert [answer.error for answer in answers] == [VolumeError.WRITE_FAILED] * 3
    assert bench.journal.head == head
    assert bench.overlay.current.granules[1].keys() == {0}
    bench.disk.fail_writes = None
    again = bench.write(4)
    bench.end_turn()
    assert again.error is None
    bench.settle()
    assert journalled(bench.disk) == [(1, 512), (4, 512)]
    assert bench.failures == []


def test_a_record_of_our_own_that_was_not_written_is_not_said_to_be() -> None:
    """Who appends a base record clears a bit for it."""
    bench = Bench()
    bench.disk.fail_writes = OSError(errno.EIO, "the medium is gone")
    assert not bench.path.append_now([update(1)])
    assert bench.journal.head.sequence == 0
    bench.disk.fail_writes = None
    assert bench.path.append_now([update(1)])
    assert bench.journal.head.sequence == 1


def test_records_of_our_own_come_behind_what_was_obtained() -> None:
    bench = Bench()
    answer = bench.write(1)
    assert bench.path.append_now([update(2, 512)])
    assert answer.ended
    bench.end_turn()
    bench.settle()
    assert journalled(bench.disk) == [(1, 512), (2, 512)]


def test_an_fdatasync_that_failed_is_final() -> None:
    bench = Bench()
    acknowledged = bench.write(1)
    waiting = [bench.write(2, fua=True), bench.flush()]
    bench.end_turn()
    bench.disk.fail_flushes = OSError(errno.EIO, "pages were lost")
    bench.clock.run_until(lambda: bool(bench.failures))
    assert acknowledged.error is None
    assert [answer.error for answer in waiting] == [VolumeError.WRITE_FAILED] * 2
    assert bench.path.failed
    bench.disk.fail_flushes = None  # the next fdatasync would succeed, and mean nothing
    later = [bench.write(3), bench.flush()]
    bench.end_turn()
    assert [answer.error for answer in later] == [VolumeError.WRITE_FAILED] * 2
    assert not bench.path.append_now([update(4)])
    bench.path.commit(urgent=True)
    assert not bench.path.committing
    assert bench.journal.durable.sequence == 0
    assert bench.durable_seen == []


def test_what_waits_for_space_is_refused_when_an_fdatasync_fails() -> None:
    bench = Bench(16 * BLOCK_BYTES)
    bench.fill_up()
    held = bench.write(99, BLOCK_BYTES)
    bench.end_turn()
    obtained = bench.write(100, BLOCK_BYTES)
    bench.disk.fail_flushes = OSError(errno.EIO, "pages were lost")
    bench.path.commit(urgent=True)
    bench.clock.run_until(lambda: bool(bench.failures))
    bench.clock.run_until(lambda: held.ended)
    assert held.error is VolumeError.WRITE_FAILED
    bench.end_turn()
    assert obtained.error is VolumeError.WRITE_FAILED
    last = bench.write(101, BLOCK_BYTES)
    bench.end_turn()
    assert last.error is VolumeError.WRITE_FAILED


# -- a journal without space --


def test_writes_wait_for_space_and_go_on_in_their_order() -> None:
    bench = Bench(16 * BLOCK_BYTES)
    count = bench.fill_up()
    held = [bench.write(200 + number, BLOCK_BYTES, offset=4096 * number) for number in range(3)]
    bench.end_turn()
    assert bench.path.holding
    assert bench.full >= 1
    assert not any(answer.ended for answer in held)
    assert bench.journal.head.sequence == count
    bench.make_space()
    assert all(answer.ended and answer.error is None for answer in held)
    assert not bench.path.holding
    bench.settle()
    assert journalled(bench.disk) == [(200, 4096), (201, 4096), (202, 4096)]


def test_data_are_copied_when_held() -> None:
    """The bench uses the buffer again after the turn, as the front end does."""
    bench = Bench(16 * BLOCK_BYTES)
    bench.fill_up()
    bench.write(77, BLOCK_BYTES)
    bench.end_turn()
    bench.make_space()
    bench.settle()
    assert journalled(bench.disk) == [(77, 4096)]


def test_nothing_overtakes_what_is_held() -> None:
    """Not a write that would fit, not a flush, not a record of our own."""
    bench = Bench(16 * BLOCK_BYTES)
    bench.fill_up()
    held = bench.write(1, BLOCK_BYTES)
    bench.end_turn()
    small = bench.path
    zeros, flush = Answer(), bench.flush()
    small.add((NewRecord(RecordType.ZERO, 0, 1, 0, 512, b""), zeros, False))
    bench.end_turn()
    assert not small.append_now([update(9, 512)])
    bench.settle()
    assert not any(answer.ended for answer in (held, zeros, flush))
    bench.make_space()
    assert held.ended
    assert zeros.ended
    bench.clock.run_until(lambda: flush.ended)
    assert flush.error is None


def test_as_much_goes_on_as_there_is_space_for() -> None:
    bench = Bench(24 * BLOCK_BYTES)
    bench.fill_up()
    answers: list[Answer] = []
    for number in range(8):
        answers.append(bench.write(number, 3 * BLOCK_BYTES))
        bench.end_turn()
    bench.make_space()
    done = [answer.ended for answer in answers]
    assert done == sorted(done, reverse=True)
    assert 0 < sum(done) < 8
    assert bench.path.holding
    assert bench.full > 1
    while bench.path.holding:
        bench.make_space()
    assert all(answer.ended and answer.error is None for answer in answers)


def test_a_large_turn_finds_space_in_parts() -> None:
    bench = Bench(40 << 20)
    first = [bench.write(number, 4 << 20) for number in range(5)]
    bench.end_turn()
    assert sum(answer.ended for answer in first) >= 4
    bench.make_space()
    assert all(answer.ended for answer in first)
    assert bench.journal.head.sequence == 5


# -- the limit on what is not durable --


def test_much_is_made_durable_without_waiting_for_the_interval() -> None:
    bench = Bench(ring_bytes=32 << 20)
    for number in range(9):
        bench.write(number, 1 << 20)
        bench.end_turn()
    assert bench.path.committing
    assert bench.clock.now < INTERVAL_SECONDS


def test_who_waits_for_a_commit_alone_asks_for_no_space() -> None:
    """The ring has space: nothing need be applied, checkpointed or discarded for it."""
    bench = Bench(ring_bytes=96 << 20)
    bench.scheduler.slowness = 1000  # a commit takes much longer than the turns below
    answers: list[Answer] = []
    while bench.journal.fits(1, 4 << 20):
        answers.append(bench.write(len(answers), 4 << 20))
        bench.end_turn()
    waiting = bench.write(1, 4 << 20)
    bench.end_turn()
    assert not waiting.ended
    assert bench.full == 0
    bench.clock.run_until(lambda: waiting.ended)
    assert bench.full == 0
