"""The superblock: byte for byte as documented, and never half believed."""

from __future__ import annotations

import struct
from dataclasses import replace

import pytest
from crc32c import crc32c
from hypothesis import given
from hypothesis import strategies as st

from target.journal.record import EpochStart, Lsn, SequenceNumber
from target.journal.superblock import (
    EPOCHS_MAX,
    MIRRORS_MAX,
    SUPERBLOCK_BYTES,
    VOLUMES_MAX,
    Flag,
    MirrorEntry,
    MirrorState,
    Position,
    RestoredMarker,
    Role,
    Superblock,
    VolumeEntry,
    decode,
    newest,
)
from tests.unit.journal.format_document import fields, listed_sizes, rows, section
from tests.unit.journal.packs import GROUP_ID

U32 = st.integers(0, 2**32 - 1)
U64 = st.integers(0, 2**64 - 1)
LSNS = U64.map(Lsn)
SEQUENCES = U64.map(SequenceNumber)
DIGESTS = st.binary(min_size=32, max_size=32)
NAMES = st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=16)

# The fields by offset, as the document's table names them; tables and CRC follow.
CORE: dict[int, bytes] = {
    0: b"REPLJRNL",
    8: bytes.fromhex("01000000"),
    12: bytes.fromhex("05000000"),
    16: bytes(range(16)),
    32: bytes.fromhex("0900000000000000"),
    40: bytes.fromhex("0000110000000000"),
    48: bytes.fromhex("0000000300000000"),
    56: bytes.fromhex("00100000"),
    60: bytes.fromhex("02000000"),
    64: bytes.fromhex("0300000000000000"),
    72: bytes.fromhex("efbeadde00000000"),
    80: bytes.fromhex("0010000000000000"),
    88: bytes.fromhex("0b00000000000000"),
    96: bytes.fromhex("0020000000000000"),
    104: bytes.fromhex("0c00000000000000"),
    112: bytes.fromhex("0030000000000000"),
    120: bytes.fromhex("0d00000000000000"),
    128: bytes(range(32)),
    160: bytes.fromhex("0080000000000000"),
    168: bytes.fromhex("11000000"),
    172: bytes.fromhex("10000000"),
    176: bytes.fromhex("00000100"),
    180: bytes.fromhex("01000000"),
    184: bytes.fromhex("01000000"),
    188: bytes.fromhex("01000000"),
    192: bytes.fromhex("0e00000000000000"),
    200: bytes.fromhex("0000ef64ba3f4918"),
    208: b"before payday".ljust(64, b"\0"),
    272: b"site-a".ljust(64, b"\0"),
    336: (0x77).to_bytes(8, "little"),
}
VOLUME = [
    bytes.fromhex("0100"),
    bytes(2),
    bytes.fromhex("00020000"),
    bytes.fromhex("0000400000000000"),
    bytes.fromhex("02000000"),
    bytes.fromhex("03000000"),
    bytes(8),
    b"data".ljust(64, b"\0"),
]
EPOCH = [
    bytes.fromhex("0300000000000000"),
    bytes.fromhex("efbeadde00000000"),
    bytes.fromhex("0200000000000000"),
    bytes.fromhex("4d00000000000000"),
    bytes.fromhex("0a00000000000000"),
    bytes(range(32, 64)),
    bytes.fromhex("0000ef64ba3f4918"),
]
MIRROR = [
    b"site-b".ljust(64, b"\0"),
    b"\x02",
    b"\x04",
    bytes(6),
    bytes.fromhex("0f00000000000000"),
    bytes.fromhex("1000000000000000"),
    bytes.fromhex("1100000000000000"),
    bytes.fromhex("1200000000000000"),
    bytes(24),
]
GOLDEN = Superblock(
    group_id=GROUP_ID,
    ring_offset=0x110000,
    ring_bytes=0x3000000,
    bitmap_offset=32768,
    bitmap_pages=17,
    bitmap_slots=16,
    extent_bytes=65536,
    volumes=(VolumeEntry(1, "data", 4 << 20, 512, 2, 3),),
    generation=9,
    role=Role.SECONDARY,
    flags=Flag.CONSISTENT | Flag.SUPERSEDED,
    epoch=3,
    reign=0xDEADBEEF,
    checkpoint_lsn=Lsn(4096),
    checkpoint_sequence=SequenceNumber(11),
    durable_lsn=Lsn(8192),
    durable_sequence=SequenceNumber(12),
    tail=Position(Lsn(12288), SequenceNumber(13), bytes(range(32))),
    epochs=(
        EpochStart(3, 0xDEADBEEF, 2, 77, SequenceNumber(10), bytes(range(32, 64)), 1_750_000_000_000_000_000),
    ),
    mirrors=(
        MirrorEntry(
            "site-b",
            MirrorState.PAIR,
            4,
            SequenceNumber(15),
            SequenceNumber(16),
            SequenceNumber(17),
            SequenceNumber(18),
        ),
    ),
    restored_marker=RestoredMarker(SequenceNumber(14), 1_750_000_000_000_000_000, "before payday"),
    primary="site-a",
    copy_after=SequenceNumber(0x77),
)


