"""The commands about the logical unit itself: identity, capacity, mode, sense. SPC-4 and SBC-3.

Handlers as in `media_commands`.
"""

from __future__ import annotations

from collections.abc import Callable

from target.scsi import inquiry as pages
from target.scsi.command import GOOD, ScsiCommand, ScsiResult, Status
from target.scsi.extended_copy_data import third_party_copy_descriptors
from target.scsi.inquiry import VpdPage
from target.scsi.media_commands import flush_steps
from target.scsi.mode import MODE_6, MODE_10, ModeForm, mode_select, mode_sense
from target.scsi.operation import Outcome
from target.scsi.sense import (
    MEDIUM_NOT_PRESENT,
    MODE_PARAMETERS_CHANGED,
    NO_SENSE,
    Sense,
    invalid_field_in_cdb,
)
from target.scsi.unit_state import UnitState


def data_in(data: bytes, allocation_length: int) -> ScsiResult:
    """Parameter data, cut at the allocation length, which is no error."""
    return ScsiResult(Status.GOOD, (data[:allocation_length],)) if allocation_length else GOOD


def test_unit_ready(unit: UnitState, command: ScsiCommand, cdb: bytes) -> Outcome:
    """A volume that refuses writes for now can still be read: ready."""
    return GOOD


def request_sense(unit: UnitState, command: ScsiCommand, cdb: bytes) -> Outcome:
    """A pending unit attention is reported here, as data, and is thereby over."""
    standing = MEDIUM_NOT_PRESENT if unit.ejected else NO_SENSE
    return sense_data_in(unit.attentions.take(command.nexus) or standing, cdb)


def sense_data_in(sense: Sense, cdb: bytes) -> ScsiResult:
    """Sense data as the parameter data of REQUEST SENSE, in the format that its DESC bit asks for."""
    return data_in(sense.encode_descriptor() if cdb[1] & 0x01 else sense.encode_fixed(), cdb[4])


def inquiry(unit: UnitState, command: ScsiCommand, cdb: bytes) -> Outcome:
    allocation_length = int.from_bytes(cdb[3:5], "big")
    if not cdb[1] & 0x01:  # EVPD
        if cdb[2]:
            return invalid_field_in_cdb(2)
        return data_in(pages.encode_standard(removable=unit.removable), allocation_length)
    page = _VPD_PAGES.get(cdb[2])
    if page is None:
        return invalid_field_in_cdb(2)
    return data_in(page(unit, command), allocation_length)


_VPD_PAGES: dict[int, Callable[[UnitState, ScsiCommand], bytes]] = {
    VpdPage.SUPPORTED_PAGES: lambda unit, command: pages.supported_pages(),
    VpdPage.UNIT_SERIAL_NUMBER: lambda unit, command: pages.unit_serial_number(unit.volume.serial),
    VpdPage.DEVICE_IDENTIFICATION: lambda unit, command: pages.device_identification(
        unit.volume.serial, command.nexus.target_port, command.nexus.relative_target_port
    ),
    VpdPage.THIRD_PARTY_COPY: lambda unit, command: pages.encode_vpd(
        VpdPage.THIRD_PARTY_COPY, third_party_copy_descriptors()
    ),
    VpdPage.BLOCK_LIMITS: lambda unit, command: pages.block_limits(unit.limits, unit.block_size_bytes),
    VpdPage.BLOCK_DEVICE_CHARACTERISTICS: lambda unit, command: pages.block_device_characteristics(),
    VpdPage.LOGICAL_BLOCK_PROVISIONING: lambda unit, command: pages.logical_block_provisioning(
        unit.threshold_exponent
    ),
}


def read_capacity_10(unit: UnitState, command: ScsiCommand, cdb: bytes) -> Outcome:
    return ScsiResult(Status.GOOD, (unit.capacity.encode_10(),))


def read_capacity_16(unit: UnitState, command: ScsiCommand, cdb: bytes) -> Outcome:
    return data_in(unit.capacity.encode_16(), int.from_bytes(cdb[10:14], "big"))


def mode_sense_6(unit: UnitState, command: ScsiCommand, cdb: bytes) -> Outcome:
    return _mode_sense(unit, cdb, MODE_6, cdb[4])


def mode_sense_10(unit: UnitState, command: ScsiCommand, cdb: bytes) -> Outcome:
    return _mode_sense(unit, cdb, MODE_10, int.from_bytes(cdb[7:9], "big"))


def _mode_sense(unit: UnitState, cdb: bytes, form: ModeForm, allocation_length: int) -> Outcome:
    data = mode_sense(
        cdb,
        form,
        unit.mode,
        write_protected=unit.write_protection() is not None,
        block_count=unit.block_count,
        block_size=unit.block_size_bytes,
    )
    return data if isinstance(data, Sense) else data_in(data, allocation_length)


def mode_select_6(unit: UnitState, command: ScsiCommand, cdb: bytes) -> Outcome:
    return _mode_select(unit, command, cdb, MODE_6)


def mode_select_10(unit: UnitState, command: ScsiCommand, cdb: bytes) -> Outcome:
    return _mode_select(unit, command, cdb, MODE_10)


def _mode_select(unit: UnitState, command: ScsiCommand, cdb: bytes, form: ModeForm) -> Outcome:
    before = unit.mode
    after = mode_select(
        cdb,
        command.data_out,
        form,
        before,
        block_count=unit.block_count,
        block_size=unit.block_size_bytes,
    )
    if isinstance(after, Sense):
        return after
    if after == before:
        return GOOD
    unit.set_mode(after)
    unit.attentions.establish(MODE_PARAMETERS_CHANGED, except_for=command.nexus)
    # What was written while the cache was on becomes durable before the initiator may believe that it is off.
    return GOOD if after.write_cache_enabled else flush_steps(unit)


def send_diagnostic(unit: UnitState, command: ScsiCommand, cdb: bytes) -> Outcome:
    """The default self-test, which a working logical unit passes."""
    if not cdb[1] & 0x04:  # SELFTEST
        return invalid_field_in_cdb(1, 2)
    return GOOD
