"""The target's side of a session in full feature phase (RFC 7143 sections 4.2, 4.7, 11). No I/O.

    bytes received ──► receive ──► task ──► device.execute ──► finish ──► output (buffers to send, in order)

The owner (`target.iscsi.portal`) reads into a buffer, calls `receive`, and sends `output`. Time, sockets
and the end of the connection are its business; it is told through `SessionOwner`.

Invariants: every PDU in `output` was numbered when it was appended, so StatSN follows the order on the
wire; MaxCmdSN moves on only as commands retire, so that a session never has more than TASKS_MAX tasks;
ErrorRecoveryLevel is 0, so an error that cannot be confined to one PDU ends the connection (ProtocolError).

`receive` and `finish_done` are the hot path. They handle, in line, what nearly all traffic consists of:
commands in order whose data are in the same PDU, without digests, and answers that fit one PDU. Everything
else is in `_dispatch`.
"""

from __future__ import annotations

from typing import Protocol

from target.iscsi import pdu
from target.iscsi.answers import residual_of, send_data_in, send_response, sense_segment
from target.iscsi.held_commands import HeldCommands
from target.iscsi.housekeeping import Housekeeping, RejectReason, SendTargets
from target.iscsi.login import Admission
from target.iscsi.negotiation import MAX_RECV_DATA_SEGMENT_LENGTH
from target.iscsi.node import TargetNode
from target.iscsi.pdu import (
    BHS_BYTES,
    DIGEST_BYTES,
    FINAL,
    HOT_DATA_IN,
    HOT_SCSI_COMMAND,
    HOT_SCSI_RESPONSE,
    PADDING,
    RESERVED_TAG,
    Opcode,
    ProtocolError,
)
from target.iscsi.registry import SessionRegistry
from target.iscsi.requests import ScsiCommandRequest, TaskManagementRequest
from target.iscsi.responses import DataIn, TaskManagementResponse
from target.iscsi.task import CollectingTask, ScsiTask
from target.iscsi.task_management import TaskManagement
from target.iscsi.write_collection import WriteCollection
from target.scsi.command import Nexus, ScsiResult, Status
from target.scsi.lun import decode_lun
from target.scsi.sense import invalid_field_in_cdb
from target.volume import Buffer

COMMAND_WINDOW = 128
TASKS_MAX = COMMAND_WINDOW + 32
"""With the immediate commands, which take no place in the window."""

WRITE_BYTES_MAX = 64 << 20
"""The largest single write collected; more is answered as a transfer length that is too large."""

COMMAND_WORK_BYTES = 2 << 10
"""What a command beside the hot path counts for, as output, in its turn: some ten microseconds."""

LARGE_READ_BYTES = 1 << 20
LARGE_READS_BYTES_MAX = 128 << 20
"""Reads longer than LARGE_READ_BYTES may be under way for so many bytes; more get TASK SET FULL. The command
window bounds the shorter ones."""

_REQUESTS = frozenset(
    {
        Opcode.SCSI_COMMAND,
        Opcode.NOP_OUT,
        Opcode.TEXT_REQUEST,
        Opcode.LOGOUT_REQUEST,
        Opcode.TASK_MANAGEMENT_REQUEST,
    }
)
"""What an initiator may send in full feature phase and carries a CmdSN."""

