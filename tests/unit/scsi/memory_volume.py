"""A `Volume` in memory: the fake behind the device server's tests.

It records every call, answers at once or when told to, and fails where told to.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial

from target.volume import SECTOR_BYTES, Buffer, Request, VolumeError

Call = tuple[str, int, int, bool]


class MemoryVolume:
    """`calls` holds (name, offset, length, fua), `requests` the last of those that were answered. With `hold`
    answers wait for `release`.
    """

    def __init__(
        self,
        size_bytes: int = 1 << 20,
        block_size_bytes: int = SECTOR_BYTES,
        *,
        serial: str = "serial-1",
        hold: bool = False,
    ) -> None:
        self.name = "memory"
        self.serial = serial
        self.size_bytes = size_bytes
        self.block_size_bytes = block_size_bytes
        self.read_only_now = False
        self.failed_now = False
        self.hold = hold
        self.content = bytearray(size_bytes)
        self.calls: list[Call] = []
        self.requests: deque[Request] = deque(maxlen=64)
        self.failures: dict[str, VolumeError] = {}
        self._held: deque[Callable[[], None]] = deque()

    def names(self) -> list[str]:
        return [name for name, *_ in self.calls]

    def release(self) -> bool:
        """Give the oldest answer that was held back; False when there is none."""
        if not self._held:
            return False
        self._held.popleft()()
        return True

    def read(self, offset: int, length: int, request: Request) -> None:
        self._check("read", offset, length, False)
        self._answer("read", request, lambda: bytes(self.content[offset : offset + length]))

    def write(self, offset: int, data: Buffer, fua: bool, request: Request) -> None:
        self._check("write", offset, len(data), fua)
        if self._accepts("write"):
            self.content[offset : offset + len(data)] = data
        self._answer("write", request, None)

    def zero(self, offset: int, length: int, fua: bool, request: Request) -> None:
        self._check("zero", offset, length, fua)
        if self._accepts("zero"):
            self.content[offset : offset + length] = bytes(length)
        self._answer("zero", request, None)

    def flush(self, request: Request) -> None:
        self.calls.append(("flush", 0, 0, False))
        self._answer("flush", request, None)

    def barrier(self, request: Request) -> None:
        self.calls.append(("barrier", 0, 0, False))
        self._answer("barrier", request, None)

    def allocation(self, offset: int, length: int) -> Buffer:
        """What holds zeros is not mapped."""
        zeros = bytes(SECTOR_BYTES)
        return bytes(
            self.content[at : at + SECTOR_BYTES] != zeros
            for at in range(offset, offset + length, SECTOR_BYTES)
        )

    def _check(self, name: str, offset: int, length: int, fua: bool) -> None:
        """What the device server promises about the numbers it hands down."""
        assert offset % SECTOR_BYTES == 0
        assert length % SECTOR_BYTES == 0
        assert length > 0
        assert 0 <= offset <= offset + length <= self.size_bytes
        self.calls.append((name, offset, length, fua))

    def _accepts(self, name: str) -> bool:
        return not self.read_only_now and name not in self.failures

    def _answer(self, name: str, request: Request, data: Callable[[], bytes] | None) -> None:
        self.requests.append(request)
        error = self.failures.get(name)
        if error is None and self.read_only_now and name in ("write", "zero", "barrier"):
            error = VolumeError.WRITE_PROTECTED
        if error is not None:
            answer = partial(request.failed, error)
        elif data is not None:
            answer = partial(request.done, data())
        else:
            answer = partial(request.done, None)
        if self.hold:
            self._held.append(answer)
        else:
            answer()
