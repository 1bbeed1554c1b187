from __future__ import annotations

import getpass
import hashlib
import threading

import pytest

from tests.support.waiting import calls_of, wait_until
from usage_plugin.domain.clock import SystemClock
from usage_plugin.testing.builders import NOON

HOUR = 3_600_000_000
BIG_DAY = ["--for", "12h", "--reason", "a big day"]


def daily(run, user="ann"):
    return next(row for row in run.json("limits", "--user", user)["limits"] if row["name"] == "daily")


@pytest.fixture
def later(monkeypatch):
    """Let time pass for the commands."""

    def later(hours):
        monkeypatch.setattr(SystemClock, "now", lambda _: NOON + int(hours * HOUR))

    return later


def test_raise_changes_an_amount_for_a_while(run, books, later, monkeypatch):
    """`raise` puts another amount in force for one subject, at once and until its end, with all that an audit needs."""
    monkeypatch.delenv("SUDO_USER", raising=False)
    books.add(user="ann", cost=4_000_000_000)
    found = run.json("raise", "daily", "--user", "ann", "--to", "50", *BIG_DAY)
    (made,) = found["adjustments"]
    assert made == {
        "number": 1, "limit": "daily", "subject": {"user": "ann"}, "unit": "usd", "before": "5.00", "after": "50.00",
        "from": "2026-11-23T12:00:00+00:00", "until": "2026-11-24T00:00:00+00:00", "actor": getpass.getuser(),
        "reason": "a big day", "ended": None,
    }  # fmt: skip
    assert (found["now"]["limit"], found["now"]["remaining"]) == ("50.00", "46.00")
    assert (daily(run)["limit"], daily(run)["spent"], daily(run)["amount_from"]) == ("50.00", "4.00", "adjustment")
    assert daily(run)["amount_until"] == "2026-11-24T00:00:00+00:00"
    assert daily(run, "zoe")["limit"] == "5.00"
    later(11.99)
    assert daily(run)["limit"] == "50.00"
    later(12)
    assert (daily(run)["limit"], daily(run)["amount_from"]) == ("5.00", "limit")


def test_raise_prints_the_change(run, books):
    """The table shows the number, both amounts, the expiry, the actor and the remaining amount."""
    books.add(user="ann", cost=4_000_000_000)
    text = run.ok("raise", "daily", "--user", "ann", "--to", "50", *BIG_DAY)
    assert text.splitlines() == [
        f"Adjustment 1 (5.00 → 50.00) is in force until 2026-11-24 00:00 UTC, by {getpass.getuser()}.",
        "The limit daily of user ann is 50.00 USD now, 46.00 left; resets: 2026-11-24 00:00 UTC.",
    ]
    assert "adjusted until 2026-11-24 00:00 UTC (1)" in run.ok("limits", "--user", "ann")


def test_an_adjustment_counts_in_the_ledger_that_workers_read(run, books):
    """A change is in the ledger in the form that workers read, in the limit's smallest unit."""
    before = books.operations.adjustments_version()
    run.ok("raise", "daily", "--user", "ann", "--to", "7.5", *BIG_DAY)
    assert books.operations.adjustments_version() != before
    (made,) = books.operations.adjustments(NOON)
    adjusted = books.limits.adjusted([made])
    limit = books.limits.limits[0]
    assert adjusted.account(limit, "ann").amount_at(NOON) == 7_500_000_000
    assert (made.subject, made.before, made.amount) == ("ann", 5_000_000_000, 7_500_000_000)


def test_an_amount_may_be_cut(run, books):
    """`raise` to less than now is a cut; even to nothing."""
    run.ok("raise", "daily", "--user", "dana", "--to", "0", *BIG_DAY)
    assert (daily(run, "dana")["limit"], daily(run, "dana")["amount_from"]) == ("0.00", "adjustment")
    (made,) = run.json("adjustments")["adjustments"]
    assert (made["before"], made["after"]) == ("25.00", "0.00")


def test_pause_lets_everything_through(run, books):
    """`pause` makes an amount unlimited for a while; spend is still recorded."""
    books.add(user="eva", cost=1_000_000_000)
    assert run.json("explain", "--user", "eva")["verdict"].startswith("A request now is refused by daily")
    run.ok("pause", "daily", "--user", "eva", "--for", "90m", "--reason", "demo")
    assert (daily(run, "eva")["limit"], daily(run, "eva")["spent"]) == (None, "1.00")
    assert "paused until 2026-11-23 13:30 UTC (1)" in run.ok("limits", "--user", "eva")
    assert run.json("explain", "--user", "eva")["verdict"].startswith("A request now is admitted")


