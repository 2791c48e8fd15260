"""What connects the sites: a management path and a SAN path in each direction; and a peer's journal LUN.

A path that is cut loses nothing that was sent before it comes back in time; a silence of some seconds ends
the connections over it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from target.errors import PeerError
from target.volume import Buffer
from tests.simulation.conversation import Conversation

if TYPE_CHECKING:
    from tests.simulation.sim_site import SimSite
    from tests.simulation.world import World

SILENCE_SECONDS = (2.0, 5.0)


class Paths:
    """Which ways are open. A pair of sites has a management path each way, and one SAN path."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._cut: set[tuple[str, str]] = set()
        self._san_cut: set[frozenset[str]] = set()
        self.latency_factor = 1.0
        self.conversations: list[tuple[str, str, Conversation]] = []
        self.sources: list[SimSource] = []

    @property
    def whole(self) -> bool:
        return not self._cut and not self._san_cut

    def management_up(self, sender: str, receiver: str) -> bool:
        return (sender, receiver) not in self._cut

    def san_up(self, one: str, other: str) -> bool:
        return frozenset((one, other)) not in self._san_cut

    def latency(self) -> float:
        return self._world.clock.random.uniform(0.0003, 0.02) * self.latency_factor

    def cut_management(self, sender: str, receiver: str) -> None:
        self._cut.add((sender, receiver))
        silence = self._world.clock.random.uniform(*SILENCE_SECONDS)
        for client, server, conversation in list(self.conversations):
            if {client, server} == {sender, receiver}:

                def give_up(conversation: Conversation = conversation, name: str = receiver) -> None:
                    if not self.management_up(sender, receiver):
                        late = self._world.clock.random.random() < 0.5
                        conversation.break_off(f"nothing was heard of {name}", late=late)

                self._world.clock.at(silence, give_up, self)

    def join_management(self, sender: str, receiver: str) -> None:
        self._cut.discard((sender, receiver))
        for client, server, conversation in self.conversations:
            if {client, server} == {sender, receiver}:
                conversation.path_is_back()

    def cut_san(self, one: str, other: str) -> None:
        self._san_cut.add(frozenset((one, other)))
        silence = self._world.clock.random.uniform(*SILENCE_SECONDS)
        for source in list(self.sources):
            if {source.reader.name, source.peer.name} == {one, other}:

                def give_up(source: SimSource = source) -> None:
                    if not self.san_up(one, other):
                        source.lose("no answer")

                self._world.clock.at(silence, give_up, self)

    def join_san(self, one: str, other: str) -> None:
        self._san_cut.discard(frozenset((one, other)))
        for source in list(self.sources):
            source.path_is_back()

    def join_all(self) -> None:
        for sender, receiver in list(self._cut):
            self.join_management(sender, receiver)
        for pair in list(self._san_cut):
            self.join_san(*sorted(pair))
        self.latency_factor = 1.0

    def agent_died(self, name: str) -> None:
        """Who is connected to this agent notices: at once if it can be heard, else after a silence."""
        for client, server, conversation in list(self.conversations):
            if server == name:
                heard = self.management_up(server, client) and self.management_up(client, server)
                delay = self.latency() if heard else self._world.clock.random.uniform(*SILENCE_SECONDS)
                reason = f"{server} closed the link"

                def closed(conversation: Conversation = conversation, reason: str = reason) -> None:
                    conversation.break_off(reason)

                self._world.clock.at(delay, closed, self)
            if name in (client, server):
                self.forget(conversation)

    def forget(self, conversation: Conversation) -> None:
        self.conversations = [entry for entry in self.conversations if entry[2] is not conversation]


class SimSource:
    """`target.san.fetch.JournalSource`: reads the journal disk of a peer while its process lives."""

    def __init__(self, world: World, reader: SimSite, peer: SimSite) -> None:
        self._world = world
        self.reader = reader
        self.peer = peer
        self._owner = reader.target.scheduler
        self._on_down: Callable[[str], None] | None = None
        self._closed = False
        self._waiting: list[Callable[[], None]] = []
        self._paths = world.paths

    def open(self, on_up: Callable[[], None], on_down: Callable[[str], None]) -> None:
        self._on_down = on_down
        self._paths.sources.append(self)

        def connected() -> None:
            if not self.peer.target.alive:
                self.lose("connection refused")
            else:
                on_up()

        if self._paths.san_up(self.reader.name, self.peer.name):
            self._after(connected)
        else:
            self._world.clock.at(2.0, lambda: self.lose("no route"), self._owner)

    def _after(self, call: Callable[[], None]) -> None:
        def arrive() -> None:
            if self._closed:
                return
            if not self._paths.san_up(self.reader.name, self.peer.name):
                self._waiting.append(call)
            else:
                call()

        self._world.clock.at(self._paths.latency(), arrive, self._owner)

    def path_is_back(self) -> None:
        waiting, self._waiting = self._waiting, []
        for call in waiting:
            self._after(call)

    def lose(self, reason: str) -> None:
        """The connection is gone."""
        if not self._closed:
            self.close()
            if self._on_down is not None:
                on_down = self._on_down
                self._world.clock.at(0.0, lambda: on_down(reason), self._owner)

    def read(self, offset: int, length: int, done: Callable[[Buffer | None, Exception | None], None]) -> None:
        def at_peer() -> None:
            if not self.peer.target.alive:
                self.lose("connection reset")
                return
            try:
                data = self.peer.journal_disk.pread(length, offset)
            except OSError as error:
                failure = PeerError(str(error))
                self._after(lambda: done(None, failure))
                return
            self._after(lambda: done(data, None))

        self._after(at_peer)

    def close(self) -> None:
        self._closed = True
        if self in self._paths.sources:
            self._paths.sources.remove(self)
