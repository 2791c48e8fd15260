"""What a person sees of the demonstration: a line for each step and each check, and a table at the end."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.table import Table


class Screen:
    """Prints as the story goes on, and remembers which checks held."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self.failed_checks: list[str] = []

    def chapter(self, text: str) -> None:
        self._console.print(f"[bold]{escape(text)}[/bold]")

    def say(self, text: str) -> None:
        self._console.print(f"    {text}", markup=False, highlight=False)

    @contextmanager
    def step(self, text: str) -> Iterator[Step]:
        """One step: its text with a sign of life; when it is done, what came of it and how long it took."""
        start = time.monotonic()
        with self._console.status(escape(text)) as status:
            step = Step(lambda detail: status.update(escape(f"{text}: {detail}")))
            yield step
        outcome = f": {step.outcome}" if step.outcome else ""
        seconds = time.monotonic() - start
        self._console.print(
            f"  [green]•[/green] {escape(text + outcome)} [dim]({seconds:.1f} s)[/dim]", highlight=False
        )

    def check(self, text: str, held: bool, otherwise: str = "") -> None:
        """One claim; what it says is either seen to be true, or the demonstration fails."""
        if held:
            self._console.print(f"  [green]✓[/green] {escape(text)}", highlight=False)
        else:
            self.failed_checks.append(text)
            self._console.print(
                f"  [red]✗ {escape(text)}: NOT SO. {escape(otherwise)}[/red]", highlight=False
            )

    def table(self, title: str, rows: Sequence[tuple[str, str]]) -> None:
        table = Table(title=title, show_header=False, title_style="bold")
        for row in rows:
            table.add_row(*map(escape, row))
        self._console.print()
        self._console.print(table)


class Step:
    """A step under way."""

    def __init__(self, show: Callable[[str], None]) -> None:
        self.show = show
        """Say how far it is."""
        self.outcome = ""
