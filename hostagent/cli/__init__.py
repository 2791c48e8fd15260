"""`replctl`, the one command: stateless, it asks the host agent of a site and shows what it answers.

In reading order: `app` (the commands, the exit codes), `site` (whom to ask), `output` (for people or
programs), `waiting` (--wait), then `pair`, `group`, `lun` and `lab`, a module for each family of commands.
"""

from __future__ import annotations


def main() -> None:
    """Console script."""
    from hostagent.cli.app import run

    run()
