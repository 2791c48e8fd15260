"""What operators ask for, one step after the other: create, split, resync, delete. Generators for
`FlowRunner`.

Every flow may be repeated after it broke off anywhere: each step finds out how far things are. The order
within a flow is the safe one: a promise or a mark is durable before what depends on it happens.
"""

from __future__ import annotations

from typing import Any

import msgspec

from hostagent.copy_manager import CopyManager
from hostagent.flow import Call, Flow, Wait
from hostagent.known import Group
from hostagent.pair_states import Event, PairState, mirror_state, next_state
from hostagent.plan import Fork, fork_point, lacks_unknown
from target.control.messages import GroupState, MirrorStatus
from target.errors import ConflictError, OperatorError, PeerError, ReplctlError

CATCH_UP_SECONDS = 120.0
_EXTENTS_PER_CALL = 20_000
_FULL_PERCENT = 70


def pair_state_of(state: GroupState, mirror: MirrorStatus) -> PairState:
    """The pair state of one mirror, as the primary sees it."""
    return mirror_state(
        mirror.state,
        filling=mirror.behind_percent >= _FULL_PERCENT,
        journal_reaches=mirror.journal_reaches,
    )


def _mirror_of(state: GroupState, site: str) -> MirrorStatus:
    for mirror in state.mirrors:
        if mirror.name == site:
            return mirror
    known = ", ".join(mirror.name for mirror in state.mirrors) or "none"
    raise OperatorError(f"group {state.name!r} has no mirror {site!r}; its mirrors: {known}")


def _mirrors(state: GroupState, site: str | None) -> list[str]:
    """The mirrors that are meant; OperatorError when there is none."""
    if site is not None:
        return [_mirror_of(state, site).name]
    if not state.mirrors:
        raise OperatorError(f"group {state.name!r} is in no pair: create one first (pair create)")
    return [mirror.name for mirror in state.mirrors]


def _at_primary(state: GroupState, what: str) -> None:
    if state.role == "secondary" or state.primary:
        raise OperatorError(f"{what} of group {state.name!r} is done at its primary, {state.primary!r}")
    if state.access != "serve" and state.role == "primary":
        raise OperatorError(f"{what}: group {state.name!r} does not serve here: {state.reason}")


