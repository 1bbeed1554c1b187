"""The promises of a store that survives closing: concurrent openings, faults, full disks and killed processes."""

from __future__ import annotations

import asyncio
from datetime import date
from typing import TYPE_CHECKING, Any, ClassVar
from zoneinfo import ZoneInfo

import pytest

from usage_plugin.domain.store import daily_sum
from usage_plugin.domain.usage import UsageTotals
from usage_plugin.domain.windows import start_of_day
from usage_plugin.errors import StorageError, StorageUnavailableError
from usage_plugin.testing.builders import MINUTE, NOON, TODAY, batch_of, make_event, sums_batch
from usage_plugin.testing.child_processes import (
    append_in_a_child,
    append_to_a_full_disk,
    die_at_a_call,
    reports,
    start,
)
from usage_plugin.testing.faults import Faults, growing
from usage_plugin.testing.openings import BERLIN, StoreOpening
from usage_plugin.testing.store_model import (
    EVERYTHING,
    FIRST_DAY,
    LAST_DAY,
    StoreModel,
    books_with,
    contents_of,
    days_of,
    events_of,
    forget_all,
    prune_all,
    totals_in,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from usage_plugin.domain.store import UsageStore


class Durability:
    """The promises of a durable store; `StoreContract` has the fixtures."""

    fault_points: ClassVar[Mapping[str, Exception]]

    async def test_everything_survives_reopening(self, opening: StoreOpening) -> None:
        """After reopening, acknowledged records are present and forgotten ones are not."""
        books = books_with(30)
        books.append_sums("old", sums_batch())
        books.forget("bo")
        async with opening.open() as store:
            await store.append("w", batch_of("w", 1, 30))
            await store.append_sums("old", sums_batch())
            await forget_all(store, "bo", most=100)
            size = await store.size()
        async with opening.open() as store:
            assert await contents_of(store) == books.contents()
            assert await store.size() > size // 2
            await store.append("w", batch_of("w", 1, 31))
            assert len(await events_of(store)) == 21

    async def test_a_store_may_be_open_several_times(self, opening: StoreOpening) -> None:
        """Concurrent openings see acknowledged records at once, and can append, even to a new store."""
        first, second = opening.open(), opening.open()
        stores = await asyncio.gather(first.__aenter__(), second.__aenter__())
        try:
            for number in range(1, 7):
                one, other = stores[number % 2], stores[1 - number % 2]
                await one.append("w", batch_of("w", number, 1))
                assert await other.watermark("w") == number
                assert len(await events_of(other)) == number
                assert (await totals_in(other)).requests == number
            await asyncio.gather(*(store.append("w", batch_of("w", 7, 5)) for store in stores))
            assert (await totals_in(stores[0])).requests == 11
        finally:
            await first.__aexit__(None, None, None)
            await second.__aexit__(None, None, None)

    async def test_processes_append_side_by_side(self, opening: StoreOpening) -> None:
        """Several processes append at once, and a concurrent reader sees only whole batches."""
        writers = ("one", "two")
        children = [start(append_in_a_child, opening, name, 25) for name in writers]
        async with opening.open() as store:
            while any(process.is_alive() for process, _ in children):
                sums = await store.aggregate((), FIRST_DAY, LAST_DAY, EVERYTHING)
                counted = sums.groups.get((), UsageTotals()).requests
                assert counted == sum(sums.watermarks.values())
                assert len(await events_of(store)) >= counted
                await asyncio.sleep(0.01)
            acknowledged = {name: reports(*child)[-1] for name, child in zip(writers, children, strict=True)}
            assert [process.exitcode for process, _ in children] == [0, 0]
            books = StoreModel(BERLIN)
            for name, last in acknowledged.items():
                books.append(name, batch_of(name, 1, last))
            assert await contents_of(store) == books.contents()

    @pytest.mark.parametrize("lasting", [False, True], ids=["once", "from then on"])
    async def test_a_failing_call_leaves_all_or_nothing(
        self, opening: StoreOpening, faults: Faults, lasting: bool
    ) -> None:
        """If any low-level call fails, a batch is stored whole or not at all, and a retry succeeds."""
        fewer, more = books_with(2), books_with(5)
        failed = 0
        for number in growing():
            async with opening.another().open() as store:
                await store.append("w", batch_of("w", 1, 2))
                error = None
                with faults.at(number, lasting=lasting):
                    try:
                        await store.append("w", batch_of("w", 3, 3))
                    except StorageError as raised:
                        error = raised
                failed += error is not None
                found = await contents_of(store)
                assert found == more.contents() or (error and found == fewer.contents())
                await store.append("w", batch_of("w", 3, 3))
                assert await contents_of(store) == more.contents()
            if not faults.happened:
                break
        assert failed, "nothing failed: list functions that can fail in `fault_points`"

    async def test_a_failing_call_breaks_no_other_verb(self, opening: StoreOpening, faults: Faults) -> None:
        """If any low-level call of another verb fails, it raises StorageError, and a retry succeeds."""
        verbs: dict[str, Callable[[UsageStore], Awaitable[Any]]] = {
            "append_sums": lambda store: store.append_sums("old", sums_batch(2)),
            "prune": lambda store: prune_all(store, NOON + 4 * MINUTE, date(2026, 1, 1), most=2),
            "forget": lambda store: forget_all(store, "ann", most=2),
            "read": contents_of,
            "health": lambda store: store.health(),
        }
        for name, verb in verbs.items():
            failed = 0
            expected = None
            for number in growing():
                async with opening.another().open() as store:
                    await store.append("w", batch_of("w", 1, 9))
                    with faults.at(number):
                        try:
                            await verb(store)
                        except StorageError:
                            failed += 1
                    await verb(store)
                    found = await contents_of(store)
                expected = expected or found
                assert found == expected, name
                if not faults.happened:
                    break
            assert failed or name == "read", f"nothing failed in {name}"

    async def test_a_failing_call_while_opening_is_no_harm(self, opening: StoreOpening, faults: Faults) -> None:
        """If any low-level call fails while a store is created, it raises StorageError, and a retry succeeds."""
        failed = 0
        for number in growing():
            place = opening.another()
            with faults.at(number):
                try:
                    async with place.open() as store:
                        await store.append("w", batch_of("w", 1, 1))
                except StorageError:
                    failed += 1
            async with place.open() as store:
                await store.append("w", batch_of("w", 1, 2))
                assert [event.cost for event in await events_of(store)] == [1, 2]
                assert (await totals_in(store)).requests == 2
            if not faults.happened:
                break
        assert failed, "nothing failed: list functions that can fail in `fault_points`"

    async def test_a_store_that_cannot_write_is_unavailable(self, opening: StoreOpening, faults: Faults) -> None:
        """During an outage, append and health raise StorageUnavailableError: the caller retries later."""
        async with opening.open() as store:
            await store.append("w", batch_of("w", 1, 1))
            with faults.at(1, lasting=True):
                with pytest.raises(StorageUnavailableError):
                    await store.append("w", batch_of("w", 2, 1))
                with pytest.raises(StorageUnavailableError):
                    await store.append_sums("old", sums_batch())
                with pytest.raises(StorageUnavailableError):
                    await store.health()
            await store.health()
            await store.append("w", batch_of("w", 2, 1))
            assert (await contents_of(store)).watermarks == {"w": 2}

    async def test_a_cancelled_append_leaves_all_or_nothing(self, opening: StoreOpening, faults: Faults) -> None:
        """An append that is cancelled at any call leaves its batch whole or not at all, and the store keeps working."""
        for number in growing():
            async with opening.another().open() as store:
                await store.append("w", batch_of("w", 1, 2))
                appending = asyncio.create_task(store.append("w", batch_of("w", 3, 3)))
                with faults.at(number, _cancelling(appending)):
                    await asyncio.wait([appending])
                if not appending.cancelled():
                    appending.result()
                assert (await totals_in(store)).requests in ((2, 5) if appending.cancelled() else (5,))
                await store.append("w", batch_of("w", 3, 3))
                assert await contents_of(store) == books_with(5).contents()
            if not faults.happened:
                break

    async def test_a_full_disk_leaves_all_or_nothing(self, opening: StoreOpening) -> None:
        """If a file cannot grow, a batch is stored whole or not at all, and is accepted when there is space."""
        attempts = reports(*start(append_to_a_full_disk, opening))
        fewer, more = books_with(2), books_with(42)
        for attempt in attempts:
            assert attempt.contents == more.contents() or (attempt.error and attempt.contents == fewer.contents())
        assert attempts[0].error, "256 bytes were enough for 42 events"
        assert attempts[-1].error is None
        async with opening.open() as store:
            assert await contents_of(store) == more.contents()

    async def test_a_process_that_dies_at_any_call_leaves_all_or_nothing(self, opening: StoreOpening) -> None:
        """If a process dies between any two low-level calls, batches are whole, and acknowledged ones are present."""
        deaths = 0
        for number in growing():
            place = opening.another()
            told = reports(*start(die_at_a_call, place, tuple(self.fault_points), number))
            async with place.open() as store:
                found = await contents_of(store)
                books = StoreModel(BERLIN)
                if "events" in told or found.watermarks.get("w"):
                    books.append("w", batch_of("w", 1, 3))
                if "sums" in told or found.watermarks.get("old"):
                    books.append_sums("old", sums_batch())
                assert found == books.contents(), number
                await store.append("w", batch_of("w", 1, 3))
                await store.append_sums("old", sums_batch())
                books.append("w", batch_of("w", 1, 3))
                books.append_sums("old", sums_batch())
                assert await contents_of(store) == books.contents()
            if "survived" in told:
                break
            deaths += 1
        assert deaths, "no process died: list functions that can fail in `fault_points`"

    async def test_a_killed_writer_loses_nothing(self, opening: StoreOpening) -> None:
        """If a writer is killed at any time, all acknowledged records are stored, without gaps, and the sums agree."""
        acknowledged = 0
        for kill in range(6):
            process, receiving = start(append_in_a_child, opening, "w", 10**6)
            assert receiving.poll(60)
            await asyncio.sleep(0.007 * kill)
            process.kill()
            acknowledged = max([acknowledged, *reports(process, receiving)])
            async with opening.open() as store:
                last = await store.watermark("w")
                assert last >= acknowledged
                assert await contents_of(store) == books_with(last).contents()

    async def test_another_zone_is_refused_or_right(self, opening: StoreOpening) -> None:
        """Opening with another zone raises StorageError or shows that zone's days, never the days of the old one."""
        late = make_event(started_at=start_of_day(TODAY, BERLIN) + 1)
        async with opening.open() as store:
            await store.append("w", [(1, late)])
        utc = ZoneInfo("UTC")
        try:
            async with StoreOpening(opening.backend, opening.data_dir, opening.options, utc).open() as store:
                found = await days_of(store)
                assert found == [daily_sum(late, utc)]
        except StorageError:
            pass
        async with opening.open() as store:
            assert [one.day for one in await days_of(store)] == [TODAY]

    async def test_only_storage_errors_come_out(self, opening: StoreOpening) -> None:
        """If a store cannot be opened, for example because a file is in the way, it raises StorageError."""
        opening.data_dir.parent.mkdir(parents=True)
        opening.data_dir.write_text("in the way")
        with pytest.raises(StorageError):
            async with opening.open() as store:
                await store.append("w", batch_of("w", 1, 1))


def _cancelling(task: asyncio.Task[None]) -> Callable[[Exception], None]:
    """Return a function that cancels a task from any thread; the call itself continues."""
    loop = asyncio.get_running_loop()

    def cancel(_: Exception) -> None:
        loop.call_soon_threadsafe(task.cancel)

    return cancel
