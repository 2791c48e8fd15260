"""`scripts/demo`: the main job, on real input, in under two minutes. Exit code 0 only if every check held."""

from __future__ import annotations

import contextlib
import sys
import tempfile
from pathlib import Path

from rich.console import Console

from scripts.demonstration.lab import CommandFailed, Lab
from scripts.demonstration.screen import Screen
from scripts.demonstration.story import Story
from target.errors import ReplctlError


def main() -> int:
    console = Console(soft_wrap=True)
    screen = Screen(console)
    with tempfile.TemporaryDirectory(prefix="replctl-demo-") as directory:
        lab = Lab(Path(directory) / "lab")
        try:
            Story(lab, screen).tell()
        except (CommandFailed, ReplctlError) as error:
            console.print(f"The demonstration could not go on: {error}", markup=False, highlight=False)
            console.print(lab.last_log_lines(), markup=False, highlight=False)
            return 1
        finally:
            with contextlib.suppress(CommandFailed):
                lab.down()
    return 1 if screen.failed_checks else 0


if __name__ == "__main__":
    sys.exit(main())
