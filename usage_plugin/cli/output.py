"""Printing: a table for people, JSON, CSV or JSON lines for programs. Pipes get no colour and no truncation."""

from __future__ import annotations

import csv
import json
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

FORMATS = ("table", "json", "csv", "jsonl")
_PIPE_WIDTH = 250
# What is longer may be folded: a word after so many characters, a number never.
_LONGEST_WORD, _NUMBER = 20, 1000
# The padding of a column, left and right together.
_WIDE, _NARROW = 2, 1


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
    """Write a value for CSV: text and numbers as they are, the others as JSON has them."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, (dict, list, bool)) else value


def at_terminal() -> bool:
    """Say whether standard output is a terminal."""
    return sys.stdout.isatty()


def console() -> Console:
    """Make a console as wide as the terminal; a pipe gets every column whole."""
    return Console(highlight=False, width=None if at_terminal() else _PIPE_WIDTH)


def table(
    title: str, columns: Sequence[Column], rows: Iterable[Sequence[str]], total: Sequence[str] | None = None
) -> None:
    """Print a table, with a last line of totals if there is one; row by row where the terminal is too narrow for it."""
    shown = [[harmless(value) for value in row] for row in rows]
    # A column that says nothing takes no room from the others.
    kept = [at for at, _ in enumerate(columns) if any(row[at] for row in shown) or (total and total[at])]
    columns = [columns[at] for at in kept]
    shown = [[row[at] for at in kept] for row in shown]
    foot = [harmless(total[at]) for at in kept] if total else None
    everything = [*shown, foot] if foot else shown
    screen = console()
    # Before the table, not as its title, which would be folded to the width of a narrow one.
    screen.print(Text(harmless(title), style="bold"))
    if not everything:
        screen.print(Text("  none\n"))
        return
    texts = [[column.heading, *(row[at] for row in everything)] for at, column in enumerate(columns)]
    for padding in (_WIDE, _NARROW):
        # The padding, a space between two columns, and one at either edge.
        widths = _widths(columns, texts, screen.width - len(columns) * (padding + 1) - 1)
        if widths:
            screen.print(_grid(columns, shown, foot, widths, padding))
            return
    headings = [column.heading or "note" for column in columns]
    for row in everything:
        lines = Table.grid(padding=(0, 2), pad_edge=True)
        for heading, value in zip(headings, row, strict=True):
            if value:
                # Text: a user's name is shown as it is, never read as markup.
                lines.add_row(Text(heading, style="bold"), Text(value, overflow="fold"))
        screen.print(lines)
        screen.print()


def _widths(columns: Sequence[Column], texts: Sequence[Sequence[str]], room: int) -> list[int]:
    """Share out the room; none, where numbers, or words that are not too long, would not stay whole."""
    longest = [_NUMBER if column.number else _LONGEST_WORD for column in columns]
    widths = [
        max((min(cell_len(word), most) for text in column for word in text.split()), default=1)
        for column, most in zip(texts, longest, strict=True)
    ]
    room -= sum(widths)
    if room < 0:
        return []
    wanted = [max(map(cell_len, column)) - width for column, width in zip(texts, widths, strict=True)]
    # Those that want little get it: what they leave is for the others.
    for place, at in enumerate(sorted(range(len(columns)), key=wanted.__getitem__)):
        given = min(wanted[at], room // (len(columns) - place))
        widths[at] += given
        room -= given
    return widths


def _grid(
    columns: Sequence[Column],
    rows: Iterable[Sequence[str]],
    total: Sequence[str] | None,
    widths: Sequence[int],
    padding: int,
) -> Table:
    made = Table(box=SIMPLE_HEAD, show_footer=total is not None, padding=(0, 1, 0, padding - 1))
    for at, column in enumerate(columns):
        made.add_column(
            column.heading,
            justify="right" if column.number else "left",
            footer=Text(total[at]) if total else "",
            width=widths[at],
            overflow="fold",
        )
    for row in rows:
        made.add_row(*map(Text, row))
    return made


def harmless(text: str) -> str:
    """Make a text harmless to a terminal: what somebody else chose may hold control characters."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def thousands(number: int) -> str:
    """Write a count for people."""
    return f"{number:,}"
