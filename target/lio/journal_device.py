"""A peer's journal LUN that this machine's kernel attached, by open-iscsi or Fibre Channel: a block device.

It is found by its identity: the unit serial number (SPC-4, vital product data page 80h) that the peer's
subsystem told over the management network. Names of devices say nothing: they change with every login. Where
multipath joined several paths, its device is read.

Reads pass the page cache by (O_DIRECT): what was cached of a journal that somebody else writes is wrong
soon. They block, so they go to lanes of their own; a path that is gone may hold them until the kernel gives
up. Then `on_down` is told after `_ANSWER_SECONDS_MAX`, and nothing new is read from that journal before the
lanes are free again, so that a dead link costs these threads and no more. A device that is taken away is
told at once.
"""

from __future__ import annotations

import logging
import mmap
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from target.errors import OperatorError, PeerError
from target.loop import Loop, LoopTimer
from target.volume import Buffer

_log = logging.getLogger(__name__)

_LANES = 4
_ANSWER_SECONDS_MAX = 5.0
_LOOK_SECONDS = 0.02
_BLOCK = Path("/sys/class/block")
_SERIAL_PAGE = 0x80


class Devices(Protocol):
    """What knows the machine's block devices: the real one asks the kernel, tests have another."""

    def find(self, serial: str) -> str | None:
        """The node of the device with this unit serial number, if there is one now."""

    def on_removed(self, call: Callable[[str], None]) -> None:
        """Have `call` told the node of every device that is taken away."""


class BlockDevices:
    """The kernel's, by sysfs and pyudev."""

    def __init__(self, loop: Loop) -> None:
        try:
            import pyudev
        except ImportError:
            raise OperatorError(
                "reading a peer's journal from a block device needs pyudev: install replctl[lio], "
                "or the package python3-pyudev"
            ) from None
        self._calls: list[Callable[[str], None]] = []
        self._context: Any = pyudev.Context()
        self._monitor: Any = pyudev.Monitor.from_netlink(self._context, source="kernel")
        self._monitor.filter_by("block")
        self._monitor.start()
        loop.register(self._monitor.fileno(), self._receive)

    def find(self, serial: str) -> str | None:
        for disk in self._context.list_devices(subsystem="block", DEVTYPE="disk"):
            if unit_serial_number(Path(disk.sys_path)) == serial:
                return f"/dev/{_joined(Path(disk.sys_path)) or disk.sys_name}"
        return None

    def on_removed(self, call: Callable[[str], None]) -> None:
        self._calls.append(call)

    def _receive(self) -> None:
        while (event := self._monitor.poll(0)) is not None:
            if event.action == "remove":
                for call in self._calls:
                    call(f"/dev/{event.sys_name}")


def unit_serial_number(disk: Path) -> str:
    """The serial number of the SCSI device behind a directory of sysfs, '' where there is none."""
    try:
        page = (disk / "device" / "vpd_pg80").read_bytes()
    except OSError:
        return ""
    if len(page) < 4 or page[1] != _SERIAL_PAGE:
        return ""
    return page[4 : 4 + int.from_bytes(page[2:4], "big")].decode("ascii", "replace").strip(" \0")


def _joined(disk: Path) -> str | None:
    """The multipath device that a path belongs to."""
    for holder in _entries(disk / "holders"):
        try:
            if (holder / "dm" / "uuid").read_text().startswith("mpath-"):
                return holder.name
        except OSError:
            continue
    return None


def _entries(directory: Path) -> Iterator[Path]:
    if directory.is_dir():
        yield from sorted(directory.iterdir())


class JournalDevices:
    """Makes sources; knows of each journal how many reads the kernel still holds."""

    def __init__(self, loop: Loop, devices: Devices) -> None:
        self.loop = loop
        self.devices = devices
        self.held: dict[str, int] = {}
        self._sources: set[DeviceSource] = set()
        devices.on_removed(self._removed)

    def source(self, serial: str) -> DeviceSource:
        """A `san.fetch.JournalSource` for the journal with this unit serial number."""
        return DeviceSource(self, serial)

    def opened(self, source: DeviceSource) -> None:
        self._sources.add(source)

    def closed(self, source: DeviceSource) -> None:
        self._sources.discard(source)

    def _removed(self, node: str) -> None:
        for source in list(self._sources):
            source.removed(node)


