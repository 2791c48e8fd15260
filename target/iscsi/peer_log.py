"""What peers make a portal say, and no more of it than a log can bear. Time is passed in.

Anybody who reaches the port can cause lines: by failing to log in, or by doing it again and again. Each
address may cause PEER_BURST lines at once and one every PEER_SECONDS after that, all together TOTAL_BURST and
one every TOTAL_SECONDS. What was left out is counted, and said with the next line. Invariant: a line is one
line, whatever a peer calls itself.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable

PEER_BURST = 20
PEER_SECONDS = 3.0
TOTAL_BURST = 200
TOTAL_SECONDS = 0.1
_ADDRESSES_MAX = 256


class _Bucket:
    """A token bucket."""

    __slots__ = ("left", "left_out", "seconds", "size", "when")

    def __init__(self, size: int, seconds: float, now: float) -> None:
        self.size = size
        self.seconds = seconds
        self.left = float(size)
        self.when = now
        self.left_out = 0

    def allows(self, now: float) -> bool:
        self.left = min(self.size, self.left + (now - self.when) / self.seconds)
        self.when = now
        return self.left >= 1


class PeerLog:
    """Lines about peers, by the address that caused them."""

    def __init__(self, log: logging.Logger, monotonic: Callable[[], float]) -> None:
        self._log = log
        self._monotonic = monotonic
        self._total = _Bucket(TOTAL_BURST, TOTAL_SECONDS, monotonic())
        self._addresses: OrderedDict[str, _Bucket] = OrderedDict()

    def info(self, peer: str, what: str) -> None:
        self._say(logging.INFO, peer, what)

    def warning(self, peer: str, what: str) -> None:
        self._say(logging.WARNING, peer, what)

    def _say(self, level: int, peer: str, what: str) -> None:
        """`peer` is "host:port"; lines are counted by host."""
        now = self._monotonic()
        address = peer.rpartition(":")[0]
        bucket = self._addresses.get(address)
        if bucket is None:
            bucket = self._addresses[address] = _Bucket(PEER_BURST, PEER_SECONDS, now)
            if len(self._addresses) > _ADDRESSES_MAX:
                self._addresses.popitem(last=False)
        self._addresses.move_to_end(address)
        allowed = bucket.allows(now)
        if not self._total.allows(now) or not allowed:
            bucket.left_out += 1
            return
        bucket.left -= 1
        self._total.left -= 1
        left_out, bucket.left_out = bucket.left_out, 0
        also = f" ({left_out} earlier lines about {address} were left out)" if left_out else ""
        self._log.log(level, "iSCSI %s: %s%s", peer, _one_line(what), also)


def _one_line(text: str) -> str:
    return text if text.isprintable() else text.encode("unicode_escape").decode("ascii")
