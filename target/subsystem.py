"""One storage subsystem, from `site.toml`: groups, front end, SAN portal, transfers and control socket.

The only module that knows all the others.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from target.blockdev import FileDevice
from target.config import Config, GroupTable
from target.control.lines import Message
from target.control.operations import Operations
from target.control.server import ControlServer
from target.control.site_file import KERNEL
from target.control.state import group_state
from target.device_files import check_volume, journal_is_new
from target.device_volume import ReadOnlyVolume
from target.engine import Engine
from target.errors import IntegrityError, OperatorError, ReplctlError
from target.group import Access, ConsistencyGroup, GroupSettings
from target.group_volume import GroupVolume
from target.journal.format import VolumeShape
from target.lio.desired import LIMITS, exported
from target.lio.front_end import LioFrontEnd, Served
from target.lio.journal_device import BlockDevices, JournalDevices
from target.lio.objects import journal_object_name, volume_object_name
from target.loop import Loop
from target.open_group import open_group
from target.reservation_file import ReservationFile
from target.san.fetch import JournalSource
from target.scsi.device_server import Device
from target.scsi.logical_unit import LogicalUnit
from target.scsi.sense import MODE_PARAMETERS_CHANGED

if TYPE_CHECKING:
    from target.iscsi.node import TargetNode
    from target.iscsi.portal import Portal

# Our own iSCSI is imported where it is used: a subsystem behind LIO needs most of it never, and hosts wait
# for one that is restarted (a fifth of the time until it serves, measured).

_log = logging.getLogger(__name__)

LOGOUT_SECONDS = 2
"""For a host to log out in good order before its connection is cut; its commands are kept either way."""


class Subsystem:
    """Opens everything in its constructor; raises ReplctlError when something does not fit."""

    def __init__(self, loop: Loop, config: Config) -> None:
        self.loop = loop
        self.config = config
        self._journal_devices: JournalDevices | None = None
        self.engine = Engine(self._journal_source)
        self._devices: list[FileDevice] = []
        front: dict[int, LogicalUnit] = {}
        san: dict[int, LogicalUnit] = {}
        for table in config.groups:
            self._open_group(table, front, san)
        self._portals: list[Portal] = []
        self._lio: LioFrontEnd | None = None
        if config.target.front_end == "lio":
            self._lio = self._lio_front_end(front, san)
        else:
            self._portals = [
                self._listen(config.target.iscsi.portals, self._front_node(front)),
                self._listen([config.target.san.portal], self._san_node(san)),
            ]
        self._control = ControlServer(
            loop, config.target.control_socket, Operations(self.engine, self._lio).handle, self._greeting
        )
        for group in self.engine.groups.values():
            group.listen(self._notifier(group))

    # -- groups --

    def _open_group(
        self, table: GroupTable, front: dict[int, LogicalUnit], san: dict[int, LogicalUnit]
    ) -> None:
        name = str(table.name)
        site = str(self.config.site.name)
        self._refuse_cut_files(table)
        journal = self._device(table, "journal", table.journal, int(table.journal_size))
        devices = {}
        shapes = []
        for volume in table.volumes:
            size = None if volume.size is None else int(volume.size)
            device = self._device(table, str(volume.name), volume.path, size)
            devices[str(volume.name)] = device
            shapes.append(VolumeShape(str(volume.name), size or 0, volume.block_size))
        settings = GroupSettings(
            name,
            site=site,
            commit_interval_seconds=table.commit_interval_ms / 1000,
            throttle=table.throttle,
        )
        try:
            group = open_group(self.loop, settings, journal, tuple(shapes), devices)
        except ReplctlError as error:
            raise type(error)(f"group {name}, journal {table.journal}: {error}") from None
        serial = serial_of(site, name, "journal")
        self.engine.add(group, table.san_lun, serial)
        entries = {entry.name: entry for entry in group.volumes}
        units: list[LogicalUnit] = []
        for volume in table.volumes:
            served = GroupVolume(group, entries[str(volume.name)], serial_of(site, name, str(volume.name)))
            lio = self.config.target.front_end == "lio"  # which keeps reservations itself
            unit = LogicalUnit(
                served,
                LIMITS if lio else None,
                None if lio else self._reservations(name, str(volume.name)),
                removable=volume.removable,
                space=devices[str(volume.name)].space,
            )
            front[volume.lun] = unit
            units.append(unit)
        group.listen(_tells_write_protection(group, units))
        journal_volume = ReadOnlyVolume(journal, self.loop, name=f"{name}.journal", serial=serial)
        san[table.san_lun] = LogicalUnit(journal_volume)
        group.listen(journal_volume.look_at_size)
        group.listen(tells_sizes([*units, san[table.san_lun]]))

    def _reservations(self, group: str, volume: str) -> ReservationFile:
        directory = self.config.site.state_dir / "reservations"
        return ReservationFile(directory / f"{group}.{volume}.json", self.loop)

    def _refuse_cut_files(self, table: GroupTable) -> None:
        try:
            if not journal_is_new(table.journal):
                for volume in table.volumes:
                    check_volume(volume.path, None if volume.size is None else int(volume.size))
        except IntegrityError as error:
            raise IntegrityError(f"group {table.name!s}: {error}") from None
        except OSError:
            return  # opening them will say why

    def _device(self, table: GroupTable, what: str, path: Path, size: int | None) -> FileDevice:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            device = FileDevice(path, create_bytes=size)
            fcntl.flock(device.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OperatorError(
                f"group {table.name!s}: {what} at {path} is in use by another process: "
                "is a second storage subsystem running?"
            ) from None
        except OSError as error:
            raise OperatorError(
                f"group {table.name!s}: {what} at {path} cannot be opened: {error.strerror or error}"
            ) from None
        self._devices.append(device)
        return device

    def _journal_source(self, portal: str, target: str, lun: int) -> JournalSource:
        """A peer's journal, by our own initiator or by the kernel's."""
        if portal != KERNEL:
            from target.san.source import IscsiSource

            initiator = str(self.config.target.san.initiator_name)
            return IscsiSource(self.loop, portal, target, lun, initiator)
        if self._journal_devices is None:
            self._journal_devices = JournalDevices(self.loop, BlockDevices(self.loop))
        return self._journal_devices.source(target)

    # -- front ends --

    def _front_node(self, units: dict[int, LogicalUnit]) -> TargetNode:
        from target.iscsi.chap import ChapCredentials
        from target.iscsi.node import TargetNode

        table = self.config.target.iscsi
        chap = None
        if table.chap is not None:
            mutual = table.chap.mutual_secret
            chap = ChapCredentials(
                table.chap.user,
                table.chap.secret.value,
                table.chap.mutual_user,
                None if mutual is None else mutual.value,
            )
        return TargetNode(
            str(table.name),
            Device(units),
            [str(portal) for portal in table.portals],
            frozenset(str(name) for name in table.initiators),
            chap,
        )

    def _san_node(self, units: dict[int, LogicalUnit]) -> TargetNode:
        """The journal LUNs, for peers alone: with no peer named, nobody comes in."""
        from target.iscsi.node import TargetNode

        table = self.config.target.san
        peers = frozenset(str(name) for name in table.initiators) or frozenset((_NOBODY,))
        return TargetNode(str(table.name), Device(units), [str(table.portal)], peers)

    def _listen(self, addresses: Sequence[str], node: TargetNode) -> Portal:
        from target.iscsi.portal import Portal

        portal = Portal(self.loop, [node])
        for address in addresses:
            try:
                portal.listen(str(address))
            except OSError as error:
                raise OperatorError(
                    f"portal {address}: cannot listen: {error.strerror or error}; "
                    "is another subsystem running?"
                ) from None
        return portal

    def _lio_front_end(self, front: dict[int, LogicalUnit], san: dict[int, LogicalUnit]) -> LioFrontEnd:
        """The same volumes and journals, offered by the kernel."""
        site = str(self.config.site.name)
        volumes, journals = [], []
        for table in self.config.groups:
            group = str(table.name)
            for volume in table.volumes:
                name = volume_object_name(site, group, str(volume.name))
                unit = front[volume.lun]
                volumes.append(Served(exported(name, volume.lun, unit.volume), unit))
            journal = exported(journal_object_name(site, group), table.san_lun, san[table.san_lun].volume)
            journals.append(Served(replace(journal, file=str(table.journal)), san[table.san_lun]))
        lio = LioFrontEnd(self.loop, self.config, volumes, journals)
        for opened in self.engine.groups.values():
            opened.listen(lio.look_at_sizes)
        return lio

    # -- what the copy manager is told --

    def _notifier(self, group: ConsistencyGroup) -> Callable[[], None]:
        return lambda: self._control.notify(self._note(group))

    def _note(self, group: ConsistencyGroup) -> Message:
        return {"note": "group", "params": group_state(group, self.engine.fetches.get(group.name))}

    def _greeting(self) -> list[Message]:
        return [self._note(group) for group in self.engine.groups.values()]

    # -- the end --

    def drain(self, done: Callable[[], None]) -> None:
        """Ask the initiators to log out; call `done` when none is left, or after LOGOUT_SECONDS."""
        left = len(self._portals)
        if not left:
            done()

        def drained() -> None:
            nonlocal left
            left -= 1
            if not left:
                done()

        for portal in self._portals:
            portal.drain(LOGOUT_SECONDS, drained)

    def when_served(self, call: Callable[[], None]) -> None:
        """Call when hosts can come in: with LIO, when it was configured, as far as that is possible now."""
        if self._lio is None:
            self.loop.call_soon(call)
        else:
            self._lio.on_applied = call

    def close(self) -> None:
        """Stop taking commands; what was acknowledged is in the journal and found again."""
        for portal in self._portals:
            portal.close()
        if self._lio is not None:
            self._lio.close()
        self._control.close()
        for group in list(self.engine.groups.values()):
            self.engine.stop_fetch(group)

    @property
    def settled(self) -> bool:
        """Everything is durable and on the data volumes: they can be used without this software now."""
        return all(
            group.access is Access.FAILED
            or (
                group.journal.durable.lsn == group.journal.head.lsn
                and group.journal.superblock.checkpoint_sequence == group.background.applied_sequence
                and (
                    group.background.following
                    or group.background.applied_sequence == group.journal.head.sequence
                )
                and group.background.idle
                and not group.write_path.committing
                and not group.journal.commit_needed
            )
            for group in self.engine.groups.values()
        )

    def settle(self) -> None:
        """One nudge towards `settled`."""
        for group in self.engine.groups.values():
            group.write_path.end_turn()
            group.write_path.commit(urgent=True)
            group.background.make_space()


def _tells_write_protection(group: ConsistencyGroup, units: Sequence[LogicalUnit]) -> Callable[[], None]:
    """Hosts that know the write-protect bit are told when it changes, so that they ask again."""
    protected = group.access in (Access.READ_ONLY, Access.FAILED)

    def look() -> None:
        nonlocal protected
        now = group.access in (Access.READ_ONLY, Access.FAILED)
        if now != protected:
            protected = now
            for unit in units:
                unit.raise_unit_attention(MODE_PARAMETERS_CHANGED)

    return look


def tells_sizes(units: Sequence[LogicalUnit]) -> Callable[[], None]:
    """Hosts hear that a volume has grown, and peers that a journal has (CAPACITY DATA HAS CHANGED)."""

    def look() -> None:
        for unit in units:
            if unit.volume.size_bytes >> unit.block_shift != unit.block_count:
                unit.capacity_changed()

    return look


_NOBODY = "iqn.2026-01.org.replctl:nobody"


def serial_of(site: str, group: str, volume: str) -> str:
    """A serial number that is the same after every restart, and different for every volume of every site."""
    return hashlib.sha256(f"{site}/{group}/{volume}".encode()).hexdigest()[:16]