class DeviceSource:
    """One connection's worth of reading."""

    def __init__(self, journals: JournalDevices, serial: str) -> None:
        self._journals = journals
        self._loop = journals.loop
        self._serial = serial
        self._node = ""
        self._file: _File | None = None
        self._lane = 0
        self._asked: dict[int, float] = {}
        self._count = 0
        self._timer: LoopTimer | None = None
        self._give_up_at = 0.0
        self._on_down: Callable[[str], None] | None = None

    def open(self, on_up: Callable[[], None], on_down: Callable[[str], None]) -> None:
        self._on_down = on_down
        self._journals.opened(self)
        self._give_up_at = self._loop.monotonic() + _ANSWER_SECONDS_MAX
        self._loop.call_soon(partial(self._look, on_up))

    def _look(self, on_up: Callable[[], None]) -> None:
        self._timer = None
        if self._on_down is None:
            return  # closed meanwhile
        now = self._loop.monotonic()
        if self._journals.held.get(self._serial):
            # Of a source before this one: an answer is on its way, or the path hangs.
            if now >= self._give_up_at:
                self._down(f"reads of the journal with serial number {self._serial} are not answered")
            else:
                self._timer = self._loop.call_later(_LOOK_SECONDS, partial(self._look, on_up))
            return
        node = self._journals.devices.find(self._serial)
        if node is None:
            self._down(
                f"no block device with serial number {self._serial} is there: is the kernel's initiator "
                "logged in to the peer, or the Fibre Channel link up?"
            )
            return
        try:
            self._file = _File(node)
        except OSError as error:
            self._down(f"{node} cannot be opened: {error.strerror}")
            return
        self._node = node
        _log.info("the journal with serial number %s is %s", self._serial, node)
        on_up()

    def read(self, offset: int, length: int, done: Callable[[Buffer | None, Exception | None], None]) -> None:
        file = self._file
        if file is None:
            return  # `on_down` was told
        held, serial = self._journals.held, self._serial
        held[serial] = held.get(serial, 0) + 1
        self._count += 1
        number = self._count
        self._asked[number] = self._loop.monotonic()
        if self._timer is None:
            self._timer = self._loop.call_later(_ANSWER_SECONDS_MAX, self._overdue)

        def answered(data: Buffer | None, error: Exception | None) -> None:
            held[serial] -= 1
            file.release()
            if self._file is not file:
                return
            del self._asked[number]
            if data is None:
                done(None, PeerError(f"{self._node}: {length} bytes at {offset} could not be read: {error}"))
            else:
                done(data, None)

        file.hold()
        self._lane = (self._lane + 1) % _LANES
        self._loop.submit(f"journal:{serial}:{self._lane}", partial(file.read, offset, length), answered)

    def removed(self, node: str) -> None:
        """This device of the machine is gone."""
        if node == self._node:
            self._down(f"{node} is gone")

    def _overdue(self) -> None:
        self._timer = None
        if self._file is None or not self._asked:
            return
        waiting = self._loop.monotonic() - next(iter(self._asked.values()))
        if waiting >= _ANSWER_SECONDS_MAX:
            self._down(f"{self._node} does not answer")
        else:
            self._timer = self._loop.call_later(_ANSWER_SECONDS_MAX - waiting, self._overdue)

    def _down(self, reason: str) -> None:
        on_down = self._on_down
        self.close()
        if on_down is not None:
            on_down(reason)

    def close(self) -> None:
        self._on_down = None
        self._journals.closed(self)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        file, self._file = self._file, None
        if file is not None:
            file.release()


class _File:
    """A descriptor that is closed when the last reader lets go: until then no other file may get its number.

    Counted on the loop thread.
    """

    def __init__(self, node: str) -> None:
        self._fd = os.open(node, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
        self._holders = 1

    def hold(self) -> None:
        self._holders += 1

    def release(self) -> None:
        self._holders -= 1
        if not self._holders:
            os.close(self._fd)

    def read(self, offset: int, length: int) -> memoryview:
        """On a lane. Memory of its own pages: O_DIRECT wants it aligned."""
        buffer = memoryview(mmap.mmap(-1, length))
        count = os.preadv(self._fd, [buffer], offset)
        if count != length:
            raise OSError(f"the device ends at {offset + count}")
        return buffer
