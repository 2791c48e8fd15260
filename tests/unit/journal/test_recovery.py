"""The recovery decision table: complete, and the one of docs/journal-format.md."""

from __future__ import annotations

import itertools

import pytest

from target.journal.recovery import TABLE, Chain, Data, Decision, Durability, Finding, Header, decide
from tests.unit.journal.format_document import rows

HEADERS = {"good": Header.OK, "bad": Header.BAD}
CHAINS = {"right": [Chain.OK], "wrong": [Chain.BROKEN], "any": list(Chain), "-": [Chain.BROKEN]}
DATA = {"right": [Data.OK], "wrong": [Data.BAD], "any": list(Data), "-": [Data.BAD]}


def documented() -> dict[Finding, Decision]:
    """The document's table, one row for each combination it stands for."""
    table = {}
    found = [row for row in rows("Reading a journal volume") if row[0] in HEADERS]
    for header, chain, data, proven, unproven in found:
        for one_chain, one_data in itertools.product(CHAINS[chain], DATA[data]):
            for durability, decision in ((Durability.PROVEN, proven), (Durability.UNPROVEN, unproven)):
                finding = Finding(HEADERS[header], one_chain, one_data, durability)
                assert finding not in table, f"the document decides twice about {finding}"
                table[finding] = Decision[decision.strip("*").upper()]
    return table


def test_the_table_is_the_one_of_the_document() -> None:
    assert documented() == TABLE


def test_every_combination_that_can_be_found_is_decided() -> None:
    judged = [Finding(*finding) for finding in itertools.product([Header.OK], Chain, Data, Durability)] + [
        Finding(Header.BAD, Chain.BROKEN, Data.BAD, durability) for durability in Durability
    ]
    assert set(TABLE) == set(judged)
    for header_ok, chain_ok, data_ok, proven in itertools.product([True, False], repeat=4):
        assert decide(header_ok=header_ok, chain_ok=chain_ok, data_ok=data_ok, proven=proven) in Decision


@pytest.mark.parametrize("finding", TABLE)
def test_only_what_is_right_in_every_respect_is_taken(finding: Finding) -> None:
    whole = finding[:3] == (Header.OK, Chain.OK, Data.OK)
    assert (TABLE[finding] is Decision.ACCEPT) == whole


@pytest.mark.parametrize("finding", TABLE)
def test_what_was_durable_is_never_cut(finding: Finding) -> None:
    proven = finding.durability is Durability.PROVEN
    assert TABLE[finding] is not (Decision.CUT if proven else Decision.CORRUPT)


def test_behind_a_bad_header_nothing_else_counts() -> None:
    for chain_ok, data_ok in itertools.product([True, False], repeat=2):
        assert decide(header_ok=False, chain_ok=chain_ok, data_ok=data_ok, proven=True) is Decision.CORRUPT
        assert decide(header_ok=False, chain_ok=chain_ok, data_ok=data_ok, proven=False) is Decision.CUT
