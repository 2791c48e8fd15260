"""What a logical unit says of itself: INQUIRY, capacity, mode pages, supported commands, sense."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from target.errors import PeerError
from target.scsi import cdb, sense
from target.scsi.capacity import Capacity, decode_capacity_10, decode_capacity_16
from target.scsi.cdb import Opcode
from target.scsi.command import GOOD
from target.scsi.inquiry import Limits, VpdPage, decode_standard, decode_vpd, naa_identifier
from target.scsi.operations import OPERATIONS
from target.scsi.sense import decode_sense
from tests.unit.scsi.initiator import TARGET_PORT, Initiator, data_of, sense_of
from tests.unit.scsi.memory_volume import MemoryVolume

GIB = 1 << 30


def vpd(initiator: Initiator, page: VpdPage) -> bytes:
    return decode_vpd(data_of(initiator.execute(cdb.inquiry(0xFFFF, page=page))), page)


# INQUIRY


def test_standard_inquiry_names_the_product() -> None:
    data = data_of(Initiator().execute(cdb.inquiry()))
    assert len(data) == 96 == data[4] + 5
    got = decode_standard(data)
    assert (got.peripheral_qualifier, got.device_type, got.version) == (0, 0, 6)
    assert (got.vendor, got.product, got.revision) == ("REPLCTL", "VOLUME", "1")
    assert data[7] & 0x02, "CMDQUE"


@pytest.mark.parametrize(
    "built",
    [
        cdb.inquiry(5),
        cdb.inquiry(5, page=0x83),
        cdb.read_capacity_16(5),
        cdb.mode_sense_6(0x3F, 5),
        cdb.mode_sense_10(0x3F, 5),
        cdb.request_sense(5),
        cdb.report_supported_operation_codes(5),
        cdb.report_supported_operation_codes(5, options=1, opcode=0x28),
    ],
)
def test_allocation_length_cuts_and_zero_is_no_error(built: bytes) -> None:
    initiator = Initiator()
    cut = data_of(initiator.execute(built))
    assert len(cut) == 5
    whole = data_of(initiator.execute(built.replace(b"\x05", b"\xf0")))
    assert whole[:5] == cut
    assert data_of(initiator.execute(built.replace(b"\x05", b"\x00"))) == b""


def test_supported_pages_are_those_that_answer() -> None:
    initiator = Initiator()
    listed = vpd(initiator, VpdPage.SUPPORTED_PAGES)
    assert list(listed) == sorted(listed)
    for page in range(256):
        result = initiator.execute(cdb.inquiry(page=page))
        if page in listed:
            assert data_of(result)[1] == page
        else:
            assert sense_of(result) == sense.invalid_field_in_cdb(2)


def test_page_without_evpd_is_refused() -> None:
    built = bytes((Opcode.INQUIRY, 0, 0x83, 0, 96, 0))
    assert sense_of(Initiator().execute(built)) == sense.invalid_field_in_cdb(2)


def test_serial_number_is_the_volumes() -> None:
    initiator = Initiator(MemoryVolume(serial="abc-123"))
    assert vpd(initiator, VpdPage.UNIT_SERIAL_NUMBER) == b"abc-123"


def test_identification_follows_the_serial_alone() -> None:
    first, again, other = (
        vpd(Initiator(MemoryVolume(size, serial=serial)), VpdPage.DEVICE_IDENTIFICATION)
        for size, serial in ((1 << 20, "one"), (2 << 20, "one"), (1 << 20, "two"))
    )
    assert first == again
    assert first != other


def test_identification_designators() -> None:
    body = vpd(Initiator(MemoryVolume(serial="one")), VpdPage.DEVICE_IDENTIFICATION)
    designators: dict[tuple[int, int], tuple[int, bytes]] = {}
    while body:
        value = body[4 : 4 + body[3]]
        designators[body[1] >> 4 & 3, body[1] & 0xF] = (body[0] & 0xF, value)
        body = body[4 + len(value) :]
    naa = naa_identifier("one")
    assert naa[0] >> 4 == 3
    assert designators[0, 3] == (1, naa)
    assert designators[0, 1] == (2, b"REPLCTL VOLUME          one")
    assert designators[0, 8][1].rstrip(b"\0") == b"naa." + naa.hex().upper().encode()
    assert designators[1, 4] == (1, b"\0\0\0\1")
    assert designators[1, 8][1].rstrip(b"\0") == TARGET_PORT.encode()
    for kind, (code_set, value) in designators.items():
        if code_set == 3:
            assert len(value) % 4 == 0, kind
            assert value.endswith(b"\0"), kind


@pytest.mark.parametrize("block_size", [512, 4096])
def test_block_limits_are_those_that_are_enforced(block_size: int) -> None:
    limits = Limits(
        transfer_bytes_max=1 << 20,
        unmap_bytes_max=2 << 20,
        unmap_descriptors_max=7,
        write_same_bytes_max=4 << 20,
    )
    initiator = Initiator(MemoryVolume(8 << 20, block_size), limits=limits)
    body = vpd(initiator, VpdPage.BLOCK_LIMITS)
    assert len(body) == 60
    flags, _, granularity, transfer, _, _, unmap, descriptors, _, _, same = struct.unpack(
        ">BBHIIIIIIIQ20x", body
    )
    assert flags & 0x01, "WSNZ"
    assert granularity * block_size == 4096
    assert transfer * block_size == limits.transfer_bytes_max
    assert unmap * block_size == limits.unmap_bytes_max
    assert descriptors == 7
    assert same * block_size == limits.write_same_bytes_max
    assert initiator.execute(cdb.verify(0, transfer)) is GOOD
    assert sense_of(initiator.execute(cdb.verify(0, transfer + 1))).asc == 0x24
    assert initiator.execute(cdb.write_same(0, same), bytes(block_size)) is GOOD
    assert sense_of(initiator.execute(cdb.write_same(0, same + 1), bytes(block_size))).asc == 0x24


def test_characteristics_and_provisioning() -> None:
    initiator = Initiator()
    assert vpd(initiator, VpdPage.BLOCK_DEVICE_CHARACTERISTICS) == b"\0\1" + bytes(58)
    assert vpd(initiator, VpdPage.LOGICAL_BLOCK_PROVISIONING) == bytes((0, 0xE4, 2, 0))


@given(st.binary(max_size=80))
def test_inquiry_garbage_is_a_peer_error(data: bytes) -> None:
    if len(data) >= 36:
        assert decode_standard(data).vendor is not None
    else:
        with pytest.raises(PeerError):
            decode_standard(data)
    if len(data) < 4 or data[1] != 0x83:
        with pytest.raises(PeerError):
            decode_vpd(data, VpdPage.DEVICE_IDENTIFICATION)


# READ CAPACITY


@pytest.mark.parametrize("block_size", [512, 4096])
def test_read_capacity(block_size: int) -> None:
    initiator = Initiator(MemoryVolume(8 << 20, block_size))
    blocks = (8 << 20) // block_size
    assert decode_capacity_10(data_of(initiator.execute(cdb.read_capacity_10()))) == Capacity(
        blocks, block_size
    )
    data = data_of(initiator.execute(cdb.read_capacity_16()))
    assert len(data) == 32
    assert decode_capacity_16(data) == Capacity(blocks, block_size, 0, True, True)


def test_a_large_unit_sends_the_initiator_to_read_capacity_16() -> None:
    assert decode_capacity_10(Capacity(1 << 32, 512).encode_10()) is None
    assert decode_capacity_10(Capacity((1 << 32) - 1, 512).encode_10()) == Capacity((1 << 32) - 1, 512)
    assert decode_capacity_16(Capacity(1 << 40, 512).encode_16()).size_bytes == 1 << 49


@given(
    st.builds(
        Capacity,
        st.integers(1, 1 << 64),
        st.sampled_from((512, 4096)),
        st.integers(0, 15),
        st.booleans(),
        st.booleans(),
    )
)
def test_capacity_round_trip(capacity: Capacity) -> None:
    assert decode_capacity_16(capacity.encode_16()) == capacity
    assert decode_capacity_16(capacity.encode_16()[:16]) == capacity


@pytest.mark.parametrize("length", [0, 7, 15])
def test_short_capacity_is_a_peer_error(length: int) -> None:
    with pytest.raises(PeerError):
        decode_capacity_16(bytes(length))
    if length < 8:
        with pytest.raises(PeerError):
            decode_capacity_10(bytes(length))


def test_read_capacity_with_an_lba_is_refused() -> None:
    built = bytearray(cdb.read_capacity_10())
    built[5] = 1
    assert sense_of(Initiator().execute(bytes(built))) == sense.invalid_field_in_cdb(5, 0)


# MODE SENSE and MODE SELECT

CACHING, CONTROL, ALL = 0x08, 0x0A, 0x3F


def mode_pages(data: bytes, *, ten: bool) -> dict[int, bytes]:
    header = 8 if ten else 4
    descriptors = int.from_bytes(data[6:8], "big") if ten else data[3]
    assert (int.from_bytes(data[:2], "big") + 2 if ten else data[0] + 1) == len(data)
    rest = data[header + descriptors :]
    pages = {}
    while rest:
        pages[rest[0]] = rest[: rest[1] + 2]
        rest = rest[rest[1] + 2 :]
    return pages


def mode_page(initiator: Initiator, page: int, control: int = 0) -> bytes:
    data = data_of(initiator.execute(cdb.mode_sense_6(page, control=control)))
    return mode_pages(data, ten=False)[page]


@pytest.mark.parametrize("ten", [False, True])
@pytest.mark.parametrize("subpage", [0, 0xFF])
def test_mode_sense_of_all_pages(ten: bool, subpage: int) -> None:
    build = cdb.mode_sense_10 if ten else cdb.mode_sense_6
    pages = mode_pages(data_of(Initiator().execute(build(ALL, subpage=subpage))), ten=ten)
    assert {code: len(page) for code, page in pages.items()} == {CACHING: 20, CONTROL: 12}
    assert pages[CACHING][2] & 0x04, "WCE"


def test_mode_sense_says_dpofua_and_write_protection() -> None:
    initiator = Initiator()
    built = cdb.mode_sense_6(ALL)
    assert data_of(initiator.execute(built))[2] == 0x10
    initiator.volume.read_only_now = True
    assert data_of(initiator.execute(built))[2] == 0x90


@pytest.mark.parametrize("block_size", [512, 4096])
def test_block_descriptors(block_size: int) -> None:
    initiator = Initiator(MemoryVolume(1 << 20, block_size))
    blocks = (1 << 20) // block_size
    short = struct.pack(">II", blocks, block_size)
    assert data_of(initiator.execute(cdb.mode_sense_6(CACHING)))[3:12] == b"\x08" + short
    assert data_of(initiator.execute(cdb.mode_sense_10(CACHING)))[6:16] == b"\0\x08" + short
    long = bytearray(cdb.mode_sense_10(CACHING))
    long[1] = 0x10
    data = data_of(initiator.execute(bytes(long)))
    assert data[4] & 1, "LONGLBA"
    assert data[6:24] == b"\0\x10" + struct.pack(">Q4xI", blocks, block_size)
    without = bytearray(cdb.mode_sense_6(CACHING))
    without[1] = 0x08
    assert data_of(initiator.execute(bytes(without)))[3:5] == b"\0\x08"


def test_mode_sense_refuses_what_it_does_not_have() -> None:
    initiator = Initiator()
    assert sense_of(initiator.execute(cdb.mode_sense_6(0x01))) == sense.invalid_field_in_cdb(2, 5)
    assert sense_of(initiator.execute(cdb.mode_sense_6(ALL, subpage=1))) == sense.invalid_field_in_cdb(3)
    saved = initiator.execute(cdb.mode_sense_10(ALL, control=3))
    assert sense_of(saved) == sense.SAVING_PARAMETERS_NOT_SUPPORTED


def test_changeable_bits_are_wce_swp_and_d_sense_alone() -> None:
    initiator = Initiator()
    assert mode_page(initiator, CACHING, control=1)[2:] == b"\x04" + bytes(17)
    assert mode_page(initiator, CONTROL, control=1)[2:] == b"\x04\0\x08" + bytes(7)


def select(page: bytes, *, ten: bool = False, descriptor: bytes = b"") -> tuple[bytes, bytes]:
    """(CDB, data) of a MODE SELECT."""
    header = struct.pack(">6xH", len(descriptor)) if ten else struct.pack(">3xB", len(descriptor))
    data = header + descriptor + page
    return (cdb.mode_select_10 if ten else cdb.mode_select_6)(len(data)), data


def changed(page: bytes, byte: int, value: int) -> bytes:
    return page[:byte] + bytes((value,)) + page[byte + 1 :]


@pytest.mark.parametrize("ten", [False, True])
def test_without_write_cache_every_write_is_durable(ten: bool) -> None:
    initiator = Initiator()
    page = changed(mode_page(initiator, CACHING), 2, 0)
    assert initiator.execute(*select(page, ten=ten)) is GOOD
    assert initiator.volume.names() == ["flush"], "what was cached is made durable first"
    assert mode_page(initiator, CACHING) == page
    assert mode_page(initiator, CACHING, control=2)[2] == 0x04, "the default stays"
    initiator.volume.calls.clear()
    for built in (
        cdb.write(0, 1),
        cdb.block_command(Opcode.WRITE_16, 0, 1),
        cdb.block_command(Opcode.WRITE_6, 0, 1),
        cdb.write_same(0, 1),
    ):
        assert initiator.execute(built, b"\1" * 512) is GOOD
    assert initiator.execute(cdb.write_same(0, 1), bytes(512)) is GOOD
    assert [fua for *_, fua in initiator.volume.calls] == [True] * 5
    initiator.execute(*select(changed(page, 2, 4)))
    initiator.volume.calls.clear()
    initiator.execute(cdb.write(0, 1), bytes(512))
    assert initiator.volume.calls == [("write", 0, 512, False)]


def test_software_write_protection_refuses_every_way_to_write() -> None:
    initiator = Initiator()
    page = mode_page(initiator, CONTROL)
    assert initiator.execute(*select(changed(page, 4, 0x08))) is GOOD
    assert data_of(initiator.execute(cdb.mode_sense_6(ALL)))[2] & 0x80
    unmap_list = cdb.unmap_parameter_list([(0, 1)])
    for built, data in (
        (cdb.write(0, 1), bytes(512)),
        (cdb.block_command(Opcode.WRITE_6, 0, 1), bytes(512)),
        (cdb.block_command(Opcode.WRITE_12, 0, 1), bytes(512)),
        (cdb.block_command(Opcode.WRITE_16, 0, 1), bytes(512)),
        (cdb.block_command(Opcode.WRITE_AND_VERIFY_10, 0, 1), bytes(512)),
        (cdb.write_same(0, 1), bytes(512)),
        (cdb.write_same(0, 1), b"\1" * 512),
        (cdb.unmap(len(unmap_list)), unmap_list),
    ):
        assert sense_of(initiator.execute(built, data)) == sense.SOFTWARE_WRITE_PROTECTED
    assert len(data_of(initiator.execute(cdb.read(0, 1)))) == 512
    assert initiator.execute(*select(page)) is GOOD
    assert initiator.execute(cdb.write(0, 1), bytes(512)) is GOOD


def test_d_sense_chooses_the_format_of_sense_data_until_a_reset() -> None:
    initiator = Initiator()
    unit = initiator.device.logical_units[0]
    refusal = sense.lba_out_of_range(1 << 40)
    for chosen, encoded in ((0x06, refusal.encode_descriptor()), (0x02, refusal.encode_fixed())) * 2:
        control = changed(mode_page(initiator, CONTROL), 2, chosen)
        assert initiator.execute(*select(control)) is GOOD
        assert mode_page(initiator, CONTROL) == control
        assert initiator.device.encode_sense(0, refusal) == unit.encode_sense(refusal) == encoded
        # REQUEST SENSE has a bit of its own (SPC-4, *REQUEST SENSE command*), which this one does not change.
        assert data_of(initiator.execute(cdb.request_sense()))[0] == 0x70
        assert data_of(initiator.execute(cdb.request_sense(descriptor=True)))[0] == 0x72
    initiator.execute(*select(changed(control, 2, 0x06)))
    assert initiator.device.encode_sense(1, refusal) == refusal.encode_fixed(), "no unit is there"
    initiator.device.reset(0)
    assert initiator.device.encode_sense(0, refusal) == refusal.encode_fixed()


def test_mode_select_of_what_is_changes_nothing_and_tells_nobody() -> None:
    initiator = Initiator()
    other = Initiator(initiator.volume, device=initiator.device, name="other")
    pages = mode_page(initiator, CACHING) + mode_page(initiator, CONTROL)
    descriptor = struct.pack(">II", initiator.volume.size_bytes // 512, 512)
    assert initiator.execute(*select(pages, descriptor=descriptor)) is GOOD
    assert initiator.execute(cdb.mode_select_6(0)) is GOOD
    assert other.execute(cdb.test_unit_ready()) is GOOD
    assert not initiator.volume.calls


def test_other_initiators_are_told_of_changed_mode_parameters() -> None:
    initiator = Initiator()
    other = Initiator(initiator.volume, device=initiator.device, name="other")
    initiator.execute(*select(changed(mode_page(initiator, CACHING), 2, 0)))
    assert initiator.execute(cdb.test_unit_ready()) is GOOD
    assert sense_of(other.execute(cdb.test_unit_ready())) == sense.MODE_PARAMETERS_CHANGED
    assert other.execute(cdb.test_unit_ready()) is GOOD


def test_mode_select_refuses_and_changes_nothing() -> None:
    initiator = Initiator()
    caching, control = mode_page(initiator, CACHING), mode_page(initiator, CONTROL)
    off = changed(caching, 2, 0)
    in_list = sense.invalid_field_in_parameter_list
    cases = [
        (select(changed(caching, 2, 0x05)), in_list(4 + 2)),  # RCD cannot be changed
        (select(off + changed(control, 2, 0)), in_list(4 + 20 + 2)),  # nor GLTSD; the first page is not taken
        (select(off + changed(control, 1, 9)), in_list(4 + 20 + 1)),
        (select(off + b"\x48" + control[1:]), in_list(4 + 20)),  # a subpage
        (select(off + b"\x01\x0a" + bytes(10)), in_list(4 + 20)),  # a page that is not there
        (select(off, descriptor=struct.pack(">II", 1, 512)), in_list(4)),
        (select(off, descriptor=struct.pack(">II", 0, 4096)), in_list(4)),
        (select(off, descriptor=bytes(7)), in_list(4)),
        (select(off[:-1]), sense.PARAMETER_LIST_LENGTH_ERROR),
        (select(off + b"\x0a"), sense.PARAMETER_LIST_LENGTH_ERROR),
        ((cdb.mode_select_6(3), bytes(3)), sense.PARAMETER_LIST_LENGTH_ERROR),
        ((cdb.mode_select_6(24), bytes(23)), sense.PARAMETER_LIST_LENGTH_ERROR),
        ((cdb.mode_select_6(8), b"\0\0\0\x08" + bytes(4)), sense.PARAMETER_LIST_LENGTH_ERROR),
        ((cdb.mode_select_6(24, save=True), bytes(4) + off), sense.invalid_field_in_cdb(1, 0)),
        ((b"\x15\0\0\0\x18\0", bytes(4) + off), sense.invalid_field_in_cdb(1, 4)),
    ]
    for (built, data), expected in cases:
        assert sense_of(initiator.execute(built, data)) == expected, (built.hex(), data.hex())
    assert mode_page(initiator, CACHING) == caching
    assert mode_page(initiator, CONTROL) == control


# REPORT SUPPORTED OPERATION CODES


def test_all_supported_operation_codes_are_listed() -> None:
    data = data_of(Initiator().execute(cdb.report_supported_operation_codes()))
    assert struct.unpack_from(">I", data)[0] == len(data) - 4 == 8 * len(OPERATIONS)
    listed = {struct.unpack_from(">BxHxBH", data, at) for at in range(4, len(data), 8)}
    assert (0x28, 0, 0, 10) in listed
    assert (0x9E, 0x10, 1, 16) in listed
    assert len(listed) == len(OPERATIONS)


def test_all_supported_operation_codes_with_timeouts() -> None:
    built = bytearray(cdb.report_supported_operation_codes(0xFFFF))
    built[2] = 0x80
    data = data_of(Initiator().execute(bytes(built)))
    assert len(data) == 4 + 20 * len(OPERATIONS)
    assert data[4 + 5] & 0x02, "CTDP"
    assert data[12:14] == b"\0\x0a"


@pytest.mark.parametrize(
    ("options", "opcode", "action", "answer"),
    [
        (1, 0x28, 0, "0003000a 28 18 ffffffff 1f ffff 00"),
        (3, 0x28, 0, "0003000a 28 18 ffffffff 1f ffff 00"),
        (2, 0x9E, 0x10, "00030010 9e 10 0000000000000000 ffffffff 00 00"),
        (3, 0x9E, 0x10, "00030010 9e 10 0000000000000000 ffffffff 00 00"),
        (2, 0x9E, 0x13, "00010000"),
        (1, 0x2B, 0, "00010000"),
        (2, 0x2B, 1, "00010000"),
    ],
)
def test_one_operation_code(options: int, opcode: int, action: int, answer: str) -> None:
    built = cdb.report_supported_operation_codes(options=options, opcode=opcode, service_action=action)
    assert data_of(Initiator().execute(built)) == bytes.fromhex(answer)


@pytest.mark.parametrize(("options", "opcode"), [(1, 0x9E), (2, 0x28), (4, 0x28), (7, 0)])
def test_wrong_reporting_options_are_refused(options: int, opcode: int) -> None:
    built = cdb.report_supported_operation_codes(options=options, opcode=opcode)
    assert sense_of(Initiator().execute(built)) == sense.invalid_field_in_cdb(2, 2)


# The rest


@pytest.mark.parametrize("descriptor", [False, True])
def test_request_sense_without_a_condition(descriptor: bool) -> None:
    data = data_of(Initiator().execute(cdb.request_sense(descriptor=descriptor)))
    assert data[0] == (0x72 if descriptor else 0x70)
    assert decode_sense(data) == sense.NO_SENSE


def test_stop_makes_everything_durable_and_start_does_nothing() -> None:
    initiator = Initiator()
    assert initiator.execute(cdb.start_stop_unit(start=True)) is GOOD
    assert initiator.volume.names() == []
    assert initiator.execute(cdb.start_stop_unit(start=False)) is GOOD
    assert initiator.volume.names() == ["flush"]
    assert initiator.execute(cdb.test_unit_ready()) is GOOD


@pytest.mark.parametrize(("byte", "bit"), [(0x02, 1), (0x03, 1)])
def test_a_unit_that_is_not_removable_refuses_ejection(byte: int, bit: int) -> None:
    built = bytes((Opcode.START_STOP_UNIT, 0, 0, 0, byte, 0))
    assert sense_of(Initiator().execute(built)) == sense.invalid_field_in_cdb(4, bit)


def test_the_default_self_test_passes_and_others_are_refused() -> None:
    initiator = Initiator()
    assert initiator.execute(bytes((Opcode.SEND_DIAGNOSTIC, 4, 0, 0, 0, 0))) is GOOD
    plain = initiator.execute(bytes((Opcode.SEND_DIAGNOSTIC, 0, 0, 0, 0, 0)))
    assert sense_of(plain) == sense.invalid_field_in_cdb(1, 2)
    short = initiator.execute(bytes((Opcode.SEND_DIAGNOSTIC, 0x20, 0, 0, 0, 0)))
    assert sense_of(short) == sense.invalid_field_in_cdb(1, 5)
