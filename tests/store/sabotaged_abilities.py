"""Stores whose optional abilities are broken on purpose, each in one way, and the promise by which that is noticed.

`test_ability_sabotage.py` runs the contract on them in a pytest of its own; this file is not collected otherwise.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from usage_plugin.backends.hybrid import HybridBackend
from usage_plugin.backends.hybrid.hybrid_store import HybridStore
from usage_plugin.backends.partitioned import PartitionedBackend
from usage_plugin.backends.partitioned.partitioned_store import PartitionedStore
from usage_plugin.backends.sqlite import SqliteBackend
from usage_plugin.backends.sqlite.sqlite_store import SqliteStore
from usage_plugin.domain.store import Aggregate
from usage_plugin.testing import StoreContract

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from usage_plugin.domain.store import UsageStore
    from usage_plugin.plugins.interface import BackendContext, StorageBackend

SABOTAGES: dict[str, set[str]] = {}
"""For each promise the contracts by which a store is tested that breaks it."""

BACKENDS = {SqliteStore: SqliteBackend, PartitionedStore: PartitionedBackend, HybridStore: HybridBackend}


def opening(store_class: type[Any]) -> StorageBackend[Any]:
    """Return a backend that opens a shipped store, and puts the sabotage in its place."""
    base: Any = next(backend for kind, backend in BACKENDS.items() if issubclass(store_class, kind))

    class Sabotaged(base):
        @asynccontextmanager
        async def open(self, options: Any, context: BackendContext) -> AsyncIterator[UsageStore]:
            async with super().open(options, context) as store:
                store.__class__ = store_class
                yield store

    return Sabotaged()


def note(name: str, backend: StorageBackend[Any], tests: tuple[str, ...]) -> None:
    contract = f"Test{name}"
    globals()[contract] = type(contract, (StoreContract,), {"backend": backend, "__module__": __name__})
    for test in tests:
        SABOTAGES.setdefault(test, set()).add(contract)


def breaks(*tests: str) -> Callable[[type], type]:
    """Make the contract of a broken store, and note the promises that it breaks."""

    def register(broken: type) -> type:
        globals()[broken.__name__] = broken  # the contract looks for the abilities of this module's classes
        note(broken.__name__, opening(broken), tests)
        return broken

    return register


def breaks_as_a_backend(*tests: str) -> Callable[[type], type]:
    """The same for a broken backend."""

    def register(broken: type) -> type:
        note(broken.__name__, broken(), tests)
        return broken

    return register


@breaks("test_the_top_groups_are_the_most_expensive")
class RanksByRequests(SqliteStore):
    async def ranking(self, by, first, last, usage_filter, *, most, also=()):
        found = await super().ranking(by, first, last, usage_filter, most=10**6)
        ranked = sorted(found.groups.items(), key=lambda item: -item[1].requests)[:most]
        return found._replace(groups=dict(ranked))


@breaks("test_the_top_groups_are_the_most_expensive")
class CountsTheTopOnly(SqliteStore):
    async def ranking(self, by, first, last, usage_filter, *, most, also=()):
        found = await super().ranking(by, first, last, usage_filter, most=most, also=also)
        return found._replace(in_all=len(found.groups))


@breaks("test_the_top_groups_are_the_most_expensive")
class RanksNothing(SqliteStore):
    async def ranking(self, by, first, last, usage_filter, *, most, also=()):
        found = await super().ranking(by, first, last, usage_filter, most=most, also=also)
        return found._replace(groups={}, in_all=7)


@breaks("test_wanted_groups_are_added_to_the_top")
class IgnoresWantedGroups(SqliteStore):
    async def ranking(self, by, first, last, usage_filter, *, most, also=()):
        return await super().ranking(by, first, last, usage_filter, most=most)


@breaks("test_groups_stream_in_order_of_cost")
class SortsPagesOnly(SqliteStore):
    async def in_order_of_cost(self, by, first, last, usage_filter):
        async for page in super().in_order_of_cost(by, first, last, usage_filter):
            yield Aggregate(dict(sorted(page.groups.items(), key=lambda item: item[0][0] or "")), page.watermarks)


@breaks("test_a_sorted_stream_is_of_one_instant")
class LooksAgainForEachPage(SqliteStore):
    async def in_order_of_cost(self, by, first, last, usage_filter):
        position = 0
        while True:
            groups = {}
            async for page in super().in_order_of_cost(by, first, last, usage_filter):
                groups |= page.groups
                watermarks = page.watermarks
            some = list(groups.items())[position : position + 500]
            position += len(some)
            yield Aggregate(dict(some), watermarks)
            if len(some) < 500:
                return


@breaks("test_hours_are_the_sums_of_their_events")
class TakesRepeatedHoursForOne(SqliteStore):
    async def aggregate_hours(self, by, first, last, usage_filter):
        found = await super().aggregate_hours(by, first, last, usage_filter)
        groups = {}
        for group, totals in found.groups.items():
            name = tuple(one and one.replace("+01:00", "+02:00") for one in group)
            groups[name] = groups[name].plus(totals) if name in groups else totals
        return found._replace(groups=groups)


@breaks("test_hours_stay_as_long_as_their_day")
class PrunesHoursWithTheirEvents(SqliteStore):
    async def prune(self, *, events_before, days_before, most):
        gone = await super().prune(events_before=events_before, days_before=days_before, most=most)
        async with self._writing:
            await self._writer.execute("DELETE FROM hourly")
            await self._writer.commit()
        return gone


@breaks("test_profiles_come_back_by_user")
class KeepsTheLastProfile(PartitionedStore):
    async def keep_profiles(self, profiles):
        await super().keep_profiles([one._replace(updated_at=99) for one in profiles])


@breaks("test_compacting_leaves_nothing_of_the_forgotten")
class CompactsNothing(SqliteStore):
    async def compact(self):
        pass


@breaks("test_sent_records_make_an_equal_store")
class LeavesOutTheLeftOver(PartitionedStore):
    async def sent(self, after, upto):
        async for one in super().sent(after, upto):
            if one.writer in upto:
                yield one


@breaks("test_sent_records_resume")
class SendsWhatIsThere(PartitionedStore):
    async def sent(self, after, upto):
        async for one in super().sent({}, upto):
            if after.get(one.writer, 0) < one.seq <= upto.get(one.writer, 0):
                yield one


@breaks("test_a_working_store_reports_no_trouble")
class AlwaysReports(HybridStore):
    @property
    def trouble(self):
        return "nothing"


@breaks_as_a_backend("test_a_new_store_takes_the_place_of_the_old_one")
class LeavesTheOldOne(SqliteBackend):
    def take_place(self, options, context, *, aside):
        return context.data_dir / options.path if aside else None


@breaks_as_a_backend("test_restoring_changes_no_record")
class RestoresInADryRun(HybridBackend):
    def restore(self, options, context, *, dry_run):
        return super().restore(options, context, dry_run=False)