_DATA_IN_LAST = FINAL | DataIn.STATUS


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
        send_targets: SendTargets,
    ) -> None:
        self.admission = admission
        self.node: TargetNode | None = admission.node
        self.nexus = Nexus(
            f"{admission.initiator_name},i,0x{admission.isid.hex()}",
            f"{admission.node.name},t,0x0001" if admission.node else "discovery",
        )
        self.output: list[Buffer] = []
        self.output_bytes = 0
        self.held_back = False
        """Whether commands may be in the buffer that nothing will announce: too much is unsent."""
        self.closed = False
        self.ending = False
        self.tasks: dict[int, ScsiTask] = {}
        self.draining: set[ScsiTask] = set()
        """After `close`: what the device server still has, and may still write."""
        self.task_management = TaskManagement(self, registry)
        self.housekeeping = Housekeeping(self, send_targets)
        self._owner = owner
        self._registry = registry
        self._execute = admission.node.device.execute if admission.node else None

        parameters = admission.parameters
        self._header_digest = DIGEST_BYTES if parameters.header_digest else 0
        self._data_digest = DIGEST_BYTES if parameters.data_digest else 0
        self._plain = not (parameters.header_digest or parameters.data_digest)
        self._first_burst = min(parameters.first_burst_length, parameters.max_burst_length)
        self.max_burst = parameters.max_burst_length
        self._immediate_data = parameters.immediate_data
        self._initial_r2t = parameters.initial_r2t
        self.declare_segment(parameters.peer_max_recv_data_segment_length)
        self.collection = WriteCollection(
            self, registry.budget, self.max_burst, parameters.max_outstanding_r2t
        )

        self.exp_cmd_sn = admission.exp_cmd_sn
        self.max_cmd_sn = admission.exp_cmd_sn + COMMAND_WINDOW - 1 & 0xFFFFFFFF
        self.stat_sn = admission.stat_sn
        self.held_commands = HeldCommands(self, registry.budget)
        self._held = self.held_commands.by_cmd_sn
        self._large_reads_bytes = 0
        self._transfer_tag = 0

    # Receiving

    def receive(self, view: memoryview, position: int, end: int) -> int:
        """Execute every complete PDU in `view[position:end]`; the position of the first byte not taken.

        Data slices handed to the device point into `view`, which must not change before the end of the turn.
        """
        output_high = self._registry.output_bytes_high
        if self.output_bytes >= output_high or self.ending:
            self.held_back = True
            return position
        unpack = HOT_SCSI_COMMAND.unpack_from
        tasks = self.tasks
        execute = self._execute
        plain = self._plain and execute is not None
        while end - position >= BHS_BYTES:
            opcode, flags, _, length, lun, tag, expected, cmd_sn, _, cdb = unpack(view, position)
            if (
                opcode == 0x01  # a SCSI Command, not immediate
                and plain
                and cmd_sn == self.exp_cmd_sn
                and flags & 0x80
                and length == (expected if flags & 0x20 else 0)  # all data here, and no AHS
                and length <= MAX_RECV_DATA_SEGMENT_LENGTH
                and expected <= LARGE_READ_BYTES
                and self.max_cmd_sn - cmd_sn & 0x80000000 == 0
                and tag not in tasks
                and (length <= self._first_burst and self._immediate_data)
            ):
                data = position + BHS_BYTES
                following = data + (length + 3 & ~3)
                if following > end:
                    break
                self.exp_cmd_sn = cmd_sn + 1 & 0xFFFFFFFF
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
                    self.held_commands.run()
            else:
                if length & 0xFFFFFF > MAX_RECV_DATA_SEGMENT_LENGTH:
                    raise ProtocolError(f"data segment of {length & 0xFFFFFF} bytes: more than was declared")
                size = pdu.frame_bytes(length, self._header_digest, self._data_digest)
                if end - position < size:
                    break
                self._check_and_dispatch(view[position : position + size])
                position += size
            if self.output_bytes >= output_high or self.ending:
                self.held_back = True
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
        sent_digest = frame[data_end : data_end + DIGEST_BYTES]
        if self._data_digest and data_length and pdu.digest(frame[data:data_end]) != sent_digest:
            self.housekeeping.reject(header, RejectReason.DATA_DIGEST_ERROR)
            if header[0] & 0x3F == Opcode.DATA_OUT:  # RFC 7143 7.8: its command fails
                self.collection.data_out(header, frame[data : data + data_length], damaged=True)
            else:  # the command is lost, and nothing at ErrorRecoveryLevel 0 brings it back
                self.end("data digest error")
            return
        self._dispatch(header, frame[data : data + data_length])

    def _dispatch(self, header: memoryview, data: memoryview) -> None:
        opcode = header[0] & 0x3F
        immediate = bool(header[0] & pdu.IMMEDIATE)
        if opcode == Opcode.DATA_OUT:
            self.collection.data_out(header, data)
        elif opcode not in _REQUESTS:
            snack = opcode == Opcode.SNACK_REQUEST
            reason = RejectReason.SNACK if snack else RejectReason.COMMAND_NOT_SUPPORTED
            self.housekeeping.reject(header, reason)
        elif immediate or self.held_commands.take_turn(int.from_bytes(header[24:28], "big"), header, data):
            self.run(opcode, header, data, immediate)
            if self._held:
                self.held_commands.run()

    def run(self, opcode: int, header: memoryview, data: memoryview, immediate: bool) -> None:
        """Execute a request whose turn it is."""
        if opcode == Opcode.SCSI_COMMAND:
            self._scsi_command(header, data, immediate)
            return
        if not immediate:  # it leaves the window at once; a SCSI command does when it is answered
            self.max_cmd_sn = self.max_cmd_sn + 1 & 0xFFFFFFFF
        if opcode == Opcode.NOP_OUT:
            self.housekeeping.nop_out(header, data)
        elif opcode == Opcode.TEXT_REQUEST:
            self.housekeeping.text_request(header, data)
        elif opcode == Opcode.LOGOUT_REQUEST:
            self.housekeeping.logout_request(header, data)
        else:
            self.task_management.request(TaskManagementRequest.decode(header))

    # SCSI commands that the hot path leaves

    def _scsi_command(self, header: memoryview, data: memoryview, immediate: bool) -> None:
        if self._execute is None:
            self.housekeeping.reject(header, RejectReason.PROTOCOL_ERROR)
            return
        request = ScsiCommandRequest.decode(header)
        tag = request.initiator_task_tag
        if tag in self.tasks or tag == RESERVED_TAG:
            raise ProtocolError(f"initiator task tag {tag:#x} is in use already")
        # The window does not bound immediate commands, so this does.
        if immediate and len(self.tasks) + len(self.task_management.aborted) >= TASKS_MAX:
            self.housekeeping.reject(header, RejectReason.TOO_MANY_IMMEDIATE_COMMANDS)
            return
        ahs = pdu.decode_ahs(header[BHS_BYTES:])
        cdb = request.cdb + ahs[1][1:] if 1 in ahs else request.cdb
        writes = bool(request.flags & request.WRITE)
        expected = request.expected_data_transfer_length
        final = bool(request.flags & FINAL)
        if not writes:
            if data or not final:
                raise ProtocolError("data, or no F bit, with a command that does not write")
            task = ScsiTask(self, cdb, b"", tag, request.lun, expected, False, immediate)
            if expected > LARGE_READ_BYTES:
                self._large_reads_bytes += expected
                if self._large_reads_bytes > max(expected, LARGE_READS_BYTES_MAX):
                    self.tasks[tag] = task
                    task.complete(ScsiResult(Status.TASK_SET_FULL))
                    return
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
        self.execute(task)

    def execute(self, task: ScsiTask) -> None:
        """Hand a task whose data are complete to the device server."""
        if self._execute is not None:
            self._execute(decode_lun(task.lun_field), task)

    def _collect(
        self, request: ScsiCommandRequest, cdb: bytes, data: memoryview, immediate: bool, unsolicited: int
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
        self.collection.begin(task)

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
            self.max_cmd_sn = self.max_cmd_sn + 1 & 0xFFFFFFFF
        output = self.output
        if not output:
            self._owner.output_ready()
        stat_sn = self.stat_sn
        self.stat_sn = stat_sn + 1 & 0xFFFFFFFF
        if data is None or not length:
            output.append(
                HOT_SCSI_RESPONSE.pack(
                    0x21, 0x80, 0, 0, 0, 0, tag, 0, stat_sn, self.exp_cmd_sn, self.max_cmd_sn, 0, 0, 0
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
                self.exp_cmd_sn,
                self.max_cmd_sn,
                0,
                0,
                0,
            )
        )
        output.append(data)
        if length & 3:
            output.append(PADDING[length & 3])
        self.output_bytes += BHS_BYTES + length

    def worked(self, count_bytes: int) -> None:
        """Work counts like output: who has much done that is not sent waits for the next turn too."""
        if not self.output:
            self._owner.output_ready()
        self.output_bytes += count_bytes

    def finish(self, task: ScsiTask, result: ScsiResult) -> None:
        tag = task.initiator_task_tag
        if self.tasks.get(tag) is not task:
            self.draining.discard(task)
            self.task_management.late(task)
            if self.closed:
                self._registry.drained(self)
            return
        del self.tasks[tag]
        self.retire_task(task)
        self._answer(task, result)
        if isinstance(task, CollectingTask):
            self.collection.forget(task)

    def _answer(self, task: ScsiTask, result: ScsiResult) -> None:
        self.output_bytes += COMMAND_WORK_BYTES
        expected = task.expected_length
        sent, flags, residual = 0, 0, 0
        data_sn = 0
        if result.data_in and not task.is_write:
            total = sum(map(len, result.data_in))
            sent = min(total, expected)
            flags, residual = residual_of(expected, total)
            good = result.status == Status.GOOD and result.sense is None
            data_sn = send_data_in(self, task, result.data_in, sent, flags, residual, good)
            if good and sent:
                return
        elif result.data_out_length is not None:  # none come with a command that does not say that it writes
            flags, residual = residual_of(expected if task.is_write else 0, result.data_out_length)
        elif not task.is_write:
            flags, residual = residual_of(expected, 0)
        segment = b"" if result.sense is None else sense_segment(self, task, result.sense)
        send_response(self, task, result.status, flags, residual, segment, data_sn)

    def retire_task(self, task: ScsiTask) -> None:
        """A command has ended: what it took of the window and of the bounds is free again."""
        if task.expected_length > LARGE_READ_BYTES and not task.is_write:
            self._large_reads_bytes -= task.expected_length
        if not task.immediate:
            self.max_cmd_sn = self.max_cmd_sn + 1 & 0xFFFFFFFF

    def next_stat_sn(self) -> int:
        stat_sn = self.stat_sn
        self.stat_sn = stat_sn + 1 & 0xFFFFFFFF
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

    def next_transfer_tag(self) -> int:
        self._transfer_tag = (self._transfer_tag + 1) % RESERVED_TAG
        return self._transfer_tag

    def send_task_management_response(self, tag: int, response: int) -> None:
        stat_sn = self.next_stat_sn()
        self.emit(
            TaskManagementResponse(
                flags=FINAL,
                response=response,
                initiator_task_tag=tag,
                stat_sn=stat_sn,
                exp_cmd_sn=self.exp_cmd_sn,
                max_cmd_sn=self.max_cmd_sn,
            ).encode()
        )

    def declare_segment(self, length: int) -> None:
        """The initiator takes segments of this size from now on."""
        self.peer_segment = min(length, 0xFFFFFC)
        self._one_pdu_bytes = min(self.peer_segment, self.max_burst) if self._plain else -1

    # The end

    def end(self, reason: str) -> None:
        """Take no more; have the output sent, then the connection closed."""
        self.ending = True
        self._owner.end(reason)

    def close(self) -> None:
        """The connection is gone: answers of commands still under way are dropped."""
        if self.closed:
            return
        self.closed = self.ending = True
        self.draining.update(task for task in self.tasks.values() if task.is_executing)
        self.draining.update(self.task_management.aborted)
        self.tasks.clear()
        self.output.clear()
        self.collection.clear()
        self.held_commands.clear()
        self._registry.remove(self)
        if self.node is not None:
            self.node.device.nexus_lost(self.nexus)

    def answer_aborted(self, task: ScsiTask) -> None:
        """Tell the initiator that somebody else aborted its task."""
        self.retire_task(task)
        send_response(self, task, Status.TASK_ABORTED)
