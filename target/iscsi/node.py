"""What a portal offers: target nodes, who may use them, and the device behind each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from target.iscsi.chap import ChapCredentials
from target.scsi.command import ScsiCommand

TARGET_PORTAL_GROUP_TAG = 1


class Device(Protocol):
    """What `target.scsi.device_server.Device` is to us: all logical units of one target, unknown LUNs included."""

    def execute(self, lun: int, command: ScsiCommand) -> None:
        """Execute; the command's `complete` is called exactly once, now or later, on the loop thread."""


@dataclass(frozen=True, slots=True)
class TargetNode:
    """One iSCSI target.

    `portals` are the addresses that discovery tells ("host:port", IPv6 in brackets); with none, the address at which
    the initiator asked. `initiators` are the names allowed in; empty allows any. With `chap` a login must authenticate.
    """

    name: str
    device: Device
    portals: Sequence[str] = ()
    initiators: frozenset[str] = field(default_factory=frozenset)
    chap: ChapCredentials | None = None

    def admits(self, initiator_name: str) -> bool:
        return not self.initiators or initiator_name in self.initiators
