"""The command ring that a user-backed storage object of the kernel shares with us (TCMU). Pure.

Linux, `target_core_user.h`, mailbox version 2; native words, little-endian machines. Offsets in bytes:

    mailbox   0 u16 version   2 u16 flags   4 u32 cmdr_off   8 u32 cmdr_size
              12 u32 cmd_head (the kernel's)   64 u32 cmd_tail (ours)
    entry     0 u32 len_op (low 3 bits: 0 PAD, 1 CMD, 2 TMR; the rest: length, a multiple of 8)
              4 u16 cmd_id   6 u8 kflags   7 u8 uflags
      request   8 u32 iov_cnt   12 u32 iov_bidi_cnt   16 u32 iov_dif_cnt   24 u64 cdb_off   48 iovecs
                iovec: u64 base, u64 length; base and cdb_off count from the start of the map
      response  8 u8 scsi_status   10 u16 (padding)   12 u32 read_len   16 sense data, 96 bytes

Head and tail count from `cmdr_off`, modulo `cmdr_size`. The tail moves entry by entry in the order of the
ring, but an entry's response may be any command's: the kernel looks `cmd_id` up (capability OOOC). So a
command that waits, for a flush or a cold read, keeps none that came after it: whoever is done is answered in
the first entry, and the command that this entry belonged to moves to the entry that became free.

Invariant, which makes a SIGKILL at any store harmless: the entries between tail and head name, by `cmd_id`,
exactly the commands that the kernel waits for. A response overlays the request of its entry, so `VOID`, a
bit of uflags that the kernel ignores, is set before its first byte. After a restart `recover` finds every
command: one whose request is whole is executed (again), one in a void entry is answered BUSY, and the
initiator repeats it. While a command moves it is for one moment named nowhere but in the padding of the
response that displaced it (`_displaced`), and the answered one is named twice: `recover` knows that by the
second name.

Only the pages of commands that are not answered yet may be touched: any other is SIGBUS.
"""

from __future__ import annotations

import struct
from collections import deque
from typing import NamedTuple, Protocol

from target.errors import OperatorError

_MAILBOX = struct.Struct("<HHII")
_ENTRY = struct.Struct("<IHBBIII4xQ16xQQ")
_IOVEC = struct.Struct("<QQ")
_IOVECS = 48

_VERSION = 2
_FLAG_OOOC = 0x01
_FLAG_READ_LEN = 0x02
_HEAD_WORD = 12 // 4
_TAIL_WORD = 64 // 4

_OP_MASK = 0x07
_OP_CMD = 1

UFLAG_READ_LEN = 0x02
VOID = 0x80
"""Ours, of uflags: what follows the header is no request any more."""

SENSE_BYTES_MAX = 96
_CDB_BYTES = 16
_BUSY = 0x08


class Words(Protocol):
    """The ring as 32-bit words; a word is stored at once."""

    def __getitem__(self, index: int, /) -> int:
        """A word."""

    def __setitem__(self, index: int, value: int, /) -> None:
        """Store a word."""


Extent = tuple[int, int]
"""A part of a command's data, [start, end) in the map. A bare tuple, for there is one a command."""


class Entry:
    """A command of the ring: taken, and not answered yet.

    `lost`: its request was overwritten in a former life; there is nothing to do but to answer it BUSY.
    """

    __slots__ = ("_slot", "cdb", "cmd_id", "extents", "kflags", "lost")

    def __init__(self, cmd_id: int, kflags: int, cdb: bytes, extents: list[Extent], lost: bool) -> None:
        self.cmd_id = cmd_id
        self.kflags = kflags
        self.cdb = cdb
        self.extents = extents
        self.lost = lost
        self._slot: _Slot | None = None


class _Slot:
    """Bytes of the ring between tail and head. `entry`: the command it names; None in a pad."""

    __slots__ = ("entry", "next", "void", "word")

    def __init__(self, word: int, after: int, entry: Entry | None, void: bool) -> None:
        self.word = word
        self.next = after
        self.entry = entry
        self.void = void


class Response(NamedTuple):
    """What the kernel is to hear of a command. `read_len`: how much data-in, where it is less than asked.

    A named tuple, which is made in a third of a frozen dataclass's time: there is one a command.
    """

    entry: Entry
    status: int
    sense: bytes = b""
    read_len: int = 0


