"""Queries of the history, on every backend, while a part of it is still in the outbox."""

from __future__ import annotations

from collections import defaultdict
from contextlib import asynccontextmanager
from datetime import date, timedelta
from types import MappingProxyType
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from usage_plugin.domain.store import UsageFilter, daily_sum
from usage_plugin.domain.usage import UsageEvent, UsageTotals, totals_of
from usage_plugin.domain.windows import days_window, local_date, start_of_day
from usage_plugin.encoding import encode_event
from usage_plugin.errors import HistoryError, UsagePluginError
from usage_plugin.ledgers.sqlite import SqliteLedgerBackend
from usage_plugin.plugins.manager import Plugins
from usage_plugin.runtime import BUILTIN_PLUGINS
from usage_plugin.testing.builders import make_event, make_sum, record_new
from usage_plugin.testing.clock import FakeClock
from usage_plugin.testing.openings import BERLIN, LedgerOpening, StoreOpening
from usage_plugin.tracking.analysis.percentiles import percentiles
from usage_plugin.tracking.history.cache import UsageCache
from usage_plugin.tracking.history.packed_rows import ReportRow
from usage_plugin.tracking.history.reader import DayPosition, UsageReader

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    StorageOptions = Callable[[str], dict[str, Any]]

BACKENDS = Plugins(BUILTIN_PLUGINS, entry_points=False).storage_backends
FIRST, LAST = date(2026, 9, 20), date(2026, 11, 10)
TOKYO = ZoneInfo("Asia/Tokyo")
DAYS = st.dates(FIRST, LAST)
EVENTS = st.fixed_dictionaries(
    {
        "user": st.sampled_from(["ann", "bo", "cy"]),
        "team": st.sampled_from([None, "red"]),
        "model": st.sampled_from(["gpt", "mini", None]),
        "provider": st.sampled_from(["openai", "azure"]),
        "cost": st.none() | st.integers(0, 10**15),
        "output_tokens": st.integers(0, 5000),
        "status": st.sampled_from(["success", "failure", "cancelled"]),
        "duration_us": st.integers(0, 10**7),
        "started_at": st.builds(
            lambda day, second: start_of_day(day, BERLIN) + second * 1_000_000, DAYS, st.integers(0, 82_799)
        ),
    }
)
FILTERS = st.sampled_from(
    [{}, {"user": "ann"}, {"team": "red"}, {"model": "gpt"}, {"model": "mini", "provider": "azure"}]
)


@asynccontextmanager
async def reading(
    backend: str,
    folder: Path,
    events: Sequence[UsageEvent],
    stored: int,
    imported: int = 0,
    options: Mapping[str, Any] = MappingProxyType({}),
) -> AsyncIterator[UsageReader]:
    """A reader of a history with the given number of events in the store, and the rest in the outbox."""
    ledger = LedgerOpening(SqliteLedgerBackend(), folder / "ledger").open().ledger
    try:
        async with StoreOpening(BACKENDS[backend], folder / "store", options).open() as store:
            numbered = [(record_new(ledger, [], encode_event(event)).seq or 0, event) for event in events]
            await store.append(ledger.writer, numbered[:stored])
            # The last one is in both, as it is before it is acknowledged.
            if stored > 1:
                ledger.acknowledge(numbered[stored - 2][0])
            await store.append_sums("old", [(seq, make_sum(day=FIRST)) for seq in range(1, imported + 1)])
            cache = UsageCache(size=10, retention_days=90, zone=BERLIN)
            yield UsageReader(ledger, store, cache, BERLIN, FakeClock())
    finally:
        ledger.close()


def summed(events: Sequence[UsageEvent]) -> UsageTotals:
    total = UsageTotals()
    for event in events:
        total = total.plus(totals_of(event))
    return total


def joined(found: Sequence[UsageTotals]) -> UsageTotals:
    total = UsageTotals()
    for one in found:
        total = total.plus(one)
    return total


def dearest_first(groups: Iterable[tuple[tuple[str | None, ...], UsageTotals]]) -> list[ReportRow]:
    rows = [ReportRow(*one) for one in groups]
    return sorted(rows, key=lambda row: (-row.totals.cost, -row.totals.requests, [name or "" for name in row.group]))


