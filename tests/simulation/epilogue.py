"""When all pairs are together: doing things again changes nothing, and rot of plain volumes is found.

Volumes hold the hosts' blocks and nothing else, so damage there is found by verify records alone: a pass must
find every block that changed at rest, and repair it.
"""

from __future__ import annotations

from target.group import Access
from target.journal.superblock import Role
from tests.simulation.history import SECTOR
from tests.simulation.scene import Scene
from tests.simulation.sim_site import SimSite
from tests.simulation.violation import Violation

_REPAIR_SECONDS = 60.0


def epilogue(world: Scene, *, rot: bool) -> None:
    """Raises Violation."""
    secondaries = [site for site in world.sites.values() if site.target.group.role is Role.SECONDARY]
    primary = next(site for site in world.sites.values() if site not in secondaries)
    for site in secondaries:
        _again(world, primary, site)
    if rot:
        for site in secondaries:
            _rot(site)
        _verify(world, primary, secondaries)


def _again(world: Scene, primary: SimSite, site: SimSite) -> None:
    """I5: what lies behind the checkpoint is restored once more."""
    site.machine.kill_target()
    site.machine.start_target()
    latest = primary.node.last
    if not world.run_until(lambda: _idle(site, latest), _REPAIR_SECONDS):
        raise Violation(f"{site.name} does not come back to record {latest}")
    if not _equal(primary, site):
        raise Violation(f"{site.name} restored again and shows something else")


def _idle(site: SimSite, latest: int) -> bool:
    background = site.target.group.background
    return site.target.alive and background.idle and background.applied_sequence >= latest


def _rot(site: SimSite) -> None:
    """A bit flips, and a sector is where another belongs."""
    rng = site.world.clock.random
    for name, disk in site.disks.items():
        size = next(v.size_bytes for v in site.target.group.volumes if v.name == name)
        place = rng.randrange(size)
        disk.corrupt(place, bytes((disk.peek(1, place)[0] ^ 1 << rng.randrange(8),)))
        one, other = (rng.randrange(size // SECTOR) * SECTOR for _ in range(2))
        disk.corrupt(one, disk.peek(SECTOR, other))
    site.rotten = site.had_rot = True


def _verify(world: Scene, primary: SimSite, secondaries: list[SimSite]) -> None:
    if not world.run_until(lambda: primary.target.group.access is Access.SERVE, _REPAIR_SECONDS):
        raise Violation(f"{primary.name} does not serve again: {primary.target.group.reason}")
    world.run_for(1.0)
    request = world.operators.wait(world.operators.ask(primary, "verify"))
    if request.error is not None:
        raise Violation(f"{request}: {request.error}")
    for site in secondaries:
        if not world.run_until(lambda site=site: _equal(primary, site), _REPAIR_SECONDS):  # type: ignore[misc]
            raise Violation(f"a verify pass did not repair what changed at rest at {site.name}")
        site.rotten = False


def _equal(primary: SimSite, site: SimSite) -> bool:
    image = primary.image()
    return all(
        site.disks[name].snapshot()[: len(image[number])] == image[number]
        for number, name in site.volume_names.items()
    )
