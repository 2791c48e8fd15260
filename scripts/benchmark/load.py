"""The load generator: keeps a number of commands outstanding on one session and counts the answers.

It has to cost less than any target it measures. So every slot (one outstanding command) owns the whole wire
image of its command, data and Data-Out headers included, made before the clock runs; sending it again means
patching three numbers. Answers are read in large pieces, and only their headers are looked at: Data-In
payload is skipped where it lies. One `sendmsg` carries all the commands that one `recv_into` made possible.
(RFC 7143, section 11. ExpStatSN of the prepared Data-Out PDUs stays behind: it acknowledges less than it
could.)
"""

from __future__ import annotations

import itertools
import random
import select
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum

from scripts.benchmark.session import BHS_BYTES, BenchmarkError, Session

SECTOR_BYTES = 512
_NOP_OUT, _SCSI_COMMAND, _DATA_OUT = 0x00, 0x01, 0x05
_NOP_IN, _SCSI_RESPONSE, _DATA_IN, _R2T = 0x20, 0x21, 0x25, 0x31
_IMMEDIATE, _FINAL, _READ, _WRITE, _SIMPLE = 0x40, 0x80, 0x40, 0x20, 0x01
_STATUS_IN_DATA_IN, _RESIDUAL = 0x01, 0x1E
_READ_10, _WRITE_10, _SYNCHRONIZE_CACHE_10 = 0x28, 0x2A, 0x35
_CDB_START = {code: bytes([code, 0]) for code in (_READ_10, _WRITE_10, _SYNCHRONIZE_CACHE_10)}
_NO_TAG = 0xFFFFFFFF
_RECEIVE_BYTES = 1 << 20
_MIXED_READS, _MIXED_WRITES = 70, 30

_COMMAND = struct.Struct(">BBxx I 8s II II B x I x H x 6x")  # the CDB: opcode, lba, number of blocks
_PATCH = struct.Struct(">II 2s I")  # from byte 24: CmdSN, ExpStatSN, opcode and flags of the CDB, lba
_DATA_OUT_HEADER = struct.Struct(">BBxx I 8s II 4x I 4x II 4x")
_NOP_OUT_HEADER = struct.Struct(">BBxx I 8s II II 16x")
_ANSWER = struct.Struct(">BBBB I 8x II I")  # opcode, flags, response, status, lengths, ITT, TTT, StatSN
_R2T_RANGE = struct.Struct(">II")  # from byte 40: buffer offset, desired length
_MAX_CMD_SN = struct.Struct(">I")  # byte 32


