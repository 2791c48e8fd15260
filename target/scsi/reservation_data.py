"""Parameter data of PERSISTENT RESERVE IN and OUT, both ways. SPC-4. Pure.

Parameter list of PERSISTENT RESERVE OUT, 24 bytes:

    0-7    RESERVATION KEY
    8-15   SERVICE ACTION RESERVATION KEY
    20     SPEC_I_PT (3), ALL_TG_PT (2), APTPL (0)
    24-27  with SPEC_I_PT: length of the TransportIDs that follow

and of REGISTER AND MOVE, 24 bytes and a TransportID:

    0-15   the keys, as above
    17     UNREG (1), APTPL (0)
    18-19  RELATIVE TARGET PORT IDENTIFIER
    20-23  length of the TransportID

TransportID of an iSCSI initiator port (SPC-4 7.6.4.6): 45h (format 01b, protocol 5h), 0, length (2 bytes),
"name,i,0xISID" with a zero byte, padded to a multiple of four, 20 bytes at least. With 05h (format 00b) it is
a name alone, and stands for all ports of that name that are known.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterable

from target.scsi.command import Nexus
from target.scsi.reservations import Reservations
from target.scsi.sense import (
    INSUFFICIENT_REGISTRATION_RESOURCES,
    PARAMETER_LIST_LENGTH_ERROR,
    Sense,
    invalid_field_in_parameter_list,
)

PARAMETER_LIST_BYTES = 24
SPEC_I_PT, ALL_TG_PT, APTPL = 0x08, 0x04, 0x01
MOVE_UNREG = 0x02
_MOVE_PORT_BYTE, _MOVE_LENGTH_BYTE = 18, 20
_ISCSI_PORT, _ISCSI_DEVICE = 0x45, 0x05
_R_HOLDER = 0x01
_NAME_FIELD_MIN = 20
_ISID = ",i,0x"

_PORTS_LENGTH_BYTE, _PORTS_BYTE = 24, 28

_HEADER = struct.Struct(">II")
_READ_RESERVATION = struct.Struct(">Q4xxB2x")
_FULL_STATUS = struct.Struct(">Q4xBB4xHI")
_KEYS = struct.Struct(">QQ4xB3x")
_MOVE = struct.Struct(">QQxBHI")

_TYPE_MASK = 0xEA01  # all six types (SPC-4, *Persistent reservation type mask*)
_SIP_C, _ATP_C, _PTPL_C, _TMV = 0x08, 0x04, 0x01, 0x80
# TEST UNIT READY is always allowed; MODE SENSE, REPORT SUPPORTED OPERATION CODES and the like unless access
# is exclusive.
_ALLOW_COMMANDS = 3 << 4


def encode_keys(state: Reservations) -> bytes:
    body = b"".join(key.to_bytes(8, "big") for key in state.keys.values())
    return _HEADER.pack(state.generation & 0xFFFFFFFF, len(body)) + body


def encode_reservation(state: Reservations) -> bytes:
    body = b""
    if state.type is not None:
        key = 0 if state.holder is None else state.keys[state.holder]
        body = _READ_RESERVATION.pack(key, state.type)
    return _HEADER.pack(state.generation & 0xFFFFFFFF, len(body)) + body


def encode_capabilities(state: Reservations, *, can_persist: bool) -> bytes:
    """RESERVE (6) is not compatible with registrations (CRH = 0)."""
    capable = _SIP_C | _ATP_C | (_PTPL_C if can_persist else 0)
    return struct.pack(">HBBH2x", 8, capable, _TMV | _ALLOW_COMMANDS | state.persists, _TYPE_MASK)


def encode_full_status(state: Reservations) -> bytes:
    body = b"".join(_full_status(state, nexus, key) for nexus, key in state.keys.items())
    return _HEADER.pack(state.generation & 0xFFFFFFFF, len(body)) + body


def _full_status(state: Reservations, nexus: Nexus, key: int) -> bytes:
    holds = state.holds(nexus)
    transport_id = encode_transport_id(nexus.initiator_port)
    scope_and_type = state.type if holds and state.type is not None else 0
    flags = _R_HOLDER if holds else 0
    return (
        _FULL_STATUS.pack(key, flags, scope_and_type, nexus.relative_target_port, len(transport_id))
        + transport_id
    )


def encode_transport_id(initiator_port: str) -> bytes:
    name = initiator_port.encode() + b"\0"
    name = name.ljust(max(_NAME_FIELD_MIN, (len(name) + 3) // 4 * 4), b"\0")
    kind = _ISCSI_PORT if _ISID in initiator_port else _ISCSI_DEVICE
    return struct.pack(">BxH", kind, len(name)) + name


def decode_transport_id(data: bytes) -> str | None:
    """The initiator port's name; None when it is not that of an iSCSI port."""
    text = _name_in(data, _ISCSI_PORT)
    if text is None:
        return None
    name, separator, isid = text.partition(_ISID)
    return name + separator + isid.lower() if separator else None


def _name_in(data: bytes, kind: int) -> str | None:
    if len(data) < 4 or data[0] != kind:
        return None
    (length,) = struct.unpack_from(">H", data, 2)
    name = data[4 : 4 + length]
    if len(name) < length or length % 4 or b"\0" not in name:
        return None
    try:
        return name[: name.index(b"\0")].decode()
    except UnicodeDecodeError:
        return None


def decode_initiator_ports(data: bytes, known: Collection[str], count_max: int) -> list[str] | Sense:
    """The initiator ports that a list with SPEC_I_PT names, `known` ones for a name alone."""
    if len(data) < _PORTS_BYTE:
        return PARAMETER_LIST_LENGTH_ERROR
    if int.from_bytes(data[_PORTS_LENGTH_BYTE:_PORTS_BYTE], "big") != len(data) - _PORTS_BYTE:
        return invalid_field_in_parameter_list(_PORTS_LENGTH_BYTE)
    ports: list[str] = []
    at = _PORTS_BYTE
    while at < len(data):
        end = at + 4 + int.from_bytes(data[at + 2 : at + 4], "big")
        transport_id = data[at:end]
        port, name = decode_transport_id(transport_id), _name_in(transport_id, _ISCSI_DEVICE)
        found = [port] if port else [each for each in known if each.partition(_ISID)[0] == name]
        if not found:
            return invalid_field_in_parameter_list(at)
        ports += found
        if len(ports) > count_max:
            return INSUFFICIENT_REGISTRATION_RESOURCES
        at = end
    return ports


def decode_keys(data: bytes) -> tuple[int, int, int]:
    """(reservation key, service action key, flags)."""
    reservation, service_action, flags = _KEYS.unpack_from(data)
    return reservation, service_action, flags


def decode_move(data: bytes, ports: Iterable[tuple[int, str]]) -> tuple[int, int, int, Nexus] | Sense:
    """(reservation key, service action key, flags, to whom); `ports` are (relative identifier, name)."""
    reservation, service_action, flags, port, length = _MOVE.unpack_from(data)
    name = decode_transport_id(data[PARAMETER_LIST_BYTES:])
    if name is None or length != len(data) - PARAMETER_LIST_BYTES:
        return invalid_field_in_parameter_list(_MOVE_LENGTH_BYTE)
    for relative, target_port in ports:
        if relative == port:
            return reservation, service_action, flags, Nexus(name, target_port, relative)
    return invalid_field_in_parameter_list(_MOVE_PORT_BYTE)
