"""Rounds in which a site dies and one of its files is cut, torn or has a bit flipped before it comes back.

What may follow is a recovery, or a clear refusal and the operator's way out; never a block that nobody wrote
there. A plain volume has no checksums: what is wrong in a secondary's is found by `verify`, and repaired. (In
a primary's nothing can find it, so volumes of primaries are only cut here.)
"""

from __future__ import annotations

import random
from enum import Enum
from pathlib import Path
from typing import NamedTuple

from target.blockdev import FileDevice
from target.errors import IntegrityError, OperatorError, ReplctlError
from target.journal.format import read_superblock
from target.journal.superblock import COPIES, SUPERBLOCK_BYTES
from tests.scenarios.checks import check_equal, take_over
from tests.scenarios.history import History
from tests.scenarios.load import Load
from tests.scenarios.site_lab import GROUP, SiteLab

_SECTOR = 512
_REFUSALS = ("it was cut", "neither copy of its superblock is good", "was durable, but its")


class Harm(Enum):
    """What happens to a file."""

    CUT = "it ends earlier"
    TORN = "some sectors hold zeros"
    FLIPPED = "one bit is another"


class Damage(NamedTuple):
    """One file of one site, and what happens to it; `volume`: its name, or '' for the journal."""

    site: str
    volume: str
    harm: Harm


