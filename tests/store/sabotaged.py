"""Stores that are broken on purpose, each in one way, and the promise by which that is noticed.

`test_sabotage.py` runs the contract on them in a pytest of its own; this file is not collected otherwise.
"""

from __future__ import annotations

import asyncio
import os
import unicodedata
from collections import defaultdict
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

from usage_plugin.backends.memory import MemoryStore
from usage_plugin.backends.sqlite.sqlite_store import SqliteStore, open_store
from usage_plugin.domain.store import Aggregate, UsageFilter, daily_sum
from usage_plugin.domain.subjects import FORGOTTEN
from usage_plugin.domain.usage import UsageTotals
from usage_plugin.encoding import decode_event, encode_event
from usage_plugin.errors import StorageError, StorageUnavailableError
from usage_plugin.plugins.interface import BackendContext, NoOptions, StorageBackend
from usage_plugin.testing import StoreContract

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from usage_plugin.domain.store import UsageStore

BERLIN = ZoneInfo("Europe/Berlin")
SABOTAGES: dict[str, set[str]] = {}
"""For each promise the contracts by which a store is tested that breaks it."""


class SabotagedBackend(StorageBackend[NoOptions]):
    """Opens a store of memory or of SQLite, and puts the sabotage in its place."""

    name = "sabotaged"
    options_model = NoOptions

    def __init__(self, store_class: type[Any]) -> None:
        self._class = store_class

    @asynccontextmanager
    async def open(self, options: NoOptions, context: BackendContext) -> AsyncIterator[UsageStore]:
        if issubclass(self._class, MemoryStore):
            yield self._class(context.zone)
            return
        async with open_store(context.data_dir / "usage.db", context.zone) as store:
            store.__class__ = self._class
            yield store


class WithoutDirectory(SabotagedBackend):
    """Lets the driver's own error out where a store cannot be opened."""

    @asynccontextmanager
    async def open(self, options: NoOptions, context: BackendContext) -> AsyncIterator[UsageStore]:
        try:
            async with super().open(options, context) as store:
                yield store
        except StorageError as error:
            raise error.__cause__ or error from None


class WithoutZone(SabotagedBackend):
    """Takes every zone for the first one."""

    @asynccontextmanager
    async def open(self, options: NoOptions, context: BackendContext) -> AsyncIterator[UsageStore]:
        async with super().open(options, BackendContext(context.data_dir, BERLIN)) as store:
            yield store


class WithFolders(SabotagedBackend):
    """Writes a file for each user, under their name as it is."""

    @asynccontextmanager
    async def open(self, options: NoOptions, context: BackendContext) -> AsyncIterator[UsageStore]:
        context.data_dir.mkdir(parents=True)
        async with super().open(options, context) as store:
            store.folder = context.data_dir  # type: ignore[attr-defined]
            yield store


def breaks(
    *tests: str, backend: type[SabotagedBackend] = SabotagedBackend, durable: bool | None = None
) -> Callable[[type], type]:
    """Make the contract of a broken store, and note the promises that it breaks."""

    def register(store_class: type) -> type:
        contract = f"Test{store_class.__name__}"
        is_durable = issubclass(store_class, SqliteStore) if durable is None else durable
        globals()[contract] = type(
            contract,
            (StoreContract,),
            {"backend": backend(store_class), "durable": is_durable, "__module__": __name__},
        )
        for test in tests:
            SABOTAGES.setdefault(test, set()).add(contract)
        return store_class

    return register


# ── in memory: stored, streamed and summed records ───────────────────────────────────────────────────────────────────


@breaks("test_a_new_store_is_empty")
class ShowsZeros(MemoryStore):
    async def aggregate(self, by, first, last, usage_filter):
        sums = await super().aggregate(by, first, last, usage_filter)
        return sums if sums.groups else Aggregate({(None,) * len(by): UsageTotals()}, sums.watermarks)


@breaks("test_an_event_comes_back_as_it_went_in")
class DropsTags(MemoryStore):
    async def append(self, writer, events):
        await super().append(writer, [(seq, event._replace(tags=())) for seq, event in events])


