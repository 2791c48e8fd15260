"""A lab as a whole: made once in a directory, started, cut, powered off, and taken down again."""

from __future__ import annotations

import contextlib
import fcntl
import json
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from scripts.vmlab.board import Hardware
from scripts.vmlab.code import pack_code
from scripts.vmlab.failure import LabError, run
from scripts.vmlab.image import PROJECT, build_root, cached_root
from scripts.vmlab.kernel import Kernel, build_kernel, cached_kernel, newest_kernel
from scripts.vmlab.layout import CONTROL_GUEST, CONTROL_INTERFACE, MACHINES_MAX, Network, machines
from scripts.vmlab.machine import VirtualMachine
from scripts.vmlab.repository import Repository
from scripts.vmlab.template import Template, build_template
from scripts.vmlab.wires import Wires

BOOT_SECONDS_MAX = 180.0
_CONFIGURE_SECONDS_MAX = 180.0
MIRROR = "http://deb.debian.org/debian"
KERNEL = "6.1"
SITES = ("a", "b")
"""The third machine is a host and no site."""
_PROVISION = "/lab-source/vagrant/provision.sh"
_CODE = "code.tar"
_UPDATE = f"{_PROVISION} update /lab-seed/{_CODE}"
_IQN = "iqn.2026-01.org.replctl"


@dataclass(frozen=True, slots=True)
class Choices:
    """What `up` was asked for when the lab was made."""

    machines: int = 2
    kernel: str = KERNEL
    front_end: str = "embedded"
    fabric: str = "iscsi"
    configure: bool = True
    source: str = str(PROJECT)
    volumes: str = "data:64 log:64"
    """Names and MiB; mkfs.xfs needs --unsupported below 300."""
    journal_mib: int = 96
    hardware: Hardware = field(default_factory=Hardware)


def build(cache: Path, kernel: str, mirror: str) -> tuple[Kernel, Path]:
    """Kernel and root file system of today's package versions; what the cache holds is not made again."""
    cache.mkdir(parents=True, exist_ok=True)
    with _locked(cache / "build.lock"):
        repository = Repository(cache / "apt", mirror)
        repository.update()
        return build_kernel(repository, kernel, cache), build_root(repository, cache)


def images(cache: Path, release: str, mirror: str) -> tuple[Kernel, Path]:
    """What was built last of this checkout's inputs; built now if nothing was."""
    kernel, root = newest_kernel(cache, release), cached_root(cache)
    return build(cache, release, mirror) if kernel is None or root is None else (kernel, root)


def template_of(kernel: Kernel, root: Path, hardware: Hardware, cache: Path) -> Template:
    """What machines with this hardware go on from; booted now if the cache has none."""
    with _locked(cache / "build.lock"):
        return build_template(kernel, root, hardware, cache)


