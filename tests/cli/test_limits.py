from __future__ import annotations

import pytest

from usage_plugin.config import load_config
from usage_plugin.testing.builders import NOON

HOUR = 3_600_000_000
DAY = 24 * HOUR


def accounts(document, name):
    """The accounts of one limit, by subject."""
    return {tuple(row["subject"].items()): row for row in document["limits"] if row["name"] == name}


def test_every_account_of_every_limit_is_shown(run, books):
    """Each account with spend has a row: the amount of the limit, spent, reserved and left."""
    books.add(user="ann", team="research", cost=10_000_000)
    books.add(user="ann", cost=1)
    books.reserve(user="ann", team="research", cost=2_000_000_000)
    document = run.json("limits")
    (daily,) = accounts(document, "daily").values()
    assert daily == {
        "name": "daily", "subject": {"user": "ann"}, "unit": "usd", "limit": "5.00", "spent": "0.010000001",
        "reserved": "2.00", "remaining": "2.989999999",
        "window": {"start": "2026-11-23T00:00:00+00:00", "end": "2026-11-24T00:00:00+00:00"},
        "action": "block", "dry_run": False, "amount_from": "limit", "amount_until": None, "adjustment": None,
    }  # fmt: skip
    (member,) = accounts(document, "member").values()
    assert member["subject"] == {"team": "research", "user": "ann"}
    assert (member["unit"], member["limit"], member["spent"], member["reserved"], member["remaining"]) == (
        "requests",
        100,
        1,
        1,
        98,
    )
    (company,) = accounts(document, "company").values()
    assert company["subject"] == {}
    assert (company["spent"], company["reserved"], company["limit"]) == (30, 15, 1_000_000)
    assert company["window"]["end"] is None
    (month,) = accounts(document, "team-month").values()
    assert month["subject"] == {"team": "research"}
    assert month["window"] == {"start": "2026-11-01T00:00:00+00:00", "end": "2026-12-01T00:00:00+00:00"}


@pytest.mark.parametrize(
    ("user", "limit", "remaining"),
    [("ann", "5.00", "4.99"), ("bo", None, None), ("eva", "0.00", "0.00"), ("dana", "25.00", "24.99")],
)
def test_overrides_set_the_amount_of_an_account(run, books, user, limit, remaining):
    """An account has the amount of the override that matches: another one, unlimited (null), or 0."""
    books.add(user=user, cost=10_000_000)
    (daily,) = accounts(run.json("limits"), "daily").values()
    assert (daily["limit"], daily["spent"], daily["remaining"]) == (limit, "0.01", remaining)


def test_nothing_left_is_never_negative(run, books):
    """A user past a limit has 0 left, and the excess is part of the spend."""
    books.add(user="ann", cost=6_000_000_000)
    (daily,) = accounts(run.json("limits"), "daily").values()
    assert (daily["spent"], daily["remaining"]) == ("6.00", "0.00")


def test_dry_runs_and_warnings_are_marked(run, books):
    """A dry run and a limit that only warns are marked."""
    books.add(user="zoe", cost=30_000_000)
    document = run.json("limits")
    (tighter,) = accounts(document, "tighter").values()
    (warned,) = accounts(document, "warned").values()
    assert (tighter["dry_run"], tighter["limit"], tighter["remaining"]) == (True, "0.02", "0.00")
    assert (warned["action"], warned["dry_run"]) == ("warn", False)
    table = run.ok("limits")
    assert "dry run" in table
    assert "warn" in table


def test_only_windows_that_are_open_now_are_shown(run, books):
    """Yesterday's spend is not on today's account, and is still on this month's."""
    books.add(user="ann", team="research", cost=10_000_000, started_at=NOON - DAY)
    document = run.json("limits")
    assert accounts(document, "daily") == {}
    assert [row["spent"] for row in accounts(document, "team-month").values()] == ["0.01"]


def test_a_user_sees_the_accounts_that_count_them(run, books):
    """--user shows the accounts that count this user: their own, their shares of teams and the company's."""
    books.add(user="ann", team="research")
    books.add(user="bo", team="sales")
    document = run.json("limits", "--user", "ann")
    assert [(row["name"], row["subject"]) for row in document["limits"]] == [
        ("daily", {"user": "ann"}),
        ("member", {"team": "research", "user": "ann"}),
        ("company", {}),
        ("tighter", {"user": "ann"}),
    ]


def test_a_user_without_spend_has_accounts_too(run, books):
    """--user also shows the accounts of a user without spend, with the override that applies."""
    daily = accounts(run.json("limits", "--user", "dana"), "daily")[("user", "dana"),]
    assert (daily["limit"], daily["spent"], daily["reserved"], daily["remaining"]) == ("25.00", "0.00", "0.00", "25.00")
    assert accounts(run.json("limits", "--user", "ann"), "warned") == {}
    assert len(accounts(run.json("limits", "--user", "zoe"), "warned")) == 1


def test_a_global_limit_on_some_users_is_not_shown_to_others(run, config_path, books):
    """--user leaves out a limit on one account for all that counts other users only."""
    config_path.write_text(
        config_path.read_text()
        + "    - {name: interns, per: global, match: {user: intern-*}, window: day, max_cost: 1}\n"
    )
    books.add(user="ann")
    assert accounts(run.json("limits", "--user", "ann"), "interns") == {}
    assert len(accounts(run.json("limits", "--user", "intern-1"), "interns")) == 1


