"""Forgetting and exporting a person, over the command line, on the real files."""

from __future__ import annotations

import json
import sqlite3
import stat
import threading
from contextlib import suppress
from pathlib import Path

import pytest
from click.testing import CliRunner

from usage_plugin.cli import main
from usage_plugin.domain.alerts import Alert, encode_alert
from usage_plugin.domain.operations import Adjustment, AlertKey
from usage_plugin.domain.profiles import UserProfile
from usage_plugin.domain.windows import Window
from usage_plugin.errors import LedgerBusyError
from usage_plugin.testing.builders import NOON
from usage_plugin.tracking.privacy import erasure

DAY = 86_400_000_000
LONG_AGO = NOON - 40 * DAY
NAME = "zoë.o'hara@corp"


@pytest.fixture
def filled(books, refuse, config_path, monkeypatch):
    """Zoë has something in every place; others have, too."""
    config_path.write_text(config_path.read_text() + "  retention: {events: unlimited, daily: unlimited}\n")
    for user in (NAME, "ann"):
        for at in (LONG_AGO, NOON - 60_000_000):
            books.add(user=user, team="research", started_at=at, end_user=user, api_key="k", session="s")
    books.add(user="bo", end_user=NAME, started_at=LONG_AGO)
    books.flush()
    refuse(user=NAME)
    refuse("member", user=NAME)
    refuse("team-month", user=NAME)
    (daily, _, member, *_) = books.limits.limits
    for limit, subject in ((daily, NAME), (member, f"research\x1f{NAME}"), (daily, "ann")):
        for at, end in ((LONG_AGO, LONG_AGO + DAY), (NOON, NOON + DAY)):
            alert = Alert(limit.name, limit.names_of(subject), 50, limit.unit, 1, 2, Window(at, end), at)
            books.operations.alert(AlertKey(limit.key, subject, at, 50), at, encode_alert(alert))
    for until in (NOON - DAY, NOON + DAY):
        books.operations.adjust(Adjustment(0, "daily", NAME, 1, 2, LONG_AGO, until, "root", f"for {NAME}"))
    books.profiles.put([UserProfile(NAME, email=NAME), UserProfile("ann")])
    event = {"user": NAME, "event_id": "x"}
    lines = [{"seq": 1, "event": event}, {"seq": 2, "event": {"user": "ann"}}, {"seq": 3, "event": "not JSON"}]
    (books.parts.config.data_dir / "unstorable.jsonl").write_text(
        "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    )
    return books


def files_with(books, text):
    """Return the files of the data folder that contain a text, in any of its encodings."""
    forms = {text.encode(), json.dumps(text)[1:-1].encode(), text.encode("utf-16-le")}
    folder = books.parts.config.data_dir
    return sorted(
        path.name for path in folder.rglob("*") if path.is_file() and any(form in path.read_bytes() for form in forms)
    )


def test_who_is_forgotten_stands_in_no_file(run, filled):
    """With --open-windows no byte of the name is left in the data folder, nor of the pseudonym but in the audit."""
    assert "usage.db" in files_with(filled, NAME)
    filled.add(user=NAME)
    before = run.json("report", "--by", "day,team,model", "--month", "2026-10")
    facts = run.json("forget", NAME, "--yes", "--open-windows", "--reason", "asked in May")
    assert files_with(filled, NAME) == []
    assert facts["deleted"].keys() == {
        "history", "profiles", "unstorable", "accounts", "alerts", "refusal_counts", "refusals", "adjustments", "outbox",
    }  # fmt: skip
    assert facts["left_in_open_windows"] == 0
    assert facts["not_reached"] == []
    assert run.json("report", "--by", "day,team,model", "--month", "2026-10") == before
    assert {row["user"] for row in run.json("report", "--by", "user", "--month", "2026-10")["rows"]} == {
        "ann",
        "bo",
        "(forgotten)",
    }
    assert run.json("events", "--user", NAME)["events"] == []
    # Others are as they were.
    assert len(run.json("events", "--user", "ann")["events"]) == 2
    assert filled.profiles.get("ann")
    assert "ann" in (filled.parts.config.data_dir / "unstorable.jsonl").read_text()
    assert filled.ledger.verify() == []


def test_what_was_put_aside_is_named(run, filled, config_path):
    """Forgetting deletes no file that was put aside, and says which there are."""
    folder = filled.parts.config.data_dir
    aside = sorted(str(folder / name) for name in ("migration_report.jsonl", "usage.db.before-restore-20261125T185549"))
    for name in aside:
        Path(name).write_text(NAME)
    assert run.json("forget", NAME, "--yes")["not_reached"] == aside
    said = run.ok("forget", NAME, "--yes")
    assert all(name in said.splitlines() for name in (f"  {name}" for name in aside))


def test_counts_of_open_windows_stay_until_the_windows_end(run, filled, config_path):
    """Without --open-windows limits keep their counts, and the output reports them."""
    before = run.json("limits", "--user", NAME)["limits"]
    facts = run.json("forget", NAME, "--yes")
    assert facts["left_in_open_windows"] > 0
    assert run.json("limits", "--user", NAME)["limits"] == before
    assert "--open-windows deletes them" in run.ok("forget", NAME, "--yes")
    kept = filled.erasable.find(NAME)
    assert all(account.window_end > NOON for account in kept.accounts)
    assert [one.until for one in kept.adjustments] == [NOON + DAY]
    assert files_with(filled, NAME) == ["ledger.db"]


def test_forgetting_again_changes_nothing(run, filled):
    """It can be repeated, and is audited each time."""
    run.json("forget", NAME, "--yes", "--open-windows", "--reason", "first")
    assert run.json("forget", NAME, "--yes", "--open-windows", "--reason", "second")["deleted"] == {}
    rows = run.json("audit", "--user", NAME)["audit"]
    assert [(row["action"], row["reason"]) for row in rows] == [("forget", "first"), ("forget", "second")]
    assert rows[0]["subject"] == filled.pseudonyms.of_person(NAME)
    assert rows[0]["actor"]
    assert rows[0]["counts"]["history"] > 0
    assert run.json("audit", "--user", "ann")["audit"] == []
    assert NAME not in run.ok("audit")


def test_a_team_of_the_same_name_is_not_forgotten(run, books):
    """Accounts and sums of a team that is called like a person stay."""
    books.add(user="ann", team=NAME, started_at=LONG_AGO)
    books.add(user=NAME, team=NAME)
    books.flush()
    run.json("forget", NAME, "--yes", "--open-windows")
    (row,) = [row for row in run.json("limits")["limits"] if row["name"] == "team-month"]
    assert (row["subject"], row["spent"]) == ({"team": NAME}, "0.01")
    assert {row["team"] for row in run.json("report", "--by", "team", "--since", "60d")["rows"]} == {NAME}


def test_records_under_a_pseudonym_are_erased_by_name(run, filled, config_path):
    """Whichever way names were kept, forgetting and exporting find both."""
    pseudonym = filled.pseudonyms.of_person(NAME)
    filled.add(user=pseudonym)
    filled.flush()
    config_path.write_text(config_path.read_text() + "  privacy: {user: pseudonym}\n")
    exported = [json.loads(line) for line in run.ok("export", "--user", NAME).splitlines()]
    assert {row["user"] for row in exported if row["kind"] == "event"} == {NAME, pseudonym, "bo"}
    run.json("forget", NAME, "--yes", "--open-windows")
    assert files_with(filled, NAME) == []
    assert run.json("events", "--user", pseudonym)["events"] == []


def test_an_export_has_everything(run, filled, tmp_path):
    """Every kind of record is in the file, once, and the file is its owner's only."""
    to = tmp_path / "zoe.jsonl"
    said = run.ok("export", "--user", NAME, "--to", str(to), "--reason", "asked for it")
    assert "3 event" in said
    assert stat.S_IMODE(to.stat().st_mode) == 0o600
    rows = [json.loads(line) for line in to.read_text().splitlines()]
    kinds = {row["kind"] for row in rows}
    assert kinds == {
        "profile", "event", "day", "account", "adjustment", "refusal", "refusals", "alert", "unstorable",
    }  # fmt: skip
    events = [row["event_id"] for row in rows if row["kind"] == "event"]
    assert len(events) == len(set(events)) == 3
    assert len([row for row in rows if row["kind"] == "day"]) == 3
    assert [row["email"] for row in rows if row["kind"] == "profile"] == [NAME]
    result = run("export", "--user", NAME, "--to", str(to))
    assert result.exit_code == 1
    assert f"File already exists: {to}." in result.stderr
    (row,) = run.json("audit")["audit"]
    assert (row["action"], row["counts"]["event"], row["reason"]) == ("export", 3, "asked for it")


def test_it_asks_first(filled, config_path, noon, monkeypatch):
    """Without a terminal --yes is needed; a declined prompt changes nothing."""
    arguments = ["--config", str(config_path), "forget", NAME]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert "--yes" in result.stderr
    monkeypatch.setattr("usage_plugin.cli.erasure.is_interactive", lambda: True)
    assert CliRunner().invoke(main, arguments, input="n\n").exit_code == 1
    assert filled.profiles.get(NAME)
    assert CliRunner().invoke(main, arguments, input="y\n").exit_code == 0
    assert filled.profiles.get(NAME) is None


def test_a_reason_must_not_keep_the_name(run, filled):
    """The audit is for good: a reason with the name in it is refused, before anything is deleted."""
    result = run("forget", NAME, "--yes", "--reason", f"{NAME.upper()} left")
    assert result.exit_code == 2
    assert "must not contain the name" in result.stderr
    assert filled.profiles.get(NAME)


def test_without_the_secret_no_record_is_erased(run, filled):
    """Without the secret the pseudonym cannot be found, so nothing is done."""
    filled.parts.secret_path.unlink()
    result = run("forget", NAME, "--yes")
    assert result.exit_code == 1
    assert "Secret not found" in result.stderr
    assert filled.profiles.get(NAME)


def test_events_on_their_way_are_brought_to_the_store_first(run, books):
    """The outbox is moved to the store first if no proxy is running, so that no record of the person is added later."""
    books.add(user=NAME)
    assert run.json("forget", NAME, "--yes", "--open-windows")["deleted"]["history"] == 2
    assert books.ledger.waiting().events == 0
    assert files_with(books, NAME) == []


def test_nothing_is_forgotten_while_the_store_is_behind(run, books, monkeypatch):
    """With a proxy whose store rejects events, erasure fails and deletes nothing; the audit has no counts."""
    monkeypatch.setattr(erasure, "WORKERS_TIMEOUT", 0.2)
    workers = books.parts.workers()
    workers.join()
    books.add(user=NAME)
    result = run("forget", NAME, "--yes")
    assert result.exit_code == 1
    assert "Nothing was forgotten" in result.stderr
    assert books.ledger.waiting().events == 1
    assert run.json("audit")["audit"][0]["counts"] == {}
    workers.leave()


def test_a_person_is_erased_while_the_ledger_is_busy(run, filled):
    """While others write to the ledger all the time, it takes longer and works."""
    stop = threading.Event()

    def write():
        opened = filled.parts.open_ledger()
        while not stop.is_set():
            with suppress(LedgerBusyError):
                opened.operations.note("busy", "x")
        opened.close()

    thread = threading.Thread(target=write)
    thread.start()
    try:
        assert run.json("forget", NAME, "--yes", "--open-windows")["deleted"]["history"] > 0
    finally:
        stop.set()
        thread.join()
    assert filled.profiles.get(NAME) is None


def test_adjustments_that_were_forgotten_are_not_in_force(run, filled):
    """Workers notice that an adjustment was deleted."""
    version = filled.operations.adjustments_version()
    run.json("forget", NAME, "--yes", "--open-windows")
    assert filled.operations.adjustments_version() > version


def test_the_schema_is_migrated(filled):
    """The audit has a table of its own, which an older file gets."""
    path = filled.parts.config.data_dir / "ledger.db"
    connection = sqlite3.connect(path)
    assert connection.execute("SELECT count(*) FROM audit").fetchone() == (0,)
    connection.close()
