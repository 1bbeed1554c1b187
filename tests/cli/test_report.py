from __future__ import annotations

import io
import time
from datetime import date, timedelta

import click
import pytest
from rich.cells import cell_len
from rich.console import Console

from usage_plugin.cli.date_ranges import TypedDates
from usage_plugin.domain.money import format_usd, parse_usd
from usage_plugin.testing.builders import NOON

HOUR = 3_600_000_000
DAY = 24 * HOUR
NOTHING = {"requests": 0, "failed_requests": 0, "input_tokens": 0, "output_tokens": 0, "cost": "0.00"}


def seed(books):
    """Record events of several users, teams, models and days."""
    books.add(user="ann", team="research", model="gpt", cost=10_000_000)
    books.add(user="ann", team="research", model="o3", cost=1, input_tokens=100, output_tokens=7)
    books.add(user="bo", model="gpt", cost=0, status="failure", input_tokens=0, output_tokens=0, error="RateLimitError")
    books.add(user="bo", team="sales", model="gpt", provider="azure", cost=20_000_000, started_at=NOON - 13 * HOUR)
    books.add(user="eva", model="local", cost=None, started_at=NOON - 3 * DAY, api_key="hash-1", organization="corp")
    books.add(user="eva", model="gpt", cost=30_000_000, started_at=NOON - 40 * DAY, end_user="end-eva")


@pytest.fixture
def seeded(books):
    seed(books)
    return books


@pytest.fixture(scope="module")
def recorded(shared):
    """The commands, over events of which some are in the store and one waits in the outbox."""
    books, commands = shared
    seed(books)
    books.flush()
    books.add(user="zoe", cost=5_000_000)
    return commands


def rows_of(report, *keys):
    return [tuple(row[key] for key in keys) for row in report["rows"]]


def test_names_are_spelled_as_they_are_kept(run, seeded, config_path):
    """Spaces do not matter, nor how an accent is written; with `identity.casefold` upper and lower case do not either."""
    seeded.add(user="zoë", cost=5)
    assert rows_of(run.json("report", "--user", " zoe\u0308 "), "user", "cost") == [("zoë", "0.000000005")]
    assert not run.json("report", "--user", "ANN")["rows"]
    config_path.write_text(config_path.read_text().replace("  groups:", "  identity: {casefold: true}\n  groups:"))
    assert rows_of(run.json("report", "--user", "ANN", "--team", "Research"), "user", "cost") == [
        ("ann", "0.010000001")
    ]
    assert {event["user"] for event in run.json("events", "--user", "Ann")["events"]} == {"ann"}


@pytest.mark.parametrize("where", ["in the outbox", "in the store", "half of each"])
def test_a_report_has_a_row_for_each_user_and_a_total(run, seeded, where):
    """A report sums the last 30 days by user, in order of cost, and includes all settled requests, outbox included."""
    if where == "half of each":
        seeded.flush()
    seeded.add(user="zoe", cost=5_000_000)
    if where == "in the store":
        seeded.flush()
    report = run.json("report")
    assert report["rows"] == [
        {"user": "bo", "requests": 2, "failed_requests": 1, "input_tokens": 10, "output_tokens": 5, "cost": "0.02"},
        {
            "user": "ann",
            "requests": 2,
            "failed_requests": 0,
            "input_tokens": 110,
            "output_tokens": 12,
            "cost": "0.010000001",
        },
        {"user": "zoe", "requests": 1, "failed_requests": 0, "input_tokens": 10, "output_tokens": 5, "cost": "0.005"},
        {"user": "eva", "requests": 1, "failed_requests": 0, "input_tokens": 10, "output_tokens": 5, "cost": "0.00"},
    ]
    assert report["total"] == {
        "requests": 6,
        "failed_requests": 1,
        "input_tokens": 140,
        "output_tokens": 27,
        "cost": "0.035000001",
    }


