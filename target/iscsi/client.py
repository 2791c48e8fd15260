"""A blocking iSCSI client: read, write and look at one logical unit from Python.

    with Client.connect("iscsi://127.0.0.1:3260/iqn.2024-01.example:a/0") as client:
        client.write(0, data)
        client.flush()

The protocol is in `initiator`; this is one way to drive it, with a socket and a deadline. One thread at a
time. SCSI failures are raised as `ScsiError`, the loss of the connection as `PeerError`; after the latter
the client is of no more use.
"""

from __future__ import annotations

import os
import select
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from types import TracebackType

from target.errors import OperatorError, PeerError
from target.iscsi.address import parse_address
from target.iscsi.chap import ChapCredentials
from target.iscsi.initiator import Initiator, Response
from target.iscsi.initiator_login import LoginSettings
from target.iscsi.text import Pairs
from target.iscsi.url import IscsiUrl, parse_url
from target.scsi import cdb as cdbs
from target.scsi.capacity import Capacity, decode_capacity_16
from target.scsi.command import Status
from target.scsi.lun import decode_report_luns
from target.scsi.sense import Sense, SenseKey, decode_sense
from target.volume import Buffer

DEFAULT_INITIATOR_NAME = "iqn.2024-01.io.replctl:client"
__all__ = [
    "TRANSFER_BYTES_MAX",
    "Client",
    "DiscoveredTarget",
    "ScsiError",
    "SenseKey",
    "discover",
    "new_isid",
    "result_error",
]

TRANSFER_BYTES_MAX = 1 << 20
"""Reads and writes of more are cut into commands of this size."""

QUEUE_DEPTH = 32
_INQUIRY_BYTES = 4096
_REPORT_LUNS_BYTES = 8 + 256 * 8
_UNIT_ATTENTIONS_MAX = 8
_BUSY_DELAY_SECONDS = 0.02
_BUSY = (Status.BUSY, Status.TASK_SET_FULL)


class ScsiError(PeerError):
    """A command ended with another status than GOOD."""

    def __init__(self, cdb: bytes, status: int, sense: Sense | None) -> None:
        reason = str(sense) if sense else f"status {status:#04x}"
        try:
            name = cdbs.Opcode(cdb[0]).name
        except ValueError:
            name = f"command {cdb[0]:#04x}"
        super().__init__(f"{name} failed: {reason}")
        self.cdb = cdb
        self.status = status
        self.sense = sense


@dataclass(frozen=True, slots=True)
class DiscoveredTarget:
    """What SendTargets tells of one target. An address is "host:port,portal group tag"."""

    name: str
    addresses: tuple[str, ...]


def result_error(cdb: bytes, response: Response) -> ScsiError | None:
    """The error that a response stands for, None if it is GOOD."""
    if response.status == Status.GOOD:
        return None
    return ScsiError(cdb, response.status, decode_sense(response.sense) if response.sense else None)


