"""What a portal offers: target nodes, who may use them, and the device behind each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from target.iscsi.chap import ChapCredentials
from target.scsi.command import Nexus, ScsiCommand
from target.scsi.sense import Sense
from target.volume import Request

TARGET_PORTAL_GROUP_TAG = 1


class Device(Protocol):
    """What `target.scsi.device_server.Device` is to us: all logical units of one target, unknown LUNs
    included."""

    @property
    def logical_units(self) -> Mapping[int, object]:
        """By LUN."""

    def execute(self, lun: int, command: ScsiCommand) -> None:
        """Execute; the command's `complete` is called exactly once, now or later, on the loop thread."""

    def on_abort(self, abort: Callable[[int, Nexus, Request], None]) -> None:
        """`abort(lun, nexus, request)` aborts the commands of a nexus for a unit, then answers `request`."""

    def encode_sense(self, lun: int, sense: Sense) -> bytes:
        """Sense data in the format that the logical unit's initiators have chosen."""

    def nexus_lost(self, nexus: Nexus) -> None:
        """A session has ended."""

    def reset(self, lun: int) -> bool:
        """LOGICAL UNIT RESET, when its commands have been aborted; false when there is no such LUN."""


@dataclass(frozen=True, slots=True, eq=False)
class TargetNode:
    """One iSCSI target.

    `portals` are the addresses that discovery tells ("host:port", IPv6 in brackets); with none, the address
    at which the initiator asked. `initiators` are the names allowed in; empty allows any. With `chap` a
    login must authenticate.
    """

    name: str
    device: Device
    portals: Sequence[str] = ()
    initiators: frozenset[str] = field(default_factory=frozenset)
    chap: ChapCredentials | None = None

    def admits(self, initiator_name: str) -> bool:
        return not self.initiators or initiator_name in self.initiators
