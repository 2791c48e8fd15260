"""What the copy manager knows of its groups between two events. It is heard anew after every restart;
nothing here must survive one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from target.control.messages import GroupState

REPORT_SECONDS = 0.25
"""Positions are told again after this long even if nothing changed: the other side may have restarted."""


@dataclass(slots=True)
class Announcement:
    """What the primary said last of its journal, and when we heard it."""

    site: str
    epoch: int
    reign: int
    durable: int
    durable_lsn: int
    ring_bytes: int | None
    latest: int
    received: int
    """How far it knows us to be."""
    time_ns: int
    heard_at: float


@dataclass(slots=True)
class MirrorReport:
    """What a mirror said last of itself."""

    params: dict[str, Any]
    heard_at: float
    sending: bool = False
    unsent: bool = True
    misfit_since: float | None = None
    """When its last record was found not to be ours; None: it is, or it was not asked yet."""
    mismatches_seen: int = 0
    repaired: int = 0


@dataclass(slots=True)
class Group:
    """What the copy manager knows of one group."""

    name: str
    state: GroupState | None = None
    heard_at: float = 0.0
    """When our subsystem told the state; a lag in it has grown since."""
    announced: Announcement | None = None
    reports: dict[str, MirrorReport] = field(default_factory=dict)
    peer_states: dict[str, tuple[GroupState, float]] = field(default_factory=dict)
    """What each peer said last, and when we asked for it (-1: it told unasked)."""
    told: dict[str, tuple[int, float]] = field(default_factory=dict)
    positions_told: tuple[object, float] = ((), 0.0)
    shipped: dict[str, int] = field(default_factory=dict)
    confirm_since: float | None = None
    asking: bool = False
    next_ask_at: float = 0.0
    begins_to_follow: bool = False
    """Our subsystem was told to follow anew; what it told before says nothing of that."""
    fetch_asked: bool = False
    fetch_retry_at: float = 0.0
    advanced_to: tuple[int, int] = (0, 0)
    """What our subsystem was told of the primary last: durable LSN, and how far it knows us to be."""
    link_reason: str = ""
    conflict: str = ""
    promised_to: str = ""
    """The peer that a planned takeover was promised to; '' when that is not known any more."""
    mirror_states: dict[str, str] = field(default_factory=dict)
    strays: dict[str, float] = field(default_factory=dict)
    """Mirrors that say they do not follow us, and since when."""
    pairs_saved_at: float = 0.0
