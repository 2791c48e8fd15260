"""The front end with LIO in memory: rings that are not ready when they are told of, volumes that grow."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field

import pytest

from target.control.messages import LioStatus
from target.errors import OperatorError
from target.lio import front_end
from target.lio.desired import Exported, exported
from target.lio.difference import Action, Step
from target.lio.front_end import LioFrontEnd, Served
from target.lio.netlink import Event
from target.lio.objects import Fabric, Object, StorageObject, journal_object_name, volume_object_name
from target.lio.uio import Found
from target.loop import Loop
from target.scsi.logical_unit import LogicalUnit
from tests.unit.lio.kernel_ring import KernelRing
from tests.unit.lio.test_difference import configuration
from tests.unit.scsi.memory_volume import MemoryVolume

NODE = "uio0"
TURNS_MAX = 2000


@dataclass
class Kernel:
    """What the fakes share: configfs, one uio device, and how opening it fails."""

    objects: dict[tuple[str, ...], Object] = field(default_factory=dict)
    refusals: list[int] = field(default_factory=list)
    node_exists: bool = True
    opened: int = 0
    wakes: list[int] = field(default_factory=list)
    absent: bool = False
    unusable: bool = False

    def descriptor(self) -> int:
        self.wakes.append(os.eventfd(0))
        return self.wakes[-1]


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Iterator[Kernel]:
    kernel = Kernel()

    class Configfs:
        def __init__(self, fabrics: Sequence[Fabric]) -> None: ...

        def open(self) -> None:
            if kernel.unusable:
                raise OperatorError("no LIO")

        def observe(self) -> list[Object]:
            self.open()
            return list(kernel.objects.values())

        def apply(self, step: Step) -> None:
            if step.action is Action.DELETE:
                del kernel.objects[step.object.path]
            else:
                kernel.objects[step.object.path] = step.object

    class Events:
        def __init__(self) -> None:
            self.fileno = partial_value(kernel.descriptor())

        def receive(self) -> list[Event]:
            return []

        def close(self) -> None: ...

    class Watch:
        def __init__(self, on_found: Callable[[Found], None]) -> None:
            self.fileno = partial_value(kernel.descriptor())
            self._on_found = on_found

        def start(self) -> None: ...

        def look(self) -> None:
            if not kernel.absent:
                self._on_found(Found(NODE, VOLUME.name, "replctl/x"))

        def receive(self) -> None: ...

    class Device:
        def __init__(self, node: str) -> None:
            if kernel.refusals:
                code = kernel.refusals.pop(0)
                raise OSError(code, os.strerror(code))
            kernel.opened += 1
            ring = KernelRing()
            self.view, self.words = ring.view, ring.words()
            self.fileno = partial_value(kernel.descriptor())

        def close(self) -> None: ...

    for fake in (Configfs, Events, Watch, Device):
        monkeypatch.setattr(front_end, fake.__name__, fake)
    monkeypatch.setattr(front_end, "exists", lambda node: kernel.node_exists)
    monkeypatch.setattr(front_end, "_BUSY_RETRY_SECONDS", 0.001)
    yield kernel
    for descriptor in kernel.wakes:
        os.close(descriptor)


def partial_value(value: int) -> Callable[[], int]:
    return lambda: value


class Site:
    """A front end with a volume and a journal, on a loop that is turned by hand."""

    def __init__(self) -> None:
        self.loop = Loop()
        self.volume, self.journal = MemoryVolume(), MemoryVolume()
        journal = Exported(JOURNAL.name, 0, self.journal.size_bytes, "00cc", 512, "/var/lib/journal")
        self.lio = LioFrontEnd(
            self.loop,
            configuration(),
            [Served(exported(VOLUME.name, 0, self.volume), LogicalUnit(self.volume))],
            [Served(journal, LogicalUnit(self.journal))],
        )
        self.applied = False
        self.lio.on_applied = self._applied

    def _applied(self) -> None:
        self.applied = True

    def turn_until(self, condition: Callable[[], bool]) -> None:
        for _ in range(TURNS_MAX):
            if condition():
                return
            self.loop.turn(0.01)
        raise AssertionError("it does not come to that")

    def close(self) -> None:
        self.lio.close()
        self.loop.close()

    def status(self) -> LioStatus:
        found: list[LioStatus] = []
        self.lio.status(lambda status, error: found.append(status) if status is not None else None)
        self.turn_until(lambda: bool(found))
        return found[0]


VOLUME = Exported(volume_object_name("a", "g", "data"), 0, 0, "")
JOURNAL = Exported(journal_object_name("a", "g"), 0, 0, "")


@pytest.fixture
def site(kernel: Kernel) -> Iterator[Site]:
    with closing(Site()) as site:
        yield site


@pytest.mark.parametrize("refusal", [errno.ENOENT, errno.EBUSY, errno.EIO])
def test_a_device_that_cannot_be_opened_yet_is_opened_later(kernel: Kernel, refusal: int) -> None:
    """ENOENT: the kernel tells of a device before it has described its memory in sysfs."""
    kernel.refusals = [refusal] * 3
    with closing(Site()) as site:
        assert kernel.opened == 0
        site.turn_until(lambda: kernel.opened == 1)
        assert [ring.served for ring in site.status().rings] == [True]


def test_a_device_that_is_gone_again_is_left_alone(kernel: Kernel) -> None:
    kernel.refusals, kernel.node_exists = [errno.ENOENT] * 2, False
    with closing(Site()) as site:
        site.turn_until(lambda: site.applied)
        assert [ring.served for ring in site.status().rings] == [False]
    assert kernel.opened == 0


def test_a_ring_that_is_there_is_served_before_anything_is_asked_of_lio(kernel: Kernel, site: Site) -> None:
    """Its commands wait for us, and for nothing that rtslib or the kernel's configuration could say."""
    assert kernel.opened == 1


