from __future__ import annotations

import io
import os
import platform
import re

from rich.console import Console

from usage_plugin.domain.operations import Anomaly
from usage_plugin.domain.windows import to_datetime
from usage_plugin.testing.builders import NOON
from usage_plugin.testing.clock import FakeClock
from usage_plugin.tracking.notifications.health import HealthNotes
from usage_plugin.tracking.privacy.secret import note_secret

REF = "0123ABCD"
SECOND = 1_000_000
MINUTE = 60 * SECOND
DAY = 24 * 60 * MINUTE


def test_status_of_an_idle_folder(run, books, config_path):
    """Without activity, status shows no workers, an empty outbox, no reservations and no refusals."""
    assert run.json("status") == {
        "data_dir": str(config_path.parent / "data"),
        "workers": [],
        "fleet": None,
        "problems": [],
        "outbox": {"events": 0, "bytes": 0, "oldest_seconds": None},
        "reservations": {"open": 0, "oldest_seconds": None},
        "history": {
            "oldest_event": None,
            "bytes": 65_536,
            "retention": {"events_days": 90, "daily_days": 1830, "max_bytes": None},
            "last_pruned": None,
        },
        "migration": None,
        "refusals": [],
        "blocked": [],
        "anomalies": [],
        "imperfections": [],
        "adjustments": [],
    }


def test_a_problem_is_red_but_not_with_no_color(run, books, monkeypatch):
    """A terminal shows problems in red, folded under one another; with NO_COLOR set, as plain text."""
    HealthNotes(FakeClock()).tell(books.operations, "store", "the disk is full, " * 10)

    def shown():
        screen = io.StringIO()
        made = Console(width=80, file=screen, highlight=False, force_terminal=True, color_system="standard")
        monkeypatch.setattr("usage_plugin.cli.status.console", lambda: made)
        run.ok("status")
        return screen.getvalue()

    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b[31m" in shown()
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[31m" not in shown()
    lines = re.sub(r"\x1b\[\d*m", "", shown()).splitlines()
    at = next(number for number, line in enumerate(lines) if line.startswith("PROBLEM       store: the disk"))
    assert re.match(r" {14}\S", lines[at + 1])
    assert max(map(len, lines)) <= 80


def test_status_shows_the_outbox(run, books):
    """Status shows how many events wait for the store and how many reservations are open, and the oldest of each."""
    books.add(started_at=NOON - 90 * SECOND)
    books.add(started_at=NOON - 5 * SECOND)
    books.reserve(started_at=NOON - 30 * SECOND)
    books.reserve(started_at=NOON - 60 * SECOND)
    status = run.json("status")
    size = books.ledger.waiting().size
    assert size > 200
    assert status["outbox"] == {"events": 2, "bytes": size, "oldest_seconds": 90.0}
    assert status["reservations"] == {"open": 2, "oldest_seconds": 60.0}
    table = run.ok("status")
    assert f"2 events waiting for the store ({size} bytes), the oldest for 90 s" in table
    assert "2 open, the oldest for 60 s" in table
    books.flush()
    assert run.json("status")["outbox"] == {"events": 0, "bytes": 0, "oldest_seconds": None}


def test_status_lists_living_workers(run, books):
    """Status lists the workers that are alive, and not those that have left."""
    worker = books.parts.workers()
    worker.join()
    assert run.json("status")["workers"] == [{"name": worker.name, "host": platform.node(), "pid": os.getpid()}]
    worker.leave()
    assert run.json("status")["workers"] == []
    assert "none: the proxy is not running" in run.ok("status")


def test_status_counts_refusals_by_limit_and_names_blocked_subjects(run, refuse):
    """Refusals of the last 15 minutes are counted by limit and reason; blocked subjects are listed by frequency."""
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


def test_a_subject_that_only_has_to_wait_is_not_blocked(run, refuse):
    """A refusal that a short wait resolves, or a dry run's, is counted and blocks no subject."""
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
    """The screen shows the folder, workers, outbox, reservations, refusals and blocked subjects."""
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
        "Blocked subjects",
        "daily [red]ann[/red] 2",
    ):
        assert part in text


def test_rows_of_the_status_are_its_refusals(run, refuse):
    """CSV and JSON lines of the status hold the refusals, a row each."""
    refuse("daily", "ann", count=2)
    assert run.jsonl("status") == [{"limit": "daily", "reason": "spent", "count": 2}]
    assert run.csv("status") == [{"limit": "daily", "reason": "spent", "count": "2"}]


def test_status_shows_anomalies(run, books):
    """Anomalies of the last week are shown by kind, with the most frequent models; older ones are not."""
    books.operations.count_anomalies([
        Anomaly("estimated", "gpt", 3, 10_000_000, NOON - DAY, NOON - MINUTE),
        Anomaly("recovered", "", 1, 0, NOON - 30 * DAY, NOON - 8 * DAY),
    ])  # fmt: skip
    (found,) = run.json("status")["anomalies"]
    assert (found["kind"], found["concerns"], found["times"]) == ("estimated", "gpt", 3)
    text = " ".join(run.ok("status").split())
    assert "estimated 3 0.01 USD 2026-11-23 11:59 UTC gpt 3" in text
    assert "recovered" not in text


def test_status_shows_adjustments_in_force(run, books):
    """Adjustments by raise and pause are on the screen while they are in force."""
    run.ok("raise", "daily", "--user", "ann", "--to", "50", "--for", "12h", "--reason", "a big day")
    (found,) = run.json("status")["adjustments"]
    assert (found["limit"], found["subject"], found["after"]) == ("daily", {"user": "ann"}, "50.00")
    assert "a big day" in run.ok("status")
    run.ok("resume", "daily", "--user", "ann")
    assert run.json("status")["adjustments"] == []


def test_status_shows_problems_that_workers_tell_of(run, books):
    """A problem that a worker noted is shown, with control characters escaped."""
    HealthNotes(FakeClock()).tell(books.operations, "store", "disk \x1b[31mfull")
    books.operations.note("other", "nothing")
    (found,) = run.json("status")["problems"]
    assert (found["name"], found["since"]) == ("store", to_datetime(FakeClock().now()).isoformat())
    assert "full" in found["text"]
    text = run.ok("status")
    assert "PROBLEM       store: disk \\x1b[31mfull" in text
    assert "\x1b" not in text
    books.operations.note("problem:store", None)
    assert run.json("status")["problems"] == []


def test_status_shows_how_far_back_history_goes(run, books, config_path):
    """The oldest event, the store's size, how long things are kept and a secret that is missing are on the screen."""
    books.add(started_at=NOON)
    books.flush()
    text = config_path.read_text()
    config_path.write_text(text + "  retention: {events: 30d, daily: unlimited, max_size: 10GB}\n")
    shown = run.ok("status")
    assert "events since 2026-11-23" in shown
    assert "kept: events 30 days, daily sums forever, at most 10,000,000,000 bytes" in shown
    note_secret(books.operations, books.pseudonyms, books.parts.secret, NOON)
    assert "secret" not in run.ok("status")
    books.parts.secret_path.unlink()
    assert "secret is missing" in run.ok("status")
