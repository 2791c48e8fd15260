"""What the commands of one logical unit share: volume, geometry, mode parameters, unit attentions,
reservations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from target.scsi.capacity import Capacity
from target.scsi.command import Nexus
from target.scsi.extended_copy_data import CopyStatus
from target.scsi.gate import Gate
from target.scsi.inquiry import Limits
from target.scsi.mode import ModeParameters
from target.scsi.reservations import Reservations, ReservationStore
from target.scsi.sense import (
    SOFTWARE_WRITE_PROTECTED,
    WRITE_PROTECTED,
    Sense,
    invalid_field_in_cdb,
    lba_out_of_range,
)
from target.scsi.unit_attention import UnitAttentions
from target.volume import Request, Space, Volume

from . import cdb as cdbs

BLOCK_SIZES_BYTES = (512, 4096)
_THRESHOLD_SET_SHIFT = 20  # 1 MiB, so that 32 bits count 4 PiB


AbortTasks = Callable[[Nexus, Request], None]
"""Abort the commands of a nexus, and answer when none of them can change the medium any more."""


def _nothing_to_abort(nexus: Nexus, request: Request) -> None:
    request.done()


class UnitState:
    """Attributes are plain, for speed; they are changed by the methods here alone."""

    def __init__(
        self,
        volume: Volume,
        limits: Limits | None = None,
        reservation_store: ReservationStore | None = None,
        *,
        removable: bool = False,
        space: Callable[[], Space] | None = None,
    ) -> None:
        assert volume.block_size_bytes in BLOCK_SIZES_BYTES, volume.block_size_bytes
        self.volume = volume
        self.limits = limits or Limits()
        self.attentions = UnitAttentions()
        self.gate = Gate(self._choose_way_of_writes)
        self.reservation_gate = Gate()
        self.expansion_gate = Gate()
        """One at a time of the commands that write more than they were sent, so that one memory is enough."""
        self.reservation_store = reservation_store
        self.reservations = reservation_store.load() if reservation_store is not None else Reservations()
        self.reserved_by: Nexus | None = None
        self.removable = removable
        self.ejected = False
        self.removal_prevented_by: set[Nexus] = set()
        self.copy_results: dict[Nexus, tuple[int, CopyStatus]] = {}
        self.device_units: Callable[[], Iterable[UnitState]] = lambda: (self,)
        """All logical units of the device, for copies from one to another."""
        self.abort_tasks: AbortTasks = _nothing_to_abort
        self.space = space
        """What the volume takes below, where that can be told; raises OSError."""
        self.block_size_bytes = volume.block_size_bytes
        self.block_shift = volume.block_size_bytes.bit_length() - 1
        self.transfer_blocks_max = self.limits.transfer_bytes_max >> self.block_shift
        self.refresh_capacity()
        self.set_mode(ModeParameters())

    def set_mode(self, mode: ModeParameters) -> None:
        self.mode = mode
        self.write_through = not mode.write_cache_enabled
        self._choose_way_of_writes()

    def _choose_way_of_writes(self) -> None:
        """Zero sends every write the long way, which refuses it, or lets it wait at the gate."""
        short = not (self.mode.software_write_protected or self.gate.closed)
        self.fast_write_blocks_max = self.transfer_blocks_max if short else 0

    def set_reservations(self, reservations: Reservations) -> None:
        """Persistent reservations, from now on; they are durable already where they must be."""
        self.reservations = reservations
        self.attentions.quiet.clear()

    def set_reserved_by(self, nexus: Nexus | None) -> None:
        """RESERVE (6): who has the unit to itself."""
        self.reserved_by = nexus
        self.attentions.quiet.clear()

    def set_ejected(self, ejected: bool) -> None:
        """The medium of a removable unit was taken out, or is back."""
        self.ejected = ejected
        self.attentions.quiet.clear()

    def refresh_capacity(self) -> None:
        """Look up the volume's size again."""
        self.block_count = self.volume.size_bytes >> self.block_shift

    @property
    def capacity(self) -> Capacity:
        """One logical block a physical block: a smaller write than 4096 bytes is journalled as it is. That
        4096 are better is told as the granularity of transfers (VPD page B0h).
        """
        return Capacity(self.block_count, self.block_size_bytes, thin=True, unmapped_reads_zeros=True)

    @property
    def threshold_exponent(self) -> int:
        """Mapped blocks are counted in sets of two to the power of this; 0: they are not."""
        return 0 if self.space is None else _THRESHOLD_SET_SHIFT - self.block_shift

    def encode_sense(self, sense: Sense) -> bytes:
        """Sense data that go with a status, in the format that D_SENSE of the control mode page asks for."""
        return sense.encode_descriptor() if self.mode.descriptor_sense else sense.encode_fixed()

    def write_protection(self) -> Sense | None:
        """Why nothing can be written now, if so."""
        if self.mode.software_write_protected:
            return SOFTWARE_WRITE_PROTECTED
        return WRITE_PROTECTED if self.volume.read_only_now else None

    def byte_range(self, cdb: bytes, limit_bytes: int) -> tuple[int, int] | Sense:
        """(offset, length) in bytes of a block command, or what is wrong with it."""
        extent = self.byte_extent(*cdbs.block_range(cdb))
        if not isinstance(extent, Sense) and extent[1] > limit_bytes:
            return invalid_field_in_cdb(cdbs.blocks_byte(cdb))
        return extent

    def byte_extent(self, lba: int, blocks: int) -> tuple[int, int] | Sense:
        """(offset, length) in bytes of a range of blocks, or that it is not there."""
        if lba >= self.block_count or blocks > self.block_count - lba:
            return lba_out_of_range(max(lba, self.block_count))
        return lba << self.block_shift, blocks << self.block_shift
