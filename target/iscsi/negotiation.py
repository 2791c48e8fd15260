"""Operational text keys as a table: kind, range, default, rule, and where each is legal (RFC 7143 section
13). No I/O.

Both ends of a login use it: the target answers offers (`answer`), the initiator takes the answers in
(`accept`). The result is `Parameters`; a field keeps its default while nobody mentions its key (RFC 7143
6.2).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import Any

from target.iscsi.pdu import ProtocolError
from target.iscsi.text import parse_number

REJECT = "Reject"
IRRELEVANT = "Irrelevant"
NOT_UNDERSTOOD = "NotUnderstood"
INQUIRY = "?"
"""Offered instead of a value, it asks for the current one and negotiates nothing (RFC 7143 6.2)."""

MAX_RECV_DATA_SEGMENT_LENGTH = 262144
"""What we accept in one PDU, so that the 256 KiB write of a client with immediate data is one PDU."""


class Rule(Enum):
    """How the value comes about from what both sides say (RFC 7143 6.2.2)."""

    LIST = auto()  # the first of the offered values that the answerer supports
    MINIMUM = auto()
    MAXIMUM = auto()
    AND = auto()
    OR = auto()
    DECLARED = auto()  # each side tells; nobody answers


class Scope(Enum):
    """Where a key is legal."""

    SECURITY = auto()  # login, security stage
    OPERATIONAL = auto()  # login, operational stage, leading connection
    LOGIN = auto()  # any stage of the login
    FULL_FEATURE = auto()  # text requests
    ANY = auto()


@dataclass(frozen=True, slots=True)
class Key:
    """One row of the table."""

    rule: Rule
    scope: Scope
    field: str = ""
    ours: int | bool | tuple[str, ...] = 0
    low: int = 0
    high: int = 0
    irrelevant_in_discovery: bool = False


@dataclass(frozen=True, slots=True)
class Parameters:
    """What a connection agreed on. The defaults are those of RFC 7143 section 13."""

    header_digest: bool = False
    data_digest: bool = False
    max_connections: int = 1
    initial_r2t: bool = True
    immediate_data: bool = True
    max_burst_length: int = 262144
    first_burst_length: int = 65536
    peer_max_recv_data_segment_length: int = 8192
    default_time2wait: int = 2
    default_time2retain: int = 20
    max_outstanding_r2t: int = 1
    data_pdu_in_order: bool = True
    data_sequence_in_order: bool = True
    error_recovery_level: int = 0
    task_reporting: str = "RFC3720"
    protocol_level: int = 1


DIGESTS = ("CRC32C", "None")
_CHOICES: dict[str, bool | str] = {"CRC32C": True, "None": False}
"""What the parameters hold for a choice from a list; others stand for themselves."""

KEYS: dict[str, Key] = {
    "AuthMethod": Key(Rule.LIST, Scope.SECURITY),
    "InitiatorName": Key(Rule.DECLARED, Scope.LOGIN),
    "InitiatorAlias": Key(Rule.DECLARED, Scope.ANY),
    "TargetName": Key(Rule.DECLARED, Scope.LOGIN),
    "TargetAlias": Key(Rule.DECLARED, Scope.ANY),
    "TargetAddress": Key(Rule.DECLARED, Scope.ANY),
    "TargetPortalGroupTag": Key(Rule.DECLARED, Scope.LOGIN),
    "SessionType": Key(Rule.DECLARED, Scope.LOGIN),
    "SendTargets": Key(Rule.DECLARED, Scope.FULL_FEATURE),
    "HeaderDigest": Key(Rule.LIST, Scope.OPERATIONAL, "header_digest", DIGESTS),
    "DataDigest": Key(Rule.LIST, Scope.OPERATIONAL, "data_digest", DIGESTS),
    "MaxRecvDataSegmentLength": Key(
        Rule.DECLARED, Scope.ANY, "peer_max_recv_data_segment_length", 0, 512, 0xFFFFFF
    ),
    "MaxConnections": Key(
        Rule.MINIMUM, Scope.OPERATIONAL, "max_connections", 1, 1, 65535, irrelevant_in_discovery=True
    ),
    "InitialR2T": Key(Rule.OR, Scope.OPERATIONAL, "initial_r2t", False, irrelevant_in_discovery=True),
    "ImmediateData": Key(Rule.AND, Scope.OPERATIONAL, "immediate_data", True, irrelevant_in_discovery=True),
    "MaxBurstLength": Key(
        Rule.MINIMUM,
        Scope.OPERATIONAL,
        "max_burst_length",
        1 << 20,
        512,
        0xFFFFFF,
        irrelevant_in_discovery=True,
    ),
    "FirstBurstLength": Key(
        Rule.MINIMUM,
        Scope.OPERATIONAL,
        "first_burst_length",
        262144,
        512,
        0xFFFFFF,
        irrelevant_in_discovery=True,
    ),
    "DefaultTime2Wait": Key(Rule.MAXIMUM, Scope.OPERATIONAL, "default_time2wait", 0, 0, 3600),
    "DefaultTime2Retain": Key(Rule.MINIMUM, Scope.OPERATIONAL, "default_time2retain", 0, 0, 3600),
    "MaxOutstandingR2T": Key(
        Rule.MINIMUM, Scope.OPERATIONAL, "max_outstanding_r2t", 16, 1, 65535, irrelevant_in_discovery=True
    ),
    "DataPDUInOrder": Key(
        Rule.OR, Scope.OPERATIONAL, "data_pdu_in_order", True, irrelevant_in_discovery=True
    ),
    "DataSequenceInOrder": Key(
        Rule.OR, Scope.OPERATIONAL, "data_sequence_in_order", True, irrelevant_in_discovery=True
    ),
    "ErrorRecoveryLevel": Key(Rule.MINIMUM, Scope.OPERATIONAL, "error_recovery_level", 0, 0, 2),
    "TaskReporting": Key(
        Rule.LIST, Scope.OPERATIONAL, "task_reporting", ("RFC3720",), irrelevant_in_discovery=True
    ),
    "iSCSIProtocolLevel": Key(
        Rule.MINIMUM, Scope.OPERATIONAL, "protocol_level", 1, 0, 31, irrelevant_in_discovery=True
    ),
    "X#NodeArchitecture": Key(Rule.DECLARED, Scope.ANY),
}

OBSOLETE_KEYS = {"IFMarker": "No", "OFMarker": "No", "IFMarkInt": REJECT, "OFMarkInt": REJECT}
"""RFC 7143 13.25: initiators of RFC 3720 still send them, and none may be answered NotUnderstood."""


def answer(parameters: Parameters, name: str, offer: str, discovery: bool) -> tuple[Parameters, str | None]:
    """Answer one operational key offered to us: the new parameters and the value to send back, None for
    nothing.
    """
    key = KEYS.get(name)
    if key is None or not key.field:
        return parameters, OBSOLETE_KEYS.get(name, NOT_UNDERSTOOD)
    if discovery and key.irrelevant_in_discovery:
        return parameters, IRRELEVANT
    if offer == INQUIRY:
        return parameters, _current(parameters, key)
    ours = key.ours
    if isinstance(ours, tuple):
        choice = next((value for value in offer.split(",") if value in ours), None)
        if choice is None:
            return parameters, REJECT
        return _with(parameters, key, _CHOICES.get(choice, choice)), choice
    if isinstance(ours, bool):
        theirs = _parse_bool(offer)
        if theirs is None:
            return parameters, REJECT
        result = theirs and ours if key.rule is Rule.AND else theirs or ours
        return _with(parameters, key, result), "Yes" if result else "No"
    number = _parse_in_range(key, offer)
    if number is None:
        return parameters, REJECT
    if key.rule is Rule.DECLARED:
        return _with(parameters, key, number), None
    number = min(number, ours) if key.rule is Rule.MINIMUM else max(number, ours)
    return _with(parameters, key, number), str(number)


def _current(parameters: Parameters, key: Key) -> str:
    """The value in force, as text. What a side only declares is our own."""
    if key.rule is Rule.DECLARED:
        return str(MAX_RECV_DATA_SEGMENT_LENGTH)
    value = getattr(parameters, key.field)
    if isinstance(key.ours, tuple):
        return next((name for name, stands in _CHOICES.items() if stands is value), str(value))
    if isinstance(value, bool):
        return "Yes" if value else "No"
    return str(value)


def accept(parameters: Parameters, name: str, value: str) -> Parameters:
    """Take in the peer's answer to an offer of ours, or what it declares."""
    key = KEYS.get(name)
    if key is None or not key.field or value in (IRRELEVANT, NOT_UNDERSTOOD):
        return parameters
    if value == REJECT:
        raise ProtocolError(f"the peer rejected {name}")
    if isinstance(key.ours, tuple):
        if value not in key.ours:
            raise ProtocolError(f"{name}={value} was not offered")
        return _with(parameters, key, _CHOICES.get(value, value))
    if isinstance(key.ours, bool):
        flag = _parse_bool(value)
        if flag is None:
            raise ProtocolError(f"{name}={value} is neither Yes nor No")
        return _with(parameters, key, flag)
    number = _parse_in_range(key, value)
    if number is None:
        raise ProtocolError(f"{name}={value} is out of range")
    return _with(parameters, key, number)


def _with(parameters: Parameters, key: Key, value: int | bool | str) -> Parameters:
    changes: dict[str, Any] = {key.field: value}
    return replace(parameters, **changes)


def _parse_bool(value: str) -> bool | None:
    return {"Yes": True, "No": False}.get(value)


def _parse_in_range(key: Key, value: str) -> int | None:
    number = parse_number(value)
    return number if number is not None and key.low <= number <= key.high else None
