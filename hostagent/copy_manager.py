"""The copy manager: brings the states of the two subsystems together, one group at a time. No I/O, no
threads, no clock of its own.

It hears of the state of its own groups (level, not edges), of links that come and go, of what peers and
operators ask, and of time. It answers with calls and notifications through an `Environment`. Two kinds of
work: *reconciling* (`_reconcile`, repeated whenever something changed, idempotent) keeps an existing pair
running after any restart, and *flows* (`pair_flows`) do what an operator asks.

The conversation of a running pair: the primary tells each mirror how far its journal is durable (note
`journal.ready`); the mirror's subsystem fetches; the mirror tells how far it received, restored and verified
(note `mirror.positions`), and the primary's subsystem releases. Positions are cumulative, so a lost or
repeated note does no harm, and no round trip limits the throughput.
"""

from __future__ import annotations

import logging
from typing import Any

import msgspec

from hostagent.at_primary import AtPrimary
from hostagent.at_secondary import AtSecondary
from hostagent.environment import Environment
from hostagent.flow import FlowRunner, Result
from hostagent.known import Group
from hostagent.plan import diverged, supersedes
from hostagent.store import Store
from target.control.messages import GroupState
from target.errors import OperatorError, PeerError, ReplctlError

_log = logging.getLogger(__name__)


TAKEOVER = "takeover"
"""The name of the flow during which this site does not say what it is."""

_ASK_AGAIN_SECONDS = 0.5
_PAIR_SAVE_SECONDS = 5.0