def test_an_unusable_lio_is_told_of_and_keeps_no_ring_waiting(kernel: Kernel) -> None:
    kernel.unusable = True
    with closing(Site()) as site:
        site.turn_until(lambda: site.applied)
        failed: list[str] = []
        site.lio.status(lambda status, error: failed.append(str(error)))
        site.turn_until(lambda: bool(failed))
    assert (kernel.opened, failed) == (1, ["no LIO"])


def test_without_a_ring_an_unusable_lio_is_refused_at_once(kernel: Kernel) -> None:
    kernel.absent = kernel.unusable = True
    with pytest.raises(OperatorError, match="no LIO"):
        Site()


def sizes(kernel: Kernel) -> dict[str, int]:
    return {each.name: each.size_bytes for each in kernel.objects.values() if isinstance(each, StorageObject)}


def test_what_grows_is_larger_in_lio_too_and_other_drift_stays(kernel: Kernel, site: Site) -> None:
    site.turn_until(lambda: site.applied)
    drifted = next(path for path, each in kernel.objects.items() if type(each).__name__ == "Service")
    del kernel.objects[drifted]
    site.volume.size_bytes *= 2
    site.journal.size_bytes *= 3
    site.lio.look_at_sizes()
    wanted = {VOLUME.name: site.volume.size_bytes, JOURNAL.name: site.journal.size_bytes}
    site.turn_until(lambda: sizes(kernel) == wanted)
    assert site.status().drift == ["+ " + "/".join(drifted)]


def test_what_is_wanted_is_not_worked_out_again_for_every_change_of_a_group(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under load there are a hundred a second, and each held up every host for as long as a few commands."""
    site.turn_until(lambda: site.applied)
    worked_out: list[object] = []

    def desired(*asked: object) -> list[Object]:
        worked_out.append(asked)
        return []

    monkeypatch.setattr(front_end, "desired_objects", desired)
    site.lio.look_at_sizes()
    assert worked_out == []
    site.volume.size_bytes *= 2
    site.lio.look_at_sizes()
    assert len(worked_out) == 1


def test_nothing_is_done_where_nothing_grew(kernel: Kernel, site: Site) -> None:
    site.turn_until(lambda: site.applied)
    kernel.objects.popitem()
    before = dict(kernel.objects)
    site.lio.look_at_sizes()
    assert len(site.status().drift) == 1
    assert kernel.objects == before
