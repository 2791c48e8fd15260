"""One simulated storage subsystem with one group: the real engine on simulated disks."""

from __future__ import annotations

from target.group import ConsistencyGroup, GroupSettings
from target.group_volume import GroupVolume
from target.journal.format import VolumeShape
from target.open_group import open_group
from target.volume import Buffer, VolumeError
from tests.simulation.sim_disk import SimDisk
from tests.simulation.sim_scheduler import SimClock, SimScheduler

MIB = 1 << 20


class Answer:
    """A `Request` that remembers its answer."""

    def __init__(self) -> None:
        self.ended = False
        self.data: bytes | None = None
        self.error: VolumeError | None = None

    def done(self, data: Buffer | None = None) -> None:
        assert not self.ended, "answered twice"
        self.ended = True
        self.data = None if data is None else bytes(data)

    def failed(self, error: VolumeError) -> None:
        assert not self.ended, "answered twice"
        self.ended = True
        self.error = error


class Site:
    """Disks survive, the process may be killed, the machine may lose power."""

    def __init__(
        self,
        clock: SimClock,
        name: str = "a",
        volumes: dict[str, int] | None = None,
        journal_bytes: int = 48 * MIB,
        throttle: bool = False,
    ) -> None:
        self.clock = clock
        self.name = name
        self.shapes = tuple(
            VolumeShape(volume, size, 512)
            for volume, size in (volumes or {"data": 4 * MIB, "log": MIB}).items()
        )
        self.disks = {shape.name: SimDisk(shape.size_bytes) for shape in self.shapes}
        self.journal_disk = SimDisk(journal_bytes)
        self.throttle = throttle
        self.start()

    def start(self) -> None:
        self.scheduler = SimScheduler(self.clock)
        self.group: ConsistencyGroup = open_group(
            self.scheduler,
            GroupSettings("group1", site=self.name, throttle=self.throttle),
            self.journal_disk,
            self.shapes,
            self.disks,
        )
        self.volumes = {
            entry.name: GroupVolume(self.group, entry, f"{self.name}-{entry.name}")
            for entry in self.group.volumes
        }

    def kill(self) -> None:
        """The process ends; the machine's memory stays."""
        self.scheduler.kill()

    def power_off(self) -> None:
        """The machine stops; unflushed writes may or may not have reached the disks."""
        self.kill()
        for disk in (*self.disks.values(), self.journal_disk):
            disk.power_off(self.clock.random)

    # -- as a host --

    def write(self, volume: str, offset: int, data: bytes, fua: bool = False) -> Answer:
        answer = Answer()
        buffer = bytearray(data)
        self.volumes[volume].write(offset, memoryview(buffer), fua, answer)

        def reuse() -> None:
            buffer[:] = b"\xee" * len(buffer)  # the front end uses its buffer again after the turn

        self.scheduler.at_send(reuse)
        return answer

    def flush(self, volume: str = "data") -> Answer:
        answer = Answer()
        self.volumes[volume].flush(answer)
        return answer

    def wait(self, answer: Answer) -> Answer:
        self.clock.run_until(lambda: answer.ended)
        return answer

    def write_now(self, volume: str, offset: int, data: bytes, fua: bool = False) -> None:
        answer = self.wait(self.write(volume, offset, data, fua))
        assert answer.error is None, answer.error

    def flush_now(self) -> None:
        answer = self.wait(self.flush())
        assert answer.error is None, answer.error

    def read(self, volume: str, offset: int, length: int) -> bytes:
        answer = Answer()
        self.volumes[volume].read(offset, length, answer)
        self.wait(answer)
        assert answer.data is not None, answer.error
        return answer.data
