"""One volume's ring and its logical unit: what the kernel queued is executed, and answered in the ring.

A turn: all that is in the ring is taken and executed, as one batch; the loop then writes the journal once for
all writes of the turn, here and on every other ring; last, everything that is done is answered, with one
doorbell a ring. A command that waits (flush, FUA, cold read) is answered in a later turn, out of order.

Commands of a former life are executed before any new one of the same ring, in ring order, whether they had
been executed or not. Why doing them again is right: none of them was answered, so each may still take effect
at any moment (SAM-5), and no write that depends on one of them can have been sent; a write that was sent
while another one to the same blocks was unanswered has no order to it. So in the journal the repetition
stands for the command, and the record before it for nothing: it holds the same content at the same place.
Commands write content and no differences, and no repetition comes behind a write that was sent after its
answer. Secondaries see both, in order, and every prefix is a state in which what was answered is there.

One command is not the same when done twice: COMPARE AND WRITE then compares with what it wrote itself. A
repeated one that does not compare, and finds just what it was to write, was done: `RepeatedCompareAndWrite`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from target.lio.ring import Entry, Response, Ring, busy
from target.scsi import cdb as cdbs
from target.scsi.cdb import Opcode
from target.scsi.command import GOOD, Nexus, ScsiCommand, ScsiResult, Status
from target.scsi.logical_unit import LogicalUnit
from target.scsi.sense import INVALID_COMMAND_OPERATION_CODE as _UNKNOWN
from target.scsi.sense import Sense, SenseKey
from target.volume import Buffer

_KERNELS = frozenset(
    (
        Opcode.RESERVE_6,
        Opcode.RELEASE_6,
        Opcode.PERSISTENT_RESERVE_IN,
        Opcode.PERSISTENT_RESERVE_OUT,
    )
)
"""Reservations are kept by nexus, which only the kernel knows: it answers them, or nobody."""

_READS = frozenset((Opcode.READ_6, Opcode.READ_10, Opcode.READ_12, Opcode.READ_16))

NEXUS = Nexus("", "")
"""TCMU tells neither initiator nor port. What SAM-5 keeps for each nexus (unit attentions of power on and
reset, reservations) the kernel keeps; what we raise ourselves goes to whoever comes next.
"""


class SendScheduler(Protocol):
    """Of the loop, what a handler needs."""

    def at_send(self, call: Callable[[], None]) -> None:
        """Call once in this turn, after the journal was written."""


class RingCommand(ScsiCommand):
    """A command of the ring on its way through the device server."""

    __slots__ = ("entry", "handler")

    def __init__(self, handler: RingHandler, entry: Entry, data_out: Buffer) -> None:
        self.cdb = entry.cdb
        self.data_out = data_out
        self.nexus = NEXUS
        self.handler = handler
        self.entry = entry

    def done(self, data: Buffer | None = None) -> None:
        handler = self.handler
        if data is None:
            handler.respond(Response(self.entry, 0))
        else:
            handler.respond(Response(self.entry, 0, b"", handler.put_data_in(self.entry, (data,))))

    def complete(self, result: ScsiResult) -> None:
        # A residual of data-out is the kernel's to report: it knows both lengths.
        read_len = self.handler.put_data_in(self.entry, result.data_in) if result.data_in else 0
        sense = b"" if result.sense is None else self.handler.encode_sense(result.sense)
        self.handler.respond(Response(self.entry, result.status, sense, read_len))


class RepeatedCompareAndWrite(RingCommand):
    """COMPARE AND WRITE of a former life, which may have been executed there."""

    __slots__ = ()

    def complete(self, result: ScsiResult) -> None:
        if result.sense is None or result.sense.key != SenseKey.MISCOMPARE:
            super().complete(result)
            return
        read = cdbs.block_command(Opcode.READ_16, int.from_bytes(self.cdb[2:10], "big"), self.cdb[13])
        self.handler.execute(_ReadBack(self, read, result))

    def read_back(self, content: bytes, before: ScsiResult) -> None:
        """`content`: what is there now; `before`: what the repetition came to."""
        written = bytes(self.data_out[len(self.data_out) // 2 :])
        super().complete(GOOD if content == written else before)


class _ReadBack(ScsiCommand):
    """A READ of our own; where it fails, the answer stays what it was."""

    __slots__ = ("_command", "_result")

    def __init__(self, command: RepeatedCompareAndWrite, cdb: bytes, result: ScsiResult) -> None:
        super().__init__(cdb, b"", NEXUS)
        self._command = command
        self._result = result

    def complete(self, result: ScsiResult) -> None:
        self._command.read_back(b"".join(map(bytes, result.data_in)), self._result)


class RingHandler:
    """`doorbell` tells the kernel to look at the tail."""

    def __init__(
        self, scheduler: SendScheduler, ring: Ring, unit: LogicalUnit, doorbell: Callable[[], None]
    ) -> None:
        self._scheduler = scheduler
        self._ring = ring
        self._unit = unit
        self._doorbell = doorbell
        self._responses: list[Response] = []
        self._closed = False
        self._send = self._answer
        while unit.attentions.take(NEXUS) is not None:
            pass  # the kernel reports power on, to each initiator
        self.commands = 0
        self.batches = 0

    def start(self) -> None:
        """Execute what a former life left, before anything new."""
        self._execute(self._ring.recover(), repeated=True)

    def drain(self) -> None:
        """Something may have come."""
        self._execute(self._ring.take())

    @property
    def outstanding(self) -> int:
        return self._ring.outstanding

    def close(self) -> None:
        """The ring is gone: what is under way is not answered any more, and its memory not touched."""
        self._closed = True

    def execute(self, command: ScsiCommand) -> None:
        """A command of our own."""
        self._unit.execute(command)

    def _execute(self, entries: list[Entry], *, repeated: bool = False) -> None:
        if not entries:
            return
        self.batches += 1
        self.commands += len(entries)
        view = self._ring.view
        execute = self._unit.execute
        for entry in entries:
            if entry.lost:
                self.respond(busy(entry))
                continue
            extents = entry.extents
            data_out: Buffer
            if not extents or entry.cdb[0] in _READS:
                data_out = b""
            elif len(extents) == 1:
                start, end = extents[0]
                data_out = view[start:end]
            else:
                data_out = b"".join([view[start:end] for start, end in extents])
            if entry.cdb[0] in _KERNELS:
                self.respond(Response(entry, Status.CHECK_CONDITION, self.encode_sense(_UNKNOWN)))
            elif repeated and entry.cdb[0] == Opcode.COMPARE_AND_WRITE:
                execute(RepeatedCompareAndWrite(self, entry, bytes(data_out)))
            else:
                execute(RingCommand(self, entry, data_out))

    def encode_sense(self, sense: Sense) -> bytes:
        return self._unit.encode_sense(sense)

    def respond(self, response: Response) -> None:
        if not self._responses:
            self._scheduler.at_send(self._send)
        self._responses.append(response)

    def put_data_in(self, entry: Entry, buffers: Sequence[Buffer]) -> int:
        """Copy data-in to the command's pages, and zero the rest: other commands' data were there.

        Returns its length where that is less than the initiator has room for, else 0.
        """
        if self._closed:
            return 0
        data = memoryview(buffers[0] if len(buffers) == 1 else b"".join(buffers))
        length, position, view = len(data), 0, self._ring.view
        for start, end in entry.extents:
            part = data[position : position + end - start]
            view[start : start + len(part)] = part
            if start + len(part) < end:
                view[start + len(part) : end] = bytes(end - start - len(part))
            position += end - start
        return length if length < position else 0

    def _answer(self) -> None:
        responses, self._responses = self._responses, []
        if not self._closed and self._ring.answer(responses):
            self._doorbell()
