"""Larger volumes and larger journal volumes, while they are in use.

A volume grows at one point of the sequence: its device first, then a record that says so, then, when that is
durable, the size that hosts see. So a mirror grows at the same point, or says why it cannot.

The ring of a journal grows while it is empty: hosts' writes wait until everything is applied and received,
which takes as long as the slowest mirror in the pair is behind, and not longer than `WAIT_SECONDS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from target.bitmap import check_room
from target.errors import OperatorError, PeerError, ReplctlError
from target.group import Access, ConsistencyGroup
from target.journal.format import Filling
from target.journal.record import BLOCK_BYTES, RecordType
from target.journal.ring import NewRecord
from target.journal.superblock import Role
from target.settling import exclusively, settle, when_durable, when_room

WAIT_SECONDS = 10.0

Grown = Callable[["bool | None", "Exception | None"], None]
"""Whether something changed."""


def grow_volume(group: ConsistencyGroup, name: str, size_bytes: int, grown: Grown) -> None:
    """Give a volume more bytes, behind its end. Raises OperatorError; `grown(False)` when it has them."""
    superblock = group.journal.superblock
    if group.role is Role.SECONDARY or superblock.primary:
        raise OperatorError(
            f"group {group.name!r} follows {superblock.primary!r}: grow the volume there, and it grows here"
        )
    if group.access is not Access.SERVE:
        raise OperatorError(f"group {group.name!r} does not serve writes now: {group.reason}")
    number = group.volume_id(name)
    volume = next(volume for volume in group.volumes if volume.id == number)
    old = volume.size_bytes
    if size_bytes == old:
        grown(False, None)
        return
    if size_bytes < old or size_bytes % volume.block_size_bytes:
        raise OperatorError(
            f"volume {name!r} has {old} bytes in blocks of {volume.block_size_bytes}: {size_bytes} bytes are "
            "no larger size of whole blocks; a volume does not shrink"
        )
    check_room(superblock, volume, size_bytes)
    ended = exclusively(group, "growing a volume", lambda error: grown(None if error else True, error))
    if ended is None:
        return
    device = group.devices[number]

    def extend() -> None:
        device.grow(size_bytes)
        device.punch(old, size_bytes - old)
        device.flush()  # the new part holds zeros before anybody may rely on it

    def extended(_: None, error: Exception | None) -> None:
        if error is not None:
            ended(OperatorError(f"the device of volume {name!r} cannot have {size_bytes} bytes: {error}"))
        else:
            when_room(group, write_down)

    def write_down(error: Exception | None) -> None:
        record = NewRecord(RecordType.GROW, 0, number, old, size_bytes - old, b"")
        if error is not None:
            ended(error)
        elif group.access is not Access.SERVE or not group.write_path.append_now([record]):
            ended(OperatorError(f"group {group.name!r} could not take the record of it now; try again"))
        else:
            when_durable(group, durable)

    def durable(error: Exception | None) -> None:
        if error is None:
            group.journal.grow_volume(number, size_bytes)
            group.resized()
            when_durable(group, ended)
        else:
            ended(error)

    group.scheduler.submit(group.lane, extend, extended)


def let_grow(group: ConsistencyGroup, sizes: Mapping[int, int]) -> None:
    """A secondary's devices have room for volumes of these sizes, durably; PeerError when one has not."""
    for volume in group.volumes:
        size = sizes.get(volume.id, 0)
        if size <= volume.size_bytes:
            continue
        try:
            check_room(group.journal.superblock, volume, size)
            group.devices[volume.id].grow(size)
            group.devices[volume.id].flush()  # a file that is shorter than its journal says was cut
        except (OSError, OperatorError) as error:
            raise PeerError(
                f"volume {volume.name!r} has {size} bytes at the primary from here on, and cannot have them "
                f"here: {error}"
            ) from None


def grow_journal(group: ConsistencyGroup, size_bytes: int, grown: Grown) -> None:
    """Make the journal volume larger. Raises OperatorError; `grown(False)` when it is so large."""
    journal, background = group.journal, group.background
    ring_bytes = (size_bytes - journal.superblock.ring_offset) // BLOCK_BYTES * BLOCK_BYTES
    if ring_bytes == journal.superblock.ring_bytes:
        grown(False, None)
        return
    if ring_bytes < journal.superblock.ring_bytes:
        raise OperatorError(f"the journal of group {group.name!r} is larger than {size_bytes} bytes already")
    if group.access is Access.FAILED:
        raise OperatorError(f"group {group.name!r} is damaged: {group.reason}")
    if background.restore_limit is not None:
        raise OperatorError(
            f"group {group.name!r} restores up to a limit only: what lies behind would be lost"
        )
    if journal.filled_bytes < journal.superblock.ring_bytes:
        raise OperatorError(
            f"the journal of group {group.name!r} is still being written out: try again later"
        )
    ended = exclusively(group, "growing the journal", lambda error: grown(None if error else True, error))
    if ended is None:
        return
    access, reason, receiving = group.access, group.reason, group.receiving
    waits = "the journal grows"
    until = group.scheduler.monotonic() + WAIT_SECONDS

    def finished(error: Exception | None) -> None:
        if group.access is not Access.FAILED:
            group.receiving = receiving
            if group.access is Access.HOLD and group.reason == waits:
                group.set_access(access, reason)
            group.resume_copies()
        ended(error)

    def extended(_: None, error: Exception | None) -> None:
        if error is not None:
            ended(OperatorError(f"the journal volume cannot have {size_bytes} bytes: {error}"))
            return
        group.receiving = False
        if access is Access.SERVE:
            group.set_access(Access.HOLD, waits)
        for name in list(group.base_copies):
            group.stop_copy(name)
        if group.verify_pass is not None:
            group.verify_pass.stop()
        empty()

    def empty() -> None:
        settle(group, settled)

    def settled(error: Exception | None) -> None:
        if error is not None:
            finished(error)
            return
        behind = [
            mirror.name
            for mirror in group.mirrors.table.values()
            if mirror.flows and mirror.entry.received < journal.head.sequence
        ]
        if behind and group.scheduler.monotonic() >= until:
            finished(
                PeerError(
                    f"{', '.join(behind)} did not receive the rest of the journal within "
                    f"{WAIT_SECONDS:.0f} s: grow it when the pair is in PAIR, or split the pair first"
                )
            )
        elif behind:
            group.scheduler.call_later(0.01, empty)
        elif group.mirrors.let_go():
            background.when_idle(begin, finished)
        else:
            group.scheduler.call_later(0.01, empty)

    def begin() -> None:
        if journal.superblock.tail.lsn != journal.head.lsn or group.write_path.holding:
            empty()  # something was appended meanwhile
            return
        journal.grow_ring(ring_bytes)
        background.restart()
        group.resized()
        Filling(group.scheduler, journal, f"commit:{group.name}", group.filled).start()
        when_durable(group, finished)

    def extend() -> None:
        journal.device.grow(size_bytes)
        journal.device.flush()  # before a superblock says so: a file that is shorter than that was cut

    group.scheduler.submit(f"commit:{group.name}", extend, extended)


def answered(reply: Callable[..., None]) -> Grown:
    """The answer of a control operation."""

    def done(changed: bool | None, error: Exception | None) -> None:
        if error is None:
            reply({"changed": changed})
        else:
            reply(error=error if isinstance(error, ReplctlError) else ReplctlError(f"it failed: {error}"))

    return done
