"""A block device offered as it is, to be read and never written: the journal logical unit of the SAN portal.

It passes the overlay by and knows nothing of what it reads. Invariant: no call here changes a byte of the
device.
"""

from __future__ import annotations

from functools import partial

from target.blockdev import BlockDevice, mapped_sectors
from target.scheduler import Scheduler
from target.volume import SECTOR_BYTES, Buffer, Request, VolumeError


class ReadOnlyVolume:
    """A `Volume` over a `BlockDevice`. Reads that would block go to the "read" lane."""

    def __init__(
        self,
        device: BlockDevice,
        scheduler: Scheduler,
        *,
        name: str,
        serial: str,
        block_size_bytes: int = SECTOR_BYTES,
    ) -> None:
        self.name = name
        self.serial = serial
        self.block_size_bytes = block_size_bytes
        self._device = device
        self.look_at_size()
        self._scheduler = scheduler

    def look_at_size(self) -> None:
        """It is as large as its device, which may have grown."""
        self.size_bytes = self._device.size_bytes - self._device.size_bytes % self.block_size_bytes

    @property
    def read_only_now(self) -> bool:
        return True

    @property
    def failed_now(self) -> bool:
        return False

    def read(self, offset: int, length: int, request: Request) -> None:
        try:
            data = self._device.pread_nowait(length, offset)
        except OSError:
            request.failed(VolumeError.READ_FAILED)
            return
        if data is not None:
            request.done(data)
            return
        self._scheduler.submit(
            "read", partial(self._device.pread, length, offset), partial(_answer_read, request)
        )

    def write(self, offset: int, data: Buffer, fua: bool, request: Request) -> None:
        request.failed(VolumeError.WRITE_PROTECTED)

    def zero(self, offset: int, length: int, fua: bool, request: Request) -> None:
        request.failed(VolumeError.WRITE_PROTECTED)

    def flush(self, request: Request) -> None:
        request.done()

    def barrier(self, request: Request) -> None:
        request.failed(VolumeError.WRITE_PROTECTED)

    def allocation(self, offset: int, length: int) -> Buffer:
        return mapped_sectors(self._device, offset, length)


def _answer_read(request: Request, data: bytes | None, error: Exception | None) -> None:
    if data is None:
        request.failed(VolumeError.READ_FAILED)
    else:
        request.done(data)
