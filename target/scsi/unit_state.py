"""What the commands of one logical unit share: volume, geometry, mode parameters, unit attentions."""

from __future__ import annotations

from target.scsi.capacity import Capacity
from target.scsi.inquiry import Limits
from target.scsi.mode import ModeParameters
from target.scsi.sense import (
    SOFTWARE_WRITE_PROTECTED,
    WRITE_PROTECTED,
    Sense,
    invalid_field_in_cdb,
    lba_out_of_range,
)
from target.scsi.unit_attention import UnitAttentions
from target.volume import Volume

from . import cdb as cdbs

BLOCK_SIZES_BYTES = (512, 4096)
_PHYSICAL_BLOCK_SHIFT = 12  # the journal and the overlay work in 4096 bytes: smaller writes are merged


class UnitState:
    """Attributes are plain, for speed; only `set_mode` and `refresh_capacity` change them."""

    def __init__(self, volume: Volume, limits: Limits | None = None) -> None:
        assert volume.block_size_bytes in BLOCK_SIZES_BYTES, volume.block_size_bytes
        self.volume = volume
        self.limits = limits or Limits()
        self.attentions = UnitAttentions()
        self.block_size_bytes = volume.block_size_bytes
        self.block_shift = volume.block_size_bytes.bit_length() - 1
        self.transfer_blocks_max = self.limits.transfer_bytes_max >> self.block_shift
        self.refresh_capacity()
        self.set_mode(ModeParameters())

    def set_mode(self, mode: ModeParameters) -> None:
        self.mode = mode
        self.write_through = not mode.write_cache_enabled
        # Zero sends every write to the checks of the long way, which refuse it.
        self.fast_write_blocks_max = 0 if mode.software_write_protected else self.transfer_blocks_max

    def refresh_capacity(self) -> None:
        """Look up the volume's size again."""
        self.block_count = self.volume.size_bytes >> self.block_shift

    @property
    def capacity(self) -> Capacity:
        return Capacity(
            self.block_count,
            self.block_size_bytes,
            _PHYSICAL_BLOCK_SHIFT - self.block_shift,
            thin=True,
            unmapped_reads_zeros=True,
        )

    def write_protection(self) -> Sense | None:
        """Why nothing can be written now, if so."""
        if self.mode.software_write_protected:
            return SOFTWARE_WRITE_PROTECTED
        return WRITE_PROTECTED if self.volume.read_only_now else None

    def byte_range(self, cdb: bytes, limit_bytes: int) -> tuple[int, int] | Sense:
        """(offset, length) in bytes of a block command, or what is wrong with it."""
        lba, blocks = cdbs.block_range(cdb)
        if lba >= self.block_count or blocks > self.block_count - lba:
            return lba_out_of_range(max(lba, self.block_count))
        if blocks << self.block_shift > limit_bytes:
            return invalid_field_in_cdb(cdbs.blocks_byte(cdb))
        return lba << self.block_shift, blocks << self.block_shift
