"""Framing of every conversation of the host agents: one JSON object a line, UTF-8, at most 8 MiB.

Pure: bytes in, messages out. What breaks the rules is a `PeerError`; the decoder is of no more use then.
"""

from __future__ import annotations

from typing import Any

import msgspec

from target.errors import PeerError

Message = dict[str, Any]

LINE_BYTES_MAX = 8 << 20
"""With the newline."""


def _plain(value: object) -> object:
    """Names and sizes from the configuration are subclasses of str and int."""
    for plain in (str, int):
        if isinstance(value, plain):
            return plain(value)
    raise NotImplementedError(type(value))


_decoder = msgspec.json.Decoder(dict[str, Any])
_encoder = msgspec.json.Encoder(enc_hook=_plain)


class LineDecoder:
    """Cuts a byte stream into messages."""

    __slots__ = ("_partial",)

    def __init__(self) -> None:
        self._partial = bytearray()

    def feed(self, data: bytes) -> list[Message]:
        """The messages that `data` completes."""
        self._partial += data
        lines = self._partial.split(b"\n")
        self._partial = lines.pop()
        if len(self._partial) >= LINE_BYTES_MAX:
            raise PeerError(f"a line is longer than {LINE_BYTES_MAX} bytes")
        return [_decode(line) for line in lines if line.strip()]


def encode_line(message: Message) -> bytes:
    """The line that carries `message`."""
    line = _encoder.encode(message) + b"\n"
    if len(line) > LINE_BYTES_MAX:
        raise PeerError(f"a message of {len(line)} bytes is longer than {LINE_BYTES_MAX} and was not sent")
    return line


def _decode(line: bytearray) -> Message:
    if len(line) >= LINE_BYTES_MAX:
        raise PeerError(f"a line is longer than {LINE_BYTES_MAX} bytes")
    try:
        return _decoder.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise PeerError(f"a line is not a JSON object: {error}: {bytes(line[:60])!r}") from None
