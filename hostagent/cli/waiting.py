"""--wait: ask again and again until the state that was wanted is there, and show how far it is.

The command keeps no state: what it waits for is read from `pair.status` alone, so that an interrupted wait
loses nothing, and a second one may be started beside it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TransferSpeedColumn

from hostagent.agent_socket import AgentClient
from target.errors import PeerError, ReplctlError

Status = dict[str, Any]
Mirror = dict[str, Any]

Wait = Annotated[bool, typer.Option("--wait", help="Return when it is done, not when it is begun.")]
Timeout = Annotated[
    float | None,
    typer.Option(metavar="SECONDS", min=0, help="With --wait: give up after this long (exit code 6)."),
]

_POLL_SECONDS = 0.15
_FAILED = ("PSUE", "PFUS")
_FAILED_GRACE_SECONDS = 5.0
"""A pair that is being resynchronised may show its old failure until the copy begins."""


class WaitTimeoutError(ReplctlError):
    """What was waited for did not happen in time; it may still."""

    exit_code = 6


def wait_for(
    client: AgentClient,
    group: str,
    reached: Callable[[Status], bool],
    what: str,
    timeout_seconds: float | None,
    failed: Callable[[Status], str | None] = lambda _status: None,
) -> Status:
    """The first `pair.status` that `reached` accepts; `PeerError` when `failed` keeps giving a reason."""
    started = time.monotonic()
    with _progress() as progress:
        bars: dict[str, TaskID] = {}
        while True:
            status = client.call("pair.status", {"group": group})
            if reached(status):
                return status
            _draw(progress, bars, status)
            waited = time.monotonic() - started
            reason = failed(status)
            if reason is not None and waited > _FAILED_GRACE_SECONDS:
                raise PeerError(reason)
            if timeout_seconds is not None and waited >= timeout_seconds:
                raise WaitTimeoutError(
                    f"{what} did not happen within {timeout_seconds:g} s: {describe(status)}; it may still: "
                    f"see pair status {group}"
                )
            time.sleep(_POLL_SECONDS)


def mirrors_of(status: Status, secondary: str | None) -> list[Mirror]:
    """The mirrors that are meant: one, or all."""
    return [mirror for mirror in status["mirrors"] if secondary in (None, mirror["site"])]


def all_have(secondary: str | None, wanted: str) -> Callable[[Status], bool]:
    """Every mirror that is meant has this pair state, and there is one."""

    def reached(status: Status) -> bool:
        mirrors = mirrors_of(status, secondary)
        return bool(mirrors) and all(mirror["status"] == wanted for mirror in mirrors)

    return reached


def none_left(secondary: str | None) -> Callable[[Status], bool]:
    """Every mirror that is meant is simplex again, or gone."""
    return lambda status: all(mirror["status"] == "SMPL" for mirror in mirrors_of(status, secondary))


def any_failed(secondary: str | None) -> Callable[[Status], str | None]:
    """Why it will not happen any more."""

    def failed(status: Status) -> str | None:
        for mirror in mirrors_of(status, secondary):
            if mirror["status"] in _FAILED:
                return (
                    f"the pair with {mirror['site']} is in {mirror['status']}: "
                    f"see replctl events, remove the cause, then pair resync {status['group']}"
                )
        return None

    return failed


def describe(status: Mapping[str, Any]) -> str:
    """ "b is COPY, c is PAIR" """
    states = [f"{mirror['site']} is {mirror['status']}" for mirror in status["mirrors"]]
    return ", ".join(states) or "there is no mirror"


def _progress() -> Progress:
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,  # a file gets no empty lines
    )


def _draw(progress: Progress, bars: dict[str, TaskID], status: Status) -> None:
    for mirror in status["mirrors"]:
        copy = mirror.get("copy")
        site = mirror["site"]
        if copy is None:
            if site in bars:
                progress.remove_task(bars.pop(site))
            continue
        if site not in bars:
            bars[site] = progress.add_task("")
        progress.update(
            bars[site],
            description=f"{site}: {copy['phase']}",
            completed=copy["done_bytes"],
            total=copy["total_bytes"],
        )
