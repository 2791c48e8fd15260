"""An epoch begins with its record, behind everything that was obtained before, or it does not begin."""

from __future__ import annotations

import errno

import pytest

from target.errors import OperatorError
from target.group import Access
from target.histories import begin_epoch, promote
from target.journal.record import RecordType, SequenceNumber
from target.journal.scan import walk
from target.journal.superblock import MirrorState, Role
from tests.simulation.sim_scheduler import SimClock
from tests.simulation.site import Site


@pytest.fixture
def site() -> Site:
    site = Site(SimClock())
    site.clock.run_until(lambda: site.group.journal.fits(8, 1 << 20))
    return site


def records(site: Site) -> list[tuple[int, int]]:
    """(epoch, type) of every record of the journal."""
    journal = site.group.journal
    superblock = journal.superblock
    return [
        (pack.header.epoch, record.type)
        for pack in walk(journal.reader(), superblock.tail, journal.head.lsn, superblock.group_id)
        for record in pack.header.descriptors()
    ]


def test_its_record_is_the_first_of_an_epoch(site: Site) -> None:
    site.write_now("data", 0, b"a" * 512)
    obtained = site.write("data", 512, b"b" * 512)
    begin_epoch(site.group, 1, 77)
    assert obtained.ended
    site.write_now("data", 1024, b"c" * 512)
    assert records(site) == [
        (0, RecordType.UPDATE),
        (0, RecordType.UPDATE),
        (1, RecordType.EPOCH),
        (1, RecordType.UPDATE),
    ]
    (start,) = site.group.journal.superblock.epochs
    assert start.fork_sequence == 2
    assert site.group.journal.index.boundary(2).digest == start.fork_digest


def test_an_epoch_whose_record_cannot_be_written_does_not_begin(site: Site) -> None:
    site.write_now("data", 0, b"a" * 512)
    site.flush_now()
    before = site.group.journal.superblock
    errors: list[Exception | None] = []
    site.journal_disk.fail_writes = OSError(errno.EIO, "the medium is gone")
    promote(
        site.group,
        epoch=5,
        reign=77,
        mirrors=[("b", MirrorState.LEFT, SequenceNumber(0))],
        split_from="",
        done=errors.append,
    )
    site.clock.run_until(lambda: bool(errors))
    assert isinstance(errors[0], OperatorError)
    after = site.group.journal.superblock
    assert (after.epoch, after.reign, after.epochs, after.role, after.flags) == (
        before.epoch,
        before.reign,
        before.epochs,
        Role.SIMPLEX,
        before.flags,
    )
    site.journal_disk.fail_writes = None
    assert site.group.access is Access.SERVE
    site.write_now("data", 512, b"b" * 512)
    site.flush_now()
    assert records(site)[-1] == (0, RecordType.UPDATE)


def test_a_secondary_whose_promotion_failed_goes_on_receiving(site: Site) -> None:
    site.group.journal.change_superblock(role=Role.SECONDARY)
    site.group.background.following = site.group.receiving = True
    errors: list[Exception | None] = []
    site.journal_disk.fail_writes = OSError(errno.EIO, "the medium is gone")
    promote(site.group, epoch=5, reign=77, mirrors=[], split_from="", done=errors.append)
    assert not site.group.receiving
    site.clock.run_until(lambda: bool(errors))
    assert isinstance(errors[0], OperatorError)
    assert site.group.receiving
    assert site.group.role is Role.SECONDARY
