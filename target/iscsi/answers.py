"""Answers to SCSI commands that do not fit one plain PDU: long data, residuals, sense data. No I/O.

RFC 7143 11.4 and 11.7. The plain ones are built in `session.finish_done`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from target.iscsi.pdu import FINAL, HOT_DATA_IN, HOT_SCSI_RESPONSE, RESERVED_TAG, Opcode
from target.iscsi.responses import DataIn, ScsiResponse
from target.iscsi.task import ScsiTask
from target.scsi.lun import decode_lun
from target.scsi.sense import Sense
from target.volume import Buffer

if TYPE_CHECKING:
    from target.iscsi.session import TargetSession


def residual_of(expected: int, total: int) -> tuple[int, int]:
    """Flags and residual count (RFC 7143 11.4.5) when `total` bytes are there for `expected` ones."""
    if total > expected:
        return ScsiResponse.OVERFLOW, total - expected
    if total < expected:
        return ScsiResponse.UNDERFLOW, expected - total
    return 0, 0


def sense_segment(session: TargetSession, task: ScsiTask, sense: Sense) -> bytes:
    """The data segment of a SCSI Response: SenseLength, sense data (RFC 7143 11.4.7)."""
    assert session.node is not None, "a discovery session has no SCSI tasks"
    raw = session.node.device.encode_sense(decode_lun(task.lun_field), sense)
    return len(raw).to_bytes(2, "big") + raw


def send_data_in(
    session: TargetSession,
    task: ScsiTask,
    buffers: Sequence[Buffer],
    total: int,
    flags: int,
    residual: int,
    with_status: bool,
) -> int:
    """Cut `total` bytes into Data-In PDUs; the last one carries GOOD `with_status`. The number of PDUs."""
    data = memoryview(buffers[0] if len(buffers) == 1 else b"".join(buffers))
    if total < len(data):
        # Who allocated less than the command reads: what is not sent must neither be kept nor be for nothing.
        session.worked(len(data) - total)
        data = memoryview(bytes(data[:total]))
    data_sn = offset = burst = 0
    while offset < total:
        length = min(session.peer_segment, total - offset, session.max_burst - burst)
        burst += length
        last = offset + length == total
        final = last or burst == session.max_burst
        if final:
            burst = 0
        status = with_status and last
        stat_sn = session.next_stat_sn() if status else 0
        session.emit(
            HOT_DATA_IN.pack(
                Opcode.DATA_IN,
                (FINAL if final else 0) | (DataIn.STATUS | flags if status else 0),
                0,
                0,
                length,
                task.lun_field,
                task.initiator_task_tag,
                RESERVED_TAG,
                stat_sn,
                session.exp_cmd_sn,
                session.max_cmd_sn,
                data_sn,
                offset,
                residual if status else 0,
            ),
            data[offset : offset + length],
        )
        data_sn += 1
        offset += length
    return data_sn


def send_response(
    session: TargetSession,
    task: ScsiTask,
    status: int,
    flags: int = 0,
    residual: int = 0,
    segment: bytes = b"",
    exp_data_sn: int = 0,
) -> None:
    """A SCSI Response PDU. `exp_data_sn`: how many Data-In PDUs and R2Ts the command had."""
    stat_sn = session.next_stat_sn()
    session.emit(
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
            session.exp_cmd_sn,
            session.max_cmd_sn,
            exp_data_sn,
            0,
            residual,
        ),
        segment,
    )
