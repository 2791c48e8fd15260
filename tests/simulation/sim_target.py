"""The storage subsystem of a simulated machine: the real engine and control operations, in a process that may
be killed. What it does to its journals is watched, never changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
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
from tests.simulation.links import SimSource
from tests.simulation.sim_scheduler import SimScheduler
from tests.simulation.violation import Violation

if TYPE_CHECKING:
    from tests.simulation.sim_machine import SimMachine
    from tests.simulation.sim_site import SimSite
    from tests.simulation.world import World


class SimTarget:
    """One process with every group of its machine; `start` makes a new one on the same disks."""

    engine: Engine

    def __init__(self, world: World, machine: SimMachine) -> None:
        self._world = world
        self._machine = machine
        self.alive = False
        self.scheduler = SimScheduler(world.clock)
        self.started_at = 0.0
        self._subscribers: list[Conversation] = []

    def start(self) -> None:
        world, machine = self._world, self._machine
        self.scheduler = SimScheduler(world.clock, machine.wall_offset_seconds)
        self.scheduler.slowness = machine.slowness
        self._subscribers = []
        self.engine = Engine(
            lambda portal, target, lun: SimSource(
                world, machine.sites[lun], world.machines[portal.partition(":")[0]].sites[lun]
            )
        )
        for number, site in machine.sites.items():
            site.target.open(self.scheduler)
            self.engine.add(site.target.group, number)
            site.target.group.listen(partial(self._tell, site.target.group))
        self.operations = Operations(self.engine)
        self.alive = True
        self.started_at = world.clock.now
        for site in machine.sites.values():
            site.recovered()
        machine.lost_power = False

    def kill(self) -> None:
        self.alive = False
        self.scheduler.kill()
        for subscriber in self._subscribers:
            subscriber.break_off("the storage subsystem went away")
        self._subscribers = []
        name = self._machine.name
        for source in list(self._world.paths.sources):
            if source.reader.name == name:
                source.close()
            elif source.peer.name == name and self._world.paths.san_up(source.reader.name, name):
                source.lose("connection reset")

    # -- the control socket --

    def attach(self, conversation: Conversation) -> None:
        self._subscribers.append(conversation)
        for group in self.engine.groups.values():
            conversation.tell("group", self._state(group))

    def forget(self, conversation: Conversation) -> None:
        if conversation in self._subscribers:
            self._subscribers.remove(conversation)

    def _state(self, group: ConsistencyGroup) -> Any:
        return group_state(group, self.engine.fetches.get(group.name))

    def _tell(self, group: ConsistencyGroup) -> None:
        state = self._state(group)
        for subscriber in self._subscribers:
            subscriber.tell("group", state)

    def serve(self, op: str, params: dict[str, Any], reply: Reply) -> None:
        answered = False
        if op == "mirror.resync":
            for site in self._machine.sites.values():
                if site.world.group == params["group"]:
                    site.world.tell("resyncing", site, params["mirror"], params["common"])

        def once(result: object = None, error: ReplctlError | None = None) -> None:
            nonlocal answered
            if answered:
                raise Violation(f"{op} was answered twice by the subsystem of {self._machine.name}")
            answered = True
            reply(result, error)

        try:
            self.operations.handle(op, params, once)
        except ReplctlError as error:
            once(error=error)
        except Exception as mistake:
            raise Violation(f"{op} failed in the subsystem of {self._machine.name}: {mistake!r}") from mistake


class SimGroup:
    """One group in that process, and the volumes that its hosts see."""

    group: ConsistencyGroup
    volumes: dict[str, GroupVolume]

    def __init__(self, site: SimSite) -> None:
        self._site = site

    def open(self, scheduler: SimScheduler) -> None:
        """Recover the journal and put the group in service."""
        site = self._site
        self.group = open_group(
            scheduler,
            GroupSettings(site.world.group, site=site.name, throttle=site.throttle),
            site.journal_disk,
            site.shapes,
            site.disks,
        )
        self.volumes = {
            entry.name: GroupVolume(self.group, entry, f"{site.name}-{entry.name}")
            for entry in self.group.volumes
        }
        self._watch(self.group.journal)

    # -- the process's --

    @property
    def alive(self) -> bool:
        return self._site.machine.target.alive

    @property
    def scheduler(self) -> SimScheduler:
        return self._site.machine.target.scheduler

    @property
    def started_at(self) -> float:
        return self._site.machine.target.started_at

    # -- watching the journal --

    def _watch(self, journal: Journal) -> None:
        world, site = self._site.world, self._site
        append, receive, restart_at = journal.append, journal.receive, journal.restart_at
        begin_commit, finish_commit, move_tail = (
            journal.begin_commit,
            journal.finish_commit,
            journal.move_tail,
        )
        group = self.group

        def watched_append(records: Sequence[NewRecord], time_ns: int) -> list[int]:
            known, epoch = len(journal.index), journal.superblock.epoch
            kept = [record._replace(data=bytes(record.data)) for record in records]
            try:
                places = append(records, time_ns)
            except OSError:
                site.refused.append((site.node, kept, epoch))
                raise
            site.refused.clear()
            ends = [journal.index.boundary(number) for number in range(known + 1, len(journal.index))]
            for node in site.nodes(site.node, [*ends, journal.head], kept, epoch):
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
