"""Lines about peers: enough of them to see what happens, and no more than a log can bear."""

from __future__ import annotations

import logging

import pytest

from target.iscsi.peer_log import PEER_BURST, PEER_SECONDS, TOTAL_BURST, PeerLog


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.DEBUG)
    return caplog


def test_a_line_names_the_peer(lines: pytest.LogCaptureFixture) -> None:
    log = PeerLog(logging.getLogger("peers"), Clock())
    log.warning("[fd00::5]:4711", "iqn.2024-01.example:a: login refused (0x0201): CHAP failed")
    assert lines.messages == [
        "iSCSI [fd00::5]:4711: iqn.2024-01.example:a: login refused (0x0201): CHAP failed"
    ]


def test_one_address_may_say_so_much_and_then_little(lines: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    log = PeerLog(logging.getLogger("peers"), clock)
    for port in range(1000):
        log.warning(f"10.0.0.1:{port}", "login refused")
    assert len(lines.messages) == PEER_BURST
    log.info("10.0.0.2:1", "logged in")
    assert lines.messages[-1] == "iSCSI 10.0.0.2:1: logged in", "others are heard"
    clock.now += PEER_SECONDS
    log.warning("10.0.0.1:9", "login refused")
    log.warning("10.0.0.1:9", "login refused")
    assert lines.messages[-1].endswith(
        f"login refused ({1000 - PEER_BURST} earlier lines about 10.0.0.1 were left out)"
    )
    assert len(lines.messages) == PEER_BURST + 2


def test_many_addresses_together_are_bounded_too(lines: pytest.LogCaptureFixture) -> None:
    log = PeerLog(logging.getLogger("peers"), Clock())
    for number in range(5000):
        log.warning(f"[fd00::{number:x}]:1", "login refused")
    assert len(lines.messages) == TOTAL_BURST
    assert len(log._addresses) <= 256


@pytest.mark.parametrize("text", ["a\nERROR target: all is lost", "\x1b[2J", "a\r\nb", "\u2028", "\u202e"])
def test_a_line_stays_one_line(text: str, lines: pytest.LogCaptureFixture) -> None:
    PeerLog(logging.getLogger("peers"), Clock()).info("10.0.0.1:1", text)
    assert lines.messages[0].isprintable()
