from __future__ import annotations

import json

import pytest

from usage_plugin.domain.ledger import Balance
from usage_plugin.encoding import encode_event
from usage_plugin.testing.builders import NOON, make_event

SECOND = 1_000_000
MINUTE = 60 * SECOND
HOUR = 60 * MINUTE
DAY = 24 * HOUR


def event_id(at, number=0):
    """A UUIDv7 as the proxy makes one at an instant."""
    bits = f"{at // 1000:012x}7{number:03x}8000000000000000"
    return f"{bits[:8]}-{bits[8:12]}-{bits[12:16]}-{bits[16:20]}-{bits[20:]}"


def words(text):
    return [" ".join(line.split()) for line in text.splitlines()]


def by_name(document):
    return {row["name"]: row for row in document["limits"]}


# ── a refusal ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_refusal_is_explained_by_its_ref(run, refuse):
    """A refusal's ref, which the client received, finds its facts; amounts are decimal strings."""
    refuse()
    found = run.json("explain", "0123ABCD")
    assert {name: value for name, value in found.items() if name not in ("why", "now", "limits")} == {
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
    assert "why the amount is used up: 4.98 spent + 0.01 reserved + 0.12 needed = 5.11 of 5.00" in lines
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
    """A refusal by a limit that never resets can be recorded, shown and explained."""
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


def test_a_refusal_is_explained_with_current_balances(run, books, refuse):
    """Next to the numbers at the time of refusal, the current balance of every matching limit is shown."""
    refuse()
    books.add(user="ann", cost=4_000_000_000)
    found = run.json("explain", "0123ABCD")
    assert (found["spent"], by_name(found)["daily"]["spent"]) == ("4.98", "4.00")
    assert set(by_name(found)) == {"daily", "company", "tighter"}
    assert found["now"] == "Now daily would admit it: 1.00 left, 0.12 needed; resets: 2026-11-24 00:00 UTC."
    books.add(user="ann", cost=900_000_000)
    assert "would still refuse it: 0.10 left" in run.json("explain", "0123ABCD")["now"]
    run.ok("pause", "daily", "--user", "ann", "--for", "1h", "--reason", "demo")
    assert run.json("explain", "0123ABCD")["now"] == "Now daily would admit it: its amount is unlimited."


def test_a_refusal_by_a_removed_limit_is_explained(run, refuse, config_path):
    """After a change of the YAML, the numbers of the time are shown, and a note that the limit no longer exists."""
    refuse()
    config_path.write_text(config_path.read_text().replace("name: daily", "name: other"))
    found = run.json("explain", "0123ABCD")
    assert found["limit"] == "daily"
    assert found["now"] == "The limit daily no longer exists or no longer counts this request."


# ── an event ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_event_is_explained_by_its_id(run, books):
    """An event's id finds the event, its amount on each limit, and their balances, in the store or in the outbox."""
    name = event_id(NOON)
    books.add(event_id=name, user="ann", team="research", cost=10_000_000, reserved=20_000_000, duration_us=1_500_000)
    books.add(user="ann", cost=1)
    for _ in range(2):
        found = run.json("explain", name)
        assert (found["event_id"], found["user"], found["in_flight"]) == (name, "ann", False)
        limits = by_name(found)
        assert {limit: row["counted"] for limit, row in limits.items()} == {
            "daily": "0.01", "team-month": "0.01", "member": 1, "company": 15, "tighter": "0.01",
        }  # fmt: skip
        assert limits["daily"]["spent"] == "0.010000001"
        assert found["why"] == (
            "Admitted at 2026-11-23 12:00:00 UTC: every limit that counts it had room for its worst case, 0.02 USD."
            " It ended after 1,500 ms as success: cost 0.01 USD (computed)."
        )
        books.flush()
    lines = words(run.ok("explain", name.upper()))
    assert "user ann" in lines
    assert "0.01 daily user ann usd 5.00 0.010000001 0.00 4.989999999 2026-11-24 00:00 UTC" in lines


def test_an_event_of_a_closed_window_shows_that_window(run, books):
    """An event of yesterday counts on yesterday's account, not on today's; a month's still counts it."""
    name = event_id(NOON - DAY)
    books.add(event_id=name, started_at=NOON - DAY, user="ann", team="research", cost=30_000_000)
    books.add(user="ann", cost=1)
    limits = by_name(run.json("explain", name))
    assert limits["daily"]["spent"] == "0.03"
    assert limits["daily"]["window"]["end"] == "2026-11-23T00:00:00+00:00"
    assert limits["team-month"]["spent"] == "0.03"


def test_a_request_in_flight_is_explained_too(run, books):
    """A request in flight is found by the id of its future event, with its hold."""
    event = make_event(event_id=event_id(NOON), reserved=20_000_000)
    books.ledger.reserve(event.event_id, "worker-1", NOON, [], encode_event(event))
    found = run.json("explain", event.event_id)
    assert found["in_flight"] is True
    assert by_name(found)["daily"]["counted"] == "0.00"
    assert found["why"].endswith("It is in flight, and holds that amount.")


def test_an_unknown_event_ends_with_1(run, books):
    """An id that no event has ends with exit code 1, and says where ids are found."""
    books.add()
    result = run("explain", event_id(NOON))
    assert (result.exit_code, result.stdout) == (1, "")
    assert f"Event not found: {event_id(NOON)}." in result.stderr
    assert "usage-plugin events" in result.stderr


# ── a subject ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_subject_sees_every_limit_that_would_count_it(run, books):
    """For a user, each matching limit is shown with its remaining amount, and the most constrained one is named."""
    books.add(user="ann", team="research", cost=10_000_000)
    found = run.json("explain", "--user", "ann", "--team", "research")
    assert found["subject"] == {"user": "ann", "team": "research"}
    limits = by_name(found)
    assert {name: row["remaining"] for name, row in limits.items()} == {
        "daily": "4.99", "team-month": "499.99", "member": 99, "company": 999_985, "tighter": "0.01",
    }  # fmt: skip
    assert not any(row["refuses_now"] for row in limits.values())
    assert found["verdict"] == (
        "A request now is admitted if it needs at most 4.99 USD (daily) and 99 requests (member)"
        " and 999,985 total tokens (company)."
    )
    assert "Limits that count user ann, team research" in run.ok("explain", "--user", "ann", "--team", "research")


def test_the_limit_that_refuses_a_subject_now_is_named(run, books):
    """A spent limit is named as the one that refuses a request now, with its numbers and its reset."""
    books.add(user="ann", cost=5_000_000_000)
    found = run.json("explain", "--user", "ann")
    assert [name for name, row in by_name(found).items() if row["refuses_now"]] == ["daily"]
    sentence = "A request now is refused by daily (5.00 spent and 0.00 reserved of 5.00, resets: 2026-11-24 00:00 UTC)."
    assert found["verdict"] == sentence
    assert sentence in words(run.ok("explain", "--user", "ann"))
    assert by_name(run.json("explain", "--user", "eva"))["daily"]["refuses_now"], "an override of 0 refuses at once"


def test_a_dry_run_refuses_no_request(run, books):
    """A limit that is only counted is shown, and does not refuse."""
    books.add(user="ann", cost=30_000_000)
    found = run.json("explain", "--user", "ann")
    assert by_name(found)["tighter"]["remaining"] == "0.00"
    assert not by_name(found)["tighter"]["refuses_now"]
    assert found["verdict"].startswith("A request now is admitted")


def test_without_a_user_the_subject_is_not_anonymous(run, books):
    """Without --user no account of a user is shown, and a note says that other names may match more limits."""
    books.add(team="research")
    found = run.json("explain", "--team", "research")
    assert set(by_name(found)) == {"team-month", "company"}
    text = run.ok("explain", "--team", "research")
    assert "Other limits may count a request that also has --user." in text
    assert "(anonymous)" not in text
    assert "daily" in by_name(run.json("explain", "--user", "(anonymous)"))


@pytest.mark.parametrize(
    ("options", "counted"),
    [
        (["--model", "gpt"], True),
        (["--provider", "openai"], True),
        (["--model", "claude"], False),
        (["--api-key", "sk-secret"], True),
        (["--api-key", "746b4ad1ca9129e1caf080bf9406d43531b8bbf97f42cc1597ee4f3d4663938e"], True),
        (["--tag", "x"], True),
        (["--tag", "y"], False),
        (["--session", "s", "--end-user", "e", "--organization", "o"], True),
    ],
    ids=str,
)
def test_every_dimension_can_be_asked_for(run, books, config_path, options, counted):
    """Each dimension has an option; a model's provider comes from the YAML, and a key is known by its hash."""
    key = "746b4ad1ca9129e1caf080bf9406d43531b8bbf97f42cc1597ee4f3d4663938e"
    more = [
        "{name: m, per: provider, match: {provider: openai}, window: day, max_cost: 1}",
        f"{{name: k, per: api_key, match: {{api_key: {key}}}, window: day, max_cost: 1}}",
        "{name: t, per: tag, match: {tag: x}, window: day, max_cost: 1}",
        "{name: s, per: [session, end_user, organization], window: day, max_cost: 1}",
    ]
    config_path.write_text(config_path.read_text() + "".join(f"    - {limit}\n" for limit in more))
    found = by_name(run.json("explain", *options))
    assert bool(set(found) & {"m", "k", "t", "s"}) is counted
    assert "sk-secret" not in json.dumps(found)


@pytest.mark.parametrize("arguments", [[], ["0123ABCD", "--user", "ann"]], ids=str)
def test_one_thing_is_explained_at_a_time(run, books, arguments):
    """Nothing, or a ref and a subject at once, is a mistake in writing."""
    assert run("explain", *arguments).exit_code == 2


def test_a_name_that_no_request_can_have_ends_with_1(run, books):
    """A name that would be refused in a request is refused here, too."""
    result = run("explain", "--user", "x" * 300)
    assert result.exit_code == 1
    assert "256" in result.stderr
