"""The journal volume as its owner writes it: append, receive, commit, move the tail.

Nothing here decides when: the write path does (`target.obtain`). A commit is handed out as work for a thread
(`begin_commit`) and taken back on the loop thread (`Commit.finish`); durability is stated there and nowhere
else. The superblock is written by the same work, in front of the same flush, so whatever it says was true
before. What it says of the history (role, epochs, geometry) is in both its copies before it counts, and the
ring is used again only as far as both allow: should the newer copy rot, the older leads to the same end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

from target.blockdev import BlockDevice
from target.journal.pack_index import PackIndex
from target.journal.record import (
    BLOCK_BYTES,
    PACK_DATA_BYTES_MAX,
    RECORDS_PER_PACK_MAX,
    EpochStart,
    Lsn,
    PackHeader,
    SequenceNumber,
    chain_digest,
    describe,
    encode_header,
    encode_pad,
    relocated,
    round_up,
)
from target.journal.scan import UNDURABLE_BYTES_MAX, RingReader
from target.journal.superblock import COPIES, EPOCHS_MAX, SUPERBLOCK_BYTES, Position, Superblock
from target.volume import Buffer

_ZEROS = bytes(BLOCK_BYTES)
_TAIL_PARTS = 8
"""When this part of the ring may be used again, both copies of the superblock say so at the next commit."""


class NewRecord(NamedTuple):
    """A record to be appended; `data` is b'' for types without."""

    type: int
    flags: int
    volume: int
    offset: int
    length: int
    data: Buffer


class Commit(NamedTuple):
    """One commit under way: run `work` on a thread, then give the commit to `Journal.finish_commit`.

    `superblock` is the last that it writes, `both` whether it writes both copies.
    """

    work: Callable[[], None]
    head: Position
    superblock: Superblock | None
    both: bool


class Journal:
    """One journal volume. Attributes are for reading; only the methods change them.

    `head` is behind the last appended pack, `durable` behind the last durable one, `free_tail_lsn` where the
    ring may be overwritten from: the tail that both copies of the superblock allow. `filled_bytes` is how
    much of a new ring was written out already (`journal.format`); what lies behind is not used before.
    """

    def __init__(self, device: BlockDevice, superblock: Superblock, head: Position, index: PackIndex) -> None:
        self.device = device
        self.superblock = superblock
        self.head = head
        self.durable = head
        self.index = index
        self.free_tail_lsn = superblock.tail.lsn
        self.filled_bytes = superblock.ring_bytes
        self.durable_generation = superblock.generation
        self._superblock_dirty = True
        self._in_both: Superblock | None = None
        """What both copies say of the history, durably (`Superblock.history`); None: it is not known."""
        self._extra_writes: list[tuple[int, bytes]] = []
        self._flush_first = False

    # -- places and space --

    def place(self, lsn: int) -> int:
        """Offset on the device of an LSN."""
        return self.superblock.ring_offset + lsn % self.superblock.ring_bytes

    def reader(self, arena: bytearray | None = None, end_lsn: int | None = None) -> RingReader:
        """A reader of this ring, for one walk; it reads into `arena` as long as there is room, and nothing
        behind `end_lsn`.
        """
        return RingReader(
            self.device, self.superblock.ring_offset, self.superblock.ring_bytes, arena, end_lsn
        )

    @property
    def used_bytes(self) -> int:
        """Bytes of the ring that may not be overwritten."""
        return self.head.lsn - self.free_tail_lsn

    @property
    def undurable_bytes(self) -> int:
        return self.head.lsn - self.durable.lsn

    def fits(self, record_count: int, data_bytes: int) -> bool:
        """Whether so much can be appended now: by space, and by the limit on what is not durable yet."""
        need = self.needed_bytes(record_count, data_bytes)
        return self.has_space(need) and self.undurable_bytes + need <= UNDURABLE_BYTES_MAX

    def has_space(self, need: int) -> bool:
        """Whether the ring has so much free, and written out: the first half of `fits`."""
        return self.used_bytes + need <= self.superblock.ring_bytes and self._is_filled(need)

    def needed_bytes(self, record_count: int, data_bytes: int) -> int:
        """What so many records take of the ring at the most, with a pad if they do not fit before its end."""
        packs = 1 + record_count // RECORDS_PER_PACK_MAX + data_bytes // PACK_DATA_BYTES_MAX
        need = round_up(data_bytes) + packs * 2 * BLOCK_BYTES
        room = self.superblock.ring_bytes - self.head.lsn % self.superblock.ring_bytes
        return need if need <= room else need + room

    def _is_filled(self, need: int) -> bool:
        ring = self.superblock.ring_bytes
        return self.filled_bytes >= ring or self.head.lsn % ring + need <= self.filled_bytes

    # -- appending --

    def append(self, records: Sequence[NewRecord], time_ns: int) -> list[int]:
        """Append records in order, as few packs as possible, with one write (two at the ring's end).

        Returns the device offset of each record's data. Volatile until committed. Raises OSError, and then
        nothing was appended. The caller has asked `fits`.
        """
        places: list[int] = []
        writes = _Writes(self)
        head = self.head
        boundaries: list[Position] = []
        start = 0
        while start < len(records):
            stop, data_length = start, 0
            while stop < len(records) and stop - start < RECORDS_PER_PACK_MAX:
                length = len(records[stop].data)
                if data_length + length > PACK_DATA_BYTES_MAX and stop > start:
                    break
                data_length += length
                stop += 1
            head = writes.pad_if_needed(head, BLOCK_BYTES + round_up(data_length))
            boundaries.append(head)
            head = self._add_pack(writes, head, records[start:stop], data_length, time_ns, places)
            start = stop
        writes.run()
        for boundary in boundaries:
            self.index.append(boundary)
        self.head = head
        return places

    def _add_pack(
        self,
        writes: _Writes,
        head: Position,
        records: Sequence[NewRecord],
        data_length: int,
        time_ns: int,
        places: list[int],
    ) -> Position:
        superblock = self.superblock
        base = self.place(head.lsn)
        descriptors = []
        data_offset = BLOCK_BYTES
        for record_type, flags, volume, offset, length, data in records:
            descriptors.append(describe(record_type, flags, volume, offset, length, data, data_offset))
            places.append(base + data_offset)
            data_offset += len(data)
        header = encode_header(
            group_id=superblock.group_id,
            epoch=superblock.epoch,
            reign=superblock.reign,
            first_sequence=head.sequence + 1,
            time_ns=time_ns,
            previous_digest=head.digest,
            lsn=head.lsn,
            durable_lsn=self.durable.lsn,
            descriptors=descriptors,
            data_length=data_length,
        )
        buffers: list[Buffer] = [header, _ZEROS[len(header) :]]
        buffers += [record.data for record in records if record.data]
        filling = -data_length % BLOCK_BYTES
        if filling:
            buffers.append(_ZEROS[:filling])
        total = BLOCK_BYTES + data_length + filling
        writes.add(base, buffers, total)
        return Position(
            Lsn(head.lsn + total), SequenceNumber(head.sequence + len(records)), chain_digest(header)
        )

    def receive(self, packs: Sequence[tuple[PackHeader, Buffer]]) -> None:
        """Append a peer's packs, (header, whole pack) in order, byte for byte but for their local part.

        The caller has checked them (`san.intake`). Volatile until committed. Raises OSError, and then nothing
        was appended.
        """
        writes = _Writes(self)
        head = self.head
        boundaries: list[Position] = []
        for header, pack in packs:
            head = writes.pad_if_needed(head, header.total_length)
            boundaries.append(head)
            local = relocated(header, head.lsn, self.durable.lsn)
            view = memoryview(pack)
            writes.add(
                self.place(head.lsn),
                [local.raw, _ZEROS[len(local.raw) :], view[BLOCK_BYTES : header.total_length]],
                header.total_length,
            )
            head = Position(Lsn(head.lsn + header.total_length), header.last_sequence, header.digest)
        writes.run()
        for boundary in boundaries:
            self.index.append(boundary)
        self.head = head

    # -- durability --

    def change_superblock(self, **changes: object) -> None:
        """What the next commit shall write; nothing of it counts before that commit is finished."""
        self.superblock = replace(self.superblock, **changes)  # type: ignore[arg-type]
        self._superblock_dirty = True

    def write_with_next_commit(self, writes: Sequence[tuple[int, bytes]]) -> None:
        """Bitmap pages: (offset, page), made durable by the next commit, before its superblock is."""
        self._extra_writes += writes

    @property
    def wanted_generation(self) -> int:
        """The generation of the superblock that will hold all that was changed up to now."""
        return self.superblock.generation + self._superblock_dirty

    @property
    def commit_needed(self) -> bool:
        return self._superblock_dirty or bool(self._extra_writes) or self.undurable_bytes > 0

    def begin_commit(self) -> Commit:
        """Make all that was appended durable, and the superblock if it changed. One at a time."""
        head = self.head
        extra, self._extra_writes = self._extra_writes, []
        flush_first, self._flush_first = self._flush_first, False
        copies: list[Superblock] = []
        if self._superblock_dirty or self._tail_is_wanted:
            both = self._in_both != self.superblock.history or self._tail_is_wanted
            for _ in range(COPIES if both else 1):
                self.superblock = replace(
                    self.superblock,
                    generation=self.superblock.generation + 1,
                    durable_lsn=self.durable.lsn,
                    durable_sequence=self.durable.sequence,
                )
                copies.append(self.superblock)
            self._superblock_dirty = False
        device = self.device

        def work() -> None:
            for offset, page in extra:
                device.pwritev([page], offset)
            if extra or flush_first:
                # What was dropped is marked, durably, before a superblock lets its place be reused; and the
                # records that an epoch forks from are durable before a superblock names it.
                device.flush()
            for superblock in copies[:-1]:
                _write_superblock(device, superblock)
                device.flush()
            if copies:
                _write_superblock(device, copies[-1])
            device.flush()

        return Commit(work, head, copies[-1] if copies else None, len(copies) == COPIES)

    @property
    def _tail_is_wanted(self) -> bool:
        """The ring fills up, or much of it waits to be used again: both copies of the superblock have to say
        that it may.
        """
        ring = self.superblock.ring_bytes
        waiting = self.superblock.tail.lsn - self.free_tail_lsn
        return waiting >= ring // _TAIL_PARTS or (waiting > 0 and self.used_bytes > ring // 2)

    def finish_commit(self, commit: Commit) -> None:
        """The work ran without error: everything below `commit.head` is durable."""
        if commit.head.lsn > self.durable.lsn:
            self.durable = commit.head
        if commit.superblock is not None:
            self.durable_generation = commit.superblock.generation
            if commit.both:
                self._in_both = commit.superblock.history
                self.free_tail_lsn = max(self.free_tail_lsn, commit.superblock.tail.lsn)

    def boundary_before(self, sequence: int) -> Position:
        """Where a reader that has everything up to `sequence` goes on: the boundary at or before it."""
        if sequence >= self.head.sequence:
            return self.head
        return self.index.before(sequence) or self.superblock.tail

    def keeps_from(self, sequence: int) -> Position | None:
        """The boundary exactly behind `sequence`.

        None when the ring does not hold what follows it, or no pack ends there.
        """
        position = self.boundary_before(sequence)
        if position.sequence != sequence or position.lsn < self.superblock.tail.lsn:
            return None
        return position

    def move_tail(self, to: Position) -> None:
        """Let the ring be reused up to a boundary, once the next commit is done."""
        if to.lsn > self.superblock.tail.lsn:
            self.index.forget_before(to.lsn)
            self.change_superblock(tail=to)

    # -- histories --

    def start_epoch(self, start: EpochStart) -> None:
        """What is appended from now on belongs to this epoch."""
        epochs = (*self.superblock.epochs, start)[-EPOCHS_MAX:]
        self.change_superblock(epoch=start.epoch, reign=start.reign, epochs=epochs)
        self._flush_first = True

    def grow_volume(self, volume: int, size_bytes: int) -> None:
        """A volume is larger from here on; its record is durable before a superblock says so."""
        entries = tuple(
            replace(entry, size_bytes=max(entry.size_bytes, size_bytes)) if entry.id == volume else entry
            for entry in self.superblock.volumes
        )
        self.change_superblock(volumes=entries)
        self._flush_first = True

    def grow_ring(self, ring_bytes: int) -> None:
        """A larger ring, with nothing in it: everything was applied and received, or marked.

        As at a restart the LSN goes on where no pack that is left in the ring can be taken for a new one.
        """
        written = self.filled_bytes
        lsn = Lsn((self.head.lsn // ring_bytes + 2) * ring_bytes)
        self._begin_empty(Position(lsn, self.head.sequence, self.head.digest), ring_bytes)
        self.filled_bytes = written

    def restart_at(self, sequence: SequenceNumber, digest: bytes) -> None:
        """Forget every pack and go on behind `sequence`, as if the ring began there.

        The LSN goes on a whole lap further, so that no pack left in the ring can ever be taken for a new one.
        """
        ring = self.superblock.ring_bytes
        lsn = Lsn((self.head.lsn // ring + 2) * ring)
        self._begin_empty(Position(lsn, sequence, digest), ring)

    def _begin_empty(self, position: Position, ring_bytes: int) -> None:
        self.index.clear()
        self.head = self.durable = position
        self.free_tail_lsn = position.lsn
        self.change_superblock(
            ring_bytes=ring_bytes,
            tail=position,
            checkpoint_lsn=position.lsn,
            checkpoint_sequence=position.sequence,
            durable_lsn=position.lsn,
            durable_sequence=position.sequence,
        )


def _write_superblock(device: BlockDevice, superblock: Superblock) -> None:
    device.pwritev([superblock.encode()], superblock.generation % COPIES * SUPERBLOCK_BYTES)


class _Writes:
    """The buffers of one append, joined into as few writes as the ring allows."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._runs: list[tuple[int, list[Buffer], int]] = []

    def add(self, place: int, buffers: list[Buffer], length: int) -> None:
        if self._runs and self._runs[-1][2] == place:
            start, joined, end = self._runs[-1]
            joined += buffers
            self._runs[-1] = (start, joined, end + length)
        else:
            self._runs.append((place, buffers, place + length))

    def pad_if_needed(self, head: Position, length: int) -> Position:
        """A pack never goes over the ring's end: fill it up when the next one would."""
        journal = self._journal
        superblock = journal.superblock
        room = superblock.ring_bytes - head.lsn % superblock.ring_bytes
        if length <= room:
            return head
        pad = encode_pad(
            group_id=superblock.group_id,
            epoch=superblock.epoch,
            reign=superblock.reign,
            next_sequence=head.sequence + 1,
            lsn=head.lsn,
            durable_lsn=journal.durable.lsn,
            length=room,
        )
        self.add(journal.place(head.lsn), [pad, _ZEROS[len(pad) :]], BLOCK_BYTES)
        self._runs.append((superblock.ring_offset, [], superblock.ring_offset))
        return Position(Lsn(head.lsn + room), head.sequence, head.digest)

    def run(self) -> None:
        for place, buffers, _ in self._runs:
            if buffers:
                self._journal.device.pwritev(buffers, place)
