"""What a lab consists of: decided once, when it is made, and kept in `DIR/plan.json`.

Site number i (from 0) has 127.0.0.(1+2i) for hosts and SSH and 127.0.0.(2+2i) for the SAN. Configurations
name the wire's addresses for their peers, so that links can be cut; `lab.json` names the sites' own.
"""

from __future__ import annotations

import json
import secrets
import socket
import string
from pathlib import Path
from typing import Any

import msgspec

from hostagent.lab.wire import Link, link_name
from hostagent.ssh_keys import generate_key
from target.control.site_file import Name, VolumeSize
from target.errors import OperatorError

GROUP = "group1"
DAEMONS = ("target", "hostagent")
LINK_KINDS = ("management", "san")
SITES_MAX = 20
_SOCKET_PATH_BYTES_MAX = 107  # unix(7), sun_path
_IQN = "iqn.2026-01.org.replctl"

_Table = tuple[str, dict[str, Any]]
"""A TOML header and what comes under it."""


class SitePlan(msgspec.Struct, frozen=True):
    """One site's addresses."""

    name: str
    iscsi: str
    san: str
    ssh: str


class LabPlan(msgspec.Struct, frozen=True):
    """Everything that `lab up` decided. Volume sizes and the journal size are bytes."""

    sites: list[SitePlan]
    links: list[Link]
    volumes: dict[str, int]
    journal: int
    chap: bool

    def site(self, name: str) -> SitePlan:
        return next(site for site in self.sites if site.name == name)

    def link(self, source: str, destination: str, kind: str) -> Link:
        name = link_name(source, destination, kind)
        return next(link for link in self.links if link.name == name)


def parse_volumes(text: str) -> dict[str, int]:
    """ "data=64MiB,log=16MiB" """
    volumes: dict[str, int] = {}
    for item in text.split(","):
        name, equals, size = item.strip().partition("=")
        if not equals:
            raise OperatorError(f'--volumes: {item.strip()!r} is not "name=size"')
        try:
            if Name.parse(name) in volumes:
                raise ValueError(f"volume {name} is given twice")
            volumes[name] = int(VolumeSize.parse(size))
        except ValueError as error:
            raise OperatorError(f"--volumes: {error}") from None
    return volumes


def make_plan(sites: int, volumes: dict[str, int], journal: int, *, chap: bool, port: int | None) -> LabPlan:
    """Choose every address: free ports, or `port` for the portals and the next ones for the rest."""
    if not 1 <= sites <= SITES_MAX:
        raise OperatorError(f"--sites {sites}: a lab has 1 to {SITES_MAX} sites")
    ports = _Ports(port)
    try:
        plans = [
            SitePlan(
                name=string.ascii_lowercase[index],
                iscsi=ports.take(f"127.0.0.{1 + 2 * index}", 0),
                san=ports.take(f"127.0.0.{2 + 2 * index}", 0),
                ssh=ports.take(f"127.0.0.{1 + 2 * index}", 1),
            )
            for index in range(sites)
        ]
        links = []
        for source_number, source in enumerate(plans):
            for destination in plans:
                if destination is source:
                    continue
                for kind, to in zip(LINK_KINDS, (destination.ssh, destination.san), strict=True):
                    listen = ports.take(to.partition(":")[0], 2 + source_number)
                    links.append(Link(link_name(source.name, destination.name, kind), listen, to))
    finally:
        ports.release()
    return LabPlan(plans, links, volumes, journal, chap)


class _Ports:
    """Free TCP ports; all are held until the last is chosen, so that none is chosen twice."""

    def __init__(self, base: int | None) -> None:
        self._base = base
        self._held: list[socket.socket] = []

    def take(self, host: str, offset: int) -> str:
        port = 0 if self._base is None else self._base + offset
        try:
            self._held.append(socket.create_server((host, port)))
        except (OSError, OverflowError) as error:
            raise OperatorError(f"--port: {host}:{port} cannot be used: {error}") from None
        return f"{host}:{self._held[-1].getsockname()[1]}"

    def release(self) -> None:
        for held in self._held:
            held.close()


