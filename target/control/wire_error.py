"""Errors on a stream of JSON lines: {"kind", "message", "exit_code", "facts"}. Pure."""

from __future__ import annotations

from typing import Any

import msgspec

from target.control.lines import Message
from target.errors import ConflictError, IntegrityError, OperatorError, PeerError, ReplctlError

_KINDS: dict[str, type[ReplctlError]] = {
    "operator": OperatorError,
    "peer": PeerError,
    "integrity": IntegrityError,
    "conflict": ConflictError,
    "internal": ReplctlError,
}


class WireError(msgspec.Struct):
    """The `error` member of an answer."""

    kind: str
    message: str
    exit_code: int = 1
    facts: dict[str, Any] = {}

    def exception(self) -> ReplctlError:
        """The exception it stands for."""
        cls = _KINDS.get(self.kind, ReplctlError)
        return ConflictError(self.message, **self.facts) if cls is ConflictError else cls(self.message)


def error_to_wire(error: ReplctlError) -> Message:
    """The `error` member of an answer."""
    kind = next((kind for kind, cls in _KINDS.items() if isinstance(error, cls)), "internal")
    facts = error.facts if isinstance(error, ConflictError) else {}
    return {"kind": kind, "message": str(error), "exit_code": error.exit_code, "facts": facts}


def error_from_wire(error: object) -> ReplctlError:
    """The exception that an `error` member stands for; PeerError when it is none."""
    try:
        return msgspec.convert(error, WireError).exception()
    except msgspec.ValidationError as malformed:
        return PeerError(f"malformed error: {malformed}: {error!r:.200}")
