"""Rounds of SIGKILL on one lab, cheap enough for hundreds of them; each ends with every block compared.

A round: hosts write, some daemons die, perhaps a second time while they start, everything goes on, the hosts
stop, and both sites are compared with each other and with the stamped history. Volumes are small, so that a
round costs little more than starting what died.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
import time
from functools import partial

from target.errors import OperatorError, PeerError
from tests.scenarios.checks import check_equal, check_primary, check_secondary
from tests.scenarios.history import History
from tests.scenarios.load import Load
from tests.scenarios.site_lab import SiteLab

SMALL_VOLUMES = {"data": 1 << 20, "log": 512 << 10}
SMALL_JOURNAL = "48MiB"

Daemon = tuple[str, str]
VICTIMS: list[Daemon] = [(site, daemon) for site in "ab" for daemon in ("target", "hostagent")]
_DEATHS = (1, 1, 1, 2, 2, 3, 4)
_STARTING_SECONDS = 0.8
"""About how long a daemon takes until it serves: within that it may die again."""


class KillRounds:
    """One lab, a pair from a to b, and what is left of `chance`."""

    def __init__(self, lab: SiteLab, chance: random.Random, trail: list[str]) -> None:
        self.lab = lab
        self.chance = chance
        self.trail = trail
        self.history = History(lab.blocks)
        self.kills = 0

    def run(self, rounds: int) -> None:
        """So many rounds."""
        for number in range(rounds):
            self._round(number)

    def _round(self, number: int) -> None:
        chance, lab, history = self.chance, self.lab, self.history
        victims = chance.sample(VICTIMS, chance.choice(_DEATHS))
        again = chance.random() < 0.25
        self.trail.append(f"round {number}: SIGKILL to {victims}{', and again' if again else ''}")
        with Load(lab, "a", history, seed=chance.randrange(1 << 30), hosts=1) as load:
            load.wait_acknowledged(chance.randrange(30))
            for site, daemon in victims:
                lab.kill(site, daemon)
                self.kills += 1
            if ("a", "target") in victims and not any(site == "b" for site, _ in victims):
                check_secondary(lab, history, "b", {})
            if again:
                self._die_while_starting(victims)
            lab.up()
            load.wait_acknowledged(1)
        check_primary(lab, history, "a")
        check_equal(lab, history, "a", "b")

    def _die_while_starting(self, victims: list[Daemon]) -> None:
        """Recovery itself is broken off, at a random moment."""

        def start() -> None:
            with contextlib.suppress(OperatorError, PeerError):
                self.lab.up()

        starting = threading.Thread(target=start)
        starting.start()
        time.sleep(self.chance.random() * _STARTING_SECONDS)  # the moment is the point of it
        for site, daemon in victims:
            pid = self._pid(site, daemon)
            if pid is None:
                continue
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)  # without the lab's lock, which `up` holds
                self.kills += 1
            self.lab.wait(f"the end of {daemon} of {site}", partial(self._is_gone, site, daemon, pid))
        starting.join()

    def _is_gone(self, site: str, daemon: str, pid: int) -> bool:
        return self._pid(site, daemon) != pid

    def _pid(self, site: str, daemon: str) -> int | None:
        pid: int | None = self.lab.lab.status()["sites"][site]["pids"][daemon]
        return pid
