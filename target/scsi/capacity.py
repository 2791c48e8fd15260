"""READ CAPACITY parameter data, both forms, both ways. SBC-3. Pure.

READ CAPACITY (16), 32 bytes:

    0-7    last logical block address
    8-11   logical block length
    12     P_TYPE (bits 3-1), PROT_EN (0)
    13     P_I_EXPONENT (7-4), logical blocks per physical block exponent (3-0)
    14-15  LBPME (15), LBPRZ (14), lowest aligned LBA (13-0)
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from target.errors import PeerError
from target.volume import Buffer

_DATA_10 = struct.Struct(">II")
_DATA_16 = struct.Struct(">QIBBH16x")
_LBPME = 0x8000
_LBPRZ = 0x4000


@dataclass(frozen=True, slots=True)
class Capacity:
    """How large a logical unit is, and whether blocks can be given back and then read as zeros."""

    block_count: int
    block_size_bytes: int
    physical_block_exponent: int = 0
    thin: bool = False
    unmapped_reads_zeros: bool = False

    @property
    def size_bytes(self) -> int:
        return self.block_count * self.block_size_bytes

    def encode_10(self) -> bytes:
        """8 bytes; FFFFFFFFh as the last LBA asks for READ CAPACITY (16)."""
        return _DATA_10.pack(min(self.block_count - 1, 0xFFFFFFFF), self.block_size_bytes)

    def encode_16(self) -> bytes:
        provisioning = (_LBPME if self.thin else 0) | (_LBPRZ if self.unmapped_reads_zeros else 0)
        return _DATA_16.pack(
            self.block_count - 1, self.block_size_bytes, 0, self.physical_block_exponent, provisioning
        )


def decode_capacity_10(data: Buffer) -> Capacity | None:
    """None when the unit is too large for this form."""
    if len(data) < _DATA_10.size:
        raise PeerError(f"READ CAPACITY (10) answered {len(data)} bytes of 8")
    last, block_size = _DATA_10.unpack_from(data)
    return None if last == 0xFFFFFFFF else Capacity(last + 1, block_size)


def decode_capacity_16(data: Buffer) -> Capacity:
    if len(data) < 16:
        raise PeerError(f"READ CAPACITY (16) answered {len(data)} bytes of 32")
    last, block_size, _, exponents, provisioning = _DATA_16.unpack(bytes(data[:32]).ljust(32, b"\0"))
    return Capacity(
        last + 1, block_size, exponents & 0x0F, bool(provisioning & _LBPME), bool(provisioning & _LBPRZ)
    )