@pytest.mark.parametrize("backend", BACKENDS)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
@given(fields=st.lists(EVENTS, max_size=25), data=st.data())
async def test_the_parts_are_the_whole(
    backend: str,
    fields: list[dict[str, Any]],
    data: st.DataObject,
    tmp_path_factory: pytest.TempPathFactory,
    storage_options: StorageOptions,
) -> None:
    """For any bucket, grouping, filter and zone, the parts add up to the total, to the nano-dollar."""
    events = [make_event(event_id=f"e{number:03}", **one) for number, one in enumerate(fields)]
    stored = data.draw(st.integers(0, len(events)))
    first, last = sorted((data.draw(DAYS), data.draw(DAYS)))
    wanted = UsageFilter(**data.draw(FILTERS))
    zone = ZoneInfo(data.draw(st.sampled_from(["Asia/Tokyo", "America/New_York", "Asia/Kolkata", "UTC"])))

    def total(of: ZoneInfo) -> UsageTotals:
        span = days_window(first, last, of)
        return summed([event for event in events if span.start <= event.started_at < span.end and wanted.takes(event)])

    folder = tmp_path_factory.mktemp("questions")
    async with reading(backend, folder, events, stored, options=storage_options(backend)) as reader:
        for by in ((), ("day",), ("week",), ("month",), ("user",), ("model", "provider"), ("month", "user", "team")):
            rows = await reader.report(by, first, last, wanted)
            assert joined([row.totals for row in rows]) == total(BERLIN), by
        for by in (("hour",), ("model",), ("hour", "model", "provider")):
            assert joined([row.totals for row in await reader.hours(by, first, last, wanted)]) == total(BERLIN), by
        assert joined([one.totals async for one in reader.days(first, last, wanted)]) == total(BERLIN)
        elsewhere = await reader.report(("day",), first, last, wanted, zone=zone)
        assert joined([row.totals for row in elsewhere]) == total(zone)
        assert all(first.isoformat() <= (row.group[0] or "") <= last.isoformat() for row in elsewhere)
        groups: defaultdict[tuple[str | None, ...], UsageTotals] = defaultdict(UsageTotals)
        for event in events:
            if first <= local_date(event.started_at, BERLIN) <= last and wanted.takes(event):
                groups[event.user, event.team] = groups[event.user, event.team].plus(totals_of(event))
        assert await reader.report(("user", "team"), first, last, wanted) == dearest_first(groups.items())
        users = await reader.report(("user",), first, last, wanted)
        top = await reader.top(("user",), first, last, wanted, most=2)
        assert (top.rows, top.in_all, top.total) == (users[:2], len(users), total(BERLIN))


@pytest.mark.parametrize("backend", BACKENDS)
async def test_a_stream_of_days_goes_on_behind_any_row(
    backend: str, tmp_path: Path, storage_options: StorageOptions
) -> None:
    """After any row, of a day that changes or not, a stream continues with each later row once, ordered by day."""
    events = [
        make_event(event_id=f"e{n}", user=f"u{n % 7}", started_at=start_of_day(FIRST, BERLIN) + n * 6 * 3_600_000_000)
        for n in range(24)
    ]
    async with reading(backend, tmp_path, events, stored=20, options=storage_options(backend)) as reader:
        rows = [(one, page.growing) async for page in reader.day_pages(FIRST, LAST) for one in page.rows]
        assert [one.day for one, _ in rows] == sorted(one.day for one, _ in rows)
        assert {growing for _, growing in rows} == {True, False}
        for at, (one, growing) in enumerate(rows):
            position = DayPosition(one.day, one.names, growing)
            rest = [
                (other, page.growing)
                async for page in reader.day_pages(FIRST, LAST, after=position)
                for other in page.rows
            ]
            assert rest == rows[at + 1 :]


async def test_a_row_that_is_gone_is_missed(tmp_path: Path) -> None:
    """A stream cannot continue after a row that no longer exists: it raises an error instead of skipping rows."""
    events = [make_event(event_id=str(n), user=f"u{n}") for n in range(3)]
    day = local_date(events[0].started_at, BERLIN)
    async with reading("sqlite", tmp_path, events, stored=3) as reader:
        rows = [one async for one in reader.days(day, day)]
        for names, growing in (((None,) * 7, True), (rows[0].names, False)):
            with pytest.raises(HistoryError, match=f"Start again from {day}"):
                _ = [page async for page in reader.day_pages(day, day, after=DayPosition(day, names, growing))]


