"""Waiting for a state of a group before its role is changed: durable, applied, room in the journal. Never
for a time.
"""

from __future__ import annotations

from collections.abc import Callable

from target.errors import ConflictError, IntegrityError
from target.group import Access, ConsistencyGroup

Done = Callable[["Exception | None"], None]

_POLL_SECONDS = 0.005


def wait_until(
    group: ConsistencyGroup, reached: Callable[[], bool], nudge: Callable[[], None], done: Done
) -> None:
    """Nudge until the state is reached, then `done(None)`; `done(IntegrityError)` if the group fails."""

    def look() -> None:
        if group.access is Access.FAILED:
            done(IntegrityError(f"group {group.name!r} is damaged: {group.reason}"))
        elif reached():
            done(None)
        else:
            nudge()
            group.scheduler.call_later(_POLL_SECONDS, look)

    group.write_path.end_turn()
    look()


def settle(group: ConsistencyGroup, done: Done) -> None:
    """Wait until everything in the journal is durable, applied, and durable on the data volumes too."""
    journal, background = group.journal, group.background

    def reached() -> bool:
        return (
            journal.durable.lsn == journal.head.lsn
            and journal.superblock.checkpoint_sequence == journal.head.sequence
            and background.idle
            and not group.write_path.committing
            and not group.write_path.holding
            and not group.mirrors.discarding
        )

    def nudge() -> None:
        group.write_path.commit(urgent=True)
        background.make_space()

    wait_until(group, reached, nudge, done)


def when_durable(group: ConsistencyGroup, done: Done) -> None:
    """Wait until the journal and its superblock, as they are now, are on the medium.

    What is appended and changed meanwhile is not waited for: hosts may write all the time.
    """
    group.write_path.end_turn()
    journal = group.journal
    lsn, generation = journal.head.lsn, journal.wanted_generation
    wait_until(
        group,
        lambda: journal.durable.lsn >= lsn and journal.durable_generation >= generation,
        lambda: group.write_path.commit(urgent=True),
        done,
    )


def exclusively(group: ConsistencyGroup, what: str, done: Done) -> Done | None:
    """Begin a change of the role: what to call at its end; None when another is under way, and `done` was
    told.
    """
    if group.changing:
        done(ConflictError(f"{group.changing} is under way for group {group.name!r}: wait for it"))
        return None
    group.changing = what
    group.changed()

    def ended(error: Exception | None) -> None:
        group.changing = ""
        group.changed()
        done(error)

    return ended


def when_room(group: ConsistencyGroup, done: Done) -> None:
    """Wait until nothing is being discarded and the journal has room for a few records of our own."""
    wait_until(
        group,
        lambda: group.journal.fits(4, 0) and not group.write_path.holding and not group.mirrors.discarding,
        lambda: group.make_room(group.journal.needed_bytes(4, 0)),
        done,
    )
