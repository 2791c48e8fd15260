"""The PDUs that a target sends, byte by byte (RFC 7143 section 11). No I/O.

Each class carries the table of its bytes; those that all PDUs share are in `target.iscsi.pdu`.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import ClassVar

from target.iscsi.pdu import Opcode, Pdu
from target.iscsi.requests import LoginRequest


@dataclass(frozen=True, slots=True)
class ScsiResponse(Pdu):
    """RFC 7143 11.4. Data segment: SenseLength (2 bytes), sense data.

    1       1 | 2 reserved | o u (bidirectional) | O (overflow) | U (underflow) | reserved
    2       Response (0: command completed at target, 1: target failure)
    3       Status (SAM)
    16-19   InitiatorTaskTag
    20-23   SNACK Tag
    24-27   StatSN
    28-31   ExpCmdSN
    32-35   MaxCmdSN
    36-39   ExpDataSN
    40-43   Bidirectional read residual count
    44-47   Residual count
    """

    opcode = Opcode.SCSI_RESPONSE
    layout = struct.Struct(">xBBB4x8xIIIIIIII")
    OVERFLOW: ClassVar[int] = 0x04
    UNDERFLOW: ClassVar[int] = 0x02

    flags: int
    response: int
    status: int
    initiator_task_tag: int
    snack_tag: int
    stat_sn: int
    exp_cmd_sn: int
    max_cmd_sn: int
    exp_data_sn: int
    bidirectional_residual_count: int
    residual_count: int


@dataclass(frozen=True, slots=True)
class TaskManagementResponse(Pdu):
    """RFC 7143 11.6.

    1       1 | 7 reserved
    2       Response
    16-19   InitiatorTaskTag
    24-27   StatSN
    28-31   ExpCmdSN
    32-35   MaxCmdSN
    """

    opcode = Opcode.TASK_MANAGEMENT_RESPONSE
    layout = struct.Struct(">xBB5x8xI4xIII12x")

    flags: int
    response: int
    initiator_task_tag: int
    stat_sn: int
    exp_cmd_sn: int
    max_cmd_sn: int


@dataclass(frozen=True, slots=True)
class LoginResponse(Pdu):
    """RFC 7143 11.13. Data segment: text keys.

    1       T | C | 2 reserved | CSG | NSG
    2       Version-max
    3       Version-active
    8-13    ISID
    14-15   TSIH
    16-19   InitiatorTaskTag
    24-27   StatSN
    28-31   ExpCmdSN
    32-35   MaxCmdSN
    36      Status-Class
    37      Status-Detail
    """

    opcode = Opcode.LOGIN_RESPONSE
    layout = struct.Struct(">xBBB4x6sHI4xIIIH10x")

    flags: int
    version_max: int
    version_active: int
    isid: bytes
    tsih: int
    initiator_task_tag: int
    stat_sn: int
    exp_cmd_sn: int
    max_cmd_sn: int
    status: int
    """Status-Class in the high byte, Status-Detail in the low one."""

    @property
    def transit(self) -> bool:
        return bool(self.flags & LoginRequest.TRANSIT)

    @property
    def continues(self) -> bool:
        return bool(self.flags & LoginRequest.CONTINUE)

    @property
    def next_stage(self) -> int:
        return self.flags & 3


@dataclass(frozen=True, slots=True)
class TextResponse(Pdu):
    """RFC 7143 11.11. Data segment: text keys.

    1       F | C | 6 reserved
    8-15    LUN
    16-19   InitiatorTaskTag
    20-23   TargetTransferTag
    24-27   StatSN
    28-31   ExpCmdSN
    32-35   MaxCmdSN
    """

    opcode = Opcode.TEXT_RESPONSE
    layout = struct.Struct(">xB6xQIIIII12x")

    flags: int
    lun: int
    initiator_task_tag: int
    target_transfer_tag: int
    stat_sn: int
    exp_cmd_sn: int
    max_cmd_sn: int


@dataclass(frozen=True, slots=True)
class DataIn(Pdu):
    """RFC 7143 11.7.

    1       F | A (acknowledge) | 3 reserved | O | U | S (status)
    3       Status, with S
    8-15    LUN
    16-19   InitiatorTaskTag
    20-23   TargetTransferTag
    24-27   StatSN, with S
    28-31   ExpCmdSN
    32-35   MaxCmdSN
    36-39   DataSN
    40-43   Buffer Offset
    44-47   Residual count, with S
    """

    opcode = Opcode.DATA_IN
    layout = struct.Struct(">xBxB4xQIIIIIIII")
    STATUS: ClassVar[int] = 0x01
    ACKNOWLEDGE: ClassVar[int] = 0x40

    flags: int
    status: int
    lun: int
    initiator_task_tag: int
    target_transfer_tag: int
    stat_sn: int
    exp_cmd_sn: int
    max_cmd_sn: int
    data_sn: int
    buffer_offset: int
    residual_count: int


@dataclass(frozen=True, slots=True)
class R2T(Pdu):
    """RFC 7143 11.8.

    1       1 | 7 reserved
    8-15    LUN
    16-19   InitiatorTaskTag
    20-23   TargetTransferTag
    24-27   StatSN (the next one; not advanced)
    28-31   ExpCmdSN
    32-35   MaxCmdSN
    36-39   R2TSN
    40-43   Buffer Offset
    44-47   Desired Data Transfer Length
    """

    opcode = Opcode.R2T
    layout = struct.Struct(">xB6xQIIIIIIII")

    flags: int
    lun: int
    initiator_task_tag: int
    target_transfer_tag: int
    stat_sn: int
    exp_cmd_sn: int
    max_cmd_sn: int
    r2t_sn: int
    buffer_offset: int
    desired_data_transfer_length: int


@dataclass(frozen=True, slots=True)
class NopIn(Pdu):
    """RFC 7143 11.19. Data segment: the ping data returned.

    1       1 | 7 reserved
    8-15    LUN
    16-19   InitiatorTaskTag
    20-23   TargetTransferTag
    24-27   StatSN
    28-31   ExpCmdSN
    32-35   MaxCmdSN
    """

    opcode = Opcode.NOP_IN
    layout = struct.Struct(">xB6xQIIIII12x")

    flags: int
    lun: int
    initiator_task_tag: int
    target_transfer_tag: int
    stat_sn: int
    exp_cmd_sn: int
    max_cmd_sn: int


@dataclass(frozen=True, slots=True)
class LogoutResponse(Pdu):
    """RFC 7143 11.15.

    1       1 | 7 reserved
    2       Response
    16-19   InitiatorTaskTag
    24-27   StatSN
    28-31   ExpCmdSN
    32-35   MaxCmdSN
    40-41   Time2Wait
    42-43   Time2Retain
    """

    opcode = Opcode.LOGOUT_RESPONSE
    layout = struct.Struct(">xBB5x8xI4xIII4xHH4x")

    flags: int
    response: int
    initiator_task_tag: int
    stat_sn: int
    exp_cmd_sn: int
    max_cmd_sn: int
    time2wait_seconds: int
    time2retain_seconds: int


@dataclass(frozen=True, slots=True)
class AsyncMessage(Pdu):
    """RFC 7143 11.9.

    1       1 | 7 reserved
    8-15    LUN
    16-19   0xffffffff
    24-27   StatSN
    28-31   ExpCmdSN
    32-35   MaxCmdSN
    36      AsyncEvent
    37      AsyncVCode
    38-43   Parameter1, Parameter2, Parameter3
    """

    opcode = Opcode.ASYNC_MESSAGE
    layout = struct.Struct(">xB6xQI4xIIIBBHHH4x")

    flags: int
    lun: int
    initiator_task_tag: int
    stat_sn: int
    exp_cmd_sn: int
    max_cmd_sn: int
    async_event: int
    async_vcode: int
    parameter1: int
    parameter2: int
    parameter3: int


@dataclass(frozen=True, slots=True)
class Reject(Pdu):
    """RFC 7143 11.17. Data segment: the header of the rejected PDU.

    1       1 | 7 reserved
    2       Reason
    16-19   0xffffffff
    24-27   StatSN
    28-31   ExpCmdSN
    32-35   MaxCmdSN
    36-39   DataSN/R2TSN
    """

    opcode = Opcode.REJECT
    layout = struct.Struct(">xBB5x8xI4xIIII8x")

    flags: int
    reason: int
    initiator_task_tag: int
    stat_sn: int
    exp_cmd_sn: int
    max_cmd_sn: int
    data_sn: int
