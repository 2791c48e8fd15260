"""The front end of the device server's tests: executes CDBs and hands back their results."""

from __future__ import annotations

from collections.abc import Callable

from target.scsi.command import Nexus, ScsiCommand, ScsiResult, Status
from target.scsi.device_server import Device
from target.scsi.inquiry import Limits
from target.scsi.logical_unit import LogicalUnit
from target.scsi.sense import Sense
from target.volume import Buffer, Space
from tests.unit.scsi.memory_volume import MemoryVolume

TARGET_PORT = "iqn.2024-01.example:target,t,0x0001"


class RecordedCommand(ScsiCommand):
    """Keeps what it was completed with."""

    __slots__ = ("results",)

    def __init__(self, cdb: bytes, data_out: Buffer, nexus: Nexus) -> None:
        super().__init__(cdb, data_out, nexus)
        self.results: list[ScsiResult] = []

    def complete(self, result: ScsiResult) -> None:
        self.results.append(result)

    @property
    def result(self) -> ScsiResult:
        assert len(self.results) == 1, f"completed {len(self.results)} times"
        return self.results[0]


def data_of(result: ScsiResult) -> bytes:
    """The Data-In of a command that must have succeeded."""
    assert result.status is Status.GOOD, str(result.sense)
    return b"".join(bytes(part) for part in result.data_in)


def sense_of(result: ScsiResult) -> Sense:
    """The sense data of a command that must have failed."""
    assert result.status is Status.CHECK_CONDITION
    assert result.sense is not None
    assert not result.data_in
    return result.sense


class Initiator:
    """One I_T nexus to a device with one logical unit, past its POWER ON unless told otherwise."""

    def __init__(
        self,
        volume: MemoryVolume | None = None,
        *,
        limits: Limits | None = None,
        device: Device | None = None,
        name: str = "iqn.2024-01.example:initiator",
        power_on: bool = False,
        space: Callable[[], Space] | None = None,
    ) -> None:
        self.volume = volume or MemoryVolume()
        self.device = device or Device({0: LogicalUnit(self.volume, limits, space=space)})
        self.nexus = Nexus(name, TARGET_PORT)
        if not power_on:
            for lun in self.device.logical_units:
                self.submit(bytes(6), lun=lun)
        self.volume.calls.clear()

    def submit(self, cdb: bytes, data_out: Buffer = b"", *, lun: int = 0) -> RecordedCommand:
        """Start a command, with its CDB padded to sixteen bytes as in a SCSI Command PDU."""
        command = RecordedCommand(cdb.ljust(16, b"\0"), data_out, self.nexus)
        self.device.execute(lun, command)
        return command

    def execute(self, cdb: bytes, data_out: Buffer = b"", *, lun: int = 0) -> ScsiResult:
        """Run a command that is completed at once."""
        return self.submit(cdb, data_out, lun=lun).result
