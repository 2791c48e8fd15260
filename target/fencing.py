"""A site that stands still while others decide: it promises its role to a peer, or waits while a primary
merges what it wrote. It takes no writes, and feeds no mirrors.
"""

from __future__ import annotations

from collections.abc import Callable

from target.group import Access, ConsistencyGroup
from target.journal.record import MarkerKind
from target.journal.superblock import Flag, Position
from target.settling import Done, exclusively, when_durable

FENCE_SECONDS = 60.0
"""So long after the last word of a merge it counts as broken off."""


def quiesce(group: ConsistencyGroup, done: Callable[[Position | None, Exception | None], None]) -> None:
    """Let writes wait, promise to serve none before the takeover's outcome, say where the journal ends."""

    def answer(error: Exception | None) -> None:
        done(group.journal.durable if error is None else None, error)

    ended = exclusively(group, "a promise to a peer", answer)
    if ended is None:
        return
    group.set_access(Access.HOLD, "a planned takeover by a peer is under way")
    stop_feeding(group)
    group.mark(MarkerKind.SPLIT, "takeover")
    group.set_flag(Flag.PROMISED, True)
    when_durable(group, ended)


def fence(group: ConsistencyGroup, done: Done) -> None:
    """Stand still: take no writes, from hosts or from a primary, until `follow`, `unfence` or a restart.

    And not for ever: the site that merges may be gone. `follow` finds out whether something was written then.
    """
    ended = exclusively(group, "fencing", done)
    if ended is None:
        return
    if group.fenced is None:
        group.fenced = group.access
    group.receiving = False
    stop_feeding(group)
    keep_fence(group)
    group.set_access(Access.READ_ONLY, "the primary merges what this site wrote into its history")
    when_durable(group, ended)


def keep_fence(group: ConsistencyGroup) -> None:
    """The merge goes on: count from now."""
    if group.fenced is None:
        return
    until = group.fenced_until = group.scheduler.monotonic() + FENCE_SECONDS

    def look() -> None:
        if group.fenced_until == until:
            unfence(group)

    group.scheduler.call_later(FENCE_SECONDS, look)


def unfence(group: ConsistencyGroup) -> None:
    """The merge did not come about: go on as before."""
    if group.fenced is None or group.changing:
        return
    access, group.fenced = group.fenced, None
    group.receiving = group.background.following
    group.set_access(access, group.reason if access is Access.READ_ONLY else "")


def stop_feeding(group: ConsistencyGroup) -> None:
    for name in list(group.base_copies):
        group.stop_copy(name)
    if group.verify_pass is not None:
        group.verify_pass.stop()
