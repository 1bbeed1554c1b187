"""The promises of a store about sums: by every grouping, by day, of imported days, and with their watermarks."""

from __future__ import annotations

import asyncio
from datetime import date, timedelta
from itertools import groupby
from typing import TYPE_CHECKING, Any

from hypothesis import given, settings
from hypothesis import strategies as st

from usage_plugin.domain.store import GROUPINGS, UsageFilter
from usage_plugin.domain.usage import UsageTotals
from usage_plugin.domain.windows import start_of_day
from usage_plugin.testing.builders import DAY, NOON, TODAY, batch_of, make_event, make_sum, numbered_from
from usage_plugin.testing.child_processes import append_some
from usage_plugin.testing.generated_data import DAYS, DRAWN, EVENTS
from usage_plugin.testing.openings import BERLIN, StoreOpening
from usage_plugin.testing.store_model import (
    EVERYTHING,
    FIRST_DAY,
    LAST_DAY,
    StoreModel,
    contents_of,
    days_of,
    totals_in,
)

if TYPE_CHECKING:
    from usage_plugin.domain.store import UsageStore


class StoreSums:
    """The promises of sums; `StoreContract` has the fixtures."""

    @given(
        fields=st.lists(EVENTS, min_size=1, max_size=20),
        by=st.lists(st.lists(st.sampled_from(GROUPINGS), unique=True, max_size=4), min_size=1, max_size=6),
        span=st.tuples(DAYS, DAYS),
        wanted=st.fixed_dictionaries({"user": st.sampled_from((None, "ann")), "model": st.sampled_from((None, "gpt"))}),
    )
    @settings(DRAWN, max_examples=20)
    async def test_sums_are_exact_by_every_grouping(
        self,
        opening: StoreOpening,
        fields: list[dict[str, Any]],
        by: list[list[Any]],
        span: tuple[date, date],
        wanted: dict[str, str | None],
    ) -> None:
        """For every grouping and filter, groups are the sums of their events, to the nano-dollar."""
        events = [make_event(event_id=f"e{number:03}", **one) for number, one in enumerate(fields)]
        books = StoreModel(BERLIN)
        books.append("w", numbered_from(1, events))
        async with opening.another().open() as store:
            await store.append("w", numbered_from(1, events))
            for grouping in by:
                for first, last in ((FIRST_DAY, LAST_DAY), span):
                    sums = await store.aggregate(grouping, first, last, UsageFilter(**wanted))
                    assert sums.groups == books.aggregate(grouping, first, last, UsageFilter(**wanted))
                    assert all(isinstance(number, int) for totals in sums.groups.values() for number in totals)

    async def test_days_are_the_stores_zones(self, store: UsageStore) -> None:
        """A day is from midnight to midnight in the store's zone, also when clocks change; spans include both ends."""
        changes = (date(2026, 3, 29), date(2026, 10, 25), TODAY, date(2026, 12, 31))
        edges = [
            (day + timedelta(days=days), start_of_day(day + timedelta(days=days + after), BERLIN) - after)
            for day in changes
            for days in (0, 1)
            for after in (0, 1)
        ]
        await store.append("w", numbered_from(1, (make_event(started_at=at) for _, at in edges)))
        groups = (await store.aggregate(("day",), FIRST_DAY, LAST_DAY, EVERYTHING)).groups
        assert groups.keys() == {(day.isoformat(),) for day, _ in edges}
        assert {totals.requests for totals in groups.values()} == {2}
        days = [one.day for one in await days_of(store, TODAY, TODAY + timedelta(days=1))]
        assert days == [TODAY, TODAY + timedelta(days=1)]
        months = (await store.aggregate(("month",), changes[0], changes[-1], EVERYTHING)).groups
        assert {group: totals.requests for group, totals in months.items()} == {
            ("2026-03",): 4,
            ("2026-10",): 4,
            ("2026-11",): 4,
            ("2026-12",): 2,
        }

    async def test_daily_sums_stream_by_day(self, store: UsageStore) -> None:
        """Daily sums are ordered by day, with each combination of names once a day, for any number of events."""
        users = [f"u{number}" for number in range(8)]
        models = [f"m{number}" for number in range(50)]
        events = [
            make_event(user=user, model=model, started_at=NOON - day * DAY)
            for user in users for model in models for day in range(3) for _ in range(1 + day)
        ]  # fmt: skip
        await store.append("w", numbered_from(1, events))
        days = [TODAY - timedelta(days=2), TODAY - timedelta(days=1), TODAY]
        sums = await days_of(store, days[0], TODAY)
        runs = [(*run, len(list(found))) for run, found in groupby((one.day, one.totals.requests) for one in sums)]
        assert runs == [(day, 3 - at, 400) for at, day in enumerate(days)]
        assert len({(one.day, one.names) for one in sums}) == len(sums)
        wanted = UsageFilter(user="u7", model="m1")
        assert [one.day for one in await days_of(store, days[0], days[1], wanted)] == days[:2]

    async def test_imported_sums_add_to_the_days(self, store: UsageStore) -> None:
        """Sums of days without events are in the reports with those of events, and never among the events."""
        sums = [make_sum(), make_sum(model="gpt", provider="openai"), make_sum(), make_sum(day=date(2024, 2, 29))]
        books = StoreModel(BERLIN)
        for one in (books, store):
            for done in (one.append("w", batch_of("w", 1, 2)), one.append_sums("old", numbered_from(1, sums))):
                if done is not None:
                    await done
        assert await contents_of(store) == books.contents()
        by_model = (await store.aggregate(("day", "model"), FIRST_DAY, TODAY, UsageFilter(user="ann"))).groups
        assert by_model["2026-11-23", "unknown"].cost == 60_000_000
        assert by_model["2024-02-29", "unknown"] == sums[-1].totals

    async def test_an_empty_sum_adds_nothing(self, store: UsageStore) -> None:
        """An empty sum adds no day and no group, and counts as sent."""
        empty = make_sum(user="nobody", day=date(2020, 2, 29), totals=UsageTotals())
        await store.append_sums("old", [(1, make_sum()), (5, empty)])
        assert await store.watermark("old") == 5
        assert [one.day for one in await days_of(store)] == [TODAY]
        groups = (await store.aggregate(("user",), FIRST_DAY, LAST_DAY, EVERYTHING)).groups
        assert set(groups) == {("ann",)}

    async def test_sums_and_watermarks_belong_together(self, store: UsageStore) -> None:
        """Sums contain exactly the records up to their watermarks, also during concurrent appends."""
        writers = ("one", "two")
        appending = asyncio.gather(*(append_some(store, name, 40, lambda _: None) for name in writers))
        readings = 0
        while not appending.done():
            sums = await store.aggregate((), FIRST_DAY, LAST_DAY, EVERYTHING)
            counted = sums.groups.get((), UsageTotals()).requests
            assert counted == sum(sums.watermarks.values())
            readings += 1
            await asyncio.sleep(0)
        await appending
        assert readings
        assert (await totals_in(store)).requests == sum([await store.watermark(name) for name in writers])
