"""What must be done so that LIO is what it should be. Pure: two sets of objects in, ordered steps out.

An object that is wrong is changed where the kernel lets it be changed, else deleted and made again, with all
that depends on it. Invariant: applied once, the steps leave no difference; and no step names an object that
is not ours (`ours`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, fields
from enum import Enum

from target.lio.objects import (
    BACKSTORES,
    Acl,
    Backstore,
    Discovery,
    Lun,
    MappedLun,
    Object,
    Path,
    Portal,
    Service,
    StorageObject,
    Target,
    is_ours,
    text,
)

_ORDER = (StorageObject, Target, Lun, Portal, Acl, MappedLun, Service, Discovery)
"""Made in this order, deleted in the other."""

_CHANGEABLE: dict[type[Object], frozenset[str]] = {
    StorageObject: frozenset(("size_bytes", "attributes")),
    Target: frozenset(("attributes", "chap")),
    Acl: frozenset(("chap",)),
    MappedLun: frozenset(("write_protected",)),
    Discovery: frozenset(("chap",)),
}


class Action(Enum):
    """What is done to an object."""

    CREATE = "+"
    CHANGE = "~"
    DELETE = "-"


@dataclass(frozen=True, slots=True)
class Step:
    """`object` as it is to be (to be deleted: as it is); `before` with CHANGE only."""

    action: Action
    object: Object
    before: Object | None = None

    def __str__(self) -> str:
        line = f"{self.action.value} {text(self.object.path)}"
        if self.before is None:
            return line
        changes = ", ".join(
            f"{name} {getattr(self.before, name)!r} -> {getattr(self.object, name)!r}"
            for name in _differing(self.before, self.object)
        )
        return f"{line}: {changes}"


def difference(desired: Iterable[Object], observed: Iterable[Object]) -> list[Step]:
    """Steps from `observed`, of which all is ours, to `desired`."""
    wanted = {each.path: each for each in desired}
    found = {each.path: each for each in observed}
    doomed = {
        path for path, each in found.items() if path not in wanted or _must_be_made_again(each, wanted[path])
    }
    growing = True
    while growing:
        dependents = {path for path, each in found.items() if doomed.intersection(_needs(each))}
        growing = not dependents <= doomed
        doomed |= dependents
    steps = [Step(Action.DELETE, found[path]) for path in doomed]
    steps.sort(key=lambda step: (-_rank(step.object), step.object.path))
    rest = []
    for path, each in wanted.items():
        if path not in found or path in doomed:
            rest.append(Step(Action.CREATE, each))
        elif each != found[path]:
            rest.append(Step(Action.CHANGE, each, found[path]))
    return steps + sorted(rest, key=lambda step: (_rank(step.object), step.object.path))


def restricted(steps: Iterable[Step], path: Path) -> list[Step]:
    """The steps for one object and what is below it, with what must be made first so that it can be there."""
    steps = list(steps)
    chosen = {step.object.path for step in steps if step.object.path[: len(path)] == path}
    made = {step.object.path: step for step in steps if step.action is Action.CREATE}
    waiting = list(chosen & made.keys())
    while waiting:
        for needed in _needs(made[waiting.pop()].object):
            if needed in made and needed not in chosen:
                chosen.add(needed)
                waiting.append(needed)
    return [step for step in steps if step.object.path in chosen]


def asked_for(steps: Iterable[Step], before: Iterable[Object], after: Iterable[Object]) -> list[Step]:
    """The steps that are due because `after` is wanted and no longer `before`. Drift that was there stays."""
    changes = {(step.action, step.object.path) for step in difference(after, before)}
    return [step for step in steps if (step.action, step.object.path) in changes]


def ours(observed: Iterable[Object], site: str, wanted: Collection[Path]) -> list[Object]:
    """Of all that LIO has, what belongs to this site. `wanted`: paths of what site.toml asks for."""
    everything = list(observed)
    luns = [each for each in everything if isinstance(each, Lun)]
    our_luns = {lun.path for lun in luns if is_ours(lun.storage_object, site)}
    foreign_luns = {lun.path for lun in luns} - our_luns
    mapped = [each for each in everything if isinstance(each, MappedLun)]
    foreign_mapped = {each.path for each in mapped if (*each.acl[:-1], f"lun_{each.lun}") in foreign_luns}
    has_ours = {path[:-1] for path in our_luns}
    has_foreign = {path[:-1] for path in foreign_luns}
    targets = {
        each.path
        for each in everything
        if isinstance(each, Target)
        and (each.path in wanted or (each.path in has_ours and each.path not in has_foreign))
    }
    foreign = foreign_luns | foreign_mapped
    foreign_acls = {path[:-1] for path in foreign_mapped}

    def belongs(each: Object) -> bool:
        if isinstance(each, StorageObject):
            return is_ours(each.name, site)
        if each.path in foreign:
            return False  # even where we want one of the same name: making ours will fail, and say so
        if each.path in wanted:
            return True
        return each.path[:2] in targets and each.path not in foreign_acls and type(each) is not Discovery

    return [each for each in everything if belongs(each)]


def _needs(each: Object) -> tuple[Path, ...]:
    """What must be there before an object can be."""
    if isinstance(each, Lun):
        return each.target, (BACKSTORES, each.storage_object)
    if isinstance(each, MappedLun):
        return each.acl, (*each.acl[:-1], f"lun_{each.lun}")
    if isinstance(each, Portal | Acl | Service):
        return (each.target,)
    return ()


def _rank(each: Object) -> int:
    return _ORDER.index(type(each))


def _differing(one: Object, other: Object) -> list[str]:
    return [field.name for field in fields(one) if getattr(one, field.name) != getattr(other, field.name)]


def _must_be_made_again(found: Object, wanted: Object) -> bool:
    if type(found) is not type(wanted):
        return True
    changeable = _CHANGEABLE.get(type(found), frozenset())
    if isinstance(found, StorageObject) and found.backstore is Backstore.FILE:
        changeable -= {
            "size_bytes"
        }  # the kernel looks at a file's size once (a device's it follows by itself)
    return not changeable.issuperset(_differing(found, wanted))
