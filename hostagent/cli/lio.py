"""`replctl lio ...`: the kernel's target behind a site with front_end = "lio"."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from hostagent.cli.output import Json, say, show_json, show_table
from hostagent.cli.site import chosen_site
from target.errors import ConflictError

app = typer.Typer(help="The kernel's target (LIO) of this site.", no_args_is_help=True)


@app.command()
def status(context: typer.Context, json: Json = False) -> None:
    """What LIO has against what site.toml asks for, and the rings. Exit code 5 when they differ."""
    with chosen_site(context).connect() as client:
        result = client.call("lio.status", {})
    if json:
        show_json(result)
    else:
        _show(result)
    _end(result)


@app.command()
def restore(
    context: typer.Context,
    name: Annotated[
        str, typer.Argument(metavar="[OBJECT]", help="As `lio status` names it, with all below it; else all.")
    ] = "",
    json: Json = False,
) -> None:
    """Make LIO what site.toml asks for: one object, or all. What others configured is not touched."""
    with chosen_site(context).connect() as client:
        result = client.call("lio.restore", {"object": name}, timeout_seconds=120.0)
    changed = bool(result["applied"])
    if json:
        show_json({"changed": changed, **result})
    else:
        for step in result["applied"]:
            say(step)
        say("restored" if changed else "unchanged")
        _show(result)
    if result["failures"]:
        _end(result)


def _show(result: dict[str, Any]) -> None:
    show_table(
        ["ring", "served", "commands", "batches", "outstanding"],
        [
            [ring["storage_object"], *(ring[key] for key in ("served", "commands", "batches", "outstanding"))]
            for ring in result["rings"]
        ],
    )
    say(f"{result['objects']} objects, {len(result['drift']) or 'none'} not as site.toml asks")
    for step in result["drift"]:
        say(f"  {step}")
    for failure in result["failures"]:
        say(f"failed: {failure}")


def _end(result: dict[str, Any]) -> None:
    if result["failures"]:
        raise ConflictError(
            f"LIO refused {len(result['failures'])} steps; the first: {result['failures'][0]}"
        )
    if result["drift"]:
        raise ConflictError("LIO is not as site.toml asks; mend it with: replctl lio restore")