class LabFiles:
    """Where everything of a lab is."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory.absolute()
        self.plan = self.directory / "plan.json"
        self.lab = self.directory / "lab.json"
        self.lock = self.directory / "lab.lock"
        self.links = self.directory / "links.json"
        self.wire_socket = self.directory / "wire.sock"

    def site(self, name: str) -> Path:
        return self.directory / name

    def config(self, name: str) -> Path:
        return self.site(name) / "site.toml"

    def agent_socket(self, name: str) -> Path:
        return self.site(name) / "hostagent.sock"

    def pid(self, daemon: str, site: str = "") -> Path:
        return self.directory / site / f"{daemon}.pid"

    def log(self, daemon: str, site: str = "") -> Path:
        return self.directory / site / f"{daemon}.log"

    def host_key(self, name: str) -> str:
        path = self.site(name) / "ssh_host_ed25519_key.pub"
        return " ".join(path.read_text(encoding="utf-8").split()[:2])


def write_files(plan: LabPlan, files: LabFiles) -> None:
    """Keys, secrets and configurations of a new lab; `plan.json` last: a lab is whole or not there."""
    longest = max(len(str(files.agent_socket(site.name)).encode()) for site in plan.sites)
    if longest > _SOCKET_PATH_BYTES_MAX:
        excess = longest - _SOCKET_PATH_BYTES_MAX
        raise OperatorError(f"--dir {files.directory}: {excess} bytes too long for UNIX sockets in it")
    identities: dict[str, str] = {}
    for site in plan.sites:
        files.site(site.name).mkdir(parents=True, exist_ok=True, mode=0o700)
        generate_key(files.site(site.name) / "ssh_host_ed25519_key", site.name)
        identities[site.name] = generate_key(files.site(site.name) / "id_ed25519", site.name)
        if plan.chap:
            _write_private(files.site(site.name) / "chap.secret", secrets.token_hex(8) + "\n")
    for site in plan.sites:
        peers = [line for name, line in identities.items() if name != site.name]
        _write_private(files.site(site.name) / "authorized_keys", "".join(f"{line}\n" for line in peers))
        files.config(site.name).write_text(_site_toml(plan, site, files), encoding="utf-8")
    files.links.write_bytes(msgspec.json.encode(plan.links))
    unfinished = files.plan.with_suffix(".new")
    unfinished.write_bytes(msgspec.json.format(msgspec.json.encode(plan)))
    unfinished.rename(files.plan)


def read_plan(files: LabFiles) -> LabPlan:
    """The plan of an existing lab."""
    try:
        return msgspec.json.decode(files.plan.read_bytes(), type=LabPlan)
    except FileNotFoundError:
        raise OperatorError(
            f"{files.directory} holds no lab; make one with: replctl lab up --dir {files.directory}"
        ) from None
    except (OSError, msgspec.DecodeError) as error:
        raise OperatorError(f"{files.plan}: cannot be read: {error}") from None


def describe(plan: LabPlan, files: LabFiles, pids: dict[str, dict[str, int | None]]) -> dict[str, Any]:
    """The content of `lab.json`."""
    return {"sites": {site.name: _describe_site(plan, site, files, pids[site.name]) for site in plan.sites}}


def _describe_site(
    plan: LabPlan, site: SitePlan, files: LabFiles, pids: dict[str, int | None]
) -> dict[str, Any]:
    directory = files.site(site.name)
    return {
        "iscsi": {
            "portals": [site.iscsi],
            "target": _target_name(site),
            "luns": {name: lun for lun, name in enumerate(plan.volumes)},
            "chap": {"user": "host", "secret_file": str(directory / "chap.secret")} if plan.chap else None,
        },
        "san": {"portal": site.san, "target": _target_name(site) + ".san", "luns": {GROUP: 0}},
        "agent": {
            "socket": str(files.agent_socket(site.name)),
            "ssh": site.ssh,
            "host_key": files.host_key(site.name),
        },
        "pids": pids,
        "logs": {daemon: str(files.log(daemon, site.name)) for daemon in DAEMONS},
        "configs": {daemon: str(files.config(site.name)) for daemon in DAEMONS},
        "volumes": {name: str(directory / f"{name}.img") for name in plan.volumes},
        "journals": {GROUP: str(directory / f"{GROUP}.journal")},
    }


def _target_name(site: SitePlan) -> str:
    return f"{_IQN}:{site.name}"


def _site_toml(plan: LabPlan, site: SitePlan, files: LabFiles) -> str:
    peers = [peer for peer in plan.sites if peer.name != site.name]
    chap: list[_Table] = [("[target.iscsi.chap]", {"user": "host", "secret_file": "chap.secret"})]
    tables: list[_Table] = [
        ("[site]", {"name": site.name, "state_dir": "."}),
        ("[target]", {"front_end": "embedded", "control_socket": "target.sock"}),
        ("[target.iscsi]", {"name": _target_name(site), "portals": [site.iscsi], "initiators": []}),
        *(chap if plan.chap else []),
        (
            "[target.san]",
            {
                "name": _target_name(site) + ".san",
                "portal": site.san,
                "initiator_name": _target_name(site),
                "initiators": [_target_name(peer) for peer in peers],
            },
        ),
        (
            "[[group]]",
            {"name": GROUP, "journal": f"{GROUP}.journal", "journal_size": plan.journal, "san_lun": 0},
        ),
        *(
            ("[[group.volume]]", {"name": name, "path": f"{name}.img", "size": size, "lun": lun})
            for lun, (name, size) in enumerate(plan.volumes.items())
        ),
        (
            "[hostagent]",
            {
                "socket": files.agent_socket(site.name).name,
                "database": "hostagent.sqlite",
                "ssh_listen": site.ssh,
                "host_key_file": "ssh_host_ed25519_key",
                "identity_file": "id_ed25519",
                "authorized_keys_file": "authorized_keys",
            },
        ),
        *(_peer_table(plan, site, peer, files) for peer in peers),
    ]
    # A JSON string, number, boolean or list of these is written the same in TOML.
    return "\n".join(
        f"{header}\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in table.items())
        for header, table in tables
    )


def _peer_table(plan: LabPlan, site: SitePlan, peer: SitePlan, files: LabFiles) -> _Table:
    table = {
        "name": peer.name,
        "ssh": plan.link(site.name, peer.name, "management").listen,
        "host_key": files.host_key(peer.name),
        "san_portal": plan.link(site.name, peer.name, "san").listen,
        "san_target": _target_name(peer) + ".san",
    }
    return "[[peer]]", table


def _write_private(path: Path, text: str) -> None:
    path.touch(mode=0o600)
    path.write_text(text, encoding="utf-8")
