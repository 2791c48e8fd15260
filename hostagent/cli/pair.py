"""`replctl pair ...` and `replctl takeover`: the life of a pair."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Annotated, Any

import typer

from hostagent.cli.output import Json, bytes_text, say, show_facts, show_json, show_table, time_text
from hostagent.cli.site import chosen_site
from hostagent.cli.waiting import (
    Mirror,
    Status,
    Timeout,
    Wait,
    all_have,
    any_failed,
    describe,
    none_left,
    wait_for,
)

app = typer.Typer(help="Create, split, resynchronise and delete pairs.", no_args_is_help=True)

Group = Annotated[str, typer.Argument(metavar="GROUP", help="The consistency group.")]
Secondary = Annotated[
    str | None, typer.Option(metavar="SITE", help="One secondary; all of the group's when left out.")
]

_TAKEOVER_SECONDS_MAX = 600.0
_FLOWING = ("COPY", "PAIR", "PFUL")
"""The states in which the SAN link should carry the journal."""


@app.command()
def create(
    context: typer.Context,
    group: Group,
    secondary: Annotated[str, typer.Option(metavar="SITE", help="The site that becomes a secondary.")],
    wait: Wait = False,
    timeout: Timeout = None,
    json: Json = False,
) -> None:
    """Make SITE a secondary of GROUP and copy what it lacks. --wait: until PAIR."""
    _change(
        context, "pair.create", group, secondary, json=json,
        until=all_have(secondary, "PAIR") if wait else None, what="PAIR", timeout=timeout,
        failed=any_failed(secondary),
    )  # fmt: skip


@app.command()
def split(
    context: typer.Context,
    group: Group,
    secondary: Secondary = None,
    wait: Wait = False,
    timeout: Timeout = None,
    json: Json = False,
) -> None:
    """Stop updating a secondary, at one point for all volumes, and let it be written. --wait: until PSUS."""
    _change(
        context, "pair.split", group, secondary, json=json,
        until=all_have(secondary, "PSUS") if wait else None, what="PSUS", timeout=timeout,
        failed=any_failed(secondary),
    )  # fmt: skip


@app.command()
def resync(
    context: typer.Context,
    group: Group,
    secondary: Secondary = None,
    wait: Wait = False,
    timeout: Timeout = None,
    json: Json = False,
) -> None:
    """Bring a secondary up to date again, copying differences only. --wait: until PAIR."""
    _change(
        context, "pair.resync", group, secondary, json=json,
        until=all_have(secondary, "PAIR") if wait else None, what="PAIR", timeout=timeout,
        failed=any_failed(secondary),
    )  # fmt: skip


@app.command()
def delete(
    context: typer.Context,
    group: Group,
    secondary: Secondary = None,
    wait: Wait = False,
    timeout: Timeout = None,
    json: Json = False,
) -> None:
    """End the pair; both sides keep their volumes. --wait: until SMPL."""
    _change(
        context, "pair.delete", group, secondary, json=json,
        until=none_left(secondary) if wait else None, what="SMPL", timeout=timeout,
    )  # fmt: skip


@app.command()
def status(context: typer.Context, group: Group, json: Json = False) -> None:
    """Role, state, lag and positions of GROUP as this site sees them."""
    site = chosen_site(context)
    with site.connect() as client:
        result = client.call("pair.status", {"group": site.group(group)})
    if json:
        show_json(result)
        return
    _show_status(result)


def takeover(
    context: typer.Context,
    group: Group,
    plan: Annotated[bool, typer.Option("--plan", help="Only say what would happen.")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="The primary is gone: take over with what arrived here.")
    ] = False,
    json: Json = False,
) -> None:
    """Make this site the primary of GROUP."""
    site = chosen_site(context)
    params = {"group": site.group(group), "force": force, "plan": plan}
    with site.connect() as client:
        result = client.call("takeover", params, _TAKEOVER_SECONDS_MAX)
    if json:
        show_json(result)
    elif plan:
        _show_plan(result)
    else:
        _show_plan(result["plan"])
        if result["changed"]:
            say(f"done in {result['seconds']:.2f} s: primary of {result['group']} in epoch {result['epoch']}")
        else:
            say(f"unchanged: primary of {result['group']} already, in epoch {result['epoch']}")


def _change(
    context: typer.Context,
    op: str,
    group: str,
    secondary: str | None,
    *,
    json: bool,
    until: Callable[[Status], bool] | None,
    what: str,
    timeout: float | None,
    failed: Callable[[Status], str | None] = lambda _status: None,
) -> None:
    """Ask for a change of the pair, wait if wanted, and say what became of it."""
    site = chosen_site(context)
    params = {"group": site.group(group), "secondary": site.peer(secondary)}
    with site.connect() as client:
        result = client.call(op, params)
        state = None if until is None else wait_for(client, group, until, what, timeout, failed)
    if json:
        show_json(result if state is None else {**result, "pair": state})
        return
    say(f"{op.replace('.', ' ')} {group}: {'changed' if result.get('changed', True) else 'unchanged'}")
    if not result.get("peer_told", True):
        say(f"a secondary could not be told: pair delete {group} there too (events {group} says which)")
    if state is not None:
        say(describe(state))


def _show_status(status: Status) -> None:
    """What the group is here, a line for each mirror, and below what is out of the ordinary."""
    role = status["role"]
    primary = status.get("primary")
    if role == "secondary" and primary:
        role = f"secondary of {primary}"
    say(f"group {status['group']}: {role}, {status['status']}, epoch {status['epoch']}")
    reason = status.get("reason")
    if reason and reason != role:
        say(reason)
    mirrors = status["mirrors"]
    if not mirrors:
        say(f"no pair; to make one: pair create {status['group']} --secondary SITE")
        return
    sequence = mirrors[0]["sequence"]
    say(f"records: latest {sequence['latest']}, durable {sequence['durable']}")
    positions = ("shipped", "received", "restored", "verified")
    show_table(
        ["mirror", "status", "lag s", *positions, "differing"],
        [
            [mirror["site"], mirror["status"], mirror["lag_seconds"]]
            + [mirror["sequence"][position] for position in positions]
            + [bytes_text(mirror["differential_bytes"])]
            for mirror in mirrors
        ],
    )
    for mirror in mirrors:
        for note in _notes(mirror):
            say(f"{mirror['site']}: {note}")


def _notes(mirror: Mirror) -> Iterator[str]:
    copy, compared, link = mirror.get("copy"), mirror.get("verify"), mirror.get("link") or {}
    if copy is not None:
        percent = 100 * copy["done_bytes"] // max(1, copy["total_bytes"])
        yield f"{copy['phase']} {percent} % of {bytes_text(copy['total_bytes'])}"
    if compared is not None:
        yield "verified {extents} extents, {mismatches} differed, {repaired} repaired".format(**compared)
    down = [f"management link {link['management']}"] if link.get("management", "up") != "up" else []
    if mirror["status"] in _FLOWING and link.get("san", "reading") != "reading":
        down.append(f"SAN link {link['san']}")
    if down:
        yield ", ".join(down)
    if mirror.get("reason"):
        yield mirror["reason"]


def _seconds_lost(seconds: float | None, *, is_exact: bool) -> str:
    """Without the primary's word its last write is not known: it may have come at any time until now."""
    if seconds is None:
        return "unknown"
    return f"{seconds:.2f}" if is_exact else f"at most {seconds:.2f}"


def _show_plan(plan: dict[str, Any]) -> None:
    """What a takeover means, in the words of the plan; what is not known is said to be unknown."""
    if plan["refused"] is not None and not plan["old_primary"]:  # there is nobody to say anything of
        show_facts({"group": plan["group"], "refused": plan["refused"]})
        return
    marker, lost, seconds = plan["last_restored_marker"], plan["records_lost"], plan["seconds_lost"]
    facts: dict[str, object] = {
        "group": plan["group"],
        "new primary": plan["site"],
        "old primary": plan["old_primary"],
        "old primary reachable": plan["old_primary_reachable"],
        "old primary fenced": plan["old_primary_fenced"],
        "takeover": plan["mode"],
        "last restored marker": marker
        and f"{marker['name']} (sequence {marker['sequence']}, {time_text(marker['time'])})",
        "records lost": f"unknown, at least {plan['records_lost_at_least']}" if lost is None else lost,
        "seconds lost": _seconds_lost(seconds, is_exact=lost is not None),
        "way back": plan["way_back"],
    }
    if plan["refused"] is not None:
        facts["refused"] = plan["refused"]
    show_facts(facts)