class Kind(Enum):
    """What one unit of work is."""

    READ = "read"
    WRITE = "write"
    WRITE_AND_FLUSH = "write-flush"
    """A write; behind as many of them as are outstanding, the slot that ended the last one sends a flush."""
    MIXED = "mixed"
    """70 reads and 30 writes of each hundred, shuffled."""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: a kind of work, its size, and how much of it at a time, over all `sessions`."""

    kind: Kind
    size_bytes: int
    sequential: bool
    outstanding: int
    sessions: int = 1

    @property
    def name(self) -> str:
        """For example `read-4k-random-32`, and `…-4x` for four sessions; what `--row` takes."""
        order = "sequential" if self.sequential else "random"
        sessions = f"-{self.sessions}x" if self.sessions > 1 else ""
        return f"{self.kind.value}-{self.size_bytes >> 10}k-{order}-{self.outstanding}{sessions}"


_OPERATIONS = {
    Kind.READ: (_READ_10,),
    Kind.WRITE: (_WRITE_10,),
    Kind.WRITE_AND_FLUSH: (_WRITE_10,),
    Kind.MIXED: (_READ_10, _WRITE_10),
}


def _operations(kind: Kind, seed: int) -> Iterator[int]:
    """What one command after the other does."""
    if kind is not Kind.MIXED:
        return itertools.repeat(_OPERATIONS[kind][0])
    hundred = [_READ_10] * _MIXED_READS + [_WRITE_10] * _MIXED_WRITES
    random.Random(seed).shuffle(hundred)
    return itertools.cycle(hundred)


class Stream:
    """One session under load. `turn` blocks for answers, counts them and sends what takes their place."""

    def __init__(self, session: Session, lun: int, row: Row, volume_bytes: int, seed: int = 0) -> None:
        self.completed = 0
        self.in_flight = 0
        self.stopping = False
        self.session = session
        self._lun = bytes([lun >> 8, lun & 0xFF]) + bytes(6)
        self._size_bytes = row.size_bytes
        self._data = memoryview(payload(row.size_bytes))
        self._lbas = _addresses(row, volume_bytes, seed)
        tags = range(row.outstanding // row.sessions)
        self._works: dict[int, list[bytearray]] = {
            operation: [self._work_image(operation, tag) for tag in tags]
            for operation in _OPERATIONS[row.kind]
        }
        self._operations = _operations(row.kind, seed)
        self._flushes = [self._flush_image(tag) for tag in tags] if row.kind is Kind.WRITE_AND_FLUSH else None
        self._flush_every = len(tags)
        self._unflushed = 0
        self._doing = [0 for _ in tags]  # each slot's operation
        self._reads_completed = 0
        self._held: list[int] = []  # slots that wait for the command window
        self._view = memoryview(bytearray(_RECEIVE_BYTES))
        self._kept = 0  # bytes of an incomplete header, at the start of the buffer
        self._skip = 0  # payload bytes still to come that nobody looks at
        self._partial: int | None = None  # the slot of a read whose last payload is still coming
        self._data_in_bytes = 0

    def start(self) -> None:
        """Send the first command of every slot."""
        self._issue(list(range(len(self._doing))))

    def check(self) -> None:
        """When nothing is in flight: every byte that was asked for has come."""
        wanted = self._reads_completed * self._size_bytes
        if self._data_in_bytes != wanted or self._skip:
            raise BenchmarkError(f"{self._data_in_bytes} bytes were read where {wanted} were asked for")

    def turn(self) -> None:
        """One `recv_into`, and at most one `sendmsg` of commands."""
        view = self._view
        received = self.session.socket.recv_into(view[self._kept :])
        if not received:
            raise BenchmarkError("the target closed the connection under load")
        end = self._kept + received
        position = self._skip
        free: list[int] = []
        if self._partial is not None and position <= end:
            free.append(self._partial)
            self._partial = None
        opcode = flags = 0
        stat_sn = last_answer = -1
        while end - position >= BHS_BYTES:
            opcode, flags, response, status, lengths, tag, transfer_tag, answer_sn = _ANSWER.unpack_from(
                view, position
            )
            if opcode == _DATA_IN:
                self._data_in_bytes += lengths
                if flags & _STATUS_IN_DATA_IN:
                    if status or flags & _RESIDUAL:
                        raise BenchmarkError(f"a read ended with status {status:#04x}, flags {flags:#04x}")
                    free.append(tag)
                    stat_sn = answer_sn
            elif opcode == _SCSI_RESPONSE:
                if status or response or flags & _RESIDUAL:
                    raise BenchmarkError(f"a command ended with status {status:#04x}, flags {flags:#04x}")
                free.append(tag)
                stat_sn = answer_sn
            elif opcode == _R2T:
                self._send_solicited(tag, transfer_tag, *_R2T_RANGE.unpack_from(view, position + 40))
            elif opcode == _NOP_IN:
                if transfer_tag != _NO_TAG:
                    self._answer_ping(transfer_tag)
            else:
                raise BenchmarkError(f"an answer with opcode {opcode:#04x} has no place here")
            last_answer = position
            position += BHS_BYTES + (lengths + 3 & 0xFFFFFC)
        if last_answer >= 0:
            self.session.max_cmd_sn = _MAX_CMD_SN.unpack_from(view, last_answer + 32)[0]
        if stat_sn >= 0:
            self.session.exp_stat_sn = stat_sn + 1 & 0xFFFFFFFF
        if position >= end:
            self._skip = position - end
            self._kept = 0
            if self._skip and free and opcode == _DATA_IN and flags & _STATUS_IN_DATA_IN:
                self._partial = free.pop()
        else:
            self._kept = end - position
            self._skip = 0
            view[: self._kept] = bytes(view[position:end])
        if free or self._held:
            self._issue(self._answered(free))

    def _answered(self, tags: list[int]) -> list[int]:
        """Count what is complete; the slots that have something to send now."""
        self.in_flight -= len(tags)
        flushed = 0
        for tag in tags:
            self._reads_completed += self._doing[tag] == _READ_10
            flushed += self._doing[tag] == _SYNCHRONIZE_CACHE_10
        self.completed += len(tags) - flushed
        if self._flushes is not None:
            self._unflushed += len(tags) - flushed
        return [] if self.stopping else tags

    def _issue(self, tags: list[int]) -> None:
        """Send each slot's next command, as many as the command window takes (RFC 7143, 4.2.2.1)."""
        session = self.session
        cmd_sn, exp_stat_sn = session.cmd_sn, session.exp_stat_sn
        window = session.max_cmd_sn - cmd_sn + 1
        tags = self._held + tags
        self._held = tags[window:]
        images = []
        for tag in tags[:window]:
            if self._flushes is not None and self._unflushed >= self._flush_every:
                self._unflushed -= self._flush_every
                operation, image, lba = _SYNCHRONIZE_CACHE_10, self._flushes[tag], 0
            else:
                operation = next(self._operations)
                image, lba = self._works[operation][tag], next(self._lbas)
            self._doing[tag] = operation
            _PATCH.pack_into(image, 24, cmd_sn, exp_stat_sn, _CDB_START[operation], lba)
            cmd_sn += 1
            images.append(image)
        session.cmd_sn = cmd_sn
        self.in_flight += len(images)
        if images:
            self._send(images)

    def _send(self, parts: Sequence[bytes | bytearray | memoryview]) -> None:
        sent = self.session.socket.sendmsg(parts)
        if sent != sum(map(len, parts)):
            self.session.socket.sendall(memoryview(b"".join(parts))[sent:])

    def _work_image(self, operation: int, tag: int) -> bytearray:
        """The read or write command of a slot, with all the data that may be sent without being asked for."""
        size = self._size_bytes
        blocks = size // SECTOR_BYTES
        if operation == _READ_10:
            flags = _FINAL | _READ | _SIMPLE
            return bytearray(
                _COMMAND.pack(_SCSI_COMMAND, flags, 0, self._lun, tag, size, 0, 0, _READ_10, 0, blocks)
            )
        limits = self.session.limits
        immediate = min(size, limits.immediate_bytes)
        unsolicited = max(immediate, min(size, limits.unsolicited_bytes))
        flags = _WRITE | _SIMPLE | (_FINAL if unsolicited == immediate else 0)
        image = bytearray(
            _COMMAND.pack(_SCSI_COMMAND, flags, immediate, self._lun, tag, size, 0, 0, _WRITE_10, 0, blocks)
        )
        image += self._data[:immediate]
        for part in self._data_out(tag, _NO_TAG, immediate, unsolicited):
            image += part
        return image

    def _flush_image(self, tag: int) -> bytearray:
        return bytearray(
            _COMMAND.pack(
                _SCSI_COMMAND, _FINAL | _SIMPLE, 0, self._lun, tag, 0, 0, 0, _SYNCHRONIZE_CACHE_10, 0, 0
            )
        )

    def _data_out(self, tag: int, transfer_tag: int, start: int, stop: int) -> Iterator[bytes | memoryview]:
        """Headers and data of one sequence of Data-Out PDUs (RFC 7143, 11.7)."""
        step = self.session.limits.segment_bytes
        exp_stat_sn = self.session.exp_stat_sn
        for data_sn, offset in enumerate(range(start, stop, step)):
            end = min(offset + step, stop)
            flags = _FINAL if end == stop else 0
            yield _DATA_OUT_HEADER.pack(
                _DATA_OUT, flags, end - offset, self._lun, tag, transfer_tag, exp_stat_sn, data_sn, offset
            )
            yield self._data[offset:end]

    def _send_solicited(self, tag: int, transfer_tag: int, offset: int, length: int) -> None:
        self._send(list(self._data_out(tag, transfer_tag, offset, offset + length)))

    def _answer_ping(self, transfer_tag: int) -> None:
        session = self.session
        header = _NOP_OUT_HEADER.pack(
            _NOP_OUT | _IMMEDIATE,
            _FINAL,
            0,
            bytes(8),
            _NO_TAG,
            transfer_tag,
            session.cmd_sn,
            session.exp_stat_sn,
        )
        self._send([header])


