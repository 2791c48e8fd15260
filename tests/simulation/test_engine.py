"""One site's engine on simulated disks: what was flushed survives any crash; the order is the journal's."""

from __future__ import annotations

import random

import pytest

from target.group import Access
from target.journal.record import encode_pad
from tests.simulation.sim_scheduler import SimClock
from tests.simulation.site import MIB, Site


def test_a_read_sees_the_write_before_it_was_applied() -> None:
    site = Site(SimClock())
    site.write_now("data", 4096, b"a" * 4096)
    assert site.read("data", 4096, 4096) == b"a" * 4096
    assert site.disks["data"].snapshot()[4096:8192] == bytes(4096)


def test_unaligned_writes_are_merged() -> None:
    site = Site(SimClock())
    site.write_now("data", 0, b"a" * 8192)
    site.write_now("data", 512, b"b" * 1024)
    site.write_now("data", 3584, b"c" * 1024)
    expected = bytearray(b"a" * 8192)
    expected[512:1536] = b"b" * 1024
    expected[3584:4608] = b"c" * 1024
    assert site.read("data", 0, 8192) == bytes(expected)
    site.clock.run_for(1.0)
    assert site.disks["data"].snapshot()[:8192] == bytes(expected)
    assert site.read("data", 0, 8192) == bytes(expected)


def test_a_flush_waits_for_the_journal_and_nothing_else() -> None:
    site = Site(SimClock())
    site.clock.run_for(1.0)
    volume_flushes = site.disks["data"].flushes
    site.write_now("data", 0, b"a" * 512)
    site.flush_now()
    assert site.disks["data"].flushes == volume_flushes
    assert site.group.journal.durable == site.group.journal.head


@pytest.mark.parametrize("seed", range(40))
def test_flushed_writes_survive_power_loss_and_the_rest_is_a_prefix(seed: int) -> None:
    rng = random.Random(seed)
    site = Site(SimClock(seed))
    history: list[tuple[str, int, bytes]] = []
    flushed = 0
    for _ in range(3):
        for _ in range(rng.randrange(1, 60)):
            volume = rng.choice(["data", "log"])
            length = 512 * rng.choice([1, 2, 8, 8, 8, 16, 128])
            offset = 512 * rng.randrange(0, (MIB - length) // 512 + 1)
            data = rng.randbytes(length)
            history.append((volume, offset, data))
            site.write_now(volume, offset, data)
            if rng.random() < 0.1:
                site.flush_now()
                flushed = len(history)
            if rng.random() < 0.1:
                site.clock.run_for(rng.random() * 0.3)
        site.power_off() if rng.random() < 0.7 else site.kill()
        site.start()
        assert site.group.access is Access.SERVE
        present = site.group.journal.head.sequence
        assert present >= flushed
        del history[present:]
        flushed = len(history)
        expected = {"data": bytearray(4 * MIB), "log": bytearray(MIB)}
        for volume, offset, data in history:
            expected[volume][offset : offset + len(data)] = data
        for volume, content in expected.items():
            assert site.read(volume, 0, len(content)) == bytes(content)
    site.clock.run_for(10.0)
    for volume, content in expected.items():
        assert site.disks[volume].snapshot() == bytes(content)


def test_the_ring_wraps_many_times() -> None:
    site = Site(SimClock(), journal_bytes=42 * MIB)
    rng = random.Random(1)
    expected = bytearray(4 * MIB)
    for _ in range(300):
        offset = 4096 * rng.randrange(0, 768)
        data = rng.randbytes(MIB)
        expected[offset : offset + MIB] = data
        site.write_now("data", offset, data)
    assert site.group.journal.head.lsn > 3 * site.group.journal.superblock.ring_bytes
    site.power_off()
    site.start()
    content = site.read("data", 0, 4 * MIB)
    site.clock.run_for(10.0)
    assert site.disks["data"].snapshot() == content


def test_a_pad_at_the_end_of_what_is_found_stops_nothing() -> None:
    site = Site(SimClock())
    site.write_now("data", 0, b"a" * 4096, fua=True)
    journal = site.group.journal
    head, superblock = journal.head, journal.superblock
    site.kill()
    pad = encode_pad(
        group_id=superblock.group_id,
        epoch=superblock.epoch,
        reign=superblock.reign,
        next_sequence=head.sequence + 1,
        lsn=head.lsn,
        durable_lsn=head.lsn,
        length=superblock.ring_bytes - head.lsn % superblock.ring_bytes,
    )
    site.journal_disk.pwritev([pad], journal.place(head.lsn))  # the pack behind it was torn
    site.start()
    assert site.group.journal.head.lsn % superblock.ring_bytes == 0
    site.clock.run_until(lambda: site.group.journal.superblock.checkpoint_sequence == head.sequence)
    site.write_now("data", 4096, b"b" * 4096)
    site.clock.run_for(10.0)
    assert site.disks["data"].snapshot()[:8192] == b"a" * 4096 + b"b" * 4096


def test_damage_below_the_durable_mark_is_refused_and_not_guessed() -> None:
    site = Site(SimClock())
    for number in range(20):
        site.write_now("data", number * 4096, b"x" * 4096, fua=True)
    journal = site.group.journal
    place = journal.place(journal.index.boundary(5).lsn)
    site.kill()
    site.journal_disk.corrupt(place + 4096 + 100, b"\xff")
    site.start()
    assert site.group.access is Access.FAILED
    answer = site.wait(site.write("data", 0, b"y" * 512))
    assert answer.error is not None