class PairFlows:
    """The flows of one copy manager."""

    def __init__(self, manager: CopyManager) -> None:
        self._manager = manager
        self._environment = manager.environment

    # -- steps --

    def own(self, group: Group) -> Flow:
        """The state of our group, as it is now and not as it was last told."""
        result = yield Call(None, "group.state", {"group": group.name})
        group.state = msgspec.convert(result, GroupState)
        return {"state": group.state}

    def peer(self, group: Group, site: str) -> Flow:
        if site not in self._environment.peers():
            known = ", ".join(self._environment.peers()) or "none"
            raise OperatorError(f"site {site!r} is not configured here; the peers: {known}")
        result = yield Call(site, "group.state", {"group": group.name}, 10.0)
        return {"state": msgspec.convert(result, GroupState)}

    def _at(self, site: str | None, group: Group, sequence: int) -> Flow:
        return (yield Call(site, "journal.at", {"group": group.name, "sequence": sequence}, 10.0))

    # -- pair create --

    def create(self, group: Group, site: str) -> Flow:
        """Make a site a secondary: everything is copied once."""
        mine: GroupState = (yield from self.own(group))["state"]
        _at_primary(mine, "pair create")
        theirs: GroupState = (yield from self.peer(group, site))["state"]
        mirror = next((mirror for mirror in mine.mirrors if mirror.name == site), None)
        follows = theirs.role == "secondary" and theirs.primary == self._environment.site
        if (
            mirror is not None
            and follows
            and (theirs.epoch, theirs.reign) == (mine.epoch, mine.reign)
            and theirs.latest >= mirror.received
        ):
            return {"changed": False}
        _check_volumes(mine, theirs, site)
        if theirs.role != "simplex" and not follows:
            whose = f"a secondary of {theirs.primary!r}" if theirs.role == "secondary" else "a primary"
            raise ConflictError(
                f"group {group.name!r} at {site} is {whose}: delete that pair first", role=theirs.role
            )
        if (
            mirror is not None
        ):  # a create that broke off here; where only the peer follows, it broke off there
            yield Call(None, "mirror.remove", {"group": group.name, "mirror": site}, 90.0)
        new = next_state(PairState.SMPL, Event.CREATE)
        # An epoch that this site reigned in and gave up must not supersede us at our next start. A third
        # site's may be one in which it serves: we must not get ahead of that.
        given_up = self._manager.store.reigned_in(group.name, mine.group_id, site)
        epoch = max(mine.epoch, given_up) + 1
        begin = yield Call(
            None,
            "mirror.add",
            {"group": group.name, "mirror": site, "epoch": epoch, "reign": self._environment.random_reign()},
        )
        try:
            yield from self._follow(group, site, begin)
        except ReplctlError:
            yield Call(None, "mirror.remove", {"group": group.name, "mirror": site})
            raise
        self._manager.log(group.name, "pair create", f"{site} is a secondary now: {new}", mirror=site)
        return {"changed": True}

    def _follow(self, group: Group, site: str, begin: dict[str, Any], *, latest: int = -1) -> Flow:
        """Tell a site from which record on it follows us, if it has written nothing since `latest`."""
        mine: GroupState = (yield from self.own(group))["state"]
        params = {
            "group": group.name,
            "primary": self._environment.site,
            "group_id": mine.group_id,
            "epochs": msgspec.to_builtins(mine.epochs),
            "sequence": begin["sequence"],
            "digest": begin["digest"],
            "consistent": begin["consistent"],
            "latest": latest,
            "copy_after": begin["copy_after"],
            "sizes": [(volume.id, volume.size_bytes) for volume in mine.volumes],
        }
        return (yield Call(site, "pair.follow", params, 90.0))

    # -- pair split, delete --

    def split(self, group: Group, site: str | None) -> Flow:
        """Suspend at one point for all volumes, and let the secondary be written."""
        mine: GroupState = (yield from self.own(group))["state"]
        _at_primary(mine, "pair split")
        changed = False
        for name in _mirrors(mine, site):
            mirror = _mirror_of(mine, name)
            state = pair_state_of(mine, mirror)
            if state in ("PSUS", "PFUS"):
                told = yield from self._split_peer(group, name)
                changed = changed or told.get("changed", True)
                continue
            next_state(state, Event.SPLIT)
            marker = yield Call(None, "marker.create", {"group": group.name, "name": f"split {name}"})
            sequence = int(marker["sequence"])
            yield Wait(
                lambda name=name, sequence=sequence: (  # type: ignore[misc]
                    self._restored(group, name) >= sequence or not self._flows(group, name)
                ),
                f"restoring the split point at {name}",
                CATCH_UP_SECONDS,
            )
            if self._restored(group, name) < sequence:
                raise PeerError(
                    f"{name} was suspended before it had the split point: resync, then split again"
                )
            suspended = {
                "group": group.name,
                "mirror": name,
                "state": "split",
                "reason": "split by an operator",
            }
            yield Call(None, "mirror.suspend", suspended)
            yield from self._split_peer(group, name)
            self._manager.log(group.name, "pair split", f"{name} was split at record {sequence}", mirror=name)
            changed = True
        return {"changed": changed}

    def _split_peer(self, group: Group, name: str) -> Flow:
        """Let a site that has restored the split point be written; unchanged when it was told before."""
        return (
            yield Call(name, "pair.split", {"group": group.name, "primary": self._environment.site}, 60.0)
        )

    def _flows(self, group: Group, site: str) -> bool:
        """The journal goes to this site; unknown counts as yes."""
        if group.state is None:
            return True
        return any(mirror.name == site and mirror.state in ("copy", "pair") for mirror in group.state.mirrors)

    def _restored(self, group: Group, site: str) -> int:
        if group.state is None:
            return -1
        return next((mirror.restored for mirror in group.state.mirrors if mirror.name == site), -1)

    def delete(self, group: Group, site: str | None) -> Flow:
        """End a pair. At a secondary whose primary is gone for good this may be asked too."""
        mine: GroupState = (yield from self.own(group))["state"]
        if mine.role == "simplex":
            return (yield from self._release_followers(group, site))
        if mine.role == "secondary" or mine.primary:
            if (yield from self._has_us(group, mine)):
                raise OperatorError(
                    f"the primary {mine.primary!r} is there: pair delete {group.name} at {mine.primary}"
                )
            yield Call(None, "group.demote", {"group": group.name}, 90.0)
            self._manager.log(group.name, "pair delete", f"simplex again, without a word from {mine.primary}")
            return {"changed": True}
        known = {mirror.name for mirror in mine.mirrors}
        if not known:  # a delete that broke off: a primary of nobody is simplex
            yield Call(None, "group.demote", {"group": group.name}, 90.0)
        if not known or (site is not None and site not in known):
            released = yield from self._release_followers(group, site)
            return {"changed": not known or released["changed"]}
        told = True
        for name in _mirrors(mine, site):
            yield Call(None, "mirror.remove", {"group": group.name, "mirror": name}, 90.0)
            try:
                yield Call(
                    name, "pair.release", {"group": group.name, "primary": self._environment.site}, 90.0
                )
            except PeerError as error:
                told = False
                self._manager.log(
                    group.name,
                    "pair delete",
                    f"{name} could not be told ({error}): pair delete {group.name} there too",
                )
            self._manager.log(group.name, "pair delete", f"{name} is no mirror any more", mirror=name)
        return {"changed": True, "peer_told": told}

    def _release_followers(self, group: Group, site: str | None) -> Flow:
        """No mirror is known here: a site that follows us all the same was not told when its pair ended."""
        changed = False
        for name in [site] if site is not None else self._environment.peers():
            if site is None and not self._environment.link_up(name):
                continue
            theirs: GroupState = (yield from self.peer(group, name))["state"]
            if theirs.primary == self._environment.site:
                yield Call(
                    name, "pair.release", {"group": group.name, "primary": self._environment.site}, 90.0
                )
                self._manager.log(group.name, "pair delete", f"{name} follows no more", mirror=name)
                changed = True
        return {"changed": changed}

    def _has_us(self, group: Group, mine: GroupState) -> Flow:
        """Whether the primary we follow answers, is a primary still, and has us for a mirror."""
        if not self._environment.link_up(mine.primary):
            return False
        theirs: GroupState = (yield from self.peer(group, mine.primary))["state"]
        listed = self._environment.site in {mirror.name for mirror in theirs.mirrors}
        return theirs.role == "primary" and not theirs.superseded and listed

    # -- pair resync --

    def resync(self, group: Group, site: str | None) -> Flow:
        """Resume: differences only, whichever side wrote them."""
        mine: GroupState = (yield from self.own(group))["state"]
        _at_primary(mine, "pair resync")
        names = [site] if site is not None else _mirrors(mine, None)
        changed = False
        for name in names:
            result = yield from self.resync_one(group, name)
            changed = changed or result["changed"]
        return {"changed": changed}

    def resync_one(self, group: Group, name: str) -> Flow:
        mine: GroupState = (yield from self.own(group))["state"]
        theirs: GroupState = (yield from self.peer(group, name))["state"]
        mirror = next((mirror for mirror in mine.mirrors if mirror.name == name), None)
        follows = theirs.role == "secondary" and theirs.primary == self._environment.site
        if mirror is not None:
            state = pair_state_of(mine, mirror)
            if state in ("PAIR", "PFUL", "COPY") and follows:
                return {"changed": False}
            if state not in ("PAIR", "PFUL", "COPY"):
                next_state(state, Event.RESYNC)
        damaged = follows and theirs.fetch is not None and theirs.fetch.state == "lost"
        # What it writes from here on would be in no list and in no export: it stands still until it follows.
        yield Call(name, "pair.fence", {"group": group.name}, 60.0)
        try:
            return (yield from self._merge(group, name, damaged=damaged))
        except ReplctlError:
            try:
                yield Call(name, "pair.unfence", {"group": group.name}, 10.0)
            except ReplctlError as error:
                self._manager.log(
                    group.name, "pair resync", f"{name} stays fenced until it restarts: {error}"
                )
            raise

    def _merge(self, group: Group, name: str, *, damaged: bool) -> Flow:
        """Mark what a fenced site wrote alone, and have it follow from where the histories part."""
        mine: GroupState = (yield from self.own(group))["state"]
        theirs: GroupState = (yield from self.peer(group, name))["state"]
        fork = fork_point(mine, theirs)
        fork = (yield from self._check_fork(group, name, fork))["fork"]
        mirror = next((mirror for mirror in mine.mirrors if mirror.name == name), None)
        if lacks_unknown(mirror, theirs):
            raise ConflictError(
                f"group {group.name!r}: the copy to {name} is not complete, and this site knows nothing of "
                "it: one of them was put back to an older state, or another site copied to it. Delete the "
                "pair and create it again (a full copy)",
                sequence=fork.sequence,
            )
        extents: list[list[int]] = []
        if fork.loser_wrote or theirs.role == "primary":
            extents = yield from self._take_back(group, name, fork, theirs)
        for start in range(0, len(extents), _EXTENTS_PER_CALL):
            part = extents[start : start + _EXTENTS_PER_CALL]
            if start + _EXTENTS_PER_CALL < len(extents):
                yield Call(None, "mirror.mark", {"group": group.name, "mirror": name, "extents": part})
            else:
                extents = part
        begin = yield Call(
            None,
            "mirror.resync",
            {
                "group": group.name,
                "mirror": name,
                "common": fork.sequence,
                "extents": extents,
                "journal_damaged": damaged,
            },
            300.0,
        )
        yield from self._follow(group, name, begin, latest=theirs.latest)
        size = sum(extent[2] for extent in extents)
        self._manager.log(
            group.name,
            "pair resync",
            f"{name} follows from record {begin['sequence']} on; {size} bytes it wrote on its own are "
            f"copied back",
            mirror=name,
            common=fork.sequence,
        )
        return {"changed": True}

    def _check_fork(self, group: Group, name: str, fork: Fork) -> Flow:
        """Both sides must have the same digest at the fork, as far as they still know it."""
        mine = yield from self._at(None, group, fork.sequence)
        theirs = yield from self._at(name, group, fork.sequence)
        digests = {found["digest"] for found in (mine, theirs) if found.get("found")}
        if fork.digest:
            digests.add(fork.digest)
        # Who has records on both sides of the fork has the end of a pack there, if the histories are one. The
        # states are asked for afterwards: a tail only moves on.
        states = (yield from self.own(group))["state"], (yield from self.peer(group, name))["state"]
        cut = any(
            not found.get("found") and state.tail <= fork.sequence <= state.durable
            for found, state in zip((mine, theirs), states, strict=True)
        )
        if cut or len(digests) > 1:
            raise ConflictError(
                f"group {group.name!r}: this site and {name} have different histories at record "
                f"{fork.sequence}, "
                "although their epochs are the same. Delete the pair and create it again (a full copy)",
                sequence=fork.sequence,
            )
        if fork.set_back and not (mine.get("found") and theirs.get("found")):
            raise ConflictError(
                f"group {group.name!r}: {name} reigned and ends at record {fork.sequence}, before what it "
                "had shipped: it was put back to an older state, and what it wrote since then is unknown. "
                "Delete the pair and create it again (a full copy)",
                sequence=fork.sequence,
            )
        known = next((mirror.received for mirror in states[0].mirrors if mirror.name == name), -1)
        ours = mine.get("found") or any(
            (epoch.fork_sequence, epoch.fork_digest) == (fork.sequence, fork.digest)
            for epoch in states[0].epochs
        )
        if known < 0 and not ours:
            raise ConflictError(
                f"group {group.name!r}: {name} ends at record {fork.sequence}, and neither the journal nor "
                "the mirrors of this site go back to there: what the two share is not known. Delete the pair "
                "there and create it again (a full copy)",
                sequence=fork.sequence,
            )
        if known < fork.sequence and not ours:
            # Our journal has forgotten the place and was never told that the other side has it: had this site
            # been put back to an older state, other records would have stood there. What both have for
            # certain ends where we know it to be; the rest counts as what it wrote alone.
            return {"fork": Fork(known, "", loser_wrote=True, set_back=fork.set_back)}
        return {"fork": fork}

    def _take_back(self, group: Group, name: str, fork: Fork, theirs: GroupState) -> Flow:
        """What the other side wrote alone: exported there, and to be copied over here."""
        exported = yield Call(
            name,
            "pair.export",
            {"group": group.name, "sequence": fork.sequence, "epoch": theirs.epoch},
            300.0,
        )
        if exported["records"]:
            self._manager.log(
                group.name,
                "export",
                f"{name} had {exported['records']} records behind {fork.sequence} that are in no "
                f"other site's history; "
                f"they are kept there as {exported['path']}",
                **exported,
            )
        changed = yield Call(
            name,
            "pair.changed",
            {"group": group.name, "sequence": fork.sequence, "peer": self._environment.site},
            300.0,
        )
        return changed["extents"]

    # -- verify --

    def verify(self, group: Group) -> Flow:
        """Append digests of everything; answers when the last is appended."""
        mine: GroupState = (yield from self.own(group))["state"]
        _at_primary(mine, "verify")
        _mirrors(mine, None)
        yield Call(None, "group.verify", {"group": group.name})
        yield from self.own(group)
        yield Wait(
            lambda: (
                group.state is not None and (group.state.verify is None or not group.state.verify.running)
            ),
            "appending the digests",
            3600.0,
        )
        assert group.state is not None
        check = group.state.verify
        if check is None or check.last_sequence is None:  # a restart, or another role, ended it
            raise PeerError(f"verifying group {group.name!r} broke off: {group.state.role} now; verify again")
        return {"sequence": check.last_sequence, "extents": check.extents_total}


def _check_volumes(mine: GroupState, theirs: GroupState, site: str) -> None:
    """The secondary must have the same volumes, in the same order."""
    for own, other in zip(mine.volumes, theirs.volumes, strict=False):
        if own != other:
            raise OperatorError(
                f"group {mine.name!r}: volume {own.name!r} ({own.size_bytes} bytes, blocks of "
                f"{own.block_size_bytes}) is "
                f"{other.name!r} ({other.size_bytes} bytes, blocks of {other.block_size_bytes}) at "
                f"{site}: make them alike"
            )
    if len(mine.volumes) != len(theirs.volumes):
        raise OperatorError(
            f"group {mine.name!r} has {len(mine.volumes)} volumes here and {len(theirs.volumes)} at {site}"
        )
