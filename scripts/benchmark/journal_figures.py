"""The journal engine's figures, each measured in a process of its own: recovery, restoring, shipping, what is
written, what is held in memory, what a group commit costs.
"""

from __future__ import annotations

import os
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from scripts.benchmark.journal_load import (
    PEER,
    Engine,
    Host,
    Shape,
    forget_pages,
    make_file,
    make_secondary,
    write_journal,
)
from scripts.benchmark.targets import Embedded
from target.journal.record import Lsn
from target.restore import ARENA_BYTES
from target.san.fetch import Fetch, FetchState
from target.san.source import IscsiSource

_TURN_SECONDS_MAX = 0.05


@dataclass(frozen=True, slots=True)
class Recovery:
    """One start with so much unapplied. `cold`: nothing of it was in memory, as after a power failure."""

    shape: Shape
    unapplied_bytes: int
    cold: bool
    records: int
    seconds: float
    """From the first read of a superblock until hosts are served."""
    held_bytes: int | None
    """What the group holds in memory then, beside the buffer for restoring; not measured twice."""


@dataclass(frozen=True, slots=True)
class Restore:
    """All that was unapplied, on its way to the data volume: until it is there, durably."""

    shape: Shape
    bytes: int
    records: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Ship:
    """One journal fetched by a secondary over iSCSI, while it restores."""

    shape: Shape
    bytes: int
    records: int
    received_seconds: float
    restored_seconds: float


@dataclass(frozen=True, slots=True)
class Amplification:
    """What so many writes of hosts made the site write."""

    size_bytes: int
    outstanding: int
    host_bytes: int
    journal_bytes: int
    volume_bytes: int


@dataclass(frozen=True, slots=True)
class GroupCommit:
    """Writes with FUA, so many outstanding: each is answered when it is durable."""

    outstanding: int
    writes: int
    flushes: int
    seconds: float


def _turns(engine: Engine, until: Callable[[], bool]) -> None:
    while not until():
        engine.loop.turn(_TURN_SECONDS_MAX)


def recovery(directory: Path, unapplied_bytes: int, shape: Shape, cold: bool) -> Recovery:
    """Start on a journal as a crash left it."""
    records = write_journal(directory, unapplied_bytes, shape).records
    if cold:
        forget_pages(directory / "journal")
    began = time.perf_counter()
    engine = Engine(directory, unapplied_bytes)
    seconds = time.perf_counter() - began
    assert engine.group.journal.head.sequence == records
    engine.close()
    held_bytes = None
    if not cold:
        tracemalloc.start()  # a second start: tracing costs time
        engine = Engine(directory, unapplied_bytes)
        held_bytes = tracemalloc.get_traced_memory()[0] - ARENA_BYTES
        engine.close()
    return Recovery(shape, unapplied_bytes, cold, records, seconds, held_bytes)


def restore(directory: Path, unapplied_bytes: int, shape: Shape) -> Restore:
    """What the background does after such a start, with nothing else to do."""
    make_file(directory / "volume", unapplied_bytes)
    written = write_journal(directory, unapplied_bytes, shape)
    engine = Engine(directory, unapplied_bytes)
    background = engine.group.background
    began = time.perf_counter()
    _turns(engine, lambda: background.applied_sequence == written.records)
    background.checkpoint()
    _turns(engine, lambda: engine.applied)
    seconds = time.perf_counter() - began
    engine.close()
    return Restore(shape, written.end_lsn, written.records, seconds)


class _Primary(Embedded):
    """A site whose journal was written beforehand, and that keeps it for its mirror."""

    name = "primary"

    def __init__(self, directory: Path, unapplied_bytes: int, shape: Shape, processor: int) -> None:
        super().__init__(directory, unapplied_bytes, processor, 0)
        make_file(directory / "volume", unapplied_bytes)
        self.written = write_journal(directory, unapplied_bytes, shape, shipped=True)
        self._journal_bytes = (directory / "journal").stat().st_size


def ship(directory: Path, unapplied_bytes: int, shape: Shape) -> Ship:
    """Fetch a primary's journal as a secondary does; the primary is a process of its own."""
    processors = sorted(os.sched_getaffinity(0))
    secondary = directory / "secondary"
    secondary.mkdir()
    make_file(secondary / "volume", unapplied_bytes)
    make_secondary(secondary, unapplied_bytes)
    with _Primary(directory / "primary", unapplied_bytes, shape, processors[0]) as primary:
        assert isinstance(primary, _Primary)
        primary.settle()
        os.sched_setaffinity(0, {processors[-1]})
        records, end_lsn = primary.written
        engine = Engine(secondary, unapplied_bytes, site=PEER)
        name = primary.target_name
        source = IscsiSource(engine.loop, primary.san_portal, f"{name}.san", 0, f"{name}.peer")
        journal = engine.group.journal
        fetch = Fetch(engine.group, source, Lsn(0), lambda: None)
        _turns(engine, lambda: fetch.state is not FetchState.CONNECTING)
        began = time.perf_counter()
        fetch.advance(end_lsn)
        _turns(
            engine,
            lambda: journal.durable.sequence == records or fetch.state is not FetchState.READING,
        )
        received = time.perf_counter()
        assert fetch.state is FetchState.READING, fetch.reason
        _turns(engine, lambda: engine.group.background.applied_sequence == records)
        restored = time.perf_counter()
        fetch.close()
        engine.close()
    return Ship(shape, end_lsn, records, received - began, restored - began)


def _new_engine(directory: Path, file_bytes: int) -> Engine:
    """A site without a pair, whose journal and volume were written out."""
    make_file(directory / "volume", file_bytes)
    make_file(directory / "journal", file_bytes)
    return Engine(directory, file_bytes)


def amplification(
    directory: Path, file_bytes: int, size_bytes: int, outstanding: int, host_bytes: int
) -> Amplification:
    """Random writes, then quiet until all is applied; everything that was written to either file counts."""
    engine = _new_engine(directory, file_bytes)
    _turns(engine, lambda: engine.applied)
    before = engine.journal_device.bytes_written, engine.volume_device.bytes_written
    host = Host(engine, size_bytes, outstanding, fua=False)
    host.start()
    _turns(engine, lambda: host.completed * size_bytes >= host_bytes)
    host.stopping = True
    _turns(engine, lambda: engine.applied)
    written = engine.journal_device.bytes_written, engine.volume_device.bytes_written
    engine.close()
    return Amplification(
        size_bytes,
        outstanding,
        host.completed * size_bytes,
        written[0] - before[0],
        written[1] - before[1],
    )


def group_commit(directory: Path, file_bytes: int, outstanding: int, seconds: float) -> GroupCommit:
    """4 KiB writes with FUA."""
    engine = _new_engine(directory, file_bytes)
    host = Host(engine, 4096, outstanding, fua=True)
    host.start()
    warm = time.perf_counter() + seconds / 4
    _turns(engine, lambda: time.perf_counter() > warm)
    writes, flushes, began = host.completed, engine.journal_device.flushes, time.perf_counter()
    _turns(engine, lambda: time.perf_counter() > began + seconds)
    result = GroupCommit(
        outstanding,
        host.completed - writes,
        engine.journal_device.flushes - flushes,
        time.perf_counter() - began,
    )
    host.stopping = True
    _turns(engine, lambda: engine.applied)
    engine.close()
    return result
