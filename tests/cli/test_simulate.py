"""`usage-plugin simulate`: recorded requests replayed against proposed limits."""

from __future__ import annotations

import asyncio
import tempfile
from datetime import date

import pytest

from usage_plugin.testing.builders import NOON
from usage_plugin.tracking.analysis import simulation

SECOND = 1_000_000
DAY = 24 * 3_600 * SECOND
CENT = 10_000_000

PROPOSED = """\
limits:
  - {name: small, per: user, window: day, max_cost: "0.05"}
  - {name: tried, per: team, window: month, max_cost: "0.03", dry_run: true}
"""


@pytest.fixture
def propose(tmp_path):
    def propose(text=PROPOSED):
        path = tmp_path / "proposed.yaml"
        path.write_text(text, encoding="utf-8")
        return ["simulate", "--limits", str(path)]

    return propose


@pytest.fixture
def recorded(books):
    """Ann's three requests in a row today, two of which ran at once; bo's one, and one of ann's last month."""
    books.add(user="ann", cost=2 * CENT, reserved=3 * CENT, started_at=NOON, duration_us=5 * SECOND, team="research")
    books.add(user="ann", cost=CENT, reserved=3 * CENT, started_at=NOON + 1, duration_us=9 * SECOND)
    books.add(user="ann", cost=2 * CENT, reserved=3 * CENT, started_at=NOON + 20 * SECOND, team="research")
    books.flush()
    books.add(user="bo", cost=CENT, started_at=NOON + 21 * SECOND)
    books.add(user="ann", cost=2 * CENT, started_at=NOON - 25 * DAY, team="research")
    return books


def test_the_document_has_the_refused_users_times_and_costs(run, recorded, propose):
    """One document has the totals, the sums by limit and by subject, the assumptions and the gaps."""
    found = run.json(*propose(), "--since", "today")
    assert {name: found[name] for name in list(found)[:10]} == {
        "first": "2026-11-23",
        "last": "2026-11-23",
        "requests": 4,
        "cost": "0.06",
        "refused": 1,
        "refused_cost": "0.01",
        "only_in_flight": 1,
        "first_refused_at": "2026-11-23T12:00:00.000001+00:00",
        "waited": 0,
        "held_as_cost": 1,
    }
    assert [(row["limit"], row["effect"], row["users"], row["requests"]) for row in found["limits"]] == [
        ("small", "refused", 1, 1), ("tried", "dry run", 1, 1),
    ]  # fmt: skip
    assert found["who"][1] == {
        "limit": "small", "effect": "refused", "subject": {"user": "ann"}, "user": "ann", "requests": 1, "cost": "0.01",
        "only_in_flight": 1, "first_at": "2026-11-23T12:00:00.000001+00:00", "reasons": {"busy": 1},
    }  # fmt: skip
    assert found["notes"][0].startswith("Requests that were refused at the time have no event")
    assert found["notes"][1].startswith("Events without a recorded hold: 1. Their cost was used as the hold")


def test_programs_get_the_rows(run, recorded, propose):
    """CSV and JSON lines have a row for each affected subject."""
    who = run.json(*propose())["who"]
    assert run.jsonl(*propose()) == who
    assert [row["cost"] for row in run.csv(*propose())] == [row["cost"] for row in who]


def test_people_get_two_tables_and_a_verdict(run, recorded, propose):
    """A table of limits, a table of affected subjects, and the total in a sentence."""
    shown = run.ok(*propose(), "--since", "today")
    assert "Effect of the limits from 2026-11-23 to 2026-11-23 (UTC)" in shown
    assert "Affected subjects\n" in shown
    assert (
        "Refused: 1 of 4 requests, which cost 0.01 of 0.06 USD; 1 of them only because of other requests in flight."
        in shown
    )
    assert "Affected subjects, top 1 of 2 by cost" in run.ok(*propose(), "--since", "today", "--top", "1")


def test_a_limit_without_refusals_is_shown_too(run, recorded, propose):
    """A row of nothing says that the limit was looked at."""
    found = run.json(*propose("limits: [{name: huge, per: user, window: day, max_cost: 1000}]"))
    assert [(row["limit"], row["effect"], row["requests"]) for row in found["limits"]] == [("huge", "refused", 0)]
    assert "Refused: 0 of 5 requests" in run.ok(*propose("limits: [{name: huge, per: user, window: day, max_cost: 1}]"))


@pytest.mark.parametrize(
    ("window", "more", "refused"),
    [
        ("month", "", 1),  # of the month before today: nothing
        ("quarter", "", 2),  # 2 cents in October, out of the daily sums
        ("{rolling: 40d}", "", 2),  # out of the events
        ("quarter", ", count_from: now", 1),
    ],
)
def test_windows_hold_earlier_spend(run, recorded, propose, window, more, refused):
    """A limit counts the earlier spend of its open windows, as a new limit does."""
    text = f'limits: [{{name: one, per: user, match: {{user: ann}}, window: {window}, max_cost: "0.05"{more}}}]'
    found = run.json(*propose(text), "--since", "today")
    assert found["requests"] == 4
    assert found["refused"] == refused


