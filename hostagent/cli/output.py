"""What a command says: JSON for programs with --json, else text and tables for people."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Annotated, Any

import typer
from rich.console import Console

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]

_console = Console(highlight=False, soft_wrap=True, emoji=False)


def show_json(value: Any) -> None:
    print(json.dumps(value, indent=2))


def say(text: str) -> None:
    """A line for people; nothing in it is markup."""
    _console.print(text, markup=False)


def show_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Numbers to the right, the rest to the left; missing values as a dash.

    No line is filled up with blanks behind its last word: one that is too long for the terminal wraps once.
    """
    table = [list(row) for row in rows]
    texts = [list(columns), *([cell(value) for value in row] for row in table)]
    widths = [max(len(row[index]) for row in texts) for index in range(len(columns))]
    numeric = [any(_is_number(row[index]) for row in table) for index in range(len(columns))]
    for number, row in enumerate(texts):
        fields = [
            text.rjust(width) if right else text.ljust(width)
            for text, width, right in zip(row, widths, numeric, strict=True)
        ]
        _console.print("  ".join(fields).rstrip(), style="bold" if number == 0 else None, markup=False)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def show_facts(facts: dict[str, object]) -> None:
    """One fact a line, the values below each other."""
    width = max(map(len, facts)) + 2
    for name, fact in facts.items():
        say(f"{name + ':':<{width}}{cell(fact)}")


def cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.1f}"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "-"
    return str(value)


def time_text(seconds: float) -> str:
    """Seconds since 1970 as local time, ISO 8601."""
    return datetime.fromtimestamp(seconds).astimezone().isoformat(" ", "seconds")


def bytes_text(count: int | None) -> str:
    """ "12.5 MiB" """
    if count is None:
        return "-"
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"
