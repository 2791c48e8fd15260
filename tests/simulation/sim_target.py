"""The storage subsystem of a simulated site: the real engine and control operations, in a process that may be
killed. What it does to its journal is watched, never changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from target.control.operations import Operations
from target.control.state import group_state
from target.engine import Engine
from target.errors import ReplctlError
from target.group import Access, ConsistencyGroup, GroupSettings
from target.group_volume import GroupVolume
from target.journal.record import PackHeader, SequenceNumber
from target.journal.ring import Commit, Journal, NewRecord
from target.journal.superblock import Position, Role
from target.open_group import open_group
from target.volume import Buffer
from tests.simulation.conversation import Conversation, Reply
from tests.simulation.history import Node
from tests.simulation.links import SimSource
from tests.simulation.sim_agent import GROUP
from tests.simulation.sim_scheduler import SimScheduler
from tests.simulation.violation import Violation

if TYPE_CHECKING:
    from tests.simulation.sim_site import SimSite
    from tests.simulation.world import World


class SimTarget:
    """One process; `start` makes a new one on the same disks."""

    group: ConsistencyGroup

    def __init__(self, world: World, site: SimSite) -> None:
        self._world = world
        self._site = site
        self.alive = False
        self.scheduler = SimScheduler(world.clock)
        self.started_at = 0.0
        self._subscribers: list[Conversation] = []

    def start(self) -> None:
        world, site = self._world, self._site
        self.scheduler = SimScheduler(world.clock, site.wall_offset_seconds)
        self.scheduler.slowness = site.slowness
        self._subscribers = []
        self.engine = Engine(
            lambda portal, target, lun: SimSource(world, site, world.sites[portal.partition(":")[0]])
        )
        self.group = open_group(
            self.scheduler,
            GroupSettings(GROUP, site=site.name, throttle=site.throttle),
            site.journal_disk,
            site.shapes,
            site.disks,
        )
        self.engine.add(self.group, 0)
        self.operations = Operations(self.engine)
        self.volumes = {
            entry.name: GroupVolume(self.group, entry, f"{site.name}-{entry.name}")
            for entry in self.group.volumes
        }
        self._watch(self.group.journal)
        self.group.listen(self._tell)
        self.alive = True
        self.started_at = world.clock.now
        site.recovered()

    def kill(self) -> None:
        self.alive = False
        self.scheduler.kill()
        for subscriber in self._subscribers:
            subscriber.break_off("the storage subsystem went away")
        self._subscribers = []
        for source in list(self._world.paths.sources):
            if source.reader is self._site:
                source.close()
            elif source.peer is self._site and self._world.paths.san_up(source.reader.name, self._site.name):
                source.lose("connection reset")

    # -- the control socket --

    def attach(self, conversation: Conversation) -> None:
        self._subscribers.append(conversation)
        conversation.tell("group", self._state())

    def forget(self, conversation: Conversation) -> None:
        if conversation in self._subscribers:
            self._subscribers.remove(conversation)

    def _state(self) -> Any:
        return group_state(self.group, self.engine.fetches.get(self.group.name))

    def _tell(self) -> None:
        state = self._state()
        for subscriber in self._subscribers:
            subscriber.tell("group", state)

    def serve(self, op: str, params: dict[str, Any], reply: Reply) -> None:
        answered = False

        def once(result: object = None, error: ReplctlError | None = None) -> None:
            nonlocal answered
            if answered:
                raise Violation(f"{op} was answered twice by the subsystem of {self._site.name}")
            answered = True
            reply(result, error)

        try:
            self.operations.handle(op, params, once)
        except ReplctlError as error:
            once(error=error)
        except Exception as mistake:
            raise Violation(f"{op} failed in the subsystem of {self._site.name}: {mistake!r}") from mistake

    # -- watching the journal --

    def _watch(self, journal: Journal) -> None:
        world, site = self._world, self._site
        append, receive, restart_at = journal.append, journal.receive, journal.restart_at
        begin_commit, finish_commit, move_tail = (
            journal.begin_commit,
            journal.finish_commit,
            journal.move_tail,
        )
        group = self.group

        def watched_append(records: Sequence[NewRecord], time_ns: int) -> list[int]:
            known, epoch = len(journal.index), journal.superblock.epoch
            places = append(records, time_ns)
            ends = [journal.index.boundary(number) for number in range(known + 1, len(journal.index))]
            ends.append(journal.head)
            kept = [record._replace(data=bytes(record.data)) for record in records]
            start = 0
            nodes: list[Node] = []
            for end in ends:
                parent = nodes[-1] if nodes else site.node
                count = end.sequence - parent.last
                nodes.append(
                    Node(
                        end.digest, parent, parent.last + 1, kept[start : start + count], site.name,
                        world.clock.now, epoch,
                    )
                )  # fmt: skip
                start += count
            for node in nodes:
                world.history.add(node)
                site.appended(node)
            return places

        def watched_receive(packs: Sequence[tuple[PackHeader, Buffer]]) -> None:
            receive(packs)
            for header, _ in packs:
                node = world.history.find(header.digest, journal.superblock.group_id)
                if node is None or node.parent is not site.node:
                    raise Violation(
                        f"{site.name} took a pack that does not follow what it has: {header!r:.200}"
                    )
                site.received(node)

        def watched_restart(sequence: SequenceNumber, digest: bytes) -> None:
            site.target_tail_sequence = journal.superblock.tail.sequence
            restart_at(sequence, digest)
            site.restarting()

        def watched_begin() -> Commit:
            commit = begin_commit()
            commits[id(commit)] = site.restarts
            return commit

        def watched_finish(commit: Commit) -> None:
            finish_commit(commit)
            if commits.pop(id(commit), None) == site.restarts:
                site.claimed_durable(journal.durable)

        def watched_tail(to: Position) -> None:
            before = journal.superblock.tail
            move_tail(to)
            if to.lsn > before.lsn:
                world.tell("tail_moved", site, to)

        commits: dict[int, int] = {}
        original_follow = group.set_access

        def watched_access(access: Access, reason: str = "") -> None:
            before = group.access
            original_follow(access, reason)
            if access is Access.SERVE and group.role is Role.PRIMARY:
                world.reigns_since.setdefault((site.name, journal.superblock.reign), world.clock.now)
            if group.access is not before:
                world.tell("access_changed", site, before, group.access)

        for name, watched in (
            ("append", watched_append),
            ("receive", watched_receive),
            ("restart_at", watched_restart),
            ("begin_commit", watched_begin),
            ("finish_commit", watched_finish),
            ("move_tail", watched_tail),
        ):
            setattr(journal, name, watched)
        group.set_access = watched_access  # type: ignore[method-assign]
