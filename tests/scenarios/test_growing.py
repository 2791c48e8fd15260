"""A volume and the journals of both sites grow while a host is connected; all is there after a crash."""

from __future__ import annotations

from tests.scenarios.site_lab import SiteLab

_MIB = 1 << 20


def test_volumes_and_journals_grow_in_use_and_stay_grown_after_a_crash(lab: SiteLab) -> None:
    blocks = lab.blocks["data"]
    before = lab.connect("a", "data").capacity().size_bytes
    size = before + 4 * _MIB
    end = size // 4096 * 8 - 8
    with lab.connect("a", "data") as host:
        host.write(0, b"before" + bytes(506))
        assert lab.ask("a", "volume.grow", volume="data", size_bytes=size)["changed"]
        lab.wait("the size that hosts see", lambda: host.capacity().size_bytes == size)
        host.write(end, b"at the new end" + bytes(498), fua=True)
    for site in lab.sites:
        lab.wait(
            "a journal that was written out",
            lambda site=site: lab.state(site)["journal_filled_percent"] == 100,  # type: ignore[misc]
        )
        journal = lab.state(site)["ring_bytes"] + 64 * _MIB
        assert lab.ask(site, "journal.grow", size_bytes=journal)["changed"]
    lab.wait_equal("a", "b")
    assert not lab.ask("a", "volume.grow", volume="data", size_bytes=size)["changed"]
    lab.kill("a")
    lab.kill("b")
    lab.up()
    lab.wait_serves("a")
    lab.wait_equal("a", "b")
    with lab.connect("b", "data") as host:
        assert host.capacity().size_bytes == size
        assert host.read(end, 1).startswith(b"at the new end")
        assert host.read(0, 1).startswith(b"before")
        assert host.read(blocks - 1, 2)[512:] == bytes(512)
