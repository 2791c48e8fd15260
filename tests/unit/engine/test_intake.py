"""What comes over the SAN link is taken whole, in order and unchanged, or not at all."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from target.errors import IntegrityError
from target.journal.record import (
    BLOCK_BYTES,
    NO_DIGEST,
    EpochStart,
    Lsn,
    Marker,
    MarkerKind,
    PackHeader,
    RecordType,
    SequenceNumber,
    encode_pad,
)
from target.journal.ring import NewRecord
from target.journal.superblock import Position
from target.san.intake import Intake, Taken
from tests.unit.journal.packs import GROUP_ID, TIME_NS, update, whole_pack

VOLUMES = {1: 1 << 20, 2: 512}
START = Position(Lsn(40 * BLOCK_BYTES), SequenceNumber(10), b"\x44" * 32)
EPOCH = EpochStart(4, 99, 3, 7, SequenceNumber(14), b"\x55" * 32, TIME_NS)
DIGEST_RECORD = NewRecord(RecordType.VERIFY, 0, 1, 0, 65536, b"\x66" * 32)


def pad(lsn: int, next_sequence: int, blocks: int) -> bytes:
    raw = encode_pad(
        group_id=GROUP_ID,
        epoch=3,
        reign=7,
        next_sequence=next_sequence,
        lsn=lsn,
        durable_lsn=0,
        length=blocks * BLOCK_BYTES,
    )
    return raw.ljust(blocks * BLOCK_BYTES, b"\0")


def stream() -> tuple[bytes, list[PackHeader]]:
    """Three packs with a pad among them, as a peer's ring holds them."""
    position = START
    content, headers = b"", []
    turns = [
        [update(1), update(2, 512, 512, volume=1), NewRecord(RecordType.ZERO, 0, 2, 0, 512, b"")],
        [
            NewRecord(RecordType.MARKER, 0, 0, 0, 0, Marker(MarkerKind.OPERATOR, TIME_NS, "payday").encode()),
            NewRecord(RecordType.EPOCH, 0, 0, 0, 0, EPOCH.encode()),
        ],
        [NewRecord(RecordType.BASE_ZERO, 0, 1, 65536, 65536, b""), DIGEST_RECORD, update(3, 1024)],
    ]
    for number, records in enumerate(turns):
        header, block = whole_pack(
            records,
            first_sequence=position.sequence + 1,
            previous_digest=position.digest,
            lsn=position.lsn,
        )
        content += block
        headers.append(header)
        position = Position(Lsn(position.lsn + len(block)), header.last_sequence, header.digest)
        if number == 0:
            filling = pad(position.lsn, position.sequence + 1, 3)
            content += filling
            position = position._replace(lsn=Lsn(position.lsn + len(filling)))
    return content, headers


CONTENT, HEADERS = stream()
LENGTHS = [header.total_length for header in HEADERS]


def intake() -> Intake:
    return Intake(START, GROUP_ID, VOLUMES)


def fed(pieces: list[bytes]) -> tuple[list[tuple[PackHeader, bytes]], list[EpochStart], Intake]:
    reader = intake()
    packs: list[tuple[PackHeader, bytes]] = []
    epochs: list[EpochStart] = []
    for piece in pieces:
        taken = reader.feed(piece)
        packs += [(header, bytes(pack)) for header, pack in taken.packs]
        epochs += taken.epochs
    return packs, epochs, reader


def one(records: list[NewRecord], **changes: object) -> Taken:
    """Feed a pack that stands where the next one is expected, but for `changes`."""
    values: dict[str, object] = {
        "first_sequence": START.sequence + 1,
        "previous_digest": START.digest,
        "lsn": START.lsn,
    }
    values.update(changes)
    _, block = whole_pack(records, **values)  # type: ignore[arg-type]
    return intake().feed(block)


# -- in whatever pieces it comes --


def test_fed_whole_everything_is_taken() -> None:
    packs, epochs, reader = fed([CONTENT])
    assert [header for header, _ in packs] == HEADERS
    assert [len(pack) for _, pack in packs] == LENGTHS
    assert epochs == [EPOCH]
    last = HEADERS[-1]
    assert reader.position == (START.lsn + len(CONTENT), last.last_sequence, last.digest)