class CopyManager:
    """One site's copy manager. All methods run on one thread."""

    def __init__(self, environment: Environment, store: Store, group_names: tuple[str, ...]) -> None:
        self.environment = environment
        self.store = store
        self.groups = {name: Group(name) for name in group_names}
        self.flows = FlowRunner(environment)
        self.target_up = False
        self._at_primary = AtPrimary(self)
        self._at_secondary = AtSecondary(self)

    # -- what is known --

    def group(self, name: object) -> Group:
        """A group by name; OperatorError when it is not one of ours."""
        found = self.groups.get(name) if isinstance(name, str) else None
        if found is None:
            known = ", ".join(sorted(self.groups)) or "none"
            raise OperatorError(
                f"there is no group {name!r} at site {self.environment.site!r}; the groups: {known}"
            )
        return found

    def state_of(self, group: Group) -> GroupState:
        """The state of our own subsystem's group; PeerError while the subsystem does not answer."""
        if group.state is None or not self.target_up:
            raise PeerError(
                f"the storage subsystem of site {self.environment.site!r} does not answer: is it running? "
                "(its log tells; replctl lab status shows the daemons of a lab)"
            )
        return group.state

    def log(self, group: str, kind: str, text: str, **facts: object) -> None:
        """Write the event log."""
        _log.info("%s: %s: %s", group, kind, text)
        self.store.log(self.environment.wall_ns(), group, kind, text, facts)

    # -- what happens --

    def on_group_state(self, params: object) -> None:
        """Our subsystem told the state of a group."""
        state = msgspec.convert(params, GroupState)
        group = self.groups.get(state.name)
        if group is None:
            return
        before, group.state = group.state, state
        group.heard_at = self.environment.monotonic()
        self._note_changes(group, before, state)
        self._reconcile(group)
        self.flows.poll()

    def on_target_up(self) -> None:
        """The control socket answers."""
        self.target_up = True

    def on_target_down(self) -> None:
        """The subsystem is gone; its state is not known until it comes back."""
        self.target_up = False
        for group in self.groups.values():
            group.state = None
            group.fetch_asked = group.asking = False
            group.confirm_since = None
            group.advanced_to = (0, 0)

    def on_peer_up(self, site: str) -> None:
        """The link to a peer is up."""
        for group in self.groups.values():
            group.told.pop(site, None)
            group.positions_told = ((), 0.0)
            group.next_ask_at = 0.0
            self._reconcile(group)

    def on_peer_down(self, site: str, reason: str) -> None:
        """The link to a peer is gone."""
        for group in self.groups.values():
            group.peer_states.pop(site, None)

    def on_tick(self) -> None:
        """Some time passed: about ten times a second."""
        for group in self.groups.values():
            self._reconcile(group)
        self.flows.poll()

    def on_note(self, site: str, note: str, params: dict[str, Any]) -> None:
        """A peer told something."""
        group = self.groups.get(params.get("group", ""))
        if group is None:
            return
        if note == "journal.ready":
            self._at_secondary.on_ready(group, site, params)
        elif note == "mirror.positions":
            self._at_primary.on_positions(group, site, params)
        else:
            _log.warning("%s sent a note that is not known: %s", site, note)

    def on_place_unknown(self, group: Group, site: str, sequence: int) -> None:
        """A mirror asked where to go on, and our journal does not hold that any more."""
        self._at_primary.on_place_unknown(group, site, sequence)

    # -- reconciling --

    def _reconcile(self, group: Group) -> None:
        state = group.state
        if state is None or not self.target_up:
            return
        self._exchange_states(group, state)
        if state.role == "primary":
            self._confirm(group, state)
            self._at_primary.tell_ready(group, state)
            self._save_pairs(group, state)
        elif state.role == "secondary":
            self._at_secondary.fetch(group, state)
            self._at_secondary.tell_positions(group, state)

    def _exchange_states(self, group: Group, state: GroupState) -> None:
        """Know the state of the group at every peer that matters, not older than a moment."""
        now = self.environment.monotonic()
        if group.asking or now < group.next_ask_at or (state.role == "simplex" and not state.epochs):
            return
        if self.flows.doing(group.name) == TAKEOVER:
            return  # what we are is about to change: better said when it is certain
        sites = [site for site in self.environment.peers() if self.environment.link_up(site)]
        if not sites:
            return
        group.asking = True
        group.next_ask_at = now + _ASK_AGAIN_SECONDS
        left = len(sites)

        def answered(site: str, result: Result | None) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                group.asking = False
            if result is not None and "state" in result:
                self._on_peer_state(group, site, result)
                theirs = group.peer_states[site][0]
                group.peer_states[site] = (theirs, now)
                self._at_primary.look_at_mirror(group, site, theirs)
            self._reconcile(group)

        for site in sites:
            self.environment.call(
                site,
                "group.exchange",
                {"group": group.name, "state": msgspec.to_builtins(state)},
                lambda result, error, site=site: answered(site, result),  # type: ignore[misc]
                5.0,
            )

    def on_exchange(self, group: Group, site: str, params: dict[str, Any]) -> Result:
        """A peer showed its state of a group and asks for ours."""
        if params.get("state") is not None:
            self._on_peer_state(group, site, params)
        if group.state is None or not self.target_up or self.flows.doing(group.name) == TAKEOVER:
            return {}
        if group.state.changing:
            return {}
        return {"state": msgspec.to_builtins(group.state)}

    def _on_peer_state(self, group: Group, site: str, result: Result) -> None:
        theirs = msgspec.convert(result["state"], GroupState)
        _, asked_at = group.peer_states.get(site, (theirs, -1.0))
        group.peer_states[site] = (theirs, asked_at)
        if theirs.role == "primary" and not theirs.primary:
            self.store.heard_of(group.name, theirs.group_id, theirs.epoch, theirs.reign, site)
        mine = group.state
        if mine is None or mine.role != "primary" or mine.access == "failed":
            return
        if supersedes(theirs, mine) and not mine.primary and not mine.superseded:
            self.log(
                group.name,
                "superseded",
                f"{site} reigns in epoch {theirs.epoch}, this site's is {mine.epoch}: writes are "
                f"refused from here on",
                peer=site,
                epoch=theirs.epoch,
            )
            self._set_access(
                group, "read_only", f"superseded by {site} in epoch {theirs.epoch}", superseded=True
            )
        elif diverged(theirs, mine):
            text = f"{site} reigns too, in another epoch {theirs.epoch}: both sites were taken over"
            if group.conflict != text:
                group.conflict = text
                self.log(group.name, "conflict", text, peer=site, epoch=theirs.epoch)
        elif group.conflict.startswith(f"{site} "):
            group.conflict = ""

    def _set_access(self, group: Group, access: str, reason: str, *, superseded: bool = False) -> None:
        params = {"group": group.name, "access": access, "reason": reason, "superseded": superseded}

        def done(_: Result | None, error: ReplctlError | None) -> None:
            if error is not None:
                _log.warning("%s: access %s was not set: %s", group.name, access, error)

        self.environment.call(None, "group.access", params, done, 10.0)

    def _confirm(self, group: Group, state: GroupState) -> None:
        """After a start: serve when no peer knows a newer epoch, or when the policy says so without their
        word.
        """
        # A flow that only watches mirrors may wait for long, and hosts would wait with it.
        if (
            state.access != "hold"
            or state.changing
            or self.flows.doing(group.name) not in ("", "pair split", "verify")
        ):
            group.confirm_since = None
            return
        now = self.environment.monotonic()
        if group.confirm_since is None:
            group.confirm_since = now
        if state.primary:  # a split secondary serves in its own right
            self._set_access(group, "serve", "")
            return
        known = self.store.newest_epoch(group.name, state.group_id)
        if known is not None and known.epoch > state.epoch:
            text = f"superseded by {known.site} in epoch {known.epoch}"
            self._set_access(group, "read_only", text, superseded=True)
            return
        asked = {mirror.name for mirror in state.mirrors}
        # Only answers to questions of after: an older one may have crossed a takeover that began meanwhile.
        fresh = {site for site, (_, asked_at) in group.peer_states.items() if asked_at >= group.confirm_since}
        if asked <= fresh:
            self._set_access(group, "serve", "")
        elif now - group.confirm_since >= self.environment.peer_wait_seconds and not state.promised:
            silent = ", ".join(sorted(asked - fresh))
            if self.environment.serve_without_peers:
                self.log(group.name, "serve", f"{silent} did not answer; the policy is to serve")
                self._set_access(group, "serve", "")
            elif state.reason != "refused":
                text = (
                    f"{silent} did not answer; the policy is to refuse writes until they do "
                    "(or takeover --force)"
                )
                self.log(group.name, "refuse", text)
                group.confirm_since = now

    # -- history --

    def _note_changes(self, group: Group, before: GroupState | None, state: GroupState) -> None:
        """Log what an operator would want to find later."""
        if before is None or (before.role, before.access, before.epoch) != (
            state.role,
            state.access,
            state.epoch,
        ):
            text = f"{state.role} in epoch {state.epoch}, access {state.access}"
            self.log(group.name, "role", text + (f" ({state.reason})" if state.reason else ""))
        states = {mirror.name: mirror.state for mirror in state.mirrors}
        for mirror in state.mirrors:
            if group.mirror_states.get(mirror.name) != mirror.state:
                reason = f": {mirror.reason}" if mirror.reason else ""
                self.log(group.name, "pair", f"{mirror.name} is in state {mirror.state}{reason}")
                group.pairs_saved_at = 0.0
        for name in group.mirror_states.keys() - states.keys():
            self.store.remove_pair(group.name, name)
        group.mirror_states = states
        fetch, old = state.fetch, before.fetch if before else None
        if fetch is not None and (old is None or old.state != fetch.state):
            reason = f": {fetch.reason}" if fetch.reason else ""
            self.log(group.name, "SAN link", f"{state.primary}: {fetch.state}{reason}")

    def _save_pairs(self, group: Group, state: GroupState) -> None:
        now = self.environment.monotonic()
        if now - group.pairs_saved_at < _PAIR_SAVE_SECONDS:
            return
        group.pairs_saved_at = now
        for mirror in state.mirrors:
            self.store.save_pair(
                group.name, mirror.name, state.role, mirror.state, mirror.received, mirror.restored
            )
