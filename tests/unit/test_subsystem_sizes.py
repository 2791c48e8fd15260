"""Who is told that a volume has grown: the initiators of that volume, once, and of no other."""

from __future__ import annotations

from target.scsi import cdb, sense
from target.scsi.command import GOOD
from target.scsi.logical_unit import LogicalUnit
from target.subsystem import tells_sizes
from tests.unit.scsi.initiator import Initiator, data_of, sense_of
from tests.unit.scsi.memory_volume import MemoryVolume


def test_the_initiators_of_a_volume_that_grew_are_told_once() -> None:
    grown, other = Initiator(MemoryVolume(1 << 20)), Initiator(MemoryVolume(1 << 20))
    units = [initiator.device.logical_units[0] for initiator in (grown, other)]
    assert all(isinstance(unit, LogicalUnit) for unit in units)
    look = tells_sizes(units)
    look()
    grown.volume.size_bytes = 2 << 20
    grown.volume.content.extend(bytes(1 << 20))
    look()
    look()
    assert sense_of(grown.execute(cdb.test_unit_ready())) == sense.CAPACITY_DATA_HAS_CHANGED
    assert sense_of(grown.execute(cdb.read(4096, 1))).asc == 0x21
    assert len(data_of(grown.execute(cdb.read(4095, 1)))) == 512
    for initiator in (grown, other):
        assert initiator.execute(cdb.test_unit_ready()) is GOOD
