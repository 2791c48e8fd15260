"""What the kernel tells of its user-backed storage objects, by generic netlink: added, removed, changed.

Linux, `target_core_user.h`, family TCM-USER, multicast group "config"; messages are `nlmsghdr`, `genlmsghdr`
and attributes (`nlattr`), native byte order, aligned to 4. To listen is not optional: without a listener the
kernel refuses a new size (ESRCH).

A process may ask the kernel to wait for its answer to each such message (SET_FEATURES). We never do: if it
then dies, whoever makes, changes or deletes a storage object hangs for ever. The setting is for all
processes and outlives the one that made it, so the start takes it back.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

from target.errors import OperatorError

_MESSAGE = struct.Struct("=IHHII")  # length, type, flags, sequence, port
_GENERIC = struct.Struct("=BBH")  # command, version, reserved
_ATTRIBUTE = struct.Struct("=HH")  # length, type
_TYPE_MASK = 0x3FFF  # without the bits for "nested" and "network byte order"

_NETLINK_GENERIC = 16
_SOL_NETLINK = 270
_NETLINK_ADD_MEMBERSHIP = 1
_NLMSG_ERROR = 2
_NLM_F_REQUEST, _NLM_F_ACK = 0x01, 0x04
_RECEIVE_BYTES = 1 << 16

# The controller, which knows the other families (linux/genetlink.h).
_GENL_ID_CTRL = 0x10
_CTRL_CMD_GETFAMILY = 3
_CTRL_ATTR_FAMILY_ID, _CTRL_ATTR_FAMILY_NAME, _CTRL_ATTR_MCAST_GROUPS = 1, 2, 7
_CTRL_ATTR_MCAST_GRP_NAME, _CTRL_ATTR_MCAST_GRP_ID = 1, 2

_FAMILY = "TCM-USER"
_GROUP = "config"
_VERSION = 2
_SET_FEATURES = 7
_ATTR_DEVICE, _ATTR_MINOR, _ATTR_CONFIG, _ATTR_SIZE, _ATTR_WRITE_CACHE = 1, 2, 4, 5, 6
_ATTR_KERNEL_REPLY = 9


class Command(IntEnum):
    """What a message tells."""

    ADDED = 1
    REMOVED = 2
    RECONFIGURED = 3


_COMMANDS = frozenset(Command)


@dataclass(frozen=True, slots=True)
class Event:
    """One message. `size_bytes`, `write_cache`: with RECONFIGURED, whichever of them it is about."""

    command: Command
    storage_object: str
    minor: int
    size_bytes: int | None = None
    write_cache: bool | None = None


def encode_message(family: int, command: int, attributes: bytes, flags: int = _NLM_F_REQUEST) -> bytes:
    body = _GENERIC.pack(command, _VERSION if family != _GENL_ID_CTRL else 1, 0) + attributes
    return _MESSAGE.pack(_MESSAGE.size + len(body), family, flags, 1, 0) + body


def encode_attribute(kind: int, value: bytes) -> bytes:
    length = _ATTRIBUTE.size + len(value)
    return _ATTRIBUTE.pack(length, kind) + value + bytes(-length % 4)


def decode_messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    """(type, body) of each whole message."""
    while len(data) >= _MESSAGE.size:
        length, kind, _, _, _ = _MESSAGE.unpack_from(data)
        if not _MESSAGE.size <= length <= len(data):
            return
        yield kind, data[_MESSAGE.size : length]
        data = data[length + -length % 4 :]


def decode_attributes(data: bytes) -> dict[int, bytes]:
    """Type -> value; what is cut short is left out."""
    found = {}
    while len(data) >= _ATTRIBUTE.size:
        length, kind = _ATTRIBUTE.unpack_from(data)
        if not _ATTRIBUTE.size <= length <= len(data):
            break
        found[kind & _TYPE_MASK] = data[_ATTRIBUTE.size : length]
        data = data[length + -length % 4 :]
    return found


def decode_event(body: bytes) -> Event | None:
    """A message of the family TCM-USER; None where it is of no use here."""
    if len(body) < _GENERIC.size or body[0] not in _COMMANDS:
        return None
    attributes = decode_attributes(body[_GENERIC.size :])
    # tcm-user/<hba>/<object>/<dev_config>
    name = attributes.get(_ATTR_DEVICE, b"").rstrip(b"\0").decode("utf-8", "replace").split("/", 3)
    if len(name) < 3 or name[0] != "tcm-user":
        return None
    size, cache = attributes.get(_ATTR_SIZE), attributes.get(_ATTR_WRITE_CACHE)
    minor = attributes.get(_ATTR_MINOR, b"")
    return Event(
        Command(body[0]),
        name[2],
        int.from_bytes(minor, "little") if len(minor) == 4 else -1,
        int.from_bytes(size, "little") if size is not None and len(size) == 8 else None,
        bool(cache[0]) if cache else None,
    )


@dataclass(frozen=True, slots=True)
class Family:
    """Numbers that the kernel gave the family and its multicast group."""

    number: int
    group: int


def decode_family(body: bytes) -> Family | None:
    """The controller's answer about TCM-USER."""
    attributes = decode_attributes(body[_GENERIC.size :])
    number = attributes.get(_CTRL_ATTR_FAMILY_ID, b"")
    for entry in decode_attributes(attributes.get(_CTRL_ATTR_MCAST_GROUPS, b"")).values():
        group = decode_attributes(entry)
        if group.get(_CTRL_ATTR_MCAST_GRP_NAME, b"").rstrip(b"\0").decode("ascii", "replace") == _GROUP:
            return Family(
                int.from_bytes(number, "little"),
                int.from_bytes(group.get(_CTRL_ATTR_MCAST_GRP_ID, b""), "little"),
            )
    return None


