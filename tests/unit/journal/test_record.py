"""Packs and records are what docs/journal-format.md says, and garbage is never taken for a pack."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from target.errors import IntegrityError
from target.journal.record import (
    BLOCK_BYTES,
    NO_DIGEST,
    PACK_DATA_BYTES_MAX,
    RECORDS_PER_PACK_MAX,
    EpochStart,
    Marker,
    MarkerKind,
    RecordType,
    SequenceNumber,
    chain_digest,
    check_data,
    decode_header,
    describe,
    encode_header,
    encode_pad,
    relocate,
    relocated,
)
from target.journal.ring import NewRecord
from tests.unit.journal.format_document import fields, listed_sizes, rows, section
from tests.unit.journal.packs import GROUP_ID, update, whole_pack

U16 = st.integers(0, 2**16 - 1)
U64 = st.integers(0, 2**64 - 1)
DIGESTS = st.binary(min_size=32, max_size=32)

# The fields of a header block of one record, by offset, as the document's tables name them.
HEADER: dict[int, bytes] = {
    0: b"REPLPACK",
    8: bytes.fromhex("0100"),
    10: bytes.fromhex("0100"),
    12: bytes.fromhex("00020000"),
    16: bytes(range(16)),
    32: bytes.fromhex("0300000000000000"),
    40: bytes.fromhex("efbeadde00000000"),
    48: bytes.fromhex("2a00000000000000"),
    56: bytes.fromhex("0000ef64ba3f4918"),
    64: bytes(range(100, 132)),
    96: bytes.fromhex("0000010000000000"),
    104: bytes.fromhex("00f0000000000000"),
    112: bytes(8),
    120: bytes(4),
    124: bytes.fromhex("c0a44a92"),
}
DESCRIPTOR: dict[int, bytes] = {
    0: b"\x01",
    1: b"\x00",
    2: bytes.fromhex("0200"),
    4: bytes.fromhex("00020000"),
    8: bytes.fromhex("0010000000000000"),
    16: bytes.fromhex("0002000000000000"),
    24: bytes.fromhex("00100000"),
    28: bytes.fromhex("5aee10ae"),
}
GOLDEN_DATA = bytes(range(256)) * 2


def joined(parts: dict[int, bytes]) -> bytes:
    return b"".join(parts.values())


def golden_header() -> bytes:
    return encode_header(
        group_id=GROUP_ID,
        epoch=3,
        reign=0xDEADBEEF,
        first_sequence=42,
        time_ns=1_750_000_000_000_000_000,
        previous_digest=bytes(range(100, 132)),
        lsn=0x10000,
        durable_lsn=0xF000,
        descriptors=[describe(RecordType.UPDATE, 0, 2, 4096, 512, GOLDEN_DATA, BLOCK_BYTES)],
        data_length=512,
    )


def blocked(raw: bytes) -> bytes:
    return raw.ljust(BLOCK_BYTES, b"\0")


# -- the document --


def test_a_header_is_byte_for_byte_what_the_document_says() -> None:
    assert [(offset, len(value)) for offset, value in HEADER.items()] == fields("Pack header block")
    assert [(offset, len(value)) for offset, value in DESCRIPTOR.items()] == fields("Record descriptor")
    assert golden_header() == joined(HEADER) + joined(DESCRIPTOR)


@pytest.mark.parametrize("title", ["Pack header block", "Record descriptor"])
def test_the_tables_have_no_gaps(title: str) -> None:
    end = 0
    for offset, size in fields(title):
        assert offset == end
        end += size


def test_the_document_names_every_record_type_with_its_number() -> None:
    documented = {
        int(row[0]): row[1].upper().replace(" ", "_")
        for row in rows("Record descriptor")
        if len(row) == 4 and row[0].isdigit()
    }
    assert documented == {kind.value: kind.name for kind in RecordType}


def test_marker_and_epoch_have_the_sizes_of_the_document() -> None:
    assert listed_sizes("Epoch") == [8, 8, 8, 8, 8, 32, 8]
    assert EpochStart.SIZE == 80
    marker = next(row for row in rows("Record descriptor") if row[1] == "marker")
    assert marker[2].startswith("kind (1), zeros (7), time in ns (8), name (UTF-8)")
    encoded = Marker(MarkerKind.OPERATOR, 0x0102030405060708, "näme").encode()
    assert encoded == bytes.fromhex("01 00000000000000 0807060504030201") + "näme".encode()


def test_a_header_block_holds_as_many_records_as_the_document_says() -> None:
    assert "1 to 124" in section("Pack header block")
    assert RECORDS_PER_PACK_MAX == 124
    header, block = whole_pack([update(n, 512) for n in range(124)])
    assert len(header.raw) == 128 + 32 * 124 == BLOCK_BYTES
    assert check_data(header, block) is None


# -- headers --


@given(
    group_id=st.binary(min_size=16, max_size=16),
    numbers=st.tuples(U64, U64, U64, U64, U64, U64),
    previous=DIGESTS,
    payloads=st.lists(
        st.tuples(st.sampled_from(RecordType), st.integers(0, 255), U16, U64, U64, st.binary(max_size=64)),
        min_size=1,
        max_size=RECORDS_PER_PACK_MAX,
    ),
)
def test_what_is_encoded_is_decoded(
    group_id: bytes,
    numbers: tuple[int, int, int, int, int, int],
    previous: bytes,
    payloads: list[tuple[RecordType, int, int, int, int, bytes]],
) -> None:
    epoch, reign, first_sequence, time_ns, lsn, durable_lsn = numbers
    encoded, place = [], BLOCK_BYTES
    for kind, flags, volume, offset, length, data in payloads:
        encoded.append(describe(kind, flags, volume, offset, length, data, place))
        place += len(data)
    raw = encode_header(
        group_id=group_id,
        epoch=epoch,
        reign=reign,
        first_sequence=first_sequence,
        time_ns=time_ns,
        previous_digest=previous,
        lsn=lsn,
        durable_lsn=durable_lsn,
        descriptors=encoded,
        data_length=place - BLOCK_BYTES,
    )
    header = decode_header(blocked(raw))
    assert header is not None
    assert (header.group_id, header.epoch, header.reign) == (group_id, epoch, reign)
    assert (header.first_sequence, header.time_ns, header.previous_digest) == (
        first_sequence,
        time_ns,
        previous,
    )
    assert (header.lsn, header.durable_lsn) == (lsn, durable_lsn)
    assert header.record_count == len(payloads)
    assert header.last_sequence == first_sequence + len(payloads) - 1
    assert header.total_length == BLOCK_BYTES + -(-(place - BLOCK_BYTES) // BLOCK_BYTES) * BLOCK_BYTES
    assert [
        (record.type, record.flags, record.volume, record.offset, record.length)
        for record in header.descriptors()
    ] == [payload[:5] for payload in payloads]
    pack = blocked(raw) + b"".join(payload[5] for payload in payloads)
    assert check_data(header, pack) is None


@given(bit=st.integers(0, (128 + 32) * 8 - 1))
def test_one_flipped_bit_makes_no_header(bit: int) -> None:
    block = bytearray(blocked(golden_header()))
    block[bit >> 3] ^= 1 << (bit & 7)
    assert decode_header(block) is None


@given(garbage=st.binary(max_size=300))
def test_garbage_is_no_header(garbage: bytes) -> None:
    assert decode_header(garbage) is None
    assert decode_header(blocked(garbage)) is None


@given(start=st.sampled_from([b"REPLPACK\x01\x00", b"REPLPADD\x01\x00"]), rest=st.binary(max_size=300))
def test_garbage_behind_a_magic_is_no_header(start: bytes, rest: bytes) -> None:
    assert decode_header(blocked(start + rest)) is None


def test_a_short_block_is_no_header() -> None:
    assert decode_header(blocked(golden_header())[:-1]) is None


@pytest.mark.parametrize(
    ("record_count", "data_length"),
    [(RECORDS_PER_PACK_MAX + 1, 0), (1, PACK_DATA_BYTES_MAX + 1), (0, 0)],
)
def test_counts_beyond_the_limits_are_refused_though_the_crc_is_right(
    record_count: int, data_length: int
) -> None:
    raw = encode_header(
        group_id=GROUP_ID,
        epoch=1,
        reign=1,
        first_sequence=1,
        time_ns=1,
        previous_digest=NO_DIGEST,
        lsn=0,
        durable_lsn=0,
        descriptors=[describe(RecordType.ZERO, 0, 1, 0, 512, b"", BLOCK_BYTES)] * record_count,
        data_length=data_length,
    )
    assert decode_header(raw.ljust(2 * BLOCK_BYTES, b"\0")) is None


# -- pads --


@given(lsn=U64, durable_lsn=U64, blocks=st.integers(1, 5000), next_sequence=U64)
def test_a_pad_says_how_long_it_is(lsn: int, durable_lsn: int, blocks: int, next_sequence: int) -> None:
    raw = encode_pad(
        group_id=GROUP_ID,
        epoch=3,
        reign=7,
        next_sequence=next_sequence,
        lsn=lsn,
        durable_lsn=durable_lsn,
        length=blocks * BLOCK_BYTES,
    )
    header = decode_header(blocked(raw))
    assert header is not None
    assert header.is_pad
    assert header.total_length == blocks * BLOCK_BYTES
    assert (header.lsn, header.durable_lsn, header.first_sequence) == (lsn, durable_lsn, next_sequence)
    assert list(header.descriptors()) == []


@pytest.mark.parametrize("length", [0, 512, BLOCK_BYTES - 1, BLOCK_BYTES + 1, 3 * BLOCK_BYTES + 512])
def test_a_pad_of_no_whole_blocks_is_refused(length: int) -> None:
    raw = encode_pad(
        group_id=GROUP_ID, epoch=3, reign=7, next_sequence=1, lsn=0, durable_lsn=0, length=length
    )
    assert decode_header(blocked(raw)) is None


# -- the chain --


def test_the_chain_digest_is_what_the_document_says() -> None:
    raw = golden_header()
    assert "SHA-256 over bytes 0 to 96 followed by bytes 128 to 128 + 32 n" in " ".join(
        section("Pack header block").split()
    )
    assert chain_digest(raw) == hashlib.sha256(raw[:96] + raw[128:]).digest()


@given(lsn=U64, durable_lsn=U64)
def test_a_pack_has_one_digest_wherever_it_stands(lsn: int, durable_lsn: int) -> None:
    header, block = whole_pack([update(1), update(2)])
    elsewhere = decode_header(blocked(relocate(header, lsn, durable_lsn)))
    assert elsewhere is not None
    assert (elsewhere.lsn, elsewhere.durable_lsn) == (lsn, durable_lsn)
    assert elsewhere == relocated(header, lsn, durable_lsn)
    assert elsewhere.digest == header.digest
    assert elsewhere.raw[:96] + elsewhere.raw[128:] == block[:96] + block[128 : 128 + 64]


@given(byte=st.integers(0, 159).filter(lambda byte: not 96 <= byte < 128), flip=st.integers(1, 255))
def test_the_digest_covers_everything_that_is_not_local(byte: int, flip: int) -> None:
    raw = bytearray(golden_header())
    digest = chain_digest(raw)
    raw[byte] ^= flip
    assert chain_digest(raw) != digest


# -- data --


@given(record=st.integers(0, 2), byte=st.integers(0, 511), flip=st.integers(1, 255))
def test_the_bad_record_is_named(record: int, byte: int, flip: int) -> None:
    header, block = whole_pack([update(n, 512) for n in range(3)])
    spoiled = bytearray(block)
    spoiled[BLOCK_BYTES + record * 512 + byte] ^= flip
    assert check_data(header, block) is None
    assert check_data(header, spoiled) == record


@pytest.mark.parametrize("place", [0, BLOCK_BYTES - 1, BLOCK_BYTES + 1, 2**32 - 1])
def test_data_outside_of_their_pack_are_bad_data(place: int) -> None:
    raw = encode_header(
        group_id=GROUP_ID,
        epoch=1,
        reign=1,
        first_sequence=1,
        time_ns=1,
        previous_digest=NO_DIGEST,
        lsn=0,
        durable_lsn=0,
        descriptors=[
            describe(RecordType.ZERO, 0, 1, 0, 512, b"", 0),
            describe(RecordType.UPDATE, 0, 1, 0, 512, bytes(512), place),
        ],
        data_length=512,
    )
    header = decode_header(blocked(raw))
    assert header is not None
    assert check_data(header, raw.ljust(3 * BLOCK_BYTES, b"\0")) == 1


def test_records_without_data_need_none() -> None:
    header, block = whole_pack([NewRecord(RecordType.ZERO, 0, 1, 0, 1 << 40, b"")])
    assert header.total_length == len(block) == BLOCK_BYTES
    assert check_data(header, block) is None


# -- markers and epochs --


@given(kind=st.sampled_from(MarkerKind), time_ns=U64, name=st.text(max_size=80))
def test_markers_come_back(kind: MarkerKind, time_ns: int, name: str) -> None:
    marker = Marker(kind, time_ns, name)
    assert Marker.decode(marker.encode()) == marker
    assert Marker.decode(memoryview(marker.encode())) == marker


@given(numbers=st.tuples(U64, U64, U64, U64, U64, U64), digest=DIGESTS)
def test_epochs_come_back(numbers: tuple[int, int, int, int, int, int], digest: bytes) -> None:
    epoch, reign, parent_epoch, parent_reign, fork, time_ns = numbers
    start = EpochStart(epoch, reign, parent_epoch, parent_reign, SequenceNumber(fork), digest, time_ns)
    assert len(start.encode()) == EpochStart.SIZE
    assert EpochStart.decode(memoryview(start.encode())) == start


@given(garbage=st.binary(max_size=120))
def test_garbage_gives_a_marker_or_an_integrity_error(garbage: bytes) -> None:
    try:
        marker = Marker.decode(garbage)
    except IntegrityError:
        return
    assert garbage[:1] + garbage[8:] == marker.encode()[:1] + marker.encode()[8:]


@given(garbage=st.binary(max_size=120).filter(lambda garbage: len(garbage) != EpochStart.SIZE))
def test_an_epoch_of_another_length_is_refused(garbage: bytes) -> None:
    with pytest.raises(IntegrityError):
        EpochStart.decode(garbage)
