"""`scripts/lab`: virtual machines with Debian's kernel, LIO and initiators, on this host and without root."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

from scripts.vmlab.board import Hardware
from scripts.vmlab.box import pack_box
from scripts.vmlab.failure import LabError
from scripts.vmlab.image import PROJECT
from scripts.vmlab.lab import KERNEL, MIRROR, Choices, Lab, build, images, template_of
from scripts.vmlab.layout import MACHINES_MAX, Network

_HOME = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "replctl"


def main() -> int:
    arguments = _parse()
    try:
        return int(arguments.command(arguments) or 0)
    except LabError as error:
        print(f"lab: {error}", file=sys.stderr)
        return 1


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="lab", description=__doc__)
    parser.add_argument("--dir", type=Path, default=_HOME / "lab", help="the lab's files (%(default)s)")
    parser.add_argument("--cache", type=Path, default=_HOME / "images", help="what was built (%(default)s)")
    parser.add_argument("--mirror", default=MIRROR, help="Debian's archive (%(default)s)")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    one = commands.add_parser(
        "build", help="kernel, root file system and template of today's package versions"
    )
    one.add_argument("--kernel", default=KERNEL, help="6.1, or 6.12 from backports (%(default)s)")
    one.set_defaults(command=_build)

    one = commands.add_parser("box", help="pack a Vagrant box of the same kernel and root file system")
    one.add_argument("--output", type=Path, required=True, metavar="FILE")
    one.set_defaults(command=_box, kernel=KERNEL)

    one = commands.add_parser("up", help="start what does not run, and wait until it is ready")
    one.add_argument("machine", nargs="*", help="only these")
    one.add_argument("--machines", type=int, choices=range(1, MACHINES_MAX + 1), default=2)
    one.add_argument("--kernel", default=KERNEL, help="6.1, or 6.12 from backports (%(default)s)")
    one.add_argument("--front-end", choices=("embedded", "lio"), default="embedded")
    one.add_argument("--fabric", choices=("iscsi", "fc"), default="iscsi", help="what the SAN link is")
    one.add_argument("--source", type=Path, default=PROJECT, help="the checkout that runs there (this one)")
    one.add_argument(
        "--bare", action="store_true", help="no site.toml, no daemons: machines and nothing else"
    )
    one.set_defaults(command=_up)

    one = commands.add_parser(
        "sync", help="bring the checkout's code to the machines, and restart the daemons"
    )
    one.set_defaults(command=_sync)

    one = commands.add_parser("status", help="machines, ports, wires")
    one.set_defaults(command=_status)

    one = commands.add_parser("ssh", help="a shell in a machine, or one command")
    one.add_argument("machine")
    one.add_argument("words", nargs=argparse.REMAINDER, metavar="command")
    one.set_defaults(command=_ssh)

    for name, what in (("cut", "pull a network's wires"), ("join", "plug them in again")):
        one = commands.add_parser(name, help=what)
        one.add_argument("network", choices=[network.word for network in Network])
        one.add_argument("machine", nargs="*", help="only the wires of these")
        one.set_defaults(command=_cut if name == "cut" else _join)

    one = commands.add_parser("power-off", help="kill a machine: its disks keep what it flushed")
    one.add_argument("machine")
    one.set_defaults(command=_power_off)

    one = commands.add_parser("down", help="end everything and delete the lab; the cache stays")
    one.set_defaults(command=_down)
    return parser.parse_args()


def _build(arguments: argparse.Namespace) -> None:
    kernel, root = build(arguments.cache, arguments.kernel, arguments.mirror)
    template = template_of(kernel, root, Hardware(), arguments.cache)
    print(f"kernel    {kernel.version}  {kernel.image.parent}")
    print(f"root      {root}\ntemplate  {template.root.parent}")


def _box(arguments: argparse.Namespace) -> None:
    kernel, root = images(arguments.cache, arguments.kernel, arguments.mirror)
    pack_box(kernel, root, arguments.output.absolute())
    print(f"packed; now: vagrant box add --name replctl-lab --provider libvirt {arguments.output}")


def _up(arguments: argparse.Namespace) -> None:
    began = time.monotonic()
    lab = Lab(arguments.dir)
    if not lab.exists:
        choices = Choices(
            machines=arguments.machines,
            kernel=arguments.kernel,
            front_end=arguments.front_end,
            fabric=arguments.fabric,
            source=str(arguments.source.absolute()),
            configure=not arguments.bare,
        )
        lab.make(choices, arguments.cache, arguments.mirror)
    for name in arguments.machine:
        lab.machine(name)
    for name, started in lab.up(arguments.machine).items():
        print(f"{name}  {'started' if started else 'runs'}")
    print(f"ready in {time.monotonic() - began:.0f} s; a shell: scripts/lab ssh a")


def _sync(arguments: argparse.Namespace) -> None:
    Lab(arguments.dir).sync()


def _status(arguments: argparse.Namespace) -> None:
    lab = Lab(arguments.dir)
    cuts = lab.wires.cuts()
    for machine in lab.machines:
        state = f"ssh on 127.0.0.1:{machine.port()}" if machine.running else "off"
        wires = " ".join(
            f"{network.word}={'cut' if (machine.name, network) in cuts else machine.machine.address(network)}"
            for network in Network
        )
        print(f"{machine.name}  {state}  {wires}")


def _ssh(arguments: argparse.Namespace) -> int:
    machine = Lab(arguments.dir).machine(arguments.machine)
    return subprocess.run(machine.ssh_command(*arguments.words), check=False).returncode


def _cut(arguments: argparse.Namespace) -> None:
    _each_wire(arguments, joined=False)


def _join(arguments: argparse.Namespace) -> None:
    _each_wire(arguments, joined=True)


def _each_wire(arguments: argparse.Namespace, *, joined: bool) -> None:
    lab = Lab(arguments.dir)
    network = Network[arguments.network.upper()]
    for name in arguments.machine or [machine.name for machine in lab.machines]:
        lab.machine(name)
        act = lab.wires.join if joined else lab.wires.cut
        print(f"{name}-{network.word}  {'changed' if act(name, network) else 'unchanged'}")


def _power_off(arguments: argparse.Namespace) -> None:
    machine = Lab(arguments.dir).machine(arguments.machine)
    print(f"{machine.name}  {'powered off' if machine.power_off() else 'was off'}")


def _down(arguments: argparse.Namespace) -> None:
    ended = Lab(arguments.dir).down()
    print(f"ended {', '.join(ended)}" if ended else "nothing ran")


if __name__ == "__main__":
    sys.exit(main())
