"""The promises of a store about deletion: old records by their date, a user's records by the name."""

from __future__ import annotations

import asyncio
from datetime import date
from typing import TYPE_CHECKING

from usage_plugin.domain.store import UsageFilter
from usage_plugin.domain.subjects import FORGOTTEN
from usage_plugin.domain.windows import start_of_day
from usage_plugin.testing.builders import (
    DAY,
    NOON,
    TODAY,
    batch_of,
    make_event,
    make_sum,
    numbered_from,
    sums_batch,
)
from usage_plugin.testing.openings import BERLIN
from usage_plugin.testing.store_model import (
    FIRST_DAY,
    LAST_DAY,
    StoreModel,
    contents_of,
    days_of,
    events_of,
    forget_all,
    prune_all,
    totals_in,
)

if TYPE_CHECKING:
    from usage_plugin.domain.store import UsageStore


class StoreDeletion:
    """The promises of deletion; `StoreContract` has the fixtures."""

    async def test_old_events_go_and_their_sums_stay(self, store: UsageStore) -> None:
        """Pruning deletes events admitted before an instant, keeps their sums, and the events do not return."""
        batch = batch_of("w", 1, 6)
        await store.append("w", batch)
        whole = await totals_in(store)
        assert await prune_all(store, batch[3][1].started_at, FIRST_DAY, most=100) == 3
        await store.append("w", batch)
        assert await events_of(store) == [event for _, event in batch[3:]]
        assert await totals_in(store) == whole

    async def test_old_days_go_with_their_events(self, store: UsageStore) -> None:
        """Pruning deletes sums of days before a day of the store's zone, imported or not, and all that day's events."""
        midnight = start_of_day(TODAY, BERLIN)
        events = [make_event(started_at=at) for at in (midnight - DAY, midnight - 1, midnight, midnight + 1)]
        await store.append("w", numbered_from(1, events))
        await store.append_sums("old", [(1, make_sum(day=date(2024, 2, 29))), (2, make_sum(day=TODAY))])
        await prune_all(store, 0, TODAY, most=100)
        assert await events_of(store) == events[2:]
        assert (await totals_in(store)).requests == 4
        assert {one.day for one in await days_of(store)} == {TODAY}

    async def test_pruning_goes_by_slices(self, store: UsageStore) -> None:
        """Pruning deletes at most the given number of records, and returns the number; 0 when there are no more."""
        await store.append("w", batch_of("w", 1, 10))
        await store.append_sums("old", sums_batch(4))
        counts = [await store.prune(events_before=2 * NOON, days_before=LAST_DAY, most=3) for _ in range(10)]
        assert max(counts) <= 3
        assert 0 not in counts[: counts.index(0)]
        assert set(counts[counts.index(0) :]) == {0}
        left = await contents_of(store)
        assert (left.events, left.sums, left.watermarks) == ([], {}, {"w": 10, "old": 4})

    async def test_a_user_is_forgotten_and_all_sums_stay(self, store: UsageStore) -> None:
        """No event names a forgotten user, as user or end user; their sums move to (forgotten), and add up."""
        events = [make_event(team="t") for _ in range(3)] + [
            make_event(user="bo", end_user="ann"),
            make_event(user="bo"),
        ]
        await store.append("w", numbered_from(1, events))
        await store.append_sums("old", [(1, make_sum(team="t"))])
        whole = await totals_in(store)
        books = StoreModel(BERLIN)
        books.append("w", numbered_from(1, events))
        books.append_sums("old", [(1, make_sum(team="t"))])
        books.forget("ann")
        await forget_all(store, "ann", most=2)
        assert await contents_of(store) == books.contents()
        assert await totals_in(store) == whole
        assert (await totals_in(store, UsageFilter(team="t"))).cost == 60_000_000
        await store.append("w", numbered_from(1, events))
        assert await contents_of(store) == books.contents()

    async def test_forgetting_takes_nobody_else(self, store: UsageStore) -> None:
        """Similar names, and teams and models of the same name, stay; an unknown user is not an error."""
        names = ("ann", "Ann", "an", "anna", "ann%", "a_n", "%", "ANN", "ann ")
        events = [make_event(started_at=NOON + number, user=name, session="ann") for number, name in enumerate(names)]
        events.append(make_event(started_at=NOON + 100, user="bo", team="ann", model="ann", api_key="ann"))
        await store.append("w", numbered_from(1, events))
        await forget_all(store, "ann", most=100)
        await forget_all(store, "%", most=100)
        assert await events_of(store) == [event for event in events if event.user not in ("ann", "%")]
        assert await store.forget("nobody", most=100) == 0
        assert (await totals_in(store, UsageFilter(team="ann"))).requests == 1

    async def test_forgetting_the_forgotten_changes_nothing(self, store: UsageStore) -> None:
        """Forgetting (forgotten) changes nothing: its sums stay."""
        await store.append("w", batch_of("w", 1, 9))
        await forget_all(store, "ann", most=100)
        before = await contents_of(store)
        assert await store.forget(FORGOTTEN, most=100) == 0
        assert await contents_of(store) == before

    async def test_forgetting_goes_by_slices(self, store: UsageStore) -> None:
        """Forgetting deletes or moves at most the given number of records; 0 means that there are no more."""
        await store.append("w", numbered_from(1, (make_event(model=f"m{number}") for number in range(5))))
        counts = [await store.forget("ann", most=3) for _ in range(8)]
        assert max(counts) <= 3
        assert sum(counts) >= 5
        assert 0 not in counts[: counts.index(0)]
        assert set(counts[counts.index(0) :]) == {0}

    async def test_forgetting_beside_appends_loses_no_sum(self, store: UsageStore) -> None:
        """Records of a user that arrive while the user is forgotten all count, and all names stay readable."""

        async def append() -> None:
            for number in range(1, 41):
                await store.append("w", [(number, make_event(started_at=NOON + number))])

        appending = asyncio.create_task(append())
        while not appending.done():
            await store.forget("ann", most=100)
            await asyncio.sleep(0)
        await appending
        await forget_all(store, "ann", most=100)
        found = await store.aggregate(["user"], date.min, date.max, UsageFilter())
        assert {user: totals.requests for (user,), totals in found.groups.items()} == {FORGOTTEN: 40}
        assert await events_of(store) == []

    async def test_the_size_is_what_is_in_use(self, store: UsageStore) -> None:
        """The size grows with stored records, and shrinks when they are deleted."""
        empty = await store.size()
        events = [make_event(user=f"user {number % 20}", session="s" * 500) for number in range(2_000)]
        await store.append("w", numbered_from(1, events))
        full = await store.size()
        assert full > empty + 100_000
        await prune_all(store, 2 * NOON, FIRST_DAY, most=10_000)
        assert await store.size() < empty + (full - empty) // 2
