"""The demonstration: a bank at site A, a disaster, the bank at site B, and home again.

Each part leaves what the next one needs in `Story`. Everything that is claimed is checked against the volumes
themselves.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from scripts.demonstration.bank import Bank
from scripts.demonstration.lab import GROUP, VOLUMES, CommandFailed, Facts, Lab
from scripts.demonstration.ledger import Audit
from scripts.demonstration.screen import Screen
from target.iscsi.client import Client, ScsiError
from target.scsi.sense import SenseKey

TRANSFERS_BEFORE_MARKER = 800
TRANSFERS_AFTER_MARKER = 400
TRANSFERS_AT_B = 100
TRANSFERS_HOME = 50
_WORKLOAD_SECONDS_MAX = 20.0
_MARKER = "before-the-disaster"
_COMPARED_BLOCKS = 2048
_LINK_SECONDS_MAX = 30.0
_POLL_SECONDS = 0.2


@dataclass
class Story:
    """What happened, as far as it has been told."""

    lab: Lab
    screen: Screen
    commit_times_ns: list[int] = field(default_factory=list)
    """When the application was told that transfer 1, 2, 3 … was committed."""
    committed_at_marker: int = 0
    found_at_b: int = 0
    in_transaction_at_b: bool = False
    plan: Facts = field(default_factory=dict)
    takeover_seconds: float = 0.0
    records_lost: int = 0
    volume_bytes: int = 0
    shipped_bytes: int = 0
    failback_bytes: int = 0

    def tell(self) -> None:
        """From the beginning to the table at the end."""
        self.screen.chapter("Two sites")
        self.start()
        self.screen.chapter("A bank at site a")
        self.work_at_a()
        self.screen.chapter("Disaster at site a, takeover at site b")
        self.take_over()
        self.work_at_b()
        self.screen.chapter("Site a comes back, and takes its place again")
        self.fail_back()
        self.compare()
        self.show_table()

    def start(self) -> None:
        with self.screen.step(
            "two sites on loopback: a storage subsystem and a copy manager each, four daemons"
        ):
            self.lab.up()
        with self.screen.step("initial copy from a to b over iSCSI"):
            self.lab.at("a", "pair", "create", GROUP, "--secondary", "b", "--wait")
        for volume in VOLUMES:
            with self.lab.connect("b", volume) as unit:
                self.volume_bytes += unit.block_count * unit.block_size_bytes
                self.screen.check(
                    f"volume {volume} at b refuses writes while it is a copy (DATA PROTECT)",
                    is_protected(unit),
                )

    def work_at_a(self) -> None:
        bank = Bank(self.lab, "a", seed=1)
        try:
            with self.screen.step("a SQLite database on volume data, its rollback journal on volume log"):
                bank.ledger.create()
            with self.screen.step(f"transfers, one transaction each, while marker {_MARKER} is set") as step:
                for _ in self._transfers(bank, TRANSFERS_BEFORE_MARKER):
                    step.show(f"{len(self.commit_times_ns)} committed")
                self.committed_at_marker = len(self.commit_times_ns)
                marker = self.lab.start_at("a", "marker", "create", GROUP, _MARKER, "--wait")
                for _ in self._transfers(bank, TRANSFERS_AFTER_MARKER):
                    step.show(f"{len(self.commit_times_ns)} committed")
                answer, _ = marker.communicate(timeout=_WORKLOAD_SECONDS_MAX)
                if marker.returncode:
                    raise CommandFailed(f"marker {_MARKER} was not restored at b: {answer}")
                for _ in self._transfers(bank, TRANSFERS_AFTER_MARKER):
                    step.show(f"{len(self.commit_times_ns)} committed")
                step.outcome = f"{len(self.commit_times_ns)} committed"
            self.shipped_bytes = self._fetched_bytes("b")
            with self.screen.step("SIGKILL to both daemons of site a, in the middle of one more transaction"):
                bank.transfer_until_killed(lambda: self.lab.kill("a"))
        finally:
            bank.close()

    def _transfers(self, bank: Bank, count: int) -> Iterator[None]:
        """So many transactions, or fewer on a slow machine."""
        end = time.monotonic() + _WORKLOAD_SECONDS_MAX
        for _ in range(count):
            bank.ledger.transfer()
            self.commit_times_ns.append(time.time_ns())
            yield
            if time.monotonic() > end:
                return

    def take_over(self) -> None:
        with self.screen.step("site b says what a takeover would mean (replctl takeover --plan)"):
            self.plan = self.lab.at("b", "takeover", GROUP, "--plan", "--force")
        marker = self.plan["last_restored_marker"]
        when = datetime.fromtimestamp(marker["time"]).strftime("%H:%M:%S.%f")[:-3]
        self.screen.say(f"last restored marker: {marker['name']}, sequence {marker['sequence']}, {when}")
        self.screen.say(
            f"records lost: {_known(self.plan['records_lost'])}; seconds lost: at most {self._seconds_lost()}"
        )
        self.screen.say(f"way back: {self.plan['way_back']}")
        start = time.monotonic()
        with self.screen.step("site b takes over"):
            self.lab.at("b", "takeover", GROUP, "--force")
        self.takeover_seconds = time.monotonic() - start

    def work_at_b(self) -> None:
        with self.screen.step("the bank opens at site b") as step, Bank(self.lab, "b", seed=2) as bank:
            self.in_transaction_at_b = bank.was_in_transaction
            audit = bank.audit()
            self.found_at_b = audit.transfers
            step.outcome = f"{audit.transfers} transfers"
            if self.in_transaction_at_b:
                step.outcome += "; the copy ended inside a transaction, which SQLite rolled back"
        self.check_audit("b", audit)
        committed = len(self.commit_times_ns)
        self.screen.check(
            f"all {self.committed_at_marker} transfers committed before marker {_MARKER} are there",
            audit.transfers >= self.committed_at_marker,
            f"only {audit.transfers} are",
        )
        before = self._committed_before(self.plan["last_restored_marker"]["time"])
        self.screen.check(
            f"all {before} transfers committed before the last restored marker are there",
            audit.transfers >= before,
            f"only {audit.transfers} are",
        )
        self.screen.check(
            "nothing is there that site a had not begun",
            audit.transfers <= committed + 1,
            f"{audit.transfers} are",
        )
        with (
            self.screen.step(f"{TRANSFERS_AT_B} more transfers at site b"),
            Bank(self.lab, "b", seed=3) as bank,
        ):
            bank.ledger.resume()
            for _ in range(TRANSFERS_AT_B):
                bank.ledger.transfer()

    def _committed_before(self, marker_time: float) -> int:
        return sum(time_ns < marker_time * 1e9 for time_ns in self.commit_times_ns)

    def _seconds_lost(self) -> str:
        return f"{self.plan['seconds_lost']:.2f}"

    def check_audit(self, site: str, audit: Audit) -> None:
        self.screen.check(
            f"site {site}: integrity_check is ok, no transfer is missing in between, every balance is right",
            not audit.faults,
            "; ".join(audit.faults),
        )

    def fail_back(self) -> None:
        with self.screen.step("site a starts again, knowing nothing of what happened"):
            self.lab.up()
        for volume in VOLUMES:
            with self.lab.connect("a", volume) as unit:
                self.screen.check(
                    f"volume {volume} at a refuses writes: there is a newer epoch", is_protected(unit)
                )
        with self.screen.step("the copy managers find each other again"):
            self._wait_linked("b", "a")
        with self.screen.step("resync of a from b, differences only") as step:
            self.lab.at("b", "pair", "resync", GROUP, "--secondary", "a", "--wait")
            self.failback_bytes = self._fetched_bytes("a")
            step.outcome = f"{self.failback_bytes:,} bytes shipped for volumes of {self.volume_bytes:,}"
        self._look_at_exported()
        self.screen.check(
            "differences only: less than a tenth of the volumes was shipped",
            self.failback_bytes * 10 < self.volume_bytes,
        )
        with self.screen.step("planned takeover back to site a"):
            self.lab.at("a", "takeover", GROUP)
        expected = self.found_at_b + TRANSFERS_AT_B
        with self.screen.step("the bank opens at site a again") as step, Bank(self.lab, "a", seed=4) as bank:
            audit = bank.audit()
            step.outcome = f"{audit.transfers} transfers"
        self.check_audit("a", audit)
        self.screen.check(
            f"all {expected} transfers are there, what was committed at b included",
            audit.transfers == expected,
        )
        with (
            self.screen.step(f"{TRANSFERS_HOME} more transfers at site a"),
            Bank(self.lab, "a", seed=5) as bank,
        ):
            bank.ledger.resume()
            for _ in range(TRANSFERS_HOME):
                bank.ledger.transfer()

    def compare(self) -> None:
        with self.screen.step("b restores everything up to a last marker"):
            self.lab.at("a", "marker", "create", GROUP, "the-end", "--wait")
        for volume in VOLUMES:
            with self.screen.step(f"volume {volume} is read at both sites over iSCSI") as step:
                with self.lab.connect("a", volume) as ours, self.lab.connect("b", volume) as theirs:
                    blocks, differing = compare_units(ours, theirs)
                step.outcome = f"{blocks:,} blocks"
            self.screen.check(
                f"volume {volume} is the same at a and b, block by block",
                not differing,
                f"{differing} differ",
            )

    def _mirror(self, site: str, mirror: str) -> Facts:
        """What a primary says of one of its mirrors."""
        mirrors = self.lab.at(site, "pair", "status", GROUP)["mirrors"]
        return next((dict(state) for state in mirrors if state["site"] == mirror), {})

    def _wait_linked(self, site: str, mirror: str) -> None:
        end = time.monotonic() + _LINK_SECONDS_MAX
        while self._mirror(site, mirror).get("link", {}).get("management") != "up":
            if time.monotonic() > end:
                raise CommandFailed(f"{site} has no link to {mirror} after {_LINK_SECONDS_MAX:.0f} seconds")
            time.sleep(_POLL_SECONDS)

    def _look_at_exported(self) -> None:
        """What a alone had acknowledged is kept as a file before b's history goes over it."""
        events = self.lab.at("b", "events", GROUP)["events"]
        for facts in (event["facts"] for event in events if event["kind"] == "export"):
            self.records_lost = int(facts["records"])
            self.screen.check(
                f"the {self.records_lost} records that only a had are kept as {Path(facts['path']).name}",
                Path(facts["path"]).stat().st_size > 0,
            )

    def _fetched_bytes(self, site: str) -> int:
        """What a secondary has read of its primary's journal over the SAN link."""
        return int(self.lab.at(site, "group", "status", GROUP)["fetch"]["bytes_read"])

    def show_table(self) -> None:
        committed = len(self.commit_times_ns)
        lost = max(0, committed - self.found_at_b)
        self.screen.table(
            "What happened",
            [
                ("transactions committed at a before the disaster", f"{committed}"),
                ("of these at b after the takeover", f"{self.found_at_b}"),
                ("lost: transactions", f"{lost}"),
                ("lost: records that only a had", f"{self.records_lost}"),
                ("lost: seconds at most, as the plan said", self._seconds_lost()),
                ("bytes shipped from a to b", f"{self.shipped_bytes:,}"),
                ("time to take over", f"{self.takeover_seconds:.2f} s"),
                ("bytes shipped from b to a to fail back", f"{self.failback_bytes:,}"),
                (
                    "checks",
                    "all held"
                    if not self.screen.failed_checks
                    else f"{len(self.screen.failed_checks)} FAILED",
                ),
            ],
        )


def _known(count: int | None) -> str:
    """A primary that is gone cannot be asked how far it was."""
    return "cannot be known while a is gone" if count is None else f"{count}"


def is_protected(unit: Client) -> bool:
    """Whether a write is refused with sense key DATA PROTECT (SBC-3 4.12). If not, it changed nothing."""
    try:
        unit.write(0, unit.read(0, 1))
    except ScsiError as error:
        return error.sense is not None and error.sense.key is SenseKey.DATA_PROTECT
    return False


def compare_units(ours: Client, theirs: Client) -> tuple[int, int]:
    """Read both from end to end: (blocks, how many of them differ)."""
    size = ours.block_size_bytes
    if (size, ours.block_count) != (theirs.block_size_bytes, theirs.block_count):
        return ours.block_count, ours.block_count
    ranges = [
        (lba, min(_COMPARED_BLOCKS, ours.block_count - lba))
        for lba in range(0, ours.block_count, _COMPARED_BLOCKS)
    ]
    differing = 0
    for one, other in zip(ours.read_many(ranges), theirs.read_many(ranges), strict=True):
        if one != other:
            differing += sum(one[at : at + size] != other[at : at + size] for at in range(0, len(one), size))
    return ours.block_count, differing
