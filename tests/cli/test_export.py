"""Exporting the history over the command line, out of real files, into real files and pipes."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import stat
import subprocess
import sys
from contextlib import suppress
from datetime import date, datetime, timedelta
from decimal import Decimal

import pyarrow as pa
import pytest
from pyarrow import parquet as pq

from tests.proxy.conftest import ROOT
from usage_plugin.cli.erasure import EVERYBODY
from usage_plugin.cli.export import destination, formats
from usage_plugin.cli.export.columns import COLUMN_TYPES, DAYS, EVENTS
from usage_plugin.cli.export.formats import arrow_types
from usage_plugin.domain.windows import to_datetime
from usage_plugin.testing.builders import DAY, MINUTE, NOON
from usage_plugin.tracking.history import reader

PAGE = (ROOT / "docs" / "exports.md").read_text()
FULL = {
    "user": "zoë.o'hara, \"the\" 研究", "team": "=1+1", "api_key": "k-x", "api_key_alias": "a", "end_user": "e",
    "organization": "o", "session": "s", "tags": ("a", "b,c"), "call_id": "c", "requested_model": "o3", "model": "gpt",
    "served_model": "gpt-5", "deployment": "d", "provider": "openai", "cached_input_tokens": 3, "cache_write_tokens": 2,
    "reasoning_tokens": 1, "cost": 12_345_678_901_234_567, "reserved": 1, "excess": 20_000_000, "estimated": True,
    "injected_output_tokens": 7, "clamped_to": 8, "downgraded_by": "daily", "service_tier": "flex",
    "usage": {"prompt_tokens": 10}, "duration_us": 1_234_567, "started_at": NOON - MINUTE + 1,
}  # fmt: skip


def seed(books):
    """Events of three days; the last two are still in the outbox."""
    books.add(user="ann", started_at=NOON - 2 * DAY, cost=None, cost_source="unpriced")
    books.add(user="ann", started_at=NOON - DAY, status="failure", cost=0)
    books.add(user="bo", team="sales", model="o3", started_at=NOON - DAY + MINUTE, cost=1)
    books.flush()
    books.add(**FULL)
    books.add(user="ann", started_at=NOON)


@pytest.fixture(scope="module")
def recorded(shared):
    books, commands = shared
    seed(books)
    return commands


def names_in(folder):
    return {path.name for path in folder.iterdir()}


def exported(run, folder, *arguments):
    """Export in every format, and give the rows of each, as JSON has them."""
    lines = run.jsonl("export", *arguments)
    result = run("export", *arguments, "--format", "csv")
    assert result.exit_code == 0
    run.ok("export", *arguments, "--to", str(folder / "x.parquet"), "--force")
    return lines, list(csv.DictReader(io.StringIO(result.stdout, newline=""))), pq.read_table(folder / "x.parquet")


def in_words(value):
    """Return a value of a JSON line in the form of CSV."""
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def in_parquet(column, value):
    """Return a value of a JSON line in the form of Parquet."""
    if value is None:
        return None
    made = {
        "money": Decimal,
        "time": datetime.fromisoformat,
        "day": date.fromisoformat,
        "counts": lambda v: list(v.items()),
    }
    return made.get(column.type, lambda v: v)(value)


@pytest.mark.parametrize(("what", "kind", "rows"), [("--events", EVENTS, 5), ("--days", DAYS, 5)])
def test_every_format_has_the_same_rows(recorded, noon, tmp_path, what, kind, rows):
    """All three formats have every column of every record, exactly, including records in the outbox."""
    lines, cells, table = exported(recorded, tmp_path, what)
    assert len(lines) == rows
    assert all(list(line) == [column.name for column in kind.columns] for line in lines)
    assert cells == [{name: in_words(value) for name, value in line.items()} for line in lines]
    assert table.to_pylist() == [
        {column.name: in_parquet(column, line[column.name]) for column in kind.columns} for line in lines
    ]
    for column in kind.columns:
        assert table.schema.field(column.name).type == arrow_types(pa)[column.type]
        assert column.optional or all(line[column.name] is not None for line in lines)


def test_events_are_exact_and_in_order(recorded, noon, tmp_path):
    """Events are in order of time, as in the command `events`; money is exact beyond the precision of a float."""
    lines, _, table = exported(recorded, tmp_path, "--events")
    assert lines == recorded.json("events")["events"]
    assert [line["started_at"] for line in lines] == sorted(line["started_at"] for line in lines)
    full = lines[3]
    assert (full["cost"], full["duration_ms"], full["tags"]) == ("12345678.901234567", 1234.567, ["a", "b,c"])
    assert table["cost"].to_pylist()[3] == Decimal("12345678.901234567")
    assert table["started_at"].to_pylist()[3] == to_datetime(FULL["started_at"])
    assert table["cost"].to_pylist()[0] is None


def test_days_add_up_to_the_report(recorded, noon):
    """The sums of days are those of the report."""
    lines = recorded.jsonl("export", "--days")
    total = recorded.json("report", "--since", "30d")["total"]
    assert sum(Decimal(line["cost"]) for line in lines) == Decimal(total["cost"])
    assert sum(line["requests"] for line in lines) == total["requests"] == 5


@pytest.mark.parametrize("what", ["--events", "--days"])
@pytest.mark.parametrize(
    ("arguments", "requests"),
    [
        ([], 5),
        (["--user", "ann"], 3),
        (["--user", "ann", "--since", "today"], 1),
        (["--team", "sales"], 1),
        (["--model", "gpt"], 4),
        (["--model", "o3", "--through", "yesterday"], 1),
        (["--through", "2026-11-21"], 1),
        (["--since", "2026-11-22", "--through", "2026-11-22"], 2),
        (["--month", "2026-10"], 0),
        (["--since", "2d"], 4),
    ],
    ids=str,
)
def test_a_part_is_chosen_as_reports_choose_it(recorded, noon, what, arguments, requests):
    """Filters and spans are those of the report, but for open ends."""
    lines = recorded.jsonl("export", what, *arguments)
    assert sum(line.get("requests", 1) for line in lines) == requests


def test_the_whole_history_is_older_than_the_default_report(run, books):
    """Without a span nothing is left out, however old it is or how far ahead a clock was."""
    for at in (NOON - 4000 * DAY, NOON + 3 * DAY):
        books.add(started_at=at)
    assert len(run.jsonl("export", "--events")) == len(run.jsonl("export", "--days")) == 2


def test_an_empty_export_is_whole(run, books, tmp_path):
    """Where there is nothing, CSV has its first line and Parquet its schema."""
    assert run.ok("export", "--days", "--format", "csv").split(",")[0] == "day"
    run.ok("export", "--days", "--to", str(tmp_path / "x.parquet"))
    assert pq.read_schema(tmp_path / "x.parquet").names == [column.name for column in DAYS.columns]
    assert run.jsonl("export", "--days") == []


def test_row_groups_are_bounded(run, books, tmp_path, monkeypatch):
    """However many rows there are, no row group has more than the bound, and pages are not left out."""
    monkeypatch.setattr(reader, "PAGE", 4)
    monkeypatch.setattr(formats, "ROW_GROUP", 8)
    for number in range(22):
        books.add(started_at=NOON + number)
    books.flush()
    run.ok("export", "--events", "--to", str(tmp_path / "x.parquet"))
    found = pq.ParquetFile(tmp_path / "x.parquet").metadata
    assert [found.row_group(at).num_rows for at in range(found.num_row_groups)] == [8, 8, 6]


def test_the_file_is_private_and_never_replaced_unasked(recorded, noon, tmp_path):
    """A file is its owner's only; one that is there stays as it is, unless --force says otherwise."""
    to = tmp_path / "x.csv"
    assert "events." in recorded.ok("export", "--events", "--model", "o3", "--to", str(to))
    assert stat.S_IMODE(to.stat().st_mode) == 0o600
    before = to.read_bytes()
    assert before.startswith(b"event_id,")
    audited = len(recorded.json("audit")["audit"])
    for arguments in (["--days"], ["--events"], ["--user", "ann"]):
        result = recorded("export", *arguments, "--to", str(to))
        assert result.exit_code == 1
        assert "File already exists: " in result.stderr
        assert "--force" in result.stderr
    assert to.read_bytes() == before
    assert len(recorded.json("audit")["audit"]) == audited
    recorded.ok("export", "--days", "--model", "o3", "--to", str(to), "--force")
    assert to.read_bytes().startswith(b"day,")
    assert names_in(tmp_path) == {"x.csv"}


