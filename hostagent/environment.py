"""Where a copy manager lives: the seam between its logic and links, clock and chance. The daemon is one,
the simulation another.
"""

from __future__ import annotations

from typing import Any, Protocol

from hostagent.flow import Done


class Environment(Protocol):
    """Where the copy manager lives."""

    site: str
    peer_wait_seconds: float
    serve_without_peers: bool
    state_dir: str

    def call(
        self, site: str | None, op: str, params: dict[str, Any], done: Done, timeout_seconds: float
    ) -> None:
        """Ask a peer, or (None) our own subsystem. `done` comes on the copy manager's thread, later."""

    def notify(self, site: str, note: str, params: dict[str, Any]) -> None:
        """Tell a peer, if its link is up."""

    def link_up(self, site: str) -> bool:
        """Whether the link to a peer is up."""

    def san_address(self, site: str) -> tuple[str, str] | None:
        """(portal, target name) of a peer's SAN portal; None for a site that is not configured."""

    def peers(self) -> list[str]:
        """The configured peers."""

    def monotonic(self) -> float:
        """Seconds."""

    def wall_ns(self) -> int:
        """This site's clock."""

    def random_reign(self) -> int:
        """63 random bits."""
