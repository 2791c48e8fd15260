"""LUNs: each command reaches its logical unit, and a LUN without one answers as SPC wants."""

from __future__ import annotations

import pytest

from target.scsi import cdb, sense
from target.scsi.command import GOOD
from target.scsi.device_server import Device
from target.scsi.inquiry import decode_standard
from target.scsi.logical_unit import LogicalUnit
from target.scsi.lun import UNADDRESSABLE_LUN, decode_report_luns
from target.scsi.sense import decode_sense
from tests.unit.scsi.initiator import Initiator, data_of, sense_of
from tests.unit.scsi.memory_volume import MemoryVolume


def unit() -> LogicalUnit:
    return LogicalUnit(MemoryVolume())


def reported(initiator: Initiator, lun: int = 0) -> list[int]:
    return decode_report_luns(data_of(initiator.execute(cdb.report_luns(4096), lun=lun)))[1]


def test_each_lun_has_its_own_volume() -> None:
    volumes = {lun: MemoryVolume() for lun in (0, 3, 300)}
    initiator = Initiator(device=Device({lun: LogicalUnit(volume) for lun, volume in volumes.items()}))
    for lun in volumes:
        assert initiator.execute(cdb.write(0, 1), bytes((lun & 0xFF,)) * 512, lun=lun) is GOOD
    assert [volume.content[0] for volume in volumes.values()] == [0, 3, 300 & 0xFF]
    assert reported(initiator) == [0, 3, 300]


@pytest.mark.parametrize("lun", [1, 16383, UNADDRESSABLE_LUN])
def test_a_lun_without_logical_unit(lun: int) -> None:
    initiator = Initiator()
    inquiry = decode_standard(data_of(initiator.execute(cdb.inquiry(), lun=lun)))
    assert (inquiry.peripheral_qualifier, inquiry.device_type) == (3, 0x1F)
    found = decode_sense(data_of(initiator.execute(cdb.request_sense(), lun=lun)))
    assert found == sense.LOGICAL_UNIT_NOT_SUPPORTED
    assert reported(initiator, lun=lun) == [0]
    for built in (cdb.test_unit_ready(), cdb.read(0, 1), cdb.inquiry(page=0x83), b"\xff", b"\x9e\x1f"):
        assert sense_of(initiator.execute(built, lun=lun)) == sense.LOGICAL_UNIT_NOT_SUPPORTED
    assert not initiator.volume.calls


def test_a_device_without_logical_units_still_reports() -> None:
    initiator = Initiator(device=Device({}))
    assert reported(initiator) == []


@pytest.mark.parametrize(("select_report", "luns"), [(0, [0]), (1, []), (2, [0])])
def test_select_report(select_report: int, luns: list[int]) -> None:
    data = data_of(Initiator().execute(cdb.report_luns(64, select_report=select_report)))
    assert decode_report_luns(data)[1] == luns


def test_report_luns_refuses_other_selections_and_short_allocations() -> None:
    initiator = Initiator()
    wrong = initiator.execute(cdb.report_luns(64, select_report=0x10))
    assert sense_of(wrong) == sense.invalid_field_in_cdb(2)
    assert sense_of(initiator.execute(cdb.report_luns(15))) == sense.invalid_field_in_cdb(6)
    reserved = bytearray(cdb.report_luns(64))
    reserved[1] = 1
    assert sense_of(initiator.execute(bytes(reserved))) == sense.invalid_field_in_cdb(1, 0)


def test_report_luns_is_cut_at_the_allocation_length() -> None:
    initiator = Initiator(device=Device({lun: unit() for lun in range(10)}))
    assert len(data_of(initiator.execute(cdb.report_luns(16)))) == 16


def test_changed_luns_are_announced_until_they_were_reported() -> None:
    kept, added = unit(), unit()
    initiator = Initiator(device=Device({0: kept, 1: unit()}))
    initiator.device.replace({0: kept, 2: added})
    assert sense_of(initiator.execute(cdb.test_unit_ready(), lun=1)) == sense.LOGICAL_UNIT_NOT_SUPPORTED
    assert sense_of(initiator.execute(cdb.test_unit_ready())) == sense.REPORTED_LUNS_DATA_HAS_CHANGED
    assert initiator.execute(cdb.test_unit_ready()) is GOOD
    initiator.device.replace({0: kept})
    assert reported(initiator) == [0]
    assert initiator.execute(cdb.test_unit_ready()) is GOOD


def test_the_same_luns_again_are_no_news() -> None:
    kept = unit()
    initiator = Initiator(device=Device({0: kept}))
    initiator.device.replace({0: kept})
    assert initiator.execute(cdb.test_unit_ready()) is GOOD
