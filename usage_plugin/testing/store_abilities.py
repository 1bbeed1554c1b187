"""The promises of optional abilities; `StoreContract` has the tests of those that the store and its backend have."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from datetime import date, timedelta
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import pytest

from usage_plugin.domain.profiles import UserProfile
from usage_plugin.domain.store import (
    LEFT_OVER,
    DailySum,
    HandsOut,
    KeepsCopies,
    KeepsHours,
    LeavesTraces,
    Ranks,
    Reports,
    Sorts,
    UsageFilter,
)
from usage_plugin.domain.usage import UsageTotals, totals_of
from usage_plugin.domain.windows import hour_name, start_of_day, start_of_hour
from usage_plugin.errors import StoragePrunedError, StorageUnavailableError
from usage_plugin.plugins.ability_checks import abilities_of
from usage_plugin.plugins.interface import Renewable, Restorable
from usage_plugin.testing.builders import (
    MINUTE,
    NOON,
    TODAY,
    batch_of,
    event_of,
    make_event,
    make_sum,
    numbered_from,
    sums_batch,
)
from usage_plugin.testing.openings import BERLIN
from usage_plugin.testing.store_model import (
    EVERYTHING,
    FIRST_DAY,
    LAST_DAY,
    StoreModel,
    contents_of,
    forget_all,
    prune_all,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence

    from usage_plugin.domain.store import Aggregate, HourGrouping, RollupDimension, UsageStore
    from usage_plugin.domain.usage import UsageEvent
    from usage_plugin.plugins.interface import StorageBackend
    from usage_plugin.testing.openings import StoreOpening

AnswerT = TypeVar("AnswerT")
TestT = TypeVar("TestT", bound="Callable[..., Any]")

PATIENCE = 60.0
"""Seconds after which a store that is not available counts as one that cannot answer."""
CLOCKS_CHANGE = date(2026, 10, 25)

_ABILITY_OF: dict[str, str] = {}


def of(ability: type) -> Callable[[TestT], TestT]:
    """Mark a test as one of the promises of an ability."""

    def mark(test: TestT) -> TestT:
        _ABILITY_OF[test.__name__] = ability.__name__
        return test

    return mark


class StoreAbilities:
    """The promises of all abilities; a subclass with a backend keeps those of its abilities."""

    backend: ClassVar[StorageBackend[Any]]

    def __init_subclass__(cls) -> None:
        """Remove the tests of abilities that neither the stores in the backend's package nor the backend have."""
        super().__init_subclass__()
        if hasattr(cls, "backend"):
            abilities = abilities_of(cls.backend)
            for name, ability in _ABILITY_OF.items():
                if ability not in abilities:
                    setattr(cls, name, None)

    @of(Ranks)
    async def test_the_top_groups_are_the_most_expensive(self, store: UsageStore) -> None:
        """The top groups by cost, then by requests, come with their complete sums and the number of all groups."""
        assert isinstance(store, Ranks)
        books = await _filled(store)
        for by in (("user",), ("model", "team"), ("user", "team", "model")):
            for usage_filter in (EVERYTHING, UsageFilter(team="red"), UsageFilter(user="nobody")):
                groups = books.aggregate(by, FIRST_DAY, TODAY, usage_filter)
                for most in (1, 2, 1_000):
                    ranking = await _available(
                        lambda by=by, usage_filter=usage_filter, most=most: store.ranking(  # type: ignore[misc]
                            by, FIRST_DAY, TODAY, usage_filter, most=most
                        )
                    )
                    assert (ranking.in_all, ranking.watermarks) == (len(groups), {"w": 60, "old": 3})
                    assert all(groups[group] == totals for group, totals in ranking.groups.items())
                    assert _ranks(ranking.groups.values()) == _ranks(groups.values())[:most]

    @of(Ranks)
    async def test_wanted_groups_are_added_to_the_top(self, store: UsageStore) -> None:
        """Further groups are returned at any rank, if they have sums, and each group is returned once."""
        assert isinstance(store, Ranks)
        books = await _filled(store)
        groups = books.aggregate(("user", "team"), FIRST_DAY, TODAY, EVERYTHING)
        ranked = sorted(groups, key=lambda group: _rank(groups[group]))
        wanted = [ranked[0], ranked[-1], ("user 0", "nobody"), ("nobody", None)]
        ranking = await _available(
            lambda: store.ranking(("user", "team"), FIRST_DAY, TODAY, EVERYTHING, most=1, also=wanted)
        )
        assert ranking.groups == {group: groups[group] for group in (ranked[0], ranked[-1])}
        assert ranking.in_all == len(groups)

    @of(Sorts)
    async def test_groups_stream_in_order_of_cost(self, store: UsageStore) -> None:
        """All groups stream once, by highest cost, then by most requests, then by name, an absent name first."""
        assert isinstance(store, Sorts)
        empty = await _pages_of(store, ("user",))
        assert ([page.groups for page in empty], [page.watermarks for page in empty]) == ([{}], [{}])
        books = await _filled(store)
        for by in (("user",), ("team", "model"), ("user", "team", "model")):
            groups = books.aggregate(by, FIRST_DAY, TODAY, EVERYTHING)
            streamed = [group for page in await _pages_of(store, by) for group in page.groups.items()]
            assert streamed == sorted(
                groups.items(), key=lambda item: (*_rank(item[1]), [name or "" for name in item[0]])
            )

    @of(Sorts)
    async def test_a_sorted_stream_is_of_one_instant(self, store: UsageStore) -> None:
        """All pages show the moment of the first one, regardless of concurrent appends."""
        assert isinstance(store, Sorts)
        events = [event_of("w", number)._replace(user=f"user {number}") for number in range(2_500)]
        await store.append("w", numbered_from(1, events))
        await _pages_of(store, ("user",))
        pages = []
        async for page in store.in_order_of_cost(("user",), FIRST_DAY, LAST_DAY, EVERYTHING):
            pages.append(page)
            if len(pages) <= 2:
                late = make_event(user=f"late {len(pages)}", cost=10**9 * (len(pages) - 1))
                await store.append("late", [(len(pages), late)])
        assert {name for page in pages for (name,) in page.groups} == {event.user for event in events}
        assert all(page.watermarks == {"w": 2_500} for page in pages)

    @of(KeepsHours)
    async def test_hours_are_the_sums_of_their_events(self, store: UsageStore) -> None:
        """Hours are the sums of their events in the store's zone, also when clocks change; imported days have none."""
        assert isinstance(store, KeepsHours)
        events = _events_of_a_night()
        await store.append("w", numbered_from(1, events))
        await store.append_sums("old", [(1, make_sum(day=CLOCKS_CHANGE))])
        groupings: list[tuple[HourGrouping, ...]] = [("hour",), ("hour", "model"), ("provider", "hour"), ("model",)]
        for by in groupings:
            for usage_filter in (EVERYTHING, UsageFilter(model="gpt"), UsageFilter(model="gpt", provider="azure")):
                found = await _hours(store, by, usage_filter)
                assert found.watermarks == {"w": len(events), "old": 1}
                assert found.groups == _in_hours(events, by, usage_filter)

    @of(KeepsHours)
    async def test_hours_stay_as_long_as_their_day(self, store: UsageStore) -> None:
        """Hours stay when their events are pruned or their user is forgotten, and go with their day."""
        assert isinstance(store, KeepsHours)
        events = _events_of_a_night()
        await store.append("w", numbered_from(1, events))
        await prune_all(store, events[len(events) // 2].started_at, FIRST_DAY, most=100)
        await forget_all(store, "ann", most=100)
        assert (await _hours(store, ("hour",), EVERYTHING)).groups == _in_hours(events, ("hour",), EVERYTHING)
        await prune_all(store, 0, CLOCKS_CHANGE + timedelta(days=1), most=100)
        assert not (await _hours(store, ("hour",), EVERYTHING)).groups

    @of(KeepsCopies)
    async def test_profiles_come_back_by_user(self, store: UsageStore) -> None:
        """Profiles come back by user, with each field, and of two profiles of a user the newer one."""
        assert isinstance(store, KeepsCopies)
        ann = UserProfile(
            "zoë", 'Zoë "Z"', "zoe@example.com", "premium", False, {"theme": "dark"}, {"team": ["a"]}, 1, 5
        )  # fmt: skip
        await store.keep_profiles([ann, UserProfile("bo", updated_at=3)])
        await store.keep_profiles([ann._replace(tier="old", updated_at=4), UserProfile("bo", tier="new", updated_at=4)])
        assert [profile async for profile in store.profiles()] == [UserProfile("bo", tier="new", updated_at=4), ann]
        for amount in (1, 2, 2):
            await store.keep_limits([{"name": "daily", "per": "user", "window": "day", "max_cost": amount}])
        assert len([profile async for profile in store.profiles()]) == 2

    @of(LeavesTraces)
    async def test_compacting_leaves_nothing_of_the_forgotten(self, store: UsageStore, opening: StoreOpening) -> None:
        """Compacting changes no record, and no file of the data folder contains the name of a forgotten user."""
        assert isinstance(store, LeavesTraces)
        name = "person-to-be-forgotten"
        books = await _filled(store)
        events = [make_event(user=name if number % 2 else "ann", end_user=name) for number in range(40)]
        await store.append("more", numbered_from(1, events))
        books.append("more", numbered_from(1, events))
        await forget_all(store, name, most=100)
        books.forget(name)
        await store.compact()
        assert await contents_of(store) == books.contents()
        files = [path for path in opening.data_dir.rglob("*") if path.is_file()]
        assert [path for path in files if name.encode() in path.read_bytes() or name in path.name] == []
        await store.append("more", numbered_from(41, [make_event()]))
        assert await store.watermark("more") == 41

    @of(HandsOut)
    async def test_sent_records_make_an_equal_store(self, store: UsageStore) -> None:
        """All records by writer and number, after the sums of deleted events, give a store with the same sums."""
        assert isinstance(store, HandsOut)
        await _filled(store)
        await prune_all(store, NOON + 20 * MINUTE, FIRST_DAY, most=100)
        await forget_all(store, "user 3", most=100)
        marks = await store.watermarks()
        assert marks == {"w": 60, "old": 3}
        copy = StoreModel(BERLIN)
        sent = [one async for one in store.sent({}, marks)]
        for one in sent:
            if isinstance(one.record, DailySum):
                copy.append_sums(one.writer, [(one.seq, one.record)])
            else:
                copy.append(one.writer, [(one.seq, one.record)])
        found, expected = copy.contents(), await contents_of(store)
        assert {key: totals for key, totals in found.sums.items() if any(totals)} == expected.sums
        assert found.events == expected.events
        order = [(one.writer != LEFT_OVER, one.writer, one.seq) for one in sent]
        assert order == sorted(order)
        assert order[0][1] == LEFT_OVER

    @of(HandsOut)
    async def test_sent_records_resume(self, store: UsageStore) -> None:
        """The records between given numbers come alone, and StoragePrunedError is raised if some are deleted."""
        assert isinstance(store, HandsOut)
        await _filled(store)
        sent = [one async for one in store.sent({"w": 57, "old": 1}, {"w": 59, "old": 2})]
        assert [(one.writer, one.seq) for one in sent] == [("old", 2), ("w", 58), ("w", 59)]
        assert [one async for one in store.sent({"w": 60, "old": 3}, {"w": 60, "old": 3})] == []
        await prune_all(store, NOON + 20 * MINUTE, FIRST_DAY, most=100)
        assert [one.seq async for one in store.sent({"w": 58, "old": 3}, {"w": 60, "old": 3})] == [59, 60]
        with pytest.raises(StoragePrunedError):
            assert [one async for one in store.sent({"w": 3, "old": 3}, {"w": 60, "old": 3})]

    @of(Reports)
    async def test_a_working_store_reports_no_trouble(self, store: UsageStore) -> None:
        """A store whose parts are all available reports no trouble."""
        assert isinstance(store, Reports)
        await store.append("w", batch_of("w", 1, 3))
        await store.append_sums("old", sums_batch())
        assert store.trouble is None

    @of(Renewable)
    async def test_a_new_store_takes_the_place_of_the_old_one(self, opening: StoreOpening) -> None:
        """A store that was built next to the old one takes its place; the old one is kept aside, or deleted."""
        options, context = opening.arguments
        backend: Any = opening.backend
        async with opening.open() as store:
            await store.append("w", batch_of("w", 1, 3))
        for events, aside in ((5, "old"), (7, None)):
            for count in (2, events):  # the first one is left over from an interrupted attempt
                async with backend.open(backend.beside(options, context), context) as store:
                    assert await contents_of(store) == StoreModel(BERLIN).contents()
                    await store.append("w", batch_of("w", 1, count))
            kept = backend.take_place(options, context, aside=aside)
            assert (kept is not None and kept.exists()) is (aside is not None)
            async with opening.open() as store:
                assert await store.watermark("w") == events

    @of(Restorable)
    async def test_restoring_changes_no_record(self, opening: StoreOpening) -> None:
        """A restoration reads everything, or also rebuilds a copy; it reports its progress, and no record changes."""
        options, context = opening.arguments
        backend: Any = opening.backend
        async with opening.open() as store:
            books = await _filled(store)
        for dry_run in (True, False):
            steps = [step async for step in backend.restore(options, context, dry_run=dry_run)]
            assert steps[-1].is_done is not dry_run
            assert 0 < steps[-1].records <= steps[-1].most
            assert all(totals is None or totals.requests == _requests(books) for totals in steps[-1].totals.values())
            async with opening.open() as store:
                assert await contents_of(store) == books.contents()


async def _filled(store: UsageStore) -> StoreModel:
    """Append events and imported sums of several users, teams and models; return the expected contents."""
    books = StoreModel(BERLIN)
    events = numbered_from(
        1,
        [
            make_event(
                started_at=NOON + number * MINUTE, user=f"user {number % 7}", team=(None, "red", "blue")[number % 3],
                model=("gpt", None)[number % 2], cost=number % 5 * 10**7, event_id=f"event-{number:03}",
            )
            for number in range(60)
        ],
    )  # fmt: skip
    sums = numbered_from(1, [make_sum(user=f"user {number}", team="red") for number in range(3)])
    for seq, event in events:
        books.append("w", [(seq, event)])
    books.append_sums("old", sums)
    await store.append("w", events)
    await store.append_sums("old", sums)
    return books


def _requests(books: StoreModel) -> int:
    return sum(totals.requests for totals in books.contents().sums.values())


def _rank(totals: UsageTotals) -> tuple[int, int]:
    return -totals.cost, -totals.requests


def _ranks(all_totals: Iterable[UsageTotals]) -> list[tuple[int, int]]:
    """Return cost and requests, the most expensive first; groups that are equal in both may come in any order."""
    return sorted(map(_rank, all_totals))


async def _available(ask: Callable[[], Awaitable[AnswerT]]) -> AnswerT:
    """Return an answer; try again while the store is not available, as one is whose database lags behind its files."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return await ask()
        except StorageUnavailableError:
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.01)


async def _pages_of(store: Sorts, by: Sequence[RollupDimension]) -> list[Aggregate]:
    async def read() -> list[Aggregate]:
        return [page async for page in store.in_order_of_cost(by, FIRST_DAY, LAST_DAY, EVERYTHING)]

    return await _available(read)


async def _hours(store: KeepsHours, by: Sequence[HourGrouping], usage_filter: UsageFilter) -> Aggregate:
    return await _available(lambda: store.aggregate_hours(by, CLOCKS_CHANGE, CLOCKS_CHANGE, usage_filter))


def _events_of_a_night() -> list[UsageEvent]:
    """Return events of a night with a repeated hour, of two models and providers."""
    midnight = start_of_day(CLOCKS_CHANGE, BERLIN)
    return [
        make_event(
            event_id=f"night-{number}", started_at=midnight + number * 20 * MINUTE, user=("ann", "bo")[number % 2],
            model=("gpt", "mini")[number % 3 % 2], provider=("openai", "azure", None)[number % 5 % 3], cost=number,
        )
        for number in range(20)
    ]  # fmt: skip


def _in_hours(
    events: list[UsageEvent], by: Sequence[HourGrouping], usage_filter: UsageFilter
) -> dict[tuple[str | None, ...], UsageTotals]:
    groups: defaultdict[tuple[str | None, ...], UsageTotals] = defaultdict(UsageTotals)
    for event in filter(usage_filter.takes, events):
        hour = hour_name(start_of_hour(event.started_at, BERLIN), BERLIN)
        names = {"hour": hour, "model": event.model, "provider": event.provider}
        group = tuple(names[one] for one in by)
        groups[group] = groups[group].plus(totals_of(event))
    return dict(groups)
