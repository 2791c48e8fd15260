"""Mistakes made on purpose: each is put into the product for the time of a run, and the checkers must see it.

A mutant is a context that replaces one function of the product. What it gets wrong is in its docstring.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any
from unittest.mock import patch

from crc32c import crc32c

from hostagent import pair_flows
from hostagent.at_primary import AtPrimary
from hostagent.plan import Fork
from target import histories, mirrors, obtain, pairing
from target.background import Background
from target.base_copy import BaseCopy
from target.control.messages import GroupState
from target.group import Access, ConsistencyGroup
from target.journal import recovery, ring, scan, superblock
from target.journal.recovery import Decision
from target.journal.ring import Commit, Journal
from target.obtain import WritePath
from target.overlay import Generation
from target.san import intake

Mutant = Callable[[], contextlib.AbstractContextManager[Any]]

MUTANTS: dict[str, Mutant] = {}


def mutant(make: Mutant) -> Mutant:
    MUTANTS[make.__name__.replace("_", " ")] = make
    return make


def _call(function: Callable[..., object], *arguments: object) -> None:
    function(*arguments)


@contextlib.contextmanager
def _both(
    one: contextlib.AbstractContextManager[Any], other: contextlib.AbstractContextManager[Any]
) -> Iterator[None]:
    with one, other:
        yield


@contextlib.contextmanager
def mutated(name: str) -> Iterator[None]:
    """The product with one mistake in it."""
    with MUTANTS[name]():
        yield


@mutant
def acknowledge_before_append() -> Any:
    """A write is answered, then appended one turn later: lost when the process dies between."""
    original = WritePath._append

    def append(self: WritePath, part: obtain._Part) -> None:
        entries, records, data_bytes = obtain._kept(part)
        for _, request, durable in entries:
            if request is not None and not durable:
                request.done()
        original(
            self, obtain._Part([(None, request, True) for _, request, durable in entries if durable], [], 0)
        )
        if records:
            later = obtain._Part([(record, None, False) for record in records], records, data_bytes)
            self._scheduler.call_later(0.001, partial(_call, original, self, later))

    return patch.object(WritePath, "_append", append)


@mutant
def flush_does_not_wait() -> Any:
    """SYNCHRONIZE CACHE and FUA are answered when the write is appended."""
    original = WritePath._append

    def append(self: WritePath, part: obtain._Part) -> None:
        entries = [(record, request, False) for record, request, _ in part.entries]
        original(self, part._replace(entries=entries))

    return patch.object(WritePath, "_append", append)


@mutant
def durable_before_flush() -> Any:
    """A commit counts although the journal was not flushed."""
    original = Journal.begin_commit

    def begin_commit(self: Journal) -> Commit:
        commit = original(self)
        device = self.device

        def work() -> None:
            flush, device.flush = device.flush, lambda: None  # type: ignore[method-assign]
            try:
                commit.work()
            finally:
                device.flush = flush  # type: ignore[method-assign]

        return commit._replace(work=work)

    return patch.object(Journal, "begin_commit", begin_commit)


@mutant
def ship_before_durable() -> Any:
    """The primary announces everything it appended."""
    original = AtPrimary.tell_ready

    def tell_ready(self: AtPrimary, group: Any, state: GroupState) -> None:
        import msgspec

        lsn = state.durable_lsn + 4096 * 2 * (state.latest - state.durable)
        original(self, group, msgspec.structs.replace(state, durable=state.latest, durable_lsn=lsn))

    return patch.object(AtPrimary, "tell_ready", tell_ready)


@mutant
def apply_before_durable() -> Any:
    """The overlay goes to the data volumes without waiting for a commit."""

    def goal(self: Background) -> Any:
        journal = self._journal
        if self.following:
            return (
                (journal.head.lsn, journal.head.sequence)
                if journal.head.sequence > self.applied_sequence
                else None
            )
        if self._overlay.frozen is None:
            return None
        return self._frozen_end.lsn, self._frozen_end.sequence

    return patch.object(Background, "_goal", goal)


@mutant
def release_before_received() -> Any:
    """What a mirror has not received is let go of, and not marked."""

    def report(self: ConsistencyGroup, mirror: Any, received: int, restored: int, verified: int) -> None:
        original(self, mirror, max(received, self.journal.durable.sequence), restored, verified)  # type: ignore[arg-type]

    original = ConsistencyGroup.report_mirror
    return patch.object(ConsistencyGroup, "report_mirror", report)


@mutant
def received_before_durable() -> Any:
    """A secondary says it has what it only appended."""
    from hostagent.at_secondary import AtSecondary

    original = AtSecondary.tell_positions

    def tell_positions(self: Any, group: Any, state: GroupState) -> None:
        import msgspec

        original(self, group, msgspec.structs.replace(state, durable=state.latest))

    return patch.object(AtSecondary, "tell_positions", tell_positions)


@mutant
def skip_the_chain_check() -> Any:
    """A secondary takes any pack with the right number, where it judges packs and where it appends them."""
    original = intake.Intake._header
    receive = ConsistencyGroup.receive

    def header(self: intake.Intake, block: memoryview) -> Any:
        from target.journal.record import decode_header

        found = decode_header(block)
        if found is not None:
            self.position = self.position._replace(
                digest=found.previous_digest if not found.is_pad else self.position.digest
            )
        return original(self, block)

    def append(self: ConsistencyGroup, packs: Any, *arguments: Any) -> None:
        journal = self.journal
        if packs[0][0].first_sequence == journal.head.sequence + 1:
            journal.head = journal.head._replace(digest=packs[0][0].previous_digest)
        receive(self, packs, *arguments)

    return _both(
        patch.object(intake.Intake, "_header", header), patch.object(ConsistencyGroup, "receive", append)
    )


@mutant
def forget_to_mark_on_discard() -> Any:
    """What the full ring drops is not marked for the mirrors that lack it."""
    return patch.object(mirrors, "changed_extents", lambda reader, start, end, group_id: [])


@mutant
def restore_out_of_order() -> Any:
    """Of two writes to one place in one stretch the older one wins."""
    original = Generation.put

    def put(self: Generation, volume: int, offset: int, length: int, position: int) -> None:
        if self.start_lsn == 0 and self.granules.get(volume, {}).get(offset >> 12) is not None:
            return
        original(self, volume, offset, length, position)

    return patch.object(Generation, "put", put)


@mutant
def accept_writes_on_a_returned_old_primary() -> Any:
    """A primary serves at once after a start, without asking anybody."""
    original = ConsistencyGroup._first_access

    def first_access(self: ConsistencyGroup, opened: Any) -> Access:
        access = original(self, opened)
        return Access.SERVE if access is Access.HOLD else access

    return patch.object(ConsistencyGroup, "_first_access", first_access)


@mutant
def tail_moved_before_checkpoint() -> Any:
    """The ring is let go of up to what the mirrors have, applied here durably or not."""
    original = mirrors.Mirrors.move_tail

    def move_tail(self: mirrors.Mirrors, *facts: Any, **more: Any) -> None:
        original(self, *facts, **more)
        journal = self._journal
        received = [mirror.entry.received for mirror in self.table.values()]
        keep = journal.boundary_before(min([journal.durable.sequence, *received]))
        if keep.lsn > journal.superblock.tail.lsn and not self.discarding:
            journal.move_tail(keep)

    return patch.object(mirrors.Mirrors, "move_tail", move_tail)


@mutant
def checkpoint_without_flush() -> Any:
    """The checkpoint moves although the data volumes were not flushed."""
    original = Background.checkpoint

    def checkpoint(self: Background) -> None:
        volumes, self._volumes = self._volumes, {}
        try:
            original(self)
        finally:
            self._volumes = volumes

    return patch.object(Background, "checkpoint", checkpoint)


@mutant
def clear_bits_before_durable() -> Any:
    """The bits of a copied extent are cleared when its record is appended."""
    original = BaseCopy._append

    def append(self: BaseCopy, records: Any, taken: Any) -> None:
        original(self, records, taken)
        for volume, offset, _ in taken:
            self._mirror.bitmap.clear(volume, offset)
        self._mirrors.save(self._mirror)

    return patch.object(BaseCopy, "_append", append)


@mutant
def superblock_written_over_the_good_one() -> Any:
    """Both copies go to one place: a torn one leaves only what stood there when the journal was made."""
    return patch.object(ring, "COPIES", 1)


@mutant
def torn_superblock_accepted() -> Any:
    """The checksum of a superblock is not looked at: the newer of two is taken, torn or not."""
    original = crc32c
    original_decode = superblock.decode

    def decode(block: Any) -> Any:
        copy = bytearray(block)
        copy[-4:] = original(memoryview(copy)[:-4]).to_bytes(4, "little")
        return original_decode(copy)

    from target.journal import format as journal_format

    return patch.object(journal_format, "decode", decode)


@mutant
def recovery_ignores_corruption_and_checksums() -> Any:
    """A pack whose data are torn is taken as it is."""
    return patch.object(scan, "check_data", lambda header, pack: None)


@mutant
def recovery_cuts_what_was_durable() -> Any:
    """The walk at start ends one pack early."""
    original = recovery.decide
    count = 0

    def decide(**facts: bool) -> Decision:
        nonlocal count
        count += 1
        return Decision.CUT if count % 97 == 0 else original(**facts)

    return patch.object(scan, "decide", decide)


@mutant
def resume_without_marking() -> Any:
    """What the other side wrote on its own is not copied back."""
    original = pairing._resync

    def resync(group: Any, name: str, common: Any, behind: Any, extents: Any, done: Any) -> None:
        original(group, name, common, behind, [], done)

    return patch.object(pairing, "_resync", resync)


@mutant
def follow_without_exporting() -> Any:
    """What only this site has is given up without being kept."""
    from target.control import operations

    return patch.object(
        operations,
        "export_since",
        lambda group, sequence, path, done: group.scheduler.call_soon(lambda: done(0, None)),
    )


@mutant
def consistent_before_the_copy_is_complete() -> Any:
    """A secondary counts as a point of the sequence from the start."""
    original = histories.follow

    def follow(group: Any, history: Any, done: Any) -> None:
        original(group, replace(history, consistent=True), done)

    from target.control import operations

    return patch.object(operations, "follow", follow)


@mutant
def take_over_without_the_rest_of_the_journal() -> Any:
    """A takeover serves the volumes without what was received and not restored."""
    return patch.object(
        histories, "unapplied", lambda reader, start, end, group_id, place, volumes: Generation(start.lsn)
    )


@mutant
def superseded_is_not_believed() -> Any:
    """A primary that hears of a newer epoch goes on."""
    from hostagent import copy_manager

    return patch.object(copy_manager, "supersedes", lambda theirs, mine: False)


@mutant
def restored_is_told_as_received() -> Any:
    """A secondary says it restored what it received."""
    from hostagent.at_secondary import AtSecondary

    original = AtSecondary.tell_positions

    def tell_positions(self: Any, group: Any, state: GroupState) -> None:
        import msgspec

        original(self, group, msgspec.structs.replace(state, restored=state.durable))

    return patch.object(AtSecondary, "tell_positions", tell_positions)


@mutant
def every_resync_copies_everything() -> Any:
    """All extents are marked whenever a pair is resumed."""
    original = pairing._resync

    def resync(group: Any, name: str, *facts: Any) -> None:
        known = group.mirrors.table.get(name)
        if known is not None:
            known.bitmap.mark_all()
        original(group, name, *facts)

    return patch.object(pairing, "_resync", resync)


@mutant
def histories_part_where_the_shorter_ends() -> Any:
    """A merge takes for common what is common by its numbers alone."""

    def fork_point(mine: Any, theirs: Any) -> Fork:
        common = min(theirs.latest, mine.durable)
        return Fork(common, "", theirs.latest > common)

    def check_fork(self: Any, group: Any, name: str, fork: Fork) -> Any:
        yield from ()
        return {"fork": fork}

    return _both(
        patch.object(pair_flows, "fork_point", fork_point),
        patch.object(pair_flows.PairFlows, "_check_fork", check_fork),
    )


@mutant
def writes_of_a_quiesced_primary_go_on() -> Any:
    """A primary that promised its role goes on taking writes."""
    original = ConsistencyGroup.set_access

    def set_access(self: ConsistencyGroup, access: Access, reason: str = "") -> None:
        if access is Access.HOLD:
            return
        original(self, access, reason)

    return patch.object(ConsistencyGroup, "set_access", set_access)