@pytest.mark.parametrize(
    ("by", "groups"),
    [
        ("user", {("ann",), ("bo",), ("eva",), ("zoe",)}),
        ("team", {("research",), ("sales",), (None,)}),
        ("model", {("gpt",), ("o3",), ("local",)}),
        ("provider", {("openai",), ("azure",)}),
        ("api_key", {("hash-1",), (None,)}),
        ("organization", {("corp",), (None,)}),
        ("end_user", {(None,)}),
        ("day", {("2026-11-20",), ("2026-11-22",), ("2026-11-23",)}),
        ("month", {("2026-11",)}),
        ("user,model", {("ann", "gpt"), ("ann", "o3"), ("bo", "gpt"), ("eva", "local"), ("zoe", "gpt")}),
        ("day,user", {("2026-11-20", "eva"), ("2026-11-22", "bo"), ("2026-11-23", "ann"), ("2026-11-23", "bo"), ("2026-11-23", "zoe")}),
        ("month, team", {("2026-11", "research"), ("2026-11", "sales"), ("2026-11", None)}),
    ],
)  # fmt: skip
def test_reports_are_grouped_as_asked(recorded, noon, by, groups):
    """--by groups by one or several dimensions; a missing name is a group too, and the total stays the same."""
    report = recorded.json("report", "--by", by)
    names = [name.strip() for name in by.split(",")]
    found = rows_of(report, *names)
    assert len(found) == len(set(found))
    assert set(found) == groups
    assert list(report["rows"][0]) == [*names, "requests", "failed_requests", "input_tokens", "output_tokens", "cost"]
    assert report["total"]["cost"] == "0.035000001"


