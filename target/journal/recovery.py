"""What a pack found on the medium means: the recovery decision table. Pure.

A torn tail is normal: the machine stopped while packs were on their way. It is cut. A pack that is not right
although a later good header, or the superblock, proves that it was durable, is corruption: nothing behind it
may be used, and nothing is guessed.
"""

from __future__ import annotations

from enum import Enum
from functools import cache
from typing import NamedTuple


class Header(Enum):
    """The header block at the place where the next pack should begin."""

    OK = "its CRC, place (LSN), group and sequence number are right"
    BAD = "there is none, or it belongs elsewhere"


class Chain(Enum):
    """The digest that the header names as its predecessor's."""

    OK = "it is the digest of the pack before"
    BROKEN = "it is another"


class Data(Enum):
    """The data of the pack's records."""

    OK = "every CRC is right"
    BAD = "at least one CRC is wrong"


class Durability(Enum):
    """What is known about the place."""

    PROVEN = "a superblock or a valid later header says that it was durable"
    UNPROVEN = "nothing says that it ever was durable"


class Decision(Enum):
    """What to do with the pack."""

    ACCEPT = "take it and go on behind it"
    CUT = "the journal ends before it"
    CORRUPT = "refuse: something that was durable is gone"


class Finding(NamedTuple):
    """One row's left side. With a bad header, chain and data cannot be judged and count as broken and bad."""

    header: Header
    chain: Chain
    data: Data
    durability: Durability


TABLE: dict[Finding, Decision] = {
    Finding(Header.OK, Chain.OK, Data.OK, Durability.PROVEN): Decision.ACCEPT,
    Finding(Header.OK, Chain.OK, Data.OK, Durability.UNPROVEN): Decision.ACCEPT,
    Finding(Header.OK, Chain.OK, Data.BAD, Durability.PROVEN): Decision.CORRUPT,
    Finding(Header.OK, Chain.OK, Data.BAD, Durability.UNPROVEN): Decision.CUT,
    Finding(Header.OK, Chain.BROKEN, Data.OK, Durability.PROVEN): Decision.CORRUPT,
    Finding(Header.OK, Chain.BROKEN, Data.OK, Durability.UNPROVEN): Decision.CUT,
    Finding(Header.OK, Chain.BROKEN, Data.BAD, Durability.PROVEN): Decision.CORRUPT,
    Finding(Header.OK, Chain.BROKEN, Data.BAD, Durability.UNPROVEN): Decision.CUT,
    Finding(Header.BAD, Chain.BROKEN, Data.BAD, Durability.PROVEN): Decision.CORRUPT,
    Finding(Header.BAD, Chain.BROKEN, Data.BAD, Durability.UNPROVEN): Decision.CUT,
}


@cache
def decide(*, header_ok: bool, chain_ok: bool, data_ok: bool, proven: bool) -> Decision:
    """Look the finding up; `chain_ok` and `data_ok` do not count when the header is bad."""
    return TABLE[
        Finding(
            Header.OK if header_ok else Header.BAD,
            Chain.OK if header_ok and chain_ok else Chain.BROKEN,
            Data.OK if header_ok and data_ok else Data.BAD,
            Durability.PROVEN if proven else Durability.UNPROVEN,
        )
    ]
