"""The byte tables of docs/journal-format.md, so that tests can hold the code to them."""

from __future__ import annotations

import re
from pathlib import Path

DOCUMENT = Path(__file__).resolve().parents[3] / "docs" / "journal-format.md"


def section(title: str) -> str:
    """The text below a heading, up to the next heading."""
    text = DOCUMENT.read_text(encoding="utf-8")
    found = re.search(rf"^#+ {re.escape(title)}[^\n]*\n(.*?)(?=^#|\Z)", text, re.MULTILINE | re.DOTALL)
    assert found, f"{DOCUMENT.name} has no section {title!r}"
    return found.group(1)


def rows(title: str) -> list[list[str]]:
    """The cells of the table rows below a heading, without head and rule."""
    lines = [line for line in section(title).splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if "---" not in line][1:]


def fields(title: str) -> list[tuple[int, int]]:
    """(offset, size) of every field of a byte table that has a fixed size."""
    return [(int(row[0]), int(row[1])) for row in rows(title) if row[1].isdigit()]


def listed_sizes(line_start: str) -> list[int]:
    """The sizes of an entry that the document gives in one sentence: 'Volume: id (2), zeros (2), ...'."""
    text = DOCUMENT.read_text(encoding="utf-8")
    found = re.search(rf"^{line_start}: (.*?)(?:\n\n|\Z)", text, re.MULTILINE | re.DOTALL)
    assert found, f"{DOCUMENT.name} has no sentence that begins with {line_start!r}"
    return [int(size) for size in re.findall(r"\((\d+)(?=[:;)])", found.group(1))]
