"""Addresses and URLs as people write them."""

from __future__ import annotations

import pytest

from target.errors import OperatorError
from target.iscsi.address import format_address, parse_address, reachable
from target.iscsi.url import parse_url


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("127.0.0.1:3261", ("127.0.0.1", 3261)),
        ("127.0.0.1", ("127.0.0.1", 3260)),
        ("san-a:0", ("san-a", 0)),
        ("[::1]:3261", ("::1", 3261)),
        ("[fd00::5]", ("fd00::5", 3260)),
        ("::1", ("::1", 3260)),
    ],
)
def test_addresses(text: str, parsed: tuple[str, int]) -> None:
    assert parse_address(text) == parsed
    assert parse_address(format_address(*parsed)) == parsed


@pytest.mark.parametrize(
    ("address", "asked_at", "told"),
    [
        ("10.0.0.1:3260", "10.0.0.9:3260", "10.0.0.1:3260"),
        ("0.0.0.0:3260", "10.0.0.9:3260", "10.0.0.9:3260"),
        ("[::]:3261", "[fd00::9]:3261", "[fd00::9]:3261"),
        ("[fe80::1%eth0]:3260", "[fe80::1%eth0]:3260", "[fe80::1]:3260"),
        ("[::]:3260", "[fe80::1%eth0]:3260", "[fe80::1]:3260"),
    ],
)
def test_discovery_tells_addresses_that_can_be_used(address: str, asked_at: str, told: str) -> None:
    assert reachable(address, asked_at) == told


@pytest.mark.parametrize(
    "text", ["", ":3260", "host:port", "host:\u0663", "host:70000", "[::1", "[::1]3260", "[]:1"]
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(OperatorError, match="is not an address"):
        parse_address(text)


def test_a_url_with_everything() -> None:
    url = parse_url("iscsi://alice%se@cret/1@[::1]:3261/iqn.2024-01.example:a/7")
    assert (url.host, url.port, url.target_name, url.lun) == ("::1", 3261, "iqn.2024-01.example:a", 7)
    assert (url.user, url.secret) == ("alice", "se@cret/1")
    assert url.chap is not None


def test_a_url_with_what_is_needed() -> None:
    url = parse_url("iscsi://127.0.0.1/iqn.2024-01.example:a/0")
    assert (url.portal, url.lun, url.user, url.chap) == ("127.0.0.1:3260", 0, None, None)


def test_a_user_alone_leaves_the_secret_to_the_caller() -> None:
    url = parse_url("iscsi://alice@127.0.0.1/iqn.2024-01.example:a/0")
    assert (url.user, url.secret, url.chap) == ("alice", None, None)


def test_secrets_are_not_shown() -> None:
    url = parse_url("iscsi://alice%topsecret@127.0.0.1:3260/iqn.2024-01.example:a/0")
    assert "topsecret" not in f"{url} {url!r}"
    with pytest.raises(OperatorError) as caught:
        parse_url("iscsi://alice%topsecret@127.0.0.1:3260/iqn.2024-01.example:a/x")
    assert "topsecret" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "http://127.0.0.1/iqn/0",
        "iscsi://127.0.0.1/iqn",
        "iscsi://127.0.0.1/iqn/x",
        "iscsi://127.0.0.1/iqn/99999",
        "iscsi:///iqn/0",
    ],
)
def test_what_is_no_url(text: str) -> None:
    with pytest.raises(OperatorError):
        parse_url(text)
