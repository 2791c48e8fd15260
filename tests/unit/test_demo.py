"""The parts of the demonstration that decide what is shown as true."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import pytest
from rich.console import Console

from scripts.demonstration.bank import Bank
from scripts.demonstration.lab import DATABASE_VOLUME, LOG_VOLUME, Lab
from scripts.demonstration.screen import Screen
from scripts.demonstration.story import compare_units, is_protected
from target.errors import PeerError
from target.iscsi.client import Client
from target.iscsi.node import TargetNode
from target.scsi.device_server import Device
from target.scsi.logical_unit import LogicalUnit
from target.volume import VolumeError
from tests.unit.iscsi.server import TARGET, Server
from tests.unit.scsi.memory_volume import MemoryVolume

UNIT_BYTES = 1 << 20


class TestScreen:
    """Lines for a person."""

    def test_check_that_did_not_hold_is_remembered_and_says_why(self) -> None:
        output = io.StringIO()
        screen = Screen(Console(file=output, width=200))
        screen.check("one [bold]claim", True)
        screen.check("another claim", False, "it was 3")
        assert screen.failed_checks == ["another claim"]
        assert "✓ one [bold]claim" in output.getvalue()
        assert "✗ another claim: NOT SO. it was 3" in output.getvalue()

    def test_step_that_fails_is_not_shown_as_done(self) -> None:
        output = io.StringIO()
        screen = Screen(Console(file=output, width=200))
        with screen.step("this works") as step:
            step.outcome = "7 things"
        with pytest.raises(PeerError), screen.step("this does not"):
            raise PeerError("gone")
        assert "• this works: 7 things" in output.getvalue()
        assert "• this does not" not in output.getvalue()


@contextmanager
def served(*volumes: MemoryVolume) -> Iterator[list[Client]]:
    """Clients of logical units that are served over iSCSI."""
    units = {lun: LogicalUnit(volume) for lun, volume in enumerate(volumes)}
    server = Server([TargetNode(TARGET, Device(units))])
    try:
        clients = [Client.connect(server.url(lun)) for lun in units]
        yield clients
        for client in clients:
            client.close()
    finally:
        server.stop()


class TestClaims:
    """What is said of logical units is what they hold and do."""

    def test_equal_units_do_not_differ(self) -> None:
        one, other = MemoryVolume(UNIT_BYTES + 512), MemoryVolume(UNIT_BYTES + 512)
        with served(one, other) as (ours, theirs):
            assert compare_units(ours, theirs) == (2049, 0)

    def test_every_block_that_differs_is_counted(self) -> None:
        one, other = MemoryVolume(3 * UNIT_BYTES), MemoryVolume(3 * UNIT_BYTES)
        for offset in (0, 511, 512 * 100, 3 * UNIT_BYTES - 1):
            other.content[offset] ^= 1
        with served(one, other) as (ours, theirs):
            assert compare_units(ours, theirs) == (6144, 3)

    def test_units_of_different_size_differ(self) -> None:
        with served(MemoryVolume(UNIT_BYTES), MemoryVolume(2 * UNIT_BYTES)) as (ours, theirs):
            assert compare_units(ours, theirs)[1] > 0

    def test_only_data_protect_counts_as_protected(self) -> None:
        protected, failing, writable = (MemoryVolume(UNIT_BYTES) for _ in range(3))
        protected.failures["write"] = VolumeError.WRITE_PROTECTED
        failing.failures["write"] = VolumeError.WRITE_FAILED
        with served(protected, failing, writable) as clients:
            assert [is_protected(client) for client in clients] == [True, False, False]


class MortalUnit:
    """A logical unit in memory whose connection can be lost."""

    block_size_bytes = 512
    block_count = 8 * UNIT_BYTES // 512

    def __init__(self) -> None:
        self.content = bytearray(8 * UNIT_BYTES)
        self.dead = False

    def __enter__(self) -> MortalUnit:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing to close."""

    def _check(self) -> None:
        if self.dead:
            raise PeerError("the connection broke")

    def read(self, lba: int, blocks: int) -> bytes:
        self._check()
        return bytes(self.content[lba * 512 : (lba + blocks) * 512])

    def write(self, lba: int, data: bytes) -> None:
        self._check()
        self.content[lba * 512 : lba * 512 + len(data)] = data

    def flush(self) -> None:
        self._check()


class UnitsLab:
    """What a bank needs of a lab: sessions with two volumes."""

    def __init__(self) -> None:
        self.units = {DATABASE_VOLUME: MortalUnit(), LOG_VOLUME: MortalUnit()}

    def connect(self, _site: str, volume: str) -> MortalUnit:
        return self.units[volume]

    def bank(self, seed: int = 1) -> Bank:
        return Bank(cast(Lab, self), "a", seed)

    def set_dead(self, dead: bool) -> None:
        for unit in self.units.values():
            unit.dead = dead


class TestBank:
    """The application of the demonstration."""

    def test_site_is_killed_inside_a_transaction_that_is_rolled_back_later(self) -> None:
        lab = UnitsLab()
        bank = lab.bank()
        bank.ledger.create()
        for _ in range(20):
            bank.ledger.transfer()
        bank.transfer_until_killed(lambda: lab.set_dead(True))
        bank.close()
        lab.set_dead(False)
        with lab.bank() as survivor:
            assert survivor.was_in_transaction
            audit = survivor.audit()
        assert (audit.transfers, audit.faults) == (20, ())

    def test_bank_goes_on_where_its_database_ends(self) -> None:
        lab = UnitsLab()
        with lab.bank() as bank:
            bank.ledger.create()
            bank.ledger.transfer()
        with lab.bank(seed=2) as bank:
            assert not bank.was_in_transaction
            bank.ledger.resume()
            assert bank.ledger.transfer() == 2
            audit = bank.audit()
        assert (audit.transfers, audit.faults) == (2, ())

    @pytest.mark.parametrize(
        "harm",
        [
            "UPDATE account SET balance = balance + 1 WHERE id = 7",
            "DELETE FROM transfer WHERE number = 3",
            "UPDATE transfer SET amount = amount + 1 WHERE number = 3",
            "UPDATE transfer SET note = x'00' WHERE number = 5",
            "DELETE FROM transfer WHERE number >= 4",
        ],
    )
    def test_audit_finds_a_history_that_was_tampered_with(self, harm: str) -> None:
        with UnitsLab().bank() as bank:
            bank.ledger.create()
            for _ in range(6):
                bank.ledger.transfer()
            assert bank.audit().faults == ()
            bank.connection.execute(harm)
            assert bank.audit().faults
