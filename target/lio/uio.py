"""The devices through which the kernel shares its rings: found by name, opened, mapped, watched.

A user-backed storage object has a device /dev/uioN whose name is `tcm-user/<hba>/<object>/<dev_config>`.
Numbers change from boot to boot, names do not. When the monitor has been started one looks again, so that no
device is missed; one that is seen twice is told twice. A device has one opener: while a former process is
still dying, opening says EBUSY; and the kernel tells of a device before it has described its memory in sysfs,
when opening finds no such file. The front end tries both again.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from target.errors import OperatorError
from target.lio.ring import Words

_SYSFS = Path("/sys/class/uio")
_RING_BYTES_MAX = 8 << 20
"""Mailbox and ring, as the kernel has them. Of the data area behind, only commands' pages are there."""
_DOORBELL = b"\0\0\0\1"


@dataclass(frozen=True, slots=True)
class Found:
    """A device: its node, and the storage object and dev_config in its name."""

    node: str
    storage_object: str
    config: str


class Device:
    """An open device. OSError when it cannot be opened, or, from the calls that do I/O, when it is gone."""

    def __init__(self, node: str) -> None:
        if sys.byteorder != "little":
            raise OperatorError("the ring of TCMU is read as little-endian words: this machine has others")
        size = int((_SYSFS / node / "maps/map0/size").read_text(), 0)
        self._fd = os.open(f"/dev/{node}", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            mapping = mmap.mmap(self._fd, size)  # all of it: any other size is refused
        except BaseException:
            os.close(self._fd)
            raise
        # Unmapped when the last slice of it is gone.
        self.view = memoryview(mapping)
        # ctypes stores a word at once, which neither struct nor slices promise.
        words: Any = ctypes.c_uint32 * (min(_RING_BYTES_MAX, size) // 4)
        self.words: Words = words.from_buffer(mapping)

    def fileno(self) -> int:
        return self._fd

    def acknowledge(self) -> None:
        """What came until now is known: the descriptor is readable again when more comes."""
        try:
            os.read(self._fd, 4)
        except BlockingIOError:
            pass

    def ring_doorbell(self) -> None:
        """Let the kernel look at the tail. The system call orders our stores before its loads."""
        os.write(self._fd, _DOORBELL)

    def close(self) -> None:
        os.close(self._fd)


class Watch:
    """Tells of devices that are there, and once it is started, of those that come."""

    def __init__(self, on_found: Callable[[Found], None]) -> None:
        self._on_found = on_found
        self._monitor: Any = None

    def start(self) -> None:
        """From now on `fileno` is readable when there is something to tell. It imports pyudev."""
        import pyudev

        # The kernel's own events: the node exists when they come, and nothing of udev's rules is needed.
        self._monitor = pyudev.Monitor.from_netlink(pyudev.Context(), source="kernel")
        self._monitor.filter_by("uio")
        self._monitor.start()

    def fileno(self) -> int:
        return int(self._monitor.fileno())

    def look(self) -> None:
        """Tell of all that are there."""
        for found in present():
            self._on_found(found)

    def receive(self) -> None:
        """Tell of what came."""
        while (event := self._monitor.poll(0)) is not None:
            if event.action == "add" and (found := _found(_SYSFS / event.sys_name)) is not None:
                self._on_found(found)


def exists(node: str) -> bool:
    """Whether the kernel knows the device, even if it cannot be opened yet or any more."""
    return (_SYSFS / node).exists()


def present() -> Iterator[Found]:
    """The devices of user-backed storage objects that there are now."""
    if _SYSFS.is_dir():
        for entry in sorted(_SYSFS.iterdir()):
            if (found := _found(entry)) is not None:
                yield found


def _found(entry: Path) -> Found | None:
    try:
        name = (entry / "name").read_text().strip()
    except OSError:
        return None  # gone again
    parts = name.split("/", 3)
    if len(parts) < 3 or parts[0] != "tcm-user":
        return None
    return Found(entry.name, parts[2], parts[3] if len(parts) > 3 else "")
