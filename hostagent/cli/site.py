"""Whom to ask: a site of a lab, a socket, or the site of a configuration file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import typer

from hostagent.agent_socket import AgentClient
from hostagent.names import known_name
from target.errors import OperatorError, PeerError


@dataclass(frozen=True, slots=True)
class Site:
    """A host agent, and the names it knows, None where that cannot be told without asking it."""

    socket: Path
    groups: Sequence[str] | None = None
    peers: Sequence[str] | None = None
    lab: Path | None = None

    def connect(self) -> AgentClient:
        try:
            return AgentClient(self.socket)
        except PeerError as error:
            if self.lab is None:
                raise
            raise PeerError(f"{error}; in this lab: replctl lab up --dir {self.lab}") from None

    def group(self, name: str) -> str:
        """`name`, if it can be a group here; a typo is told before anything is asked."""
        return name if self.groups is None else known_name("group", name, self.groups)

    def peer(self, name: str | None) -> str | None:
        """`name`, if it can be a secondary here."""
        return name if self.peers is None or name is None else known_name("secondary", name, self.peers)


@dataclass(frozen=True, slots=True)
class SiteChoice:
    """The global options."""

    lab: Path | None
    site: str | None
    socket: Path | None
    config: Path | None

    def resolve(self) -> Site:
        """The site that the options mean; `OperatorError` when they mean none or several."""
        given = [name for name in ("lab", "socket", "config") if getattr(self, name) is not None]
        if len(given) != 1 or (self.site is not None and self.lab is None):
            raise OperatorError(
                "say which site to ask, before the command, in one way: "
                "--lab DIR --site NAME, --config site.toml, or --socket PATH"
            )
        if self.socket is not None:
            return Site(self.socket)
        if self.config is not None:
            return _site_of_config(self.config)
        assert self.lab is not None
        return _site_of_lab(self.lab, self.site)


def chosen_site(context: typer.Context) -> Site:
    """The site that this command line means."""
    choice = context.find_object(SiteChoice)
    assert choice is not None
    return choice.resolve()


def _site_of_config(path: Path) -> Site:
    from hostagent.config import load_config

    config = load_config(path)
    return Site(config.hostagent.socket, config.groups, [peer.name for peer in config.peers])


def _site_of_lab(directory: Path, name: str | None) -> Site:
    path = directory / "lab.json"
    try:
        sites: dict[str, Any] = msgspec.json.decode(path.read_bytes(), type=dict[str, Any])["sites"]
    except FileNotFoundError:
        raise OperatorError(
            f"{directory} holds no lab; make one with: replctl lab up --dir {directory}"
        ) from None
    except (OSError, msgspec.DecodeError, KeyError) as error:
        raise OperatorError(f"{path}: cannot be read: {error}") from None
    if name is None:
        raise OperatorError(f"--site NAME is missing; the sites of this lab are: {', '.join(sites)}")
    site = sites[known_name("site", name, sites)]
    return Site(
        Path(site["agent"]["socket"]),
        list(site["san"]["luns"]),
        [other for other in sites if other != name],
        directory,
    )