@breaks("test_sending_a_batch_again_changes_nothing", "test_imported_sums_add_to_the_days")
class CountsSumsTwice(MemoryStore):
    async def append_sums(self, writer, sums):
        for seq, one in sums:
            self._add(one)
            self._add(one)
            self._watermarks[writer] = seq


@breaks("test_sending_a_batch_again_changes_nothing")
class ForgetsTheWatermark(MemoryStore):
    async def append(self, writer, events):
        self._watermarks.pop(writer, None)
        await super().append(writer, events)


@breaks("test_an_empty_batch_is_nothing")
class NeedsALastEvent(MemoryStore):
    async def append(self, writer, events):
        await super().append(writer, events)
        self._watermarks[writer] = events[-1][0] if events else 0


@breaks("test_numbers_may_have_gaps")
class CountsInsteadOfNumbers(MemoryStore):
    async def append(self, writer, events):
        before = self._watermarks.get(writer, 0)
        await super().append(writer, events)
        self._watermarks[writer] = min(self._watermarks.get(writer, 0), before + len(events))


@breaks("test_an_event_under_another_number_is_the_same_event")
class KnowsNoEvent(MemoryStore):
    def _has(self, position):
        return False


@breaks("test_writers_have_their_own_watermarks")
class TakesAllWritersForOne(MemoryStore):
    async def append(self, writer, events):
        await super().append(unicodedata.normalize("NFC", writer), events)


@breaks("test_what_cannot_be_kept_is_refused_whole")
class KeepsHalfABatch(MemoryStore):
    async def append(self, writer, events):
        for seq, event in events:
            if (event.cost or 0) > 2**63:
                raise StorageError
            await super().append(writer, [(seq, event)])


@breaks("test_what_cannot_be_kept_is_refused_whole")
class TriesForEver(MemoryStore):
    async def append(self, writer, events):
        if any(event.error == "\ud800" for _, event in events):
            raise StorageUnavailableError
        await super().append(writer, events)


@breaks("test_one_batch_sent_twice_at_once_counts_once")
class ChecksTooEarly(MemoryStore):
    async def append(self, writer, events):
        fresh = [(seq, event) for seq, event in events if seq > self._watermarks.get(writer, 0)]
        await asyncio.sleep(0)
        for seq, event in fresh:
            self._add(daily_sum(event, self._zone))
            self._watermarks[writer] = seq


