from __future__ import annotations

import itertools
import json
from dataclasses import replace

import pytest

from usage_plugin.domain.ledger import Balance
from usage_plugin.testing.builders import NOON
from usage_plugin.tracking.admission import Refusal
from usage_plugin.tracking.demands import Demand
from usage_plugin.tracking.refusals import RefusalLog

REF = "0123ABCD"
SECOND = 1_000_000
MINUTE = 60 * SECOND


@pytest.fixture
def refuse(books):
    """Record refusals of a user by a limit, as a worker does."""
    refs, used = itertools.count(), itertools.count()

    def refuse(limit="daily", user="ann", count=1, **changes):
        rule = next(rule for rule in books.limits.limits if rule.name == limit)
        subject = {
            "daily": user,
            "tighter": user,
            "team-month": "research",
            "member": f"research\x1f{user}",
            "company": "",
        }[limit]
        matched = books.limits.account(rule, subject)
        refusal = Refusal(**{
            "reason": "spent", "ref": REF if not next(used) else f"{next(refs):08d}", "at": NOON - MINUTE, "user": user, "model": "gpt",
            "demand": Demand(rule, subject, matched.window_at(NOON), matched.amount_at(NOON), 120_000_000),
            "balance": Balance(4_980_000_000, 10_000_000), **changes,
        })  # fmt: skip
        log = RefusalLog(books.ledger)
        for number in range(count):
            log.add(refusal if not number else replace(refusal, ref=f"{next(refs):08d}"))
        log.flush()
        return refusal

    return refuse


def test_status_of_an_idle_folder(run, books, config_path):
    """Where nothing happens, status says so: no workers, nothing waiting, nothing reserved, nobody refused."""
    assert run.json("status") == {
        "data_dir": str(config_path.parent / "data"),
        "workers": [],
        "outbox": {"events": 0, "oldest_seconds": None},
        "reservations": {"open": 0, "oldest_seconds": None},
        "refusals": [],
        "blocked": [],
    }


def test_status_shows_what_waits(run, books):
    """Status shows how many events wait for the store and how many reservations are open, and the oldest of each."""
    books.add(started_at=NOON - 90 * SECOND)
    books.add(started_at=NOON - 5 * SECOND)
    books.reserve(started_at=NOON - 30 * SECOND)
    books.reserve(started_at=NOON - 60 * SECOND)
    status = run.json("status")
    assert status["outbox"] == {"events": 2, "oldest_seconds": 90.0}
    assert status["reservations"] == {"open": 2, "oldest_seconds": 60.0}
    table = run.ok("status")
    assert "2 events wait for the store, the oldest for 90 s" in table
    assert "2 open, the oldest for 60 s" in table
    books.flush()
    assert run.json("status")["outbox"] == {"events": 0, "oldest_seconds": None}


def test_status_lists_living_workers(run, books):
    """Status lists the workers that are alive, and not those that have left."""
    worker = books.parts.workers()
    worker.join()
    assert run.json("status")["workers"] == [worker.name]
    worker.leave()
    assert run.json("status")["workers"] == []
    assert "none: the proxy does not run" in run.ok("status")


def test_status_counts_refusals_by_limit_and_names_who_is_blocked(run, refuse):
    """Status counts the refusals of the last 15 minutes by limit and reason, and names who is blocked, the most first."""
    refuse("daily", "ann", count=2)
    refuse("daily", "bo", count=3)
    refuse("team-month", "ann")
    refuse("member", "eva")
    status = run.json("status")
    assert {(row["limit"], row["reason"]): row["count"] for row in status["refusals"]} == {
        ("daily", "spent"): 5, ("team-month", "spent"): 1, ("member", "spent"): 1,
    }  # fmt: skip
    assert status["refusals"][0]["limit"] == "daily"
    assert status["blocked"][:2] == [
        {"limit": "daily", "subject": "bo", "refusals": 3},
        {"limit": "daily", "subject": "ann", "refusals": 2},
    ]
    assert {(row["limit"], row["subject"]) for row in status["blocked"][2:]} == {
        ("team-month", "research"),
        ("member", "research, eva"),
    }


