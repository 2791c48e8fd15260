"""What a machine of the lab has in common with the template whose memory it goes on with."""

from __future__ import annotations

import re
from pathlib import Path

from scripts.vmlab.board import COMMAND_LINE, Files, Hardware, qemu_arguments
from scripts.vmlab.kernel import Kernel
from scripts.vmlab.layout import Machine, Network

KERNEL = Kernel("6.1", Path("/k/vmlinux"), Path("/k/modules.img"), Path("/k/modules"), Path("/k/initramfs"))
_OF_THIS_MACHINE = re.compile(r"(path=|file[=:]|unix:)[^,]*|mac=[^,]*")
"""Files and addresses; the rest is the board, and what QEMU sends of a machine fits no other one."""


def board(machine: Machine, back_ends: list[str]) -> list[str]:
    here = Path("/lab") / machine.name
    files = Files(here / "r", here / "d", here / "serial", here / "go-on", here / "seed", here / "source")
    arguments = qemu_arguments(machine, files, KERNEL, Hardware(), back_ends, COMMAND_LINE)
    found = []
    for word, value in zip(arguments[::2], arguments[1::2], strict=True):
        if word != "-name" and not (word == "-netdev" and value.startswith(tuple(back_ends))):
            found.append(f"{word} {_OF_THIS_MACHINE.sub('', value)}")
    return found


def test_a_machine_has_the_board_of_its_template() -> None:
    template = board(Machine("template", 0), [f"hubport,hubid={network.number}" for network in Network])
    machine = board(Machine("b", 2), [f"stream,addr.path=/lab/{network.word}" for network in Network])
    assert machine == template


def test_a_template_has_addresses_that_no_machine_has() -> None:
    """The guest finds an interface by all but the last part, which is the machine's number."""
    of_template = [Machine("template", 0).mac(network) for network in Network]
    of_machine = [Machine("b", 2).mac(network) for network in Network]
    assert not set(of_template) & set(of_machine)
    assert [mac[:-3] for mac in of_template] == [mac[:-3] for mac in of_machine]
