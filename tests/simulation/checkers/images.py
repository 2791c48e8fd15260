"""I1, I2, I5: what a site shows is exactly one point of its own history, on all volumes at once.

A site that serves shows the end of its journal; a secondary that calls itself consistent shows what it says
it has restored. The point is named by sequence number and chain digest, the content comes from the hosts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from target.group import Access
from target.journal.superblock import Role
from tests.simulation.checkers.base import Checker
from tests.simulation.history import Image, first_difference

if TYPE_CHECKING:
    from tests.simulation.scene import Scene
    from tests.simulation.sim_site import SimSite


class Images(Checker):
    def __init__(self, world: Scene) -> None:
        super().__init__(world)
        self._seen: dict[str, int] = {}

    def tick(self) -> None:
        for site in self.world.sites.values():
            if self._seen.get(site.name) != site.changes:
                self.look(site)

    def converged(self) -> None:
        for site in self.world.sites.values():
            self.look(site)

    def started(self, site: SimSite, after_power_loss: bool) -> None:
        self.look(site)

    def access_changed(self, site: SimSite, before: Access, after: Access) -> None:
        if after is Access.SERVE:
            self.look(site)

    def look(self, site: SimSite) -> None:
        """Compare everything the site shows."""
        if not site.target.alive or site.group_failed or site.rotten:
            return
        group = site.target.group
        if site.reads_fail:
            return
        changes = site.changes
        if group.role is not Role.SECONDARY:
            found = self._through_overlay(site, site.image())
            self._compare(site, site.image(), found, f"the end of its journal, {site.node}")
            self._seen[site.name] = changes
            return
        background = group.background
        if not group.consistent or not background.idle or background.applied_sequence > site.node.last:
            return
        node = self.world.history.at_sequence(site.node, background.applied_sequence)
        expected = self.world.history.image(node, background.applied_sequence)
        found = {
            number: site.disks[name].snapshot()[: len(expected[number])]
            for number, name in site.volume_names.items()
        }
        what = f"record {background.applied_sequence}, which it has restored"
        self._compare(site, expected, found, what)
        self._seen[site.name] = changes

    def _through_overlay(self, site: SimSite, expected: Image) -> dict[int, bytes]:
        with self.world.all_in_memory():
            return {
                number: site.read_now(name, 0, len(expected[number]))
                for number, name in site.volume_names.items()
            }

    def _compare(self, site: SimSite, expected: Image, found: dict[int, bytes], what: str) -> None:
        for number, content in expected.items():
            if content == found[number]:
                continue
            sector, wanted, had = next(first_difference(content, found[number]))
            count = sum(1 for _ in first_difference(content, found[number]))
            self.fail(
                f"{site.name} ({site.target.group.role.name}) does not show {what}: {count} sectors of "
                f"{site.volume_names[number]} differ; sector {sector} should be of write {wanted}, "
                f"is of {had}"
            )
