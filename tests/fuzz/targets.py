"""What is fuzzed: one function for everything that reads bytes from outside.

Each takes any bytes and returns, or the code is wrong: what is read raises nothing but its declared error,
which is caught here, and keeps the invariants that are asserted here.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
from crc32c import crc32c

from target.config import load_config
from target.control import messages
from target.control.lines import LineDecoder, encode_line
from target.errors import IntegrityError, OperatorError, PeerError
from target.iscsi import negotiation
from target.iscsi.chap import ChapCredentials
from target.iscsi.negotiation import Parameters
from target.iscsi.pdu import BHS_BYTES, Opcode, ProtocolError, decode_ahs
from target.iscsi.session import COMMAND_WINDOW, TASKS_MAX
from target.iscsi.text import decode_binary, decode_text, encode_text, parse_number
from target.iscsi.url import parse_url
from target.iscsi.write_collection import COLLECTED_BYTES_MAX
from target.journal import superblock
from target.journal.format import read_superblock
from target.journal.record import BLOCK_BYTES, EpochStart, Marker, check_data, decode_header
from target.scsi.command import Nexus, ScsiCommand, ScsiResult, Status
from target.scsi.device_server import Device
from target.scsi.logical_unit import LogicalUnit
from target.scsi.sense import decode_sense
from tests.simulation.sim_disk import SimDisk
from tests.unit.iscsi.wire import ISID, Wire, node
from tests.unit.journal.packs import TIME_NS, commit, new_journal, reopen, small_journal, update
from tests.unit.scsi.memory_volume import MemoryVolume

CHAP = ChapCredentials("alice", "alice-secret-12", "target", "target-secret-12")
_PARAMETERS: tuple[dict[str, str], ...] = (
    {},
    {"InitialR2T": "No", "FirstBurstLength": "512", "MaxBurstLength": "1024"},
    {"InitialR2T": "Yes", "ImmediateData": "No", "MaxBurstLength": "512", "MaxOutstandingR2T": "3"},
)
_SECOND_REQUEST_AT = 0xFE


def pdu(data: bytes) -> None:
    """A session, fed PDU by PDU: headers are any bytes, but lengths are true and CmdSN is near."""
    if not data:
        return
    wire = Wire([node(MemoryVolume(1 << 16, hold=bool(data[0] & 0x80)))])
    wire.login(**_PARAMETERS[data[0] % len(_PARAMETERS)])
    session = wire.connection.session
    assert session is not None
    position = 1
    try:
        while position + BHS_BYTES <= len(data) and not session.ending:
            header = bytearray(data[position : position + BHS_BYTES])
            position += BHS_BYTES
            # A byte each for the length and the distance to the next command: chance seldom gets them right.
            length = header[7]
            ahs_words = header[4] & 0x03
            header[4:8] = bytes((ahs_words, 0, 0, length))
            if header[0] & 0x3F != Opcode.DATA_OUT:
                near = session.exp_cmd_sn + (header[27] ^ 0x80) - 0x80 & 0xFFFFFFFF
                header[24:28] = near.to_bytes(4, "big")
            body = data[position : position + ahs_words * 4 + (length + 3 & ~3)]
            position += len(body)
            wire.send(bytes(header) + body.ljust(ahs_words * 4 + (length + 3 & ~3), b"\0"))
            _check_session(wire)
    except ProtocolError:
        pass
    wire.take()
    wire.connection.close()
    assert wire.registry.budget.taken_bytes == 0
    assert len(wire.registry) == 0


def _check_session(wire: Wire) -> None:
    session = wire.connection.session
    assert session is not None
    assert session.max_cmd_sn - session.exp_cmd_sn + 1 & 0xFFFFFFFF <= COMMAND_WINDOW
    assert len(session.held_commands.by_cmd_sn) <= COMMAND_WINDOW
    assert len(session.tasks) + len(session.task_management.aborted) <= TASKS_MAX
    first_bursts = COMMAND_WINDOW * session.admission.parameters.first_burst_length
    assert wire.registry.budget.taken_bytes <= COLLECTED_BYTES_MAX + first_bursts
    for received in wire.take():
        assert len(received.data) <= session.peer_segment


def stream(data: bytes) -> None:
    """A session, fed bytes as they are."""
    wire = Wire([node()])
    wire.login()
    try:
        wire.send(data)
    except ProtocolError:
        return
    if wire.connection.session is not None:
        _check_session(wire)


def login(data: bytes) -> None:
    """Login Requests on a fresh connection: stages from a byte, text as it is, cut into two requests."""
    if len(data) < 3:
        return
    wire = Wire([node(chap=CHAP if data[0] & 1 else None)])
    first, _, second = data[2:].partition(bytes([_SECOND_REQUEST_AT]))
    for flags, text in ((data[0] & 0xFE, first), (data[1], second)):
        if wire.ended is not None or wire.connection.session is not None:
            break
        header = bytes([0x43, flags, 0, 0]) + len(text).to_bytes(4, "big") + ISID + bytes(2)
        try:
            wire.send(header.ljust(BHS_BYTES, b"\0") + text + bytes(-len(text) % 4))
        except ProtocolError:
            break
        wire.take()
    admitted = wire.connection.session
    assert admitted is None or not (data[0] & 1) or admitted.node is None, "nobody gets in without a proof"
    assert wire.ended is None or "secret-12" not in wire.ended
    assert wire.connection.initiator_name.isprintable()


def text(data: bytes) -> None:
    """Text keys, and the values in them."""
    try:
        pairs = decode_text(data)
    except ProtocolError:
        return
    assert decode_text(encode_text(pairs)) == pairs
    parameters = Parameters()
    for name, value in pairs:
        parameters, reply = negotiation.answer(parameters, name, value, discovery=False)
        assert reply is None or len(reply) < 100
        number = parse_number(value)
        assert number is None or 0 <= number < 1 << 67
        for read, arguments in ((decode_binary, (value,)), (negotiation.accept, (Parameters(), name, value))):
            try:
                read(*arguments)
            except ProtocolError:
                pass
    assert 512 <= parameters.peer_max_recv_data_segment_length <= 0xFFFFFF
    assert 512 <= parameters.max_burst_length <= 1 << 20
    assert parameters.data_pdu_in_order
    assert parameters.data_sequence_in_order


class _Command(ScsiCommand):
    def __init__(self, cdb: bytes, data_out: bytes) -> None:
        super().__init__(cdb, data_out, Nexus("iqn.2024-01.example:initiator,i,0x800102030000", "target"))
        self.results: list[ScsiResult] = []

    def complete(self, result: ScsiResult) -> None:
        self.results.append(result)


def cdb(data: bytes) -> None:
    """A CDB and its data, to a unit that is ready: answered once, and sense data can be read."""
    if len(data) < 2:
        return
    device = Device({0: LogicalUnit(MemoryVolume(1 << 20, 4096 if data[0] & 0x40 else 512))})
    device.execute(0, _Command(bytes(6), b""))
    length = data[0] & 0x1F
    command = _Command(data[1 : 1 + length], data[1 + length :])
    device.execute(data[0] >> 7, command)
    (result,) = command.results
    assert (result.sense is not None) == (result.status == Status.CHECK_CONDITION)
    if result.sense is not None:
        assert decode_sense(result.sense.encode_fixed()).asc == result.sense.asc
        assert decode_sense(result.sense.encode_descriptor()).key == result.sense.key
    assert sum(map(len, result.data_in)) <= 1 << 20


def journal(data: bytes) -> None:
    """Packs, superblocks and what is in records, as a disk may hold them. The checksums are made good: with
    them, chance would come no further than the first test.
    """
    if not data:
        return
    body = data[1:]
    if data[0] % 3 == 0:
        _pack(body)
    elif data[0] % 3 == 1:
        _superblock(body)
    for kind in (Marker, EpochStart):
        try:
            kind.decode(body)
        except IntegrityError:
            pass


def _pack(raw: bytes) -> None:
    for block in (raw, _with_seal(raw)):
        header = decode_header(block)
        if header is None:
            continue
        assert header.total_length % BLOCK_BYTES == 0
        assert header.is_pad or header.last_sequence >= header.first_sequence - 1
        for _ in header.descriptors():
            pass
        if not header.is_pad and len(block) >= header.total_length:
            check_data(header, memoryview(block)[: header.total_length])


def _with_seal(raw: bytes) -> bytes:
    """The CRC of a header covers its fixed part and the descriptors it counts (docs/journal-format.md)."""
    block = bytearray(raw.ljust(BLOCK_BYTES, b"\0"))
    end = 128 + 32 * int.from_bytes(block[10:12], "little")
    block[124:128] = bytes(4)
    block[124:128] = crc32c(bytes(block[:end])).to_bytes(4, "little")
    return bytes(block)


def _superblock(edits: bytes) -> None:
    block = bytearray(_edited(_SUPERBLOCK.encode(), edits))
    block[-4:] = crc32c(bytes(block[:-4])).to_bytes(4, "little")
    decoded = superblock.decode(block)
    if decoded is not None:
        assert superblock.decode(decoded.encode()) == decoded


def _edited(image: bytes, edits: bytes) -> bytes:
    """Each four bytes of `edits` change one: three are where, one is what."""
    changed = bytearray(image)
    for start in range(0, len(edits) - 3, 4):
        place = int.from_bytes(edits[start : start + 3], "little") % len(changed)
        changed[place] = edits[start + 3]
    return bytes(changed)


def recovery(data: bytes) -> None:
    """A journal volume with three packs, changed anywhere: what can be trusted is found, or it is refused."""
    disk = SimDisk(len(_VOLUME))
    disk.pwritev([_edited(_VOLUME, data)], 0)
    disk.flush()
    try:
        reopen(disk)
    except (IntegrityError, AssertionError) as error:
        # `reopen` asserts that there is a superblock; without one there is nothing to recover.
        if isinstance(error, AssertionError) and read_superblock(disk) is not None:
            raise


def _volume() -> bytes:
    disk, made = new_journal(16 * BLOCK_BYTES)
    for fill in range(3):
        made.append([update(fill)], TIME_NS)
    commit(made)
    return bytes(disk.pread(disk.size_bytes, 0))


_MESSAGES = tuple(
    kind
    for kind in vars(messages).values()
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct) and kind is not msgspec.Struct
)


def control(data: bytes) -> None:
    """Lines on a control socket, and each message that they may hold."""
    decoder = LineDecoder()
    try:
        found = decoder.feed(data)
    except PeerError:
        return
    for message in found:
        assert LineDecoder().feed(encode_line(message)) == [message]
        for kind in _MESSAGES:
            try:
                msgspec.convert(message, kind)
            except msgspec.ValidationError:
                pass


def site_file(data: bytes) -> None:
    """A site.toml, and an address and a URL as people write them."""
    with TemporaryDirectory(prefix="fuzz-") as directory:
        path = Path(directory) / "site.toml"
        path.write_bytes(data)
        try:
            load_config(path)
        except OperatorError:
            pass
    try:
        url = parse_url(data.decode("utf-8", errors="replace"))
    except OperatorError:
        return
    chance = f"{url.user} {url.portal} {url.target_name}"  # may hold the same characters as the secret
    assert not url.secret or len(url.secret) < 4 or url.secret in chance or url.secret not in repr(url)


def sense(data: bytes) -> None:
    """Sense data from a target, and additional header segments from an initiator."""
    try:
        str(decode_sense(data))
    except PeerError:
        pass
    try:
        decode_ahs(data)
    except ProtocolError:
        pass


TARGETS: dict[str, Callable[[bytes], None]] = {
    function.__name__: function
    for function in (pdu, stream, login, text, cdb, journal, recovery, control, site_file, sense)
}

_SUPERBLOCK = small_journal(16 * BLOCK_BYTES)[1]
_VOLUME = _volume()
