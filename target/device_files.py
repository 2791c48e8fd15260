"""A group's files as a start finds them: one that is new is made, one that was cut is never made whole again.

To lengthen a file that was cut would put zeros where data were, and nobody would ever know. So this looks
before `FileDevice` makes files of the configured size; block devices have the size they have.
"""

from __future__ import annotations

from pathlib import Path

from target.blockdev import FileDevice
from target.errors import IntegrityError
from target.journal.format import read_superblock
from target.journal.superblock import COPIES, SUPERBLOCK_BYTES

_NO_JOURNAL = (
    "Take over at a peer, or restore it; when the file is removed, this site begins anew with a journal that "
    "knows nothing of what was written"
)
_NO_VOLUME = (
    "Restore it; or take over at a peer, remove the journal volume of this site, and create the pair again"
)


def journal_is_new(path: Path) -> bool:
    """Whether no journal was ever made there.

    Raises IntegrityError for a file that is shorter than the journal it holds, OSError when it cannot be
    read.
    """
    if not path.exists():
        return True
    device = FileDevice(path, read_only=True)
    try:
        size = device.size_bytes
        if size < COPIES * SUPERBLOCK_BYTES:
            raise IntegrityError(
                f"the journal volume {path} has {size} bytes, fewer than any: it was cut. {_NO_JOURNAL}"
            )
        superblock = read_superblock(device)
        if superblock is None:
            return True
        end = superblock.ring_offset + superblock.ring_bytes
        if size < end:
            raise IntegrityError(
                f"the journal volume {path} has {size} bytes instead of {end}: it was cut. {_NO_JOURNAL}"
            )
        return False
    finally:
        device.close()


def check_volume(path: Path, size_bytes: int | None) -> None:
    """A data volume that a journal knows is there, in full; IntegrityError when it is not."""
    if not path.exists():
        raise IntegrityError(f"the volume {path} is gone, and the journal knows it. {_NO_VOLUME}")
    if size_bytes is not None and path.is_file() and path.stat().st_size < size_bytes:
        raise IntegrityError(
            f"the volume {path} has {path.stat().st_size} bytes instead of {size_bytes}: it was cut. "
            f"{_NO_VOLUME}"
        )