def test_resume_ends_all_adjustments_of_an_account(run, books):
    """`resume` ends all adjustments of one subject, and none of other subjects."""
    run.ok("raise", "daily", "--user", "ann", "--to", "10", *BIG_DAY)
    run.ok("pause", "daily", "--user", "ann", "--for", "1h", "--reason", "demo")
    run.ok("raise", "daily", "--user", "bo", "--to", "10", *BIG_DAY)
    assert daily(run)["limit"] is None
    found = run.json("resume", "daily", "--user", "ann")
    assert [row["number"] for row in found["adjustments"]] == [1, 2]
    assert found["now"]["limit"] == "5.00"
    assert [row["number"] for row in run.json("adjustments")["adjustments"]] == [3]
    result = run("resume", "daily", "--user", "ann")
    assert result.exit_code == 1
    assert "No adjustment of the limit daily is in force for user ann." in result.stderr
    assert run.ok("resume", "daily", "--user", "bo").startswith("Adjustment 3 (unlimited → 10.00) is ended.")


def test_the_newest_adjustment_counts(run, books, later):
    """Of two, the newer counts; when it ends, the older one that still runs."""
    run.ok("raise", "daily", "--user", "ann", "--to", "10", *BIG_DAY)
    run.ok("raise", "daily", "--user", "ann", "--to", "20", "--for", "1h", "--reason", "more")
    (second,) = (row for row in run.json("adjustments")["adjustments"] if row["number"] == 2)
    assert second["before"] == "10.00", "what was in force, not what the YAML says"
    assert daily(run)["limit"] == "20.00"
    later(2)
    assert (daily(run)["limit"], daily(run)["adjustment"]) == ("10.00", 1)


def test_adjustments_are_kept_for_the_audit(run, books, later):
    """`adjustments` shows those in force, `--all` also those that ran out or were ended, and when."""
    run.ok("raise", "daily", "--user", "ann", "--to", "10", "--for", "1h", "--reason", "one")
    run.ok("raise", "daily", "--user", "zoe", "--to", "10", "--for", "3h", "--reason", "[red]two[/red]")
    later(0.5)
    run.ok("resume", "daily", "--user", "zoe")
    assert [row["reason"] for row in run.json("adjustments")["adjustments"]] == ["one"]
    later(2)
    assert run.json("adjustments")["adjustments"] == []
    everything = run.json("adjustments", "--all")["adjustments"]
    assert [row["ended"] for row in everything] == [None, "2026-11-23T12:30:00+00:00"]
    assert "[red]two[/red]" in run.ok("adjustments", "--all")
    assert [row["number"] for row in run.csv("adjustments", "--all")] == ["1", "2"]


@pytest.mark.parametrize(
    ("limit", "options", "to", "subject"),
    [
        ("company", [], "2000000", {}),
        ("member", ["--team", "research", "--user", "ann"], "200", {"team": "research", "user": "ann"}),
        ("team-month", ["--team", "research"], "600", {"team": "research"}),
        ("daily", ["--user", "(anonymous)"], "1", {"user": "(anonymous)"}),
    ],
)
def test_every_limit_can_be_adjusted_by_its_dimensions(run, books, limit, options, to, subject):
    """The options are the limit's own dimensions, in any order; a global limit takes none."""
    (made,) = run.json("raise", limit, *options, "--to", to, *BIG_DAY)["adjustments"]
    assert made["subject"] == subject
    assert made["after"] in (int(to), f"{to}.00")
    run.ok("resume", limit, *options[2:], *options[:2])


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["nothing", "--user", "ann", "--to", "1", *BIG_DAY], 1, "The limits are: daily, team-month, member, company"),
        (["daily", "--to", "1", *BIG_DAY], 2, "The limit daily counts per user: expected --user and no other names"),
        (["daily", "--user", "ann", "--team", "x", "--to", "1", *BIG_DAY], 2, "expected --user and no other names"),
        (["member", "--user", "ann", "--to", "1", *BIG_DAY], 2, "expected --team and --user and no other names"),
        (["company", "--user", "ann", "--to", "1", *BIG_DAY], 2, "expected no name, since all requests share it"),
        (["warned", "--user", "ann", "--to", "1", *BIG_DAY], 1, "does not count user ann: it is for user zoe"),
        (["daily", "--user", "ann", "--to", "much", *BIG_DAY], 2, "is not an amount in USD"),
        (["daily", "--user", "ann", "--to", "-1", *BIG_DAY], 2, "negative"),
        (["daily", "--user", "ann", "--to", "unlimited", *BIG_DAY], 2, "usage-plugin pause"),
        (
            ["company", "--to", "1.5", *BIG_DAY],
            2,
            "--to: expected a whole number of total tokens for the limit company; found 1.5",
        ),
        (["daily", "--user", "ann", "--to", "1", "--for", "soon", "--reason", "x"], 2, "12h"),
        (["daily", "--user", "ann", "--to", "1", "--for", "0h", "--reason", "x"], 2, "12h"),
        (["daily", "--user", "ann", "--to", "1", "--for", "91d", "--reason", "x"], 2, "belong in the YAML"),
        (["daily", "--user", "ann", "--to", "1", "--for", "12h"], 2, "--reason"),
        (
            ["daily", "--user", "ann", "--to", "1", "--for", "12h", "--reason", "  "],
            2,
            "--reason: expected 1 to 500 characters",
        ),
        (["daily", "--user", "ann", "--to", "1", "--for", "12h", "--reason", "x" * 501], 2, "500"),
        (["daily", "--user", "x" * 300, "--to", "1", *BIG_DAY], 1, "256"),
        (["daily", "--user", "", "--to", "1", *BIG_DAY], 2, "empty"),
    ],
    ids=lambda value: " ".join(value)[:60] if isinstance(value, list) else None,
)
def test_an_invalid_adjustment_is_an_error_with_a_remedy(run, books, arguments, code, said):
    """A mistake changes nothing, and the message has the remedy."""
    result = run("raise", *arguments)
    assert result.exit_code == code
    assert said in " ".join(result.stderr.split())
    assert books.operations.adjustments() == []


