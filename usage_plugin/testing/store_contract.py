"""The promises of every store: one promise, one test, one sentence.

    class TestMyStore(StoreContract):
        backend = MyBackend()

The docstrings are the promises, in the order of the lists in docs/writing-a-backend.md. They hold for every backend;
properties of one backend are tested elsewhere. `store_sums`, `store_deletion` and `durability` have parts of them,
`store_abilities` the promises of optional abilities.
"""

from __future__ import annotations

import asyncio
import random
import tracemalloc
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
import pytest_asyncio

from usage_plugin.domain.store import ROLLUP_DIMENSIONS, EventPosition, UsageFilter
from usage_plugin.domain.usage import totals_of
from usage_plugin.domain.windows import ALWAYS, Window, days_window
from usage_plugin.errors import StorageError, StorageUnavailableError
from usage_plugin.testing.builders import (
    MINUTE,
    NOON,
    TODAY,
    batch_of,
    event_of,
    make_event,
    numbered_from,
    sums_batch,
)
from usage_plugin.testing.faults import Faults
from usage_plugin.testing.generated_data import some_verbs
from usage_plugin.testing.hostile_names import HostileNames
from usage_plugin.testing.openings import BERLIN, StoreOpening
from usage_plugin.testing.store_abilities import StoreAbilities
from usage_plugin.testing.store_deletion import StoreDeletion
from usage_plugin.testing.store_durability import Durability
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
from usage_plugin.testing.store_sums import StoreSums

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
    from pathlib import Path

    from usage_plugin.domain.store import UsageStore
    from usage_plugin.plugins.interface import StorageBackend


