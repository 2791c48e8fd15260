"""What a command says: JSON for programs with --json, else text and tables for people."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]

_console = Console(highlight=False, soft_wrap=True)
_tables = Console(highlight=False, width=1000)  # a line too long for the terminal wraps; no word is cut short


def show_json(value: Any) -> None:
    print(json.dumps(value, indent=2))


def say(text: str) -> None:
    """A line for people; nothing in it is markup."""
    _console.print(text, markup=False)


def show_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Numbers to the right, the rest to the left; missing values as a dash."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    rows = [list(row) for row in rows]
    for index, column in enumerate(columns):
        numeric = any(isinstance(row[index], (int, float)) for row in rows)
        table.add_column(column, justify="right" if numeric else "left", no_wrap=True)
    for row in rows:
        table.add_row(*(cell(value) for value in row))
    _tables.print(table)


def show_tree(value: dict[str, Any], indent: int = 0) -> None:
    """Nested facts as indented lines."""
    space = "  " * indent
    for key, item in value.items():
        if isinstance(item, dict) and item:
            say(f"{space}{key}:")
            show_tree(item, indent + 1)
        elif isinstance(item, list) and item and all(isinstance(each, dict) for each in item):
            say(f"{space}{key}:")
            for each in item:
                show_tree(each, indent + 1)
        else:
            say(f"{space}{key}: {cell(item)}")


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
