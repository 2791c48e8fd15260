"""START STOP UNIT and PREVENT ALLOW MEDIUM REMOVAL: stopping, and the medium of a removable unit.

SBC-3 and SPC-4. Handlers as in `media_commands`. The medium is the volume: ejecting it makes everything
durable and refuses what needs a medium (3Ah/00h) until it is loaded again, or the program starts again.
Nothing happens to what it holds.
"""

from __future__ import annotations

from target.scsi.chain import Steps
from target.scsi.command import GOOD, Nexus, ScsiCommand
from target.scsi.media_commands import flush_steps
from target.scsi.operation import Outcome
from target.scsi.sense import MEDIUM_MAY_HAVE_CHANGED, MEDIUM_REMOVAL_PREVENTED, invalid_field_in_cdb
from target.scsi.unit_state import UnitState

_START, _LOEJ = 0x01, 0x02
_PREVENT = 0x01


def start_stop_unit(unit: UnitState, command: ScsiCommand, cdb: bytes) -> Outcome:
    """A stop makes everything durable; the unit stays ready, since other hosts may use it."""
    if cdb[4] >> 4:  # POWER CONDITION: there is none to change, and the other bits then mean nothing
        return GOOD
    start = bool(cdb[4] & _START)
    if not cdb[4] & _LOEJ:
        return GOOD if start or unit.ejected else flush_steps(unit)
    if not unit.removable:
        return invalid_field_in_cdb(4, 1)
    if unit.removal_prevented_by:
        return MEDIUM_REMOVAL_PREVENTED
    if start == (not unit.ejected):
        return GOOD
    if start:
        unit.set_ejected(False)
        unit.attentions.establish(MEDIUM_MAY_HAVE_CHANGED, except_for=command.nexus)
        return GOOD
    return _eject_steps(unit)


def _eject_steps(unit: UnitState) -> Steps:
    unit.set_ejected(True)
    yield unit.volume.flush
    return GOOD


def prevent_allow_medium_removal(unit: UnitState, command: ScsiCommand, cdb: bytes) -> Outcome:
    """Prevention is each nexus' own; while any is there, nobody ejects or loads."""
    if not unit.removable:
        return invalid_field_in_cdb(4, 1) if cdb[4] else GOOD
    nexus: Nexus = command.nexus
    if cdb[4] & _PREVENT:
        unit.removal_prevented_by.add(nexus)
    else:
        unit.removal_prevented_by.discard(nexus)
    return GOOD
