"""A storage backend, and the test module of its author."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import date, timedelta
from pathlib import Path
from typing import Any

from typing_extensions import assert_type

from usage_plugin.plugins.storage import (
    FORGOTTEN,
    GROUPINGS,
    HOUR_GROUPINGS,
    LEFT_OVER,
    ROLLUP_DIMENSIONS,
    Aggregate,
    BackendContext,
    ConfigError,
    DailySum,
    EventPosition,
    Grouping,
    HandsOut,
    HourGrouping,
    KeepsCopies,
    KeepsHours,
    LeavesTraces,
    NoOptions,
    Options,
    Ranking,
    Ranks,
    Renewable,
    Reports,
    Restorable,
    Restoration,
    RollupDimension,
    Sent,
    Sorts,
    StorageBackend,
    StorageDamagedError,
    StorageError,
    StoragePrunedError,
    StorageUnavailableError,
    StorageVersionError,
    UsageEvent,
    UsageFilter,
    UsageStore,
    UsageTotals,
    UserProfile,
    Window,
    bucket_name,
    daily_sum,
    decode_event,
    encode_event,
    local_date,
    start_of_day,
)
from usage_plugin.testing import (
    ErasableContract,
    FakeClock,
    LedgerContract,
    OperationsLogContract,
    ProfileStoreContract,
    StoreContract,
    WorkersContract,
    make_event,
    make_sum,
)


class ListOptions(Options):
    most: int = 100


class ListStore(UsageStore):
    """Keeps lines in a list; the contract would fail it, mypy does not."""

    def __init__(self, context: BackendContext, most: int) -> None:
        self.context, self.most = context, most
        self.lines: list[str] = []
        self.kept: dict[str, UserProfile] = {}

    async def append(self, writer: str, events: Sequence[tuple[int, UsageEvent]]) -> None:
        if len(self.lines) + len(events) > self.most:
            raise StorageUnavailableError(f"{writer} must wait", hint="Prune.")
        self.lines += [encode_event(event) for _, event in events]
        for _, event in events:
            one = daily_sum(event, self.context.zone)
            assert_type(one, DailySum)
            assert_type(one.totals, UsageTotals)
            assert one.day == local_date(event.started_at, self.context.zone)

    async def append_sums(self, writer: str, sums: Sequence[tuple[int, DailySum]]) -> None:
        raise StorageError(f"{writer} has {len(sums)} sums")

    async def watermark(self, writer: str) -> int:
        return len(writer)

    async def aggregate(self, by: Sequence[Grouping], first: date, last: date, usage_filter: UsageFilter) -> Aggregate:
        assert_type(usage_filter.wanted(), dict[RollupDimension, str])
        group = tuple(bucket_name(first, "month") if one == "month" else None for one in by)
        return Aggregate({group: UsageTotals(requests=(last - first).days)}, {})

    async def events(
        self,
        window: Window,
        usage_filter: UsageFilter,
        *,
        after: EventPosition | None = None,
        newest_first: bool = False,
    ) -> AsyncIterator[UsageEvent]:
        for line in reversed(self.lines) if newest_first else self.lines:
            event = decode_event(line)
            assert_type(event, UsageEvent)
            if window.start <= event.started_at < window.end and usage_filter.takes(event) and after is None:
                yield event

    async def daily(self, first: date, last: date, usage_filter: UsageFilter) -> AsyncIterator[list[DailySum]]:
        if usage_filter.user != FORGOTTEN:
            yield [make_sum(day=first), make_sum(day=last)]

    async def prune(self, *, events_before: int, days_before: date, most: int) -> int:
        before = max(events_before, start_of_day(days_before, self.context.zone))
        return min(most, before)

    async def forget(self, user: str, *, most: int) -> int:
        return min(most, len(user))

    async def size(self) -> int:
        return sum(map(len, self.lines))

    async def health(self) -> None:
        raise StorageDamagedError

    # Abilities.

    async def ranking(
        self,
        by: Sequence[RollupDimension],
        first: date,
        last: date,
        usage_filter: UsageFilter,
        *,
        most: int,
        also: Collection[tuple[str | None, ...]] = (),
    ) -> Ranking:
        return Ranking((await self.aggregate(by, first, last, usage_filter)).groups, most + len(also), {})

    async def in_order_of_cost(
        self, by: Sequence[RollupDimension], first: date, last: date, usage_filter: UsageFilter
    ) -> AsyncIterator[Aggregate]:
        yield await self.aggregate(by, first, last, usage_filter)

    async def aggregate_hours(
        self, by: Sequence[HourGrouping], first: date, last: date, usage_filter: UsageFilter
    ) -> Aggregate:
        assert set(by) <= set(HOUR_GROUPINGS)
        return await self.aggregate((), first, last, usage_filter)

    async def compact(self) -> None:
        self.lines = list(self.lines)

    async def watermarks(self) -> Mapping[str, int]:
        return {LEFT_OVER: 1}

    async def sent(self, after: Mapping[str, int], upto: Mapping[str, int]) -> AsyncIterator[Sent]:
        if after:
            raise StoragePrunedError
        for writer, seq in upto.items():
            yield Sent(writer, seq, make_event())

    @property
    def trouble(self) -> str | None:
        return None

    async def keep_profiles(self, profiles: Sequence[UserProfile]) -> None:
        self.kept = {profile.user: profile for profile in profiles}

    async def profiles(self) -> AsyncIterator[UserProfile]:
        for _, profile in sorted(self.kept.items()):
            yield profile

    async def keep_limits(self, limits: Sequence[Mapping[str, Any]]) -> None:
        self.limits = [dict(limit) for limit in limits]


class ListBackend(StorageBackend[ListOptions]):
    name = "list"
    options_model = ListOptions

    def check(self, options: ListOptions, context: BackendContext) -> None:
        if not options.most:
            raise ConfigError(f"{context.data_dir} could keep nothing.", hint="Set most to a positive number.")

    @asynccontextmanager
    async def open(self, options: ListOptions, context: BackendContext) -> AsyncIterator[UsageStore]:
        if not context.data_dir.exists():
            raise StorageVersionError
        yield ListStore(context, options.most)


class TestListStore(StoreContract):
    __test__ = False
    backend = ListBackend()
    options = {"most": 10}
    durable = False


class TestListLedger(LedgerContract):
    __test__ = False


class TestListOperations(OperationsLogContract):
    __test__ = False


class TestListProfiles(ProfileStoreContract):
    __test__ = False


class TestListErasable(ErasableContract):
    __test__ = False


class TestListWorkers(WorkersContract):
    __test__ = False

    def see(self, place: Path) -> Any:
        raise NotImplementedError


def abilities_of(store: UsageStore, backend: StorageBackend[Any]) -> list[type[Any]]:
    assert len(GROUPINGS) == len(ROLLUP_DIMENSIONS) + 3
    has = [
        kind
        for kind in (HandsOut, KeepsCopies, KeepsHours, LeavesTraces, Ranks, Reports, Sorts)
        if isinstance(store, kind)
    ]
    return [*has, *(kind for kind in (Renewable, Restorable) if isinstance(backend, kind))]


async def restored(backend: Restorable, options: ListOptions, context: BackendContext) -> int:
    records = 0
    async for step in backend.restore(options, context, dry_run=True):
        assert_type(step, Restoration)
        records = step.records
    return records


def moved(clock: FakeClock) -> int:
    clock.advance(timedelta(hours=1))
    return clock.now()


def all_abilities(store: ListStore) -> tuple[Ranks, Sorts, KeepsHours, KeepsCopies, LeavesTraces, HandsOut, Reports]:
    """The store has the signatures of these protocols, mypy says."""
    return store, store, store, store, store, store, store


def usual(backend: StorageBackend[NoOptions], context: BackendContext) -> None:
    backend.check(NoOptions(), context)
