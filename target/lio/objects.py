"""What LIO is configured to be: one frozen value an object of configfs, wanted or found. Pure.

Both sides of a comparison are the same types: `desired` makes them from site.toml, `configfs` reads them
from the kernel. An object's `path` names it: in messages, to `replctl lio restore`, and as the place of its
parent (everything but the last part). Ownership can be told from names alone:

- storage objects are called `replctl:<site>:<group>:<volume>`, a journal's has no fourth part (no name of
  site.toml holds a colon);
- a target is ours when site.toml names it, or when it has a LUN on a storage object of ours and none on
  another's; everything below a target of ours is ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

OWNER = "replctl"

BACKSTORES = "backstores"

Path = tuple[str, ...]
Attributes = tuple[tuple[str, str], ...]
"""Names and values, sorted by name."""


class Fabric(Enum):
    """What carries SCSI: the name rtslib has for it."""

    ISCSI = "iscsi"
    FC = "tcm_fc"
    QLA = "qla2xxx"


class Backstore(Enum):
    """Who executes a storage object's commands."""

    USER = "user"
    """We do, through a ring."""
    FILE = "fileio"
    """The kernel reads a file or block device through its page cache."""


@dataclass(frozen=True, slots=True, repr=False)
class Secret:
    """A value that is compared and written, never shown."""

    value: str

    def __repr__(self) -> str:
        return "'...'" if self.value else "''"


NO_SECRET = Secret("")


@dataclass(frozen=True, slots=True)
class Chap:
    """Users and secrets of both directions, '' where a direction is not authenticated."""

    user: str = ""
    secret: Secret = NO_SECRET
    mutual_user: str = ""
    mutual_secret: Secret = NO_SECRET


NO_CHAP = Chap()


@dataclass(frozen=True, slots=True)
class StorageObject:
    """`device`: dev_config for USER, the path for FILE. `made_with` cannot be changed, `attributes` can."""

    name: str
    backstore: Backstore
    device: str
    size_bytes: int
    serial: str
    made_with: Attributes = ()
    attributes: Attributes = ()

    @property
    def path(self) -> Path:
        return (BACKSTORES, self.name)


@dataclass(frozen=True, slots=True)
class Target:
    """A target with its one portal group. `chap` is asked of initiators without an ACL (demo mode)."""

    fabric: Fabric
    wwn: str
    attributes: Attributes = ()
    chap: Chap = NO_CHAP

    @property
    def path(self) -> Path:
        return (self.fabric.value, self.wwn)


@dataclass(frozen=True, slots=True)
class Lun:
    """A storage object in a portal group."""

    target: Path
    number: int
    storage_object: str

    @property
    def path(self) -> Path:
        return (*self.target, f"lun_{self.number}")


@dataclass(frozen=True, slots=True)
class Portal:
    """An address where a portal group listens."""

    target: Path
    host: str
    port: int

    @property
    def path(self) -> Path:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return (*self.target, f"{host}:{self.port}")


@dataclass(frozen=True, slots=True)
class Acl:
    """An initiator that may come in."""

    target: Path
    initiator: str
    chap: Chap = NO_CHAP

    @property
    def path(self) -> Path:
        return (*self.target, self.initiator)


@dataclass(frozen=True, slots=True)
class MappedLun:
    """What an initiator sees under a number."""

    acl: Path
    number: int
    lun: int
    write_protected: bool = False

    @property
    def path(self) -> Path:
        return (*self.acl, f"lun_{self.number}")


@dataclass(frozen=True, slots=True)
class Service:
    """A portal group is enabled: last to come and first to go, so that nobody sees half of a target."""

    target: Path

    @property
    def path(self) -> Path:
        return (*self.target, "service")


@dataclass(frozen=True, slots=True)
class Discovery:
    """Who may ask which targets there are: one for the whole machine, so wanted only when configured."""

    chap: Chap = NO_CHAP

    @property
    def path(self) -> Path:
        return (Fabric.ISCSI.value, "discovery")


Object = StorageObject | Target | Lun | Portal | Acl | MappedLun | Service | Discovery


def volume_object_name(site: str, group: str, volume: str) -> str:
    """The storage object of a data volume."""
    return f"{OWNER}:{site}:{group}:{volume}"


def journal_object_name(site: str, group: str) -> str:
    """The storage object of a group's journal volume."""
    return f"{OWNER}:{site}:{group}"


def is_ours(name: str, site: str) -> bool:
    """Whether a storage object with this name belongs to this site."""
    return name.startswith(f"{OWNER}:{site}:")


def text(path: Path) -> str:
    """As people write it."""
    return "/".join(path)
