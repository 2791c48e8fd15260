"""`replctl marker|group|verify|events`: what concerns a group as a whole."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from hostagent.cli.output import Json, bytes_text, say, show_facts, show_json, show_table, time_text
from hostagent.cli.pair import Group
from hostagent.cli.site import chosen_site
from hostagent.cli.waiting import Status, Timeout, Wait, wait_for
from target.control.site_file import ByteSize, JournalSize, VolumeSize
from target.errors import IntegrityError, OperatorError

marker_app = typer.Typer(help="Named points in the order of a group's writes.", no_args_is_help=True)
group_app = typer.Typer(help="Consistency groups.", no_args_is_help=True)


@marker_app.command("create")
def create_marker(
    context: typer.Context,
    group: Group,
    name: Annotated[str, typer.Argument(metavar="NAME")],
    wait: Wait = False,
    timeout: Timeout = None,
    json: Json = False,
) -> None:
    """Set a marker behind everything written so far. --wait: until restored at every mirror in PAIR."""
    site = chosen_site(context)
    state = None
    with site.connect() as client:
        result = client.call("marker.create", {"group": site.group(group), "name": name})
        sequence = int(result["sequence"])
        if wait:
            state = wait_for(
                client, group, lambda status: _all_at(status, "restored", sequence),
                f"restoring marker {name}", timeout,
            )  # fmt: skip
    if json:
        show_json(result if state is None else {**result, "restored_at": _sites_in_pair(state)})
        return
    say(f"marker {name}: sequence {sequence}")
    if state is not None:
        sites = _sites_in_pair(state)
        say(f"restored at {', '.join(sites)}" if sites else "no mirror is in PAIR: restored nowhere")


@marker_app.command("list")
def list_markers(context: typer.Context, group: Group, json: Json = False) -> None:
    """The markers of GROUP that this site knows."""
    site = chosen_site(context)
    with site.connect() as client:
        result = client.call("marker.list", {"group": site.group(group)})
    if json:
        show_json(result)
        return
    columns = ["sequence", "time", "kind", "marker"]
    rows = [
        [marker["sequence"], time_text(marker["time_ns"] / 1e9), marker["kind"], marker["name"]]
        for marker in result["markers"]
    ]
    show_table(columns, rows) if rows else say(f"no marker of {group} is known here")


@group_app.command("status")
def group_status(context: typer.Context, group: Group, json: Json = False) -> None:
    """Journal, volumes and roles of GROUP at this site."""
    site = chosen_site(context)
    with site.connect() as client:
        result = client.call("group.status", {"group": site.group(group)})
    if json:
        show_json(result)
    else:
        _show_group(result)


@group_app.command("grow-volume")
def grow_volume(
    context: typer.Context,
    group: Group,
    volume: Annotated[str, typer.Argument(metavar="VOLUME")],
    size: Annotated[str, typer.Argument(metavar="SIZE", help="In all, not more: 20GiB.")],
    json: Json = False,
) -> None:
    """Give VOLUME of GROUP more space; hosts and mirrors are told. Ask at the primary."""
    params = {"volume": volume, "size_bytes": _size(VolumeSize, size)}
    _grow(context, group, "volume.grow", params, f"volume {volume}", json)


@group_app.command("grow-journal")
def grow_journal(
    context: typer.Context,
    group: Group,
    size: Annotated[str, typer.Argument(metavar="SIZE", help="In all, not more: 64GiB.")],
    json: Json = False,
) -> None:
    """Make the journal volume of GROUP at this site larger. Hosts' writes wait until it is empty."""
    _grow(context, group, "journal.grow", {"size_bytes": _size(JournalSize, size)}, "the journal", json)


def _size(kind: type[ByteSize], text: str) -> int:
    try:
        return kind.parse(text)
    except ValueError as error:
        raise OperatorError(str(error)) from None


def _grow(
    context: typer.Context, group: str, op: str, params: dict[str, object], what: str, as_json: bool
) -> None:
    site = chosen_site(context)
    with site.connect() as client:
        result = client.call(op, {"group": site.group(group), **params})
    if as_json:
        show_json(result)
    else:
        say(f"{what} of {group}: {'larger now' if result['changed'] else 'unchanged'}")