@breaks("test_events_stream_in_order_and_resume")
class StreamsAsTheyCame(MemoryStore):
    async def append(self, writer, events):
        await super().append(writer, events)
        self._events.sort(key=lambda entry: entry[0].started_at // 3 % 100)


@breaks("test_events_stream_in_order_and_resume")
class ResumesOneTooEarly(MemoryStore):
    async def events(self, window, usage_filter, *, after=None, newest_first=False):
        if after is not None and not newest_first:
            yield next(event for position, event in self._events if position >= after)
        async for event in super().events(window, usage_filter, after=after, newest_first=newest_first):
            yield event


@breaks("test_a_stream_goes_on_beside_appends")
class CountsPlaces(MemoryStore):
    async def events(self, window, usage_filter, *, after=None, newest_first=False):
        at = 0
        while at < len(self._events):
            yield self._events[at][1]
            at += 1


@breaks("test_windows_of_events_are_half_open")
class ClosesWindows(MemoryStore):
    async def events(self, window, usage_filter, *, after=None, newest_first=False):
        closed = window._replace(end=window.end + 1)
        async for event in super().events(closed, usage_filter, after=after, newest_first=newest_first):
            yield event


@breaks("test_filters_are_exact_names")
class FiltersByPrefix(MemoryStore):
    async def daily(self, first, last, usage_filter):
        async for sums in super().daily(first, last, UsageFilter()):
            wanted = usage_filter.wanted().items()
            yield [one for one in sums if all((getattr(one, name) or "").startswith(value) for name, value in wanted)]


@breaks("test_events_stream_in_bounded_memory")
class HoldsEverything(MemoryStore):
    async def events(self, window, usage_filter, *, after=None, newest_first=False):
        held = [
            decode_event(encode_event(event))
            async for event in super().events(window, usage_filter, after=after, newest_first=newest_first)
        ]
        for event in held:
            yield event


@breaks("test_an_empty_sum_adds_nothing")
class AddsEmptySums(MemoryStore):
    async def append_sums(self, writer, sums):
        for _, one in sums:
            self._add(one)
        await super().append_sums(writer, [(seq, one._replace(totals=UsageTotals())) for seq, one in sums])


@breaks("test_sums_are_exact_by_every_grouping")
class SumsFloats(MemoryStore):
    async def aggregate(self, by, first, last, usage_filter):
        sums = await super().aggregate(by, first, last, usage_filter)
        groups = {group: totals._replace(cost=int(float(totals.cost))) for group, totals in sums.groups.items()}
        return Aggregate(groups, sums.watermarks)


@breaks("test_days_are_the_stores_zones")
class CountsDaysInUtc(MemoryStore):
    def __init__(self, zone):
        super().__init__(ZoneInfo("UTC"))


@breaks("test_daily_sums_stream_by_day")
class StreamsDaysByUser(MemoryStore):
    async def daily(self, first, last, usage_filter):
        async for sums in super().daily(first, last, usage_filter):
            yield sorted(sums, key=lambda one: (one.user or "", one.day))


@breaks("test_sums_and_watermarks_belong_together")
class LooksTwice(MemoryStore):
    async def aggregate(self, by, first, last, usage_filter):
        sums = await super().aggregate(by, first, last, usage_filter)
        await asyncio.sleep(0)
        return Aggregate(sums.groups, dict(self._watermarks))

    async def append(self, writer, events):
        await asyncio.sleep(0)
        await super().append(writer, events)


@breaks("test_whatever_is_done_in_whatever_order", "test_old_days_go_with_their_events")
class LeavesEventsOfOldDays(MemoryStore):
    def _is_old(self, event, before, days_before):
        return event.started_at < before


@breaks("test_names_are_taken_as_they_are")
class NormalisesNames(MemoryStore):
    async def append(self, writer, events):
        await super().append(
            writer,
            [(seq, event._replace(model=unicodedata.normalize("NFC", event.model or ""))) for seq, event in events],
        )


@breaks("test_names_lead_out_of_no_folder", backend=WithFolders)
class LeavesItsFolder(MemoryStore):
    async def append(self, writer, events):
        for _, event in events:
            with suppress(OSError, ValueError):
                (self.folder / event.user).write_text("")
        await super().append(writer, events)


@breaks("test_names_are_taken_as_they_are", backend=WithFolders)
class KeepsAFolderForEachTeam(MemoryStore):
    async def append(self, writer, events):
        for _, event in events:
            with suppress(OSError, ValueError):
                (self.folder / "teams" / Path(event.team).expanduser()).mkdir(parents=True)
        await super().append(writer, events)


@breaks("test_writers_have_their_own_watermarks", backend=WithFolders)
class NamesAFileAfterEachWriter(MemoryStore):
    async def append(self, writer, events):
        with suppress(OSError, ValueError):
            Path(os.path.expandvars(self.folder / "writers" / "all" / ".." / writer)).write_text("")
        await super().append(writer, events)


@breaks("test_old_events_go_and_their_sums_stay")
class PrunesSumsToo(MemoryStore):
    async def prune(self, *, events_before, days_before, most):
        gone = await super().prune(events_before=events_before, days_before=days_before, most=most)
        self._days = defaultdict(UsageTotals)
        for _, event in self._events:
            self._add(daily_sum(event, self._zone))
        return gone


@breaks("test_pruning_goes_by_slices")
class PrunesAllAtOnce(MemoryStore):
    async def prune(self, *, events_before, days_before, most):
        return await super().prune(events_before=events_before, days_before=days_before, most=10**9)


@breaks("test_a_user_is_forgotten_and_all_sums_stay")
class DropsTheirSums(MemoryStore):
    async def forget(self, user, *, most):
        days = [key for key in self._days if user in (key.user, key.end_user)]
        gone = await super().forget(user, most=most)
        for key in days:
            self._days.pop(key.without(user), None)
        return gone


@breaks("test_forgetting_takes_nobody_else")
class ForgetsLookalikes(MemoryStore):
    async def forget(self, user, *, most):
        alike = {key.user for key in self._days if key.user and key.user.casefold() == user.casefold()} | {user}
        return sum([await super(ForgetsLookalikes, self).forget(name, most=most) for name in sorted(alike)])


@breaks("test_forgetting_the_forgotten_changes_nothing")
class ForgetsTheForgotten(MemoryStore):
    async def forget(self, user, *, most):
        if user == FORGOTTEN:
            for key in [key for key in self._days if key.user == user]:
                del self._days[key]
        return await super().forget(user, most=most)


@breaks("test_forgetting_goes_by_slices")
class ForgetsAllAtOnce(MemoryStore):
    async def forget(self, user, *, most):
        return await super().forget(user, most=10**9)


@breaks("test_forgetting_beside_appends_loses_no_sum")
class ForgetsWhatCameMeanwhile(MemoryStore):
    async def forget(self, user, *, most):
        seen = dict(self._days)
        await asyncio.sleep(0)
        self._days.clear()
        self._days.update(seen)
        return await super().forget(user, most=most)


@breaks("test_the_size_is_what_is_in_use")
class NeverShrinks(MemoryStore):
    largest = 0

    async def size(self):
        self.largest = max(self.largest, await super().size())
        return self.largest


@breaks("test_a_healthy_store_says_nothing")
class AlwaysComplains(MemoryStore):
    async def health(self):
        raise StorageUnavailableError


@breaks("test_a_healthy_store_says_nothing")
class ProbesWithAnEvent(SqliteStore):
    async def health(self):
        await super().append("probe", [(await self.watermark("probe") + 1, PROBE)])


PROBE = decode_event('{"v": 1, "event_id": "probe", "started_at": 1, "status": "success", "call_type": "probe"}')

# ── in files: the state after a fault ────────────────────────────────────────────────────────────────────────────────


@breaks("test_everything_survives_reopening", durable=True)
class ForgetsWhenItIsClosed(MemoryStore):
    pass


@breaks("test_a_store_may_be_open_several_times")
class RemembersItsWatermark(SqliteStore):
    async def watermark(self, writer):
        if "known" not in vars(self):
            self.known = await super().watermark(writer)
        return self.known


@breaks("test_processes_append_side_by_side")
class LooksTwiceInTheFile(SqliteStore):
    async def aggregate(self, by, first, last, usage_filter):
        sums = await super().aggregate(by, first, last, usage_filter)
        await asyncio.sleep(0.05)
        return Aggregate(sums.groups, (await super().aggregate((), first, last, usage_filter)).watermarks)


@breaks(
    "test_a_failing_call_leaves_all_or_nothing",
    "test_a_full_disk_leaves_all_or_nothing",
    "test_a_process_that_dies_at_any_call_leaves_all_or_nothing",
)
class StoresOneByOne(SqliteStore):
    async def append(self, writer, events):
        for one in events:
            await super().append(writer, [one])


@breaks("test_a_failing_call_breaks_no_other_verb")
class LetsDriverErrorsOut(SqliteStore):
    async def prune(self, *, events_before, days_before, most):
        try:
            return await super().prune(events_before=events_before, days_before=days_before, most=most)
        except StorageError as error:
            raise error.__cause__ or error from None


@breaks("test_a_failing_call_while_opening_is_no_harm", "test_only_storage_errors_come_out", backend=WithoutDirectory)
class OpensCarelessly(SqliteStore):
    pass


@breaks("test_a_store_that_cannot_write_is_unavailable")
class GivesUp(SqliteStore):
    async def append(self, writer, events):
        try:
            await super().append(writer, events)
        except StorageUnavailableError as error:
            raise StorageError from error


@breaks("test_a_cancelled_append_leaves_all_or_nothing")
class HidesThatItWasCancelled(SqliteStore):
    async def append(self, writer, events):
        with suppress(asyncio.CancelledError):
            await super().append(writer, events)


@breaks("test_a_killed_writer_loses_nothing")
class AcknowledgesTooEarly(SqliteStore):
    async def append(self, writer, events):
        waiting = vars(self).setdefault("waiting", [])
        waiting += events
        if len(waiting) > 50:
            await super().append(writer, waiting)
            waiting.clear()


@breaks("test_another_zone_is_refused_or_right", backend=WithoutZone)
class MixesZones(SqliteStore):
    pass
