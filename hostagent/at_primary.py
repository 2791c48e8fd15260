"""The primary's side of a running pair: tell each mirror how far the journal is durable, release what it
received.

Invariant: nothing is announced that is not durable here, and nothing is released that is not durable there
(I4).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hostagent.flow import Result
from hostagent.known import REPORT_SECONDS, Group, MirrorReport
from hostagent.plan import lacks_unknown
from target.control.messages import GroupState
from target.errors import ReplctlError

if TYPE_CHECKING:
    from hostagent.copy_manager import CopyManager

_STRAY_SECONDS = 1.0


class AtPrimary:
    """For every group whose role is primary."""

    def __init__(self, manager: CopyManager) -> None:
        self._manager = manager
        self._environment = manager.environment

    def tell_ready(self, group: Group, state: GroupState) -> None:
        now = self._environment.monotonic()
        for mirror in state.mirrors:
            if mirror.state not in ("copy", "pair") or not self._environment.link_up(mirror.name):
                continue
            told, at = group.told.get(mirror.name, (-1, 0.0))
            if told == state.durable and now - at < REPORT_SECONDS:
                continue
            group.told[mirror.name] = (state.durable, now)
            self._environment.notify(
                mirror.name,
                "journal.ready",
                {
                    "group": group.name,
                    "epoch": state.epoch,
                    "reign": state.reign,
                    "durable": state.durable,
                    "durable_lsn": state.durable_lsn,
                    "ring_bytes": state.ring_bytes,
                    "latest": state.latest,
                    "received": mirror.received,
                    "time_ns": self._environment.wall_ns(),
                },
            )

    def on_positions(self, group: Group, site: str, params: dict[str, Any]) -> None:
        state = group.state
        if state is None or state.role != "primary":
            return
        if (params.get("epoch"), params.get("reign")) not in {(e.epoch, e.reign) for e in state.epochs}:
            return  # its positions are not in our history: a takeover there that broke off, for one
        report = group.reports.get(site)
        if report is None:
            report = group.reports[site] = MirrorReport(params, 0.0)
        report.params, report.heard_at, report.unsent = params, self._environment.monotonic(), True
        group.shipped[site] = params["latest"]
        self._release(group, site, report)
        self._repair(group, site, report)
        if params.get("failed") or (params.get("fetch") or {}).get("state") == "lost":
            group.next_ask_at = 0.0  # a note may be old, or told again: an answer says whether it is so

    def _release(self, group: Group, site: str, report: MirrorReport) -> None:
        """Hand the newest positions to our subsystem, one call at a time."""
        state = group.state
        if report.sending or not report.unsent or state is None:
            return
        if not any(mirror.name == site and mirror.state in ("copy", "pair") for mirror in state.mirrors):
            return
        report.sending, report.unsent = True, False
        params = {"group": group.name, "mirror": site}
        params.update({key: report.params[key] for key in ("received", "digest", "restored", "verified")})

        def done(result: Result | None, error: ReplctlError | None) -> None:
            report.sending = False
            if result is not None:
                self._suspend_if_unlike(group, site, report, fits=result["fits"])
            if error is None:
                self._release(group, site, report)

        self._environment.call(None, "mirror.report", params, done, 10.0)

    def _suspend_if_unlike(self, group: Group, site: str, report: MirrorReport, *, fits: bool) -> None:
        """The mirror says again and again that it has a record which our journal does not have like that."""
        now = self._environment.monotonic()
        if fits or self._makes_follow(group):
            report.misfit_since = None
        elif report.misfit_since is None:
            report.misfit_since = now
        elif now - report.misfit_since >= _STRAY_SECONDS:
            report.misfit_since = None
            reason = (
                f"{site}: its record {report.params['received']} is not in our journal: one of the two sites "
                "was put back to an older state"
            )
            suspend = {"group": group.name, "mirror": site, "state": "error", "reason": reason}
            self._environment.call(None, "mirror.suspend", suspend, lambda result, error: None, 10.0)

    def on_place_unknown(self, group: Group, site: str, sequence: int) -> None:
        """What the mirror asked for was released, because it had received it once: it is older now."""
        state, report = group.state, group.reports.get(site)
        if state is None or report is None or report.params["latest"] > sequence:
            return  # the question is older than what it said last
        for mirror in state.mirrors:
            flows = mirror.name == site and mirror.state in ("copy", "pair")
            if flows and mirror.received >= sequence and not self._makes_follow(group):
                reason = f"{site}: it ends at record {sequence}, and the journal here begins later"
                if mirror.received > sequence:
                    reason = (
                        f"{site}: it ends at record {sequence}, and had received {mirror.received}: "
                        "it was put back to an older state"
                    )
                suspend = {"group": group.name, "mirror": site, "state": "error", "reason": reason}
                self._environment.call(None, "mirror.suspend", suspend, lambda result, error: None, 10.0)

    def _makes_follow(self, group: Group) -> bool:
        """A flow is under way whose business it is what the mirrors do."""
        return self._manager.flows.doing(group.name) in ("pair create", "pair resync", "takeover")

    def look_at_mirror(self, group: Group, site: str, theirs: GroupState) -> None:
        """A mirror that says, asked by us, that it cannot go on by itself gets no journal until a resync.

        Only an answer counts: a note may come late, from the time before a pair was made anew. What makes a
        site follow is a flow of ours, and its answer comes behind the one that this is about.
        """
        state = group.state
        if state is None or state.role != "primary" or state.primary or state.access != "serve":
            return
        flows = any(mirror.name == site and mirror.state in ("copy", "pair") for mirror in state.mirrors)
        if not flows or self._makes_follow(group):
            group.strays.pop(site, None)
            return
        reason, at_once = self._why_stopped(state, site, theirs)
        if not reason:
            group.strays.pop(site, None)
            return
        now = self._environment.monotonic()
        if not at_once and now - group.strays.setdefault(site, now) < _STRAY_SECONDS:
            return  # one of the agents may not have heard yet what its subsystem became
        suspend = {"group": group.name, "mirror": site, "state": "error", "reason": f"{site}{reason}"}
        self._environment.call(None, "mirror.suspend", suspend, lambda result, error: None, 10.0)

    def _why_stopped(self, mine: GroupState, site: str, theirs: GroupState) -> tuple[str, bool]:
        """Why a mirror cannot go on, '' if it can; and whether that is certain at once."""
        if theirs.role != "secondary" or theirs.primary != self._environment.site:
            return f" does not follow this site, it is {theirs.role}: pair resync", False
        if theirs.access == "failed":
            return f": {theirs.reason}", True
        if theirs.fetch is not None and theirs.fetch.state == "lost":
            return f": {theirs.fetch.reason}", True
        if theirs.epochs and (theirs.epoch, theirs.reign) not in {(e.epoch, e.reign) for e in mine.epochs}:
            return (
                f" has an epoch {theirs.epoch} of its own, from a takeover that broke off: pair resync",
                False,
            )
        mirror = next((mirror for mirror in mine.mirrors if mirror.name == site), None)
        if mirror is not None and mirror.state == "pair" and lacks_unknown(mirror, theirs):
            return ": its copy is not complete, and this site knows nothing of that", False
        if theirs.latest > mine.latest:
            # It took only what was durable here: our journal volume lost that, or is an older one.
            return (
                f": it has record {theirs.latest}, and the journal of this site ends at {mine.latest}",
                False,
            )
        return "", False

    def _repair(self, group: Group, site: str, report: MirrorReport) -> None:
        """What a verify found different is copied again, as a base record, in sequence."""
        mismatches = report.params.get("mismatches", [])
        if len(mismatches) < report.mismatches_seen:
            report.mismatches_seen = 0  # the mirror counts from the start again
        fresh = mismatches[report.mismatches_seen :]
        if not fresh:
            return
        report.mismatches_seen = len(mismatches)
        self._manager.log(
            group.name,
            "mismatch",
            f"{site} differed in {len(fresh)} extents; they are copied again",
            extents=fresh,
        )

        def done(_: Result | None, error: ReplctlError | None) -> None:
            if error is None:
                report.repaired += len(fresh)
            else:
                report.mismatches_seen -= len(fresh)

        self._environment.call(
            None, "mirror.mark", {"group": group.name, "mirror": site, "extents": fresh}, done, 30.0
        )