class Client:
    """One session with one logical unit."""

    def __init__(self, connection: _Connection, lun: int, timeout_seconds: float) -> None:
        """Use `connect`."""
        self._connection = connection
        self._lun = lun
        self._timeout_seconds = timeout_seconds
        self._capacity: Capacity | None = None

    @classmethod
    def connect(
        cls,
        url: str | IscsiUrl,
        *,
        initiator_name: str = DEFAULT_INITIATOR_NAME,
        chap: ChapCredentials | None = None,
        timeout_seconds: float = 30.0,
        settings: LoginSettings | None = None,
    ) -> Client:
        """Log in. `settings` overrides what is offered in the login (names and credentials are filled in)."""
        where = parse_url(url) if isinstance(url, str) else url
        if not where.target_name:
            raise OperatorError(f"{where} names no target: expected iscsi://host:port/target/lun")
        settings = replace(
            settings or LoginSettings("", None),
            initiator_name=initiator_name,
            target_name=where.target_name,
            chap=chap or where.chap,
        )
        connection = _Connection(where.host, where.port, settings, timeout_seconds)
        return cls(connection, where.lun, timeout_seconds)

    def execute(self, cdb: bytes, data_out: Buffer = b"", data_in_length: int = 0) -> bytes:
        """Execute one command; its Data-In. BUSY and unit attentions are retried, other failures are
        ScsiError.
        """
        return bytes(next(self.execute_many([(cdb, data_out, data_in_length)], 1)).data_in)

    def execute_many(
        self, commands: Iterable[tuple[bytes, Buffer, int]], queue_depth: int = QUEUE_DEPTH
    ) -> Iterator[Response]:
        """Execute (cdb, data_out, data_in_length) with so many outstanding; the responses in order of the
        commands.
        """
        connection = self._connection
        source = iter(commands)
        window: list[_Slot] = []
        exhausted = False
        while True:
            while not exhausted and len(window) < queue_depth:
                command = next(source, None)
                if command is None:
                    exhausted = True
                else:
                    window.append(_Slot(self, connection, command))
            if not window:
                return
            slot = window[0]
            connection.run_until(slot.is_finished, slot.deadline)
            window.pop(0)
            yield slot.result()

    # Blocks

    def capacity(self) -> Capacity:
        return decode_capacity_16(self.execute(cdbs.read_capacity_16(), b"", 32))

    @property
    def block_size_bytes(self) -> int:
        return self._cached_capacity().block_size_bytes

    @property
    def block_count(self) -> int:
        return self._cached_capacity().block_count

    def _cached_capacity(self) -> Capacity:
        if self._capacity is None:
            self._capacity = self.capacity()
        return self._capacity

    def read(self, lba: int, blocks: int) -> bytes:
        return b"".join(self.read_many(self._pieces(lba, blocks)))

    def read_many(self, ranges: Iterable[tuple[int, int]], queue_depth: int = QUEUE_DEPTH) -> Iterator[bytes]:
        """The contents of (lba, blocks) ranges, in order, each at most TRANSFER_BYTES_MAX."""
        size = self.block_size_bytes
        commands = ((cdbs.read(lba, blocks), b"", blocks * size) for lba, blocks in ranges)
        for response in self.execute_many(commands, queue_depth):
            if response.residual_count:
                raise PeerError(f"a READ returned {response.residual_count} bytes less than asked for")
            yield bytes(response.data_in)

    def write(self, lba: int, data: Buffer, fua: bool = False) -> None:
        """Write whole blocks; with `fua` they are durable on return."""
        view = memoryview(data).cast("B")
        size = self.block_size_bytes
        if len(view) % size:
            raise OperatorError(f"{len(view)} bytes are no whole number of blocks of {size}")
        pieces = self._pieces(lba, len(view) // size)
        self.write_many(
            ((at, view[(at - lba) * size : (at - lba + blocks) * size]) for at, blocks in pieces), fua=fua
        )

    def write_many(
        self, writes: Iterable[tuple[int, Buffer]], queue_depth: int = QUEUE_DEPTH, fua: bool = False
    ) -> None:
        """Write (lba, data) pairs of at most TRANSFER_BYTES_MAX. Those outstanding together have no order."""
        size = self.block_size_bytes
        commands = ((cdbs.write(lba, len(data) // size, fua=fua), data, 0) for lba, data in writes)
        for _ in self.execute_many(commands, queue_depth):
            pass

    def _pieces(self, lba: int, blocks: int) -> Iterator[tuple[int, int]]:
        step = TRANSFER_BYTES_MAX // self.block_size_bytes
        end = lba + blocks
        while lba < end:
            yield lba, min(step, end - lba)
            lba += step

    def flush(self) -> None:
        """Everything written before is durable on return (SYNCHRONIZE CACHE)."""
        self.execute(cdbs.synchronize_cache())

    # The unit

    def inquiry(self, page: int | None = None) -> bytes:
        """Standard INQUIRY data, or a vital product data page."""
        return self.execute(cdbs.inquiry(_INQUIRY_BYTES, page=page), b"", _INQUIRY_BYTES)

    def report_luns(self) -> list[int]:
        return decode_report_luns(
            self.execute(cdbs.report_luns(_REPORT_LUNS_BYTES), b"", _REPORT_LUNS_BYTES)
        )[1]

    def ping(self) -> None:
        """A NOP-Out and its answer."""
        answered: list[bool] = []
        self._connection.initiator.ping(lambda: answered.append(True))
        self._connection.run_until(lambda: bool(answered), time.monotonic() + self._timeout_seconds)

    def close(self) -> None:
        """Log out and close; harmless when the connection is gone."""
        self._connection.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def submit(self, command: tuple[bytes, Buffer, int], done: Callable[[Response], None]) -> None:
        cdb, data_out, data_in_length = command
        self._connection.initiator.submit(self._lun, cdb, data_out, data_in_length, done)

    @property
    def timeout_seconds(self) -> float:
        return self._timeout_seconds


class _Slot:
    """A command in the window of `execute_many`, through its retries."""

    __slots__ = ("_attentions", "_client", "_command", "_connection", "_response", "deadline")

    def __init__(self, client: Client, connection: _Connection, command: tuple[bytes, Buffer, int]) -> None:
        self._client = client
        self._connection = connection
        self._command = command
        self._response: Response | None = None
        self._attentions = 0
        self.deadline = time.monotonic() + client.timeout_seconds
        client.submit(command, self._done)

    def _done(self, response: Response) -> None:
        if response.status == Status.GOOD or not self._is_to_be_retried(response):
            self._response = response
            return
        if response.status in _BUSY:
            # Blocks this client's other commands too: a target that is busy is not to be pressed.
            time.sleep(_BUSY_DELAY_SECONDS)
        self._client.submit(self._command, self._done)

    def _is_to_be_retried(self, response: Response) -> bool:
        if response.status in _BUSY:
            return time.monotonic() < self.deadline
        if response.status != Status.CHECK_CONDITION or not response.sense:
            return False
        # A unit attention says that something has changed; the command was not executed (SAM-5 5.14).
        self._attentions += 1
        return (
            decode_sense(response.sense).key is SenseKey.UNIT_ATTENTION
            and self._attentions <= _UNIT_ATTENTIONS_MAX
        )

    def is_finished(self) -> bool:
        return self._response is not None

    def result(self) -> Response:
        assert self._response is not None
        error = result_error(self._command[0], self._response)
        if error is not None:
            raise error
        return self._response


class _Connection:
    """Socket and initiator, driven until something has happened."""

    def __init__(self, host: str, port: int, settings: LoginSettings, timeout_seconds: float) -> None:
        self._where = f"{settings.target_name or 'discovery'} at {host}:{port}"
        deadline = time.monotonic() + timeout_seconds
        try:
            self._socket = socket.create_connection((host, port), timeout_seconds)
        except OSError as error:
            raise PeerError(f"cannot connect to {self._where}: {error}") from error
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.setblocking(False)
        self._poll = select.poll()
        self._poll.register(self._socket, select.POLLIN)
        self._broken = False
        self.initiator = Initiator(settings, new_isid(), os.urandom)
        try:
            self.run_until(lambda: self.initiator.logged_in, deadline)
        except BaseException:
            self._socket.close()
            raise

    def run_until(self, reached: Callable[[], bool], deadline: float) -> None:
        """Send and receive until `reached`; PeerError at the deadline or when the connection breaks."""
        try:
            while not reached():
                unsent = self._send()
                remaining = deadline - time.monotonic()
                if remaining <= 0:
                    raise PeerError(f"{self._where} did not answer in time")
                self._poll.modify(self._socket, select.POLLIN | select.POLLOUT if unsent else select.POLLIN)
                for _, events in self._poll.poll(remaining * 1000):
                    if events & ~select.POLLOUT:
                        self._receive()
        except OSError as error:
            self._broken = True
            raise PeerError(f"the connection to {self._where} broke: {error}") from error
        except PeerError:
            self._broken = True
            raise

    def _send(self) -> bool:
        """Whether something is left that the socket does not take now."""
        output = self.initiator.output
        while output:
            try:
                sent = self._socket.sendmsg(output[:512])
            except BlockingIOError:
                return True
            index = 0
            while index < len(output) and sent >= len(output[index]):
                sent -= len(output[index])
                index += 1
            del output[:index]
            if sent:
                output[0] = memoryview(output[0])[sent:]
        return False

    def _receive(self) -> None:
        try:
            count = self._socket.recvmsg_into(self.initiator.receive_buffers())[0]
        except BlockingIOError:
            return
        if not count:
            raise PeerError(f"{self._where} closed the connection")
        self.initiator.received(count)

    def close(self) -> None:
        if self._socket.fileno() < 0:
            return
        if not self._broken:
            try:
                self.initiator.logout()
                self.run_until(lambda: self.initiator.logged_out, time.monotonic() + 2.0)
            except PeerError:
                pass  # the session ends either way
        self._socket.close()


def new_isid() -> bytes:
    """A random ISID (RFC 7143 11.12.5, type 10b), so that clients with one name do not replace each other."""
    return b"\x80" + os.urandom(3) + b"\0\0"


def discover(
    portal: str,
    *,
    initiator_name: str = DEFAULT_INITIATOR_NAME,
    chap: ChapCredentials | None = None,
    timeout_seconds: float = 10.0,
) -> list[DiscoveredTarget]:
    """The targets at "host:port" that this initiator may see (SendTargets=All)."""
    host, port = parse_address(portal)
    connection = _Connection(host, port, LoginSettings(initiator_name, None, chap), timeout_seconds)
    answers: list[Pairs] = []
    try:
        connection.initiator.text([("SendTargets", "All")], answers.append)
        connection.run_until(lambda: bool(answers), time.monotonic() + timeout_seconds)
    finally:
        connection.close()
    names: dict[str, list[str]] = {}
    name = ""
    for key, value in answers[0]:
        if key == "TargetName":
            name = value
            names[name] = []
        elif key == "TargetAddress" and name:
            names[name].append(value)
    return [DiscoveredTarget(name, tuple(addresses)) for name, addresses in names.items()]
