"""From a configured group to a running one: format or recover the journal, index what is unapplied."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import replace

from target.blockdev import BlockDevice
from target.errors import IntegrityError, OperatorError
from target.group import ConsistencyGroup, GroupSettings
from target.journal.format import VolumeShape, format_journal, open_journal, read_superblock
from target.journal.record import RESTORABLE
from target.journal.scan import Pack
from target.journal.superblock import Role, Superblock
from target.obtain import Overlay
from target.overlay import ZERO
from target.scheduler import Scheduler

_log = logging.getLogger(__name__)


def open_group(
    scheduler: Scheduler,
    settings: GroupSettings,
    journal_device: BlockDevice,
    shapes: tuple[VolumeShape, ...],
    devices: Mapping[str, BlockDevice],
    group_id: bytes | None = None,
) -> ConsistencyGroup:
    """Open a group; an empty journal volume is formatted.

    `group_id`: 16 bytes for a new journal (random by default). Raises OperatorError when configuration and
    journal do not fit, IntegrityError when both superblocks are damaged or cannot be read. An error of the
    device behind that is the group's own: it fails, and the others serve.
    """
    try:
        superblock = read_superblock(journal_device)
        if superblock is None:
            shapes = with_volume_sizes(shapes, devices)
            superblock = format_journal(journal_device, group_id or os.urandom(16), shapes)
            _log.info("group %s: a new journal volume was formatted", settings.name)
    except OSError as error:
        raise IntegrityError(
            f"the superblock of the journal volume cannot be read or written: {error}. Repair the disk and "
            "start again; or take over at a peer"
        ) from None
    check_shapes(superblock, shapes, devices)
    overlay = Overlay(superblock.checkpoint_lsn)
    follows = superblock.role is Role.SECONDARY

    def index(pack: Pack) -> None:
        if follows:
            return  # what was received is restored in order; nobody reads it before
        place = superblock.ring_offset + pack.header.lsn % superblock.ring_bytes
        put = overlay.current.put
        for kind, _, volume, data_length, offset, length, data_offset, _ in pack.header.rows():
            if kind in RESTORABLE:
                put(volume, offset, length, place + data_offset if data_length else ZERO)

    opened = open_journal(journal_device, superblock, index)
    by_id = {volume.id: devices[volume.name] for volume in superblock.volumes}
    for volume in opened.journal.superblock.volumes:
        size = by_id[volume.id].size_bytes
        if size < volume.size_bytes:  # a device is larger, durably, before anything says so
            raise IntegrityError(
                f"volume {volume.name!r} had grown to {volume.size_bytes} bytes, and its device has {size}: "
                "it was cut. Restore it; or take over at a peer, and begin anew here"
            )
    return ConsistencyGroup(scheduler, settings, opened, overlay, by_id)


def check_shapes(
    superblock: Superblock, shapes: tuple[VolumeShape, ...], devices: Mapping[str, BlockDevice]
) -> None:
    """The journal knows its volumes: the configuration must name the same."""
    known = {volume.name: volume for volume in superblock.volumes}
    configured = {shape.name: shape for shape in shapes}
    if known.keys() != configured.keys():
        raise OperatorError(
            f"the journal volume was made for volumes {', '.join(known)}, "
            f"the configuration names {', '.join(configured)}"
        )
    for shape in shapes:
        entry = known[shape.name]
        if entry.block_size_bytes != shape.block_size_bytes:
            raise OperatorError(
                f"volume {shape.name!r} has blocks of {entry.block_size_bytes} bytes in the journal volume, "
                f"of {shape.block_size_bytes} in the configuration"
            )
        if entry.size_bytes < shape.size_bytes:  # a larger one has grown since it was configured
            _log.warning(
                "volume %r has %d bytes, and %d in the configuration: replctl group grow-volume",
                shape.name,
                entry.size_bytes,
                shape.size_bytes,
            )
        if devices[shape.name].size_bytes < shape.size_bytes:
            raise OperatorError(
                f"volume {shape.name!r} needs {shape.size_bytes} bytes, its device has "
                f"{devices[shape.name].size_bytes}"
            )


def with_volume_sizes(
    shapes: tuple[VolumeShape, ...], devices: Mapping[str, BlockDevice]
) -> tuple[VolumeShape, ...]:
    """Shapes of block devices take their size from the device when the configuration gives none (0)."""
    return tuple(
        replace(shape, size_bytes=devices[shape.name].size_bytes) if not shape.size_bytes else shape
        for shape in shapes
    )