@pytest.mark.asyncio
class StoreContract(StoreSums, StoreDeletion, Durability, StoreAbilities, HostileNames):
    """The promises of a store.

    Attributes:
        backend: the backend of the store under test.
        options: the backend's options, as in the YAML.
        durable: False for a store that loses its contents when it is closed; it has fewer promises.
        fault_points: dotted names of functions in a backend's own module that must be tested with faults, each with the
            error that its driver would raise. Files and SQLite need none.
    """

    backend: ClassVar[StorageBackend[Any]]
    options: ClassVar[Mapping[str, Any]] = {}
    durable: ClassVar[bool] = True
    fault_points: ClassVar[Mapping[str, Exception]] = {}

    def __init_subclass__(cls) -> None:
        """Remove the tests of promises that a store does not make."""
        super().__init_subclass__()
        if not cls.durable:
            for name in promises(Durability):
                setattr(cls, name, None)

    @pytest.fixture
    def opening(self, tmp_path: Path) -> StoreOpening:
        """The way to open the store; override it for a store outside of `data_dir`."""
        return StoreOpening(self.backend, tmp_path / "data" / "usage", self.options)

    @pytest_asyncio.fixture
    async def store(self, opening: StoreOpening) -> AsyncIterator[UsageStore]:
        """A new store, open."""
        async with opening.open() as store:
            yield store

    @pytest.fixture
    def faults(self) -> Iterator[Faults]:
        """Fault injection; override it for a driver that needs more than `fault_points`."""
        faults = Faults(self.fault_points)
        with faults.installed():
            yield faults

    # ── events ───────────────────────────────────────────────────────────────────────────────────────────────────────

    async def test_a_new_store_is_empty(self, store: UsageStore) -> None:
        """A new store is empty: no group, no day, no event, and every watermark is 0."""
        assert await contents_of(store) == StoreModel(BERLIN).contents()
        assert await store.aggregate(("user",), FIRST_DAY, LAST_DAY, EVERYTHING) == ({}, {})
        assert await store.watermark("w") == 0

    async def test_an_event_comes_back_as_it_went_in(self, store: UsageStore) -> None:
        """Every field of an event survives, including text of any script and fields that are not summed."""
        event = make_event(
            user="zoë 名前 ' \" \\", team="t", api_key="k", api_key_alias="alias", end_user="e", organization="o",
            session="s", tags=("a", "b"), call_id="c", requested_model="asked", served_model="openai/x", deployment="d",
            cached_input_tokens=3, cache_write_tokens=4, reasoning_tokens=2, cost=None, cost_source="unpriced",
            reserved=5, excess=1, estimated=True, cache_hit=True, error="Timeout\n\tat line 1\u2028", status="failure",
            usage={"prompt_tokens_details.cached_tokens": 3}, duration_us=17, injected_output_tokens=9, clamped_to=8,
            downgraded_by="daily", degraded=True, service_tier="flex",
            agent="explorer",
        )  # fmt: skip
        plain = make_event(started_at=NOON + 1, model=None, provider=None)
        await store.append("w", [(1, event), (2, plain)])
        assert await events_of(store) == [event, plain]

    async def test_sending_a_batch_again_changes_nothing(self, store: UsageStore) -> None:
        """A batch that overlaps stored records adds only the new ones."""
        for count in (3, 3, 5, 2):
            await store.append("w", batch_of("w", 1, count))
            await store.append_sums("old", sums_batch(count))
        books = books_with(5)
        books.append_sums("old", sums_batch(5))
        assert await contents_of(store) == books.contents()
        assert (await store.watermark("w"), await store.watermark("old")) == (5, 5)

    async def test_an_empty_batch_is_nothing(self, store: UsageStore) -> None:
        """An empty batch is accepted and changes nothing."""
        await store.append("w", batch_of("w", 1, 1))
        await store.append("w", [])
        await store.append_sums("old", [])
        assert (await contents_of(store)).watermarks == {"w": 1}

    async def test_numbers_may_have_gaps(self, store: UsageStore) -> None:
        """The watermark is the last number, not a count; a number below it counts as stored."""
        await store.append("w", [(3, event_of("w", 3)), (9, event_of("w", 9))])
        await store.append("w", [(4, event_of("w", 4)), (10, event_of("w", 10))])
        assert [event.cost for event in await events_of(store)] == [3, 9, 10]
        assert await store.watermark("w") == 10

    async def test_an_event_under_another_number_is_the_same_event(self, store: UsageStore) -> None:
        """An event is counted once, under any number, from any writer and for any number of attempts."""
        event, fresh = make_event(), make_event()
        await store.append("w", [(1, event), (2, event)])
        await store.append("w", [(7, event), (8, fresh)])
        await store.append("other", [(1, event)])
        assert len(await events_of(store)) == 2
        assert await totals_in(store) == totals_of(event).plus(totals_of(fresh))
        assert (await contents_of(store)).watermarks == {"w": 8, "other": 1}

    async def test_writers_have_their_own_watermarks(self, store: UsageStore, hostile: tuple[str, ...]) -> None:
        """Each writer has its own numbers, under any name, and sums come with all watermarks."""
        writers = {name: 1 + number % 3 for number, name in enumerate(hostile)}
        for name, count in writers.items():
            await store.append(name, batch_of(name, 1, count))
        assert (await contents_of(store)).watermarks == writers
        assert [await store.watermark(name) for name in writers] == list(writers.values())
        assert await store.watermark("nobody") == 0
        assert (await totals_in(store)).requests == sum(writers.values())

    @pytest.mark.parametrize("fields", [{"cost": 2**70}, {"user": "\ud800"}, {"error": "\ud800"}], ids=str)
    async def test_what_cannot_be_kept_is_refused_whole(self, store: UsageStore, fields: dict[str, Any]) -> None:
        """A batch with a value that can never be stored raises StorageError and adds nothing, or is stored exactly."""
        batch = [(1, event_of("w", 1)), (2, make_event(**fields, started_at=NOON + 2 * MINUTE)), (3, event_of("w", 3))]
        try:
            await store.append("w", batch)
        except StorageError as error:
            assert not isinstance(error, StorageUnavailableError), "that would be tried for ever"
            assert await contents_of(store) == StoreModel(BERLIN).contents()
            await store.append("w", batch[:1])
            assert [event.cost for event in await events_of(store)] == [1]
        else:
            assert await events_of(store) == [event for _, event in batch]

    async def test_one_batch_sent_twice_at_once_counts_once(self, store: UsageStore) -> None:
        """Batches that arrive at the same time, from one writer or from several, are added one after the other."""
        batches = {name: batch_of(name, 1, 5) for name in ("one", "two", "three")}
        await asyncio.gather(*(store.append(name, batch) for name, batch in (*batches.items(), *batches.items())))
        books = StoreModel(BERLIN)
        for name, batch in batches.items():
            books.append(name, batch)
        assert await contents_of(store) == books.contents()

    async def test_events_stream_in_order_and_resume(self, store: UsageStore) -> None:
        """Events are ordered by admission and id, both ways, and resume after any position, even an absent one."""
        events = [event_of("w", number)._replace(started_at=NOON + number // 3) for number in range(2_400)]
        shuffled = [events[number * 1_009 % 2_400] for number in range(2_400)]
        await store.append("w", numbered_from(1, shuffled))
        assert await events_of(store) == events
        assert [event async for event in store.events(ALWAYS, EVERYTHING, newest_first=True)] == events[::-1]
        for at in (0, 1, 700, 999, 1_000, 1_001, 2_399):
            for name, rest in ((events[at].event_id, at + 1), (f"{events[at].event_id}+", at + 1), ("", at - at % 3)):
                position = EventPosition(events[at].started_at, name)
                newer = [event async for event in store.events(ALWAYS, EVERYTHING, after=position)]
                assert newer == events[rest:]
                older = [event async for event in store.events(ALWAYS, EVERYTHING, after=position, newest_first=True)]
                assert older == events[: at if name == events[at].event_id else rest][::-1]

    async def test_a_stream_goes_on_beside_appends(self, store: UsageStore) -> None:
        """A started stream yields each event of its start once, regardless of concurrent appends."""
        await store.append("w", batch_of("w", 1_000, 1_500))
        seen = []
        async for event in store.events(ALWAYS, EVERYTHING):
            seen.append(event.event_id)
            if len(seen) in (1, 800, 1_200):
                await store.append(f"late {len(seen)}", batch_of(f"late {len(seen)}", 1, 3))
        assert [name for name in seen if name.startswith("w-")] == [f"w-{number:06}" for number in range(1_000, 2_500)]
        assert len(seen) == len(set(seen))
        assert len(await events_of(store)) == 1_509

    async def test_windows_of_events_are_half_open(self, store: UsageStore) -> None:
        """An event at the start of a window is in it, one at its end is not."""
        span = days_window(TODAY, TODAY, BERLIN)
        events = [make_event(started_at=at) for at in (span.start - 1, span.start, span.end - 1, span.end)]
        await store.append("w", numbered_from(1, events))
        assert await events_of(store, span) == events[1:3]
        newest = [event async for event in store.events(span, EVERYTHING, newest_first=True)]
        assert newest == events[2:0:-1]
        assert await events_of(store, Window(span.start, span.start)) == []

    async def test_filters_are_exact_names(self, store: UsageStore) -> None:
        """A filter selects records with exactly its names, in sums, days and events alike."""
        names = ("ann", "Ann", "an", "an%", "ann ", "anna", "*")
        events = [
            make_event(started_at=NOON + number, **{dimension: name})
            for number, (dimension, name) in enumerate((d, n) for d in ROLLUP_DIMENSIONS for n in names)
        ]
        await store.append("w", numbered_from(1, events))
        wanted = [UsageFilter(**{dimension: name}) for dimension in ROLLUP_DIMENSIONS for name in (*names, "nobody")]
        wanted += [UsageFilter(user="ann", team="Ann"), UsageFilter(team="ann", model="gpt"), UsageFilter(user="gpt")]
        for one in wanted:
            expected = [event for event in events if one.takes(event)]
            assert await events_of(store, usage_filter=one) == expected, one
            assert (await totals_in(store, one)).requests == len(expected), one
            days = await days_of(store, TODAY, TODAY, one)
            assert sum(day.totals.requests for day in days) == len(expected), one

    async def test_events_stream_in_bounded_memory(self, store: UsageStore) -> None:
        """Streaming all events takes a fraction of the memory of a list of them."""
        count = 8_000
        for first in range(1, count, 1_000):
            await store.append("w", batch_of("w", first, 1_000))
        tracemalloc.start()
        try:
            seen = 0
            before = tracemalloc.get_traced_memory()[0]
            async for _ in store.events(ALWAYS, EVERYTHING):
                seen += 1
            streaming = tracemalloc.get_traced_memory()[1] - before
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            held = [event_of("w", number) for number in range(count)]
            holding = tracemalloc.get_traced_memory()[1] - before
        finally:
            tracemalloc.stop()
        assert seen == len(held)
        assert streaming < holding / 3, f"{streaming:,} bytes while streaming; {holding:,} hold everything"

    # ── all verbs ────────────────────────────────────────────────────────────────────────────────────────────────────

    async def test_whatever_is_done_in_whatever_order(self, opening: StoreOpening) -> None:
        """After any verbs in any order the store equals a plain model."""
        for seed in range(12):
            verbs = list(some_verbs(random.Random(seed), 12))
            await self._agrees_with_books(opening.another(), verbs)

    async def _agrees_with_books(self, opening: StoreOpening, verbs: Sequence[tuple[Any, ...]]) -> None:
        books = StoreModel(BERLIN)
        sent: dict[str, list[tuple[int, Any]]] = {"one": [], "two": [], "old": []}
        async with AsyncExitStack() as stack:
            store = await stack.enter_async_context(opening.open())
            for verb, *details in verbs:
                if verb == "append":
                    writer, fields = details
                    first = len(sent[writer]) + 1
                    names = (f"{writer}-{number:03}" for number in range(first, first + len(fields)))
                    events = [make_event(event_id=name, **one) for name, one in zip(names, fields, strict=True)]
                    sent[writer] += numbered_from(first, events)
                    books.append(writer, sent[writer])
                    await store.append(writer, sent[writer][first - 1 :])
                elif verb == "append again":
                    await store.append(details[0], sent[details[0]])
                elif verb == "append sums":
                    sent["old"] += numbered_from(len(sent["old"]) + 1, details[0])
                    books.append_sums("old", sent["old"])
                    await store.append_sums("old", sent["old"])
                elif verb == "prune":
                    books.prune(*details)
                    await prune_all(store, *details, most=3)
                elif verb == "forget":
                    books.forget(*details)
                    await forget_all(store, *details, most=3)
                elif self.durable:
                    await stack.aclose()
                    store = await stack.enter_async_context(opening.open())
                assert await contents_of(store) == books.contents(), verb

    # ── names ────────────────────────────────────────────────────────────────────────────────────────────────────────

    async def test_names_are_taken_as_they_are(self, store: UsageStore, hostile: tuple[str, ...]) -> None:
        """No name is confused with another, or read as a path, a pattern or a query, and none is changed."""
        events = [
            make_event(started_at=NOON + number, user=name, team=name, model=name, session=name, event_id=name)
            for number, name in enumerate(hostile)
        ]
        await store.append("w", numbered_from(1, events))
        assert await events_of(store) == events
        groups = (await store.aggregate(("user", "team", "model"), TODAY, TODAY, EVERYTHING)).groups
        assert {group: totals.requests for group, totals in groups.items()} == {
            (name, name, name): 1 for name in hostile
        }
        for event in events:
            assert await events_of(store, usage_filter=UsageFilter(user=event.user)) == [event]
            assert (await totals_in(store, UsageFilter(model=event.model))).requests == 1

    async def test_names_lead_out_of_no_folder(
        self, store: UsageStore, opening: StoreOpening, hostile: tuple[str, ...], tmp_path: Path
    ) -> None:
        """For any names of users, models and writers, nothing is written outside of the data folder."""
        for number, name in enumerate(hostile):
            await store.append(name, [(1, make_event(user=name, team=name, model=name, started_at=NOON + number))])
        await forget_all(store, "../../x", most=100)
        assert {path.name for path in tmp_path.iterdir()} <= {"data"}
        assert {path.name for path in opening.data_dir.parent.glob("*")} <= {opening.data_dir.name}

    # ── health ───────────────────────────────────────────────────────────────────────────────────────────────────────

    async def test_a_healthy_store_says_nothing(self, store: UsageStore) -> None:
        """Health does not raise if an event would be accepted, and stores nothing."""
        await store.health()
        assert await contents_of(store) == StoreModel(BERLIN).contents()


def promises(contract: type) -> list[str]:
    """List the names of the tests that a class defines, in their order."""
    return [name for name in vars(contract) if name.startswith("test_")]
