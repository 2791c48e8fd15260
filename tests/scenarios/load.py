"""Hosts that write stamped blocks to the volumes of a site, whatever happens to it, until they are stopped.

Each host is a thread with a session for each volume. It writes a batch of random places on a random volume
with several commands outstanding, sometimes with FUA, sometimes with a SYNCHRONIZE CACHE behind it, tells the
`History` when each write was submitted and answered, and connects again when the connection is lost. What was
outstanding then is read back before anything else: it happened as a whole, or not at all.
"""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Iterator
from types import TracebackType

from target.errors import PeerError
from target.iscsi.client import Client, ScsiError
from target.scsi import cdb
from tests.scenarios.history import BLOCK_BYTES, History, Violation, Write, read_stamp
from tests.scenarios.site_lab import SiteLab

_BATCH_MAX = 8
_BLOCKS_MAX = 64
_RETRY_SECONDS = 0.05


class Load:
    """Use as a context manager; leaving it stops the hosts and raises what they found wrong."""

    def __init__(
        self,
        lab: SiteLab,
        site: str,
        history: History,
        *,
        seed: int,
        hosts: int = 2,
        bytes_per_second: int = 6_000_000,
        span: float = 1.0,
    ) -> None:
        """`span`: the part of each volume that is written at all."""
        self._lab = lab
        self._site = site
        self._history = history
        self._bytes_per_second = bytes_per_second / hosts
        self._span = span
        self._stopping = threading.Event()
        self._failures: list[BaseException] = []
        # Writes that an earlier load left behind, for the first host to find out about.
        left = history.unanswered()
        self._hosts = [
            threading.Thread(
                target=self._run,
                args=(random.Random(seed * 31 + number), left if number == 0 else []),
                name=f"host {number}",
            )
            for number in range(hosts)
        ]
        self.refusals: list[ScsiError] = []
        self.slowest_seconds = 0.0

    def __enter__(self) -> Load:
        for host in self._hosts:
            host.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        if error is None:
            self.check()

    def stop(self) -> None:
        """Returns when nothing is outstanding any more."""
        self._stopping.set()
        for host in self._hosts:
            host.join()

    def check(self) -> None:
        """Raise what a host found wrong."""
        if self._failures:
            raise self._failures[0]

    def wait_acknowledged(self, count: int, seconds: float = 60.0) -> None:
        """Until so many more writes were acknowledged: application writes go on."""
        wanted = self._history.acknowledged_count + count

        def reached() -> bool:
            self.check()
            return self._history.acknowledged_count >= wanted

        self._lab.wait(f"acknowledging {count} writes at {self._site}", reached, seconds)

    # -- one host --

    def _run(self, chance: random.Random, unanswered: list[Write]) -> None:
        try:
            while not self._stopping.is_set():
                try:
                    with self._sessions() as sessions:
                        self._settle(sessions, unanswered)
                        while not self._stopping.is_set():
                            self._batch(chance, sessions, unanswered)
                except ScsiError as refusal:
                    self.refusals.append(refusal)
                except PeerError:
                    pass  # the site is gone: it is tried again
                self._stopping.wait(_RETRY_SECONDS)
        except BaseException as error:
            self._failures.append(error)

    @contextlib.contextmanager
    def _sessions(self) -> Iterator[dict[str, Client]]:
        with contextlib.ExitStack() as stack:
            yield {
                volume: stack.enter_context(self._lab.connect(self._site, volume))
                for volume in self._history.volumes
            }

    def _settle(self, sessions: dict[str, Client], unanswered: list[Write]) -> None:
        """Find out what happened of what was outstanding when the connection was lost."""
        while unanswered:
            write = unanswered[-1]
            content = sessions[write.volume].read(write.block, write.count)
            found = {
                read_stamp(write.volume, block, content[at * BLOCK_BYTES : (at + 1) * BLOCK_BYTES])
                for at, block in enumerate(write.blocks)
            }
            if write.sequence not in found:
                self._history.drop(write)
            elif found == {write.sequence}:
                self._history.acknowledge(write)
            else:
                raise Violation(f"{write} happened in part: its blocks hold {sorted(found)}")
            unanswered.pop()

    def _batch(self, chance: random.Random, sessions: dict[str, Client], unanswered: list[Write]) -> None:
        volume = chance.choice(list(sessions))
        fua = chance.random() < 0.1
        writes = list(self._places(chance, volume, fua))
        unanswered += writes
        began_at = time.monotonic()
        commands = ((cdb.write(write.block, write.count, fua=fua), write.data(), 0) for write in writes)
        for write, _ in zip(writes, sessions[volume].execute_many(commands), strict=True):
            self._history.acknowledge(write)
            unanswered.remove(write)
        if chance.random() < 0.2:
            moment = self._history.now()
            sessions[volume].flush()
            self._history.flushed(volume, moment)
        self.slowest_seconds = max(self.slowest_seconds, time.monotonic() - began_at)
        size = sum(write.count for write in writes) * BLOCK_BYTES
        self._stopping.wait(size / self._bytes_per_second)

    def _places(self, chance: random.Random, volume: str, fua: bool) -> Iterator[Write]:
        """Half of the writes go to the first eighth of the place, so that blocks are overwritten often."""
        blocks = int(self._history.volumes[volume] * self._span)
        for _ in range(chance.randint(1, _BATCH_MAX)):
            count = chance.choice((1, 3, 8, chance.randint(1, _BLOCKS_MAX)))
            span = blocks // 8 if chance.random() < 0.5 else blocks
            write = self._history.submit(volume, chance.randrange(span - count), count, fua)
            if write is not None:
                yield write
