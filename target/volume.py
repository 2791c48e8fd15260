"""The seam between the device server and what stores its blocks.

`LogicalUnit` talks to a `Volume`; the real one is `target.group_volume.GroupVolume`, which writes to the
journal first. A volume answers a `Request` exactly once, on the loop thread. Offsets and lengths are bytes
and multiples of 512; the device server has checked them against the size.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Protocol

Buffer = bytes | bytearray | memoryview

SECTOR_BYTES = 512
"""The unit of every offset and length on a volume, whatever its logical block size."""


class VolumeError(Enum):
    """Why a volume did not do what it was asked. `target.scsi.sense` gives each its sense data."""

    WRITE_PROTECTED = "write protected: this is a secondary, or a primary that was superseded"
    READ_FAILED = "the medium could not be read"
    WRITE_FAILED = "the journal or the medium could not be written"
    NO_SPACE = "no space is left on the device below"
    NOT_READY = "the volume is becoming ready: its role is not confirmed yet"
    ABORTED = "the command was aborted"


@dataclass(frozen=True, slots=True)
class Space:
    """What a volume takes on the device below, and what is left there, for all who use it."""

    used_bytes: int
    available_bytes: int


class Request(Protocol):
    """What a volume answers, once: `done` or `failed`."""

    def done(self, data: Buffer | None = None) -> None:
        """Success; `data` is given for reads and stays unchanged until the end of the turn."""

    def failed(self, error: VolumeError) -> None:
        """Failure, and why."""


class Volume(Protocol):
    """A range of sectors that can be read, written, zeroed and flushed.

    `read_only_now` is looked up by MODE SENSE (WP bit) and may change with the pair state.
    """

    name: str
    serial: str
    size_bytes: int
    block_size_bytes: int

    @property
    def read_only_now(self) -> bool:
        """True while writes would be answered WRITE_PROTECTED."""

    @property
    def failed_now(self) -> bool:
        """True when the volume, or the journal before it, is damaged and serves nobody any more."""

    def read(self, offset: int, length: int, request: Request) -> None:
        """Read `length` bytes at `offset`; answers with one buffer of that length."""

    def write(self, offset: int, data: Buffer, fua: bool, request: Request) -> None:
        """Obtain `data` at `offset`. Answered when journalled, with `fua` when durable; not kept."""

    def zero(self, offset: int, length: int, fua: bool, request: Request) -> None:
        """Make a range read as zeros (WRITE SAME of zeros, UNMAP). Answered like a write."""

    def flush(self, request: Request) -> None:
        """Answer when everything written before is durable."""

    def barrier(self, request: Request) -> None:
        """Answer when reads see everything written before; it need not be durable. Refused like a write."""

    def allocation(self, offset: int, length: int) -> Buffer:
        """A byte for each sector: 1 where it is mapped, 0 where it holds zeros and no space. OSError."""
