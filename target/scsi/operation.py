"""One command of the device server's table, and how it is reported to an initiator. Pure.

A usage map has the CDB's length and a one wherever the device server looks (SPC-4, *REPORT SUPPORTED
OPERATION CODES command*); a one in a CDB where the map has a zero is a reserved or unsupported field.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from target.scsi.cdb import Opcode
from target.scsi.chain import Steps
from target.scsi.command import ScsiCommand, ScsiResult
from target.scsi.reservations import Access
from target.scsi.sense import Sense
from target.scsi.unit_state import UnitState

Outcome = ScsiResult | Sense | Steps
Handler = Callable[[UnitState, ScsiCommand, bytes], Outcome]


@dataclass(frozen=True, slots=True)
class Operation:
    """One command. `handler` is None for what the device server executes without a logical unit."""

    opcode: Opcode
    name: str
    standard: str
    usage: bytes
    handler: Handler | None
    access: Access
    needs_medium: bool
    service_action: int | None = None
    remark: str = ""

    @property
    def length(self) -> int:
        return len(self.usage)


_CTDP_IN_LIST, _SERVACTV = 0x02, 0x01
_CTDP_OF_ONE, _NOT_SUPPORTED, _SUPPORTED = 0x80, 0x01, 0x03
_NO_TIMEOUTS = struct.pack(">H10x", 10)  # zero says nothing about how long a command takes


def encode_operations(operations: Iterable[Operation], *, timeouts: bool) -> bytes:
    """The parameter data for all commands."""
    descriptors = b""
    for operation in operations:
        action = operation.service_action
        flags = (_SERVACTV if action is not None else 0) | (_CTDP_IN_LIST if timeouts else 0)
        descriptors += struct.pack(">BxHxBH", operation.opcode, action or 0, flags, len(operation.usage))
        descriptors += _NO_TIMEOUTS if timeouts else b""
    return struct.pack(">I", len(descriptors)) + descriptors


def encode_operation(operation: Operation | None, *, timeouts: bool) -> bytes:
    """The parameter data for one command, or for one that is not supported."""
    if operation is None:
        return struct.pack(">xBH", _NOT_SUPPORTED, 0)
    usage = bytearray(operation.usage)
    if operation.service_action is not None:
        usage[1] = operation.service_action | usage[1] & 0xE0
    flags = _SUPPORTED | (_CTDP_OF_ONE if timeouts else 0)
    return struct.pack(">xBH", flags, len(usage)) + usage + (_NO_TIMEOUTS if timeouts else b"")
