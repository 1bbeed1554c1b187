"""Tables and help on terminals of any width."""

from __future__ import annotations

import io

import click
import pytest
from click.testing import CliRunner
from rich.console import Console

from usage_plugin.cli import output
from usage_plugin.cli.main import main
from usage_plugin.cli.output import Column, table

COLUMNS = (
    Column("user"), Column("model"), Column("failed requests", number=True), Column("cost USD", number=True),
    Column("resets"), Column("note"),
)  # fmt: skip
ROWS = [
    ["eva", "mock-model", "1,234", "0.0303", "2026-11-26 00:00 UTC", ""],
    ["ann@research.example", "m" * 70, "7", "12,345,678.000000001", "2026-12-01 00:00 UTC", ""],
]
TOTAL = ["total", "", "1,241", "12,345,678.030300001", "", ""]


def printed(monkeypatch, width, rows, total=None):
    screen = io.StringIO()
    monkeypatch.setattr(output, "console", lambda: Console(width=width, file=screen, highlight=False))
    table("Usage", COLUMNS, rows, total)
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


def test_what_is_too_narrow_for_a_table_is_listed(monkeypatch):
    """Each row is then a paragraph, a line for each heading that has something to say."""
    assert [line.rstrip() for line in printed(monkeypatch, 44, ROWS[:1]).splitlines()] == [
        "Usage",
        "  user             eva",
        "  model            mock-model",
        "  failed requests  1,234",
        "  cost USD         0.0303",
        "  resets           2026-11-26 00:00 UTC",
        "",
    ]


def test_a_column_that_says_nothing_is_left_out(monkeypatch):
    """It takes no room from the others."""
    assert "note" not in printed(monkeypatch, 160, ROWS)
    assert "note" in printed(monkeypatch, 160, [[*ROWS[0][:5], "dry run"]])


def test_a_column_of_blanks_is_no_crash(monkeypatch):
    """What somebody else chose may be a blank, where there is no heading either."""
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
def test_every_command_and_option_says_what_it_is_for(path, command):
    """Help has a sentence for each command, uncut, and words for each of its options."""
    assert command.help.endswith(".")
    for parameter in command.params:
        assert isinstance(parameter, click.Argument) or parameter.hidden or parameter.help, parameter.name
    shown = CliRunner().invoke(main, [*path[:-1], "--help"], env={"COLUMNS": "60"}).output
    assert " ".join(command.help.split()).rstrip(".") in " ".join(shown.split())