def verify(
    context: typer.Context, group: Group, wait: Wait = False, timeout: Timeout = None, json: Json = False
) -> None:
    """Compare every mirror with this primary, block by block, while both are in use.

    --wait: until compared; exit code 4 when something differed.
    """
    site = chosen_site(context)
    state = None
    with site.connect() as client:
        result = client.call("verify", {"group": site.group(group)})
        sequence = int(result["sequence"])
        if wait:
            state = wait_for(
                client, group, lambda status: _all_at(status, "verified", sequence), "verifying", timeout
            )
    if state is None:
        show_json(result) if json else say(f"verifying up to sequence {sequence}; see pair status {group}")
        return
    found = {
        mirror["site"]: mirror.get("verify") for mirror in state["mirrors"] if mirror["status"] == "PAIR"
    }
    if json:
        show_json({**result, "mirrors": found})
    elif found:
        columns = ("extents", "mismatches", "repaired")
        show_table(
            ["mirror", *columns],
            [[name, *((counts or {}).get(column) for column in columns)] for name, counts in found.items()],
        )
    else:
        say("no mirror is in PAIR: nothing was compared")
    mismatches = sum(int((counts or {}).get("mismatches", 0)) for counts in found.values())
    if mismatches:
        raise IntegrityError(
            f"{mismatches} extents differed between the sites; the numbers say how many were repaired"
        )


def events(
    context: typer.Context,
    group: Annotated[str | None, typer.Argument(metavar="GROUP")] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many, the newest.")] = 50,
    json: Json = False,
) -> None:
    """What happened at this site, newest last."""
    site = chosen_site(context)
    with site.connect() as client:
        result = client.call(
            "events", {"group": None if group is None else site.group(group), "limit": limit}
        )
    if json:
        show_json(result)
        return
    rows = [
        [time_text(event["time"]), event["group"], event["kind"], event["text"]] for event in result["events"]
    ]
    show_table(["time", "group", "kind", "what happened"], rows) if rows else say("nothing happened yet")


def _show_group(state: dict[str, Any]) -> None:
    """The group as it stands in this site's journal volume; the rest is in the JSON."""
    facts: dict[str, object] = {
        "group": f"{state['name']} ({state['group_id']})",
        "role": f"{state['role']}, {state['status']}",
        "access": _with_reason(state["access"], state["reason"]),
        "records": "latest {latest}, durable {durable}, on the volumes {restored}".format(**state),
        "journal": "{journal_used_percent} % used, from record {tail} on".format(**state),
    }
    if state["journal_filled_percent"] < 100:
        facts["journal written out"] = f"{state['journal_filled_percent']} %"
    marker = state["restored_marker"]
    if marker["sequence"]:
        name, time = marker["name"] or "heartbeat", time_text(marker["time_ns"] / 1e9)
        facts["last restored marker"] = f"{name} (sequence {marker['sequence']}, {time})"
    fetch = state["fetch"]
    if fetch is not None:
        facts["SAN link"] = _with_reason(fetch["state"], fetch["reason"])
        facts["read over it"] = bytes_text(fetch["bytes_read"])
    if state["conflict"]:
        facts["conflict"] = state["conflict"]
    show_facts(facts)
    volumes = [
        [volume["name"], bytes_text(volume["size_bytes"]), volume["block_size_bytes"]]
        for volume in state["volumes"]
    ]
    show_table(["volume", "size", "block bytes"], volumes)
    epochs = [
        [epoch["epoch"], time_text(epoch["time_ns"] / 1e9), epoch["parent_epoch"], epoch["fork_sequence"]]
        for epoch in state["epochs"]
    ]
    if epochs:
        show_table(["epoch", "began", "parent", "behind record"], epochs)


def _with_reason(state: str, reason: str) -> str:
    return f"{state}: {reason}" if reason else state


def _sites_in_pair(status: Status) -> list[str]:
    return [mirror["site"] for mirror in status["mirrors"] if mirror["status"] == "PAIR"]


def _all_at(status: Status, position: str, sequence: int) -> bool:
    """Every mirror in PAIR has reached a sequence number."""
    return all(
        (mirror["sequence"][position] or 0) >= sequence
        for mirror in status["mirrors"]
        if mirror["status"] == "PAIR"
    )
