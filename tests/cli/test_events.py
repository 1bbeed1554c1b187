from __future__ import annotations

import json

import pytest

from usage_plugin.domain.subjects import clean_name
from usage_plugin.testing.builders import NOON

PROMISED = {
    "event_id", "started_at", "duration_ms", "status", "user", "team", "api_key", "end_user", "organization", "session",
    "tags", "model", "served_model", "provider", "call_type", "input_tokens", "output_tokens", "cached_input_tokens",
    "reasoning_tokens", "cost", "cost_source", "cache_hit", "error",
}  # fmt: skip

HOSTILE = [
    "[red]x[/red]", "[/red]", "[link=file:///etc/passwd]x[/link]", "用户 👩", "a,b", 'a"b', "a'b", "=1+1", "a\\b", ":smile:",
    "%s{0}", "../../x", "<script>", "x" * 60, "--help", "-",
]  # fmt: skip


def test_an_event_has_the_promised_fields(run, books):
    """An event as JSON has at least the documented fields, times in RFC 3339 and money as decimal strings."""
    event = books.add(
        user="ann", team="research", api_key="hash-1", end_user="end-ann", organization="corp", session="s-1",
        tags=("prod", "batch"), served_model="gpt-5-2026", duration_us=1_234_500, cached_input_tokens=4,
        cache_write_tokens=3, reasoning_tokens=2, cost=10_000_001, reserved=50_000_000, usage={"prompt_tokens": 10},
        started_at=NOON + 1, call_id="call-1", requested_model="alias", deployment="dep-1",
    )  # fmt: skip
    (found,) = run.json("events")["events"]
    assert found.keys() >= PROMISED
    assert {name: found[name] for name in PROMISED} == {
        "event_id": event.event_id, "started_at": "2026-11-23T12:00:00.000001+00:00", "duration_ms": 1234.5,
        "status": "success", "user": "ann", "team": "research", "api_key": "hash-1", "end_user": "end-ann",
        "organization": "corp", "session": "s-1", "tags": ["prod", "batch"], "model": "gpt", "served_model": "gpt-5-2026",
        "provider": "openai", "call_type": "acompletion", "input_tokens": 10, "output_tokens": 5,
        "cached_input_tokens": 4, "reasoning_tokens": 2, "cost": "0.010000001", "cost_source": "computed",
        "cache_hit": False, "error": None,
    }  # fmt: skip
    assert found["reserved"] == "0.05"
    assert found["usage"] == {"prompt_tokens": 10}


def test_an_event_without_a_price_has_no_cost(run, books):
    """An unknown cost is null in JSON and not a number, and the table shows that there is no price."""
    books.add(cost=None, cost_source="unpriced")
    (found,) = run.json("events")["events"]
    assert found["cost"] is None
    assert found["cost_source"] == "unpriced"
    assert "no price" in run.ok("events")


@pytest.mark.parametrize("flushed", [0, 2, 5])
def test_events_come_in_order_wherever_they_are(run, books, flushed):
    """The last events are shown oldest first, each once, whether the store has them or the outbox."""
    made = [books.add(user=f"user-{number}", started_at=NOON + number) for number in range(flushed)]
    books.flush()
    made += [books.add(user=f"user-{number}", started_at=NOON + number) for number in range(flushed, 5)]
    assert [event["event_id"] for event in run.json("events")["events"]] == [event.event_id for event in made]
    assert [event["user"] for event in run.json("events", "--last", "2")["events"]] == ["user-3", "user-4"]
    assert [event["user"] for event in run.json("events", "--last", "4")["events"]] == [
        "user-1",
        "user-2",
        "user-3",
        "user-4",
    ]


def test_late_settled_events_are_in_order_of_admission(run, books):
    """Events are ordered by admission: a long request precedes short ones that ended earlier."""
    slow = books.reserve(user="slow", started_at=NOON)
    books.add(user="quick", started_at=NOON + 5)
    books.flush()
    books.settle(slow)
    assert [event["user"] for event in run.json("events")["events"]] == ["slow", "quick"]


def test_open_reservations_are_no_events(run, books):
    """A request that has not ended is not an event yet."""
    books.reserve()
    assert run.json("events") == {"events": []}


def test_events_of_a_user(run, books):
    """--user takes the events of exactly this user, and --last counts those."""
    for number in range(5):
        books.add(user="ann" if number % 2 else "bo", started_at=NOON + number)
    books.flush()
    books.add(user="anna", started_at=NOON + 9)
    found = run.json("events", "--user", "ann", "--last", "1")["events"]
    assert [(event["user"], event["started_at"][-16:-6]) for event in found] == [("ann", "0:00.000003"[-10:])]
    assert len(run.json("events", "--user", "bo")["events"]) == 3
    assert run.json("events", "--user", "nobody") == {"events": []}


