"""LIO's configfs through rtslib: what is there, and one step of a plan at a time. All of it may block.

The only module that knows rtslib. It holds no state and decides nothing: `observe` reads everything, whoever
it belongs to; `apply` does what a step says. Run both on a worker thread: taking away a LUN waits for the
commands that are under way on it, which the loop thread must be free to finish.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path as FilePath
from typing import Any

from target.errors import OperatorError
from target.lio.difference import Action, Step
from target.lio.objects import (
    NO_CHAP,
    Acl,
    Attributes,
    Backstore,
    Chap,
    Discovery,
    Fabric,
    Lun,
    MappedLun,
    Object,
    Path,
    Portal,
    Secret,
    Service,
    StorageObject,
    Target,
    text,
)

_TPG_TAG = 1
_USER_ATTRIBUTES = ("cmd_time_out", "emulate_write_cache")
_USER_MADE_WITH = ("hw_block_size", "hw_max_sectors")
_FILE_ATTRIBUTES = ("emulate_write_cache",)
_TARGET_ATTRIBUTES = ("authentication", "cache_dynamic_acls", "demo_mode_write_protect", "generate_node_acls")
_DATABASE_DIRECTORIES = ("/etc/rtslib-fb-target", "/etc/target")
"""Where rtslib wants the kernel to keep its reservations: Debian's, and upstream's."""


class Configfs:
    """One per process; opened by the first that needs it."""

    def __init__(self, fabrics: Sequence[Fabric]) -> None:
        self._wanted = fabrics
        self._fabrics: dict[Fabric, Any] = {}

    def open(self) -> None:
        """Import rtslib and load the kernel's modules, once; OperatorError where there are none."""
        if self._fabrics:
            return
        try:
            import rtslib_fb
        except ImportError:
            raise OperatorError(
                'front_end = "lio" needs rtslib-fb and pyudev: install replctl[lio], or the packages '
                "python3-rtslib-fb and python3-pyudev"
            ) from None
        self._lib: Any = rtslib_fb
        self._failures: tuple[type[Exception], ...] = (rtslib_fb.RTSLibError, OSError)
        try:
            self._root = self._open_root()
            fabrics = {fabric: rtslib_fb.FabricModule(fabric.value) for fabric in self._wanted}
            for module in fabrics.values():
                module._check_self()  # loads its kernel module
            self._fabrics = fabrics
        except self._failures as error:
            raise OperatorError(
                f"the kernel's target (LIO) cannot be used: {error}; it needs root and the modules "
                "target_core_user, iscsi_target_mod and, for Fibre Channel, tcm_fc or tcm_qla2xxx"
            ) from None

    def _open_root(self) -> Any:
        """rtslib sets the kernel's database directory, which must exist, before there is any object."""
        wanted = getattr(self._lib.RTSRoot, "_preferred_dbroot", _DATABASE_DIRECTORIES[0])
        for part in ("pr", "alua"):
            FilePath(wanted, part).mkdir(parents=True, exist_ok=True)
        return self._lib.RTSRoot()

    # -- what is there --

    def observe(self) -> list[Object]:
        """Every object of the kinds that we use, ours and others'."""
        self.open()
        try:
            return [*self._storage_objects(), *self._targets(), *self._discovery()]
        except self._failures as error:
            raise OperatorError(f"the configuration of LIO cannot be read: {error}") from None

    def _storage_objects(self) -> Iterator[Object]:
        for found in self._root.storage_objects:
            if found.plugin == Backstore.USER.value and found.is_configured():
                yield StorageObject(
                    found.name,
                    Backstore.USER,
                    found.config or "",
                    int(found.get_attribute("dev_size")),
                    found.wwn,
                    _attributes(found, _USER_MADE_WITH),
                    _attributes(found, _USER_ATTRIBUTES),
                )
            elif found.plugin == Backstore.FILE.value and found.is_configured():
                yield StorageObject(
                    found.name,
                    Backstore.FILE,
                    found.udev_path,
                    found.size,
                    found.wwn,
                    (),
                    _attributes(found, _FILE_ATTRIBUTES),
                )
            elif found.plugin in (Backstore.USER.value, Backstore.FILE.value):
                # Somebody died while making it. Its size says that it is not what anybody wants.
                yield StorageObject(found.name, Backstore(found.plugin), "", 0, "")

    def _targets(self) -> Iterator[Object]:
        for fabric, module in self._fabrics.items():
            for target in module.targets:
                for tpg in target.tpgs:
                    if tpg.tag == _TPG_TAG:
                        yield from self._target(fabric, target.wwn, tpg)

    def _target(self, fabric: Fabric, wwn: str, tpg: Any) -> Iterator[Object]:
        iscsi = fabric is Fabric.ISCSI
        target = Target(
            fabric,
            wwn,
            _attributes(tpg, _TARGET_ATTRIBUTES) if iscsi else (),
            _chap(tpg) if iscsi else NO_CHAP,
        )
        yield target
        for lun in tpg.luns:
            yield Lun(target.path, lun.lun, _storage_object_of(lun))
        for portal in tpg.network_portals:
            yield Portal(target.path, portal.ip_address.strip("[]"), portal.port)
        for found in tpg.node_acls:
            acl = Acl(target.path, found.node_wwn, _chap(found) if iscsi else NO_CHAP)
            yield acl
            for mapped in found.mapped_luns:
                yield MappedLun(acl.path, mapped.mapped_lun, _lun_of(mapped), mapped.write_protect)
        if iscsi and tpg.enable:
            yield Service(target.path)

    def _discovery(self) -> Iterator[Object]:
        module = self._fabrics.get(Fabric.ISCSI)
        if module is not None and module.exists and module.discovery_enable_auth:
            yield Discovery(
                Chap(
                    module.discovery_userid,
                    Secret(module.discovery_password),
                    module.discovery_mutual_userid,
                    Secret(module.discovery_mutual_password),
                )
            )

    # -- doing --

    def apply(self, step: Step) -> None:
        """One step; OperatorError says what the kernel did not like."""
        each = step.object
        try:
            if step.action is Action.DELETE:
                self._delete(each)
            elif step.action is Action.CREATE:
                self._create(each)
            else:
                self._change(each)
        except self._failures as error:
            raise OperatorError(f"{step.action.name.lower()} {text(each.path)}: {error}") from None

    def _create(self, each: Object) -> None:
        lib = self._lib
        if isinstance(each, StorageObject):
            self._create_storage_object(each)
        elif isinstance(each, Target):
            target = lib.Target(self._fabrics[each.fabric], each.wwn, mode="create")
            lib.TPG(target, _TPG_TAG, mode="create")
            self._change(each)
        elif isinstance(each, Lun):
            lib.LUN(self._tpg(each.target), each.number, self._storage_object(each.storage_object))
        elif isinstance(each, Portal):
            lib.NetworkPortal(self._tpg(each.target), _bracketed(each.host), each.port, mode="create")
        elif isinstance(each, Acl):
            lib.NodeACL(self._tpg(each.target), each.initiator, mode="create")
            self._change(each)
        elif isinstance(each, MappedLun):
            lib.MappedLUN(self._acl(each.acl), each.number, each.lun, each.write_protected)
        elif isinstance(each, Service):
            self._tpg(each.target).enable = True
        else:
            self._change(each)

    def _create_storage_object(self, each: StorageObject) -> None:
        if each.backstore is Backstore.FILE:
            made = self._lib.FileIOStorageObject(
                each.name, each.device, each.size_bytes, wwn=each.serial, write_back=True
            )
        else:
            # We answer no netlink message, so the kernel must wait for none, whoever asked it to.
            control = ",".join(f"{key}={value}" for key, value in each.made_with) + ",nl_reply_supported=-1"
            made = self._lib.UserBackedStorageObject(
                each.name, each.device, each.size_bytes, wwn=each.serial, control=control
            )
        for key, value in each.attributes:
            made.set_attribute(key, value)

    def _change(self, each: Object) -> None:
        if isinstance(each, StorageObject):
            found = self._storage_object(each.name)
            if each.backstore is Backstore.USER and int(found.get_attribute("dev_size")) != each.size_bytes:
                found.set_attribute("dev_size", each.size_bytes)
            _set_attributes(found, each.attributes)
        elif isinstance(each, Target):
            tpg = self._tpg(each.path)
            _set_attributes(tpg, each.attributes)
            if each.fabric is Fabric.ISCSI:
                _set_chap(tpg, each.chap)
        elif isinstance(each, Acl):
            if each.target[0] == Fabric.ISCSI.value:
                _set_chap(self._acl(each.path), each.chap)
        elif isinstance(each, MappedLun):
            self._mapped_lun(each).write_protect = each.write_protected
        elif isinstance(each, Discovery):
            module = self._fabrics[Fabric.ISCSI]
            module.discovery_userid = each.chap.user
            module.discovery_password = each.chap.secret.value
            module.discovery_mutual_userid = each.chap.mutual_user
            module.discovery_mutual_password = each.chap.mutual_secret.value
            module.discovery_enable_auth = True
        else:
            raise AssertionError(f"{text(each.path)} cannot be changed")

    def _delete(self, each: Object) -> None:
        if isinstance(each, StorageObject):
            self._storage_object(each.name).delete()
        elif isinstance(each, Target):
            self._lib.Target(self._fabrics[each.fabric], each.wwn, mode="lookup").delete()
        elif isinstance(each, Lun):
            self._lib.LUN(self._tpg(each.target), each.number).delete()
        elif isinstance(each, Portal):
            self._lib.NetworkPortal(
                self._tpg(each.target), _bracketed(each.host), each.port, mode="lookup"
            ).delete()
        elif isinstance(each, Acl):
            self._acl(each.path).delete()
        elif isinstance(each, MappedLun):
            self._mapped_lun(each).delete()
        elif isinstance(each, Service):
            self._tpg(each.target).enable = False
        else:
            self._fabrics[Fabric.ISCSI].clear_discovery_auth_settings()

    # -- looking up --

    def _tpg(self, target: Path) -> Any:
        module = self._fabrics[Fabric(target[0])]
        return self._lib.TPG(self._lib.Target(module, target[1], mode="lookup"), _TPG_TAG, mode="lookup")

    def _acl(self, acl: Path) -> Any:
        return self._lib.NodeACL(self._tpg(acl[:-1]), acl[-1], mode="lookup")

    def _mapped_lun(self, each: MappedLun) -> Any:
        return self._lib.MappedLUN(self._acl(each.acl), each.number)

    def _storage_object(self, name: str) -> Any:
        for found in self._root.storage_objects:
            if found.name == name:
                return found
        raise OperatorError(f"LIO has no storage object {name}")


def _attributes(found: Any, names: Sequence[str]) -> Attributes:
    return tuple((name, found.get_attribute(name)) for name in names)


def _set_attributes(found: Any, attributes: Attributes) -> None:
    for name, value in attributes:
        if found.get_attribute(name) != value:
            found.set_attribute(name, value)


def _chap(found: Any) -> Chap:
    return Chap(
        found.chap_userid or "",
        Secret(found.chap_password or ""),
        found.chap_mutual_userid or "",
        Secret(found.chap_mutual_password or ""),
    )


def _set_chap(found: Any, chap: Chap) -> None:
    found.chap_userid = chap.user
    found.chap_password = chap.secret.value
    found.chap_mutual_userid = chap.mutual_user
    found.chap_mutual_password = chap.mutual_secret.value


def _storage_object_of(lun: Any) -> str:
    """The name only: rtslib's own way reads much more. '' for a LUN that somebody left half made."""
    return _link_target(lun.path)


def _lun_of(mapped: Any) -> int:
    name = _link_target(mapped.path)
    return int(name.removeprefix("lun_")) if name else -1


def _link_target(directory: str) -> str:
    for entry in os.scandir(directory):
        if entry.is_symlink():
            return FilePath(os.readlink(entry.path)).name
    return ""


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
