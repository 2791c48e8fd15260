"""A record of the journal is not what it was: it is never restored, and everybody says why."""

from __future__ import annotations

from pathlib import Path

import pytest

from target.iscsi.client import ScsiError
from tests.scenarios.checks import check_equal, check_secondary, take_over
from tests.scenarios.history import BLOCK_BYTES, History, stamp
from tests.scenarios.load import Load
from tests.scenarios.site_lab import GROUP, SiteLab, seed


def damage(lab: SiteLab, site: str, content: bytes) -> None:
    """Flip one bit of the one place of the journal volume that holds this content."""
    path = Path(lab.describe(site)["journals"][GROUP])
    place = path.read_bytes().find(content)
    assert place >= 0, "the record is in the journal"
    with path.open("r+b") as file:
        file.seek(place + BLOCK_BYTES // 2)
        byte = file.read(1)[0]
        file.seek(place + BLOCK_BYTES // 2)
        file.write(bytes([byte ^ 0x10]))


def write_unshipped(lab: SiteLab, history: History) -> bytes:
    """Some writes that b does not have; the content of a block of one in the middle."""
    with Load(lab, "a", history, seed=seed()) as load:
        load.wait_acknowledged(100)
    check_equal(lab, history, "a", "b")
    lab.cut()
    written = []
    with lab.connect("a", "data") as client:
        for number in range(30):
            write = history.submit("data", 64 * number, 16, fua=True)
            assert write is not None
            client.write(write.block, write.data(), fua=True)
            history.acknowledge(write)
            written.append(write)
    return stamp("data", written[15].block, written[15].sequence)


def check_refused(lab: SiteLab, history: History) -> None:
    """b has nothing of the damaged pack, nor of what came behind it; a tells, and serves on."""
    lab.wait_status("a", "b", "PSUE")
    cut = check_secondary(lab, history, "b", {})
    assert cut.newest < history.last_sequence - 15
    reason = lab.mirror("a", "b")["reason"]
    assert "record" in reason
    assert "CRC" in reason
    said = [event["text"] for event in lab.ask("b", "events")["events"] if event["kind"] == "SAN link"]
    assert any("CRC" in text for text in said)
    with Load(lab, "a", history, seed=seed()) as load:
        load.wait_acknowledged(50)


def check_resumed(lab: SiteLab, history: History) -> None:
    """The operator's word, and only the blocks that were written are copied, from the volumes."""
    done = lab.replctl("a", "pair", "resync", "group1", "--wait")
    assert done["pair"]["status"] == "PAIR"
    check_equal(lab, history, "a", "b")
    assert lab.ask("b", "group.status")["fetch"]["bytes_read"] < sum(lab.volumes.values()) // 2


def test_damage_under_a_running_primary_reaches_no_secondary(lab: SiteLab) -> None:
    """Its own volumes have the writes already: from there they are copied when an operator says so."""
    history = History(lab.blocks)
    content = write_unshipped(lab, history)
    last = lab.state("a")["latest"]
    lab.wait("the writes on a's volumes", lambda: bool(lab.state("a")["restored"] >= last))
    damage(lab, "a", content)
    lab.join()
    check_refused(lab, history)
    check_resumed(lab, history)


def test_damage_to_a_stopped_primary_reaches_no_secondary(lab: SiteLab) -> None:
    history = History(lab.blocks)
    content = write_unshipped(lab, history)
    lab.down()
    damage(lab, "a", content)
    lab.up()
    lab.join()
    check_refused(lab, history)
    check_resumed(lab, history)


def test_a_primary_whose_journal_cannot_be_recovered_serves_nothing(lab: SiteLab) -> None:
    """What was durable and not on the volumes yet is damaged: nothing is guessed, the other one serves."""
    history = History(lab.blocks)
    content = write_unshipped(lab, history)
    lab.kill("a")  # before the next checkpoint: recovery begins in front of the damage
    damage(lab, "a", content)
    lab.up()
    state = lab.ask("a", "group.status")
    assert state["access"] == "failed"
    assert "was durable, but its data is wrong" in state["reason"]
    assert "Take over at a peer" in state["reason"]
    assert lab.status("a")["status"] == "PSUE"
    with lab.connect("a", "data") as client:
        for attempt in (lambda: client.read(0, 1), lambda: client.write(0, bytes(BLOCK_BYTES)), client.flush):
            with pytest.raises(ScsiError, match=r"MEDIUM ERROR|HARDWARE ERROR"):
                attempt()
    lab.join()
    take_over(lab, history, "b", {})
    with Load(lab, "b", history, seed=seed()) as load:
        load.wait_acknowledged(50)
        # The way back for a site whose journal volume is lost: a new one, and everything copied once.
        lab.kill("a")
        Path(lab.describe("a")["journals"][GROUP]).unlink()
        lab.up()
        lab.wait_link("b", "a")
        lab.replctl("b", "pair", "delete", "group1", "--secondary", "a", "--wait")
        lab.replctl("b", "pair", "create", "group1", "--secondary", "a", "--wait")
    check_equal(lab, history, "b", "a")


def test_a_secondary_that_differs_is_found_and_repaired(lab: SiteLab) -> None:
    """Bit rot in a volume file of b, while hosts write at a: verify finds that extent, and no other."""
    history = History(lab.blocks)
    with Load(lab, "a", history, seed=seed(), span=0.5) as load:
        load.wait_acknowledged(200)
        volume = Path(lab.describe("b")["volumes"]["data"])
        with volume.open("r+b") as file:
            file.seek(7 << 20)  # behind what is written
            file.write(b"rot")
        found = lab.replctl("a", "verify", "group1", "--wait", code=4)
        assert found["mirrors"]["b"]["mismatches"] == 1
        lab.wait("the repair", lambda: lab.mirror("a", "b")["verify"]["repaired"] == 1)
        load.wait_acknowledged(50)
    check_equal(lab, history, "a", "b")
    sequence = lab.ask("a", "verify")["sequence"]
    lab.wait("a second verify", lambda: lab.mirror("a", "b")["sequence"]["verified"] >= sequence)
    assert lab.mirror("a", "b")["verify"]["mismatches"] == 1, "no more than the one before"
