"""LOG SENSE and its pages: only what is known, and true at the moment it is asked. SPC-4, SBC-3.

Handler as in `media_commands`. Every page is made when it is asked for; nothing is counted for it on the way
of a command, and nothing is saved (GLTSD of the control mode page). So there are no pages of what was never
looked at: temperature, counters of errors, times that commands took.

    0-1    DS (7: not saved), SPF (6: a subpage), page code (5-0); subpage code
    2-3    page length
    4-     pages and subpages that are supported, or log parameters:
           code (2 bytes), control, length, value
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from enum import IntEnum

from target.scsi.command import ScsiCommand
from target.scsi.operation import Outcome
from target.scsi.sense import (
    LOGICAL_UNIT_FAILURE,
    NO_SENSE,
    UNRECOVERED_READ_ERROR,
    invalid_field_in_cdb,
)
from target.scsi.unit_commands import data_in
from target.scsi.unit_state import UnitState


class LogPage(IntEnum):
    SUPPORTED_PAGES = 0x00
    LOGICAL_BLOCK_PROVISIONING = 0x0C
    INFORMATIONAL_EXCEPTIONS = 0x2F


ALL_SUBPAGES = 0xFF
_DS, _SPF = 0x80, 0x40
_BINARY_LIST = 0x23  # TSD, and format and linking 11b
_HEADER = struct.Struct(">BBH")
_PARAMETER = struct.Struct(">HBB")

_AVAILABLE, _USED = 0x0001, 0x0002
_OF_THIS_UNIT, _SHARED = 0x01, 0x02
_RESOURCE_COUNT = struct.Struct(">IB3x")
_RESOURCE_COUNT_MAX = 0xFFFFFFFF
_TEMPERATURE_IS_NOT_KNOWN = 0xFF
_EXCEPTION = struct.Struct(">BBBx")

Parameters = dict[int, bytes]


def log_sense(unit: UnitState, command: ScsiCommand, cdb: bytes) -> Outcome:
    """Page control makes no difference: all parameters are lists, without thresholds or defaults."""
    page, subpage = cdb[2] & 0x3F, cdb[3]
    pointer, allocation_length = struct.unpack_from(">HH", cdb, 5)
    if page == LogPage.SUPPORTED_PAGES and subpage in (0, ALL_SUBPAGES):
        if pointer:
            return invalid_field_in_cdb(5)
        return data_in(_supported(unit, with_subpages=subpage == ALL_SUBPAGES), allocation_length)
    parameters_of = pages_of(unit).get(page)
    if parameters_of is None:
        return invalid_field_in_cdb(2, 5)
    if subpage:
        return invalid_field_in_cdb(3)
    try:
        parameters = parameters_of(unit)
    except OSError:
        return UNRECOVERED_READ_ERROR
    if pointer > max(parameters):
        return invalid_field_in_cdb(5)
    body = b"".join(
        _PARAMETER.pack(code, _BINARY_LIST, len(value)) + value
        for code, value in parameters.items()
        if code >= pointer
    )
    return data_in(_HEADER.pack(_DS | page, 0, len(body)) + body, allocation_length)


def pages_of(unit: UnitState) -> Mapping[int, Callable[[UnitState], Parameters]]:
    """The pages of a unit that hold parameters, ascending."""
    return _PAGES if unit.space is not None else _PAGES_WITHOUT_SPACE


def _supported(unit: UnitState, *, with_subpages: bool) -> bytes:
    pages = (LogPage.SUPPORTED_PAGES, *pages_of(unit))
    if not with_subpages:
        return _HEADER.pack(LogPage.SUPPORTED_PAGES, 0, len(pages)) + bytes(pages)
    pairs = sorted([(page, 0) for page in pages] + [(LogPage.SUPPORTED_PAGES, ALL_SUBPAGES)])
    body = b"".join(map(bytes, pairs))
    return _HEADER.pack(_SPF | LogPage.SUPPORTED_PAGES, ALL_SUBPAGES, len(body)) + body


def _logical_block_provisioning(unit: UnitState) -> Parameters:
    """Threshold sets used on the device below, and those that it has left, for all who share it. OSError."""
    assert unit.space is not None
    space = unit.space()
    return {
        _AVAILABLE: _resource_count(unit, space.available_bytes, _SHARED),
        _USED: _resource_count(unit, space.used_bytes, _OF_THIS_UNIT),
    }


def _resource_count(unit: UnitState, count_bytes: int, scope: int) -> bytes:
    sets = count_bytes >> (unit.threshold_exponent + unit.block_shift)
    return _RESOURCE_COUNT.pack(min(sets, _RESOURCE_COUNT_MAX), scope)


def _informational_exceptions(unit: UnitState) -> Parameters:
    found = LOGICAL_UNIT_FAILURE if unit.volume.failed_now else NO_SENSE
    return {0x0000: _EXCEPTION.pack(found.asc, found.ascq, _TEMPERATURE_IS_NOT_KNOWN)}


_PAGES_WITHOUT_SPACE: dict[int, Callable[[UnitState], Parameters]] = {
    LogPage.INFORMATIONAL_EXCEPTIONS: _informational_exceptions
}
_PAGES: dict[int, Callable[[UnitState], Parameters]] = {
    LogPage.LOGICAL_BLOCK_PROVISIONING: _logical_block_provisioning,
    **_PAGES_WITHOUT_SPACE,
}
