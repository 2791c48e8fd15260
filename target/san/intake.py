"""Judging what came over the SAN link: no pack passes that is not the next one, whole and unchanged. Pure.

The bytes of a peer's ring come in LSN order; out come packs in sequence order. Checked: header CRC, place,
group, sequence number, chain digest, the CRC of all data, and that every record lies within its volume.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from target.errors import IntegrityError
from target.journal.record import (
    BLOCK_BYTES,
    EpochStart,
    Lsn,
    Marker,
    PackHeader,
    RecordType,
    check_data,
    decode_header,
)
from target.journal.superblock import Position
from target.volume import SECTOR_BYTES, Buffer

_WITH_CONTENT = frozenset((RecordType.UPDATE, RecordType.BASE))
_WITHOUT_DATA = frozenset((RecordType.ZERO, RecordType.BASE_ZERO, RecordType.GROW))
_DIGEST_BYTES = 32


@dataclass(slots=True)
class Taken:
    """Packs that are right, and the epochs that begin in them."""

    packs: list[tuple[PackHeader, Buffer]] = field(default_factory=list)
    epochs: list[EpochStart] = field(default_factory=list)
    grown: dict[int, int] = field(default_factory=dict)
    """Volume id -> the bytes it has behind these packs."""


class Intake:
    """The reader's side of the chain. `position`: behind the last pack taken, with the peer's LSN."""

    def __init__(self, position: Position, group_id: bytes, volume_sizes: Mapping[int, int]) -> None:
        self.position = position
        self._group_id = group_id
        self._volume_sizes = dict(volume_sizes)
        self._rest = b""

    def feed(self, data: Buffer) -> Taken:
        """Take the bytes that follow; returns the packs they complete. IntegrityError at a wrong one."""
        whole = memoryview(self._rest + bytes(data) if self._rest else data)
        taken = Taken()
        start = 0
        while len(whole) - start >= BLOCK_BYTES:
            header = self._header(whole[start : start + BLOCK_BYTES])
            if header.is_pad:
                # Only the header block of a pad is read: the rest up to the ring's end says nothing.
                if len(whole) - start < header.total_length:
                    break
                self.position = Position(
                    Lsn(self.position.lsn + header.total_length), self.position.sequence, self.position.digest
                )
                start += header.total_length
                continue
            if len(whole) - start < header.total_length:
                break
            pack = whole[start : start + header.total_length]
            self._check(header, pack, taken)
            taken.packs.append((header, pack))
            self.position = Position(
                Lsn(self.position.lsn + header.total_length), header.last_sequence, header.digest
            )
            start += header.total_length
        self._rest = bytes(whole[start:])
        return taken

    def _header(self, block: memoryview) -> PackHeader:
        position = self.position
        header = decode_header(block)
        where = f"behind record {position.sequence} (the peer's LSN {position.lsn})"
        if header is None:
            raise IntegrityError(f"{where} the peer's journal holds no pack")
        if header.group_id != self._group_id:
            raise IntegrityError(f"{where} the peer's journal holds a pack of another group")
        if header.lsn != position.lsn or header.first_sequence != position.sequence + 1:
            raise IntegrityError(
                f"{where} the peer's journal holds record {header.first_sequence} (LSN {header.lsn}) "
                "instead: its ring was used again"
            )
        if not header.is_pad and header.previous_digest != position.digest:
            raise IntegrityError(f"{where} the peer's history is another than ours: the chain does not fit")
        return header

    def _check(self, header: PackHeader, pack: memoryview, taken: Taken) -> None:
        bad = check_data(header, pack)
        if bad is not None:
            raise IntegrityError(f"record {header.first_sequence + bad}: its data do not match their CRC")
        for number, row in enumerate(header.rows()):
            record_type, _, volume, data_length, offset, length, place, _ = row
            if record_type == RecordType.MARKER:
                Marker.decode(pack[place : place + data_length])
                continue
            if record_type == RecordType.EPOCH:
                taken.epochs.append(EpochStart.decode(pack[place : place + data_length]))
                continue
            if record_type in _WITH_CONTENT:
                wanted = length
            elif record_type in _WITHOUT_DATA:
                wanted = 0
            elif record_type == RecordType.VERIFY:
                wanted = _DIGEST_BYTES
            else:
                raise IntegrityError(
                    f"record {header.first_sequence + number} is of type {record_type}, "
                    "which version 1 of the format does not have"
                )
            if data_length != wanted:
                raise IntegrityError(f"record {header.first_sequence + number} has data of the wrong length")
            if record_type == RecordType.GROW and volume in self._volume_sizes:
                taken.grown[volume] = max(self._volume_sizes[volume], offset + length)
                self._volume_sizes[volume] = taken.grown[volume]
            size = self._volume_sizes.get(volume)
            if size is None or offset + length > size or (offset | length) & (SECTOR_BYTES - 1):
                raise IntegrityError(
                    f"record {header.first_sequence + number} lies outside of our volumes "
                    f"(volume {volume}, {length} bytes at {offset})"
                )
