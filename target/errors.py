"""The four kinds of failure that a person sees. Each says what happened, to what, and what to do next."""

from __future__ import annotations


class ReplctlError(Exception):
    """Base of all. `exit_code` is stable and documented in docs/cli.md."""

    exit_code = 1


class OperatorError(ReplctlError):
    """Your request cannot be done as it was put: a wrong name, an unsuitable state, a bad setting."""

    exit_code = 2


class PeerError(ReplctlError):
    """The other side, or the wire to it, did not answer or answered nonsense."""

    exit_code = 3


class IntegrityError(ReplctlError):
    """What a disk holds is not what was written there."""

    exit_code = 4


class ConflictError(ReplctlError):
    """Two states that cannot be reconciled without an operator's word; the facts are in `facts`."""

    exit_code = 5

    def __init__(self, message: str, **facts: object) -> None:
        super().__init__(message)
        self.facts = facts