class Events:
    """A subscription. The constructor also sees to it that the kernel waits for nobody's answers."""

    def __init__(self) -> None:
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_GENERIC
        )
        try:
            self._socket.bind((0, 0))
            self._family = self._find_family()
            self._take_back_replies()
            self._socket.setsockopt(_SOL_NETLINK, _NETLINK_ADD_MEMBERSHIP, self._family.group)
            self._socket.setblocking(False)
        except OSError as error:
            self._socket.close()
            raise OperatorError(f"the kernel does not tell of its storage objects: {error}") from None

    def fileno(self) -> int:
        return self._socket.fileno()

    def receive(self) -> list[Event]:
        """What came. A full buffer loses messages (ENOBUFS): what they told is seen in configfs, too."""
        events: list[Event] = []
        while True:
            try:
                data = self._socket.recv(_RECEIVE_BYTES)
            except BlockingIOError:
                return events
            except OSError:
                continue
            for kind, body in decode_messages(data):
                if kind == self._family.number and (event := decode_event(body)) is not None:
                    events.append(event)

    def close(self) -> None:
        self._socket.close()

    def _find_family(self) -> Family:
        name = encode_attribute(_CTRL_ATTR_FAMILY_NAME, _FAMILY.encode() + b"\0")
        self._socket.send(encode_message(_GENL_ID_CTRL, _CTRL_CMD_GETFAMILY, name))
        for kind, body in decode_messages(self._socket.recv(_RECEIVE_BYTES)):
            if kind == _GENL_ID_CTRL and (family := decode_family(body)) is not None:
                return family
        raise OSError("it has no netlink family TCM-USER: is the module target_core_user loaded?")

    def _take_back_replies(self) -> None:
        off = encode_attribute(_ATTR_KERNEL_REPLY, b"\0")
        self._socket.send(
            encode_message(self._family.number, _SET_FEATURES, off, _NLM_F_REQUEST | _NLM_F_ACK)
        )
        for kind, body in decode_messages(self._socket.recv(_RECEIVE_BYTES)):
            if kind == _NLMSG_ERROR and (code := -int.from_bytes(body[:4], "little", signed=True)):
                raise OSError(code, os.strerror(code))
