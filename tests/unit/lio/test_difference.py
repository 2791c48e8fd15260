"""Plan and apply, with LIO in memory: the steps lead to what is wanted, and touch nobody else's objects."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from target.config import ChapTable, Config, FcTable, IscsiTable, SanTable, SiteTable, TargetTable
from target.control.site_file import Address, IscsiName, Name, SecretFile, Wwpn
from target.errors import OperatorError
from target.lio.desired import Exported, desired_objects
from target.lio.difference import Action, Step, asked_for, difference, ours, restricted
from target.lio.objects import (
    Acl,
    Backstore,
    Chap,
    Discovery,
    Fabric,
    Lun,
    MappedLun,
    Object,
    Portal,
    Secret,
    Service,
    StorageObject,
    Target,
    is_ours,
    journal_object_name,
    volume_object_name,
)

FRONT = "iqn.2026-01.org.example:a"
SAN = "iqn.2026-01.org.example:a.san"
PEER = "iqn.2026-01.org.example:b"
HOST = "iqn.2026-01.org.example:host"
PORT, HOST_PORT, PEER_PORT = "naa.2000525400000001", "naa.2000525400000002", "naa.2000525400000003"
CHAP = ChapTable(
    "user", SecretFile(Path("s"), "secret of 12 b"), "me", SecretFile(Path("m"), "another one, 14")
)
VOLUMES = [
    Exported(volume_object_name("a", "g", "data"), 0, 1 << 20, "00aa"),
    Exported(volume_object_name("a", "g", "log"), 1, 1 << 21, "00bb", 4096),
]
JOURNALS = [Exported(journal_object_name("a", "g"), 0, 1 << 26, "00cc", 512, "/dev/journal")]


def configuration(
    *,
    initiators: Iterable[str] = (),
    chap: ChapTable | None = None,
    discovery_chap: ChapTable | None = None,
    fc: FcTable | None = None,
    portal: str = "192.0.2.1:3260",
) -> Config:
    iscsi = IscsiTable(
        IscsiName(FRONT),
        [Address(portal), Address("[2001:db8::1]:3260")],
        [IscsiName(name) for name in initiators],
        chap,
        discovery_chap,
    )
    san = SanTable(IscsiName(SAN), Address("192.0.2.1:3261"), IscsiName(PEER), [IscsiName(PEER)])
    return Config(
        SiteTable(Name("a"), Path("/state")),
        TargetTable(Path("/control"), iscsi, san, "lio", fc),
        (),
    )


def wanted(**how: object) -> list[Object]:
    return desired_objects(configuration(**how), VOLUMES, JOURNALS)  # type: ignore[arg-type]


FC = FcTable([Wwpn(PORT)], [Wwpn(HOST_PORT)], [Wwpn(PEER_PORT)])


class Kernel:
    """LIO in memory: refuses what LIO refuses."""

    def __init__(self, objects: Iterable[Object] = ()) -> None:
        self.objects = {each.path: each for each in objects}

    def apply(self, steps: Iterable[Step]) -> None:
        for step in steps:
            path = step.object.path
            if step.action is Action.DELETE:
                assert not [other for other in self.objects.values() if path in needs(other)], step
                del self.objects[path]
            elif step.action is Action.CREATE:
                assert path not in self.objects, step
                assert all(need in self.objects for need in needs(step.object)), step
                self.objects[path] = step.object
            else:
                assert self.objects[path] == step.before
                self.objects[path] = step.object


def needs(each: Object) -> list[tuple[str, ...]]:
    if isinstance(each, Lun):
        return [each.target, ("backstores", each.storage_object)]
    if isinstance(each, MappedLun):
        return [each.acl, (*each.acl[:-1], f"lun_{each.lun}")]
    if isinstance(each, Portal | Acl | Service):
        return [each.target]
    return []


def test_everything_is_made_in_an_order_that_lio_takes() -> None:
    desired = wanted(initiators=[HOST], chap=CHAP, discovery_chap=CHAP, fc=FC)
    kernel = Kernel()
    kernel.apply(difference(desired, []))
    assert set(kernel.objects.values()) == set(desired)
    assert difference(desired, kernel.objects.values()) == []
    kernel.apply(difference([], desired))
    assert not kernel.objects


@given(st.data())
def test_from_any_state_the_steps_lead_to_what_is_wanted(data: st.DataObject) -> None:
    desired = wanted(initiators=[HOST], chap=CHAP, fc=FC)
    other = wanted(fc=FC)
    kernel = Kernel()
    for each in data.draw(st.lists(st.sampled_from(desired + other), unique=True)):
        if all(need in kernel.objects for need in needs(each)) and each.path not in kernel.objects:
            kernel.objects[each.path] = _spoiled(each) if data.draw(st.booleans()) else each
    kernel.apply(difference(desired, kernel.objects.values()))
    assert set(kernel.objects.values()) == set(desired)


def _spoiled(each: Object) -> Object:
    if isinstance(each, StorageObject):
        return replace(each, serial="ffff")
    if isinstance(each, MappedLun):
        return replace(each, write_protected=not each.write_protected)
    if isinstance(each, Target):
        return replace(each, attributes=())
    return each


def test_what_can_be_changed_is_not_made_again() -> None:
    desired = wanted(initiators=[HOST], chap=CHAP)
    volume = next(each for each in desired if isinstance(each, StorageObject))
    acl = next(each for each in desired if isinstance(each, Acl) and each.initiator == HOST)
    observed = [each for each in desired if each not in (volume, acl)]
    observed += [replace(volume, attributes=()), replace(acl, chap=Chap("user", Secret("old")))]
    steps = difference(desired, observed)
    assert [step.action for step in steps] == [Action.CHANGE, Action.CHANGE]


def test_a_storage_object_that_is_another_takes_its_luns_with_it() -> None:
    desired = wanted(initiators=[HOST])
    volume = next(each for each in desired if isinstance(each, StorageObject))
    steps = difference(desired, [each for each in desired if each != volume] + [replace(volume, serial="x")])
    assert [step.action.value for step in steps] == ["-", "-", "-", "+", "+", "+"]
    assert [type(step.object) for step in steps[:3]] == [MappedLun, Lun, StorageObject]


def test_growth_is_followed_and_drift_stays() -> None:
    """A volume's object is told its size, a journal's is made again, and a missing portal stays missing."""
    before = wanted(initiators=[HOST])
    larger = [replace(each, size_bytes=2 * each.size_bytes) for each in VOLUMES[:1]]
    journals = [replace(each, size_bytes=2 * each.size_bytes) for each in JOURNALS]
    after = desired_objects(configuration(initiators=[HOST]), [*larger, VOLUMES[1]], journals)
    portal = next(each for each in before if isinstance(each, Portal))
    observed = [each for each in before if each != portal]
    steps = asked_for(difference(after, observed), before, after)
    kernel = Kernel(observed)
    kernel.apply(steps)
    assert set(kernel.objects.values()) == {*after} - {portal}
    volume = next(step for step in steps if step.object.path == ("backstores", VOLUMES[0].name))
    assert volume.action is Action.CHANGE


def test_a_device_that_the_kernel_saw_grow_by_itself_is_left_alone() -> None:
    before = wanted()
    journals = [replace(each, size_bytes=2 * each.size_bytes) for each in JOURNALS]
    after = desired_objects(configuration(), VOLUMES, journals)
    assert asked_for(difference(after, after), before, after) == []


def test_no_step_shows_a_secret() -> None:
    desired = wanted(initiators=[HOST], chap=CHAP, discovery_chap=CHAP)
    old = Chap("user", Secret("the old secret"))
    observed = [replace(each, chap=old) if isinstance(each, Acl | Discovery) else each for each in desired]
    said = "\n".join(map(str, difference(desired, observed) + difference(desired, [])))
    assert "chap" in said
    assert not any(word in said for word in ("secret of", "another one", "old secret"))


def test_one_object_is_restored_with_what_it_needs_and_what_is_below() -> None:
    desired = wanted(initiators=[HOST])
    steps = difference(desired, [])
    lun = (Fabric.ISCSI.value, FRONT, "lun_1")
    chosen = [step.object.path for step in restricted(steps, lun)]
    assert chosen == [("backstores", VOLUMES[1].name), (Fabric.ISCSI.value, FRONT), lun]
    everything_of_target = restricted(steps, (Fabric.ISCSI.value, FRONT))
    kernel = Kernel()
    kernel.apply(everything_of_target)
    assert (Fabric.ISCSI.value, SAN) not in kernel.objects
    assert (Fabric.ISCSI.value, FRONT, HOST, "lun_1") in kernel.objects
    assert restricted(steps, ()) == steps


FOREIGN = Target(Fabric.ISCSI, "iqn.2026-01.org.example:foreign")
FOREIGN_STORE = StorageObject("disk1", Backstore.FILE, "/srv/disk", 1, "9")
NEIGHBOUR_STORE = StorageObject(volume_object_name("a.b", "g", "data"), Backstore.USER, "x", 1, "9")


def test_what_is_others_is_not_seen() -> None:
    desired = wanted(initiators=[HOST], fc=FC)
    foreign: list[Object] = [
        FOREIGN,
        FOREIGN_STORE,
        NEIGHBOUR_STORE,
        Lun(FOREIGN.path, 0, FOREIGN_STORE.name),
        Acl(FOREIGN.path, HOST),
        MappedLun((*FOREIGN.path, HOST), 0, 0),
        Portal(FOREIGN.path, "192.0.2.9", 3260),
        Service(FOREIGN.path),
        Discovery(Chap("theirs", Secret("s"))),
        # Our Fibre Channel port is theirs, too.
        Lun((Fabric.FC.value, PORT), 9, FOREIGN_STORE.name),
        Acl((Fabric.FC.value, PORT), "naa.2000525400000099"),
        MappedLun((Fabric.FC.value, PORT, "naa.2000525400000099"), 0, 9),
        MappedLun((Fabric.FC.value, PORT, HOST_PORT), 9, 9),
    ]
    paths = {each.path for each in desired}
    assert ours([*desired, *foreign], "a", paths) == desired
    assert difference(desired, ours([*desired, *foreign], "a", paths)) == []


def test_what_was_ours_and_is_not_wanted_any_more_goes() -> None:
    old = Target(Fabric.ISCSI, "iqn.2026-01.org.example:a.former")
    left: list[Object] = [
        old,
        Lun(old.path, 0, VOLUMES[0].name),
        Service(old.path),
        Portal(old.path, "192.0.2.1", 1),
    ]
    desired = wanted()
    found = ours([*desired, *left, FOREIGN], "a", {each.path for each in desired})
    steps = difference(desired, found)
    assert {step.object for step in steps} == set(left)
    assert {step.action for step in steps} == {Action.DELETE}


def test_a_foreign_lun_where_ours_should_be_is_left_alone() -> None:
    desired = wanted(fc=FC)
    squatter = Lun((Fabric.FC.value, PORT), 0, FOREIGN_STORE.name)
    observed: list[Object] = [each for each in desired if each.path != squatter.path]
    steps = difference(desired, ours([*observed, squatter], "a", {each.path for each in desired}))
    assert squatter not in [step.object for step in steps if step.action is Action.DELETE]


def test_without_initiators_anybody_comes_in_and_must_know_the_secret() -> None:
    target = next(each for each in wanted(chap=CHAP) if isinstance(each, Target) and each.wwn == FRONT)
    assert dict(target.attributes) == {
        "authentication": "1",
        "cache_dynamic_acls": "1",
        "demo_mode_write_protect": "0",
        "generate_node_acls": "1",
    }
    assert target.chap.mutual_user == "me"


def test_journals_are_the_peers_alone_and_write_protected() -> None:
    desired = wanted(fc=FC)
    journal = [each for each in desired if isinstance(each, MappedLun) and SAN in each.acl]
    assert [(each.acl[-1], each.write_protected) for each in journal] == [(PEER, True)]
    on_fc = [each for each in desired if isinstance(each, MappedLun) and PORT in each.acl]
    assert sorted((each.acl[-1], each.number, each.lun, each.write_protected) for each in on_fc) == [
        (HOST_PORT, 0, 0, False),
        (HOST_PORT, 1, 1, False),
        (PEER_PORT, 255, 255, True),
    ]
    assert not [each for each in desired if isinstance(each, Service) and each.target[0] == Fabric.FC.value]


def test_a_volume_where_a_journal_is_on_fibre_channel_is_refused() -> None:
    volume = Exported(volume_object_name("a", "g", "last"), 255, 1 << 20, "00dd")
    with pytest.raises(OperatorError, match="lun 255"):
        desired_objects(configuration(fc=FC), [volume], JOURNALS)


def test_a_machine_may_be_host_and_peer() -> None:
    both = FcTable([Wwpn(PORT)], [Wwpn(HOST_PORT)], [Wwpn(HOST_PORT)])
    desired = wanted(fc=both)
    on_fc = [each for each in desired if isinstance(each, MappedLun) and PORT in each.acl]
    assert [(each.number, each.write_protected) for each in on_fc] == [(0, False), (1, False), (255, True)]
    assert len({each.path for each in desired}) == len(desired)


def test_a_portal_with_a_name_is_refused() -> None:
    with pytest.raises(OperatorError, match="write the IP address"):
        wanted(portal="storage.example:3260")


def test_a_site_is_not_taken_for_another_whose_name_begins_alike() -> None:
    assert is_ours(volume_object_name("a", "g", "v"), "a")
    assert is_ours(journal_object_name("a", "g"), "a")
    assert not is_ours(volume_object_name("a.b", "g", "v"), "a")
    assert not is_ours("disk", "a")
