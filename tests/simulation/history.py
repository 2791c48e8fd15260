"""What was really written, as a tree: every pack any site ever appended, by its chain digest.

The digest of a pack names everything before it, so a digest stands for a whole lineage. The simulator sees
each append with the bytes that the host gave, and from then on knows what any site that holds that pack must
show. Nothing here is read back from a disk.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence

from target.journal.record import NO_DIGEST, RecordType
from target.journal.ring import NewRecord
from target.volume import Buffer

SECTOR = 512
_STAMP = struct.Struct("<8sQ")
_MAGIC = b"SIMSTAMP"
_CHECKPOINT_EVERY = 200

Image = dict[int, bytearray]
"""Volume id -> its whole content."""


def stamped(number: int, offset: int, length: int) -> bytes:
    """The content of write `number`: every sector says which write, and where it belongs."""
    first = offset // SECTOR
    return b"".join(
        struct.pack("<8sQQ", _MAGIC, number, sector) + bytes(((number * 7 + sector) & 0xFF,)) * (SECTOR - 24)
        for sector in range(first, first + length // SECTOR)
    )


def stamp_of(sector: Buffer) -> int | None:
    """The number of the write a sector comes from; None for zeros."""
    magic, number = _STAMP.unpack_from(sector)
    return number if magic == _MAGIC else None


class Node:
    """One pack, and what came before it."""

    __slots__ = ("digest", "epoch", "first", "last", "parent", "records", "site", "time")

    def __init__(
        self,
        digest: bytes,
        parent: Node | None,
        first: int,
        records: Sequence[NewRecord],
        site: str,
        time: float,
        epoch: int,
    ) -> None:
        self.digest = digest
        self.parent = parent
        self.first = first
        self.last = first + len(records) - 1
        self.records = records
        self.site = site
        self.time = time
        self.epoch = epoch

    def forget_copies(self) -> None:
        """The content of base records was compared, and is that of earlier records: not kept twice."""
        self.records = [
            record._replace(data=b"") if record.type == RecordType.BASE else record for record in self.records
        ]

    def __repr__(self) -> str:
        return f"<records {self.first}-{self.last} of {self.site}, epoch {self.epoch}>"


class History:
    """All packs of all sites."""

    def __init__(self, volumes: Mapping[int, int]) -> None:
        self._volumes = dict(volumes)
        self._nodes: dict[bytes, Node] = {}
        self._roots: dict[bytes, Node] = {}
        self._images: dict[bytes, Image] = {}
        self.node_of_write: dict[int, tuple[Node, int]] = {}
        """Number of a host's write -> the pack that has it, and its sequence number."""

    def root(self, group_id: bytes, site: str) -> Node:
        """In front of the first record of a group that was just made."""
        node = self._roots.get(group_id)
        if node is None:
            node = self._roots[group_id] = Node(NO_DIGEST, None, 1, (), site, 0.0, 0)
        return node

    def new_root(self, site: str, content: Image) -> Node:
        """A history that begins with this content; its group gets its name later."""
        node = Node(b"root %d" % len(self._images), None, 1, (), site, 0.0, 0)
        self._images[node.digest] = content
        return node

    def name_root(self, group_id: bytes, node: Node) -> None:
        self._roots.setdefault(group_id, node)

    def find(self, digest: bytes, group_id: bytes) -> Node | None:
        """The pack with this digest; None when nobody ever wrote it."""
        if digest == NO_DIGEST:
            return self._roots.get(group_id)
        return self._nodes.get(digest)

    def add(self, node: Node) -> None:
        self._nodes[node.digest] = node

    # -- lineages --

    def at_sequence(self, node: Node, sequence: int) -> Node:
        """The pack of this lineage that holds a sequence number."""
        while node.first > sequence and node.parent is not None:
            node = node.parent
        return node

    def is_ancestor(self, older: Node, newer: Node) -> bool:
        """Whether `newer` has everything that `older` had."""
        return older.last <= newer.last and (
            (older.last == 0 and older.parent is None) or self.at_sequence(newer, older.last) is older
        )

    def common(self, one: Node, other: Node) -> Node | None:
        """The last pack two lineages share."""
        while one is not other:
            if one.last >= other.last:
                if one.parent is None:
                    return None
                one = one.parent
            else:
                if other.parent is None:
                    return None
                other = other.parent
        return one

    def path(self, start: Node | None, end: Node) -> list[Node]:
        """The packs behind `start` up to `end`, in order."""
        nodes: list[Node] = []
        node: Node | None = end
        while node is not None and node is not start:
            nodes.append(node)
            node = node.parent
        assert node is start, "not an ancestor"
        nodes.reverse()
        return nodes

    # -- content --

    def image(self, node: Node, sequence: int | None = None) -> Image:
        """All volumes as they are behind a pack, or behind a record inside of it."""
        chain: list[Node] = []
        at: Node | None = node
        while at is not None and at.digest not in self._images:
            chain.append(at)
            at = at.parent
        if at is None:
            image = {volume: bytearray(size) for volume, size in self._volumes.items()}
        else:
            image = {volume: bytearray(content) for volume, content in self._images[at.digest].items()}
            if at is node and sequence is not None and sequence < node.last:
                return self._inside(node, sequence)
        for count, step in enumerate(reversed(chain)):
            if step is node and sequence is not None:
                _apply_all(image, step.records[: sequence - step.first + 1])
                return image
            _apply_all(image, step.records)
            if count % _CHECKPOINT_EVERY == _CHECKPOINT_EVERY - 1 and step.digest != NO_DIGEST:
                self._images[step.digest] = {v: bytearray(content) for v, content in image.items()}
        return image

    def _inside(self, node: Node, sequence: int) -> Image:
        assert node.parent is not None
        image = self.image(node.parent)
        _apply_all(image, node.records[: sequence - node.first + 1])
        return image


def apply(image: Image, record: NewRecord) -> None:
    """What one record of a host does to the volumes; base records change nothing that is right already."""
    if record.type == RecordType.UPDATE:
        image[record.volume][record.offset : record.offset + record.length] = record.data
    elif record.type == RecordType.ZERO:
        image[record.volume][record.offset : record.offset + record.length] = bytes(record.length)
    elif record.type == RecordType.GROW:
        image[record.volume][record.offset :] = bytes(record.length)


def _apply_all(image: Image, records: Sequence[NewRecord]) -> None:
    for record in records:
        apply(image, record)


def first_difference(expected: bytes | bytearray, found: bytes | bytearray) -> Iterator[tuple[int, int, int]]:
    """(sector, stamp expected, stamp found) of each differing sector; -1 stands for zeros."""
    for sector in range(len(expected) // SECTOR):
        want = bytes(expected[sector * SECTOR : (sector + 1) * SECTOR])
        have = bytes(found[sector * SECTOR : (sector + 1) * SECTOR])
        if want != have:
            wanted, had = stamp_of(want), stamp_of(have)
            yield sector, -1 if wanted is None else wanted, -1 if had is None else had
