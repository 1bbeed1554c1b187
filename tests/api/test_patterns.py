"""Patterns with a real ledger and a real store: the examined users, and the events read for them."""

from __future__ import annotations

import asyncio
from datetime import date, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest

from usage_plugin.api import UsagePattern, UsageTracker, open_tracker
from usage_plugin.domain.store import UsageFilter
from usage_plugin.domain.usage import UsageTotals
from usage_plugin.domain.windows import to_datetime
from usage_plugin.errors import UsagePluginError
from usage_plugin.testing.builders import DAY, NOON, make_event, make_rates, make_sum, numbered_from
from usage_plugin.tracking.analysis import patterns as searching

if TYPE_CHECKING:
    from usage_plugin.testing.clock import FakeClock

TODAY = date(2026, 11, 23)
USD = 10**9
SPENT = {"ann": 3, "bo": 5, "cy": 7, "dan": 9}
"""Dollars on each day of three months, by user, on two models of two providers."""


async def fill(tracker: UsageTracker, **fields: Any) -> None:
    sums = [
        make_sum(
            day=TODAY - timedelta(days=at), user=user, model=model, provider=provider,
            totals=UsageTotals(40, 0, 40 * prompt, 40 * 100, cost=dollars * USD // 2), **fields,
        )
        for at in range(91)
        for user, dollars in SPENT.items()
        for model, provider, prompt in (("small", "one", 500), ("large", "two", 600))
    ]  # fmt: skip
    await tracker._reader._store.append_sums("imported", numbered_from(1, sums))


def found(patterns: list[UsagePattern], kind: str) -> list[UsagePattern]:
    return [pattern for pattern in patterns if pattern.type == kind]


async def test_a_history_without_patterns_has_none(tracker: UsageTracker) -> None:
    """A constant history that is even over models and providers has no pattern."""
    assert await tracker.analyze_global_patterns() == []
    await fill(tracker)
    assert await tracker.analyze_global_patterns() == []
    assert await tracker.analyze_global_patterns(start=TODAY, end=TODAY + timedelta(days=99)) == []
    assert await tracker.analyze_global_patterns(start=date(2030, 1, 1), end=date(2030, 2, 1)) == []


async def test_a_users_change_has_amounts_in_dollars_and_its_hours(tracker: UsageTracker, clock: FakeClock) -> None:
    """A request counts at once; hours are included if there are events."""
    await fill(tracker)
    await tracker.record_usage("bo", cost="20.000000001", model="small", provider="one")
    clock.set(to_datetime(clock.now()) - timedelta(hours=2))
    await tracker.record_usage("bo", cost="10", model="small", provider="one")
    (pattern,) = await tracker.analyze_global_patterns()
    assert (pattern.type, pattern.affected_users) == ("sudden_change", ("bo",))
    assert pattern.cost_impact == Decimal("30.000000001")
    assert pattern.evidence["spent"] == Decimal("35.000000001")
    assert pattern.evidence["usual"] == Decimal("5.00")
    assert (pattern.evidence["first"], pattern.evidence["in_hours"]) == ("2026-11-23", "10, 12")
    assert pattern.confidence == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("backend", ["partitioned", "hybrid"])
async def test_files_are_asked_the_same(section: dict[str, Any], clock: FakeClock, backend: str) -> None:
    """A store without sums by hour, or without a ranking, has the same patterns by another way of reading."""
    async with open_tracker({**section, "storage": {"backend": backend}}, clock=clock) as tracker:
        await fill(tracker)
        await tracker.record_usage("bo", cost=30, model="small", provider="one")
        (pattern,) = await tracker.analyze_global_patterns()
        assert (pattern.type, pattern.affected_users, pattern.cost_impact) == ("sudden_change", ("bo",), 30)
        assert pattern.evidence["in_hours"] == "12"


async def test_patterns_of_models_and_providers_name_their_users(tracker: UsageTracker) -> None:
    """The affected users are ordered by cost; with 0 users to examine, none is named."""
    await fill(tracker)
    rates = {"small": make_rates(10**12, 10**12), "large": make_rates(3 * 10**12, 3 * 10**12)}
    (pattern,) = await tracker.analyze_global_patterns(prices=rates)
    assert (pattern.type, pattern.models) == ("cheaper_model", ("large", "small"))
    assert pattern.affected_users == ("dan", "cy", "bo", "ann")
    tokens = 30 * 4 * 40 * 700
    assert pattern.cost_impact == Decimal(tokens * 2) / 10**6
    (unnamed,) = await tracker.analyze_global_patterns(prices=rates, most_users=0)
    assert unnamed == pattern._replace(affected_users=())


async def every_hour(tracker: UsageTracker, weeks: int) -> None:
    """Record a dollar for bo at each hour from 8:00 to 17:00, on each day."""
    midnight = NOON - DAY // 2
    events = [
        make_event(started_at=midnight - day * DAY + hour * DAY // 24, user="bo", model="small", cost=USD)
        for day in range(1, 7 * weeks + 1)
        for hour in range(8, 18)
    ]
    await tracker._reader._store.append("proxy", numbered_from(1, events[::-1]))


async def test_an_expensive_hour_of_an_ordinary_day_is_found(
    tracker: UsageTracker, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An expensive hour is found if the user has few enough requests to read."""
    await every_hour(tracker, 5)
    clock.set(to_datetime(NOON - 3 * DAY))
    await tracker.record_usage("bo", cost=15, model="small", provider="openai")
    clock.set(to_datetime(NOON))
    changes = found(await tracker.analyze_global_patterns(), "sudden_change")
    assert {one.affected_users for one in changes} == {(), ("bo",)}
    for pattern in changes:
        assert (pattern.evidence["first"], pattern.evidence["hours"]) == ("2026-11-20T12:00+00:00", 1)
        assert (pattern.evidence["spent"], pattern.evidence["usual"]) == (16, 1)
    monkeypatch.setattr(searching, "MOST_EVENTS", 300)
    assert [one.affected_users for one in found(await tracker.analyze_global_patterns(), "sudden_change")] == [()]


async def test_a_year_is_looked_at_by_the_week(tracker: UsageTracker) -> None:
    """A pattern of three months is found in a year, with the same saving."""
    await fill(tracker)
    rates = {"small": make_rates(10**12, 10**12), "large": make_rates(3 * 10**12, 3 * 10**12)}
    (year,) = await tracker.analyze_global_patterns(
        start=TODAY - timedelta(days=364), end=TODAY + timedelta(days=1), prices=rates
    )
    assert year.evidence["requests"] == 91 * 4 * 40
    assert year.evidence["saving_share"] == round(2 / 3, 3)


async def test_only_the_top_users_are_examined(tracker: UsageTracker) -> None:
    """Users below the top are not examined, and the result has their highest spend."""
    await fill(tracker)
    for user in ("ann", "dan"):
        await tracker.record_usage(user, cost=60, model="small", provider="one")
    patterns = await tracker.analyze_global_patterns(most_users=1)
    assert [one.affected_users for one in found(patterns, "sudden_change")] == [("dan",)]
    known = searching.Known({}, tracker._runtime.limits, None, tracker._runtime.config.timezone)  # type: ignore[arg-type]
    search = await searching.find_patterns(
        tracker._reader, TODAY - timedelta(days=6), TODAY - timedelta(days=1), known, most_users=3
    )
    assert (search.users, search.users_in_all, search.least_spend) == (3, 4, 28 * 5 * USD)


async def test_a_user_who_will_exceed_a_limit_today_is_found(tracker: UsageTracker) -> None:
    """The projection is linear from noon; limits that only warn and past days are not reported."""
    await tracker.record_usage("ann", cost="0.60", model="small")
    await tracker.record_usage("bo", cost="0.50", model="small")
    (pattern,) = found(await tracker.analyze_global_patterns(), "limit_ahead")
    assert (pattern.affected_users, pattern.evidence["limit_name"]) == (("ann",), "daily")
    assert (pattern.evidence["projected"], pattern.cost_impact) == (Decimal("1.20"), Decimal("0.20"))
    assert not found(await tracker.analyze_global_patterns(end=TODAY), "limit_ahead")


async def test_costly_failures_are_found(tracker: UsageTracker) -> None:
    """Costly failures are found in the events."""
    for number in range(12):
        await tracker.record_usage(
            ("ann", "bo")[number % 2], cost="0.25", model="small", status="failure", error="Timeout"
        )
    (pattern,) = found(await tracker.analyze_global_patterns(), "costly_failures")
    assert (pattern.cost_impact, set(pattern.affected_users)) == (Decimal("3.00"), {"ann", "bo"})
    assert (pattern.evidence["tried_again"], pattern.evidence["requests"]) == (10, 12)


async def test_no_more_events_are_read_than_declared(
    tracker: UsageTracker, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Failures beyond the newest events are not found, and the evidence has the share of events that were read."""
    monkeypatch.setattr(searching, "MOST_EVENTS", 18)
    for number in range(30):
        await tracker.record_usage("ann", cost="1", model="small", status="failure" if number % 2 else "success")
        clock.advance(timedelta(seconds=1))
    assert found(await tracker.analyze_global_patterns(), "costly_failures") == []
    monkeypatch.setattr(searching, "MOST_EVENTS", 24)
    (pattern,) = found(await tracker.analyze_global_patterns(), "costly_failures")
    assert pattern.evidence["failed_and_paid"] == 12
    assert (pattern.evidence["requests_read"], pattern.evidence["requests_in_all"]) == (24, 30)


async def test_pseudonyms_stay_pseudonyms(section: dict[str, Any], clock: FakeClock) -> None:
    """Patterns contain a person's pseudonym, not the name."""
    async with open_tracker({**section, "privacy": {"user": "pseudonym"}}, clock=clock) as tracker:
        await tracker.record_usage("ann", cost="0.60", model="small")
        (pattern,) = found(await tracker.analyze_global_patterns(), "limit_ahead")
        assert pattern.affected_users[0].startswith("p-")
        assert "ann" not in pattern.description


async def test_a_frozen_reader_counts_moving_events_once(tracker: UsageTracker) -> None:
    """An event that moves from the outbox into the store between two queries is in both results, once."""
    await tracker.record_usage("ann", cost="1")
    reader = await tracker._reader.frozen()

    async def answers() -> list[Any]:
        ann = UsageFilter(user="ann")
        return [
            await reader.report(("user",), TODAY, TODAY),
            await reader.report((), TODAY, TODAY, ann),
            [event.event_id async for event in reader.events(usage_filter=ann)],
        ]

    before = await answers()

    async def moved() -> None:
        while tracker._runtime.ledger.waiting().events:
            await asyncio.sleep(0.02)

    await asyncio.wait_for(moved(), 30)
    assert await answers() == before
    assert [before[0][0].totals.requests, before[1][0].totals.requests, len(before[2])] == [1, 1, 1]


async def test_a_span_that_is_none_is_refused(tracker: UsageTracker) -> None:
    with pytest.raises(UsagePluginError, match="expected two dates, start before end"):
        await tracker.analyze_global_patterns(start=TODAY, end=TODAY)
