"""Text segments of Login and Text PDUs: `key=value` pairs, each ended by a zero byte (RFC 7143 section
6.1). No I/O.

A pair may be split over PDUs that have the C (continue) bit; `TextCollector` puts them together, within a
bound.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable

from target.iscsi.pdu import ProtocolError
from target.volume import Buffer

KEY_BYTES_MAX = 63
VALUE_BYTES_MAX = 8192
TEXT_BYTES_MAX = 65536
"""More than any exchange of known keys needs; bounds what an unknown peer can make us hold."""

Pairs = list[tuple[str, str]]

_NUMBER = re.compile(r"[0-9]{1,20}|0[xX][0-9a-fA-F]{1,16}")
_HEX = re.compile(r"0[xX][0-9a-fA-F]*")


def encode_text(pairs: Iterable[tuple[str, str]]) -> bytes:
    return b"".join(f"{key}={value}".encode() + b"\0" for key, value in pairs)


def decode_text(raw: Buffer) -> Pairs:
    """The pairs, in order. A last pair without its zero byte is accepted, as is padding with zero bytes."""
    try:
        text = bytes(raw).decode("utf-8")
    except UnicodeDecodeError as error:
        raise ProtocolError(f"text segment is not UTF-8: {error}") from error
    pairs: Pairs = []
    for item in text.split("\0"):
        if not item:
            continue
        key, equals, value = item.partition("=")
        if not equals or not key or len(key) > KEY_BYTES_MAX or len(value) > VALUE_BYTES_MAX:
            raise ProtocolError(f"text segment holds no key=value pair at {item[:KEY_BYTES_MAX]!r}")
        pairs.append((key, value))
    return pairs


def parse_number(value: str) -> int | None:
    """A decimal or 0x constant, None if it is neither (RFC 7143 6.1: less than 2**64)."""
    if not _NUMBER.fullmatch(value):
        return None
    return int(value, 16 if value[:2] in ("0x", "0X") else 10)


def encode_binary(value: bytes) -> str:
    return "0x" + value.hex()


def decode_binary(value: str) -> bytes:
    """A hex (0x) or base64 (0b) constant."""
    try:
        if _HEX.fullmatch(value):
            digits = value[2:]
            return bytes.fromhex(digits if len(digits) % 2 == 0 else "0" + digits)
        if value[:2] in ("0b", "0B"):
            return base64.b64decode(value[2:], validate=True)
    except (ValueError, binascii.Error) as error:
        raise ProtocolError(f"malformed binary value: {error}") from error
    raise ProtocolError("a binary value must be 0x and hex digits, or 0b and base64")


class TextCollector:
    """Joins the text of PDUs up to the one without the C bit."""

    def __init__(self) -> None:
        self._held = bytearray()

    def add(self, raw: Buffer, continues: bool) -> Pairs | None:
        """The pairs once they are complete, None while more is to come."""
        if len(self._held) + len(raw) > TEXT_BYTES_MAX:
            raise ProtocolError(f"more than {TEXT_BYTES_MAX} bytes of text in one exchange")
        self._held += raw
        if continues:
            return None
        pairs = decode_text(self._held)
        self._held.clear()
        return pairs
