"""The secondary's side of a running pair: keep the transfer over the SAN link going, tell how far it came.

Invariant: the subsystem is never told to read beyond what the primary said is durable (I4).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from hostagent.flow import Result
from hostagent.known import REPORT_SECONDS, Announcement, Group
from target.control.messages import GroupState
from target.control.site_file import KERNEL
from target.errors import ReplctlError

if TYPE_CHECKING:
    from hostagent.copy_manager import CopyManager

_FETCH_RETRY_SECONDS = 0.3


class AtSecondary:
    """For every group whose role is secondary."""

    def __init__(self, manager: CopyManager) -> None:
        self._manager = manager
        self._environment = manager.environment

    def on_ready(self, group: Group, site: str, params: dict[str, Any]) -> None:
        state = group.state
        if state is None or state.role != "secondary" or state.primary != site:
            return
        group.announced = Announcement(
            site,
            params["epoch"],
            params["reign"],
            params["durable"],
            params["durable_lsn"],
            params.get("ring_bytes"),
            params["latest"],
            params.get("received", 0),
            params["time_ns"],
            self._environment.monotonic(),
        )
        self._manager.store.heard_of(group.name, state.group_id, params["epoch"], params["reign"], site)
        self.fetch(group, state)

    def fetch(self, group: Group, state: GroupState) -> None:
        """Keep the transfer running, and tell it how far it may read."""
        announced = group.announced
        if announced is None or group.begins_to_follow:
            return
        running = state.fetch is not None and state.fetch.state in ("connecting", "reading")
        if running:
            durable_lsn, received = group.advanced_to
            if announced.durable_lsn > durable_lsn or announced.received > received:
                group.advanced_to = (
                    max(durable_lsn, announced.durable_lsn),
                    max(received, announced.received),
                )
                self._environment.call(
                    None,
                    "fetch.advance",
                    {
                        "group": group.name,
                        "durable_lsn": announced.durable_lsn,
                        "ring_bytes": announced.ring_bytes,
                        "received": announced.received,
                    },
                    lambda result, error: None,
                    10.0,
                )
            return
        now = self._environment.monotonic()
        if group.fetch_asked or now < group.fetch_retry_at or not self._environment.link_up(state.primary):
            return
        group.fetch_asked = True
        group.fetch_retry_at = now + _FETCH_RETRY_SECONDS
        self._environment.call(
            state.primary,
            "journal.source",
            {"group": group.name, "sequence": state.latest},
            lambda result, error: self._source_found(group, result, error),
            10.0,
        )

    def _source_found(self, group: Group, result: Result | None, error: ReplctlError | None) -> None:
        state = group.state
        if state is None or state.role != "secondary":
            group.fetch_asked = False
            return
        address = self._environment.san_address(state.primary)
        if result is None or not result.get("found") or address is None:
            group.fetch_asked = False
            group.link_reason = (
                str(error) if error else str((result and result.get("reason")) or "no SAN address")
            )
            return
        group.link_reason = ""
        portal, target = address
        if portal == KERNEL:  # then the device is known by its serial number, which its owner tells
            target = str(result.get("serial", ""))
        group.advanced_to = (result["durable_lsn"], 0)
        if group.announced is not None and group.announced.durable_lsn > result["durable_lsn"]:
            # Told by the primary's journal as it was before it was put back to an older state: up to there it
            # may hold what is not durable. What it says next counts.
            group.announced.durable_lsn = result["durable_lsn"]

        def started(_: Result | None, failure: ReplctlError | None) -> None:
            group.fetch_asked = False
            if failure is not None:
                group.link_reason = str(failure)

        self._environment.call(
            None,
            "fetch.start",
            {
                "group": group.name,
                "portal": portal,
                "target": target,
                "lun": result["lun"],
                "sequence": result["sequence"],
                "lsn": result["lsn"],
                "durable_lsn": result["durable_lsn"],
            },
            started,
            10.0,
        )

    def tell_positions(self, group: Group, state: GroupState) -> None:
        if group.begins_to_follow or not state.primary or not self._environment.link_up(state.primary):
            return
        now = self._environment.monotonic()
        facts = (
            state.latest,
            state.durable,
            state.restored,
            state.verified,
            state.verified_extents,
            state.consistent,
        )
        told, at = group.positions_told
        if told == facts and now - at < REPORT_SECONDS:
            return
        group.positions_told = (facts, now)
        self._environment.notify(
            state.primary,
            "mirror.positions",
            {
                "group": group.name,
                "epoch": state.epoch,
                "reign": state.reign,
                "latest": state.latest,
                "received": state.durable,
                "digest": state.durable_digest,
                "restored": state.restored,
                "verified": state.verified,
                "verified_extents": state.verified_extents,
                "mismatches": state.mismatches,
                "consistent": state.consistent,
                "failed": state.reason if state.access == "failed" else "",
                "fetch": msgspec.to_builtins(state.fetch),
            },
        )