def test_an_unlimited_limit_cannot_be_paused(run, books, config_path):
    """A limit without an amount has nothing to pause."""
    config_path.write_text(
        config_path.read_text() + "    - {name: free, per: user, window: day, max_cost: unlimited}\n"
    )
    assert run("pause", "free", "--user", "ann", *BIG_DAY).exit_code == 1
    run.ok("raise", "free", "--user", "ann", "--to", "3", *BIG_DAY)


def test_90_days_are_allowed(run, books):
    """The longest adjustment is 90 days."""
    (made,) = run.json("raise", "daily", "--user", "ann", "--to", "1", "--for", "90d", "--reason", "x")["adjustments"]
    assert made["until"] == "2027-02-21T12:00:00+00:00"


def test_the_actor_is_the_user_before_sudo(run, books, monkeypatch):
    """Under sudo, the audit names the person, not only root."""
    monkeypatch.setenv("SUDO_USER", "carla")
    (made,) = run.json("raise", "daily", "--user", "ann", "--to", "1", *BIG_DAY)["adjustments"]
    assert made["actor"] == f"carla (as {getpass.getuser()})"


def test_names_are_folded_as_those_of_requests_are(run, books, config_path):
    """With `identity.casefold`, Ann's adjustment is ann's."""
    config_path.write_text(config_path.read_text().replace("  groups:", "  identity: {casefold: true}\n  groups:"))
    (made,) = run.json("raise", "daily", "--user", "Ann", "--to", "1", *BIG_DAY)["adjustments"]
    assert made["subject"] == {"user": "ann"}


def test_adjustments_of_a_limit_that_is_gone_are_listed_all_the_same(run, books, config_path):
    """The audit outlives the limit: the adjustment is still listed, its amounts as plain numbers."""
    run.ok("raise", "member", "--user", "ann", "--team", "research", "--to", "1", *BIG_DAY)
    config_path.write_text(config_path.read_text().replace("name: member", "name: other"))
    (made,) = run.json("adjustments")["adjustments"]
    assert (made["limit"], made["after"], made["unit"]) == ("member", 1, None)
    assert made["subject"] == {"name": "research, ann"}
    assert "research, ann" in run.ok("adjustments")


def test_a_busy_ledger_is_waited_for(run, books, monkeypatch):
    """A command that meets a writing worker tries again until it is through."""
    attempts = calls_of(monkeypatch, type(books.operations), "adjust")
    books.opened.file.execute("BEGIN IMMEDIATE")
    done = []
    command = threading.Thread(
        target=lambda: done.append(run("raise", "daily", "--user", "ann", "--to", "9", *BIG_DAY))
    )
    command.start()
    wait_until(lambda: len(attempts) > 3)
    assert command.is_alive()
    books.opened.file.execute("ROLLBACK")
    command.join()
    assert done[0].exit_code == 0, done[0].stderr
    assert [made.amount for made in books.operations.adjustments()] == [9_000_000_000]


def test_a_key_is_kept_under_its_pseudonym_only(run, books, config_path):
    """A key, its hash and its kept form name one account; key and hash are never written."""
    text = config_path.read_text()
    limit = "    - {name: by-key, per: api_key, window: day, max_cost: 1}\n"
    config_path.write_text(text.replace("  limits:\n", f"  limits:\n{limit}", 1))
    (made,) = run.json("raise", "by-key", "--api-key", "sk-1234", "--to", "2", *BIG_DAY)["adjustments"]
    hashed = hashlib.sha256(b"sk-1234").hexdigest()
    kept = books.pseudonyms.of_key(hashed)
    assert made["subject"] == {"api_key": kept}
    told = run.ok("adjustments", "--all", "--format", "json")
    assert "sk-1234" not in told
    assert hashed not in told
    for name in ("sk-1234", hashed, kept):
        (found,) = [row for row in run.json("explain", "--api-key", name)["limits"] if row["name"] == "by-key"]
        assert found["limit"] == "2.00"
    result = run("raise", "by-key", "--api-key", "laptop", "--to", "2", *BIG_DAY)
    assert result.exit_code == 2
    assert "An alias" in result.stderr
