"""The PDUs that an initiator sends, byte by byte (RFC 7143 section 11). No I/O.

Each class carries the table of its bytes; those that all PDUs share are in `target.iscsi.pdu`.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import ClassVar

from target.iscsi.pdu import Opcode, Pdu


@dataclass(frozen=True, slots=True)
class ScsiCommandRequest(Pdu):
    """RFC 7143 11.3.

    1       F | R (read) | W (write) | 2 reserved | ATTR (3 bits)
    8-15    LUN
    16-19   InitiatorTaskTag
    20-23   ExpectedDataTransferLength
    24-27   CmdSN
    28-31   ExpStatSN
    32-47   CDB, zero-padded; more of it in an AHS of type 1
    """

    opcode = Opcode.SCSI_COMMAND
    layout = struct.Struct(">xB6xQIIII16s")
    READ: ClassVar[int] = 0x40
    WRITE: ClassVar[int] = 0x20

    flags: int
    lun: int
    initiator_task_tag: int
    expected_data_transfer_length: int
    cmd_sn: int
    exp_stat_sn: int
    cdb: bytes


@dataclass(frozen=True, slots=True)
class TaskManagementRequest(Pdu):
    """RFC 7143 11.5.

    1       1 | function (7 bits)
    8-15    LUN
    16-19   InitiatorTaskTag
    20-23   ReferencedTaskTag
    24-27   CmdSN
    28-31   ExpStatSN
    32-35   RefCmdSN
    36-39   ExpDataSN
    """

    opcode = Opcode.TASK_MANAGEMENT_REQUEST
    layout = struct.Struct(">xB6xQIIIIII8x")

    function: int
    lun: int
    initiator_task_tag: int
    referenced_task_tag: int
    cmd_sn: int
    exp_stat_sn: int
    ref_cmd_sn: int
    exp_data_sn: int


@dataclass(frozen=True, slots=True)
class LoginRequest(Pdu):
    """RFC 7143 11.12. Data segment: text keys.

    1       T (transit) | C (continue) | 2 reserved | CSG (2 bits) | NSG (2 bits)
    2       Version-max
    3       Version-min
    8-13    ISID
    14-15   TSIH
    16-19   InitiatorTaskTag
    20-21   CID
    24-27   CmdSN
    28-31   ExpStatSN
    """

    opcode = Opcode.LOGIN_REQUEST
    layout = struct.Struct(">xBBB4x6sHIH2xII16x")
    TRANSIT: ClassVar[int] = 0x80
    CONTINUE: ClassVar[int] = 0x40

    flags: int
    version_max: int
    version_min: int
    isid: bytes
    tsih: int
    initiator_task_tag: int
    cid: int
    cmd_sn: int
    exp_stat_sn: int

    @property
    def transit(self) -> bool:
        return bool(self.flags & self.TRANSIT)

    @property
    def continues(self) -> bool:
        return bool(self.flags & self.CONTINUE)

    @property
    def current_stage(self) -> int:
        return self.flags >> 2 & 3

    @property
    def next_stage(self) -> int:
        return self.flags & 3


@dataclass(frozen=True, slots=True)
class TextRequest(Pdu):
    """RFC 7143 11.10. Data segment: text keys.

    1       F | C (continue) | 6 reserved
    8-15    LUN
    16-19   InitiatorTaskTag
    20-23   TargetTransferTag
    24-27   CmdSN
    28-31   ExpStatSN
    """

    opcode = Opcode.TEXT_REQUEST
    layout = struct.Struct(">xB6xQIIII16x")
    CONTINUE: ClassVar[int] = 0x40

    flags: int
    lun: int
    initiator_task_tag: int
    target_transfer_tag: int
    cmd_sn: int
    exp_stat_sn: int


@dataclass(frozen=True, slots=True)
class DataOut(Pdu):
    """RFC 7143 11.7.

    1       F | 7 reserved
    8-15    LUN (with a TargetTransferTag)
    16-19   InitiatorTaskTag
    20-23   TargetTransferTag
    28-31   ExpStatSN
    36-39   DataSN
    40-43   Buffer Offset
    """

    opcode = Opcode.DATA_OUT
    layout = struct.Struct(">xB6xQII4xI4xII4x")

    flags: int
    lun: int
    initiator_task_tag: int
    target_transfer_tag: int
    exp_stat_sn: int
    data_sn: int
    buffer_offset: int


@dataclass(frozen=True, slots=True)
class NopOut(Pdu):
    """RFC 7143 11.18. Data segment: ping data.

    1       1 | 7 reserved
    8-15    LUN
    16-19   InitiatorTaskTag
    20-23   TargetTransferTag
    24-27   CmdSN
    28-31   ExpStatSN
    """

    opcode = Opcode.NOP_OUT
    layout = struct.Struct(">xB6xQIIII16x")

    flags: int
    lun: int
    initiator_task_tag: int
    target_transfer_tag: int
    cmd_sn: int
    exp_stat_sn: int


@dataclass(frozen=True, slots=True)
class LogoutRequest(Pdu):
    """RFC 7143 11.14.

    1       1 | reason (7 bits)
    16-19   InitiatorTaskTag
    20-21   CID
    24-27   CmdSN
    28-31   ExpStatSN
    """

    opcode = Opcode.LOGOUT_REQUEST
    layout = struct.Struct(">xB6x8xIH2xII16x")

    reason: int
    initiator_task_tag: int
    cid: int
    cmd_sn: int
    exp_stat_sn: int


@dataclass(frozen=True, slots=True)
class SnackRequest(Pdu):
    """RFC 7143 11.16. Recognised so that it can be rejected: it needs ErrorRecoveryLevel 1.

    1       1 | 3 reserved | type (4 bits)
    8-15    LUN
    16-19   InitiatorTaskTag
    20-23   TargetTransferTag or SNACK Tag
    28-31   ExpStatSN
    40-43   BegRun
    44-47   RunLength
    """

    opcode = Opcode.SNACK_REQUEST
    layout = struct.Struct(">xB6xQII4xI8xII")

    flags: int
    lun: int
    initiator_task_tag: int
    target_transfer_tag: int
    exp_stat_sn: int
    beg_run: int
    run_length: int
