"""`replctl lab ...`: several sites on this machine, to try things out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from hostagent.cli.output import Json, say, show_json, show_table
from hostagent.cli.site import SiteChoice
from target.errors import OperatorError

if TYPE_CHECKING:
    from hostagent.lab.lab import Lab

app = typer.Typer(help="Several sites on this machine.", no_args_is_help=True)

Directory = Annotated[
    Path | None, typer.Option("--dir", metavar="DIR", help="The lab; --lab before the command says the same.")
]
San = Annotated[bool, typer.Option("--san", help="Only the data path (iSCSI).")]
Management = Annotated[bool, typer.Option("--management", help="Only the copy managers' link (SSH).")]
SiteName = Annotated[str, typer.Argument(metavar="SITE")]


@app.command()
def up(
    context: typer.Context,
    directory: Directory = None,
    sites: Annotated[int | None, typer.Option(help="How many, named a, b, c, ...  [default: 2]")] = None,
    volumes: Annotated[
        str | None, typer.Option(metavar="NAME=SIZE,...", help="[default: data=64MiB,log=16MiB]")
    ] = None,
    journal: Annotated[str | None, typer.Option(metavar="SIZE", help="[default: 256MiB]")] = None,
    chap: Annotated[bool, typer.Option("--chap", help="Hosts must authenticate (CHAP).")] = False,
    port: Annotated[
        int | None, typer.Option(help="Port of the portals; SSH and links follow.  [default: free ones]")
    ] = None,
    json: Json = False,
) -> None:
    """Start a lab, or what of it does not run, and wait until every site serves. Writes DIR/lab.json."""
    from hostagent.lab.lab import Lab
    from hostagent.lab.plan import LabFiles

    chosen = _directory(context, directory)
    is_new = not LabFiles(chosen).plan.exists()
    lab = Lab.create_or_open(
        chosen,
        sites=sites,
        volumes=volumes,
        journal=journal,
        chap=chap or None,
        port=port,
    )
    result = lab.up()
    if json:
        show_json(result)
        return
    show_table(
        ["site", "target", "hostagent"],
        [[name, daemons["target"], daemons["hostagent"]] for name, daemons in result["sites"].items()],
    )
    _show_units(lab)
    step = "pair status group1"
    if is_new and len(result["sites"]) > 1:
        step = "pair create group1 --secondary b --wait"
    say(f"now: replctl --lab {result['dir']} --site a {step}")


@app.command()
def status(context: typer.Context, directory: Directory = None, json: Json = False) -> None:
    """What runs, where its logical units are, and which links are whole."""
    lab = _open(context, directory)
    result = lab.status()
    if json:
        show_json(result)
        return
    show_table(
        ["site", "target", "hostagent", "serves"],
        [
            [name, _pid(site["pids"]["target"]), _pid(site["pids"]["hostagent"]), site["ready"]]
            for name, site in result["sites"].items()
        ],
    )
    _show_units(lab)
    cut = [name for name, link in result["wire"]["links"].items() if link["cut"]]
    if result["wire"]["pid"] is None:
        say("links: all down, the wire does not run")
    else:
        say(f"links: cut are {', '.join(cut)}" if cut else "links: all whole")


@app.command()
def down(context: typer.Context, directory: Directory = None, json: Json = False) -> None:
    """Stop every daemon of the lab; its data stay."""
    result = _open(context, directory).down()
    _tell(result, json, "stopped " + ", ".join(result["stopped"]), "nothing ran")


@app.command()
def kill(
    context: typer.Context,
    site: SiteName,
    daemon: Annotated[str | None, typer.Argument(metavar="target|hostagent")] = None,
    directory: Directory = None,
    json: Json = False,
) -> None:
    """Kill a site's daemons, or one of them, with SIGKILL."""
    result = _open(context, directory).kill(site, daemon)
    _tell(result, json, f"killed at {site}: {', '.join(result['killed'])}", "nothing ran")


@app.command()
def cut(
    context: typer.Context,
    one: SiteName,
    other: SiteName,
    san: San = False,
    management: Management = False,
    directory: Directory = None,
    json: Json = False,
) -> None:
    """Cut the links between two sites: packets vanish, nobody is told."""
    result = _open(context, directory).cut(one, other, _kinds(san, management))
    _tell(result, json, "cut " + ", ".join(result["links"]), "unchanged: they were cut")


@app.command()
def join(
    context: typer.Context,
    one: SiteName,
    other: SiteName,
    san: San = False,
    management: Management = False,
    directory: Directory = None,
    json: Json = False,
) -> None:
    """Make the links between two sites whole again."""
    result = _open(context, directory).join(one, other, _kinds(san, management))
    _tell(result, json, "joined " + ", ".join(result["links"]), "unchanged: they were whole")


def _directory(context: typer.Context, directory: Path | None) -> Path:
    choice = context.find_object(SiteChoice)
    assert choice is not None
    if directory is not None and choice.lab is not None and directory.resolve() != choice.lab.resolve():
        raise OperatorError(f"--lab {choice.lab} and --dir {directory} are two labs; give one")
    chosen = directory or choice.lab
    if chosen is None:
        raise OperatorError("say which lab: --dir DIR")
    return chosen


def _open(context: typer.Context, directory: Path | None) -> Lab:
    from hostagent.lab.lab import Lab

    return Lab.open(_directory(context, directory))


def _kinds(san: bool, management: bool) -> list[str]:
    chosen = [kind for kind, wanted in (("management", management), ("san", san)) if wanted]
    return chosen or ["management", "san"]


def _show_units(lab: Lab) -> None:
    """Where hosts find the volumes, as `replctl lun` and other iSCSI clients take it."""
    rows = []
    for name, site in msgspec.json.decode(lab.files.lab.read_bytes())["sites"].items():
        iscsi = site["iscsi"]
        user = f"{iscsi['chap']['user']}@" if iscsi["chap"] else ""
        for volume, lun in iscsi["luns"].items():
            rows.append([name, volume, f"iscsi://{user}{iscsi['portals'][0]}/{iscsi['target']}/{lun}"])
    show_table(["site", "volume", "logical unit"], rows)


def _pid(pid: int | None) -> str:
    return "down" if pid is None else str(pid)


def _tell(result: dict[str, Any], json: bool, changed: str, unchanged: str) -> None:
    if json:
        show_json(result)
    else:
        say(changed if result["changed"] else unchanged)
