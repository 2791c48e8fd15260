"""One volume of a group, as the device server sees it: every call goes to the group, with the volume's id."""

from __future__ import annotations

from target.group import Access, ConsistencyGroup
from target.journal.superblock import VolumeEntry
from target.volume import Buffer, Request


class GroupVolume:
    """One volume of a group, as the device server sees it."""

    def __init__(self, group: ConsistencyGroup, entry: VolumeEntry, serial: str) -> None:
        self._group = group
        self._id = entry.id
        self.name = entry.name
        self.serial = serial
        self.size_bytes = entry.size_bytes
        self.block_size_bytes = entry.block_size_bytes
        group.listen(self._look)

    def _look(self) -> None:
        """The volume may have grown."""
        self.size_bytes = next(entry.size_bytes for entry in self._group.volumes if entry.id == self._id)

    @property
    def read_only_now(self) -> bool:
        return self._group.access in (Access.READ_ONLY, Access.FAILED)

    @property
    def failed_now(self) -> bool:
        return self._group.access is Access.FAILED

    def read(self, offset: int, length: int, request: Request) -> None:
        self._group.read(self._id, offset, length, request)

    def write(self, offset: int, data: Buffer, fua: bool, request: Request) -> None:
        self._group.write(self._id, offset, data, fua, request)

    def zero(self, offset: int, length: int, fua: bool, request: Request) -> None:
        self._group.zero(self._id, offset, length, fua, request)

    def flush(self, request: Request) -> None:
        self._group.flush(request)

    def barrier(self, request: Request) -> None:
        self._group.barrier(request)

    def allocation(self, offset: int, length: int) -> Buffer:
        return self._group.reading.allocation(self._id, offset, length)
