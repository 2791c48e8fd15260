"""The command as a whole: its families, its global options, and how it ends.

Exit codes are those of the error classes in `target.errors`, with 0 for done or unchanged, 6 for a wait that
took too long and 130 for an interruption; docs/cli.md explains them.
"""

from __future__ import annotations

import json
import signal
import sys
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import Annotated, NoReturn

import typer

from hostagent.cli import group, lab, lio, lun, pair
from hostagent.cli.site import SiteChoice
from target.control.wire_error import error_to_wire
from target.errors import OperatorError, ReplctlError

_INTERRUPTED_EXIT_CODE = 130  # 128 + SIGINT, as shells have it

app = typer.Typer(
    name="replctl",
    help="Pairs of volumes at two sites, kept in step through a journal.",
    epilog="Two sites on this machine, to try it: replctl lab up --dir DIR",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(pair.app, name="pair")
app.command("takeover")(pair.takeover)
app.add_typer(group.marker_app, name="marker")
app.add_typer(group.group_app, name="group")
app.command("verify")(group.verify)
app.command("events")(group.events)
app.add_typer(lun.app, name="lun")
app.add_typer(lio.app, name="lio")
app.add_typer(lab.app, name="lab")


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"replctl {version('replctl')}")
        raise typer.Exit


@app.callback()
def choose_site(
    context: typer.Context,
    lab_dir: Annotated[Path | None, typer.Option("--lab", metavar="DIR", help="A lab; needs --site.")] = None,
    site: Annotated[str | None, typer.Option(metavar="NAME", help="Which site of the lab to ask.")] = None,
    socket: Annotated[Path | None, typer.Option(metavar="PATH", help="The host agent's socket.")] = None,
    config: Annotated[Path | None, typer.Option(metavar="FILE", help="The site's site.toml.")] = None,
    _version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    context.obj = SiteChoice(lab_dir, site, socket, config)


def run() -> None:
    """Run the command line and exit."""
    signal.signal(signal.SIGINT, _interrupted)
    try:
        app()
    except ReplctlError as error:
        _end(error)
    except BrokenPipeError:
        sys.stderr.close()  # the reader of the output has gone, as `head` does
        sys.exit(0)
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        _end(OperatorError(f"{place}{error.strerror or error}"))


def _end(error: ReplctlError) -> NoReturn:
    if "--json" in sys.argv:
        print(json.dumps({"error": error_to_wire(error)}), file=sys.stderr)
    else:
        print(f"replctl: {error}", file=sys.stderr)
    sys.exit(error.exit_code)


def _interrupted(_number: int, _frame: FrameType | None) -> None:
    print("replctl: interrupted; what the sites were asked to do goes on", file=sys.stderr)
    sys.exit(_INTERRUPTED_EXIT_CODE)
