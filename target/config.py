"""What the storage subsystem is told by `site.toml`: the site, its front ends, its groups and volumes.

The tables of the host agent ([hostagent], [[peer]]) are not looked at here; an unknown table is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec

from target.control.site_file import (
    Address,
    IscsiName,
    JournalSize,
    Name,
    SecretFile,
    VolumeSize,
    Wwpn,
    read_site_file,
)

T = TypeVar("T")

_LUN_MAX = 255  # SAM-5 4.7.3: what fits the peripheral device addressing method
_CHAP_SECRET_BYTES_MIN = 12  # RFC 7143 12.1.3: 96 bits where the connection is not encrypted


class SiteTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """[site]"""

    name: Name
    state_dir: Path


class ChapTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """[target.iscsi.chap]: with the two `mutual_` keys the target proves itself too."""

    user: str
    secret: SecretFile = msgspec.field(name="secret_file")
    mutual_user: str | None = None
    mutual_secret: SecretFile | None = msgspec.field(name="mutual_secret_file", default=None)

    def __post_init__(self) -> None:
        if (self.mutual_user is None) != (self.mutual_secret is None):
            raise ValueError("mutual_user and mutual_secret_file belong together: give both or none")
        for secret in (self.secret, self.mutual_secret):
            if secret is not None and len(secret.value.encode()) < _CHAP_SECRET_BYTES_MIN:
                raise ValueError(
                    f"the secret in {secret.path} is shorter than {_CHAP_SECRET_BYTES_MIN} bytes"
                )
        # RFC 7143 12.1.3: otherwise either side could answer with what the other sent.
        if self.mutual_secret is not None and self.mutual_secret.value == self.secret.value:
            raise ValueError("the secrets of the two directions must differ")


class IscsiTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """[target.iscsi]: where hosts come in. `discovery_chap` (LIO) is for the whole machine."""

    name: IscsiName
    portals: list[Address]
    initiators: list[IscsiName] = []
    chap: ChapTable | None = None
    discovery_chap: ChapTable | None = None

    def __post_init__(self) -> None:
        if not self.portals:
            raise ValueError("portals is empty: hosts could not come in")
        _unique(self.portals, "portal", str)


class SanTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """[target.san]: where peer subsystems come in, and as what this one goes to theirs."""

    name: IscsiName
    portal: Address
    initiator_name: IscsiName
    initiators: list[IscsiName]


class FcTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """[target.fc] (LIO): our ports, the hosts' that see the volumes, the peers' that read the journals."""

    ports: list[Wwpn]
    initiators: list[Wwpn] = []
    peers: list[Wwpn] = []
    driver: Literal["tcm_fc", "qla2xxx"] = "tcm_fc"

    def __post_init__(self) -> None:
        if not self.ports:
            raise ValueError("ports is empty: name the WWPNs of this machine")
        _unique(self.ports, "port", str)
        _unique(self.initiators, "initiator", str)
        _unique(self.peers, "peer", str)


class TargetTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """[target]"""

    control_socket: Path
    iscsi: IscsiTable
    san: SanTable
    front_end: Literal["embedded", "lio"] = "embedded"
    fc: FcTable | None = None

    def __post_init__(self) -> None:
        if self.front_end == "embedded":
            for key, value in (("fc", self.fc), ("iscsi.discovery_chap", self.iscsi.discovery_chap)):
                if value is not None:
                    raise ValueError(f'{key} needs front_end = "lio"')
        if self.san.portal in self.iscsi.portals:
            raise ValueError(f"san.portal {self.san.portal} is a portal for hosts too; the two must be apart")
        if self.san.name == self.iscsi.name:
            raise ValueError(f"san.name {self.san.name} is the name for hosts too; the two must be apart")


class VolumeTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """[[group.volume]]: a file, made sparse if it is missing, or a block device."""

    name: Name
    path: Path
    lun: int
    size: VolumeSize | None = None
    block_size: Literal[512, 4096] = 512
    removable: bool = False

    def __post_init__(self) -> None:
        _check_lun("lun", self.lun)
        if self.size is None and not self.path.is_block_device():
            raise ValueError(f"size is required: {self.path} is not a block device")


class GroupTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """[[group]]: volumes whose writes keep one order, and the journal volume that keeps it."""

    name: Name
    journal: Path
    journal_size: JournalSize
    san_lun: int
    volumes: list[VolumeTable] = msgspec.field(name="volume")
    throttle: bool = False
    commit_interval_ms: int = 50

    def __post_init__(self) -> None:
        _check_lun("san_lun", self.san_lun)
        if not 1 <= self.commit_interval_ms <= 10_000:
            raise ValueError(f"commit_interval_ms {self.commit_interval_ms} is not between 1 and 10000")
        if not self.volumes:
            raise ValueError("a group needs at least one [[group.volume]]")


class _SiteFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    site: SiteTable
    target: TargetTable
    groups: list[GroupTable] = msgspec.field(name="group")
    hostagent: dict[str, Any] = {}
    peer: list[dict[str, Any]] = []

    def __post_init__(self) -> None:
        volumes = [volume for group in self.groups for volume in group.volumes]
        _unique(self.groups, "group name", lambda group: group.name)
        _unique(self.groups, "san_lun", lambda group: group.san_lun)
        _unique(volumes, "volume name", lambda volume: volume.name)
        _unique(volumes, "lun", lambda volume: volume.lun)
        paths = [volume.path for volume in volumes] + [group.journal for group in self.groups]
        _unique(paths, "path", lambda path: path.resolve())


class Config(msgspec.Struct, frozen=True):
    """A site as its storage subsystem sees it; all paths absolute, all secrets read."""

    site: SiteTable
    target: TargetTable
    groups: tuple[GroupTable, ...]


def load_config(path: Path) -> Config:
    """Read `site.toml`; an `OperatorError` names file, key and reason."""
    tables = read_site_file(path, _SiteFile)
    return Config(tables.site, tables.target, tuple(tables.groups))


def _check_lun(key: str, lun: int) -> None:
    if not 0 <= lun <= _LUN_MAX:
        raise ValueError(f"{key} {lun} is not between 0 and {_LUN_MAX}")


def _unique(items: Iterable[T], what: str, key: Callable[[T], object]) -> None:
    seen = set()
    for value in map(key, items):
        if value in seen:
            raise ValueError(f"{what} {value} is given twice")
        seen.add(value)
