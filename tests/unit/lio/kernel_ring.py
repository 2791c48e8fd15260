"""The kernel's side of a TCMU ring in memory: queues commands, cleans up behind the tail, forgets nothing.

It behaves as `target_core_user` does where that matters: entries of 64 byte steps, a pad before a wrap,
identifiers used again as soon as they are free, data in scattered pages, responses looked up by the
identifier they carry, and a broken ring when one is not known.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass, field

CMDR_OFF = 128
PAGE = 4096
_ENTRY_BYTES = 112


class Killed(Exception):
    """The process was killed before this store."""


class Words:
    """32-bit words over the ring; raises `Killed` instead of the store number `stores_left`."""

    def __init__(self, view: memoryview) -> None:
        self._words = view.cast("I")
        self.stores_left: int | None = None

    def __getitem__(self, index: int, /) -> int:
        return self._words[index]

    def __setitem__(self, index: int, value: int, /) -> None:
        if self.stores_left is not None:
            if self.stores_left == 0:
                raise Killed
            self.stores_left -= 1
        self._words[index] = value


@dataclass
class KernelCommand:
    """What the kernel knows of a command, from its queueing to its completion."""

    cmd_id: int
    cdb: bytes
    pages: list[int]
    length: int
    data: bytes = b""
    status: int | None = None
    sense: bytes = b""
    read_len: int = 0
    answers: int = field(default=0)


class RingBroken(Exception):
    """The kernel would say: cmd_id not found, ring is broken."""


class KernelRing:
    """A ring and its data area."""

    def __init__(self, cmdr_size: int = 4096 - CMDR_OFF, pages: int = 64) -> None:
        assert cmdr_size % 64 == 0
        self.data_off = CMDR_OFF + cmdr_size
        self.data_off += -self.data_off % PAGE
        self.memory = bytearray(self.data_off + pages * PAGE)
        self.view = memoryview(self.memory)
        self.cmdr_size = cmdr_size
        struct.pack_into("<HHII", self.memory, 0, 2, 0xF, CMDR_OFF, cmdr_size)
        self._cleaned = 0
        self._free_pages = list(range(pages))
        self.commands: dict[int, KernelCommand] = {}
        self.doorbells = 0

    def words(self) -> Words:
        return Words(self.view[: self.data_off])

    @property
    def head(self) -> int:
        return int(struct.unpack_from("<I", self.memory, 12)[0])

    @property
    def tail(self) -> int:
        return int(struct.unpack_from("<I", self.memory, 64)[0])

    def queue(self, cdb: bytes, data_out: bytes = b"", data_in_length: int = 0) -> KernelCommand | None:
        """Queue a command; None when ring or data area are full."""
        length = len(data_out) or data_in_length
        page_count = -(-length // PAGE)
        size = max(_ENTRY_BYTES, 48 + 16 * page_count)
        cdb_at = size
        size = size + 16 + -(size + 16) % 64
        head = self.head
        to_end = self.cmdr_size - head
        pad = to_end if to_end < size else 0
        free = (self._cleaned - head - 64) % self.cmdr_size
        if free < size + pad or page_count > len(self._free_pages):
            return None
        if pad:
            struct.pack_into("<I", self.memory, CMDR_OFF + head, pad)
            head = 0
        # Taken from both ends, so that neighbouring iovecs are seldom one.
        pages = [self._free_pages.pop(-1 if index % 3 else 0) for index in range(page_count)]
        cmd_id = next(number for number in range(1, 1 << 16) if number not in self.commands)
        command = self.commands[cmd_id] = KernelCommand(cmd_id, cdb, pages, length)
        start = CMDR_OFF + head
        self.memory[start : start + size] = bytes(size)
        struct.pack_into(
            "<IHBBIII4xQ", self.memory, start, size | 1, cmd_id, 0, 0, page_count, 0, 0, start + cdb_at
        )
        for index, (base, count) in enumerate(self._extents(command)):
            struct.pack_into("<QQ", self.memory, start + 48 + 16 * index, base, count)
            self.memory[base : base + count] = (
                data_out[index * PAGE : index * PAGE + count] if data_out else b"\xee" * count
            )
        self.memory[start + cdb_at : start + cdb_at + len(cdb)] = cdb
        struct.pack_into("<I", self.memory, 12, (head + size) % self.cmdr_size)
        return command

    def _extents(self, command: KernelCommand) -> Iterable[tuple[int, int]]:
        left = command.length
        for page in command.pages:
            yield self.data_off + page * PAGE, min(PAGE, left)
            left -= PAGE

    def doorbell(self) -> list[KernelCommand]:
        """What the kernel does when the handler writes to the device: take what is answered."""
        self.doorbells += 1
        completed = []
        while self._cleaned != self.tail:
            start = CMDR_OFF + self._cleaned
            len_op, cmd_id, _, uflags = struct.unpack_from("<IHBB", self.memory, start)
            self._cleaned = (self._cleaned + (len_op & ~7)) % self.cmdr_size
            if len_op & 7 == 0:
                continue
            command = self.commands.pop(cmd_id, None)
            if command is None:
                raise RingBroken(f"cmd_id {cmd_id} not found")
            command.status = self.memory[start + 8]
            command.read_len = struct.unpack_from("<I", self.memory, start + 12)[0] if uflags & 2 else 0
            command.sense = bytes(self.memory[start + 16 : start + 112])
            command.answers += 1
            data = b"".join(self.memory[base : base + count] for base, count in self._extents(command))
            command.data = data[: command.read_len] if command.read_len else data
            for base, count in self._extents(command):  # a page of no command must not be read
                self.memory[base : base + count] = b"\xdd" * count
            self._free_pages += command.pages
            completed.append(command)
        return completed
