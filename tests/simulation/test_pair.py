"""Two engines and a link: the secondary is always a prefix of the primary; only differences are copied."""

from __future__ import annotations

import errno
import random
from pathlib import Path

import pytest

from target.control.state import group_state
from target.errors import ConflictError, ReplctlError
from target.group import Access
from target.histories import History, changed_since, export_since, follow, promote
from target.journal.record import SequenceNumber
from target.journal.superblock import MirrorState, Role
from target.mirrors import DISCARD_ABOVE_PERCENT
from target.pairing import Begin, add_mirror, resync_mirror
from target.san.fetch import Fetch, FetchState
from tests.simulation.sim_link import SimLink
from tests.simulation.sim_scheduler import SimClock
from tests.simulation.site import MIB, Site


class Pair:
    """Stands in for the two copy managers: carries positions between the engines."""

    def __init__(self, clock: SimClock, primary: Site, secondary: Site) -> None:
        self.clock, self.primary, self.secondary = clock, primary, secondary
        self.fetch: Fetch | None = None
        self.link: SimLink | None = None
        self._tick()

    def _tick(self) -> None:
        self.exchange()
        self.clock.at(0.05, self._tick, self)

    def exchange(self) -> None:
        if self.fetch is None or self.fetch.state in (FetchState.DOWN, FetchState.LOST):
            return
        primary, secondary = self.primary.group, self.secondary.group
        self.fetch.advance(primary.journal.durable.lsn)
        mirror = primary.mirrors.table.get(self.secondary.name)
        if mirror is not None:
            background = secondary.background
            primary.report_mirror(
                mirror,
                secondary.journal.durable.sequence,
                background.applied_sequence,
                secondary.verified_sequence,
            )

    def connect(self) -> None:
        """Where is what the secondary lacks? Fetch from there."""
        position = self.primary.group.journal.keeps_from(self.secondary.group.journal.head.sequence)
        assert position is not None
        self.link = SimLink(self.clock, self.secondary, self.primary)
        self.fetch = Fetch(self.secondary.group, self.link, position.lsn, lambda: None)

    def disconnect(self) -> None:
        if self.fetch is not None:
            self.fetch.close()
        self.fetch = None

    def _follow(self, begin: Begin | None, error: Exception | None) -> None:
        assert begin is not None, error
        superblock = self.primary.group.journal.superblock
        history = History(
            self.primary.name,
            superblock.group_id,
            superblock.epochs,
            begin.sequence,
            begin.digest,
            begin.consistent,
        )

        def followed(error: Exception | None) -> None:
            assert error is None, error
            self.connect()

        follow(self.secondary.group, history, followed)

    def create(self) -> None:
        epoch = self.primary.group.journal.superblock.epoch + 1
        add_mirror(self.primary.group, self.secondary.name, epoch, 77, self._follow)

    def resync(self, export: Path | None = None) -> None:
        self.disconnect()
        superblock = self.primary.group.journal.superblock
        mine = self.secondary.group.journal
        common = mine.head.sequence
        for start in superblock.epochs:
            if (start.parent_epoch, start.parent_reign) == (mine.superblock.epoch, mine.superblock.reign):
                common = min(common, start.fork_sequence)

        def changed(extents: object, error: Exception | None) -> None:
            assert isinstance(extents, list), error
            resync_mirror(self.primary.group, self.secondary.name, common, extents, self._follow)

        def exported(count: int | None, error: Exception | None) -> None:
            assert count is not None, error
            changed_since(self.secondary.group, common, self.primary.name, changed)

        if export is not None:
            export_since(self.secondary.group, common, export, exported)
        else:
            exported(0, None)

    @property
    def state(self) -> MirrorState:
        return self.primary.group.mirrors[self.secondary.name].entry.state

    def wait_pair(self) -> None:
        self.clock.run_until(lambda: self.secondary.name in self.primary.group.mirrors.table)
        self.clock.run_until(lambda: self.state is MirrorState.PAIR)

    def wait_level(self) -> None:
        self.clock.run_until(
            lambda: (
                self.secondary.group.background.applied_sequence >= self.primary.group.journal.head.sequence
            )
        )

    def assert_equal(self) -> None:
        for name, disk in self.secondary.disks.items():
            assert self.primary.read(name, 0, disk.size_bytes) == disk.snapshot(), name


def make_pair(seed: int = 0, journal_bytes: int = 48 * MIB) -> Pair:
    clock = SimClock(seed)
    return Pair(
        clock, Site(clock, "a", journal_bytes=journal_bytes), Site(clock, "b", journal_bytes=journal_bytes)
    )