def sealed(block: bytearray) -> bytes:
    """With the CRC that fits what stands there now."""
    block[-4:] = struct.pack("<I", crc32c(bytes(block[:-4])))
    return bytes(block)


# -- the document --


def test_a_superblock_is_byte_for_byte_what_the_document_says() -> None:
    documented = fields("Superblock")
    assert [(offset, len(value)) for offset, value in CORE.items()] == documented[:-1]
    assert documented[-1] == (SUPERBLOCK_BYTES - 4, 4)
    assert [len(value) for value in VOLUME] == listed_sizes("Volume")
    assert [len(value) for value in EPOCH] == listed_sizes("Epoch")
    assert [len(value) for value in MIRROR] == listed_sizes("Mirror")
    tables = {row[2].split(",")[0]: (int(row[0]), row[1]) for row in rows("Superblock") if "each" in row[1]}
    assert tables == {
        "volumes": (512, "96 each"),
        "epochs": (8192, "80 each"),
        "mirrors": (13312, "128 each"),
    }
    expected = bytearray(SUPERBLOCK_BYTES)
    for start, parts in ((0, list(CORE.values())), (512, VOLUME), (8192, EPOCH), (13312, MIRROR)):
        whole = b"".join(parts)
        expected[start : start + len(whole)] = whole
    expected[-4:] = bytes.fromhex("73cc3849")
    assert GOLDEN.encode() == bytes(expected)


def test_the_limits_and_numbers_are_those_of_the_document() -> None:
    text = section("Superblock")
    assert f"number of volumes, at most {VOLUMES_MAX}" in text
    assert f"number of epochs, at most {EPOCHS_MAX}" in text
    assert f"number of mirrors, at most {MIRRORS_MAX}" in text
    roles = ", ".join(f"{role.value} {role.name.lower()}" for role in Role)
    assert f"role: {roles}" in text
    states = ", ".join(f"{state.value} {state.name.lower()}" for state in MirrorState)
    assert f"state (1: {states})" in text
    for bit, flag in enumerate(Flag):
        assert flag.value == 1 << bit
        assert f"bit {bit} {flag.name.lower() if flag.name else ''}" in text


def test_the_tables_do_not_overlap() -> None:
    assert 512 + 96 * VOLUMES_MAX <= 8192
    assert 8192 + EpochStart.SIZE * EPOCHS_MAX <= 13312
    assert 13312 + 128 * MIRRORS_MAX <= SUPERBLOCK_BYTES - 4


# -- there and back --


