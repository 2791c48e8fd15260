"""The seam between a front end and the device server: one SCSI command and its result.

A front end (iSCSI, TCMU) makes a `ScsiCommand`, hands it to `LogicalUnit.execute`, and is called back
exactly once, on the loop thread, by `complete`: at once, at the end of the turn (writes), when the journal
is durable (SYNCHRONIZE CACHE, FUA), or when a background read is done. Nothing here knows a transport.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

from target.scsi.sense import Sense, sense_of_volume_error
from target.volume import Buffer, VolumeError


class Status(IntEnum):
    """SAM-5, *Status codes*."""

    GOOD = 0x00
    CHECK_CONDITION = 0x02
    BUSY = 0x08
    RESERVATION_CONFLICT = 0x18
    TASK_SET_FULL = 0x28
    ACA_ACTIVE = 0x30
    TASK_ABORTED = 0x40


@dataclass(frozen=True, slots=True)
class ScsiResult:
    """What goes back to the initiator.

    `data_in` holds buffers to be sent in order; they stay unchanged until the front end has sent or copied
    them in the same turn. `sense` is set with CHECK CONDITION only. `data_out_length` is given when the CDB
    asked for more or fewer bytes than came: the front end reports the difference as a residual count.
    """

    status: Status
    data_in: Sequence[Buffer] = ()
    sense: Sense | None = None
    data_out_length: int | None = None


GOOD = ScsiResult(Status.GOOD)


@dataclass(frozen=True, slots=True)
class Nexus:
    """The I_T nexus a command came through (SAM-5): initiator port and target port names."""

    initiator_port: str
    target_port: str
    relative_target_port: int = 1


class ScsiCommand:
    """One command on its way through the device server. Front ends subclass it and define `complete`.

    `data_out` is all the data from the initiator, contiguous; it may be a slice of a receive buffer, so it is
    valid until the end of the turn in which the command was executed. Who needs it longer copies it.
    """

    __slots__ = ("cdb", "data_out", "nexus")

    def __init__(self, cdb: bytes | memoryview, data_out: Buffer, nexus: Nexus) -> None:
        self.cdb = cdb
        self.data_out = data_out
        self.nexus = nexus

    def complete(self, result: ScsiResult) -> None:
        """Take the result; called once, on the loop thread."""
        raise NotImplementedError

    def worked(self, count_bytes: int) -> None:
        """So much was read or looked up for it at once, whether or not any of it is sent: a front end that
        shares out its turns counts that.
        """

    # A command is also the `Request` that a volume answers: these two turn its answer into a result.

    def done(self, data: Buffer | None = None) -> None:
        """The volume did it; `data` is what a read returned."""
        self.complete(GOOD if data is None else ScsiResult(Status.GOOD, (data,)))

    def failed(self, error: VolumeError) -> None:
        """The volume could not: the sense data say why."""
        self.complete(ScsiResult(Status.CHECK_CONDITION, (), sense_of_volume_error(error)))