class DamageRounds:
    """One lab, and a pair whose primary may change."""

    def __init__(self, lab: SiteLab, chance: random.Random, trail: list[str]) -> None:
        self.lab = lab
        self.chance = chance
        self.trail = trail
        self.history = History(lab.blocks)
        self.primary, self.mirror = "a", "b"
        self.refused = 0

    def run(self, rounds: int) -> None:
        """So many rounds."""
        for number in range(rounds):
            self._round(number)

    def _choose(self) -> Damage:
        chance = self.chance
        site = chance.choice((self.primary, self.mirror, self.mirror))
        volume = chance.choice(("", "", *self.lab.volumes))
        kinds = list(Harm)
        if volume and site == self.primary:
            kinds = [Harm.CUT]
        return Damage(site, volume, chance.choice(kinds))

    def _round(self, number: int) -> None:
        lab, chance = self.lab, self.chance
        damage = self._choose()
        with Load(lab, self.primary, self.history, seed=chance.randrange(1 << 30), hosts=1) as load:
            load.wait_acknowledged(chance.randrange(5, 60))
            lab.kill(damage.site)
            if damage.site == self.primary:
                load.stop()
        place = self._damage(damage)
        self.trail.append(f"round {number}: primary {self.primary}; {damage}: {place}")
        refusal = self._start(damage.site)
        if refusal:
            self.refused += 1
            self.trail.append(f"  refused: {refusal}")
            assert any(known in refusal for known in _REFUSALS), refusal
            self._begin_anew(damage.site)
        else:
            assert damage.harm is not Harm.CUT, f"{damage} ({place}) was not refused"
            self._recovered(damage)
        check_equal(lab, self.history, self.primary, self.mirror)

    # -- harm --

    def _damage(self, damage: Damage) -> str:
        about = self.lab.describe(damage.site)
        if damage.volume:
            path = Path(about["volumes"][damage.volume])
            at = self.chance.randrange(path.stat().st_size // _SECTOR) * _SECTOR
        else:
            path = Path(about["journals"][GROUP])
            at = self._place(path)
        with path.open("r+b") as file:
            if damage.harm is Harm.CUT:
                file.truncate(at)
                return f"cut at {at}"
            if damage.harm is Harm.TORN:
                length = _SECTOR * self.chance.choice((1, 2, 8, 16))
                length = min(length, path.stat().st_size - at)
                file.seek(at)
                file.write(bytes(length))
                return f"{length} bytes at {at}"
            at += self.chance.randrange(_SECTOR)
            bit = self.chance.randrange(8)
            file.seek(at)
            byte = file.read(1)[0]
            file.seek(at)
            file.write(bytes([byte ^ 1 << bit]))
            return f"bit {bit} of byte {at}"

    def _place(self, journal: Path) -> int:
        """A sector that says something: of a superblock, or of the ring between tail and head."""
        device = FileDevice(journal, read_only=True)
        try:
            superblock = read_superblock(device)
        finally:
            device.close()
        assert superblock is not None
        if self.chance.random() < 0.2:
            return self.chance.randrange(COPIES * SUPERBLOCK_BYTES // _SECTOR) * _SECTOR
        first = superblock.checkpoint_lsn if self.chance.random() < 0.7 else superblock.tail.lsn
        length = max(superblock.durable_lsn - first, 64 << 10)
        lsn = first + self.chance.randrange(length // _SECTOR) * _SECTOR
        return superblock.ring_offset + lsn % superblock.ring_bytes

    # -- what follows --

    def _start(self, site: str) -> str:
        """Start the site; why it does not serve, or ''."""
        try:
            self.lab.up()
        except (OperatorError, IntegrityError) as error:
            return str(error)
        state = self.lab.state(site)
        return str(state["reason"]) if state["access"] == "failed" else ""

    def _begin_anew(self, site: str) -> None:
        """The way out of a refusal: the other site serves, this one gets new files and a copy."""
        lab = self.lab
        if site == self.primary:
            lost = take_over(lab, self.history, self.mirror, {})
            self.trail.append(f"  {self.mirror} took over, {lost} writes were lost")
            self.primary, self.mirror = self.mirror, self.primary
        self._copy_anew()

    def _copy_anew(self) -> None:
        lab = self.lab
        lab.lab.kill(self.mirror)
        about = lab.describe(self.mirror)
        for path in (about["journals"][GROUP], *about["volumes"].values()):
            Path(path).unlink()
        lab.up()
        lab.wait_link(self.primary, self.mirror)
        lab.ask(self.primary, "pair.delete", secondary=self.mirror)
        lab.pair(self.primary, self.mirror)

    def _recovered(self, damage: Damage) -> None:
        """It serves: then what it serves is a prefix, and the pair goes on, or says that it cannot."""
        lab, history = self.lab, self.history
        if damage.site == self.primary:
            lost = history.truncate(history.cut(lab.content(self.primary)))
            self.trail.append(f"  recovered; {lost} writes of the torn tail are gone")
        if not self._goes_on():
            reason = lab.mirror(self.primary, self.mirror)["reason"]
            self.trail.append(f"  suspended: {reason}")
            if not damage.volume and lab.state(self.mirror)["consistent"]:
                history.cut(lab.content(self.mirror))
            try:
                lab.ask(self.primary, "pair.resync", secondary=self.mirror)
                lab.wait_status(self.primary, self.mirror, "PAIR")
            except ReplctlError as error:
                self.trail.append(f"  resync: {error}")
                self._copy_anew()
        if damage.volume:
            self._verify()

    def _goes_on(self) -> bool:
        """Whether a marker of now reaches the mirror; False when the pair is suspended instead."""
        lab = self.lab
        lab.wait_link(self.primary, self.mirror)
        lab.wait_serves(self.primary)
        name = f"after {len(self.trail)}"
        lab.create_marker(self.primary, name)
        suspended = False

        def decided() -> bool:
            nonlocal suspended
            suspended = lab.mirror(self.primary, self.mirror)["status"] == "PSUE"
            known = lab.ask(self.mirror, "marker.list")["markers"]
            return suspended or any(marker["name"] == name for marker in known)

        lab.wait("the marker at the mirror, or a suspended pair", decided)
        return not suspended

    def _verify(self) -> None:
        """Every extent that differs is found; what was found is repaired."""
        lab = self.lab
        lab.wait_equal(self.primary, self.mirror)
        differs = lab.content(self.mirror) != self.history.image()
        before = self._mismatches()
        sequence = lab.ask(self.primary, "verify")["sequence"]
        lab.wait(
            "a verify pass",
            lambda: lab.mirror(self.primary, self.mirror)["sequence"]["verified"] >= sequence,
        )
        found = self._mismatches() - before
        self.trail.append(f"  verify found {found}")
        assert (found > 0) == differs, f"the volumes differ: {differs}; verify found {found}"
        lab.wait("the repair", lambda: lab.content(self.mirror) == self.history.image())

    def _mismatches(self) -> int:
        verify = self.lab.mirror(self.primary, self.mirror)["verify"]
        return 0 if verify is None else int(verify["mismatches"])
