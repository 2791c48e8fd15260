"""The initiator in full feature phase, for both drivers: `client` (blocking) and `async_client` (loop). No
I/O.

    submit ──► output (buffers to send)          receive_buffers ──► the driver's recvmsg_into ──► received

Received bytes go where they belong without a stop: the driver asks where to, and when the data segment of a
Data-In PDU is under way that is the command's own buffer. Behind it stands a small staging buffer for the
headers that follow, so that a 1 MiB READ costs one copy, by the kernel, and few system calls.

Many commands may be outstanding; what the target's command window (MaxCmdSN) does not admit yet waits in
order.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from target.iscsi import pdu
from target.iscsi.chap import RandomBytes
from target.iscsi.initiator_login import InitiatorLogin, LoginSettings
from target.iscsi.pdu import (
    BHS_BYTES,
    DIGEST_BYTES,
    FINAL,
    HOT_DATA_IN,
    HOT_DATA_OUT,
    HOT_SCSI_COMMAND,
    HOT_SCSI_RESPONSE,
    PADDING,
    RESERVED_TAG,
    Opcode,
    ProtocolError,
)
from target.iscsi.requests import LogoutRequest, NopOut, ScsiCommandRequest, TextRequest
from target.iscsi.responses import (
    R2T,
    AsyncMessage,
    DataIn,
    LoginResponse,
    NopIn,
    Reject,
    ScsiResponse,
    TextResponse,
)
from target.iscsi.text import Pairs, TextCollector, encode_text
from target.scsi.lun import encode_lun
from target.volume import Buffer

STAGING_BYTES = 64 << 10
_TASKS_MAX = 1024
_SIMPLE = 0x01  # task attribute


@dataclass(frozen=True, slots=True)
class Response:
    """How a command ended. `data_in` is what arrived; `sense` the raw sense data, empty without."""

    status: int
    data_in: memoryview
    sense: bytes = b""
    residual_count: int = 0
    """Positive: bytes expected but not transferred. Negative: bytes there were beyond."""


Done = Callable[[Response], None]


class _Task:
    __slots__ = ("cdb", "data_in", "data_out", "done", "lun", "received", "tag")

    def __init__(self, lun: int, cdb: bytes, data_out: Buffer, data_in_length: int, done: Done) -> None:
        self.lun = lun
        self.cdb = cdb.ljust(16, b"\0")
        self.data_out = memoryview(data_out).cast("B")
        self.data_in = memoryview(bytearray(data_in_length))
        self.done = done
        self.received = 0
        self.tag = 0


class Initiator:
    """A session from login to logout. Commands may be submitted at once; they flow when `logged_in`."""

    def __init__(
        self,
        settings: LoginSettings,
        isid: bytes,
        random_bytes: RandomBytes,
        on_output: Callable[[], None] = lambda: None,
    ) -> None:
        """`on_output` is called when `output`, empty before, has something to send."""
        self.output: list[Buffer] = []
        self.logged_in = False
        self.logged_out = False
        self._on_output = on_output
        self._login: InitiatorLogin | None = InitiatorLogin(settings, isid, random_bytes)
        self._recv_segment = settings.max_recv_data_segment_length
        self._segment = 8192
        self._first_burst = 65536
        self._immediate_data = True
        self._initial_r2t = True
        self._header_digest = 0
        self._data_digest = 0
        self._cmd_sn = 1
        self._max_cmd_sn = 0
        self._exp_stat_sn = 0
        self._tag = 0
        self._tasks: dict[int, _Task] = {}
        self._waiting: deque[_Task] = deque()
        self._text_done: dict[int, Callable[[Pairs], None]] = {}
        self._text = TextCollector()
        self._ping_done: dict[int, Callable[[], None]] = {}
        self._staging = memoryview(bytearray(STAGING_BYTES))
        self._start = 0
        self._end = 0
        # The data segment under way: where its rest goes, and what follows when it is there.
        self._direct: memoryview | None = None
        self._direct_filled = 0
        self._large = bytearray()
        self._emit(self._login.first())

    # Commands

    @property
    def outstanding(self) -> int:
        return len(self._tasks) + len(self._waiting)

    def submit(self, lun: int, cdb: bytes, data_out: Buffer, data_in_length: int, done: Done) -> None:
        """Execute a command. `data_out` must not change before `done` is called, once, with the response."""
        task = _Task(lun, cdb, data_out, data_in_length, done)
        if self._waiting or not self._admits():
            self._waiting.append(task)
        else:
            self._start_task(task)

    def _admits(self) -> bool:
        return (
            self.logged_in
            and self._max_cmd_sn - self._cmd_sn & 0x80000000 == 0
            and len(self._tasks) < _TASKS_MAX
        )

    def _start_task(self, task: _Task) -> None:
        task.tag = self._next_tag()
        self._tasks[task.tag] = task
        data = task.data_out
        total = len(data)
        immediate = min(total, self._first_burst, self._segment) if self._immediate_data else 0
        unsolicited = 0 if self._initial_r2t else min(total, self._first_burst) - immediate
        flags = _SIMPLE | (0 if unsolicited else FINAL)
        if total:
            flags |= ScsiCommandRequest.WRITE
        elif task.data_in:
            flags |= ScsiCommandRequest.READ
        header = HOT_SCSI_COMMAND.pack(
            Opcode.SCSI_COMMAND,
            flags,
            0,
            immediate,
            encode_lun(task.lun),
            task.tag,
            total or len(task.data_in),
            self._take_cmd_sn(),
            self._exp_stat_sn,
            task.cdb,
        )
        self._emit(header, data[:immediate])
        if unsolicited:
            self._send_data_out(task, RESERVED_TAG, immediate, unsolicited)

    def _send_data_out(self, task: _Task, transfer_tag: int, offset: int, length: int) -> None:
        end = offset + length
        data_sn = 0
        while offset < end:
            size = min(self._segment, end - offset)
            header = HOT_DATA_OUT.pack(
                Opcode.DATA_OUT,
                FINAL if offset + size == end else 0,
                0,
                size,
                encode_lun(task.lun),
                task.tag,
                transfer_tag,
                0,
                self._exp_stat_sn,
                0,
                data_sn,
                offset,
                0,
            )
            self._emit(header, task.data_out[offset : offset + size])
            offset += size
            data_sn += 1

    def text(self, pairs: Pairs, done: Callable[[Pairs], None]) -> None:
        """A text exchange, SendTargets for one; `done` gets the answer. One at a time, after the login."""
        tag = self._next_tag()
        self._text_done[tag] = done
        self._send_text(tag, RESERVED_TAG, encode_text(pairs))

    def _send_text(self, tag: int, transfer_tag: int, text: bytes) -> None:
        request = TextRequest(
            flags=FINAL,
            lun=0,
            initiator_task_tag=tag,
            target_transfer_tag=transfer_tag,
            cmd_sn=self._cmd_sn,
            exp_stat_sn=self._exp_stat_sn,
        )
        self._emit(request.encode(data_length=len(text), immediate=True), text)

    def ping(self, done: Callable[[], None]) -> None:
        """A NOP-Out that asks for an answer."""
        tag = self._next_tag()
        self._ping_done[tag] = done
        self._send_nop(tag, RESERVED_TAG, b"")

    def _send_nop(self, tag: int, transfer_tag: int, data: bytes) -> None:
        request = NopOut(
            flags=FINAL,
            lun=0,
            initiator_task_tag=tag,
            target_transfer_tag=transfer_tag,
            cmd_sn=self._cmd_sn,
            exp_stat_sn=self._exp_stat_sn,
        )
        self._emit(request.encode(data_length=len(data), immediate=True), data)

    def logout(self) -> None:
        """Close the session; `logged_out` is set when the target has agreed."""
        request = LogoutRequest(
            reason=FINAL,
            initiator_task_tag=self._next_tag(),
            cid=0,
            cmd_sn=self._cmd_sn,
            exp_stat_sn=self._exp_stat_sn,
        )
        self._emit(request.encode(immediate=True))

    def _next_tag(self) -> int:
        self._tag = (self._tag + 1) % RESERVED_TAG
        while self._tag in self._tasks:
            self._tag = (self._tag + 1) % RESERVED_TAG
        return self._tag

    def _take_cmd_sn(self) -> int:
        cmd_sn = self._cmd_sn
        self._cmd_sn = cmd_sn + 1 & 0xFFFFFFFF
        return cmd_sn

    def _emit(self, header: bytes, data: Buffer = b"") -> None:
        output = self.output
        if not output:
            self._on_output()
        output.append(header)
        if self._header_digest:
            output.append(pdu.digest(header))
        if len(data):
            output.append(data)
            padding = PADDING[len(data) & 3]
            if padding:
                output.append(padding)
            if self._data_digest:
                output.append(pdu.digest(data, padding))

    # Receiving

    def receive_buffers(self) -> list[memoryview]:
        """Where the next bytes are to be received, in this order."""
        if self._direct is not None:
            return [self._direct[self._direct_filled :], self._staging]
        if self._start:
            left = self._end - self._start
            self._staging[:left] = self._staging[self._start : self._end]
            self._start, self._end = 0, left
        return [self._staging[self._end :]]

    def received(self, count: int) -> None:
        """Take in `count` bytes that were put into `receive_buffers`."""
        if self._direct is not None:
            wanted = len(self._direct) - self._direct_filled
            if count < wanted:
                self._direct_filled += count
                return
            self._finish_direct()
            self._start, self._end = 0, count - wanted
        else:
            self._end += count
        self._parse()
        while self._waiting and self._admits():
            self._start_task(self._waiting.popleft())

    def _parse(self) -> None:
        while self._end - self._start >= BHS_BYTES:
            header = self._staging[self._start : self._start + BHS_BYTES]
            lengths = int.from_bytes(header[4:8], "big")
            size = pdu.frame_bytes(lengths, self._header_digest, self._data_digest)
            available = self._end - self._start
            if available >= size:
                frame = self._staging[self._start : self._start + size]
                self._start += size
                self._frame(frame, lengths)
                continue
            if size <= STAGING_BYTES // 2:
                return  # the rest will fit behind it
            self._go_direct(lengths, size)
            return

    def _go_direct(self, lengths: int, size: int) -> None:
        """A PDU too large for staging: receive a Data-In into its command's buffer, others into one of
        their own.
        """
        start = self._start
        segment = start + BHS_BYTES + (lengths >> 24) * 4 + self._header_digest
        length = lengths & 0xFFFFFF
        fields = HOT_DATA_IN.unpack_from(self._staging, start)
        task = self._tasks.get(fields[6]) if fields[0] == Opcode.DATA_IN else None
        # Padding and data digest would not fit the command's buffer: such segments take the long way.
        if task is None or self._data_digest or length & 3 or self._end < segment:
            if size > self._recv_segment + 2048:
                raise ProtocolError(f"a PDU of {size} bytes is more than was declared")
            self._large = bytearray(size)
            direct = memoryview(self._large)
            begin = start
        else:
            self._check_header_digest(self._staging[start:segment])
            direct = self._place(task, fields, length)
            self._large = bytearray(self._staging[start:segment])
            begin = segment
        filled = self._end - begin
        direct[:filled] = self._staging[begin : self._end]
        self._direct, self._direct_filled = direct, filled
        self._start = self._end = 0

    def _finish_direct(self) -> None:
        frame = memoryview(self._large)
        direct = self._direct
        self._direct = None
        lengths = int.from_bytes(frame[4:8], "big")
        if direct is not None and direct.obj is not self._large:
            self._data_in_arrived(HOT_DATA_IN.unpack_from(frame), lengths & 0xFFFFFF)
        else:
            self._frame(frame, lengths)
        self._large = bytearray()

    def _check_header_digest(self, head: memoryview) -> None:
        if self._header_digest and pdu.digest(head[:-DIGEST_BYTES]) != head[-DIGEST_BYTES:]:
            raise ProtocolError("header digest error")

    def _frame(self, frame: memoryview, lengths: int) -> None:
        """A whole PDU."""
        segment = BHS_BYTES + (lengths >> 24) * 4 + self._header_digest
        self._check_header_digest(frame[:segment])
        length = lengths & 0xFFFFFF
        padded = segment + (length + 3 & ~3)
        if self._data_digest and length and pdu.digest(frame[segment:padded]) != frame[padded : padded + 4]:
            raise ProtocolError("data digest error")
        data = frame[segment : segment + length]
        opcode = frame[0] & 0x3F
        if opcode == Opcode.DATA_IN:
            fields = HOT_DATA_IN.unpack_from(frame)
            task = self._tasks.get(fields[6])
            if task is not None:
                self._place(task, fields, length)[:] = data
                self._data_in_arrived(fields, length)
        elif opcode == Opcode.SCSI_RESPONSE and not self._login:
            self._scsi_response(frame, data)
        else:
            self._dispatch(opcode, frame, data)

    # What the target sends

    @staticmethod
    def _place(task: _Task, fields: tuple[int, ...], length: int) -> memoryview:
        """Where in its command's buffer a segment belongs; with DataPDUInOrder it is the next part."""
        offset = fields[12]
        if offset != task.received or offset + length > len(task.data_in):
            raise ProtocolError(f"Data-In of {length} bytes at {offset}: {task.received} have arrived")
        return task.data_in[offset : offset + length]

    def _data_in_arrived(self, fields: tuple[int, ...], length: int) -> None:
        _, flags, _, status, _, _, tag, _, stat_sn, _, max_cmd_sn, _, _, residual = fields
        self._saw_max_cmd_sn(max_cmd_sn)
        task = self._tasks[tag]
        task.received += length
        if flags & DataIn.STATUS:
            self._exp_stat_sn = stat_sn + 1 & 0xFFFFFFFF
            self._end_task(task, flags, status, residual, b"")

    def _scsi_response(self, frame: memoryview, data: memoryview) -> None:
        _, flags, response, status, _, _, tag, _, stat_sn, _, max_cmd_sn, _, _, residual = (
            HOT_SCSI_RESPONSE.unpack_from(frame)
        )
        self._saw_max_cmd_sn(max_cmd_sn)
        self._exp_stat_sn = stat_sn + 1 & 0xFFFFFFFF
        task = self._tasks.get(tag)
        if task is None:
            raise ProtocolError(f"an answer to task {tag:#x}, which is not outstanding")
        if response:
            raise ProtocolError(f"the target failed to deliver a command: response {response:#x}")
        sense = b""
        if len(data) >= 2:
            sense = bytes(data[2 : 2 + int.from_bytes(data[:2], "big")])
        self._end_task(task, flags, status, residual, sense)

    def _end_task(self, task: _Task, flags: int, status: int, residual: int, sense: bytes) -> None:
        del self._tasks[task.tag]
        if flags & ScsiResponse.OVERFLOW:
            residual = -residual
        elif not flags & ScsiResponse.UNDERFLOW:
            residual = 0
        task.done(Response(status, task.data_in[: task.received], sense, residual))

    def _saw_max_cmd_sn(self, max_cmd_sn: int) -> None:
        if max_cmd_sn - self._max_cmd_sn & 0x80000000 == 0:
            self._max_cmd_sn = max_cmd_sn

    def _dispatch(self, opcode: int, frame: memoryview, data: memoryview) -> None:
        if self._login is not None:
            if opcode != Opcode.LOGIN_RESPONSE:
                raise ProtocolError(f"PDU with opcode {opcode:#04x} during the login")
            self._login_response(LoginResponse.decode(frame), data)
        elif opcode == Opcode.R2T:
            self._r2t(R2T.decode(frame))
        elif opcode == Opcode.NOP_IN:
            self._nop_in(NopIn.decode(frame), bytes(data))
        elif opcode == Opcode.TEXT_RESPONSE:
            self._text_response(TextResponse.decode(frame), data)
        elif opcode == Opcode.LOGOUT_RESPONSE:
            self.logged_out = True
        elif opcode == Opcode.REJECT:
            raise ProtocolError(f"the target rejected a PDU: reason {Reject.decode(frame).reason:#04x}")
        elif opcode == Opcode.ASYNC_MESSAGE:
            self._async_message(AsyncMessage.decode(frame))
        else:
            raise ProtocolError(f"PDU with opcode {opcode:#04x} from a target")

    def _login_response(self, response: LoginResponse, data: memoryview) -> None:
        login = self._login
        assert login is not None
        request = login.receive(response, data)
        if request is not None:
            self._emit(request)
            return
        parameters = login.parameters
        self._login = None
        self._header_digest = DIGEST_BYTES if parameters.header_digest else 0
        self._data_digest = DIGEST_BYTES if parameters.data_digest else 0
        self._segment = min(parameters.peer_max_recv_data_segment_length, parameters.max_burst_length)
        self._first_burst = min(parameters.first_burst_length, parameters.max_burst_length)
        self._immediate_data = parameters.immediate_data
        self._initial_r2t = parameters.initial_r2t
        self._exp_stat_sn = login.exp_stat_sn
        self._max_cmd_sn = login.max_cmd_sn
        self.logged_in = True

    def _r2t(self, r2t: R2T) -> None:
        self._saw_max_cmd_sn(r2t.max_cmd_sn)
        task = self._tasks.get(r2t.initiator_task_tag)
        end = r2t.buffer_offset + r2t.desired_data_transfer_length
        if task is None or end > len(task.data_out) or not r2t.desired_data_transfer_length:
            raise ProtocolError(f"R2T for {r2t.desired_data_transfer_length} bytes that no command has")
        self._send_data_out(
            task, r2t.target_transfer_tag, r2t.buffer_offset, r2t.desired_data_transfer_length
        )

    def _nop_in(self, nop: NopIn, data: bytes) -> None:
        self._saw_max_cmd_sn(nop.max_cmd_sn)
        if nop.target_transfer_tag != RESERVED_TAG:
            self._send_nop(RESERVED_TAG, nop.target_transfer_tag, data)
            return
        if nop.initiator_task_tag == RESERVED_TAG:
            return  # tells MaxCmdSN only
        self._exp_stat_sn = nop.stat_sn + 1 & 0xFFFFFFFF
        done = self._ping_done.pop(nop.initiator_task_tag, None)
        if done is not None:
            done()

    def _text_response(self, response: TextResponse, data: memoryview) -> None:
        self._exp_stat_sn = response.stat_sn + 1 & 0xFFFFFFFF
        pairs = self._text.add(data, bool(response.flags & TextRequest.CONTINUE))
        if pairs is None:
            self._send_text(response.initiator_task_tag, response.target_transfer_tag, b"")
            return
        done = self._text_done.pop(response.initiator_task_tag, None)
        if done is None:
            raise ProtocolError("an answer to a text request that is not outstanding")
        done(pairs)

    def _async_message(self, message: AsyncMessage) -> None:
        self._exp_stat_sn = message.stat_sn + 1 & 0xFFFFFFFF
        # 0 carries sense data, which the next command would report anyway; the others end the session.
        if message.async_event:
            raise ProtocolError(f"the target ends the session: asynchronous event {message.async_event}")