def test_requests_without_an_event_are_named(run, recorded, propose, books):
    """Sums stay when events are pruned; a replay says that it could not ask for them."""

    async def prune():
        async with books.parts.open_store() as store:
            await store.prune(events_before=NOON + 10 * SECOND, days_before=date(2020, 1, 1), most=99)

    asyncio.run(prune())
    found = run.json(*propose(), "--since", "today")
    assert (found["requests"], found["without_event"]) == (2, 2)
    assert any("never existed: 2. They are not replayed" in note for note in found["notes"])


def test_waiting_is_replayed_as_configured(run, recorded, propose, config_path):
    """The hold that is in the way ends a second later; `max_wait` is two seconds unless the YAML says less."""
    text = 'limits: [{name: small, per: user, window: day, max_cost: "0.05"}]'
    recorded.add(user="cy", cost=CENT, reserved=3 * CENT, started_at=NOON, duration_us=SECOND)
    recorded.add(user="cy", cost=CENT, reserved=3 * CENT, started_at=NOON + 1)
    assert run.json(*propose(text))["waited"] == 1
    config_path.write_text(
        config_path.read_text().replace("data_dir: ./data", "data_dir: ./data\n  admission: {max_wait: 0s}")
    )
    assert run.json(*propose(text))["waited"] == 0


def test_groups_are_those_of_the_configuration(run, recorded, propose):
    """A limit of the file may speak of a group of the YAML, and of no other."""
    text = 'limits: [{name: one, per: user, window: day, match: {group: %s}, max_cost: "0.01"}]'
    assert run.json(*propose(text % "power"))["refused"] == 0
    result = run(*propose(text % "nobody"))
    assert result.exit_code == 1
    assert "limit one: expected a name in groups" in result.stderr


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("limits: [{name: one, per: user, window: day, max_budget: 5}]", "max_budget: found 5; write max_cost"),
        ("limits: [{name: one, per: user, window: day}]", "exactly one of max_cost"),
        ("usage_plugin: {limits: []}", "usage_plugin: found"),
        ("limits: [", "Invalid YAML in"),
    ],
)
def test_a_file_is_read_as_strictly_as_the_configuration(run, recorded, propose, text, told):
    """Mistakes end with 1 and the same words, and nothing is replayed."""
    result = run(*propose(text))
    assert (result.exit_code, result.stdout) == (1, "")
    assert told in result.stderr


def test_a_file_that_is_not_there_is_named(run, recorded, tmp_path):
    """The path is in the message."""
    result = run("simulate", "--limits", str(tmp_path / "none.yaml"))
    assert result.exit_code == 1
    assert "none.yaml: No such file" in result.stderr


def test_nothing_is_left_behind(run, recorded, propose, tmp_path, monkeypatch):
    """The replay's ledger is deleted, and the data folder is as it was."""
    place = tmp_path / "tmp"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    before = run.json("limits"), run.json("report", "--since", "40d")
    run.ok(*propose())
    assert list(place.iterdir()) == []
    assert (run.json("limits"), run.json("report", "--since", "40d")) == before


def test_persons_with_pseudonyms_are_matched_by_their_names(run, books, propose, config_path):
    """With `privacy: {user: pseudonym}` a limit of the file may write real names, as the YAML may."""
    config_path.write_text(
        config_path.read_text().replace("data_dir: ./data", "data_dir: ./data\n  privacy: {user: pseudonym}")
    )
    kept = books.pseudonyms.of_person("ann")
    books.add(user=kept, cost=2 * CENT)
    books.add(user=books.pseudonyms.of_person("bo"), cost=2 * CENT)
    text = 'limits: [{name: one, per: user, window: day, match: {user: ann}, max_cost: "0.01"}]'
    assert [row["user"] for row in run.json(*propose(text))["who"]] == [kept]


def test_subjects_beyond_the_bound_are_shown_as_others(run, recorded, propose, monkeypatch):
    """The sums of a limit stay right, and the number of users says that there are more."""
    monkeypatch.setattr(simulation, "MOST_TALLIED", 0)
    text = 'limits: [{name: one, per: user, window: day, max_cost: "0.001"}]'
    found = run.json(*propose(text))
    assert [(row["subject"], row["user"], row["requests"]) for row in found["who"]] == [
        ({"subject": "(others)"}, "(others)", 5)
    ]
    assert (found["refused"], found["limits"][0]["users"], found["limits"][0]["requests"]) == (5, 0, 5)
    assert "0 +" in run.ok(*propose(text))
