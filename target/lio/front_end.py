"""LIO as the front end of a subsystem: rings served, configuration applied at the start and watched after it.

The start applies the plan (`difference`) until nothing of it fails: an address or a Fibre Channel port may
come later than we do. From then on nothing is changed unasked: a volume or journal that grows does so in
LIO too; what somebody else changes is drift, told by `status`, and mended by `restore`. A stop leaves all
as it is: the commands wait in their rings for the next start, and initiators see a pause.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from target.config import Config
from target.control.messages import LioRing, LioStatus
from target.errors import OperatorError, ReplctlError
from target.lio.configfs import Configfs
from target.lio.desired import Exported, desired_objects
from target.lio.difference import Step, asked_for, difference, ours, restricted
from target.lio.handler import RingHandler
from target.lio.netlink import Command, Event, Events
from target.lio.objects import Fabric, Object, text
from target.lio.ring import Ring
from target.lio.uio import Device, Found, Watch, exists
from target.loop import Loop
from target.scsi.logical_unit import LogicalUnit
from target.scsi.sense import MODE_PARAMETERS_CHANGED

_log = logging.getLogger(__name__)

_LANE = "lio"
_RETRY_SECONDS = 2.0
_BUSY_RETRY_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class Served:
    """A data volume, or a journal, and its logical unit: who executes a data volume's commands."""

    exported: Exported
    unit: LogicalUnit


@dataclass(slots=True)
class _Open:
    """A ring that is served."""

    device: Device
    handler: RingHandler


Done = Callable[[LioStatus | None, ReplctlError | None], None]

_Choice = Callable[[list[Step]], list[Step]]
"""Of what differs, what to do."""


