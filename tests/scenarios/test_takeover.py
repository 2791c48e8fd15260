"""Who may write, and what is copied: takeover by agreement and by force, split, delete, and a third site."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from target.iscsi.client import ScsiError
from target.scsi.sense import SenseKey
from tests.scenarios.checks import check_equal, take_over
from tests.scenarios.history import BLOCK_BYTES, History
from tests.scenarios.load import Load
from tests.scenarios.site_lab import SiteLab, running, seed

TOTAL_BYTES = 10 << 20


@pytest.fixture
def history(lab: SiteLab) -> History:
    return History(lab.blocks)


def write(lab: SiteLab, history: History, site: str, volume: str, block: int, count: int) -> None:
    """One stamped write, made durable."""
    made = history.submit(volume, block, count, fua=True)
    assert made is not None
    with lab.connect(site, volume) as client:
        client.write(block, made.data(), fua=True)
    history.acknowledge(made)


def assert_refuses_writes(lab: SiteLab, site: str) -> None:
    """DATA PROTECT for every volume and every way of writing; reads are answered."""
    for volume in lab.volumes:
        with lab.connect(site, volume) as client:
            for fua in (False, True):
                with pytest.raises(ScsiError) as refusal:
                    client.write(0, b"\xee" * BLOCK_BYTES, fua=fua)
                assert refusal.value.sense is not None
                assert refusal.value.sense.key is SenseKey.DATA_PROTECT
            assert client.read(0, 1) != b"\xee" * BLOCK_BYTES  # what its primary sends may arrive meanwhile


def assert_takes_writes(lab: SiteLab, history: History, site: str) -> None:
    for volume in lab.volumes:
        write(lab, history, site, volume, 5, 3)


def test_a_secondary_refuses_writes_and_can_be_read(lab: SiteLab, history: History) -> None:
    assert_takes_writes(lab, history, "a")
    assert_refuses_writes(lab, "b")
    check_equal(lab, history, "a", "b")
    lab.kill("b", "target")
    lab.up()
    assert_refuses_writes(lab, "b")


def test_forced_takeover_and_home_again(lab: SiteLab, history: History, tmp_path: Path) -> None:
    with Load(lab, "a", history, seed=seed()) as load:
        load.wait_acknowledged(200)
        moment = history.now()
        lab.create_marker("a", "last")
        lab.wait(
            "the marker at b",
            lambda: any(marker["name"] == "last" for marker in lab.ask("b", "marker.list")["markers"]),
        )
    lab.cut()
    write(lab, history, "a", "data", 100, 40)  # b never hears of these
    write(lab, history, "a", "log", 7, 1)
    lab.kill("a")
    refused = lab.replctl("b", "takeover", "group1", code=2)
    assert "--force" in refused["error"]["message"]
    lost = take_over(lab, history, "b", {"last": moment})
    assert lost >= 2
    assert lab.status("b")["status"] == "SSWS"
    write(lab, history, "b", "data", 3000, 64)

    lab.join()
    lab.up()
    lab.wait("a knowing what it is", lambda: lab.status("a")["role"] == "superseded")
    assert_refuses_writes(lab, "a")
    lab.wait_link("b", "a")
    lab.ask("b", "pair.resync", secondary="a")
    copied = [event for event in lab.ask("b", "events")["events"] if event["kind"] == "pair resync"]
    assert copied
    lab.wait_status("b", "a", "PAIR")
    exports = list((tmp_path / "lab" / "a" / "exports").glob("*.journal"))
    assert len(exports) == 1
    assert b"STAMPED\0log" in exports[0].read_bytes()
    check_equal(lab, history, "b", "a")
    assert_refuses_writes(lab, "a")

    home = lab.replctl("a", "takeover", "group1")
    assert home["plan"]["mode"] == "planned"
    assert home["plan"]["records_lost"] == 0
    lab.wait_status("a", "b", "PAIR")
    assert_takes_writes(lab, history, "a")
    assert_refuses_writes(lab, "b")
    check_equal(lab, history, "a", "b")


def test_after_a_takeover_only_differences_are_copied(lab: SiteLab, history: History) -> None:
    """What was written at either side since the fork, in extents of the bitmap; never the rest."""
    with Load(lab, "a", history, seed=seed()) as load:
        load.wait_acknowledged(300)
    check_equal(lab, history, "a", "b")
    lab.cut("san")
    write(lab, history, "a", "data", 0, 8)
    lab.kill("a")
    take_over(lab, history, "b", {})
    write(lab, history, "b", "data", 8000, 8)
    lab.join()
    lab.up()
    lab.wait_link("b", "a")
    lab.replctl("b", "pair", "resync", "group1", "--secondary", "a")
    text = [event["text"] for event in lab.ask("b", "events")["events"] if event["kind"] == "pair resync"][-1]
    taken_back = int(text.partition("; ")[2].split()[0])
    assert 0 < taken_back <= TOTAL_BYTES // 20, text
    lab.wait_status("b", "a", "PAIR")
    fetched = lab.ask("a", "group.status")["fetch"]["bytes_read"]
    assert fetched < TOTAL_BYTES // 10, "differences only"
    check_equal(lab, history, "b", "a")


def test_a_planned_takeover_under_load_loses_nothing(lab: SiteLab, history: History) -> None:
    """Hosts at the old primary wait, then are refused; at the new one they go on. And back again."""
    for old, new in (("a", "b"), ("b", "a")):
        with Load(lab, old, history, seed=seed()) as load:
            load.wait_acknowledged(100)
            taken = lab.ask(new, "takeover", plan=False, force=False)
            assert taken["plan"]["mode"] == "planned"
            lab.wait("a refusal", lambda: bool(load.refusals))
        assert {refusal.sense.key for refusal in load.refusals if refusal.sense} == {SenseKey.DATA_PROTECT}
        with Load(lab, new, history, seed=seed()) as load:
            load.wait_acknowledged(100)
        lab.wait_status(new, old, "PAIR")
        check_equal(lab, history, new, old)


def test_a_split_secondary_is_a_copy_of_its_own_until_the_resync(lab: SiteLab, history: History) -> None:
    with Load(lab, "a", history, seed=seed()) as load:
        load.wait_acknowledged(100)
        lab.replctl("a", "pair", "split", "group1", "--wait")
        split = history.cut(lab.content("b"))
        load.wait_acknowledged(100)
        assert history.cut(lab.content("b")) == split, "b stands still"
        assert lab.status("a")["status"] == "PSUS"
        assert lab.status("b")["status"] == "SSUS"
        with lab.connect("b", "data") as client:
            client.write(16, b"written at b alone " * 512)
            client.flush()
        lab.kill("b", "target")
        lab.up()
        with lab.connect("b", "data") as client:
            assert client.read(16, 1).startswith(b"written at b alone")
        lab.replctl("a", "pair", "resync", "group1", "--wait")
    check_equal(lab, history, "a", "b")
    assert_refuses_writes(lab, "b")


def test_after_delete_both_sites_keep_their_volumes(lab: SiteLab, history: History) -> None:
    write(lab, history, "a", "data", 1, 9)
    check_equal(lab, history, "a", "b")
    assert lab.replctl("a", "pair", "delete", "group1", "--wait")["changed"]
    assert not lab.replctl("a", "pair", "delete", "group1")["changed"]
    assert lab.content("b") == history.image()
    for site in "ab":
        assert lab.status(site)["status"] == "SMPL"
        with lab.connect(site, "log") as client:
            client.write(0, site.encode() * BLOCK_BYTES)
    lab.replctl("b", "pair", "create", "group1", "--secondary", "a", "--wait")
    with lab.connect("a", "log") as client:
        assert client.read(0, 1) == b"b" * BLOCK_BYTES, "the new pair's primary is b"


def test_stopped_cleanly_a_volume_is_a_plain_copy_of_the_blocks(lab: SiteLab, history: History) -> None:
    with Load(lab, "a", history, seed=seed()) as load:
        load.wait_acknowledged(200)
    check_equal(lab, history, "a", "b")
    lab.down()
    assert lab.files("a") == history.image()
    assert lab.files("b") == history.image()


@pytest.fixture
def three(tmp_path: Path) -> Iterator[SiteLab]:
    with running(tmp_path / "lab", sites=3) as one:
        one.pair("a", "b")
        one.pair("a", "c")
        yield one


def test_the_third_site_follows_the_new_primary(three: SiteLab) -> None:
    history = History(three.blocks)
    with Load(three, "a", history, seed=seed()) as load:
        load.wait_acknowledged(200)
        three.kill("c", "target")
        load.wait_acknowledged(100)
        three.up()
        load.wait_acknowledged(50)
    check_equal(three, history, "a", "b")
    check_equal(three, history, "a", "c")
    three.kill("a")
    take_over(three, history, "b", {})
    with Load(three, "b", history, seed=seed()) as load:
        load.wait_acknowledged(100)
        three.replctl("b", "pair", "resync", "group1", "--secondary", "c", "--wait")
    resync = [event for event in three.ask("b", "events")["events"] if event["kind"] == "pair resync"][-1]
    begin = f"c follows from record {resync['facts']['common']} on; 0 bytes"
    assert resync["text"].startswith(begin), "c goes on from where it was"
    three.up()
    three.wait_link("b", "a")
    three.replctl("b", "pair", "resync", "group1", "--secondary", "a", "--wait")
    write(three, history, "b", "log", 9, 9)
    check_equal(three, history, "b", "c")
    check_equal(three, history, "b", "a")
