"""Printing: a table for people, JSON, CSV or JSON lines for programs. Pipes get no colour and no truncation."""

from __future__ import annotations

import csv
import json
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

FORMATS = ("table", "json", "csv", "jsonl")
_PIPE_WIDTH = 250


@dataclass(frozen=True)
class Column:
    """A column of a table: its heading, and whether its values are numbers, to be lined up on the right."""

    heading: str
    number: bool = False


@dataclass(frozen=True)
class Output:
    """How to print: one of `FORMATS`."""

    kind: str

    @property
    def is_table(self) -> bool:
        """Whether a person reads it."""
        return self.kind == "table"

    def document(self, document: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> None:
        """Print for a program: the whole document as JSON, or its rows as CSV or JSON lines."""
        if self.kind == "json":
            sys.stdout.write(json.dumps(document, ensure_ascii=False, indent=2) + "\n")
        elif self.kind == "jsonl":
            for row in rows:
                self.line(row)
        else:
            self._csv(rows)

    @staticmethod
    def line(row: Mapping[str, Any]) -> None:
        """Print one JSON line, at once."""
        sys.stdout.write(json.dumps(row, ensure_ascii=False) + "\n")
        sys.stdout.flush()

    @staticmethod
    def _csv(rows: Sequence[Mapping[str, Any]]) -> None:
        if rows:
            writer = csv.DictWriter(sys.stdout, fieldnames=list(rows[0]))
            writer.writeheader()
            writer.writerows({name: _cell(value) for name, value in row.items()} for row in rows)


def _cell(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else value


def console() -> Console:
    """Make a console as wide as the terminal; a pipe gets every column whole."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else _PIPE_WIDTH)


def table(
    title: str, columns: Sequence[Column], rows: Iterable[Sequence[str]], total: Sequence[str] | None = None
) -> None:
    """Print a table, with a last line of totals if there is one."""
    made = Table(box=SIMPLE_HEAD, show_footer=total is not None)
    for at, column in enumerate(columns):
        made.add_column(
            column.heading,
            justify="right" if column.number else "left",
            footer=Text(total[at]) if total else "",
            no_wrap=column.number,
            overflow="fold",
        )
    for row in rows:
        # Text: a user's name is shown as it is, never read as markup.
        made.add_row(*(Text(harmless(value)) for value in row))
    screen = console()
    # Before the table, not as its title, which would be folded to the width of a narrow one.
    screen.print(Text(harmless(title), style="bold"))
    screen.print(made)


def harmless(text: str) -> str:
    """Make a text harmless to a terminal: what somebody else chose may hold control characters."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def thousands(number: int) -> str:
    """Write a count for people."""
    return f"{number:,}"
