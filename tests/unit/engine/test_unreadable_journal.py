"""A disk that gives errors: a start says so and loses nothing, a change of role never ends the subsystem."""

from __future__ import annotations

import errno
import random

import pytest

from target.bitmap import PAGE_BYTES
from target.errors import IntegrityError
from target.group import Access
from target.histories import History, follow, promote
from target.journal.record import NO_DIGEST, SequenceNumber
from target.journal.superblock import COPIES, SUPERBLOCK_BYTES, MirrorState, Role
from target.pairing import Begin, add_mirror
from tests.simulation.sim_disk import SimDisk
from tests.simulation.sim_scheduler import SimClock
from tests.simulation.site import MIB, Site


def eio() -> OSError:
    return OSError(errno.EIO, "the medium is gone")


@pytest.fixture
def site() -> Site:
    site = Site(SimClock())
    site.clock.run_until(lambda: site.group.journal.fits(8, 1 << 20))
    return site


def with_mirror(site: Site, name: str = "b") -> Begin:
    begun: list[Begin | Exception | None] = []
    add_mirror(
        site.group,
        name,
        site.group.journal.superblock.epoch + 1,
        77,
        lambda begin, error: begun.append(begin or error),
    )
    site.clock.run_until(lambda: bool(begun))
    assert isinstance(begun[0], Begin)
    return begun[0]


class _PartlyUnreadable(SimDisk):
    """Some of it cannot be read, while `broken` says where: [begin, end)."""

    broken: tuple[int, int] | None = None

    def pread(self, length: int, offset: int) -> bytes:
        if self.broken is not None and offset < self.broken[1] and offset + length > self.broken[0]:
            raise eio()
        return super().pread(length, offset)


def access_of(site: Site) -> Access:
    return site.group.access


def durable(site: Site) -> None:
    site.group.write_path.commit(urgent=True)
    site.clock.run_until(
        lambda: not site.group.journal.commit_needed and not site.group.write_path.committing
    )


def partly_unreadable(site: Site) -> _PartlyUnreadable:
    """The same disk, as one that can be broken in places."""
    site.journal_disk.__class__ = _PartlyUnreadable
    disk = site.journal_disk
    assert isinstance(disk, _PartlyUnreadable)
    return disk


@pytest.mark.parametrize("where", ["ring", "bitmap"])
def test_a_journal_that_cannot_be_read_fails_its_group_and_loses_nothing(site: Site, where: str) -> None:
    with_mirror(site)
    site.write_now("data", 0, b"a" * 4096, fua=True)
    superblock, last = site.group.journal.superblock, site.group.journal.head.sequence
    site.kill()
    disk = partly_unreadable(site)
    if where == "ring":
        disk.broken = (superblock.ring_offset, superblock.ring_offset + superblock.ring_bytes)
    else:
        disk.broken = (superblock.bitmap_offset, superblock.bitmap_offset + PAGE_BYTES)
    site.start()
    assert access_of(site) is Access.FAILED
    assert "cannot be read" in site.group.reason
    assert "the medium is gone" in site.group.reason
    assert not site.group.consistent
    refused = site.wait(site.write("data", 0, b"b" * 512))
    assert refused.error is not None
    site.clock.run_for(10.0)
    site.power_off()
    disk.broken = None
    site.start()
    assert access_of(site) is Access.HOLD
    assert site.group.journal.head.sequence >= last
    assert site.group.mirrors["b"].entry.state is MirrorState.COPY
    assert site.read("data", 0, 4096) == b"a" * 4096


@pytest.mark.parametrize("seed", range(3))
def test_what_such_a_start_finds_and_cannot_write_again_is_not_called_durable(site: Site, seed: int) -> None:
    """A flush that fails leaves pages in memory that no later flush writes: no peer may be told of them."""
    site.write_now("data", 0, b"a" * 512, fua=True)
    disk = site.journal_disk
    disk.fail_flushes, disk.fail_random = eio(), random.Random(seed)
    site.write_now("data", 512, b"b" * 512)
    site.clock.run_until(lambda: site.group.access is Access.FAILED)
    site.kill()
    disk.fail_writes = eio()
    site.start()
    assert site.group.access is Access.FAILED
    assert site.group.journal.head.sequence == 2
    assert site.group.journal.durable.sequence <= 1


def test_a_superblock_that_cannot_be_read_is_a_clear_refusal(site: Site) -> None:
    site.kill()
    partly_unreadable(site).broken = (SUPERBLOCK_BYTES, COPIES * SUPERBLOCK_BYTES)
    with pytest.raises(IntegrityError, match="cannot be read"):
        site.start()


def test_a_takeover_needs_to_read_nothing_of_the_bitmap_that_it_makes(site: Site) -> None:
    site.write_now("data", 0, b"a" * 512, fua=True)
    site.clock.run_until(lambda: site.group.background.applied_sequence == 1)
    superblock = site.group.journal.superblock
    disk = partly_unreadable(site)
    disk.broken = (superblock.bitmap_offset, superblock.ring_offset)
    errors: list[Exception | None] = []
    mirrors = [("b", MirrorState.LEFT, SequenceNumber(0))]
    promote(site.group, epoch=5, reign=77, mirrors=mirrors, split_from="", done=errors.append)
    site.clock.run_until(lambda: bool(errors))
    assert errors == [None]
    assert site.group.role is Role.PRIMARY
    disk.broken = None
    site.group.mirrors["b"].bitmap.mark(1, 0, 512)
    site.group.mirrors.save(site.group.mirrors["b"])
    durable(site)
    marked = list(site.group.mirrors["b"].bitmap.extents())
    site.kill()
    site.start()
    assert list(site.group.mirrors["b"].bitmap.extents()) == marked


@pytest.mark.parametrize("seed", range(6))
def test_the_bitmap_of_a_mirror_outlives_a_removal_that_is_not_durable(site: Site, seed: int) -> None:
    with_mirror(site)
    with_mirror(site, "c")
    mirrors = site.group.mirrors
    site.group.stop_copy("b")
    mirrors["b"].bitmap.mark(1, 9 << 16, 512)
    mirrors.save(mirrors["b"])
    durable(site)
    kept = list(mirrors["b"].bitmap.extents())
    mirrors.remove("b")
    mirrors.add("d", MirrorState.ERROR, SequenceNumber(0))
    commit = site.group.journal.begin_commit()
    site.journal_disk.fail_flushes = eio()
    with pytest.raises(OSError, match="gone"):
        commit.work()
    site.journal_disk.fail_flushes = None
    site.kill()
    site.journal_disk.power_off(random.Random(seed))
    site.start()
    found = site.group.mirrors.table
    if "b" in found:
        assert list(found["b"].bitmap.extents()) == kept


def test_a_site_that_cannot_grow_goes_on_as_before_and_does_not_follow(site: Site) -> None:
    site.disks["data"].limit_bytes = 4 * MIB
    history = History(
        "b", bytes(16), (), SequenceNumber(0), NO_DIGEST, consistent=False, sizes=((1, 5 * MIB),)
    )
    errors: list[Exception | None] = []
    follow(site.group, history, errors.append)
    site.clock.run_until(lambda: bool(errors))
    assert errors[0] is not None
    assert site.group.access is Access.SERVE
    site.write_now("data", 0, b"a" * 512)