class LioFrontEnd:
    """On the loop thread; configfs is read and written on a lane, in order."""

    def __init__(
        self, loop: Loop, config: Config, volumes: Sequence[Served], journals: Sequence[Served]
    ) -> None:
        self._loop = loop
        self._config = config
        self._site = str(config.site.name)
        self._served = {served.exported.name: served for served in volumes}
        self._rings: dict[str, _Open] = {}
        self._closed = False
        self._failures: list[str] = []
        self.on_applied: Callable[[], None] | None = None
        """Called once, after the first attempt. Fibre Channel ports may come up then, not before."""
        self._journals = journals
        self._desired, self._sizes_wanted = self._wanted(), self._sizes()
        fabrics = [Fabric.ISCSI, *([Fabric(config.target.fc.driver)] if config.target.fc else [])]
        self._configfs = Configfs(fabrics)
        self._events = Events()
        self._watch = Watch(self._found)
        self._watching = False
        loop.register(self._events.fileno(), self._told)
        # Former rings first: their commands wait already, and rtslib and pyudev, which take longer to import
        # than all that a ring needs, are not needed for it. Where there is no ring nobody waits, and what
        # lacks is told at once.
        self._watch.look()
        if not self._rings:
            self._configfs.open()
        loop.submit(_LANE, self._watch.start, self._started)
        self._apply_all()

    # -- rings --

    def _started(self, _: None, error: Exception | None) -> None:
        """The monitor runs; what came before it is looked for."""
        if error is not None:
            raise error
        if not self._closed:
            self._watching = True
            self._loop.register(self._watch.fileno(), self._watch.receive)
            self._watch.look()

    def _found(self, found: Found) -> None:
        served = self._served.get(found.storage_object)
        if served is None or found.storage_object in self._rings or self._closed:
            return
        try:
            device = Device(found.node)
        except OSError as error:
            if not exists(found.node):
                return  # gone again
            # Its former opener is still dying, or the kernel, which told of it already, is still making it.
            if error.errno not in (errno.EBUSY, errno.ENOENT):
                _log.warning("%s: %s cannot be opened: %s", found.storage_object, found.node, error)
            self._loop.call_later(_BUSY_RETRY_SECONDS, partial(self._found, found))
            return
        name = found.storage_object
        handler = RingHandler(
            self._loop, Ring(device.view, device.words), served.unit, partial(self._doorbell, name)
        )
        self._rings[name] = _Open(device, handler)
        self._loop.register(device.fileno(), partial(self._ready, name))
        handler.start()
        _log.info("%s: its ring is %s, %d commands waited", name, found.node, handler.commands)

    def _ready(self, name: str) -> None:
        ring = self._rings[name]
        try:
            ring.device.acknowledge()
        except OSError:
            self._gone(name)
            return
        ring.handler.drain()

    def _doorbell(self, name: str) -> None:
        try:
            self._rings[name].device.ring_doorbell()
        except OSError:
            self._gone(name)

    def _gone(self, name: str) -> None:
        """The storage object was deleted; it may come back."""
        ring = self._rings.pop(name)
        _log.warning("%s: its ring is gone", name)
        ring.handler.close()
        self._loop.unregister(ring.device.fileno())
        ring.device.close()

    def _told(self) -> None:
        for event in self._events.receive():
            served = self._served.get(event.storage_object)
            if served is not None and event.command is Command.RECONFIGURED:
                self._reconfigured(served, event)

    def _reconfigured(self, served: Served, event: Event) -> None:
        unit, name = served.unit, event.storage_object
        if event.write_cache is not None and event.write_cache != unit.mode.write_cache_enabled:
            _log.info("%s: its write cache is %s", name, "on" if event.write_cache else "off")
            unit.set_mode(replace(unit.mode, write_cache_enabled=event.write_cache))
            unit.raise_unit_attention(MODE_PARAMETERS_CHANGED)
        if event.size_bytes not in (None, unit.volume.size_bytes):
            _log.warning(
                "%s: somebody gave it %s bytes in LIO; the volume has %d, and answers so",
                name,
                event.size_bytes,
                unit.volume.size_bytes,
            )

    # -- configuration --

    def _wanted(self) -> list[Object]:
        volumes, journals = (
            [replace(served.exported, size_bytes=served.unit.volume.size_bytes) for served in each]
            for each in (self._served.values(), self._journals)
        )
        return desired_objects(self._config, volumes, journals)

    def _sizes(self) -> list[int]:
        return [served.unit.volume.size_bytes for served in (*self._served.values(), *self._journals)]

    def look_at_sizes(self) -> None:
        """LIO is told of volumes and journals that have grown; hosts are by their logical units.

        Called whenever something of a group is different, a hundred times a second under load: what is wanted
        of LIO is worked out anew only where a size is.
        """
        sizes = self._sizes()
        if sizes == self._sizes_wanted:
            return
        self._sizes_wanted = sizes
        before, self._desired = self._desired, self._wanted()
        if before != self._desired:
            self._follow(before)

    def _follow(self, before: list[Object]) -> None:
        def followed(status: LioStatus | None, error: ReplctlError | None) -> None:
            if not self._closed and (status is None or status.failures):
                self._loop.call_later(_RETRY_SECONDS, partial(self._follow, before))

        self._submit(partial(asked_for, before=before, after=self._desired), followed)

    def _apply_all(self) -> None:
        self._submit(list, self._applied)

    def _applied(self, status: LioStatus | None, error: ReplctlError | None) -> None:
        if self.on_applied is not None:
            self.on_applied()
            self.on_applied = None
        if self._closed or (status is not None and not status.failures):
            return
        self._loop.call_later(_RETRY_SECONDS, self._apply_all)

    def status(self, done: Done) -> None:
        """What differs from site.toml now."""
        self._submit(None, done)

    def restore(self, name: str, done: Done) -> None:
        """Make one object, and what is below it, as it should be; all of them with ''."""
        path = tuple(name.split("/")) if name else ()
        known = {each.path[: len(path)] for each in self._desired}
        if path and path not in known:
            raise OperatorError(
                f"site.toml asks for no {name!r} in LIO; its objects: "
                + ", ".join(text(each.path) for each in self._desired)
            )
        self._submit(partial(restricted, path=path), done)

    def _submit(self, apply: _Choice | None, done: Done) -> None:
        wanted = list(self._desired)

        def finished(result: _Result | None, error: Exception | None) -> None:
            if result is None:
                self._failures = [str(error)]
                _log.error("LIO: %s", error)
                done(None, error if isinstance(error, ReplctlError) else OperatorError(str(error)))
                return
            for step in result.done:
                _log.info("LIO: %s", step)
            for failure in result.failures:
                if failure not in self._failures:
                    _log.warning("LIO: %s", failure)
            if apply is not None:
                self._failures = result.failures
            done(self._report(result), None)

        self._loop.submit(_LANE, partial(_work, self._configfs, self._site, wanted, apply), finished)

    def _report(self, result: _Result) -> LioStatus:
        return LioStatus(
            objects=len(self._desired),
            applied=[str(step) for step in result.done],
            drift=[str(step) for step in result.left],
            failures=self._failures,
            rings=[
                LioRing(
                    name,
                    ring is not None,
                    0 if ring is None else ring.handler.commands,
                    0 if ring is None else ring.handler.batches,
                    0 if ring is None else ring.handler.outstanding,
                )
                for name in self._served
                for ring in [self._rings.get(name)]
            ],
        )

    def close(self) -> None:
        """Take nothing more. What is under way is still answered; what is not taken yet waits."""
        self._closed = True
        self._loop.unregister(self._events.fileno())
        if self._watching:
            self._loop.unregister(self._watch.fileno())
        for ring in self._rings.values():
            self._loop.unregister(ring.device.fileno())
        self._events.close()


@dataclass(slots=True)
class _Result:
    """What was done, what could not be, what is left."""

    done: list[Step]
    failures: list[str]
    left: list[Step]


def _work(configfs: Configfs, site: str, wanted: list[Object], apply: _Choice | None) -> _Result:
    """On the lane: look, do what is asked for, look again."""
    paths = {each.path for each in wanted}

    def look() -> list[Step]:
        return difference(wanted, ours(configfs.observe(), site, paths))

    result = _Result([], [], look())
    if apply is None or not result.left:
        return result
    for step in apply(result.left):
        try:
            configfs.apply(step)
        except OperatorError as error:
            result.failures.append(str(error))
        else:
            result.done.append(step)
    result.left = look()
    return result
