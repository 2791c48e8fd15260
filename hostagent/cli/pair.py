"""`replctl pair ...` and `replctl takeover`: the life of a pair."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import typer

from hostagent.cli.output import Json, bytes_text, cell, say, show_json, show_table
from hostagent.cli.site import chosen_site
from hostagent.cli.waiting import (
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
    say(f"group {result['group']}: {result['role']}, {result['status']}, epoch {result['epoch']}")
    positions = ("latest", "durable", "shipped", "received", "restored", "verified")
    rows = []
    for mirror in result["mirrors"]:
        sequence = mirror["sequence"]
        rows.append(
            [mirror["site"], mirror["status"], mirror["lag_seconds"]]
            + [sequence.get(position) for position in positions]
            + [bytes_text(mirror["differential_bytes"]), _copy_text(mirror.get("copy"))]
        )
    if rows:
        show_table(["mirror", "status", "lag s", *positions, "differing", "copying"], rows)


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
    if state is not None:
        say(describe(state))


def _show_plan(plan: dict[str, Any]) -> None:
    marker = plan["last_restored_marker"]
    last = "-" if marker is None else f"{marker['name']} (sequence {marker['sequence']}, {marker['time']})"
    facts = {
        "group": plan["group"],
        "new primary": plan["site"],
        "old primary": plan["old_primary"],
        "old primary reachable": plan["old_primary_reachable"],
        "old primary fenced": plan["old_primary_fenced"],
        "takeover": plan["mode"],
        "last restored marker": last,
        "records lost": "unknown" if plan["records_lost"] is None else plan["records_lost"],
        "seconds lost": "unknown" if plan["seconds_lost"] is None else plan["seconds_lost"],
        "way back": plan["way_back"],
    }
    if plan["refused"] is not None:
        facts["refused"] = plan["refused"]
    width = max(map(len, facts)) + 2
    for name, fact in facts.items():
        say(f"{name + ':':<{width}}{cell(fact)}")


def _copy_text(copy: dict[str, Any] | None) -> str:
    if copy is None:
        return "-"
    percent = 100 * copy["done_bytes"] // max(1, copy["total_bytes"])
    return f"{copy['phase']} {percent} % of {bytes_text(copy['total_bytes'])}"
