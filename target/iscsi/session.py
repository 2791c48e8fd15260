"""The target's side of a session in full feature phase (RFC 7143 sections 4.2, 4.7, 11). No I/O.

    bytes received ──► receive ──► task ──► device.execute ──► finish ──► output (buffers to send, in order)

The owner (`target.iscsi.portal`) reads into a buffer, calls `receive`, and sends `output`. Time, sockets and the end of
the connection are its business; it is told through `SessionOwner`.

Invariants: every PDU in `output` was numbered when it was appended, so StatSN follows the order on the wire; MaxCmdSN
moves on only as commands retire, so that a session never has more than COMMAND_WINDOW tasks; ErrorRecoveryLevel is 0,
so an error that cannot be confined to one PDU ends the connection (ProtocolError).

`receive` and `finish_done` are the hot path. They handle, in line, what nearly all traffic consists of: commands in
order whose data are in the same PDU, without digests, and answers that fit one PDU. Everything else is in `_dispatch`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

from target.iscsi import pdu
from target.iscsi.login import Admission
from target.iscsi.negotiation import MAX_RECV_DATA_SEGMENT_LENGTH
from target.iscsi.node import TargetNode
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
from target.iscsi.registry import SessionRegistry
from target.iscsi.task import CollectingTask, ScsiTask
from target.iscsi.task_management import TaskManagement
from target.iscsi.text import Pairs, TextCollector, encode_text
from target.scsi.command import Nexus, ScsiResult, Status
from target.scsi.lun import decode_lun
from target.scsi.sense import Sense, invalid_field_in_cdb
from target.volume import Buffer

COMMAND_WINDOW = 128
OUTPUT_BYTES_HIGH = 8 << 20
"""With this much unsent, no further command is taken: a client that does not read must not fill our memory."""

WRITE_BYTES_MAX = 64 << 20
"""The largest single write collected; more is answered as a transfer length that is too large (SBC-3 5.32)."""

SOLICITED_BYTES_MAX = 64 << 20
"""How much all writes of a session together may be asked for by R2T at any time; the others wait their turn."""

HELD_BYTES_MAX = 8 << 20
"""How much is kept of commands that arrived ahead of their CmdSN."""

_DATA_IN_LAST = FINAL | pdu.DataIn.STATUS


class RejectReason:
    """RFC 7143 11.17.1."""

    DATA_DIGEST_ERROR = 0x02
    SNACK = 0x03
    PROTOCOL_ERROR = 0x04
    COMMAND_NOT_SUPPORTED = 0x05
    INVALID_PDU_FIELD = 0x09


class SessionOwner(Protocol):
    """The connection a session lives on."""

    def output_ready(self) -> None:
        """`output` is no longer empty: send it at the end of the turn."""

    def end(self, reason: str) -> None:
        """Send what is in `output`, then close the connection."""


class TargetSession:
    """One session; with MaxConnections=1 also its connection."""

    def __init__(
        self,
        admission: Admission,
        owner: SessionOwner,
        registry: SessionRegistry,
        send_targets: Callable[[str, str], Pairs],
    ) -> None:
        """`send_targets(initiator_name, which)` answers SendTargets: "All", a name, or "" for this target."""
        self.admission = admission
        self.node: TargetNode | None = admission.node
        self.nexus = Nexus(
            f"{admission.initiator_name},i,0x{admission.isid.hex()}",
            f"{admission.node.name},t,0x0001" if admission.node else "discovery",
        )
        self.output: list[Buffer] = []
        self.output_bytes = 0
        self.closed = False
        self.ending = False
        self.tasks: dict[int, ScsiTask] = {}
        self.task_management = TaskManagement(self, registry)
        self._owner = owner
        self._registry = registry
        self._send_targets = send_targets
        self._execute = admission.node.device.execute if admission.node else None

        parameters = admission.parameters
        self._header_digest = DIGEST_BYTES if parameters.header_digest else 0
        self._data_digest = DIGEST_BYTES if parameters.data_digest else 0
        self._plain = not (parameters.header_digest or parameters.data_digest)
        self._first_burst = min(parameters.first_burst_length, parameters.max_burst_length)
        self._max_burst = parameters.max_burst_length
        self._max_outstanding_r2t = parameters.max_outstanding_r2t
        self._immediate_data = parameters.immediate_data
        self._initial_r2t = parameters.initial_r2t
        self._peer_segment = min(parameters.peer_max_recv_data_segment_length, 0xFFFFFC)
        self._one_pdu_bytes = min(self._peer_segment, self._max_burst) if self._plain else -1

        self._exp_cmd_sn = admission.exp_cmd_sn
        self._max_cmd_sn = admission.exp_cmd_sn + COMMAND_WINDOW - 1 & 0xFFFFFFFF
        self._stat_sn = admission.stat_sn
        self._held: dict[int, bytes] = {}
        self._held_bytes = 0
        self._transfer_tag = 0
        self._solicited_bytes = 0
        self._waiting_for_r2t: deque[CollectingTask] = deque()
        self._text = TextCollector()
        self._text_left = b""
        self._ping_tag: int | None = None

    # Receiving

    def receive(self, view: memoryview, position: int, end: int) -> int:
        """Execute every complete PDU in `view[position:end]`; the position of the first byte not taken.

        Data slices handed to the device point into `view`, which must not change before the end of the turn.
        """
        unpack = HOT_SCSI_COMMAND.unpack_from
        tasks = self.tasks
        execute = self._execute
        plain = self._plain and execute is not None
        while end - position >= BHS_BYTES:
            opcode, flags, _, length, lun, tag, expected, cmd_sn, _, cdb = unpack(view, position)
            if (
                opcode == 0x01  # a SCSI Command, not immediate
                and plain
                and cmd_sn == self._exp_cmd_sn
                and flags & 0x80
                and length == (expected if flags & 0x20 else 0)  # all data here, and no AHS
                and length <= MAX_RECV_DATA_SEGMENT_LENGTH
                and self._max_cmd_sn - cmd_sn & 0x80000000 == 0
                and tag not in tasks
                and (length <= self._first_burst and self._immediate_data)
            ):
                data = position + BHS_BYTES
                following = data + (length + 3 & ~3)
                if following > end:
                    break
                self._exp_cmd_sn = cmd_sn + 1 & 0xFFFFFFFF
                task = tasks[tag] = ScsiTask(
                    self,
                    cdb,
                    view[data : data + length] if length else b"",
                    tag,
                    lun,
                    expected,
                    flags & 0x20 != 0,
                    False,
                )
                position = following
                execute(decode_lun(lun) if lun else 0, task)  # type: ignore[misc]  # `plain` says it is set
                if self._held:
                    self._run_held()
            else:
                if length & 0xFFFFFF > MAX_RECV_DATA_SEGMENT_LENGTH:
                    raise ProtocolError(f"data segment of {length & 0xFFFFFF} bytes: more than was declared")
                size = pdu.frame_bytes(length, self._header_digest, self._data_digest)
                if end - position < size:
                    break
                self._check_and_dispatch(view[position : position + size])
                position += size
            if self.output_bytes >= OUTPUT_BYTES_HIGH or self.ending:
                break
        return position

    def _check_and_dispatch(self, frame: memoryview) -> None:
        """Check digests, cut the PDU into its parts."""
        lengths = int.from_bytes(frame[4:8], "big")
        header_end = BHS_BYTES + (lengths >> 24) * 4
        data = header_end + self._header_digest
        data_length = lengths & 0xFFFFFF
        data_end = data + (data_length + 3 & ~3)
        header = frame[:header_end]
        if self._header_digest and pdu.digest(header) != frame[header_end:data]:
            raise ProtocolError("header digest error")
        if self._data_digest and data_length:
            if pdu.digest(frame[data:data_end]) != frame[data_end : data_end + DIGEST_BYTES]:
                self._reject(header, RejectReason.DATA_DIGEST_ERROR)
                self.end("data digest error")  # RFC 7143 7.8: without recovery the session ends
                return
        self._dispatch(header, frame[data : data + data_length])

    def _dispatch(self, header: memoryview, data: memoryview) -> None:
        opcode = header[0] & 0x3F
        handler = _HANDLERS.get(opcode)
        if handler is None:
            reason = (
                RejectReason.SNACK if opcode == Opcode.SNACK_REQUEST else RejectReason.COMMAND_NOT_SUPPORTED
            )
            self._reject(header, reason)
            return
        immediate = bool(header[0] & pdu.IMMEDIATE)
        if not immediate and opcode != Opcode.DATA_OUT:
            cmd_sn = int.from_bytes(header[24:28], "big")
            if not self._take_turn(cmd_sn, header, data):
                return
        handler(self, header, data, immediate)
        if self._held:
            self._run_held()

    def _take_turn(self, cmd_sn: int, header: memoryview, data: memoryview) -> bool:
        """Whether this is the command to run now; one that is ahead is held, one outside the window dropped."""
        ahead = cmd_sn - self._exp_cmd_sn & 0xFFFFFFFF
        if ahead == 0 and self._max_cmd_sn - cmd_sn & 0x80000000 == 0:
            self._exp_cmd_sn = cmd_sn + 1 & 0xFFFFFFFF
            return True
        window = self._max_cmd_sn - self._exp_cmd_sn + 1 & 0xFFFFFFFF
        if ahead < window and cmd_sn not in self._held:
            kept = bytes(header) + bytes(data)
            self._held_bytes += len(kept)
            if self._held_bytes > HELD_BYTES_MAX:
                raise ProtocolError(f"CmdSN {self._exp_cmd_sn} does not come: too much arrived behind it")
            self._held[cmd_sn] = kept
        return False  # RFC 7143 4.2.2.1: outside the window, or a duplicate, is ignored

    def _run_held(self) -> None:
        while (kept := self._held.pop(self._exp_cmd_sn, None)) is not None:
            self._held_bytes -= len(kept)
            self._exp_cmd_sn = self._exp_cmd_sn + 1 & 0xFFFFFFFF
            header_end = BHS_BYTES + kept[4] * 4
            view = memoryview(kept)
            _HANDLERS[kept[0] & 0x3F](self, view[:header_end], view[header_end:], False)

    # SCSI commands that the hot path leaves

    def _scsi_command(self, header: memoryview, data: memoryview, immediate: bool) -> None:
        if self._execute is None:
            self._retire(immediate)
            self._reject(header, RejectReason.PROTOCOL_ERROR)
            return
        request = pdu.ScsiCommandRequest.decode(header)
        tag = request.initiator_task_tag
        if tag in self.tasks or tag == RESERVED_TAG:
            raise ProtocolError(f"initiator task tag {tag:#x} is in use already")
        ahs = pdu.decode_ahs(header[BHS_BYTES:])
        cdb = request.cdb + ahs[1][1:] if 1 in ahs else request.cdb
        writes = bool(request.flags & request.WRITE)
        expected = request.expected_data_transfer_length
        final = bool(request.flags & FINAL)
        if not writes:
            if data or not final:
                raise ProtocolError("data, or no F bit, with a command that does not write")
            task = ScsiTask(self, cdb, b"", tag, request.lun, expected, False, immediate)
        else:
            allowed = min(self._first_burst, expected)
            if len(data) > allowed or (data and not self._immediate_data):
                raise ProtocolError(f"{len(data)} bytes of immediate data where {allowed} may come at most")
            if not final and (self._initial_r2t or len(data) == allowed):
                raise ProtocolError("a command announces unsolicited data that may not come")
            if len(data) < expected:
                self._collect(request, cdb, data, immediate, 0 if final else allowed - len(data))
                return
            task = ScsiTask(self, cdb, data, tag, request.lun, expected, True, immediate)
        self.tasks[tag] = task
        self._execute(decode_lun(request.lun), task)

    def _collect(
        self, request: pdu.ScsiCommandRequest, cdb: bytes, data: memoryview, immediate: bool, unsolicited: int
    ) -> None:
        tag, expected = request.initiator_task_tag, request.expected_data_transfer_length
        if expected > WRITE_BYTES_MAX:
            refused = ScsiTask(self, cdb, b"", tag, request.lun, expected, True, immediate)
            self.tasks[tag] = refused
            refused.complete(ScsiResult(Status.CHECK_CONDITION, (), invalid_field_in_cdb(0)))
            return
        task = CollectingTask(self, cdb, b"", tag, request.lun, expected, True, immediate)
        task.start(data, unsolicited)
        self.tasks[tag] = task
        if not unsolicited:
            self._solicit(task)

    def _solicit(self, task: CollectingTask) -> None:
        """Ask for the rest of a write's data, or queue up for it."""
        if self._solicited_bytes and self._solicited_bytes + task.expected_length > SOLICITED_BYTES_MAX:
            self._waiting_for_r2t.append(task)
            return
        self._solicited_bytes += task.expected_length
        self._send_r2ts(task)

    def _send_r2ts(self, task: CollectingTask) -> None:
        while len(task.r2ts) < self._max_outstanding_r2t and task.next_solicited < task.expected_length:
            self._transfer_tag = (self._transfer_tag + 1) % RESERVED_TAG
            r2t_sn, offset, length = task.grant(self._transfer_tag, self._max_burst)
            self.emit(
                pdu.R2T(
                    flags=FINAL,
                    lun=task.lun_field,
                    initiator_task_tag=task.initiator_task_tag,
                    target_transfer_tag=self._transfer_tag,
                    stat_sn=self._stat_sn,
                    exp_cmd_sn=self._exp_cmd_sn,
                    max_cmd_sn=self._max_cmd_sn,
                    r2t_sn=r2t_sn,
                    buffer_offset=offset,
                    desired_data_transfer_length=length,
                ).encode()
            )

    def _data_out(self, header: memoryview, data: memoryview, immediate: bool) -> None:
        _, flags, _, _, _, tag, transfer_tag, _, _, _, data_sn, offset, _ = HOT_DATA_OUT.unpack_from(header)
        task = self.tasks.get(tag)
        if not isinstance(task, CollectingTask):
            return  # its task was aborted while the data were on their way (RFC 7143 11.5.1)
        if not task.add(flags, transfer_tag, data_sn, offset, data):
            return
        if task.complete_data:
            task.data_out = task.buffer
            if self._execute is not None:
                self._execute(decode_lun(task.lun_field), task)
        elif transfer_tag == RESERVED_TAG:
            self._solicit(task)
        else:
            self._send_r2ts(task)

    def forget_solicited(self, task: CollectingTask) -> None:
        """A write ended: whoever waits may be asked for its data."""
        if task in self._waiting_for_r2t:
            self._waiting_for_r2t.remove(task)
        elif task.r2t_sn:
            self._solicited_bytes -= task.expected_length
        if self._waiting_for_r2t:
            self._solicit(self._waiting_for_r2t.popleft())

    # Answers

    def finish_done(self, task: ScsiTask, data: Buffer | None) -> None:
        tag = task.initiator_task_tag
        expected = task.expected_length
        length = 0 if data is None else len(data)
        if (
            (length != expected and not (task.is_write and data is None))
            or length > self._one_pdu_bytes
            or self.tasks.get(tag) is not task
            or type(task) is not ScsiTask
        ):
            self.finish(task, ScsiResult(Status.GOOD, () if data is None else (data,)))
            return
        del self.tasks[tag]
        if not task.immediate:
            self._max_cmd_sn = self._max_cmd_sn + 1 & 0xFFFFFFFF
        output = self.output
        if not output:
            self._owner.output_ready()
        stat_sn = self._stat_sn
        self._stat_sn = stat_sn + 1 & 0xFFFFFFFF
        if data is None or not length:
            output.append(
                HOT_SCSI_RESPONSE.pack(
                    0x21, 0x80, 0, 0, 0, 0, tag, 0, stat_sn, self._exp_cmd_sn, self._max_cmd_sn, 0, 0, 0
                )
            )
            self.output_bytes += BHS_BYTES
            return
        output.append(
            HOT_DATA_IN.pack(
                0x25,
                _DATA_IN_LAST,
                0,
                0,
                length,
                task.lun_field,
                tag,
                RESERVED_TAG,
                stat_sn,
                self._exp_cmd_sn,
                self._max_cmd_sn,
                0,
                0,
                0,
            )
        )
        output.append(data)
        if length & 3:
            output.append(PADDING[length & 3])
        self.output_bytes += BHS_BYTES + length

    def finish(self, task: ScsiTask, result: ScsiResult) -> None:
        tag = task.initiator_task_tag
        if self.tasks.get(tag) is not task:
            self.task_management.late(task)
            return
        del self.tasks[tag]
        self.retire_task(task)
        if isinstance(task, CollectingTask):
            self.forget_solicited(task)
        expected = task.expected_length
        sent, flags, residual = 0, 0, 0
        data_sn = 0
        if result.data_in and not task.is_write:
            total = sum(map(len, result.data_in))
            sent = min(total, expected)
            flags, residual = _residual(expected, total)
            good = result.status == Status.GOOD and result.sense is None
            data_sn = self._send_data_in(task, result.data_in, sent, flags, residual, good)
            if good and sent:
                return
        elif not task.is_write:
            flags, residual = _residual(expected, 0)
        segment = b"" if result.sense is None else _sense_segment(result.sense)
        self._send_response(task, result.status, flags, residual, segment, data_sn)

    def _send_response(
        self, task: ScsiTask, status: int, flags: int, residual: int, segment: bytes, exp_data_sn: int
    ) -> None:
        stat_sn = self.next_stat_sn()
        self.emit(
            HOT_SCSI_RESPONSE.pack(
                Opcode.SCSI_RESPONSE,
                FINAL | flags,
                0,
                status,
                len(segment),
                0,
                task.initiator_task_tag,
                0,
                stat_sn,
                self._exp_cmd_sn,
                self._max_cmd_sn,
                exp_data_sn,
                0,
                residual,
            ),
            segment,
        )

    def _send_data_in(
        self,
        task: ScsiTask,
        buffers: Sequence[Buffer],
        total: int,
        flags: int,
        residual: int,
        with_status: bool,
    ) -> int:
        """Cut `total` bytes into Data-In PDUs, the status in the last one if it is GOOD; the number of PDUs."""
        data = memoryview(buffers[0] if len(buffers) == 1 else b"".join(buffers))
        data_sn = offset = burst = 0
        while offset < total:
            length = min(self._peer_segment, total - offset, self._max_burst - burst)
            burst += length
            last = offset + length == total
            final = last or burst == self._max_burst
            if final:
                burst = 0
            status = with_status and last
            self.emit(
                HOT_DATA_IN.pack(
                    Opcode.DATA_IN,
                    (FINAL if final else 0) | (pdu.DataIn.STATUS | flags if status else 0),
                    0,
                    0,
                    length,
                    task.lun_field,
                    task.initiator_task_tag,
                    RESERVED_TAG,
                    self.next_stat_sn() if status else 0,
                    self._exp_cmd_sn,
                    self._max_cmd_sn,
                    data_sn,
                    offset,
                    residual if status else 0,
                ),
                data[offset : offset + length],
            )
            data_sn += 1
            offset += length
        return data_sn

    def retire_task(self, task: ScsiTask) -> None:
        if not task.immediate:
            self._max_cmd_sn = self._max_cmd_sn + 1 & 0xFFFFFFFF

    def _retire(self, immediate: bool) -> None:
        """A request other than a SCSI command has left the window."""
        if not immediate:
            self._max_cmd_sn = self._max_cmd_sn + 1 & 0xFFFFFFFF

    def next_stat_sn(self) -> int:
        stat_sn = self._stat_sn
        self._stat_sn = stat_sn + 1 & 0xFFFFFFFF
        return stat_sn

    def emit(self, header: bytes, data: Buffer = b"") -> None:
        """Append a PDU to the output, with padding and digests."""
        if self.closed:
            return
        output = self.output
        if not output:
            self._owner.output_ready()
        output.append(header)
        if self._header_digest:
            output.append(pdu.digest(header))
        length = len(data)
        if length:
            output.append(data)
            padding = PADDING[length & 3]
            if padding:
                output.append(padding)
            if self._data_digest:
                output.append(pdu.digest(data, padding))
        self.output_bytes += len(header) + length

    # Everything that is not a SCSI command

    def _nop_out(self, header: memoryview, data: memoryview, immediate: bool) -> None:
        request = pdu.NopOut.decode(header)
        if request.initiator_task_tag == RESERVED_TAG:
            self._ping_tag = None  # the answer to our ping, or a way to tell ExpStatSN
            return
        self._retire(immediate)
        stat_sn = self.next_stat_sn()
        self.emit(
            pdu.NopIn(
                flags=FINAL,
                lun=0,
                initiator_task_tag=request.initiator_task_tag,
                target_transfer_tag=RESERVED_TAG,
                stat_sn=stat_sn,
                exp_cmd_sn=self._exp_cmd_sn,
                max_cmd_sn=self._max_cmd_sn,
            ).encode(data_length=min(len(data), self._peer_segment)),
            bytes(data[: self._peer_segment]),
        )

    def ping(self) -> bool:
        """Send a NOP-In that asks for an answer; false if the last one has none yet."""
        if self._ping_tag is not None:
            return False
        self._transfer_tag = (self._transfer_tag + 1) % RESERVED_TAG
        self._ping_tag = self._transfer_tag
        self.emit(
            pdu.NopIn(
                flags=FINAL,
                lun=0,
                initiator_task_tag=RESERVED_TAG,
                target_transfer_tag=self._ping_tag,
                stat_sn=self._stat_sn,
                exp_cmd_sn=self._exp_cmd_sn,
                max_cmd_sn=self._max_cmd_sn,
            ).encode()
        )
        return True

    def _text_request(self, header: memoryview, data: memoryview, immediate: bool) -> None:
        request = pdu.TextRequest.decode(header)
        self._retire(immediate)
        pairs = self._text.add(data, bool(request.flags & request.CONTINUE))
        if pairs is None:
            self._send_text(request, b"", 0)
            return
        if not (self._text_left and not pairs):
            self._text_left = encode_text(self._answer_text(pairs))
        text, self._text_left = self._text_left[: self._peer_segment], self._text_left[self._peer_segment :]
        self._send_text(request, text, request.CONTINUE if self._text_left else FINAL)

    def _answer_text(self, pairs: Pairs) -> Pairs:
        answers: Pairs = []
        for name, value in pairs:
            if name == "SendTargets":
                if not value and self.node is not None:
                    value = self.node.name
                if value == "All" and self.node is not None:
                    answers.append((name, "Reject"))  # RFC 7143 appendix C: in discovery sessions only
                else:
                    answers += self._send_targets(self.admission.initiator_name, value)
            elif name == "MaxRecvDataSegmentLength":
                answers.append((name, "Reject"))  # may be declared anew, but nobody does
            else:
                answers.append((name, "NotUnderstood"))
        return answers

    def _send_text(self, request: pdu.TextRequest, text: bytes, flags: int) -> None:
        stat_sn = self.next_stat_sn()
        self.emit(
            pdu.TextResponse(
                flags=flags,
                lun=request.lun,
                initiator_task_tag=request.initiator_task_tag,
                target_transfer_tag=RESERVED_TAG if flags == FINAL else 1,
                stat_sn=stat_sn,
                exp_cmd_sn=self._exp_cmd_sn,
                max_cmd_sn=self._max_cmd_sn,
            ).encode(data_length=len(text)),
            text,
        )

    def _task_management_request(self, header: memoryview, data: memoryview, immediate: bool) -> None:
        self._retire(immediate)
        self.task_management.request(pdu.TaskManagementRequest.decode(header))

    def send_task_management_response(self, tag: int, response: int) -> None:
        stat_sn = self.next_stat_sn()
        self.emit(
            pdu.TaskManagementResponse(
                flags=FINAL,
                response=response,
                initiator_task_tag=tag,
                stat_sn=stat_sn,
                exp_cmd_sn=self._exp_cmd_sn,
                max_cmd_sn=self._max_cmd_sn,
            ).encode()
        )

    def is_cmd_sn_received(self, cmd_sn: int) -> bool:
        """Whether a command with this CmdSN was taken already (serial number arithmetic, RFC 1982)."""
        return bool(cmd_sn - self._exp_cmd_sn & 0x80000000)

    def _logout_request(self, header: memoryview, data: memoryview, immediate: bool) -> None:
        request = pdu.LogoutRequest.decode(header)
        self._retire(immediate)
        reason = request.flags & 0x7F
        # 0 closes the session, 1 a connection, which is the same here; 2 needs ErrorRecoveryLevel 2.
        response = 0
        if reason > 1:
            response = 2
        elif reason == 1 and request.cid != self.admission.cid:
            response = 1
        stat_sn = self.next_stat_sn()
        self.emit(
            pdu.LogoutResponse(
                flags=FINAL,
                response=response,
                initiator_task_tag=request.initiator_task_tag,
                stat_sn=stat_sn,
                exp_cmd_sn=self._exp_cmd_sn,
                max_cmd_sn=self._max_cmd_sn,
                time2wait_seconds=0,
                time2retain_seconds=0,
            ).encode()
        )
        if response == 0:
            self.end("logout")

    def _reject(self, header: Buffer, reason: int) -> None:
        stat_sn = self.next_stat_sn()
        self.emit(
            pdu.Reject(
                flags=FINAL,
                reason=reason,
                initiator_task_tag=RESERVED_TAG,
                stat_sn=stat_sn,
                exp_cmd_sn=self._exp_cmd_sn,
                max_cmd_sn=self._max_cmd_sn,
                data_sn=0,
            ).encode(data_length=BHS_BYTES),
            bytes(header[:BHS_BYTES]),
        )

    # The end

    def end(self, reason: str) -> None:
        """Take no more; have the output sent, then the connection closed."""
        self.ending = True
        self._owner.end(reason)

    def close(self) -> None:
        """The connection is gone: answers of commands still under way are dropped."""
        self.closed = self.ending = True
        self.tasks.clear()
        self.output.clear()
        self._waiting_for_r2t.clear()
        self._registry.remove(self)

    def answer_aborted(self, task: ScsiTask) -> None:
        """Tell the initiator that somebody else aborted its task."""
        self.retire_task(task)
        self._send_response(task, Status.TASK_ABORTED, 0, 0, b"", 0)


_Handler = Callable[[TargetSession, memoryview, memoryview, bool], None]

# What an initiator may send in full feature phase. The names are private to this module, not to the class.
_HANDLERS: dict[int, _Handler] = {
    Opcode.NOP_OUT: TargetSession._nop_out,
    Opcode.SCSI_COMMAND: TargetSession._scsi_command,
    Opcode.TASK_MANAGEMENT_REQUEST: TargetSession._task_management_request,
    Opcode.TEXT_REQUEST: TargetSession._text_request,
    Opcode.DATA_OUT: TargetSession._data_out,
    Opcode.LOGOUT_REQUEST: TargetSession._logout_request,
}


def _residual(expected: int, total: int) -> tuple[int, int]:
    """Flags and count (RFC 7143 11.4.5)."""
    if total > expected:
        return pdu.ScsiResponse.OVERFLOW, total - expected
    if total < expected:
        return pdu.ScsiResponse.UNDERFLOW, expected - total
    return 0, 0


def _sense_segment(sense: Sense) -> bytes:
    raw = sense.encode_fixed()
    return len(raw).to_bytes(2, "big") + raw
