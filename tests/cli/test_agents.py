"""The cost of a session and its agents: `report --by session,agent`, and the events of each."""

from __future__ import annotations

import asyncio
import json

import pytest

from usage_plugin.testing.builders import NOON, TODAY, make_sum, numbered_from

DAY = "2026-11-23"
SPAN = ("--since", DAY, "--through", DAY)


@pytest.fixture
def worked(books):
    """Two sessions of ann, one with a subagent, and a request of bo outside of any; some are stored, some wait."""
    for at, (user, session, agent) in enumerate(
        [("ann", "s-1", None), ("ann", "s-1", "explorer"), ("ann", "s-1", "explorer"), ("ann", "s-2", None), ("bo", None, None)]
    ):  # fmt: skip
        books.add(user=user, session=session, agent=agent, cost=10**9 * (at + 1), started_at=NOON + at)
        if at == 1:
            books.flush()
    return books


def groups(run, *arguments):
    found = run.json("report", *SPAN, *arguments)
    assert found["total"]["cost"] == {True: "10.00", False: "15.00"}["--user" in arguments]
    return {(row.get("session"), row.get("agent")): (row["requests"], row["cost"]) for row in found["rows"]}


def test_a_report_can_be_by_session_and_agent(run, worked):
    """Each session is a group, and each of its agents; a missing name is the main agent, or no session."""
    assert groups(run, "--by", "session,agent", "--user", "ann") == {
        ("s-1", None): (1, "1.00"), ("s-1", "explorer"): (2, "5.00"), ("s-2", None): (1, "4.00"),
    }  # fmt: skip
    assert groups(run, "--by", "session") == {
        ("s-1", None): (3, "6.00"),
        ("s-2", None): (1, "4.00"),
        (None, None): (1, "5.00"),
    }
    assert groups(run, "--by", "agent", "--top", "1") == {(None, None): (3, "10.00")}


def test_a_report_by_agent_and_day_is_in_order(run, worked):
    """As well as names there may be days, weeks and months."""
    worked.add(user="ann", session="s-1", agent="explorer", cost=10**9, started_at=NOON - 86_400_000_000)
    rows = run.json("report", "--since", "2026-11-22", "--through", DAY, "--by", "day,agent")["rows"]
    assert [(row["day"], row["agent"], row["cost"]) for row in rows] == [
        ("2026-11-22", "explorer", "1.00"), (DAY, None, "10.00"), (DAY, "explorer", "5.00"),
    ]  # fmt: skip


def test_events_can_be_those_of_a_session_or_an_agent(run, worked):
    """`events` shows only events with the given names."""
    assert [event["cost"] for event in run.json("events", "--session", "s-1")["events"]] == ["1.00", "2.00", "3.00"]
    found = run.json("events", "--session", "s-1", "--agent", "explorer", "--last", "1")["events"]
    assert [(event["session"], event["agent"], event["cost"]) for event in found] == [("s-1", "explorer", "3.00")]
    assert run.json("events", "--agent", "unknown")["events"] == []


def test_an_export_has_the_agent(run, worked, tmp_path):
    """The agent is a column of every format."""
    run.ok("export", "--events", "--since", DAY, "--to", str(tmp_path / "events.jsonl"))
    agents = [json.loads(line)["agent"] for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert agents == [None, "explorer", "explorer", None, None]


def test_days_without_events_cannot_be_grouped_by_agent(run, worked):
    """Where only sums are left, a report by session says so; it is never a part that looks like the whole."""

    async def migrate():
        async with worked.parts.open_store() as store:
            await store.append_sums("imported", numbered_from(1, [make_sum(day=TODAY, user="ann")]))

    asyncio.run(migrate())
    told = run("report", *SPAN, "--by", "session")
    assert told.exit_code == 1
    assert "Groups by session are summed from events" in told.stderr