def payload(size_bytes: int) -> bytes:
    """What every write of that size carries: not compressible, and the same in every run."""
    return random.Random(size_bytes).randbytes(size_bytes)


def _addresses(row: Row, volume_bytes: int, seed: int) -> Iterator[int]:
    """Where each command goes: the whole volume, once around and again, in order or shuffled."""
    step = row.size_bytes // SECTOR_BYTES
    lbas = list(range(0, volume_bytes // SECTOR_BYTES - step + 1, step))
    if not row.sequential:
        random.Random(seed).shuffle(lbas)
    start = seed * len(lbas) // max(row.sessions, 1) % len(lbas)
    return itertools.cycle(lbas[start:] + lbas[:start])


def run_until(streams: Sequence[Stream], over: Callable[[], bool]) -> None:
    """Keep the streams busy until `over`, which is asked after every turn."""
    if len(streams) == 1:
        turn = streams[0].turn
        while not over():
            turn()
        return
    poller = select.poll()
    turns = {stream.session.socket.fileno(): stream.turn for stream in streams}
    for descriptor in turns:
        poller.register(descriptor, select.POLLIN)
    while not over():
        for descriptor, _ in poller.poll():
            turns[descriptor]()


def drain(streams: Sequence[Stream]) -> None:
    """Send nothing new, wait for what is in flight, and check that it was all there."""
    for stream in streams:
        stream.stopping = True
        run_until([stream], lambda stream=stream: not stream.in_flight)  # type: ignore[misc]
        stream.check()


@dataclass(frozen=True, slots=True)
class Measurement:
    """One row against one target, once. CPU times are seconds of user and system time together."""

    units: int
    seconds: float
    client_cpu_seconds: float
    target_cpu_seconds: float
    target_resident_bytes: int = 0

    @property
    def rate(self) -> float:
        """Units of work a second."""
        return self.units / self.seconds


def measure(
    streams: Sequence[Stream],
    warm_seconds: float,
    seconds: float,
    target_cpu: Callable[[], float],
    target_resident: Callable[[], int] = int,
) -> Measurement:
    """Start the streams, let them run warm, and measure them while they run on; memory at the end of that."""

    def until(end: float) -> Callable[[], bool]:
        return lambda: time.monotonic() >= end

    for stream in streams:
        stream.start()
    run_until(streams, until(time.monotonic() + warm_seconds))
    units = sum(stream.completed for stream in streams)
    client, target, start = time.process_time(), target_cpu(), time.monotonic()
    run_until(streams, until(start + seconds))
    end = time.monotonic()
    result = Measurement(
        sum(stream.completed for stream in streams) - units,
        end - start,
        time.process_time() - client,
        target_cpu() - target,
        target_resident(),
    )
    drain(streams)
    return result