def test_without_any_event_only_shared_accounts_are_shown(run, books):
    """Before the first event, the account that all requests share exists, with no spend."""
    assert [(row["name"], row["spent"]) for row in run.json("limits")["limits"]] == [("company", 0)]


def test_a_table_shows_limits_for_people(run, books):
    """The table has a line for each account: subject, unit, amounts and the end of the window."""
    books.add(user="ann", team="research", cost=10_000_000)
    books.add(user="bo", cost=10_000_000)
    lines = [" ".join(line.split()) for line in run.ok("limits").splitlines()]
    assert "daily user ann usd 5.00 0.01 0.00 4.99 2026-11-24 00:00 UTC" in lines
    assert "daily user bo usd unlimited 0.01 0.00 2026-11-24 00:00 UTC" in lines
    assert "member team research, user ann requests 100 1 0 99 2026-11-30 00:00 UTC" in lines
    assert "company everybody total tokens 1,000,000 30 0 999,970 never" in lines
    assert "Limits that count ann" in run.ok("limits", "--user", "ann")


def test_csv_and_json_lines_have_the_accounts(run, books):
    """CSV and JSON lines hold the accounts of the JSON document, with subjects and windows as JSON."""
    books.add(user="ann", team="research", cost=10_000_000)
    rows = run.json("limits")["limits"]
    assert run.jsonl("limits") == rows
    found = run.csv("limits")
    assert [row["name"] for row in found] == [row["name"] for row in rows]
    assert found[0]["subject"] == '{"user": "ann"}'
    assert found[0]["spent"] == "0.01"


def test_limits_of_one_request_have_no_accounts(run, config_path, books):
    """A limit on single requests keeps no account and has no row."""
    config_path.write_text(config_path.read_text() + "    - {name: single, per: user, window: request, max_cost: 1}\n")
    books.add(user="ann")
    assert accounts(run.json("limits"), "single") == {}


def test_a_changed_amount_counts_at_once_and_keeps_the_spend(run, config_path, books):
    """A higher amount in the YAML takes effect at the next look, with the previous spend."""
    books.add(user="ann", cost=10_000_000)
    config_path.write_text(config_path.read_text().replace("max_cost: 5\n", "max_cost: 7.5\n"))
    (daily,) = accounts(run.json("limits"), "daily").values()
    assert (daily["limit"], daily["spent"]) == ("7.50", "0.01")


def test_a_model_name_of_a_client_cannot_break_the_list(run, config_path, books):
    """An account whose model name holds the separator of subjects is listed all the same."""
    config_path.write_text(
        config_path.read_text() + "    - {name: models, per: [user, model], window: day, max_requests: 100}\n"
    )
    books.limits = load_config(config_path).limit_set()
    books.add(user="ann", model="a\x1fb")
    assert len(accounts(run.json("limits"), "models")) == 1


def add_limits(config_path, books, *limits):
    """Append limits to the YAML, as an operator would."""
    config_path.write_text(config_path.read_text() + "".join(f"    - {{{limit}}}\n" for limit in limits))
    books.limits = load_config(config_path).limit_set()


def test_a_rolling_window_is_one_row_with_the_sum_of_its_buckets(run, config_path, books):
    """The spend of the last five hours is one sum for each subject, without older spend."""
    add_limits(config_path, books, "name: burst, per: user, window: {rolling: 5h}, max_cost: 5")
    for ago in (0, HOUR, 5 * HOUR, 6 * HOUR):
        books.add(user="ann", cost=10_000_000, started_at=NOON - ago)
    books.reserve(user="ann", cost=1_000_000_000, started_at=NOON - 2 * HOUR)
    books.add(user="bo", cost=20_000_000)
    document = run.json("limits")
    found = accounts(document, "burst")
    ann = found[("user", "ann"),]
    assert (ann["spent"], ann["reserved"], ann["remaining"]) == ("0.03", "1.00", "3.97")
    assert ann["window"] == {"start": "2026-11-23T07:00:00+00:00", "end": "2026-11-23T17:05:00+00:00"}
    assert found[("user", "bo"),]["spent"] == "0.02"
    (eva,) = accounts(run.json("limits", "--user", "zoe"), "burst").values()
    assert (eva["subject"], eva["spent"]) == ({"user": "zoe"}, "0.00")


def test_sessions_and_parallel_requests_never_reset(run, config_path, books):
    """A window without a reset date is shown as an account without an end."""
    add_limits(
        config_path,
        books,
        "name: chat, per: [user, session], window: session, max_cost: 5",
        "name: at-once, per: user, max_parallel_requests: 3",
    )
    books.add(user="ann", session="s-1", cost=10_000_000, started_at=NOON - 3 * DAY)
    books.reserve(user="ann", session="s-1", cost=10_000_000)
    document = run.json("limits")
    (chat,) = accounts(document, "chat").values()
    assert (chat["subject"], chat["spent"], chat["reserved"]) == ({"user": "ann", "session": "s-1"}, "0.01", "0.01")
    (at_once,) = accounts(document, "at-once").values()
    assert (at_once["unit"], at_once["limit"], at_once["spent"], at_once["reserved"]) == ("parallel_requests", 3, 0, 1)
    assert chat["window"]["end"] is at_once["window"]["end"] is None
    assert "never" in run.ok("limits")