@pytest.mark.parametrize("name", ["/dev/null", "."])
def test_only_a_regular_file_is_replaced(recorded, noon, name):
    """Not a device nor a folder, not even with --force."""
    result = recorded("export", "--days", "--to", name, "--force")
    assert result.exit_code == 1
    assert "Not a regular file: " in result.stderr


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_a_file_is_whole_or_not_there(run, books, tmp_path, monkeypatch, ending):
    """After a failed write the previous file is unchanged, no temporary file remains, and the export is audited."""
    books.add()
    folder = tmp_path / "exports"
    folder.mkdir()
    to = folder / f"x.{ending}"
    to.write_text("before")

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(destination.os, "fsync", full)
    result = run("export", "--events", "--to", str(to), "--force")
    assert result.exit_code == 1
    assert "No space left on device" in result.stderr
    assert to.read_text() == "before"
    assert names_in(folder) == {to.name}
    assert run.json("audit")["audit"][0]["counts"] == {"event": 1}


def test_the_ending_of_the_name_decides_unless_the_format_is_given(recorded, noon, tmp_path):
    """`--format` is stronger than the file's name."""
    for name, option, begin in (
        ("a.PARQUET", [], b"PAR1"), ("a.csv", [], b"day,"), ("a.txt", [], b"{"), ("b.csv", ["--format", "jsonl"], b"{"),
    ):  # fmt: skip
        recorded.ok("export", "--days", "--team", "sales", "--to", str(tmp_path / name), *option)
        assert (tmp_path / name).read_bytes().startswith(begin)