def test_twenty_events_are_shown_unless_asked_otherwise(run, books):
    """Without --last the last 20 events are shown."""
    for number in range(22):
        books.add(started_at=NOON + number)
    assert len(run.jsonl("events")) == 20
    assert len(run.jsonl("events", "--last", "100")) == 22


def test_many_events_are_read_page_by_page(run, books):
    """More events than a page of the outbox or the store holds are all shown, once each and in order."""
    for number in range(1_100):
        books.add(started_at=NOON + number)
    ids = [event["event_id"] for event in run.jsonl("events", "--last", "5000")]
    assert len(ids) == len(set(ids)) == 1_100
    books.flush()
    assert [event["event_id"] for event in run.jsonl("events", "--last", "5000")] == ids


@pytest.mark.parametrize("last", ["0", "-1", "many", "1.5"])
def test_an_impossible_number_of_events_ends_with_2(run, books, last):
    """--last takes whole numbers from 1."""
    assert run("events", "--last", last).exit_code == 2


def test_the_table_has_notes_on_an_event(run, books):
    """The table shows errors, cache hits, estimates and excess next to the numbers."""
    books.add(user="ann", status="failure", error="RateLimitError", cost=0)
    books.add(user="bo", cache_hit=True, cost=0)
    books.add(user="eva", estimated=True, excess=5_000_000)
    text = " ".join(run.ok("events").split())
    assert "Last 3 events (UTC)" in text
    assert "ann gpt failure 0 10 5 0.00 RateLimitError" in text
    assert "bo gpt success 0 10 5 0.00 cache hit" in text
    assert "eva gpt success 0 10 5 0.01 estimated, excess 0.005" in text


def test_every_format_has_the_same_events(run, books):
    """JSON lines and CSV hold the events of the JSON document; lists and mappings are JSON within CSV."""
    books.add(user="ann", tags=("a", "b"))
    books.add(user="bo", cost=None, started_at=NOON + 1)
    events = run.json("events")["events"]
    assert run.jsonl("events") == events
    rows = run.csv("events")
    assert [row["user"] for row in rows] == ["ann", "bo"]
    assert json.loads(rows[0]["tags"]) == ["a", "b"]
    assert rows[1]["cost"] == ""


def test_hostile_names_are_shown_as_they_are(run, books):
    """A name that looks like markup, CSV or an option is data: shown as it is, in every command and format."""
    assert [clean_name(name, what="user") for name in HOSTILE] == HOSTILE
    for number, name in enumerate(HOSTILE):
        books.add(user=name, team=name, started_at=NOON + number)
    assert {(row["user"], row["team"]) for row in run.json("report", "--by", "user,team")["rows"]} == {
        (name, name) for name in HOSTILE
    }
    assert sorted(row["team"] for row in run.csv("report", "--by", "team")) == sorted(HOSTILE)
    assert [row["user"] for row in run.jsonl("events")] == HOSTILE
    assert [row["user"] for row in run.csv("events")] == HOSTILE
    for table in (run.ok("report"), run.ok("events"), run.ok("limits")):
        assert all(name in table for name in HOSTILE)


@pytest.mark.parametrize("name", ["[red]x[/red]", "[/red]", "--help", "用户 👩"], ids=ascii)
def test_hostile_names_can_be_asked_for(run, books, name):
    """A name that looks like markup or an option finds its events and accounts."""
    books.add(user=name, team=name)
    books.add(user="ann")
    assert [row["user"] for row in run.jsonl("events", f"--user={name}")] == [name]
    assert run.json("report", f"--user={name}", f"--team={name}")["total"]["requests"] == 1
    assert f"Limits that count {name}" in run.ok("limits", f"--user={name}")


def test_long_names_are_shown_whole(run, books):
    """A name of the greatest length is folded in a table, and not one letter of it is cut off."""
    name = "x" * 256
    books.add(user=name, team=name)
    assert run.ok("report", "--by", "user").count("x") == run.ok("events").count("x") == 256
    assert run.csv("report", "--by", "team")[0]["team"] == name


@pytest.mark.parametrize("model", ["\x1b[2J\x1b[31mgpt", "a\nb", "a\rb", "\x9b31m", "\u202egpt"], ids=ascii)
def test_control_characters_in_a_model_name_do_not_reach_the_terminal(run, books, model):
    """A model name comes from the client: control characters and colour codes in it are escaped."""
    books.add(user="ann", model=model)
    for table in (run.ok("events"), run.ok("report", "--by", "model")):
        assert not set(table) & set("\x1b\x9b\r\u202e")
        assert (
            len(
                [
                    line
                    for line in table.splitlines()
                    if "gpt" in line or "ann" in line or "31m" in line or line.strip() in ("a", "b")
                ]
            )
            <= 1
        )
