"""What LIO is to be configured as, from site.toml. Pure.

    volumes    a USER storage object each, so that their commands come to us
    journals   a FILE storage object each: the kernel reads the journal volume itself
    [target.iscsi]   a target with the volumes, for the initiators named, or for all when none is (demo mode)
    [target.san]     a target with the journals, for the peers named and nobody else, write-protected
    [target.fc]      a target a port: hosts see the volumes, peers the journals, each by an ACL of its own

Why FILE for the journal, also where it is a block device: it goes through the page cache, as our own writes
do, so what is read is what was written last, whether it reached the disk or not; and what was just written,
which is what peers ask for, is in memory. IBLOCK would pass the cache by and read what the last flush left.
Either would do for what a peer may use: it is told durable positions only, and those are on the disk.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from target.config import ChapTable, Config, FcTable
from target.control.site_file import Address
from target.errors import OperatorError
from target.lio.objects import (
    NO_CHAP,
    Acl,
    Backstore,
    Chap,
    Discovery,
    Fabric,
    Lun,
    MappedLun,
    Object,
    Portal,
    Secret,
    Service,
    StorageObject,
    Target,
)
from target.scsi.inquiry import Limits
from target.volume import Volume

HW_MAX_SECTORS = 2048
"""Of 512 bytes: commands of up to 1 MiB (the kernel's default for user-backed objects is 64 KiB)."""

LIMITS = Limits(transfer_bytes_max=HW_MAX_SECTORS * 512)
"""What the device server tells initiators, so that they send no more than the kernel passes on."""

SUBTYPE = "replctl"
"""What our rings are known by: the first part of dev_config."""

_MAPPED_LUN_MAX = 255
"""rtslib maps no higher one. In a portal group that volumes and journals share (FC), journals count down."""

_USER_ATTRIBUTES = (
    # Commands wait for us for ever: a handler that is restarted is a pause, and no error.
    ("cmd_time_out", "0"),
    ("emulate_write_cache", "1"),
)
_FILE_ATTRIBUTES = (("emulate_write_cache", "1"),)


@dataclass(frozen=True, slots=True)
class Exported:
    """A volume or journal, opened: its identity and its size are known."""

    name: str
    lun: int
    size_bytes: int
    serial: str
    block_size_bytes: int = 512
    file: str = ""


def exported(name: str, lun: int, volume: Volume) -> Exported:
    """A volume under its name in LIO."""
    return Exported(name, lun, volume.size_bytes, volume.serial, volume.block_size_bytes)


def desired_objects(
    config: Config, volumes: Sequence[Exported], journals: Sequence[Exported]
) -> list[Object]:
    """Everything that is to be there; OperatorError where LIO cannot be what site.toml asks for."""
    target = config.target
    objects: list[Object] = [_user_object(volume) for volume in volumes]
    objects += [_file_object(journal) for journal in journals]
    luns = [(volume.lun, volume.name) for volume in volumes]
    objects += _iscsi_target(
        str(target.iscsi.name),
        target.iscsi.portals,
        [(volume.lun, volume.name) for volume in volumes],
        [str(name) for name in target.iscsi.initiators],
        _chap(target.iscsi.chap),
        anybody=not target.iscsi.initiators,
    )
    objects += _iscsi_target(
        str(target.san.name),
        [target.san.portal],
        [(journal.lun, journal.name) for journal in journals],
        [str(name) for name in target.san.initiators],
        NO_CHAP,
        anybody=False,
        write_protected=True,
    )
    if target.fc is not None:
        for port in target.fc.ports:
            objects += _fc_target(target.fc, str(port), luns, [(each.lun, each.name) for each in journals])
    if target.iscsi.discovery_chap is not None:
        objects.append(Discovery(_chap(target.iscsi.discovery_chap)))
    return objects


def _user_object(volume: Exported) -> StorageObject:
    return StorageObject(
        volume.name,
        Backstore.USER,
        f"{SUBTYPE}/{volume.serial}",
        volume.size_bytes,
        volume.serial,
        (("hw_block_size", str(volume.block_size_bytes)), ("hw_max_sectors", str(HW_MAX_SECTORS))),
        _USER_ATTRIBUTES,
    )


def _file_object(journal: Exported) -> StorageObject:
    return StorageObject(
        journal.name, Backstore.FILE, journal.file, journal.size_bytes, journal.serial, (), _FILE_ATTRIBUTES
    )


def _iscsi_target(
    name: str,
    portals: Sequence[Address],
    luns: Sequence[tuple[int, str]],
    initiators: Sequence[str],
    chap: Chap,
    *,
    anybody: bool,
    write_protected: bool = False,
) -> Iterator[Object]:
    attributes = {
        "authentication": chap != NO_CHAP,
        "cache_dynamic_acls": anybody,
        "demo_mode_write_protect": not anybody,
        "generate_node_acls": anybody,
    }
    target = Target(
        Fabric.ISCSI,
        name.lower(),
        tuple((key, str(int(value))) for key, value in attributes.items()),
        chap if anybody else NO_CHAP,
    )
    yield target
    for number, storage_object in luns:
        yield Lun(target.path, number, storage_object)
    for portal in portals:
        yield Portal(target.path, _numeric(portal), portal.port)
    for initiator in initiators:
        acl = Acl(target.path, initiator.lower(), chap)
        yield acl
        yield from _mapped(acl, [number for number, _ in luns], write_protected=write_protected)
    yield Service(target.path)


def _fc_target(
    table: FcTable, port: str, volumes: Sequence[tuple[int, str]], journals: Sequence[tuple[int, str]]
) -> Iterator[Object]:
    """No portals, no demo mode, nothing to enable: an initiator sees what its ACL maps."""
    target = Target(Fabric(table.driver), port)
    yield target
    for number, storage_object in volumes:
        yield Lun(target.path, number, storage_object)
    journals = [(_MAPPED_LUN_MAX - number, name) for number, name in journals]
    if shared := {number for number, _ in volumes} & {number for number, _ in journals}:
        raise OperatorError(
            f"lun {min(shared)}: on Fibre Channel a journal has it, {_MAPPED_LUN_MAX} less its san_lun"
        )
    for number, storage_object in journals:
        yield Lun(target.path, number, storage_object)
    for initiator in dict.fromkeys([*table.initiators, *table.peers]):  # one machine may be both
        acl = Acl(target.path, str(initiator))
        yield acl
        if initiator in table.initiators:
            yield from _mapped(acl, [number for number, _ in volumes], write_protected=False)
        if initiator in table.peers:
            yield from _mapped(acl, [number for number, _ in journals], write_protected=True)


def _mapped(acl: Acl, numbers: Sequence[int], *, write_protected: bool) -> Iterator[Object]:
    """The portal group's LUNs under their own numbers."""
    for number in numbers:
        yield MappedLun(acl.path, number, number, write_protected)


def _chap(table: ChapTable | None) -> Chap:
    if table is None:
        return NO_CHAP
    mutual = table.mutual_secret
    return Chap(
        table.user,
        Secret(table.secret.value),
        table.mutual_user or "",
        Secret("" if mutual is None else mutual.value),
    )


def _numeric(portal: Address) -> str:
    try:
        return str(ipaddress.ip_address(portal.host))
    except ValueError:
        raise OperatorError(
            f"portal {portal}: LIO listens on addresses, not on names: write the IP address"
        ) from None
