"""Fuzz one target, guided by the branches that inputs reach: `scripts/fuzz TARGET [--seconds N]`.

Inputs are kept in .fuzz/TARGET in the current directory, so that the next run goes on from there. An input
that fails is left beside them, and printed in the form in which `tests/fuzz/seeds.py` wants it.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["target"]):
    from tests.fuzz.seeds import seeds
    from tests.fuzz.targets import TARGETS

_INPUT_BYTES_MAX = 8192


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/fuzz", description="Fuzz one decoder.")
    parser.add_argument("target", choices=sorted(TARGETS))
    parser.add_argument("--seconds", type=int, default=60, help="how long (default 60; 0: until it fails)")
    parser.add_argument("--seed", type=int, default=0, help="chance; 0: another one every time")
    parser.add_argument("--corpus", type=Path, default=Path(".fuzz"), help="where inputs are kept")
    arguments = parser.parse_args()
    corpus = arguments.corpus / arguments.target
    corpus.mkdir(parents=True, exist_ok=True)
    for data in seeds()[arguments.target]:
        (corpus / hashlib.sha1(data, usedforsecurity=False).hexdigest()).write_bytes(data)
    run = TARGETS[arguments.target]
    logging.getLogger("target").setLevel(logging.CRITICAL)  # what strangers are told is not for the terminal

    def one(data: bytes) -> None:
        try:
            run(data)
        except BaseException:
            print(f"{arguments.target} fails with: {data!r}", file=sys.stderr, flush=True)
            raise

    options = [
        f"-max_total_time={arguments.seconds}",
        f"-max_len={_INPUT_BYTES_MAX}",
        f"-seed={arguments.seed}",
        f"-artifact_prefix={corpus}/",
        "-timeout=10",
        "-rss_limit_mb=1024",
        "-print_final_stats=1",
    ]
    atheris.Setup([sys.argv[0], *options, str(corpus)], one)
    atheris.Fuzz()


main()
