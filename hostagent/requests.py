"""Who may ask what: operators through the agent's socket, peers through their links. Each operation is one
row of a table.

Requests that need several steps become flows; the others are answered from what is known, or passed on to our
storage subsystem.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hostagent.copy_manager import TAKEOVER, CopyManager
from hostagent.flow import Done, Flow, Result
from hostagent.known import Group
from hostagent.pair_flows import PairFlows
from hostagent.rpc import Params, Reply
from hostagent.status import group_status, pair_status
from hostagent.takeover import TakeoverFlows
from target.errors import ConflictError, OperatorError, ReplctlError

Operation = Callable[[str, Params, Reply], None]

_SLOW_SECONDS = 300.0


class Requests:
    """Dispatches requests, on the copy manager's thread."""

    def __init__(self, manager: CopyManager) -> None:
        self._manager = manager
        self._environment = manager.environment
        self._flows = PairFlows(manager)
        self._takeovers = TakeoverFlows(manager, self._flows)
        self._operators: dict[str, Operation] = {
            "ping": self._ping,
            "pair.create": self._create,
            "pair.status": self._pair_status,
            "pair.split": self._split,
            "pair.resync": self._resync,
            "pair.delete": self._delete,
            "takeover": self._takeover,
            "marker.create": self._create_marker,
            "marker.list": self._to_target("marker.list"),
            "group.status": self._group_status,
            "verify": self._verify,
            "volume.grow": self._to_target("volume.grow"),
            "journal.grow": self._to_target("journal.grow"),
            "events": self._events,
            "lio.status": self._of_site("lio.status"),
            "lio.restore": self._of_site("lio.restore"),
        }
        self._peers: dict[str, Operation] = {
            "ping": self._ping,
            "group.exchange": self._exchange,
            "group.state": self._to_target("group.state"),
            "journal.at": self._to_target("journal.at"),
            "journal.source": self._source,
            "pair.follow": self._follow,
            "pair.split": self._peer_split,
            "pair.release": self._release,
            "pair.fence": self._fence,
            "pair.unfence": self._to_target("group.unfence"),
            "pair.export": self._export,
            "pair.changed": self._to_target("group.changed"),
            "takeover.quiesce": self._quiesce,
            "takeover.abort": self._abort,
        }

    def handle(self, peer: str, op: str, params: Params, reply: Reply) -> None:
        """One request or note; `peer` is '' for an operator."""
        if peer and op in ("journal.ready", "mirror.positions"):
            self._manager.on_note(peer, op, params)
            return
        table = self._peers if peer else self._operators
        operation = table.get(op)
        if operation is None:
            raise OperatorError(f"the host agent knows no operation {op!r}{' for peers' if peer else ''}")
        if peer and peer not in self._environment.peers():
            raise OperatorError(f"site {peer!r} is not configured as a peer of {self._environment.site!r}")
        operation(peer, params, reply)

    # -- building blocks --

    def _group(self, params: Params) -> Group:
        return self._manager.group(params.get("group"))

    def _ask_target(
        self, op: str, params: Params, reply: Reply, timeout_seconds: float = _SLOW_SECONDS
    ) -> None:
        def done(result: Result | None, error: ReplctlError | None) -> None:
            reply(result) if error is None else reply(error=error)

        self._environment.call(None, op, params, done, timeout_seconds)

    def _to_target(self, op: str) -> Operation:
        """Passed on as it is."""

        def operation(_: str, params: Params, reply: Reply) -> None:
            self._group(params)
            self._ask_target(op, params, reply)

        return operation

    def _of_site(self, op: str) -> Operation:
        """Passed on as it is, for no group."""
        return lambda _, params, reply: self._ask_target(op, params, reply)

    def _run(self, group: Group, name: str, flow: Flow, reply: Reply) -> None:
        done: Done = lambda result, error: reply(result) if error is None else reply(error=error)  # noqa: E731
        self._manager.flows.start(group.name, name, flow, done)

    # -- operators --

    def _ping(self, _: str, params: Params, reply: Reply) -> None:
        def done(result: Result | None, error: ReplctlError | None) -> None:
            ready = bool(result and result.get("ready"))
            reply(
                {
                    "ready": ready,
                    "site": self._environment.site,
                    "reason": "" if error is None else str(error),
                    "links": {site: self._environment.link_up(site) for site in self._environment.peers()},
                }
            )

        self._environment.call(None, "ping", {}, done, 2.0)

    def _create(self, _: str, params: Params, reply: Reply) -> None:
        group = self._group(params)
        self._run(group, "pair create", self._flows.create(group, str(params.get("secondary"))), reply)

    def _split(self, _: str, params: Params, reply: Reply) -> None:
        group = self._group(params)
        self._run(group, "pair split", self._flows.split(group, params.get("secondary")), reply)

    def _resync(self, _: str, params: Params, reply: Reply) -> None:
        group = self._group(params)
        self._run(group, "pair resync", self._flows.resync(group, params.get("secondary")), reply)

    def _delete(self, _: str, params: Params, reply: Reply) -> None:
        group = self._group(params)
        self._run(group, "pair delete", self._flows.delete(group, params.get("secondary")), reply)

    def _takeover(self, _: str, params: Params, reply: Reply) -> None:
        group = self._group(params)
        force = bool(params.get("force"))
        if params.get("plan"):
            self._run(
                group,
                "takeover --plan",
                self._takeovers.plan(group, force=force),
                lambda result=None, error=None: reply(result and result["plan"], error),
            )
        else:
            self._run(group, TAKEOVER, self._takeovers.takeover(group, force=force), reply)

    def _verify(self, _: str, params: Params, reply: Reply) -> None:
        group = self._group(params)
        self._run(group, "verify", self._flows.verify(group), reply)

    def _pair_status(self, _: str, params: Params, reply: Reply) -> None:
        reply(pair_status(self._manager, self._group(params)))

    def _group_status(self, _: str, params: Params, reply: Reply) -> None:
        reply(group_status(self._manager, self._group(params)))

    def _create_marker(self, _: str, params: Params, reply: Reply) -> None:
        group = self._group(params)
        name = params.get("name")
        self._ask_target("marker.create", {"group": group.name, "name": name}, reply)
        self._manager.log(group.name, "marker", f"marker {name!r} was asked for")

    def _events(self, _: str, params: Params, reply: Reply) -> None:
        group = params.get("group")
        if group is not None:
            self._manager.group(group)
        reply({"events": self._manager.store.events(group, int(params.get("limit") or 100))})

    # -- peers --

    def _exchange(self, peer: str, params: Params, reply: Reply) -> None:
        reply(self._manager.on_exchange(self._group(params), peer, params))

    def _source(self, peer: str, params: Params, reply: Reply) -> None:
        """A mirror asks where in our journal LUN to go on."""
        group = self._group(params)
        state = self._manager.state_of(group)
        mirror = next((mirror for mirror in state.mirrors if mirror.name == peer), None)
        if state.role != "primary" or mirror is None:
            reply({"found": False, "reason": f"{peer} is no mirror of {self._environment.site}"})
        elif mirror.state not in ("copy", "pair"):
            reply(
                {
                    "found": False,
                    "reason": f"{peer} is suspended ({mirror.state}): pair resync at the primary",
                }
            )
        else:
            sequence = int(params["sequence"])

            def found(result: Any = None, error: ReplctlError | None = None) -> None:
                if result is not None and not result.get("found"):
                    self._manager.on_place_unknown(group, peer, sequence)
                reply(result, error)

            self._ask_target("journal.at", {"group": group.name, "sequence": sequence}, found, 10.0)

    def _follow(self, peer: str, params: Params, reply: Reply) -> None:
        group = self._group(params)
        self._may_follow(group, peer)
        self._manager.log(group.name, "follow", f"follows {peer} from record {params['sequence']} on")
        group.announced = None
        group.begins_to_follow = True

        def followed(result: Result | None, error: ReplctlError | None) -> None:
            """Answer when we know the new state: what we tell the primary then is of nothing older."""

            def looked(state: Result | None, failure: ReplctlError | None) -> None:
                group.begins_to_follow = False
                if state is not None:
                    self._manager.on_group_state(state)
                wrong = error or failure
                reply(result) if wrong is None else reply(error=wrong)

            self._environment.call(None, "group.state", {"group": group.name}, looked, 10.0)

        self._environment.call(None, "group.follow", {**params, "primary": peer}, followed, _SLOW_SECONDS)

    def _fence(self, peer: str, params: Params, reply: Reply) -> None:
        """The primary is about to merge what we wrote alone: stand still."""
        group = self._group(params)
        self._may_follow(group, peer)
        self._ask_target("group.fence", {"group": group.name}, reply, 60.0)

    def _may_follow(self, group: Group, peer: str) -> None:
        """OperatorError when this site reigns, and nobody took that from it."""
        state = self._manager.state_of(group)
        reigns = state.role == "primary" and not state.primary and state.mirrors
        if reigns and not self._handed_over(group, peer):
            raise OperatorError(
                f"{self._environment.site} reigns over group {group.name!r} and follows nobody"
            )

    def _handed_over(self, group: Group, peer: str) -> bool:
        """We promised the role, or the peer reigns in a newer epoch."""
        state = group.state
        return state is not None and (state.promised or state.superseded or peer in self._superseding(group))

    def _superseding(self, group: Group) -> set[str]:
        mine = group.state
        return {
            site
            for site, (theirs, _) in group.peer_states.items()
            if mine is not None and theirs.epoch > mine.epoch
        }

    def _peer_split(self, peer: str, params: Params, reply: Reply) -> None:
        group = self._group(params)
        state = self._manager.state_of(group)
        if state.primary != peer:
            raise OperatorError(f"group {group.name!r} follows {state.primary!r} here, not {peer!r}")
        if state.role == "primary":
            reply({"changed": False})
            return
        promote = {
            "group": group.name,
            "epoch": state.epoch + 1,
            "reign": self._environment.random_reign(),
            "mirrors": [{"name": peer, "state": "left", "received": state.latest}],
            "split_from": peer,
        }
        self._ask_target("group.promote", promote, reply)

    def _release(self, peer: str, params: Params, reply: Reply) -> None:
        """The primary deleted the pair."""
        group = self._group(params)
        state = self._manager.state_of(group)
        if state.primary != peer:
            reply({"changed": False})
            return
        self._manager.log(group.name, "pair delete", f"{peer} ended the pair")
        self._ask_target("group.demote", {"group": group.name}, reply)

    def _export(self, peer: str, params: Params, reply: Reply) -> None:
        """Keep what we alone have before it is given up."""
        group = self._group(params)
        sequence, epoch = int(params["sequence"]), int(params["epoch"])
        path = f"{self._environment.state_dir}/exports/{group.name}-epoch{epoch}-from{sequence + 1}.journal"
        self._ask_target("group.export", {"group": group.name, "sequence": sequence, "path": path}, reply)

    def _quiesce(self, peer: str, params: Params, reply: Reply) -> None:
        group = self._group(params)
        state = self._manager.state_of(group)
        if state.promised and group.promised_to not in ("", peer):
            raise ConflictError(
                f"{group.promised_to} takes over group {group.name!r} already: wait for its outcome",
                promised_to=group.promised_to,
            )
        if not any(mirror.name == peer for mirror in state.mirrors):
            raise OperatorError(
                f"{peer!r} is no mirror of group {group.name!r} at {self._environment.site!r}"
            )
        self._manager.log(group.name, "takeover", f"{peer} takes over: writes wait from here on")
        # What peers said before this, also on behalf of a takeover that broke off, confirms nothing any more.
        group.confirm_since = None
        group.promised_to = peer

        def answer(result: Any = None, error: ReplctlError | None = None) -> None:
            reply({**result, "epoch": state.epoch} if result is not None else None, error)

        self._ask_target("group.quiesce", {"group": group.name}, answer, 30.0)

    def _abort(self, peer: str, params: Params, reply: Reply) -> None:
        group = self._group(params)
        state = self._manager.state_of(group)
        if state.superseded or not state.promised or group.promised_to not in ("", peer):
            reply({})  # somebody else took over meanwhile, or it was undone before
            return
        self._manager.log(group.name, "takeover", f"{peer} did not take over: this site serves again")
        access = {"group": group.name, "access": "serve", "reason": "", "superseded": False}
        self._ask_target("group.access", access, reply, 10.0)
