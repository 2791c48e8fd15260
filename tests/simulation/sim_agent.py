"""The host agent of a simulated machine: the real copy manager in a process that may be killed.

Its database lives as long as the site: every transaction is durable before it counts.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hostagent.copy_manager import CopyManager
from hostagent.requests import Requests
from hostagent.store import Store
from target.errors import PeerError, ReplctlError
from tests.simulation.conversation import Conversation, Done, Reply
from tests.simulation.violation import Violation

if TYPE_CHECKING:
    from tests.simulation.sim_machine import SimMachine
    from tests.simulation.world import World

_TICK_SECONDS = 0.1
_RETRY_SECONDS = 0.1
_BACKOFF_SECONDS_MAX = 5.0
_REPLAY_CHANCE = 0.02
_DUPLICATE_CHANCE = 0.03
_REPLAY_SECONDS_MAX = 8.0


class SimAgent:
    """Also the `Environment` of its copy manager."""

    def __init__(self, world: World, machine: SimMachine, state_dir: str) -> None:
        self._world = world
        self._machine = machine
        self.site = machine.name
        self.state_dir = state_dir
        self.peer_wait_seconds = world.peer_wait_seconds
        self.serve_without_peers = world.serve_without_peers
        self.store = Store(Path(":memory:"))
        self._kept_store: bytes | None = None
        self.alive = False
        self.owner: object = object()
        self.started_at = 0.0
        self._control: Conversation | None = None
        self._links: dict[str, Conversation] = {}

    # -- life --

    def start(self) -> None:
        self.owner = object()
        self.alive = True
        self.started_at = self._world.clock.now
        self._links = {}
        self._control = None
        self.manager = CopyManager(self, self.store, tuple(scene.group for scene in self._world.scenes))
        self.requests = Requests(self.manager)
        self._later(_TICK_SECONDS * self._world.clock.random.random(), self._tick)
        self._later(0.001, self._connect_target)
        for peer in self.peers():
            self._later(0.001, partial(self._connect, peer, 0.1))

    def kill(self) -> None:
        if not self.alive:
            return
        self.alive = False
        for scene in self._world.scenes:
            scene.operators.agent_died(scene.sites[self.site])
        late = self._world.clock.random.random() < 0.5
        for link in self._links.values():
            link.break_off("the agent died", late=late)
        if self._control is not None:
            self._control.break_off("the agent died", late=late)
            self._machine.target.forget(self._control)
        self._world.clock.kill(self.owner)
        self._world.paths.agent_died(self.site)

    def keep_store(self) -> None:
        """A backup of the database."""
        self._kept_store = self.store._db.serialize()

    def back_to_kept_store(self) -> None:
        """The backup is put back, if there is one; the agent is off."""
        if self._kept_store is not None:
            self.new_store()
            self.store._db.deserialize(self._kept_store)

    def new_store(self) -> None:
        """An empty database."""
        self.store.close()
        self.store = Store(Path(":memory:"))

    def _later(self, seconds: float, call: Callable[[], None]) -> None:
        self._world.clock.at(seconds, call, self.owner)

    def run(self, call: Callable[[], None]) -> None:
        """One event of the copy manager; what it does not know is a mistake of ours."""
        try:
            call()
        except Exception as mistake:
            raise Violation(f"the copy manager of {self.site} met {mistake!r}") from mistake

    def _tick(self) -> None:
        self._later(_TICK_SECONDS, self._tick)
        self.run(self.manager.on_tick)

    # -- connections --

    def _connect_target(self) -> None:
        target = self._machine.target
        if not target.alive:
            self._later(_RETRY_SECONDS, self._connect_target)
            return

        def note(name: str, params: dict[str, Any]) -> None:
            if name == "group":
                self.manager.on_group_state(params)

        def broken(_: str) -> None:
            self._control = None
            self.manager.on_target_down()
            self._later(_RETRY_SECONDS, self._connect_target)

        self._control = Conversation(
            self._world.clock,
            self.owner,
            target.scheduler,
            latency=lambda: self._world.clock.random.uniform(0.00005, 0.002),
            passes=lambda _: True,
            heard=lambda scheduler=target.scheduler: target.alive and target.scheduler is scheduler,  # type: ignore[misc]
            serve=target.serve,
            on_note=note,
            on_broken=broken,
            run=self.run,
        )
        self.run(self.manager.on_target_up)
        target.attach(self._control)

    def _connect(self, name: str, backoff: float) -> None:
        world = self._world
        peer = world.machines[name].agent
        paths = world.paths

        def again() -> None:
            delay = backoff * world.clock.random.uniform(0.5, 1.0)
            self._later(delay, partial(self._connect, name, min(backoff * 2, _BACKOFF_SECONDS_MAX)))

        if (
            not peer.alive
            or not paths.management_up(self.site, name)
            or not paths.management_up(name, self.site)
        ):
            again()
            return
        server_owner = peer.owner

        def connected() -> None:
            if peer.owner is not server_owner or not peer.alive:
                again()
                return

            def broken(reason: str) -> None:
                paths.forget(conversation)
                self._links.pop(name, None)
                self.manager.on_peer_down(name, reason)
                self._later(backoff, partial(self._connect, name, 0.1))

            conversation = Conversation(
                world.clock,
                self.owner,
                server_owner,
                latency=paths.latency,
                passes=lambda to_server: paths.management_up(
                    *((self.site, name) if to_server else (name, self.site))
                ),
                heard=lambda: peer.alive and peer.owner is server_owner,
                serve=lambda op, params, reply: peer.serve(self.site, op, params, reply),
                on_broken=broken,
                run=self.run,
            )
            self._links[name] = conversation
            paths.conversations.append((self.site, name, conversation))
            self.run(lambda: self.manager.on_peer_up(name))

        self._later(4 * paths.latency(), connected)

    # -- what others ask --

    def serve(self, peer: str, op: str, params: dict[str, Any], reply: Reply) -> None:
        """A request or note; `peer` is '' for an operator."""

        def handle() -> None:
            try:
                self.requests.handle(peer, op, params, reply)
            except ReplctlError as error:
                reply(error=error)

        self.run(handle)

    # -- Environment --

    def call(
        self, site: str | None, op: str, params: dict[str, Any], done: Done, timeout_seconds: float
    ) -> None:
        conversation = self._control if site is None else self._links.get(site)
        if conversation is not None:
            conversation.call(op, params, done, timeout_seconds)
            random = self._world.clock.random
            if site is not None and self._world.replays and random.random() < _DUPLICATE_CHANCE:
                conversation.call(op, params, lambda result, error: None, timeout_seconds)
            return
        where = "the storage subsystem" if site is None else site
        error = PeerError(f"{op} was not sent: the link to {where} is down")
        self._later(0.0, lambda: self.run(lambda: done(None, error)))

    def notify(self, site: str, note: str, params: dict[str, Any]) -> None:
        conversation = self._links.get(site)
        if conversation is None:
            return
        for scene in self._world.scenes:
            if scene.group == params["group"]:
                scene.tell("noted", scene.sites[self.site], note, params)
        conversation.notify(note, params)
        random = self._world.clock.random
        if self._world.replays and random.random() < _REPLAY_CHANCE:
            peer = self._world.machines[site].agent

            def replay() -> None:
                if peer.alive and self._world.paths.management_up(self.site, site):
                    peer.serve(self.site, note, params, lambda result=None, error=None: None)

            self._world.clock.at(random.uniform(0.0, _REPLAY_SECONDS_MAX), replay, self._world)

    def link_up(self, site: str) -> bool:
        return site in self._links

    def san_address(self, site: str) -> tuple[str, str] | None:
        return f"{site}:3260", f"iqn.2026-01.org.replctl:{site}.san"

    def peers(self) -> list[str]:
        return [name for name in self._world.machines if name != self.site]

    def monotonic(self) -> float:
        return self._world.clock.now

    def wall_ns(self) -> int:
        return self._machine.wall_ns()

    def random_reign(self) -> int:
        return self._world.clock.random.getrandbits(63)
