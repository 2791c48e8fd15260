"""Logical unit numbers on the wire, and the REPORT LUNS parameter data.

Eight bytes, of which only the first level is used (SAM-5, *Logical unit addressing*). Two of its methods are
written (peripheral device below 256, flat space up to 16383) and both are read, since an initiator may
address any LUN by either.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

from target.errors import PeerError
from target.volume import Buffer

LUN_MAX = 0x3FFF
UNADDRESSABLE_LUN = -1
"""What `decode_lun` makes of an address that no logical unit here can have."""

_FIRST_LEVEL_SHIFT = 48
_BELOW_FIRST_LEVEL = (1 << _FIRST_LEVEL_SHIFT) - 1
_HEADER = struct.Struct(">I4x")


def encode_lun(lun: int) -> int:
    """The eight-byte field as a big-endian number."""
    assert 0 <= lun <= LUN_MAX, lun
    method = 0 if lun < 256 else 0x4000
    return (method | lun) << _FIRST_LEVEL_SHIFT


def decode_lun(field: int) -> int:
    """The LUN in an eight-byte field, or `UNADDRESSABLE_LUN`, which no device has."""
    first = field >> _FIRST_LEVEL_SHIFT
    if field & _BELOW_FIRST_LEVEL:
        return UNADDRESSABLE_LUN
    if first < 0x100:  # peripheral device addressing, bus 0
        return first
    if first >> 14 == 1:  # flat space addressing
        return first & LUN_MAX
    return UNADDRESSABLE_LUN


def encode_report_luns(luns: Iterable[int]) -> bytes:
    """SPC-4, *REPORT LUNS command*: length, four reserved bytes, the LUNs."""
    fields = b"".join(encode_lun(lun).to_bytes(8, "big") for lun in sorted(luns))
    return _HEADER.pack(len(fields)) + fields


def decode_report_luns(data: Buffer) -> tuple[int, list[int]]:
    """(bytes of the whole list, the LUNs that fitted): ask again when the first is more than allocated."""
    if len(data) < 8:
        raise PeerError(f"REPORT LUNS answered {len(data)} bytes: at least 8 are needed")
    (length,) = _HEADER.unpack_from(data)
    end = min(8 + length, len(data))
    fields = (int.from_bytes(data[at : at + 8], "big") for at in range(8, end - 7, 8))
    return 8 + length, [decode_lun(field) for field in fields]
