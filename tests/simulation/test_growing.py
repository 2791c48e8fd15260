"""Volumes and journals that grow in use: both sites at one point, or a clear word why not."""

from __future__ import annotations

from target.growing import grow_journal, grow_volume
from target.journal.superblock import SUPERBLOCK_BYTES, decode
from target.san.fetch import FetchState
from tests.simulation.sim_scheduler import SimClock
from tests.simulation.site import MIB, Site
from tests.simulation.test_pair import Pair


def test_a_volume_grows_at_both_sites_at_one_point_of_the_sequence() -> None:
    clock = SimClock(3)
    primary, secondary = Site(clock, "a"), Site(clock, "b")
    pair = Pair(clock, primary, secondary)
    pair.create()
    pair.wait_pair()
    secondary.disks["log"].grow(3 * MIB)
    secondary.disks["log"].corrupt(MIB, b"what stood on the device before" * 100)
    outcome: list[tuple[bool | None, Exception | None]] = []
    grow_volume(primary.group, "log", 2 * MIB, lambda changed, error: outcome.append((changed, error)))
    clock.run_until(lambda: bool(outcome))
    assert outcome == [(True, None)]
    clock.run_for(0.1)
    assert primary.volumes["log"].size_bytes == 2 * MIB
    primary.write_now("log", 2 * MIB - 4096, b"at the new end" + bytes(4082))
    pair.wait_level()
    clock.run_for(0.1)
    assert secondary.volumes["log"].size_bytes == 2 * MIB
    assert secondary.disks["log"].snapshot()[: 2 * MIB] == primary.read("log", 0, 2 * MIB)
    for site in (primary, secondary):
        site.power_off()
        site.start()
        assert {volume.name: volume.size_bytes for volume in site.group.volumes}["log"] == 2 * MIB


def test_a_secondary_without_room_says_so_and_goes_on_when_it_has_room() -> None:
    clock = SimClock(4)
    primary, secondary = Site(clock, "a"), Site(clock, "b")
    pair = Pair(clock, primary, secondary)
    pair.create()
    pair.wait_pair()
    secondary.disks["log"].limit_bytes = MIB
    outcome: list[tuple[bool | None, Exception | None]] = []
    grow_volume(primary.group, "log", 2 * MIB, lambda changed, error: outcome.append((changed, error)))
    assert pair.fetch is not None
    clock.run_until(lambda: pair.fetch is not None and pair.fetch.state is FetchState.DOWN)
    assert "volume 'log' has 2097152 bytes at the primary" in pair.fetch.reason
    secondary.disks["log"].limit_bytes = 2 * MIB
    pair.connect()
    pair.wait_level()
    clock.run_for(0.1)
    assert secondary.volumes["log"].size_bytes == 2 * MIB


def test_a_journal_grows_while_hosts_write_and_its_mirror_follows_on() -> None:
    clock = SimClock(5)
    primary, secondary = Site(clock, "a"), Site(clock, "b")
    pair = Pair(clock, primary, secondary)
    pair.create()
    pair.wait_pair()
    before = primary.group.journal.superblock.ring_bytes
    outcome: list[tuple[bool | None, Exception | None]] = []
    answer = primary.write("data", 0, b"before" + bytes(506))
    grow_journal(primary.group, 64 * MIB, lambda changed, error: outcome.append((changed, error)))
    later = [primary.write("data", 4096 * number, bytes([number]) * 4096) for number in range(1, 50)]
    clock.run_until(lambda: bool(outcome))
    assert outcome == [(True, None)]
    assert primary.group.journal.superblock.ring_bytes == before + 16 * MIB
    assert primary.wait(answer).error is None
    assert all(primary.wait(one).error is None for one in later)
    pair.disconnect()
    pair.connect()
    pair.wait_level()
    assert secondary.disks["data"].snapshot() == primary.read("data", 0, 4 * MIB)
    primary.power_off()
    primary.start()
    assert primary.read("data", 4096, 4096) == b"\1" * 4096
    assert primary.group.journal.superblock.ring_bytes == before + 16 * MIB


def test_no_superblock_names_a_larger_ring_before_the_size_of_its_volume_is_durable() -> None:
    site = Site(SimClock(6), "a")
    disk, journal = site.journal_disk, site.group.journal
    site.clock.run_until(lambda: journal.filled_bytes >= journal.superblock.ring_bytes)
    too_early: list[int] = []

    def on_write(offset: int, data: bytes) -> None:
        if offset < 2 * SUPERBLOCK_BYTES:
            superblock = decode(data)
            assert superblock is not None
            if superblock.ring_offset + superblock.ring_bytes > disk.durable_size_bytes:
                too_early.append(superblock.generation)

    disk.on_write = on_write
    outcome: list[tuple[bool | None, Exception | None]] = []
    grow_journal(site.group, 64 * MIB, lambda changed, error: outcome.append((changed, error)))
    site.clock.run_until(lambda: bool(outcome))
    assert outcome == [(True, None)]
    assert not too_early