def test_who_only_has_to_wait_is_not_blocked(run, refuse):
    """A refusal that a short wait lifts, or that nobody feels, is counted and blocks nobody."""
    refuse("daily", "ann", reason="busy")
    refuse("tighter", "ann")
    status = run.json("status")
    assert {(row["limit"], row["reason"]) for row in status["refusals"]} == {
        ("daily", "busy"),
        ("tighter", "dry_run:spent"),
    }
    assert status["blocked"] == []


def test_old_refusals_are_not_shown(run, refuse):
    """Refusals of more than 15 minutes ago are not in the status."""
    refuse(at=NOON - 17 * MINUTE)
    refuse(at=NOON - 14 * MINUTE)
    assert [row["count"] for row in run.json("status")["refusals"]] == [1]


def test_the_screen_for_people_has_all_of_it(run, books, refuse):
    """The screen shows the folder, workers, outbox, reservations, refusals and who is blocked."""
    assert "none in the last 15 minutes" in run.ok("status")
    refuse("daily", "[red]ann[/red]", count=2)
    text = " ".join(run.ok("status").split())
    for part in (
        "data folder",
        "workers",
        "outbox 0 events",
        "reservations 0 open",
        "Refusals of the last 15 minutes",
        "daily spent 2",
        "Who is blocked",
        "daily [red]ann[/red] 2",
    ):
        assert part in text


def test_rows_of_the_status_are_its_refusals(run, refuse):
    """CSV and JSON lines of the status hold the refusals, a row each."""
    refuse("daily", "ann", count=2)
    assert run.jsonl("status") == [{"limit": "daily", "reason": "spent", "count": 2}]
    assert run.csv("status") == [{"limit": "daily", "reason": "spent", "count": "2"}]


def test_a_refusal_is_explained_by_its_ref(run, refuse):
    """The ref that a client was told finds the facts of the refusal, amounts as decimal strings."""
    refuse()
    assert run.json("explain", "0123ABCD") == {
        "ref": "0123ABCD", "at": "2026-11-23T11:59:00+00:00", "reason": "spent", "user": "ann", "model": "gpt",
        "dry_run": False, "limit": "daily", "subject": {"user": "ann"}, "unit": "usd", "max": "5.00", "spent": "4.98",
        "reserved": "0.01", "needed": "0.12", "resets_at": "2026-11-24T00:00:00+00:00",
    }  # fmt: skip


@pytest.mark.parametrize("ref", ["0123abcd", " 0123ABCD "])
def test_a_ref_may_be_typed_carelessly(run, refuse, ref):
    """Case and white space around a ref do not matter."""
    refuse()
    assert run.json("explain", ref)["ref"] == "0123ABCD"


def test_an_explanation_for_people(run, refuse):
    """The table says each fact in a line."""
    refuse(user="[red]ann[/red]")
    lines = [" ".join(line.split()) for line in run.ok("explain", "0123ABCD").splitlines()]
    assert "Refusal 0123ABCD" in lines
    assert "subject user [red]ann[/red]" in lines
    assert "spent 4.98" in lines
    assert "resets at 2026-11-24T00:00:00+00:00" in lines


def test_a_refusal_without_a_limit_is_explained_too(run, refuse):
    """A refusal because the ledger did not work has no limit and is found all the same."""
    refuse(reason="unavailable", demand=None, balance=Balance())
    assert run.json("explain", "0123ABCD")["reason"] == "unavailable"
    assert "unavailable" in run.ok("explain", "0123ABCD")
    assert json.loads(run.ok("explain", "0123ABCD", "--format", "jsonl"))["user"] == "ann"
    assert run.csv("explain", "0123ABCD")[0]["reason"] == "unavailable"


def test_a_refusal_by_a_lifetime_limit_is_explained_too(run, refuse):
    """A refusal by a limit that never resets can be written down, told and explained."""
    refuse("company")
    assert run.json("explain", "0123ABCD")["limit"] == "company"
    assert run.json("status")["blocked"] == [{"limit": "company", "subject": "everybody", "refusals": 1}]


@pytest.mark.parametrize("ref", ["XXXXXXXX", "", "'; DROP TABLE refusals; --"])
def test_an_unknown_ref_ends_with_1(run, refuse, ref):
    """A ref that no refusal has ends with exit code 1 and says how many are kept."""
    refuse()
    result = run("explain", ref)
    assert result.exit_code == 1
    assert "10,000" in result.stderr
    assert result.stdout == ""
