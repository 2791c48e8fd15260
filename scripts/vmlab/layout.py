"""What a lab consists of: its machines, its networks, its addresses. Nothing here does any I/O.

Machine number n (from 1) has address .10+n in every network. The ranges are those for documentation and for
benchmarks (RFC 5737, RFC 2544), so that none of them can be a real one; no frame leaves the host anyway.
"""

from __future__ import annotations

import enum
import string
from dataclasses import dataclass

MACHINES_MAX = 3


class Network(enum.Enum):
    """A network of the lab; the value is the interface's name in a machine."""

    MANAGEMENT = "mgmt0"
    """The host agents' SSH."""

    SAN = "san0"
    """The subsystems' data link, iSCSI and FCoE; hosts may use it as their second path."""

    FRONT = "front0"
    """Hosts to their volumes."""

    @property
    def word(self) -> str:
        return self.name.lower()

    @property
    def number(self) -> int:
        return list(Network).index(self) + 1

    @property
    def mtu(self) -> int:
        return 2500 if self is Network.SAN else 1500  # FC-BB-6: an FCoE frame needs 2158 and more


_PREFIXES = {Network.MANAGEMENT: "192.0.2", Network.SAN: "203.0.113", Network.FRONT: "198.51.100"}

CONTROL_INTERFACE = "ctl0"
CONTROL_NETWORK = "198.18.0.0/24"
CONTROL_GUEST = "198.18.0.15"


@dataclass(frozen=True, slots=True)
class Machine:
    """One virtual machine: `a`, `b` or `c`."""

    name: str
    number: int

    def address(self, network: Network) -> str:
        return f"{_PREFIXES[network]}.{10 + self.number}"

    def mac(self, network: Network) -> str:
        return f"52:54:00:0{network.number}:00:0{self.number}"

    @property
    def control_mac(self) -> str:
        return f"52:54:00:00:00:0{self.number}"

    @property
    def wwpn(self) -> str:
        """The port name that libfcoe makes of the SAN interface's address (FC-BB-6, name identifier 2)."""
        return "2000" + self.mac(Network.SAN).replace(":", "")


def machines(count: int) -> list[Machine]:
    return [Machine(string.ascii_lowercase[index], index + 1) for index in range(count)]