def test_fed_byte_by_byte_the_same_is_taken() -> None:
    assert fed([CONTENT[at : at + 1] for at in range(len(CONTENT))])[:2] == fed([CONTENT])[:2]


@given(cuts=st.lists(st.integers(0, len(CONTENT)), max_size=12).map(sorted))
def test_fed_in_any_pieces_the_same_is_taken(cuts: list[int]) -> None:
    pieces = [CONTENT[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(CONTENT)], strict=True)]
    assert fed(pieces)[:2] == fed([CONTENT])[:2]


def test_a_pack_that_has_not_arrived_whole_is_not_taken() -> None:
    reader = intake()
    assert reader.feed(CONTENT[: LENGTHS[0] - 1]).packs == []
    assert reader.position == START
    (taken,) = reader.feed(CONTENT[LENGTHS[0] - 1 : LENGTHS[0]]).packs
    assert taken[0] == HEADERS[0]


def test_trailing_data_that_are_no_pack_are_refused_and_what_came_before_was_taken() -> None:
    packs, _, reader = fed([CONTENT])
    assert len(packs) == 3
    with pytest.raises(IntegrityError, match="no pack"):
        reader.feed(bytes(BLOCK_BYTES))


def test_a_buffer_that_is_used_again_does_no_harm_to_what_is_kept() -> None:
    """The rest of a read is kept until the next one: as a copy."""
    reader = intake()
    buffer = bytearray(CONTENT[: LENGTHS[0] - 100])
    reader.feed(memoryview(buffer))
    buffer[:] = b"\xee" * len(buffer)
    (taken,) = reader.feed(CONTENT[LENGTHS[0] - 100 : LENGTHS[0]]).packs
    assert bytes(taken[1]) == CONTENT[: LENGTHS[0]]


# -- nothing wrong passes --

_USED = sorted(
    {
        byte
        for start, header in zip(
            [0, LENGTHS[0] + 3 * BLOCK_BYTES, LENGTHS[0] + 3 * BLOCK_BYTES + LENGTHS[1]], HEADERS, strict=True
        )
        for byte in (
            *range(start, start + len(header.raw)),
            *range(start + BLOCK_BYTES, start + BLOCK_BYTES + header.data_length),
        )
    }
    | set(range(LENGTHS[0], LENGTHS[0] + 128))
)
"""Every byte of the stream that says something: headers, descriptors, data, the pad's header."""


@settings(max_examples=300)
@given(byte=st.sampled_from(_USED), bit=st.integers(0, 7))
def test_a_flipped_bit_anywhere_is_refused(byte: int, bit: int) -> None:
    spoiled = bytearray(CONTENT)
    spoiled[byte] ^= 1 << bit
    with pytest.raises(IntegrityError):
        fed([bytes(spoiled)])


@settings(max_examples=60)
@given(
    byte=st.integers(0, len(CONTENT) - 1).filter(lambda byte: byte not in set(_USED)), bit=st.integers(0, 7)
)
def test_a_flipped_bit_in_a_filling_changes_no_record(byte: int, bit: int) -> None:
    spoiled = bytearray(CONTENT)
    spoiled[byte] ^= 1 << bit
    packs, epochs, _ = fed([bytes(spoiled)])
    assert [header for header, _ in packs] == HEADERS
    assert epochs == [EPOCH]


@given(garbage=st.binary(max_size=3 * BLOCK_BYTES))
def test_garbage_gives_an_integrity_error_and_nothing_else(garbage: bytes) -> None:
    reader = intake()
    try:
        taken = reader.feed(garbage)
    except IntegrityError:
        return
    assert len(garbage) < BLOCK_BYTES
    assert taken.packs == []


def test_what_came_before_the_wrong_pack_stays_counted() -> None:
    reader = intake()
    reader.feed(CONTENT[: LENGTHS[0]])
    where = reader.position
    with pytest.raises(IntegrityError):
        reader.feed(bytes(BLOCK_BYTES))
    assert reader.position == where
    assert where.sequence == HEADERS[0].last_sequence