def test_reports_by_day_are_in_order_of_time(recorded, noon):
    """Where days come first, a report is in order of time, not of cost."""
    assert rows_of(recorded.json("report", "--by", "day"), "day", "cost") == [
        ("2026-11-20", "0.00"), ("2026-11-22", "0.02"), ("2026-11-23", "0.015000001"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("span", "users"),
    [
        (["--since", "1d"], {"ann", "bo", "zoe"}),
        (["--since", "today"], {"ann", "bo", "zoe"}),
        (["--since", "2d"], {"ann", "bo", "zoe"}),
        (["--since", "4d"], {"ann", "bo", "zoe", "eva"}),
        (["--since", "yesterday", "--through", "yesterday"], {"bo"}),
        (["--since", "2026-11-20", "--through", "2026-11-20"], {"eva"}),
        (["--since", "2026-11-20", "--through", "2026-11-22"], {"eva", "bo"}),
        (["--since", "2026-11-21", "--through", "yesterday"], {"bo"}),
        (["--through", "2026-11-20"], {"eva"}),
        (["--month", "2026-11"], {"ann", "bo", "zoe", "eva"}),
        (["--month", "2026-10"], {"eva"}),
        (["--month", "2026-12"], set()),
        (["--since", "60d"], {"ann", "bo", "zoe", "eva"}),
        (["--since", "2026-11-24", "--through", "2026-12-31"], set()),
    ],
    ids=lambda value: " ".join(sorted(value) if isinstance(value, set) else value),
)
def test_spans_are_whole_days_with_both_ends(recorded, noon, span, users):
    """--since and --through are days that both count, 7d includes today, and --month is a whole month."""
    assert {row["user"] for row in recorded.json("report", *span)["rows"]} == users


@pytest.mark.parametrize(
    ("chosen", "requests"),
    [
        (["--user", "ann"], 2),
        (["--user", "ann", "--model", "o3"], 1),
        (["--team", "sales"], 1),
        (["--model", "gpt"], 4),
        (["--model", "gpt", "--team", "research"], 1),
        (["--user", "nobody"], 0),
        (["--user", "an"], 0),
        (["--user", "a*"], 0),
    ],
    ids=str,
)
def test_filters_take_exact_names(recorded, noon, chosen, requests):
    """--user, --team and --model take the events with exactly these names, all of them."""
    report = recorded.json("report", *chosen)
    assert report["total"]["requests"] == requests
    assert sum(row["requests"] for row in report["rows"]) == requests


@pytest.mark.parametrize("waiting", [False, True])
def test_the_top_groups_and_the_others_make_the_total(run, seeded, waiting):
    """--top has the first rows of the whole report, and the sum of the others; CSV and JSON lines have rows alone."""
    if not waiting:
        seeded.flush()
    for by in ("user", "user,model", "model,day"):
        whole = run.json("report", "--by", by, "--since", "60d")
        for most in (1, 2, 50):
            report = run.json("report", "--by", by, "--since", "60d", "--top", str(most))
            assert report["rows"] == whole["rows"][:most]
            assert report["total"] == whole["total"]
            left = whole["rows"][most:]
            assert report["others"] == {
                "groups": len(left),
                **{name: sum(row[name] for row in left) for name in NOTHING if name != "cost"},
                "cost": format_usd(sum(parse_usd(row["cost"]) for row in left)),
            }
            assert run.jsonl("report", "--by", by, "--since", "60d", "--top", str(most)) == report["rows"]


def test_the_top_days_are_in_order_of_cost(recorded, noon):
    """--top with days returns the most expensive days, in order of cost."""
    assert rows_of(recorded.json("report", "--by", "day", "--top", "2"), "day") == [("2026-11-22",), ("2026-11-23",)]


def test_at_a_terminal_a_report_has_an_end(run, books, monkeypatch):
    """A terminal shows the top 50 by cost, the others in one row, and the option for all; a pipe has all rows."""
    for number in range(53):
        books.add(user=f"user {number:02}", cost=number, started_at=NOON - number * DAY)
    books.flush()
    span = ("--since", "60d")
    assert "others" not in run.ok("report", *span)
    monkeypatch.setattr("usage_plugin.cli.report.at_terminal", lambda: True)
    lines = run.ok("report", *span).splitlines()
    assert [line.split()[:2] for line in lines if "user " in line][1:] == [
        ["user", f"{n:02}"] for n in range(52, 2, -1)
    ]
    assert ["others", "(3)", "3", "0", "30", "15", "0.000000003"] in [line.split() for line in lines]
    assert lines[-1] == "Showing the top 50 of 53 by cost; --top 53 shows all."
    everything = run.ok("report", *span, "--top", "53")
    assert "user 00" in everything
    assert "others" not in everything
    assert "shows all" not in everything
    for arguments in (("--by", "day"), ("--by", "day,user"), ("--format", "csv"), ("--format", "jsonl")):
        assert len(run.ok("report", *span, *arguments).splitlines()) >= 53


def test_flushing_changes_nothing(run, seeded):
    """A report before the outbox is flushed is the report after it."""
    before = [run.json("report", "--by", by, "--since", "60d") for by in ("user", "day,model", "month")]
    seeded.flush()
    assert [run.json("report", "--by", by, "--since", "60d") for by in ("user", "day,model", "month")] == before


def test_days_begin_in_the_configured_zone(run, config_path, books):
    """A report's days are those of usage_plugin.timezone."""
    config_path.write_text(
        config_path.read_text().replace("data_dir: ./data", "data_dir: ./data\n  timezone: Asia/Tokyo")
    )
    books.add(started_at=NOON + 3 * HOUR - 1)
    books.add(started_at=NOON + 3 * HOUR)
    assert rows_of(run.json("report", "--by", "day", "--through", "2026-11-30"), "day", "requests") == [
        ("2026-11-23", 1),
        ("2026-11-24", 1),
    ]


def test_a_table_shows_groups_numbers_and_a_total(run, seeded):
    """The table for people has a title with the span and zone, a line for each group and one for the total."""
    lines = run.ok("report", "--by", "user,model", "--since", "2d").splitlines()
    assert lines[0].strip() == "Usage from 2026-11-22 to 2026-11-23 (UTC)"
    words = [line.split() for line in lines]
    assert [
        "user",
        "model",
        "requests",
        "failed",
        "requests",
        "input",
        "tokens",
        "output",
        "tokens",
        "cost",
        "USD",
    ] in words
    assert ["bo", "gpt", "2", "1", "10", "5", "0.02"] in words
    assert ["ann", "o3", "1", "0", "100", "7", "0.000000001"] in words
    assert ["total", "4", "1", "120", "17", "0.030000001"] in words


@pytest.mark.parametrize("width", [80, 160])
@pytest.mark.parametrize("by", ["user", "user,model", "team,user,model,provider"])
def test_a_report_fits_the_terminal(run, books, monkeypatch, width, by):
    """On 80 columns and on 160 no line is too long, and every number is whole, with names of any length."""
    names = ("ann.berger@research.example", "松本さくら@研究.example", "svc-nightly-batch-summariser-eu-west-1")
    for number, name in enumerate(names):
        books.add(user=name, team="plattform-ünïts", cost=10**15 + number, input_tokens=10**9 - number,
                  model="bedrock/eu.anthropic.claude-sonnet-4-5-20250929-v1:0")  # fmt: skip
    screen = io.StringIO()
    terminal = Console(width=width, file=screen, highlight=False, force_terminal=True, color_system=None)
    monkeypatch.setattr("usage_plugin.cli.output.console", lambda: terminal)
    run.ok("report", "--by", by)
    lines = screen.getvalue().splitlines()
    assert max(map(cell_len, lines)) <= width
    for number in range(len(names)):
        assert any({f"1,000,000.{number:09}".replace(".000000000", ".00"), f"{10**9 - number:,}"} <= set(line.split())
                   for line in lines)  # fmt: skip


def test_a_pipe_gets_each_row_in_a_line(execute, books):
    """In a pipe, no line is folded however long it is, no colour is there, and NO_COLOR changes nothing."""
    name, model = "u" * 200, "m" * 200
    books.add(user=name, model=model, started_at=time.time_ns() // 1000)
    environment = {**execute.environment, "TERM": "xterm-256color", "COLUMNS": "40"}
    text = execute("report", "--by", "user,model", env=environment).stdout
    assert any(line.split()[:3] == [name, model, "1"] for line in text.splitlines())
    assert "\x1b" not in text
    assert execute("report", "--by", "user,model", env={**environment, "NO_COLOR": "1"}).stdout == text


def test_csv_and_json_lines_have_the_rows(recorded, noon):
    """CSV and JSON lines hold the rows of the JSON document, in its order, without the total."""
    rows = recorded.json("report", "--by", "team,user")["rows"]
    assert recorded.jsonl("report", "--by", "team,user") == rows
    assert recorded.csv("report", "--by", "team,user") == [
        {name: "" if value is None else str(value) for name, value in row.items()} for row in rows
    ]


def test_a_report_of_nothing_is_empty(run, books):
    """Where nothing was recorded in a span, the report has no rows and a total of nothing, in every format."""
    assert run.json("report") == {"rows": [], "total": NOTHING}
    assert run.jsonl("report") == []
    assert run.csv("report") == []
    assert "total" in run.ok("report")


@pytest.mark.parametrize(
    "options",
    [
        ["--by", "colour"], ["--by", ""], ["--by", ","], ["--by", "user,user"], ["--by", "tag"],
        ["--since", "soon"], ["--since", "0d"], ["--since", "-1d"], ["--since", "2026-02-30"], ["--since", "7"],
        ["--through", "7d"], ["--through", "2026-13-01"], ["--month", "2026"], ["--month", "2026-13"], ["--month", "11-2026"],
        ["--month", "2026-11", "--since", "7d"], ["--month", "2026-11", "--through", "today"],
        ["--since", "today", "--through", "yesterday"], ["--since", "2026-11-24"],
        ["--format", "xml"], ["--colour"], ["extra"], ["--top", "0"], ["--top", "all"],
    ],
    ids=str,
)  # fmt: skip
def test_invalid_options_end_with_2(recorded, noon, options):
    """Invalid options end with exit code 2, a message, and nothing on standard output."""
    recorded.usage_error("report", *options)


@pytest.mark.parametrize("zone", ["UTC", "Asia/Tokyo"])
@pytest.mark.parametrize(
    "span", [["--since", "0001-01-01"], ["--through", "9999-12-31"], ["--month", "9999-12"]], ids=str
)
def test_the_ends_of_the_calendar_are_no_fault_of_the_store(run, config_path, books, zone, span):
    """The first and the last day that can be written are reported on or refused as an option; nothing is called broken."""
    config_path.write_text(config_path.read_text().replace("data_dir: ./data", f"data_dir: ./data\n  timezone: {zone}"))
    books.add(cost=10_000_000)
    result = run("report", *span)
    assert result.exit_code in (0, 2), result.output


TODAY = date(2026, 11, 23)


@pytest.mark.parametrize(
    ("since", "through", "month", "first", "last"),
    [
        (None, None, None, TODAY - timedelta(29), TODAY),
        ("7d", None, None, TODAY - timedelta(6), TODAY),
        ("7d", "yesterday", None, TODAY - timedelta(6), TODAY - timedelta(1)),
        ("yesterday", None, None, TODAY - timedelta(1), TODAY),
        (None, "2026-10-31", None, date(2026, 10, 2), date(2026, 10, 31)),
        (None, None, "2028-02", date(2028, 2, 1), date(2028, 2, 29)),
        (None, None, "2026-12", date(2026, 12, 1), date(2026, 12, 31)),
        (None, None, "2026-04", date(2026, 4, 1), date(2026, 4, 30)),
    ],
)
def test_spans_are_read_as_people_mean_them(since, through, month, first, last):
    """Days and months are read as people write them; without any, the last 30 days."""
    assert TypedDates(since, through, month).read(TODAY) == (first, last)


@pytest.mark.parametrize("command", [["report"], ["patterns"], ["export", "--days"]], ids=str)
def test_until_is_the_deprecated_name_of_through(run, books, command):
    """--until still works with a warning on stderr, --help does not list it, and both names together are an error."""
    books.add()
    former, current = (run(*command, name, "2026-11-30") for name in ("--until", "--through"))
    assert (former.exit_code, former.stdout) == (0, current.stdout)
    assert "--until is deprecated: use --through" in former.stderr
    assert current.stderr == ""
    assert "--until" not in run.ok(command[0], "--help")
    both = run(*command, "--until", "today", "--through", "today")
    assert both.exit_code == 2
    assert "--until is the former name of --through" in both.stderr


def test_an_impossible_span_is_a_bad_parameter():
    """A span that ends before it begins is refused."""
    with pytest.raises(click.BadParameter):
        TypedDates("today", "yesterday").read(TODAY)
