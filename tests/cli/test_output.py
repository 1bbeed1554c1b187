"""Tables and help on terminals of any width."""

from __future__ import annotations

import io

import click
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from usage_plugin.cli import output
from usage_plugin.cli.main import main
from usage_plugin.cli.output import Column, table, thousands
from usage_plugin.domain.money import format_usd

COLUMNS = (
    Column("user"), Column("model"), Column("failed requests", number=True), Column("cost USD", number=True),
    Column("resets"), Column("note"),
)  # fmt: skip
ROWS = [
    ["eva", "mock-model", "1,234", "0.0303", "2026-11-26 00:00 UTC", ""],
    ["ann@research.example", "m" * 70, "7", "12,345,678.000000001", "2026-12-01 00:00 UTC", ""],
]
TOTAL = ["total", "", "1,241", "12,345,678.030300001", "", ""]


def printed(monkeypatch, width, rows, total=None, columns=COLUMNS):
    screen = io.StringIO()
    monkeypatch.setattr(output, "console", lambda: Console(width=width, file=screen, highlight=False))
    table("Usage", columns, rows, total)
    return screen.getvalue()


@pytest.mark.parametrize("width", [44, 60, 80, 100, 120, 160, 250])
def test_words_and_numbers_are_whole_at_any_width(monkeypatch, width):
    """However narrow the terminal is, no number and no ordinary word is broken, and no line is too long for it."""
    text = printed(monkeypatch, width, ROWS, TOTAL)
    words = {word for row in [*ROWS, TOTAL, [column.heading for column in COLUMNS[:5]]] for value in row
             for word in value.split() if len(word) <= 20}  # fmt: skip
    assert words <= set(text.split())
    assert max(map(len, text.splitlines())) <= width
    assert "".join(text.split()).count("m" * 20) >= 1


def test_long_texts_are_above_the_numbers_of_their_row(monkeypatch):
    """Where a row is too wide, its texts have a line of their own, and the numbers stay one below another."""
    rows = [["ann@research.example", "gpt", "7", "1,234.5", "never", "dry run"], ROWS[0]]
    assert printed(monkeypatch, 56, rows, TOTAL).splitlines() == [
        "Usage",
        "",
        " user · resets",
        "                  failed",
        "   model        requests              cost USD  note",
        " ──────────────────────────────────────────────────────",
        " ann@research.example · never",
        "   gpt                 7       1,234.5          dry run",
        " eva · 2026-11-26 00:00 UTC",
        "   mock-model      1,234           0.0303",
        "",
        " total",
        "                   1,241  12,345,678.030300001",
        "",
    ]


def test_a_narrow_terminal_gets_paragraphs(monkeypatch):
    """Each row is then a paragraph, a line for each heading that has something to say."""
    columns = [column for column in COLUMNS if column.heading != "cost USD"]
    rows = [[*ROWS[0][:3], ROWS[0][4], "dry run"]]
    assert [line.rstrip() for line in printed(monkeypatch, 42, rows, columns=columns).splitlines()] == [
        "Usage",
        "  user             eva",
        "  model            mock-model",
        "  failed requests  1,234",
        "  resets           2026-11-26 00:00 UTC",
        "  note             dry run",
        "",
    ]


def test_names_are_folded_at_signs_and_columns_stay_straight(monkeypatch):
    """A long name is folded behind a hyphen, a dot or the like; letters that take two cells push nothing aside."""
    columns = [Column("user"), Column("requests", number=True)]
    rows = [["松本さくら@研究.example", "1,234"], ["svc-nightly-batch-summariser-eu-west-1", "7"], ["zoë", "12"]]
    lines = printed(monkeypatch, 40, rows, columns=columns).splitlines()[4:-1]
    assert lines == [
        " 松本さくら@研究.example          1,234",
        " svc-nightly-batch-                   7",
        " summariser-eu-west-1",
        " zoë                                 12",
    ]
    assert [cell_len(line) for line in lines] == [39, 39, 21, 39]


@given(st.integers(0, 10**19))
def test_amounts_for_people_are_exact(nano):
    """Commas are all that is added."""
    text = thousands(format_usd(nano))
    assert text.replace(",", "") == format_usd(nano)
    assert all(len(part) == 3 for part in text.partition(".")[0].split(",")[1:])


def test_a_column_that_says_nothing_is_left_out(monkeypatch):
    """It takes no room from the others."""
    assert "note" not in printed(monkeypatch, 160, ROWS)
    assert "note" in printed(monkeypatch, 160, [[*ROWS[0][:5], "dry run"]])


def test_a_column_of_blanks_is_no_crash(monkeypatch):
    """A value from outside may be a space, in a column without a heading."""
    screen = io.StringIO()
    monkeypatch.setattr(output, "console", lambda: Console(width=80, file=screen))
    table("Usage", [Column("user"), Column("")], [["eva", " "]])
    assert "eva" in screen.getvalue()


def test_a_table_of_nothing_says_so(monkeypatch):
    """Headings over nothing say less than a word."""
    assert printed(monkeypatch, 80, []).split() == ["Usage", "none"]


def commands(group, path=()):
    for name, command in group.commands.items():
        yield (*path, name), command
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))


@pytest.mark.parametrize(("path", "command"), [pytest.param(*one, id=" ".join(one[0])) for one in commands(main)])
def test_every_command_and_option_has_a_help_text(path, command):
    """Help has a sentence for each command, uncut, and words for each of its options."""
    assert command.help.endswith(".")
    for parameter in command.params:
        assert isinstance(parameter, click.Argument) or parameter.hidden or parameter.help, parameter.name
    shown = CliRunner().invoke(main, [*path[:-1], "--help"], env={"COLUMNS": "60"}).output
    assert " ".join(command.help.split()).rstrip(".") in " ".join(shown.split())
