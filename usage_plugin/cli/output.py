"""Printing: a table for people, JSON, CSV or JSON lines for programs. Pipes get no colour and no truncation."""

from __future__ import annotations

import csv
import json
import re
import sys
from dataclasses import dataclass
from decimal import Decimal
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, NamedTuple

from rich.cells import cell_len, chop_cells
from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

FORMATS = ("table", "json", "csv", "jsonl")
_PIPE_WIDTH = 100_000
"""Nothing is folded in a pipe: each row stays on one line."""
_LONGEST_WORD = 20
"""Longer words may be folded; numbers never are."""
_WIDE, _NARROW = 3, 2
"""Spaces between two columns."""
_BETWEEN = " · "
_BELOW = 3
"""Indentation of a row's cells below its texts."""
_MOST_ABOVE = 4
"""The maximum number of texts above the other cells of their row."""
_NUMBERS_TO_COMPARE = 2
"""With fewer numeric columns, paragraphs are more readable than aligned columns."""
_PARTS = re.compile(r"[^-/@.:_,]*[-/@.:_,]+|[^-/@.:_,]+")


@dataclass(frozen=True)
class Column:
    """A column of a table: its heading, and whether its values are numbers, which are right-aligned."""

    heading: str
    number: bool = False


@dataclass(frozen=True)
class Output:
    """The output format: one of `FORMATS`."""

    kind: str

    @property
    def is_table(self) -> bool:
        """Whether the output is a table for people."""
        return self.kind == "table"

    def document(self, document: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> None:
        """Print the whole document as JSON, or its rows as CSV or JSON lines."""
        if self.kind == "json":
            sys.stdout.write(json.dumps(document, ensure_ascii=False, indent=2) + "\n")
        elif self.kind == "jsonl":
            for row in rows:
                self.line(row)
        else:
            self._csv(rows)

    @staticmethod
    def line(row: Mapping[str, Any]) -> None:
        """Print one JSON line and flush it."""
        sys.stdout.write(json.dumps(row, ensure_ascii=False) + "\n")
        sys.stdout.flush()

    @staticmethod
    def _csv(rows: Sequence[Mapping[str, Any]]) -> None:
        if rows:
            writer = csv.DictWriter(sys.stdout, fieldnames=list(rows[0]))
            writer.writeheader()
            writer.writerows({name: _cell(value) for name, value in row.items()} for row in rows)


def _cell(value: Any) -> Any:
    """Return a value for CSV: text and numbers unchanged, others as JSON."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, (dict, list, bool)) else value


def at_terminal() -> bool:
    """Whether standard output is a terminal."""
    return sys.stdout.isatty()


def console() -> Console:
    """Return a console as wide as the terminal; in a pipe no column is folded."""
    return Console(highlight=False, width=None if at_terminal() else _PIPE_WIDTH)


def table(
    title: str, columns: Sequence[Column], rows: Iterable[Sequence[str]], total: Sequence[str] | None = None
) -> None:
    """Print a table, with an optional last line of totals.

    On a narrow terminal, long texts get a line of their own above the other cells of their row. On a narrower one, or
    with too many such texts, each row becomes a paragraph with a line for each column.
    """
    shown = [[escape_control(value) for value in row] for row in rows]
    # Omit empty columns, so that the others get their space.
    kept = [at for at, _ in enumerate(columns) if any(row[at] for row in shown) or (total and total[at])]
    columns = [columns[at] for at in kept]
    shown = [[row[at] for at in kept] for row in shown]
    foot = [escape_control(total[at]) for at in kept] if total else None
    everything = [*shown, foot] if foot else shown
    screen = console()
    # Printed before the table: rich would fold a table title to the width of a narrow table.
    screen.print(Text(escape_control(title), style="bold"))
    if not everything:
        screen.print(Text("  none\n"))
        return
    aligned = _aligned(columns, everything)
    layout = _layout(columns, aligned, screen.width)
    if layout is None:
        _print_paragraphs(screen, columns, everything)
        return
    lines = [Text(), *(Text(line, style="bold") for line in layout.head()), Text(layout.rule())]
    lines += [Text(line) for row in aligned[: len(shown)] for line in layout.lines(row)]
    if foot:
        lines += [Text(), *(Text(line, style="bold") for line in layout.lines(aligned[-1]))]
    screen.print(Text("\n").join([*lines, Text()]), soft_wrap=True)


def _aligned(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> list[list[str]]:
    """Align the decimal points of each numeric column."""
    made = []
    for column, values in zip(columns, zip(*rows, strict=True), strict=True):
        decimals = [len(value.partition(".")[2]) for value in values]
        most = max(decimals) if column.number else 0
        made.append([
            value + " " * (most - count) if count and most else value
            for value, count in zip(values, decimals, strict=True)
        ])  # fmt: skip
    return [list(row) for row in zip(*made, strict=True)]


class _Size(NamedTuple):
    """Character widths of a column: its longest word, its longest value, its heading."""

    word: int
    value: int
    heading: int


def _size(column: Column, values: Iterable[str]) -> _Size:
    texts = set(values)
    words = {word for text in (column.heading, *texts) for word in text.split()}
    word = max((min(cell_len(word), _LONGEST_WORD) for word in words), default=1)
    return _Size(word, max(map(cell_len, texts)), cell_len(column.heading))


class _Layout:
    """The layout of a row: columns next to each other, and columns that are too wide on a line above them."""

    def __init__(self, columns: Sequence[Column], above: Sequence[int]) -> None:
        self._columns = columns
        self._above = above
        self._inline = [at for at, _ in enumerate(columns) if at not in above]
        self._widths: dict[int, int] = {}
        self._width = self._gap = self._edge = 0

    def fit(self, sizes: Sequence[_Size], width: int, gap: int, *, whole: bool) -> bool:
        """Distribute the width over the columns; False if a number or an ordinary word would have to be split.

        Args:
            sizes: the sizes of all columns.
            width: the width of the terminal.
            gap: the spaces between two columns.
            whole: whether no text may be folded.
        """
        self._width, self._gap = width, gap
        self._edge = _BELOW if self._above else gap - 1
        for at in self._inline:
            size = sizes[at]
            self._widths[at] = max(size.word, size.value) if whole or self._columns[at].number else size.word
        room = width - 1 - self._used()
        for wishes in (
            {at: sizes[at].value for at in self._inline},
            {at: sizes[at].heading for at in self._inline},
        ):
            wanted = {at: max(0, wish - self._widths[at]) for at, wish in wishes.items()}
            # Serve the smallest demands first: the remaining width goes to the larger ones.
            for place, at in enumerate(sorted(wanted, key=wanted.__getitem__)):
                given = max(0, min(wanted[at], room // (len(wanted) - place)))
                self._widths[at] += given
                room -= given
        return room >= 0

    def head(self) -> Iterator[str]:
        if self._above:
            yield from self._line_above([column.heading for column in self._columns])
        folded = [_folded(self._columns[at].heading, self._widths[at]) for at in self._inline]
        most = max(map(len, folded))
        yield from self._side_by_side([[*[""] * (most - len(lines)), *lines] for lines in folded])

    def rule(self) -> str:
        return " " + "─" * (self._used() - (self._gap != _WIDE))

    def _used(self) -> int:
        return self._edge + sum(self._widths.values()) + self._gap * (len(self._inline) - 1)

    def lines(self, row: Sequence[str]) -> Iterator[str]:
        if self._above:
            yield from self._line_above(row)
        yield from self._side_by_side([_folded(row[at], self._widths[at]) for at in self._inline])

    def _line_above(self, row: Sequence[str]) -> Iterator[str]:
        text = _BETWEEN.join(row[at] for at in self._above if row[at])
        return (f" {line}" for line in _folded(text, self._width - 1))

    def _side_by_side(self, cells: Sequence[Sequence[str]]) -> Iterator[str]:
        between, edge = " " * self._gap, " " * self._edge
        for parts in zip_longest(*cells, fillvalue=""):
            padded = []
            for at, part in zip(self._inline, parts, strict=True):
                padding = " " * (self._widths[at] - cell_len(part))
                padded.append(padding + part if self._columns[at].number else part + padding)
            yield (edge + between.join(padded)).rstrip()


def _layout(columns: Sequence[Column], rows: Sequence[Sequence[str]], width: int) -> _Layout | None:
    """Return the most readable layout for the width; None if only paragraphs fit."""
    sizes = [_size(column, values) for column, values in zip(columns, zip(*rows, strict=True), strict=True)]
    layout = _Layout(columns, [])
    for gap, whole in ((_WIDE, True), (_NARROW, True), (_NARROW, False)):
        if layout.fit(sizes, width, gap, whole=whole):
            return layout
    texts = [at for at, column in enumerate(columns) if not column.number]
    if len(columns) - len(texts) < _NUMBERS_TO_COMPARE:
        return None
    longest_first = sorted(texts, key=lambda at: -sizes[at].value)
    for count in range(1, min(len(texts), _MOST_ABOVE) + 1):
        layout = _Layout(columns, sorted(longest_first[:count]))
        if layout.fit(sizes, width, _NARROW, whole=True):
            return layout
    return None


def _print_paragraphs(screen: Console, columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> None:
    headings = [column.heading or "note" for column in columns]
    for row in rows:
        lines = Table.grid(padding=(0, 2), pad_edge=True)
        for heading, value in zip(headings, row, strict=True):
            if value:
                # Text, not str: rich must not interpret a user's name as markup.
                lines.add_row(Text(heading, style="bold"), Text(value, overflow="fold"))
        screen.print(lines)
        screen.print()


def _folded(text: str, width: int) -> list[str]:
    """Fold a text at its spaces; split a word that is too long after a punctuation mark, or else anywhere."""
    if cell_len(text) <= width:
        return [text]
    lines = [""]
    for word in text.split(" "):
        pieces = [word] if cell_len(word) <= width else _pieces(word, width)
        for number, piece in enumerate(pieces):
            joint = " " if number == 0 and lines[-1] else ""
            if cell_len(lines[-1] + joint + piece) <= width:
                lines[-1] += joint + piece
            else:
                lines.append(piece)
    return lines


def _pieces(word: str, width: int) -> list[str]:
    return [piece for part in _PARTS.findall(word) for piece in chop_cells(part, width)]


def escape_control(text: str) -> str:
    """Escape control characters, which names and messages from outside may contain."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def thousands(number: int | str) -> str:
    """Return a count or an amount with thousands separators."""
    return f"{Decimal(number):,f}"