@st.composite
def superblocks(draw: st.DrawFn) -> Superblock:
    volumes = st.builds(VolumeEntry, st.integers(1, 2**16 - 1), NAMES, U64, U32, U32, U32)
    epochs = st.builds(EpochStart, U64, U64, U64, U64, SEQUENCES, DIGESTS, U64)
    mirrors = st.builds(
        MirrorEntry,
        NAMES,
        st.sampled_from(MirrorState),
        st.integers(0, 255),
        SEQUENCES,
        SEQUENCES,
        SEQUENCES,
        SEQUENCES,
    )
    return Superblock(
        group_id=draw(st.binary(min_size=16, max_size=16)),
        ring_offset=draw(U64),
        ring_bytes=4096 * draw(st.integers(1, 2**40)),
        bitmap_offset=draw(U64),
        bitmap_pages=draw(U32),
        bitmap_slots=draw(U32),
        extent_bytes=draw(U32),
        volumes=tuple(draw(st.lists(volumes, max_size=4))),
        generation=draw(U64),
        role=draw(st.sampled_from(Role)),
        flags=Flag(draw(st.integers(0, 7))),
        epoch=draw(U64),
        reign=draw(U64),
        checkpoint_lsn=draw(LSNS),
        checkpoint_sequence=draw(SEQUENCES),
        durable_lsn=draw(LSNS),
        durable_sequence=draw(SEQUENCES),
        tail=draw(st.builds(Position, LSNS, SEQUENCES, DIGESTS)),
        epochs=tuple(draw(st.lists(epochs, max_size=4))),
        mirrors=tuple(draw(st.lists(mirrors, max_size=4))),
        restored_marker=draw(st.builds(RestoredMarker, SEQUENCES, U64, NAMES)),
        primary=draw(NAMES),
    )


@given(superblock=superblocks())
def test_what_is_encoded_is_decoded(superblock: Superblock) -> None:
    assert decode(superblock.encode()) == superblock


def test_full_tables_come_back() -> None:
    full = replace(
        GOLDEN,
        volumes=tuple(VolumeEntry(n, f"volume{n}", n << 20, 512, n, 1) for n in range(1, VOLUMES_MAX + 1)),
        epochs=GOLDEN.epochs * EPOCHS_MAX,
        mirrors=GOLDEN.mirrors * MIRRORS_MAX,
    )
    assert decode(full.encode()) == full


@given(name=st.text(st.characters(exclude_characters="\0", codec="utf-8"), min_size=20, max_size=90))
def test_a_name_that_is_too_long_is_cut_and_stays_readable(name: str) -> None:
    """A peer's marker may have any name; it must never make our own superblock unreadable."""
    again = decode(replace(GOLDEN, restored_marker=RestoredMarker(SequenceNumber(1), 2, name)).encode())
    assert again is not None
    kept = again.restored_marker.name
    assert name.startswith(kept)
    assert len(kept.encode()) > 60 or kept == name


# -- garbage --


@given(bit=st.integers(0, SUPERBLOCK_BYTES * 8 - 1))
def test_one_flipped_bit_makes_no_superblock(bit: int) -> None:
    block = bytearray(GOLDEN.encode())
    block[bit >> 3] ^= 1 << (bit & 7)
    assert decode(block) is None


@given(start=st.sampled_from([b"", b"REPLJRNL", b"REPLJRNL\x01\0\0\0"]), rest=st.binary(max_size=400))
def test_garbage_is_no_superblock(start: bytes, rest: bytes) -> None:
    assert decode(start + rest) is None
    assert decode((start + rest).ljust(SUPERBLOCK_BYTES, b"\xff")) is None


@pytest.mark.parametrize("length", [0, SUPERBLOCK_BYTES - 1, SUPERBLOCK_BYTES + 1])
def test_a_block_of_another_length_is_no_superblock(length: int) -> None:
    assert decode(GOLDEN.encode().ljust(SUPERBLOCK_BYTES + 1, b"\0")[:length]) is None


@pytest.mark.parametrize(
    ("offset", "value"),
    [
        (8, 2),
        (56, 512),
        (60, 3),
        (180, VOLUMES_MAX + 1),
        (184, EPOCHS_MAX + 1),
        (188, MIRRORS_MAX + 1),
        (48, 512),
        (13312 + 64, 0),
        (13312 + 64, 6),
        (512 + 32, 0xFF),
    ],
)
def test_what_version_1_does_not_know_is_refused_though_the_crc_is_right(offset: int, value: int) -> None:
    block = bytearray(GOLDEN.encode())
    struct.pack_into("<I", block, offset, value)
    assert decode(sealed(block)) is None


def test_an_empty_ring_is_refused() -> None:
    assert decode(replace(GOLDEN, ring_bytes=0).encode()) is None


# -- two copies --


def test_the_newer_of_two_good_copies_counts() -> None:
    older, newer = GOLDEN.with_generation(4), GOLDEN.with_generation(5)
    assert newest([older, newer]) == newer
    assert newest([newer, older]) == newer
    assert newest([older, None]) == older
    assert newest([None, None]) is None