@pytest.mark.parametrize("backend", BACKENDS)
async def test_another_zone_needs_all_events(backend: str, tmp_path: Path, storage_options: StorageOptions) -> None:
    """Days of another zone cannot be computed from imported daily sums, and the error explains it."""
    events = [make_event(event_id="1", started_at=start_of_day(FIRST, BERLIN) + 5)]
    async with reading(backend, tmp_path, events, 1, imported=1, options=storage_options(backend)) as reader:
        with pytest.raises(HistoryError, match="of 2 requests from 2026-09-19 to 2026-09-20") as raised:
            await reader.report(("day",), FIRST, FIRST, zone=TOKYO)
        assert "Europe/Berlin" in str(raised.value.hint)
        later = FIRST + timedelta(days=2)
        assert await reader.report(("day",), later, later, zone=TOKYO) == []


@settings(max_examples=20)
@given(fields=st.lists(EVENTS, min_size=1, max_size=60), points=st.lists(st.integers(1, 100), min_size=1, max_size=4))
async def test_percentiles_are_values_that_occur(fields: list[dict[str, Any]], points: list[int]) -> None:
    """A percentile is the nearest rank: the smallest value that at least that percentage of values does not exceed."""
    events = [make_event(event_id=str(number), **one) for number, one in enumerate(fields)]

    async def stream() -> AsyncIterator[UsageEvent]:
        for event in events:
            yield event

    by_model: defaultdict[str | None, list[int]] = defaultdict(list)
    for event in events:
        by_model[event.model].append(event.duration_us)
    for found in await percentiles(stream(), "duration", points, ("model",)):
        values = by_model.pop(found.group[0])
        assert found.events == len(values)
        for point, value in zip(points, found.values, strict=True):
            assert value == min(v for v in values if sum(w <= v for w in values) * 100 >= point * len(values))
    assert not by_model
    priced = [event for event in events if event.cost is not None]
    of_costs = await percentiles(stream(), "cost", [100], ())
    assert [found.values[0] for found in of_costs] == ([max(event.cost for event in priced)] if priced else [])


async def test_no_percentage_is_taken_that_is_none() -> None:
    """A percentage outside of 1 to 100 is an error that contains the value."""

    async def nothing() -> AsyncIterator[UsageEvent]:
        for _ in ():
            yield make_event()

    assert await percentiles(nothing(), "cost", [50], ()) == []
    for point in (0, 101):
        with pytest.raises(UsagePluginError, match=f"found {point}"):
            await percentiles(nothing(), "cost", [point], ())


@pytest.mark.parametrize(("backend", "users"), [("sqlite", 9_000), ("memory", 9_000), ("hybrid", 900)])
async def test_many_groups_come_in_order(backend: str, users: int, tmp_path: Path) -> None:
    """Thousands of groups are ordered by cost, then requests, then name, for any part of them in the outbox."""
    costs = [(number * 7919) % 500 for number in range(users)]
    sums = [
        make_sum(day=FIRST, user=f"u{number:05}", totals=UsageTotals(requests=1 + number % 2, cost=cost))
        for number, cost in enumerate(costs)
    ]
    noon = start_of_day(FIRST, BERLIN) + 12 * 3_600_000_000
    waiting = [
        make_event(event_id=f"e{number}", user=f"u{number * users // 15:05}", cost=number * 60, started_at=noon)
        for number in range(20)
    ]
    groups: defaultdict[tuple[str | None, ...], UsageTotals] = defaultdict(UsageTotals)
    for one in [*sums, *(daily_sum(event, BERLIN) for event in waiting)]:
        groups[one.user,] = groups[one.user,].plus(one.totals)
    async with reading(backend, tmp_path, waiting, stored=0) as reader:
        await reader._store.append_sums("old", list(enumerate(sums, 1)))
        assert await reader.report(("user",), FIRST, FIRST) == dearest_first(groups.items())
        assert (await reader.top(("user",), FIRST, FIRST, most=5)).rows == dearest_first(groups.items())[:5]
