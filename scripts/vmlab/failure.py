"""How the lab fails, and how it runs programs: with their output kept, to be told when one fails."""

from __future__ import annotations

import subprocess
from pathlib import Path


class LabError(Exception):
    """What happened, to what, and what to do next."""


def run(command: list[str], *, cwd: Path | None = None, timeout_seconds: float = 600) -> str:
    """Standard output of a program that must succeed."""
    try:
        done = subprocess.run(
            command,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_seconds,
            check=False,
        )
    except FileNotFoundError:
        raise LabError(f"{command[0]} is not installed; scripts/lab names what it needs") from None
    except subprocess.TimeoutExpired:
        raise LabError(f"{command[0]} did not end within {timeout_seconds:.0f} s") from None
    if done.returncode != 0:
        last = "\n".join((done.stderr or done.stdout).strip().splitlines()[-15:])
        raise LabError(f"{' '.join(command[:3])} ... failed with exit code {done.returncode}:\n{last}")
    return done.stdout
