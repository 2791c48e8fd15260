"""The daemon of a storage subsystem: `python -m target --config site.toml`, or `replctl-target`."""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import logging
import os
import resource
import signal
import sys
from pathlib import Path

from target.config import load_config
from target.control.supervision import Supervision
from target.errors import ReplctlError
from target.group import Access
from target.loop import Loop
from target.subsystem import Subsystem

_log = logging.getLogger("target")

_SETTLE_SECONDS_MAX = 20.0
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # malloc.h of glibc
_SWITCH_INTERVAL_SECONDS = 0.0001
"""The loop thread must not wait 5 ms for a worker that holds the interpreter."""


def main() -> None:
    """Serve until SIGTERM or SIGINT; then bring everything to the data volumes and end."""
    parser = argparse.ArgumentParser(prog="replctl-target", description="The storage subsystem of one site.")
    parser.add_argument("--config", type=Path, required=True, help="the site's site.toml")
    parser.add_argument("--verbose", action="store_true", help="log everything")
    arguments = parser.parse_args()
    logging.basicConfig(
        level=logging.DEBUG if arguments.verbose else logging.INFO,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    _keep_memory()
    _use_descriptors()
    sys.setswitchinterval(_SWITCH_INTERVAL_SECONDS)
    where = ""
    try:
        config = load_config(arguments.config)
        loop = Loop()
        where = f"{arguments.config}: "  # what is wrong from here on is what the file asks for, too
        subsystem = Subsystem(loop, config)
    except ReplctlError as error:
        print(f"replctl-target: {where}{error}", file=sys.stderr)
        sys.exit(error.exit_code)
    _run(loop, subsystem)


def _keep_memory() -> None:
    """Let freed buffers stay with the process: a fresh one costs a page fault for each of its 4 KiB.

    Measured: with glibc's defaults, page faults and page clearing took a fifth of the time of 64 KiB writes.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        for option, value in (
            (_M_ARENA_MAX, 1),
            (_M_MMAP_THRESHOLD, 32 << 20),
            (_M_TRIM_THRESHOLD, 48 << 20),
        ):
            libc.mallopt(option, value)


def _use_descriptors() -> None:
    """As many descriptors as we may have: each initiator needs one, and many systems begin with 1,024."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _run(loop: Loop, subsystem: Subsystem) -> None:
    stopping = False
    supervision = Supervision(os.environ)

    def stop(*_: object) -> None:
        nonlocal stopping
        if not stopping:
            stopping = True
            loop.call_from_thread(begin_stop)

    def begin_stop() -> None:
        supervision.stopping()
        _log.info("stopping: initiators are asked to log out")
        subsystem.drain(settle)

    def settle() -> None:
        _log.info("stopping: what is in the journal goes to the data volumes")
        subsystem.close()
        deadline = loop.monotonic() + _SETTLE_SECONDS_MAX

        def look() -> None:
            if subsystem.settled or loop.monotonic() > deadline:
                loop.stop()
            else:
                subsystem.settle()
                loop.call_later(0.01, look)

        look()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    for group in subsystem.engine.groups.values():
        _log.info(
            "group %s: %s, %s%s",
            group.name,
            group.role.name.lower(),
            group.access.name.lower(),
            f" ({group.reason})" if group.access is not Access.SERVE else "",
        )

    def served() -> None:
        supervision.ready()
        supervision.attend(loop)

    subsystem.when_served(served)
    try:
        loop.run()
    finally:
        loop.close()
    _log.info("stopped%s", "" if subsystem.settled else ", with journal left to apply at the next start")


if __name__ == "__main__":
    main()
