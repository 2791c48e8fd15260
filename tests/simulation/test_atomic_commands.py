"""COMPARE AND WRITE and ORWRITE on a simulated site: atomic although reads are cold and applying goes on."""

from __future__ import annotations

import random

import pytest

from target.scsi import cdb
from target.scsi.cdb import Opcode
from target.scsi.command import Nexus, Status
from target.scsi.logical_unit import LogicalUnit
from tests.simulation.sim_scheduler import SimClock
from tests.simulation.site import Site
from tests.unit.scsi.initiator import RecordedCommand

BLOCK = 512
SESSIONS = 4
ROUNDS = 12


class Host:
    """A session that sends one command after the other, each when the one before was answered."""

    def __init__(self, site: Site, unit: LogicalUnit, number: int) -> None:
        self.site = site
        self.unit = unit
        self.nexus = Nexus(f"host{number}", "target")
        self.number = number
        self.left = ROUNDS
        self.successes = 0
        self._command: RecordedCommand | None = None

    def _send(self, built: bytes, data: bytes) -> RecordedCommand:
        buffer = bytearray(data)
        command = RecordedCommand(built.ljust(16, b"\0"), memoryview(buffer), self.nexus)
        self.unit.execute(command)

        def reuse() -> None:
            buffer[:] = b"\xee" * len(buffer)

        self.site.scheduler.at_send(reuse)
        return command

    def poll(self) -> bool:
        """Go on if the last command was answered; True when all is done."""
        command = self._command
        if command is not None and not command.results:
            return False
        if command is not None:
            self._command = None
            self._ended(command)
        if not self.left:
            return True
        self._command = self.next_command()
        return False

    def next_command(self) -> RecordedCommand:
        raise NotImplementedError

    def _ended(self, command: RecordedCommand) -> None:
        raise NotImplementedError


class Counting(Host):
    """Adds one to a block by COMPARE AND WRITE, as often as it takes."""

    guess = 0

    def next_command(self) -> RecordedCommand:
        old, new = (value.to_bytes(BLOCK, "big") for value in (self.guess, self.guess + 1))
        return self._send(cdb.compare_and_write(3, 1), old + new)

    def _ended(self, command: RecordedCommand) -> None:
        if command.result.status is Status.GOOD:
            self.successes += 1
            self.left -= 1
            self.guess += 1
        elif command.result.sense is not None and command.result.sense.information is not None:
            self.guess = int.from_bytes(self.site.read("data", 3 * BLOCK, BLOCK), "big")


class Setting(Host):
    """Sets bits that nobody else sets."""

    def next_command(self) -> RecordedCommand:
        bit = self.number * ROUNDS + self.left
        return self._send(cdb.block_command(Opcode.ORWRITE_16, 5, 1), (1 << bit).to_bytes(BLOCK, "big"))

    def _ended(self, command: RecordedCommand) -> None:
        if command.result.status is Status.GOOD:
            self.left -= 1


class Writing(Host):
    """Writes around and between those blocks, in steps and in one, so that the overlay turns over."""

    def next_command(self) -> RecordedCommand:
        kind = self.left % 3
        if kind == 0:
            return self._send(cdb.write(6, 900), bytes(900 * BLOCK))
        if kind == 1:
            return self._send(cdb.write_same(4, 1), b"s" * BLOCK)
        return self._send(cdb.unmap(40), cdb.unmap_parameter_list([(0, 2), (10, 5)]))

    def _ended(self, command: RecordedCommand) -> None:
        self.left -= 1


@pytest.mark.parametrize("seed", range(8))
def test_no_increment_and_no_bit_is_lost(seed: int) -> None:
    chance = random.Random(seed)
    clock = SimClock(seed)
    site = Site(clock)
    for disk in (*site.disks.values(), site.journal_disk):
        disk.cold_chance = lambda: chance.random() < 0.5
    unit = LogicalUnit(site.volumes["data"])
    hosts: list[Host] = [Counting(site, unit, number) for number in range(SESSIONS)]
    hosts += [Setting(site, unit, number) for number in range(SESSIONS)]
    hosts += [Writing(site, unit, number) for number in range(2)]
    for _ in range(200_000):
        ended = [host.poll() for host in hosts]
        if all(ended):
            break
        assert clock.step()
    assert all(host.left == 0 for host in hosts)
    counted = int.from_bytes(site.read("data", 3 * BLOCK, BLOCK), "big")
    assert counted == sum(host.successes for host in hosts) == SESSIONS * ROUNDS
    bits = int.from_bytes(site.read("data", 5 * BLOCK, BLOCK), "big")
    expected = {number * ROUNDS + left for number in range(SESSIONS) for left in range(1, ROUNDS + 1)}
    assert {bit for bit in range(BLOCK * 8) if bits >> bit & 1} == expected
    assert not unit.gate.closed


def test_blocks_are_mapped_from_the_journal_on_and_unmapped_by_unmap() -> None:
    site = Site(SimClock(1))
    volume = site.volumes["data"]

    def allocation() -> bytes:
        return bytes(volume.allocation(0, 32 * BLOCK))

    assert allocation() == bytes(32)
    site.write_now("data", 3 * BLOCK, b"x" * 2 * BLOCK)
    assert allocation() == b"\0\0\0\1\1" + bytes(27), "in the journal only"
    site.write_now("data", 16 * BLOCK, b"y" * 8 * BLOCK)
    site.clock.run_for(10.0)
    applied = allocation()
    assert applied[3:5] == b"\1\1"
    assert applied[16:24] == b"\1" * 8, "on the volume"
    assert applied[24:] == bytes(8)
    unit = LogicalUnit(volume)
    command = RecordedCommand(
        cdb.unmap(24).ljust(16, b"\0"), cdb.unmap_parameter_list([(0, 24)]), Nexus("a", "b")
    )
    unit.execute_any(command, command.cdb)
    site.clock.run_until(lambda: bool(command.results))
    assert allocation() == bytes(32)
    site.clock.run_for(10.0)
    assert allocation() == bytes(32), "punched"