@pytest.mark.parametrize("output", ["jsonl", "csv", "parquet"])
def test_a_broken_pipe_ends_quietly(execute, books, output):
    """A pipe that is closed after the first bytes causes no error; the records written so far are audited."""
    for number in range(60):
        books.add(tags=tuple(os.urandom(100).hex() for _ in range(16)), started_at=number)
    with subprocess.Popen(
        [execute.program, "--config", "config.yaml", "export", "--events", "--format", output],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=books.parts.config.data_dir.parent,
    ) as process:  # fmt: skip
        assert process.stdout.read(4)
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0
    assert books.operations.audited()[0].counts == {"event": 60}


def test_parquet_is_not_for_a_terminal(recorded, noon, monkeypatch):
    """Binary formats are not printed to a terminal."""
    monkeypatch.setattr("usage_plugin.cli.export.command.prints_to_terminal", lambda _: True)
    result = recorded("export", "--events", "--format", "parquet")
    assert result.exit_code == 2
    assert "--to" in result.stderr


def test_a_bar_is_shown_only_if_rows_go_to_a_file(execute, books):
    """At a terminal a bar is shown while rows go to a file, and only the rows while they are printed."""
    for number in range(1_100):
        books.add(started_at=NOON - 10 * DAY + number * MINUTE)

    def seen(**streams):
        mine, theirs = os.openpty()
        process = subprocess.Popen(
            [execute.program, "--config", "config.yaml", "export", "--events"],
            stdin=theirs, stderr=theirs, **{"stdout": theirs, **streams}, env={**execute.environment, "TERM": "xterm"},
            cwd=books.parts.config.data_dir.parent,
        )  # fmt: skip
        os.close(theirs)
        found = b""
        with suppress(OSError):  # so Linux says that the other end is closed
            while part := os.read(mine, 65536):
                found += part
        os.close(mine)
        assert process.wait(60) == 0
        return found.decode()

    assert "1,000 events" in seen(stdout=subprocess.DEVNULL)
    rows = seen().splitlines()
    assert [json.loads(row)["user"] for row in rows] == ["ann"] * 1_100


def test_without_pyarrow_the_error_names_the_extra(recorded, noon, tmp_path, monkeypatch):
    """The message names the extra as pip takes it, and no file is made."""
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    result = recorded("export", "--days", "--to", str(tmp_path / "x.parquet"))
    assert result.exit_code == 1
    (command,) = re.findall(r"pip install '(.*)'", result.stderr)
    name, extra = re.fullmatch(r"([\w-]+)\[(\w+)\]", command).groups()
    text = (ROOT / "pyproject.toml").read_text()
    assert f'name = "{name}"' in text
    assert re.search(rf"^{extra} = \[\"pyarrow", text, re.MULTILINE)
    assert names_in(tmp_path) == set()


def test_names_that_look_like_formulas_are_kept_with_a_warning(recorded, noon):
    """CSV has the name as it is, and standard error has a word of warning, if there is one."""
    result = recorded("export", "--events", "--format", "csv")
    assert ",=1+1," in result.stdout
    assert result.stderr.startswith("1 rows have a name that begins with =")
    assert recorded("export", "--events", "--user", "bo", "--format", "csv").stderr == ""


def test_every_export_is_audited(run, books):
    """Under the pseudonym of the named user, else under (everybody); `audit --user` shows both."""
    books.add(user="ann")
    books.add(user="bo")
    run.ok("export", "--events", "--user", "ann", "--reason", "asked")
    run.ok("export", "--days")
    rows = run.json("audit")["audit"]
    assert [(row["subject"], row["reason"], row["counts"]) for row in rows] == [
        (books.pseudonyms.of_person("ann"), "asked", {"event": 1}),
        (EVERYBODY, "", {"day": 2}),
    ]
    assert run.json("audit", "--user", "ann")["audit"] == rows
    assert run.json("audit", "--user", "bo")["audit"] == rows[1:]
    result = run("export", "--events", "--user", "ann", "--reason", "Ann left")
    assert result.exit_code == 2
    assert "must not contain the name" in result.stderr