def write_some(site: Site, rng: random.Random, count: int) -> None:
    for _ in range(count):
        volume = rng.choice(["data", "log"])
        length = 512 * rng.choice([1, 8, 8, 16])
        site.write(volume, 512 * rng.randrange(0, (MIB - length) // 512), rng.randbytes(length))
        if rng.random() < 0.3:
            site.clock.run_for(rng.random() * 0.05)


def test_initial_copy_and_updates_make_the_secondary_equal() -> None:
    pair = make_pair()
    rng = random.Random(0)
    write_some(pair.primary, rng, 50)
    pair.create()
    write_some(pair.primary, rng, 200)
    pair.wait_pair()
    write_some(pair.primary, rng, 100)
    pair.clock.run_for(1.0)
    pair.wait_level()
    pair.assert_equal()
    assert pair.secondary.group.consistent
    refused = pair.secondary.wait(pair.secondary.write("data", 0, b"x" * 512))
    assert refused.error is not None


@pytest.mark.parametrize("seed", range(15))
def test_the_pair_survives_power_losses_on_both_sides(seed: int) -> None:
    pair = make_pair(seed)
    rng = random.Random(seed)
    write_some(pair.primary, rng, 30)
    pair.create()
    pair.wait_pair()
    for _ in range(4):
        write_some(pair.primary, rng, 60)
        victim = rng.choice([pair.primary, pair.secondary])
        pair.disconnect()
        victim.power_off() if rng.random() < 0.7 else victim.kill()
        victim.start()
        if victim is pair.primary:
            assert victim.group.access is Access.HOLD
            victim.group.set_access(Access.SERVE)
        pair.connect()
        write_some(pair.primary, rng, 20)
    pair.clock.run_for(1.0)
    pair.wait_level()
    pair.assert_equal()


def test_a_volume_that_cannot_be_read_for_a_while_delays_a_copy_and_a_verify_pass() -> None:
    pair = make_pair(8)
    write_some(pair.primary, random.Random(8), 100)
    pair.clock.run_for(1.0)
    for disk in pair.primary.disks.values():
        disk.fail_reads = OSError("EIO")
    pair.create()
    pair.clock.run_for(3.0)
    assert pair.state is MirrorState.COPY
    for disk in pair.primary.disks.values():
        disk.mend()
    pair.wait_pair()
    pair.wait_level()
    pair.assert_equal()
    pair.primary.disks["data"].fail_reads = OSError("EIO")
    check = pair.primary.group.start_verify()
    pair.clock.run_for(3.0)
    assert check.running
    pair.primary.disks["data"].mend()
    pair.clock.run_until(lambda: not check.running)
    assert check.last_sequence is not None


def test_a_full_journal_marks_and_resync_copies_only_what_is_marked() -> None:
    pair = make_pair(3, journal_bytes=44 * MIB)
    rng = random.Random(3)
    pair.create()
    pair.wait_pair()
    assert pair.link is not None
    pair.disconnect()
    data = pair.primary.volumes["data"].size_bytes
    for number in range(60):
        pair.primary.write_now("data", (number % 2) * MIB, rng.randbytes(MIB))
    mirrors = pair.primary.group.mirrors
    pair.clock.run_until(lambda: pair.state is MirrorState.ERROR and not mirrors.discarding)
    pair.clock.run_until(lambda: mirrors.full_percent() < DISCARD_ABOVE_PERCENT)
    marked = pair.primary.group.mirrors["b"].bitmap.marked_bytes
    assert 0 < marked <= 2 * MIB < data
    pair.resync()
    pair.clock.run_until(lambda: pair.state is MirrorState.COPY)
    pair.wait_pair()
    pair.wait_level()
    pair.assert_equal()


def test_what_was_discarded_unread_is_no_full_copy_that_nobody_asked_for() -> None:
    pair = make_pair(12)
    pair.create()
    pair.wait_pair()
    pair.disconnect()
    write_some(pair.primary, random.Random(12), 30)
    pair.primary.flush_now()
    pair.clock.run_for(6.0)
    group = pair.primary.group
    mirror, had = group.mirrors["b"], group.mirrors["b"].entry.restored
    pair.primary.journal_disk.fail_reads = OSError("EIO")
    group.mirrors.let_go()
    pair.clock.run_until(lambda: not group.mirrors.discarding)
    pair.primary.journal_disk.mend()
    pair.clock.run_until(group.mirrors.let_go)
    assert mirror.entry.state is MirrorState.ERROR
    assert not mirror.bitmap
    assert "full copy" in group.reasons["b"]
    assert mirror.confirmed == had < mirror.entry.received
    errors: list[Exception | None] = []
    resync_mirror(group, "b", had, [], lambda begin, error: errors.append(error))
    pair.clock.run_until(lambda: bool(errors))
    assert isinstance(errors[0], ConflictError)
    assert "what lies between is not known" in str(errors[0])


def test_forced_takeover_and_failback_with_differences_only(tmp_path: Path) -> None:
    clock = SimClock(5)
    pair = make_pair(5)
    clock = pair.clock
    rng = random.Random(5)
    a, b = pair.primary, pair.secondary
    write_some(a, rng, 100)
    pair.create()
    pair.wait_pair()
    pair.disconnect()
    for number in range(20):
        a.write_now("data", 2 * MIB + number * 4096, b"lost" * 1024)
    a.flush_now()
    a.power_off()
    received = b.group.journal.durable.sequence
    ended: list[Exception | None] = []
    promote(
        b.group,
        epoch=b.group.journal.superblock.epoch + 1,
        reign=99,
        mirrors=[("a", MirrorState.LEFT, received)],
        split_from="",
        done=ended.append,
    )
    clock.run_until(lambda: bool(ended))
    assert ended == [None]
    assert b.group.role is Role.PRIMARY
    write_some(b, rng, 100)
    a.start()
    assert a.group.access is Access.HOLD
    back = Pair(clock, b, a)
    export = tmp_path / "orphans.journal"
    back.resync(export)
    clock.run_until(lambda: back.state is MirrorState.COPY)
    assert b.group.mirrors["a"].bitmap.marked_bytes <= 3 * 65536
    back.wait_pair()
    clock.run_for(1.0)
    back.wait_level()
    back.assert_equal()
    assert export.stat().st_size > 20 * 4096
    assert a.group.role is Role.SECONDARY
    assert a.read("data", 2 * MIB, 4096) != b"lost" * 1024


def test_a_foreign_history_is_not_followed() -> None:
    pair = make_pair(6)
    pair.create()
    pair.wait_pair()
    pair.disconnect()
    pair.primary.write_now("data", 0, b"z" * 512)
    pair.primary.flush_now()
    other = Site(pair.clock, "c")
    link = SimLink(pair.clock, pair.secondary, other)
    fetch = Fetch(pair.secondary.group, link, other.group.journal.durable.lsn, lambda: None)
    pair.clock.run_until(lambda: fetch.state is FetchState.LOST)
    assert "another group" in fetch.reason


def test_resync_without_knowledge_is_refused() -> None:
    pair = make_pair(7)
    pair.create()
    pair.wait_pair()
    site = pair.primary
    errors: list[Exception | None] = []
    unknown = SequenceNumber(site.group.journal.head.sequence + 1000)
    resync_mirror(site.group, "nobody", unknown, [], lambda begin, error: errors.append(error))
    pair.clock.run_until(lambda: bool(errors))
    assert isinstance(errors[0], ReplctlError)


def test_a_resync_that_copies_blocks_calls_nothing_received_before_it_was_told() -> None:
    """It may break off before the secondary follows: where that is, is what the next one has to know."""
    pair = make_pair(9)
    pair.create()
    pair.wait_pair()
    pair.disconnect()
    had = pair.secondary.group.journal.durable.sequence
    write_some(pair.primary, random.Random(9), 30)
    begun: list[Begin | Exception | None] = []
    resync_mirror(
        pair.primary.group,
        "b",
        had,
        [],
        lambda begin, error: begun.append(begin or error),
        journal_damaged=True,
    )
    pair.clock.run_until(lambda: bool(begun))
    assert isinstance(begun[0], Begin)
    assert begun[0].sequence > had
    assert pair.primary.group.mirrors["b"].entry.received == had
    pair.clock.run_for(6.0)
    assert pair.primary.group.journal.keeps_from(had) is not None


def test_what_a_new_mirror_has_is_known_when_it_says_so() -> None:
    """Until then the journal is kept for it from the end on, which says nothing of what it has."""
    pair = make_pair(11)
    write_some(pair.primary, random.Random(11), 30)
    group = pair.primary.group
    begun: list[Begin | Exception | None] = []
    add_mirror(group, "b", 1, 7, lambda begin, error: begun.append(begin or error))
    pair.clock.run_until(lambda: bool(begun))
    (shown,) = group_state(group, None).mirrors
    assert shown.received == group.mirrors["b"].entry.received > 30
    assert (shown.confirmed, shown.restored) == (0, 0)
    nothing = SequenceNumber(0)
    group.report_mirror(group.mirrors["b"], SequenceNumber(shown.received), nothing, nothing)
    (shown,) = group_state(group, None).mirrors
    assert shown.confirmed == shown.received


@pytest.mark.parametrize(("epoch", "then"), [(0, 1), (1, 1), (4, 4)])
def test_a_first_pair_begins_an_epoch_that_is_newer_than_the_groups(epoch: int, then: int) -> None:
    """Whatever its copy manager knew of the group when it asked."""
    pair = make_pair(13)
    group = pair.primary.group
    begun: list[Begin | Exception | None] = []
    add_mirror(group, "b", epoch, 9, lambda begin, error: begun.append(begin or error))
    pair.clock.run_until(lambda: bool(begun))
    assert isinstance(begun[0], Begin)
    assert group.journal.superblock.epoch == then


@pytest.mark.parametrize(("epoch", "then"), [(2, 1), (5, 5)])
def test_a_primary_gets_ahead_of_an_epoch_that_its_new_mirror_gave_up(epoch: int, then: int) -> None:
    """Or that one's word, or our own memory of it, would supersede us at our next start."""
    pair = make_pair(13)
    pair.create()
    pair.wait_pair()
    group = pair.primary.group
    assert group.journal.superblock.epoch == 1
    begun: list[Begin | Exception | None] = []
    add_mirror(group, "c", epoch, 9, lambda begin, error: begun.append(begin or error))
    pair.clock.run_until(lambda: bool(begun))
    assert isinstance(begun[0], Begin)
    assert group.journal.superblock.epoch == then
    pair.wait_level()
    assert pair.secondary.group.journal.superblock.epoch == then


def test_what_a_mirror_had_of_another_history_is_not_shown_as_restored() -> None:
    """It goes back behind less than it had: until it reports, status says no more than what both share."""
    pair = make_pair(10)
    pair.create()
    pair.wait_pair()
    pair.disconnect()
    mirror = pair.primary.group.mirrors["b"]
    common = SequenceNumber(mirror.entry.restored - 1)
    begun: list[Begin | Exception | None] = []
    resync_mirror(pair.primary.group, "b", common, [], lambda begin, error: begun.append(begin or error))
    pair.clock.run_until(lambda: bool(begun))
    assert isinstance(begun[0], Begin)
    assert begun[0].sequence <= common
    assert mirror.entry.restored <= mirror.entry.received == common


def test_a_secondary_makes_room_for_a_pack_when_all_before_it_is_restored() -> None:
    clock = SimClock(10)
    shapes = {"data": 16 * MIB, "log": MIB}
    first = Site(clock, "a", shapes, journal_bytes=41 * MIB)
    size = first.group.journal.superblock.ring_offset + 40 * MIB
    pair = Pair(clock, *(Site(clock, name, shapes, journal_bytes=size) for name in ("a", "b")))
    pair.create()
    pair.wait_pair()
    for number in range(6):  # the fifth does not fit, with less than what is discarded without need
        pair.primary.write_now("data", number % 2 * 8 * MIB, bytes((number,)) * (8 * MIB))
        pair.wait_level()
        pair.clock.run_for(6.0)
    pair.assert_equal()


def test_a_secondary_whose_journal_failed_takes_nothing_into_its_ring() -> None:
    """It may be the ring of the history before: the superblock of the new one was perhaps not written."""
    pair = make_pair(8)
    pair.create()
    pair.wait_pair()
    disk = pair.secondary.journal_disk
    disk.fail_flushes = OSError(errno.EIO, "flush fails")
    pair.primary.write_now("data", 0, b"z" * 512)
    pair.primary.flush_now()
    pair.clock.run_until(lambda: pair.secondary.group.access is Access.FAILED)
    disk.mend()
    before, writes = pair.secondary.group.journal.head, disk.unflushed_writes
    pair.connect()
    pair.primary.write_now("data", 0, b"y" * 512)
    pair.primary.flush_now()
    fetch = pair.fetch
    assert fetch is not None
    pair.clock.run_until(lambda: fetch.state is FetchState.DOWN)
    assert pair.secondary.group.journal.head == before
    assert disk.unflushed_writes == writes
