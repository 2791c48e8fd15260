"""What a first copy carries: contents, in the order of the hosts' writes, and no zeros."""

from __future__ import annotations

import pytest

from target.journal.record import RecordType
from target.journal.scan import walk
from target.pairing import Begin, add_mirror
from tests.simulation.sim_scheduler import SimClock
from tests.simulation.site import Site

EXTENT = 64 << 10


@pytest.fixture
def site() -> Site:
    site = Site(SimClock())
    site.clock.run_until(lambda: site.group.journal.fits(8, 1 << 20))
    return site


def copied(site: Site) -> dict[int, tuple[int, int]]:
    """Of the first volume: extent number -> (type, bytes of data) of its base record."""
    begun: list[Begin | Exception | None] = []
    add_mirror(site.group, "b", 1, 77, lambda begin, error: begun.append(begin or error))
    site.clock.run_until(lambda: bool(begun))
    site.clock.run_until(lambda: bool(site.group.mirrors.table["b"].entry.copy_complete))
    journal = site.group.journal
    superblock = journal.superblock
    volume = superblock.volumes[0].id
    return {
        record.offset // EXTENT: (record.type, record.data_length)
        for pack in walk(journal.reader(), superblock.tail, journal.head.lsn, superblock.group_id)
        for record in pack.header.descriptors()
        if record.type in (RecordType.BASE, RecordType.BASE_ZERO) and record.volume == volume
    }


def test_an_extent_of_zeros_travels_without_data_though_it_was_written(site: Site) -> None:
    site.write_now("data", 0, bytes(EXTENT))
    site.write_now("data", EXTENT, bytes(EXTENT - 1) + b"x")
    site.write_now("data", 2 * EXTENT, b"x" + bytes(EXTENT - 1))
    records = copied(site)
    assert records[0] == (RecordType.BASE_ZERO, 0)
    assert records[1] == (RecordType.BASE, EXTENT)
    assert records[2] == (RecordType.BASE, EXTENT)
    assert records[3] == (RecordType.BASE_ZERO, 0)  # never written


def test_zeros_over_contents_are_copied_as_zeros(site: Site) -> None:
    site.write_now("data", 0, b"x" * EXTENT)
    site.write_now("data", 0, bytes(EXTENT))
    assert copied(site)[0] == (RecordType.BASE_ZERO, 0)
