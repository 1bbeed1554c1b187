"""`usage-plugin forecast`, over a history of real events."""

from __future__ import annotations

import pytest

from tests.cli.conftest import CONFIG, DAY, Books, Commands
from usage_plugin.config import load_config
from usage_plugin.testing.builders import NOON

USD = 10**9
LIMITS = """\
    - {name: gpt-month, per: user, match: {model: gpt}, window: month, max_cost: 31}
    - {name: rolling, per: user, window: {rolling: 7d}, max_cost: 5}
    - {name: tagged, per: tag, window: month, max_cost: 5}
"""


def seed(books):
    """For 70 days until yesterday a dollar of ann's and two of bo's each day, and half of that today."""
    for day in range(70, -1, -1):
        share = 2 if day == 0 else 1
        books.add(user="ann", team="research", model="gpt", cost=USD // share, started_at=NOON - day * DAY)
        books.add(user="bo", team="research", model="gpt", cost=USD // share, started_at=NOON - day * DAY)
        books.add(user="bo", model="o3", cost=USD // share, started_at=NOON - day * DAY + 1)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """The commands; some of the events are in the store, those of today in the outbox."""
    path = tmp_path_factory.mktemp("forecast") / "config.yaml"
    path.write_text(CONFIG + LIMITS, encoding="utf-8")
    books = Books(load_config(path))
    seed(books)
    books.flush()
    yield Commands(path)
    books.ledger.close()


def test_the_spend_at_the_end_of_the_month(recorded, noon):
    """22 whole days, half of today, its other half, and seven days to come, at three dollars each; nothing is noise."""
    (found,) = recorded.json("forecast")["forecasts"]
    assert found == {
        "who": {}, "limit": None, "unit": "usd", "first": "2026-11-01", "last": "2026-11-30", "spent": "67.50",
        "expected": "90.00", "low": "90.00", "high": "90.00", "allowed": None, "runs_out": None,
        "runs_out_earliest": None, "runs_out_latest": None, "history_days": 70, "lacks": [],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--by", "user"], [({"user": "bo"}, "60.00"), ({"user": "ann"}, "30.00")]),
        (["--by", "user", "--top", "1"], [({"user": "bo"}, "60.00")]),
        (["--by", "team"], [({"team": "research"}, "60.00")]),
        (["--by", "user,model", "--user", "bo"], [({"user": "bo", "model": "gpt"}, "30.00"), ({"user": "bo", "model": "o3"}, "30.00")]),
        (["--user", "ann"], [({}, "30.00")]),
        (["--model", "o3"], [({}, "30.00")]),
        (["--team", "none"], [({}, "0.00")]),
        (["--window", "day"], [({}, "3.00")]),
        (["--window", "week"], [({}, "21.00")]),
        (["--window", "quarter"], [({}, "276.00")]),
    ],
    ids=str,
)  # fmt: skip
def test_groups_names_and_windows_are_chosen(recorded, noon, options, expected):
    """Groups are in order of cost; requests without a name in the dimension are not a group."""
    found = recorded.json("forecast", *options)["forecasts"]
    assert [(row["who"], row["expected"]) for row in found] == expected


def test_a_limit_says_when_it_runs_out(recorded, noon):
    """Only requests that the limit counts: of bo's two models one. Of 31 USD 1 is left at the end, so it lasts."""
    found = recorded.json("forecast", "--limit", "gpt-month")["forecasts"]
    assert [(row["who"], row["spent"], row["expected"], row["allowed"], row["runs_out"]) for row in found] == [
        ({"user": "ann"}, "22.50", "30.00", "31.00", None),
        ({"user": "bo"}, "22.50", "30.00", "31.00", None),
    ]


def test_an_account_that_will_be_used_up_has_a_date(run, books, config_path):
    """With 26.5 dollars allowed and 22.5 spent by noon, it runs out three days and a half from now."""
    config_path.write_text(CONFIG + LIMITS.replace("max_cost: 31", 'max_cost: "26.5"'))
    opened = Books(load_config(config_path))
    seed(opened)
    opened.flush()
    found = run.json("forecast", "--limit", "gpt-month", "--user", "bo")["forecasts"]
    assert [(row["who"], row["runs_out"], row["runs_out_earliest"], row["runs_out_latest"]) for row in found] == [
        ({"user": "bo"}, "2026-11-27", "2026-11-27", "2026-11-27")
    ]
    shown = run.ok("forecast", "--limit", "gpt-month", "--user", "bo")
    assert "Limit gpt-month, USD, 2026-11-01 to 2026-11-30 (UTC)" in shown
    assert shown.count("2026-11-27") == 3
    opened.ledger.close()


@pytest.mark.parametrize(
    ("limit", "row"),
    [
        ("member", ({"team": "research", "user": "ann"}, "requests", 1, 7, 100)),
        ("team-month", ({"team": "research"}, "usd", "45.00", "60.00", "500.00")),
    ],
)
def test_any_unit_and_several_dimensions(recorded, noon, limit, row):
    """Requests of a week, and a team's money."""
    first = recorded.json("forecast", "--limit", limit, "--top", "1")["forecasts"][0]
    assert (first["who"], first["unit"], first["spent"], first["expected"], first["allowed"]) == row


def test_people_get_a_table(recorded, noon):
    """In dollars and cents, with the range."""
    words = [line.split() for line in recorded.ok("forecast", "--by", "user").splitlines()]
    assert ["Spend", "by", "user,", "USD,", "2026-11-01", "to", "2026-11-30", "(UTC)"] in words
    assert ["user", "bo", "45.00", "60.00", "60.00–60.00"] in words


def test_a_backtest_prints_the_error_and_that_of_as_yesterday(recorded, noon):
    """Every day alike: neither is off, and the end of each month was within the range."""
    found = recorded.json("forecast", "--by", "user", "--backtest")
    daily, window = found["backtest"]
    assert daily == {"what": "daily", "error": 0, "error_as_yesterday": 0, "in_range": None, "ranges": None}
    assert (window["error"], window["in_range"]) == (0, window["ranges"])
    assert "as yesterday" in recorded.ok("forecast", "--backtest")


def test_a_short_history_names_the_missing_parts(run, books):
    """Five days: a forecast without a range, and why; too little to look back on."""
    for day in range(5, 0, -1):
        books.add(user="ann", cost=USD, started_at=NOON - day * DAY)
    (found,) = run.json("forecast")["forecasts"]
    assert (found["expected"], found["low"], found["high"]) == ("12.50", None, None)
    assert [told.split(":")[0] for told in found["lacks"]] == [
        "5 days are too few to tell weekdays apart (it takes 21)", "no range",
    ]  # fmt: skip
    assert "no range" in run.ok("forecast")
    assert "history is too short for a backtest" in run.ok("forecast", "--backtest")


def test_nothing_recorded_is_forecast_as_nothing(run, books):
    """An empty month of an empty history."""
    (found,) = run.json("forecast")["forecasts"]
    assert (found["expected"], found["lacks"]) == ("0.00", ["nothing was used before today"])
    assert run.json("forecast", "--by", "user") == {"forecasts": []}
    assert "none" in run.ok("forecast", "--by", "user")


@pytest.mark.parametrize(
    ("options", "code", "told"),
    [
        (["--limit", "nothing"], 1, "There is no limit nothing."),
        (["--limit", "rolling"], 1, "The limit rolling cannot be forecast."),
        (["--limit", "tagged"], 1, "The limit tagged cannot be forecast."),
        (["--limit", "company"], 1, "The limit company cannot be forecast."),
        (["--limit", "daily", "--model", "gpt"], 1, "counts per user, so model chooses none"),
        (["--limit", "daily", "--by", "user"], 2, "omit --by and --window"),
        (["--limit", "daily", "--window", "week"], 2, "omit --by and --window"),
        (["--by", "colour"], 2, "--by: expected one or more of"),
        (["--by", "day"], 2, "--by: expected one or more of"),
        (["--by", ""], 2, "--by: expected one or more of"),
        (["--window", "hour"], 2, "hour"),
        (["--top", "0"], 2, "0"),
    ],
    ids=str,
)  # fmt: skip
def test_an_invalid_forecast_is_an_error(recorded, noon, options, code, told):
    """The message has the remedy, and standard output is empty."""
    result = recorded("forecast", *options)
    assert (result.exit_code, result.stdout) == (code, "")
    assert told in result.stderr


def test_persons_with_pseudonyms_are_found_by_their_names(run, books, config_path):
    """`--user` takes the real name; the output has the pseudonym."""
    config_path.write_text(
        config_path.read_text().replace("data_dir: ./data", "data_dir: ./data\n  privacy: {user: pseudonym}")
    )
    kept = books.pseudonyms.of_person("ann")
    books.add(user=kept, cost=USD, started_at=NOON)
    books.add(user=books.pseudonyms.of_person("bo"), cost=USD, started_at=NOON)
    found = run.json("forecast", "--by", "user", "--user", "ann")["forecasts"]
    assert [(row["who"], row["spent"]) for row in found] == [({"user": kept}, "1.00")]
