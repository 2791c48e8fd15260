"""Enumerate the small worlds and print the counts: `python -m tests.simulation.small_worlds [--wide]`."""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections import Counter

from target.journal.recovery import TABLE
from tests.simulation.small_worlds import damage
from tests.simulation.small_worlds.enumeration import Part, enumerate_all
from tests.simulation.small_worlds.primary import Count


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation.small_worlds", description=__doc__)
    parser.add_argument("--wide", action="store_true", help="all commands and gaps; every recovery crashed")
    wide = parser.parse_args().wide
    logging.disable()  # damage is found on purpose, thousands of times
    began = time.monotonic()

    def progress(part: Part, count: Count) -> None:
        if sys.stderr.isatty():
            print(
                f"\r{part.beginning.name} {part.length} {part.first.name}".ljust(60), end="", file=sys.stderr
            )

    print("beginning  length sequences   points   crashes   states    starts")
    for (beginning, length), count in sorted(
        enumerate_all(wide, progress).items(), key=lambda item: (item[0][0].name, item[0][1])
    ):
        print(
            f"{beginning.name.lower():10} {length:6} {count.sequences:9} {count.crash_points:8} "
            f"{count.crash_states:9} {count.states:8} {count.starts:9}"
        )
    findings: Counter[str] = Counter()
    for case in damage.cases():
        damage.run(case)
        finding = case.finding
        findings[
            f"header {finding.header.name}, chain {finding.chain.name}, data {finding.data.name}, "
            f"{finding.durability.name} -> {TABLE[finding].name}"
        ] += 1
    for row, cases in findings.items():
        print(f"{cases:6} damaged rings: {row}")
    flipped, refused = damage.flips(wide)
    print(f"{flipped:6} bits flipped: {refused} starts refused, the others right")
    print(f"{time.monotonic() - began:.0f} s")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