def test_another_group_is_refused() -> None:
    with pytest.raises(IntegrityError, match="another group"):
        one([update(1)], group_id=bytes(16))


def test_a_wrong_chain_is_refused() -> None:
    with pytest.raises(IntegrityError, match="chain does not fit"):
        one([update(1)], previous_digest=NO_DIGEST)


@pytest.mark.parametrize(
    "changes",
    [{"first_sequence": START.sequence}, {"first_sequence": START.sequence + 2}, {"lsn": START.lsn + 4096}],
    ids=["again", "a gap", "another place"],
)
def test_a_pack_that_is_not_the_next_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(IntegrityError, match="used again"):
        one([update(1)], **changes)


def test_a_pad_that_is_not_the_next_is_refused() -> None:
    with pytest.raises(IntegrityError, match="used again"):
        intake().feed(pad(START.lsn, START.sequence + 2, 1))


def test_a_pad_is_no_part_of_the_chain() -> None:
    reader = intake()
    assert reader.feed(pad(START.lsn, START.sequence + 1, 2)).packs == []
    assert reader.position == (START.lsn + 2 * BLOCK_BYTES, START.sequence, START.digest)


OUTSIDE = {
    "unknown volume": update(1, 512, 0, volume=3),
    "the whole group's volume": update(1, 512, 0, volume=0),
    "behind the end": update(1, 1024, (1 << 20) - 512),
    "zeros behind the end": NewRecord(RecordType.ZERO, 0, 2, 512, 512, b""),
    "base behind the end": NewRecord(RecordType.BASE, 0, 2, 0, 1024, bytes(1024)),
    "base zero behind the end": NewRecord(RecordType.BASE_ZERO, 0, 1, 1 << 63, 512, b""),
    "digest of what is not there": DIGEST_RECORD._replace(offset=1 << 20),
    "no whole sector": update(1, 511),
    "between sectors": update(1, 512, 100),
}


@pytest.mark.parametrize("what", OUTSIDE)
def test_a_record_outside_of_our_volumes_is_refused(what: str) -> None:
    with pytest.raises(IntegrityError, match="outside of our volumes"):
        one([update(1), OUTSIDE[what]])


WRONG = {
    "update without data": NewRecord(RecordType.UPDATE, 0, 1, 0, 512, b""),
    "short update": NewRecord(RecordType.UPDATE, 0, 1, 0, 1024, bytes(512)),
    "long base": NewRecord(RecordType.BASE, 0, 1, 0, 512, bytes(1024)),
    "zeros with data": NewRecord(RecordType.ZERO, 0, 1, 0, 512, bytes(512)),
    "base zero with data": NewRecord(RecordType.BASE_ZERO, 0, 1, 0, 512, bytes(512)),
    "short digest": DIGEST_RECORD._replace(data=bytes(31)),
    "type 0": NewRecord(0, 0, 1, 0, 512, bytes(512)),
    "type 8": NewRecord(8, 0, 1, 0, 512, bytes(512)),
    "type 255": NewRecord(255, 0, 0, 0, 0, b""),
    "short epoch": NewRecord(RecordType.EPOCH, 0, 0, 0, 0, EPOCH.encode()[:-1]),
    "empty marker": NewRecord(RecordType.MARKER, 0, 0, 0, 0, b""),
    "marker of no kind": NewRecord(RecordType.MARKER, 0, 0, 0, 0, b"\x09" + bytes(15)),
    "marker whose name is no text": NewRecord(RecordType.MARKER, 0, 0, 0, 0, bytes(16) + b"\xff\xfe"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_record_that_cannot_be_restored_is_refused_though_its_crc_is_right(what: str) -> None:
    with pytest.raises(IntegrityError):
        one([update(1), WRONG[what]])


def test_records_up_to_the_end_of_a_volume_are_taken() -> None:
    taken = one(
        [
            update(1, 512, (1 << 20) - 512),
            NewRecord(RecordType.ZERO, 0, 1, 0, 1 << 20, b""),
            NewRecord(RecordType.BASE, 0, 2, 0, 512, bytes(512)),
        ]
    )
    assert len(taken.packs) == 1
