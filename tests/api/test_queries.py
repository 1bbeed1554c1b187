"""Queries of the history in the Python API."""

from __future__ import annotations

import asyncio
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest

from usage_plugin.api import StreamedUsage, UsageTracker, open_tracker
from usage_plugin.errors import HistoryError, UsagePluginError

if TYPE_CHECKING:
    from usage_plugin.testing.clock import FakeClock

TODAY = date(2026, 11, 23)
SPAN: dict[str, Any] = {"start": TODAY, "end": date(2026, 11, 26)}


@pytest.fixture
async def recorded(tracker: UsageTracker, clock: FakeClock) -> UsageTracker:
    """A tracker with three days from Monday noon on: two requests of ann's each day, one of bo's."""
    for day in range(3):
        await tracker.record_usage("ann", cost="1.10", model="gpt", provider="openai", seconds=2, input_tokens=10)
        await tracker.record_usage("ann", cost="0.20", model="mini", provider="openai", seconds=1)
        clock.advance(timedelta(hours=1))
        await tracker.record_usage("bo", cost=3 * day, model="gpt", provider="openai", seconds=4)
        clock.advance(timedelta(hours=23))
    return tracker


async def test_sums_come_in_buckets_of_time(recorded: UsageTracker) -> None:
    """Sums have buckets of a day, week, month or hour, each with the requested names."""

    async def costs(**how: Any) -> dict[tuple[str | None, ...], Decimal]:
        return {row.group: row.usage.cost for row in await recorded.aggregate(**SPAN, **how)}

    assert await costs(bucket="day") == {
        ("2026-11-23",): Decimal("1.30"), ("2026-11-24",): Decimal("4.30"), ("2026-11-25",): Decimal("7.30")
    }  # fmt: skip
    assert await costs(bucket="week", by=["user"]) == {
        ("2026-11-23", "ann"): Decimal("3.90"),
        ("2026-11-23", "bo"): 9,
    }
    assert await costs(bucket="month", user="bo") == {("2026-11",): 9}
    hours = await costs(bucket="hour", by=["model"], model="mini")
    assert list(hours) == [(f"2026-11-{day}T11:00+00:00", "mini") for day in (23, 24, 25)]
    assert await costs(zone="Asia/Tokyo", bucket="day", user="bo") == {
        ("2026-11-23",): 0, ("2026-11-24",): 3, ("2026-11-25",): 6
    }  # fmt: skip


async def test_names_are_spelled_as_they_are_kept(section: dict[str, Any], clock: FakeClock) -> None:
    """With `identity.casefold`, a query for Ann finds ann, as a record for Ann does."""
    async with open_tracker({**section, "identity": {"casefold": True}}, clock=clock) as tracker:
        await tracker.record_usage("Ann", cost=1, model="gpt")
        (row,) = await tracker.aggregate(("user",), **SPAN, user="ANN", model="gpt")
        assert row.group == ("ann",)
        assert not await tracker.aggregate(("user",), **SPAN, model="GPT")


async def test_top_returns_only_the_top_groups(recorded: UsageTracker) -> None:
    """The result also has the number of all groups, and their total."""
    found = await recorded.top(["user"], **SPAN, most=1)
    assert [(row.group, row.usage.cost) for row in found.rows] == [(("bo",), 9)]
    assert (found.in_all, found.total.cost, found.total.requests) == (2, Decimal("12.90"), 9)
    assert await recorded.distinct_users(**SPAN) == 2
    assert await recorded.distinct_users(**SPAN, model="mini") == 1


async def test_percentiles_of_time_and_money(recorded: UsageTracker) -> None:
    """Percentiles are values that occur, by the nearest rank."""
    by_model = {row.group: row for row in await recorded.percentiles("duration", (50, 100), ["model"], **SPAN)}
    assert by_model["gpt",].events == 6
    assert by_model["gpt",].values == {50: timedelta(seconds=2), 100: timedelta(seconds=4)}
    (costs,) = await recorded.percentiles("cost", **SPAN)
    assert costs.values == {50: Decimal("1.10"), 95: 6, 99: 6}


async def test_a_stream_goes_on_behind_a_cursor(recorded: UsageTracker) -> None:
    """A stream of days continues after a row's cursor, a stream of events after an event."""
    # A cursor differs between days that still change and days that do not: a day must not change kind in between.
    while recorded._runtime.ledger.waiting().events:
        await asyncio.sleep(0.01)
    rows = [row async for row in recorded.stream_usage(**SPAN)]
    assert isinstance(rows[0], StreamedUsage)
    assert [(row.bucket, row.user, row.model) for row in rows] == [
        (f"2026-11-{day}", user, model)
        for day in (23, 24, 25)
        for user, model in (("ann", "gpt"), ("ann", "mini"), ("bo", "gpt"))
    ]
    assert sum(row.usage.cost for row in rows) == Decimal("12.90")
    assert [row async for row in recorded.stream_usage(**SPAN, after=rows[4].cursor)] == rows[5:]
    hours = [row async for row in recorded.stream_usage(**SPAN, bucket="hour")]
    expected = [("23T11:00", "gpt"), ("23T11:00", "mini"), ("23T12:00", "gpt")]
    assert [(row.bucket[8:16], row.model) for row in hours[:3]] == expected
    assert sum(row.usage.cost for row in hours) == Decimal("12.90")
    for at, row in enumerate(hours):
        assert [one async for one in recorded.stream_usage(**SPAN, bucket="hour", after=row.cursor)] == hours[at + 1 :]
    events = [event async for event in recorded.events()]
    assert [event async for event in recorded.events(after=events[2])] == events[3:]
    assert [event async for event in recorded.events(after=events[2], newest_first=True)] == events[1::-1]


@pytest.mark.parametrize(
    ("how", "what"),
    [
        ({"start": TODAY, "end": TODAY}, "two dates"),
        ({"start": datetime(2026, 11, 23), "end": datetime(2026, 11, 24)}, "two dates"),  # noqa: DTZ001
        ({**SPAN, "zone": "Mars/Olympus"}, "found Mars/Olympus"),
        ({**SPAN, "bucket": "hour", "by": ["user"]}, "by model and provider"),
        ({**SPAN, "colour": "red"}, "expected some of user, .*; found colour"),
    ],
)
async def test_an_invalid_query_is_an_error(tracker: UsageTracker, how: dict[str, Any], what: str) -> None:
    """The error contains the invalid value and the valid ones."""
    with pytest.raises(UsagePluginError, match=what):
        await tracker.aggregate(**how)


async def test_a_cursor_must_be_one(recorded: UsageTracker) -> None:
    """An invalid cursor is named; a cursor of another filter finds no row; weeks are summed, not streamed."""
    with pytest.raises(UsagePluginError, match="found week"):
        _ = [row async for row in recorded.stream_usage(**SPAN, bucket="week")]
    (hour, *_) = [row async for row in recorded.stream_usage(**SPAN, bucket="hour")]
    with pytest.raises(UsagePluginError, match="expected the cursor of a day"):
        _ = [row async for row in recorded.stream_usage(**SPAN, after=hour.cursor)]
    for cursor in ("x", "[]", '["2026-11-23", true]'):
        with pytest.raises(UsagePluginError):
            _ = [row async for row in recorded.stream_usage(**SPAN, after=cursor)]
    (row, *_) = [row async for row in recorded.stream_usage(**SPAN, user="bo")]
    with pytest.raises(HistoryError, match="Start again from 2026-11-23"):
        _ = [one async for one in recorded.stream_usage(**SPAN, user="ann", after=row.cursor)]