class Ring:
    """One ring. `view`: the whole map. `words`: the ring's part of it, stored to by 32 bits at once.

    Words matter: the kernel must never see half of a tail, nor a restart half of an `cmd_id` with its flags.
    """

    def __init__(self, view: memoryview, words: Words) -> None:
        version, flags, self._cmdr_off, self._cmdr_size = _MAILBOX.unpack_from(view)
        if version != _VERSION or flags & (_FLAG_OOOC | _FLAG_READ_LEN) != _FLAG_OOOC | _FLAG_READ_LEN:
            raise OperatorError(
                f"the kernel's TCMU ring has version {version}, flags {flags:#x}; needed is version "
                f"{_VERSION} with out-of-order completion and read lengths (Linux 5.1 or later)"
            )
        self.view = view
        self._words = words
        self._slots: deque[_Slot] = deque()
        self._position = self._tail = words[_TAIL_WORD]

    @property
    def outstanding(self) -> int:
        """Commands that were taken and not answered."""
        return sum(slot.entry is not None for slot in self._slots)

    # -- taking --

    def recover(self) -> list[Entry]:
        """What a former life left unanswered, in ring order; also mends the one move it was killed in."""
        entries = self._scan()
        named: dict[int, _Slot] = {}
        for slot in self._slots:
            entry = slot.entry
            if entry is None:
                continue
            first = named.setdefault(entry.cmd_id, slot)
            if first is not slot:
                entry.cmd_id = self._displaced(first)
                entry.lost = slot.void = True
                self._name(slot, entry)
        return entries

    def take(self) -> list[Entry]:
        """The commands that came since the last time, in ring order."""
        if self._words[_TAIL_WORD] != self._tail:
            # Somebody reset the ring (`action/reset_ring`): the kernel answered all that was outstanding.
            for slot in self._slots:
                if slot.entry is not None:
                    slot.entry._slot = None
            self._slots.clear()
            self._position = self._tail = self._words[_TAIL_WORD]
        return self._scan()

    def _scan(self) -> list[Entry]:
        head = self._words[_HEAD_WORD]
        position = self._position
        entries: list[Entry] = []
        view, size = self.view, self._cmdr_size
        while position != head:
            start = self._cmdr_off + position
            len_op = self._words[start >> 2]
            position = (position + (len_op & ~_OP_MASK)) % size
            if len_op & _OP_MASK != _OP_CMD:
                self._slots.append(_Slot(start >> 2, position, None, False))
                continue
            _, cmd_id, kflags, uflags, iov_cnt, _, _, cdb_off, base, length = _ENTRY.unpack_from(view, start)
            void = bool(uflags & VOID)
            extents: list[Extent] = []
            cdb = b""
            if not void:
                cdb = bytes(view[cdb_off : cdb_off + _CDB_BYTES])
                if iov_cnt == 1:
                    extents.append((base, base + length))
                elif iov_cnt:
                    iovecs = start + _IOVECS
                    for base, length in _IOVEC.iter_unpack(view[iovecs : iovecs + iov_cnt * _IOVEC.size]):
                        extents.append((base, base + length))
            entry = Entry(cmd_id, kflags, cdb, extents, void)
            entry._slot = _Slot(start >> 2, position, entry, void)
            self._slots.append(entry._slot)
            entries.append(entry)
        self._position = position
        return entries

    # -- answering --

    def answer(self, responses: list[Response]) -> bool:
        """Answer commands, in any order; then one doorbell is due. False: nothing was, none is."""
        slots = self._slots
        for response in responses:
            entry = response.entry
            old = entry._slot
            if old is None:
                continue  # the ring was reset under it
            while slots[0].entry is None:
                slots.popleft()
            slot = slots.popleft()
            displaced = slot.entry
            assert displaced is not None
            word = slot.word
            if not slot.void:
                slot.void = True
                self._name(slot, displaced)
            self._words[word + 2] = response.status | displaced.cmd_id << 16
            self._words[word + 3] = response.read_len
            if response.sense:
                start = (word << 2) + 16
                sense = response.sense[:SENSE_BYTES_MAX].ljust(SENSE_BYTES_MAX, b"\0")
                self.view[start : start + SENSE_BYTES_MAX] = sense
            self._name(slot, entry, UFLAG_READ_LEN if response.read_len else 0)
            if old is not slot:
                old.entry, displaced._slot = displaced, old
                old.void = True
                self._name(old, displaced)
            entry._slot = None
            self._tail = slot.next
        while slots and slots[0].entry is None:
            self._tail = slots.popleft().next
        if self._words[_TAIL_WORD] == self._tail:
            return False
        self._words[_TAIL_WORD] = self._tail
        return True

    def _name(self, slot: _Slot, entry: Entry, uflags: int = 0) -> None:
        """One store: which command the slot stands for, and that it holds no request."""
        self._words[slot.word + 1] = entry.cmd_id | entry.kflags << 16 | (uflags | VOID) << 24

    def _displaced(self, slot: _Slot) -> int:
        """Which command the response in this slot displaced."""
        return self._words[slot.word + 2] >> 16


def busy(entry: Entry) -> Response:
    """Let the initiator send it again."""
    return Response(entry, _BUSY)