class Lab:
    """The lab in a directory; what was decided when it was made is in `lab.json`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory.absolute()
        self._plan = self.directory / "lab.json"
        self.wires = Wires(self.directory / "wires")

    @property
    def exists(self) -> bool:
        return self._plan.exists()

    @property
    def choices(self) -> Choices:
        fields = self._read()["choices"]
        hardware = Hardware(**fields.pop("hardware"))
        return Choices(**fields, hardware=hardware)

    @property
    def machines(self) -> list[VirtualMachine]:
        return [VirtualMachine(machine, self.directory) for machine in machines(self.choices.machines)]

    def machine(self, name: str) -> VirtualMachine:
        for machine in self.machines:
            if machine.name == name:
                return machine
        raise LabError(
            f"there is no machine {name!r}; this lab has {', '.join(m.name for m in self.machines)}"
        )

    def make(self, choices: Choices, cache: Path, mirror: str) -> None:
        """Everything but the running machines. From the cache alone, if it has what is needed."""
        kernel, root = images(cache, choices.kernel, mirror)
        template = template_of(kernel, root, choices.hardware, cache)
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        names = [machine.name for machine in machines(choices.machines)]
        run([str(PROJECT / "vagrant" / "make-keys.sh"), str(self.directory / "keys"), *names])
        run([str(PROJECT / "vagrant" / "make-keys.sh"), str(self.directory / "control"), *names])
        for machine in machines(choices.machines):
            virtual = VirtualMachine(machine, self.directory)
            virtual.seed.mkdir(parents=True, exist_ok=True)
            self._write_seed(virtual, choices)
            virtual.make_disks(template, choices.hardware)
        unfinished = self._plan.with_suffix(".new")
        unfinished.write_text(
            json.dumps(
                {
                    "choices": asdict(choices),
                    "kernel": str(kernel.image.parent),
                    "root": str(root),
                    "template": str(template.root),
                    "cache": str(cache.absolute()),
                },
                indent=1,
            )
        )
        unfinished.rename(self._plan)

    def up(self, names: list[str]) -> dict[str, bool]:
        """Start what does not run; says of each machine whether it was started. All are ready then."""
        choices, plan = self.choices, self._read()
        for name in ("kernel", "root", "template"):
            if not Path(plan[name]).exists():
                raise LabError(f"{plan[name]} is gone from the cache: scripts/lab down, and up again")
        kernel = cached_kernel(Path(plan["kernel"]))
        self.wires.start([machine.machine for machine in self.machines])
        chosen = [machine for machine in self.machines if not names or machine.name in names]
        if choices.configure:
            self._pack_code(chosen)
        started = {}
        for machine in chosen:
            started[machine.name] = not machine.running
            if not machine.running:
                machine.start(kernel, choices.hardware, self.wires, Path(choices.source))
        self._write_ssh_config()

        def make_ready(machine: VirtualMachine) -> None:
            machine.wait_for_ssh(BOOT_SECONDS_MAX)
            if choices.configure and started[machine.name]:
                self._configure(machine)

        with ThreadPoolExecutor(MACHINES_MAX) as each:  # at once: they wait for themselves alone
            list(each.map(make_ready, chosen))
        return started

    def sync(self) -> None:
        """Bring the checkout's code to the machines that run, and restart their daemons."""
        running = [machine for machine in self.machines if machine.running]
        self._pack_code(running)
        for machine in running:
            machine.run(f"{_UPDATE} && systemctl try-restart 'replctl-*.service'")

    def _pack_code(self, machines: list[VirtualMachine]) -> None:
        code = self.directory / _CODE
        pack_code(Path(self.choices.source), Path(self._read()["cache"]), code)
        for machine in machines:
            shutil.copy(code, machine.seed)

    def down(self) -> list[str]:
        """End everything and forget it; says what ran."""
        ended = []
        if self.exists:
            ended = [machine.name for machine in self.machines if machine.power_off()]
        if self.wires.stop():
            ended.append("the wires")
        if self.directory.exists() and (self.exists or not any(self.directory.iterdir())):
            shutil.rmtree(self.directory)
        return ended

    def _configure(self, machine: VirtualMachine) -> None:
        if not (machine.seed / "settings").exists():
            return
        script = f"{_UPDATE} && {_PROVISION} configure /lab-seed/settings /lab-seed/keys"
        machine.run(script, timeout_seconds=_CONFIGURE_SECONDS_MAX)

    def _read(self) -> dict[str, Any]:
        try:
            return dict(json.loads(self._plan.read_text()))
        except FileNotFoundError:
            raise LabError(f"{self.directory} holds no lab; make one with: scripts/lab up") from None

    def _write_seed(self, virtual: VirtualMachine, choices: Choices) -> None:
        """What the guest is told by the directory that it mounts at boot (guest/boot reads it)."""
        everyone = machines(choices.machines)
        machine, seed = virtual.machine, virtual.seed
        (seed / "machine").write_text(f"name={machine.name}\ninitiator={_IQN}:host-{machine.name}\n")
        lines = [f"{machine.control_mac} {CONTROL_INTERFACE} {CONTROL_GUEST}/24 1500"]
        lines += [
            f"{machine.mac(network)} {network.value} {machine.address(network)}/24 {network.mtu}"
            for network in Network
        ]
        (seed / "interfaces").write_text("".join(f"{line}\n" for line in lines))
        hosts = ["127.0.0.1 localhost"]
        for other in everyone:
            hosts.append(f"{other.address(Network.MANAGEMENT)} {other.name}")
            hosts += [f"{other.address(network)} {other.name}-{network.word}" for network in Network]
        (seed / "hosts").write_text("".join(f"{line}\n" for line in hosts))
        control = self.directory / "control"
        shutil.copy(control / machine.name / "ssh_host_ed25519_key", seed)
        shutil.copy(control / "a.pub", seed / "authorized_keys")
        if machine.name not in SITES:
            return
        self._write_settings(virtual, choices)
        keys = seed / "keys"
        keys.mkdir(exist_ok=True)
        shutil.copytree(self.directory / "keys" / machine.name, keys / machine.name, dirs_exist_ok=True)
        for public in (self.directory / "keys").glob("*.pub"):
            shutil.copy(public, keys)

    def _write_settings(self, virtual: VirtualMachine, choices: Choices) -> None:
        """What provision.sh is told; Vagrant's machines get the same names."""
        settings = {
            "site": virtual.name,
            "sites": " ".join(SITES),
            "front_end": choices.front_end,
            "fabric": choices.fabric,
            "disk": "/dev/vdc",
            "volumes": choices.volumes,
            "journal": str(choices.journal_mib),
        }
        for machine in machines(choices.machines):
            settings[f"wwpn_{machine.name}"] = machine.wwpn
            for network in Network:
                settings[f"{network.word}_{machine.name}"] = machine.address(network)
        # The other site's machine is a host too, by the same port.
        others = (other for other in machines(choices.machines) if other.name != virtual.name)
        settings["wwpn_hosts"] = " ".join(other.wwpn for other in others)
        text = "".join(f'{name}="{value}"\n' for name, value in settings.items())
        (virtual.seed / "settings").write_text(text)

    def _write_ssh_config(self) -> None:
        control = self.directory / "control"
        known_hosts = self.directory / "known_hosts"
        known, hosts = [], []
        for machine in self.machines:
            known.append(f"{machine.name} {(control / f'{machine.name}.host.pub').read_text()}")
            if machine.running:
                hosts.append(f"Host {machine.name}\n  HostKeyAlias {machine.name}\n  Port {machine.port()}\n")
        hosts.append(
            "Host *\n  HostName 127.0.0.1\n  User root\n  IdentitiesOnly yes\n"
            f"  IdentityFile {control}/a/id_ed25519\n  UserKnownHostsFile {known_hosts}\n"
            "  StrictHostKeyChecking yes\n  LogLevel ERROR\n  ConnectTimeout 60\n"
            "  KexAlgorithms curve25519-sha256\n"  # the default takes a machine without acceleration a second
            "  ServerAliveInterval 15\n  ServerAliveCountMax 8\n"
            f"  ControlMaster auto\n  ControlPersist 120\n  ControlPath {self.directory}/%n.ssh\n"
        )
        known_hosts.write_text("".join(known))
        (self.directory / "ssh_config").write_text("".join(hosts))


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