def test_requests_without_a_user_are_exported_as_anonymous(run, books):
    """`--user "(anonymous)"` has those, and the audit says so."""
    books.add(user="(anonymous)")
    books.add(user="ann")
    assert len(run.jsonl("export", "--events", "--user", "(anonymous)")) == 1
    assert run.json("audit")["audit"][0]["subject"] == "(anonymous)"


def test_names_are_found_and_written_as_they_are_kept(run, books, config_path):
    """With pseudonyms, a real name finds its records, and the export has the pseudonym."""
    config_path.write_text(config_path.read_text() + "  privacy: {user: pseudonym}\n")
    kept = books.pseudonyms.of_person("ann")
    books.add(user=kept)
    for what in ("--events", "--days"):
        assert [line["user"] for line in run.jsonl("export", what, "--user", "ann")] == [kept]


@pytest.mark.parametrize(
    "arguments",
    [
        [], ["--events", "--days"], ["--team", "sales"], ["--since", "7d"],
        ["--user", "ann", "--since", "7d"], ["--user", "ann", "--team", "sales"], ["--user", "ann", "--format", "csv"],
        ["--events", "--since", "soon"], ["--days", "--month", "2026-11", "--through", "today"],
        ["--days", "--since", "today", "--through", "yesterday"], ["--events", "--user", " "], ["--days", "--format", "json"],
    ],
    ids=str,
)  # fmt: skip
def test_invalid_options_end_with_2(recorded, noon, arguments):
    """Invalid options end with exit code 2, a message, and nothing on standard output."""
    recorded.usage_error("export", *arguments)


@pytest.mark.parametrize(("heading", "kind"), [("--events", EVENTS), ("--days", DAYS)])
def test_the_page_has_every_column(heading, kind):
    """docs/exports.md lists the columns in their order, with their types and whether they may be empty."""
    section = PAGE.split(f"## `{heading}`")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \| `(\w+)` \| (yes|no) \|", section, re.MULTILINE)
    assert rows == [(name, type_, "yes" if optional else "no") for name, type_, optional in kind.columns]
    assert all(type_ in COLUMN_TYPES for _, type_, _ in rows)


def test_the_page_has_every_type():
    """Every type is there, under the name that Parquet's reader gives it."""
    section = PAGE.split("## Types")[1].split("\n## ")[0]
    found = dict(re.findall(r"^\| `(\w+)` \|.*\| `([^`]+)` \|$", section, re.MULTILINE))
    assert set(found) == set(COLUMN_TYPES)
    for name, arrow in arrow_types(pa).items():
        assert re.sub(r"item: | \('\w+'\)", "", str(arrow)) == found[name]


def test_the_page_has_every_option(run):
    """The page lists every option."""
    options = set(re.findall(r"--[a-z]+", run.ok("export", "--help"))) - {"--help", "--config"}
    told = set(re.findall(r"--[a-z]+", PAGE.split("| option |")[1].split("\n\n")[0]))
    assert told == options


def test_a_time_is_utc(run, config_path, books):
    """Days are those of the configured zone, times are UTC."""
    config_path.write_text(config_path.read_text().replace("./data", "./data\n  timezone: Asia/Tokyo", 1))
    books.add(started_at=NOON + 4 * 60 * MINUTE)
    (event,) = run.jsonl("export", "--events", "--since", "2026-11-24", "--through", "2026-11-24")
    assert datetime.fromisoformat(event["started_at"]).utcoffset() == timedelta(0)
    (day,) = run.jsonl("export", "--days")
    assert day["day"] == "2026-11-24"


@pytest.mark.parametrize("arguments", [["--events"], ["--days", "--format", "csv"], ["--user", "ann"]])
def test_a_dash_is_standard_output(recorded, tmp_path, monkeypatch, arguments):
    """`--to -` prints what no `--to` prints, and makes no file of that name."""
    monkeypatch.chdir(tmp_path)
    printed, dashed = recorded("export", *arguments), recorded("export", *arguments, "--to", "-")
    assert (printed.exit_code, dashed.exit_code) == (0, 0), dashed.output
    assert dashed.stdout == printed.stdout != ""
    assert names_in(tmp_path) == set()


def test_a_file_called_dash_can_be_named(recorded, tmp_path, monkeypatch):
    """`./-` is a file, as for other programs."""
    monkeypatch.chdir(tmp_path)
    recorded.ok("export", "--days", "--to", "./-")
    assert names_in(tmp_path) == {"-"}
