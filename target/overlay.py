"""The overlay: where the newest content of a block lies while the data volume does not have it yet. Pure.

A `Generation` maps granules of 4096 bytes to positions of data. The write path fills the *current*
generation; when it is frozen, a new one begins, and once the frozen one was applied it is dropped whole. So
nothing is ever removed from a generation, and reads look at two dictionaries at most before they go to the
volume.

The same class coalesces records on their way to the data volumes (`restore`): there the positions are places
in the buffer that the journal was read into.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import Enum
from typing import NamedTuple

GRANULE_BYTES = 4096
_SHIFT = 12
_MASK = GRANULE_BYTES - 1
_FRAGMENTS_MAX = 8

ZERO = -1
"""The position of content that is zeros and lies nowhere."""


class Fragment(NamedTuple):
    """A part of a granule: [start, stop) within it, and where its data lie (or ZERO)."""

    start: int
    stop: int
    position: int


Partial = tuple[Fragment, ...]
"""Parts of a granule in the order they were written; later ones count."""

Granules = dict[int, "int | Partial"]
"""Granule number -> position of its 4096 bytes (int), or parts (tuple)."""


class Generation:
    """What was written between two LSNs.

    `appended`: this process wrote all of it to the journal, and nothing was found there.
    """

    __slots__ = ("appended", "granules", "start_lsn")

    def __init__(self, start_lsn: int = 0, *, appended: bool = False) -> None:
        self.start_lsn = start_lsn
        self.appended = appended
        self.granules: dict[int, Granules] = {}

    def __bool__(self) -> bool:
        return bool(self.granules)

    def put(self, volume: int, offset: int, length: int, position: int) -> None:
        """The range's newest content begins at `position` (ZERO: it is zeros)."""
        granules = self.granules.get(volume)
        if granules is None:
            granules = self.granules[volume] = {}
        first = offset >> _SHIFT
        if not (offset | length) & _MASK:
            if length == GRANULE_BYTES:
                granules[first] = position
            elif position == ZERO:
                granules.update(dict.fromkeys(range(first, first + (length >> _SHIFT)), ZERO))
            else:
                for granule in range(first, first + (length >> _SHIFT)):  # measured: faster than an update
                    granules[granule] = position
                    position += GRANULE_BYTES
            return
        self._put_unaligned(granules, offset, length, position)

    def _put_unaligned(self, granules: Granules, offset: int, length: int, position: int) -> None:
        end = offset + length
        while offset < end:
            granule = offset >> _SHIFT
            start = offset & _MASK
            stop = min(GRANULE_BYTES, start + end - offset)
            if stop - start == GRANULE_BYTES:
                granules[granule] = position
            else:
                granules[granule] = _with_fragment(granules.get(granule), Fragment(start, stop, position))
            offset += stop - start
            if position != ZERO:
                position += stop - start


def _with_fragment(old: int | Partial | None, new: Fragment) -> Partial:
    if old is None:
        return (new,)
    if isinstance(old, int):
        return (Fragment(0, GRANULE_BYTES, old), new)
    if len(old) >= _FRAGMENTS_MAX:
        old = _visible(old)
    return (*(part for part in old if part.start < new.start or part.stop > new.stop), new)


def _visible(parts: Partial) -> Partial:
    """The same content without what later parts cover: one fragment a run, at most 8 (one a sector)."""
    sectors: list[int | None] = [None] * (GRANULE_BYTES // 512)
    for part in parts:
        for sector in range(part.start // 512, part.stop // 512):
            sectors[sector] = ZERO if part.position == ZERO else part.position + sector * 512 - part.start
    runs: list[Fragment] = []
    for sector, position in enumerate(sectors):
        if position is None:
            continue
        start = sector * 512
        if runs and runs[-1].stop == start and _continues(runs[-1], position):
            runs[-1] = runs[-1]._replace(stop=start + 512)
        else:
            runs.append(Fragment(start, start + 512, position))
    return tuple(runs)


def _continues(run: Fragment, position: int) -> bool:
    if run.position == ZERO:
        return position == ZERO
    return position == run.position + run.stop - run.start


class Source(Enum):
    """Where a piece of a read comes from."""

    VOLUME = "the data volume"
    JOURNAL = "the journal volume"
    ZERO = "nowhere: zeros"


class Piece(NamedTuple):
    """Copy `length` bytes from `position` of the source to `at` of the answer; later pieces count."""

    source: Source
    position: int
    length: int
    at: int


def newest(layers: Sequence[Granules], granule: int) -> int | Partial | None:
    """What the newest layer that has something of a granule says of it; None: the volume has it."""
    for layer in layers:
        place = layer.get(granule)
        if place is not None:
            return place
    return None


def above(layers: Sequence[Granules], offset: int, length: int) -> list[Granules]:
    """Those of the layers that hold something of a range: most reads find none, and go to the volume."""
    granules = range(offset >> _SHIFT, (offset + length + _MASK) >> _SHIFT)
    return [layer for layer in layers if not layer.keys().isdisjoint(granules)]


def plan_read(layers: Sequence[Granules], offset: int, length: int) -> list[Piece]:
    """How to read a range through the layers (newest first) above the data volume."""
    bases: list[Piece] = []
    parts: list[Piece] = []
    end = offset + length
    at = 0
    while at < length:
        granule = (offset + at) >> _SHIFT
        granule_offset = granule << _SHIFT
        start = offset + at - granule_offset
        stop = min(GRANULE_BYTES, end - granule_offset)
        fragments: list[Fragment] = []
        base: int | None = None
        for layer in layers:
            value = layer.get(granule)
            if value is None:
                continue
            if isinstance(value, int):
                base = value
                break
            fragments[:0] = value
        if base is None:
            _extend(bases, Piece(Source.VOLUME, offset + at, stop - start, at))
        elif base == ZERO:
            _extend(bases, Piece(Source.ZERO, 0, stop - start, at))
        else:
            _extend(bases, Piece(Source.JOURNAL, base + start, stop - start, at))
        parts += _paint(fragments, start, stop, at)
        at += stop - start
    return bases + parts


def _paint(fragments: list[Fragment], start: int, stop: int, at: int) -> Iterator[Piece]:
    for part in fragments:
        low, high = max(part.start, start), min(part.stop, stop)
        if low >= high:
            continue
        if part.position == ZERO:
            yield Piece(Source.ZERO, 0, high - low, at + low - start)
        else:
            yield Piece(Source.JOURNAL, part.position + low - part.start, high - low, at + low - start)


def _extend(pieces: list[Piece], new: Piece) -> None:
    """Append, or lengthen the last piece when the new one goes on where it ends."""
    if pieces:
        last = pieces[-1]
        if last.source is new.source and (
            new.source is Source.ZERO or last.position + last.length == new.position
        ):
            pieces[-1] = last._replace(length=last.length + new.length)
            return
    pieces.append(new)
