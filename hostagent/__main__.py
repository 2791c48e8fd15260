"""The daemon of a host agent: `python -m hostagent --config site.toml`, or `replctl-hostagent`."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
from pathlib import Path

from hostagent.config import load_config
from hostagent.daemon import Daemon
from hostagent.stdio import run_stdio
from target.control.supervision import Supervision
from target.errors import ReplctlError


def main() -> None:
    """Serve until SIGTERM or SIGINT; with --stdio, carry one peer's conversation on standard input and
    output.
    """
    parser = argparse.ArgumentParser(prog="replctl-hostagent", description="The copy manager of one site.")
    parser.add_argument("--config", type=Path, required=True, help="the site's site.toml")
    parser.add_argument("--verbose", action="store_true", help="log everything")
    parser.add_argument(
        "--stdio", action="store_true", help="speak for a peer on standard input and output (needs --peer)"
    )
    parser.add_argument("--peer", default="", help="with --stdio: the peer's site name")
    arguments = parser.parse_args()
    logging.basicConfig(
        level=logging.DEBUG if arguments.verbose else logging.INFO,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    try:
        config = load_config(arguments.config)
        if arguments.stdio:
            run_stdio(config, arguments.peer)
            return
        daemon = Daemon(config)
    except ReplctlError as error:
        print(f"replctl-hostagent: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: daemon.stop())
    supervision = Supervision(os.environ)
    supervision.ready()
    daemon.run(supervision)
    supervision.stopping()
    daemon.close()


if __name__ == "__main__":
    main()
