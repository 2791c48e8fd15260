"""What the copy manager is told by `site.toml`: itself, its peers, and where its storage subsystem listens.

Of the subsystem's tables only the control socket and the names of the groups are looked at; the rest is
`target.config`'s. An unknown table is refused.
"""

from __future__ import annotations

import base64
import binascii
from pathlib import Path
from typing import Literal

import msgspec

from target.control.site_file import (
    KERNEL,
    Address,
    IscsiName,
    Name,
    SanPortal,
    check_private,
    read_site_file,
)


class SiteTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """[site]"""

    name: Name
    state_dir: Path


class HostagentTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """[hostagent]"""

    socket: Path
    database: Path
    ssh_listen: Address
    host_key_file: Path
    identity_file: Path
    authorized_keys_file: Path
    peer_wait_seconds: float = 5.0
    no_peer_policy: Literal["serve", "refuse"] = "serve"

    def __post_init__(self) -> None:
        if not 0 <= self.peer_wait_seconds <= 3600:
            raise ValueError(f"peer_wait_seconds {self.peer_wait_seconds} is not between 0 and 3600")
        for key in ("host_key_file", "identity_file"):
            path: Path = getattr(self, key)
            try:
                check_private(path)
            except OSError as error:
                raise ValueError(f"{key} {path} cannot be read: {error.strerror}") from None


class PeerTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """[[peer]]: another site's agent (`ssh`, pinned by `host_key`) and its subsystem's SAN portal.

    `san_portal = "kernel"`: its journal is a block device here, which the kernel's initiator attached.
    """

    name: Name
    ssh: Address
    host_key: str
    san_portal: SanPortal
    san_target: IscsiName | None = None

    def __post_init__(self) -> None:
        if (self.san_target is None) != (self.san_portal == KERNEL):
            raise ValueError(f'give san_target, or san_portal = "{KERNEL}", which needs none')
        algorithm, _, encoded = self.host_key.partition(" ")
        try:
            blob = base64.b64decode(encoded.split(" ")[0], validate=True)
        except binascii.Error:
            blob = b""
        # RFC 4253 6.6: the key blob begins with the length and the name of its algorithm.
        if not blob.startswith(len(algorithm).to_bytes(4, "big") + algorithm.encode()):
            raise ValueError(
                f'host_key {self.host_key[:40]!r} is not a public key: write "ssh-ed25519 AAAA..."'
            )


class _TargetTable(msgspec.Struct, frozen=True):
    control_socket: Path


class _GroupTable(msgspec.Struct, frozen=True):
    name: Name


class _SiteFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    site: SiteTable
    hostagent: HostagentTable
    target: _TargetTable
    groups: list[_GroupTable] = msgspec.field(name="group")
    peers: list[PeerTable] = msgspec.field(name="peer", default=[])

    def __post_init__(self) -> None:
        names = [str(peer.name) for peer in self.peers]
        if str(self.site.name) in names:
            raise ValueError(f"peer {self.site.name} has the name of this site")
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"peer {name} is given twice")


class Config(msgspec.Struct, frozen=True):
    """A site as its copy manager sees it; all paths absolute."""

    site: SiteTable
    hostagent: HostagentTable
    control_socket: Path
    groups: tuple[str, ...]
    peers: tuple[PeerTable, ...]

    def peer(self, name: str) -> PeerTable | None:
        return next((peer for peer in self.peers if peer.name == name), None)


def load_config(path: Path) -> Config:
    """Read `site.toml`; an `OperatorError` names file, key and reason."""
    tables = read_site_file(path, _SiteFile)
    return Config(
        site=tables.site,
        hostagent=tables.hostagent,
        control_socket=tables.target.control_socket,
        groups=tuple(group.name for group in tables.groups),
        peers=tuple(tables.peers),
    )
