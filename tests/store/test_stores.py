"""What every store promises: one test for each promise, over all registered backends."""

from __future__ import annotations

import random
import sqlite3
from contextlib import AsyncExitStack
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

import pytest

from usage_plugin.backends.sqlite.store import PAGE
from usage_plugin.domain.store import ROLLUP_DIMENSIONS, DailySum, EventPosition, UsageFilter, UsageStore
from usage_plugin.domain.subjects import FORGOTTEN
from usage_plugin.domain.usage import UsageTotals, totals_of
from usage_plugin.domain.windows import Window, days_window
from usage_plugin.errors import StorageError, StorageUnavailableError, StorageVersionError
from usage_plugin.plugins.interface import StorageBackend, Surroundings
from usage_plugin.plugins.manager import Plugins
from usage_plugin.runtime import BUILTIN_PLUGINS
from usage_plugin.testing.builders import NOON, make_event
from usage_plugin.tracking.tracker import ALWAYS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from usage_plugin.domain.usage import UsageEvent

BERLIN = ZoneInfo("Europe/Berlin")
TODAY = date(2026, 11, 23)
EVERYTHING = UsageFilter()
BACKENDS = Plugins(BUILTIN_PLUGINS, entry_points=False).storage_backends


@pytest.fixture(params=sorted(BACKENDS))
def backend(request: pytest.FixtureRequest) -> StorageBackend[Any]:
    return BACKENDS[request.param]


@pytest.fixture
async def open_store(backend: StorageBackend[Any], tmp_path: Path) -> AsyncIterator[Callable[..., Any]]:
    """Opens the store of a folder, as often as asked."""
    async with AsyncExitStack() as stack:

        async def opened(zone: ZoneInfo = BERLIN) -> UsageStore:
            store: UsageStore = await stack.enter_async_context(
                backend.open(backend.options_model(), Surroundings(tmp_path, zone))
            )
            return store

        yield opened


@pytest.fixture
async def store(open_store: Callable[..., Any]) -> UsageStore:
    opened: UsageStore = await open_store()
    return opened


def numbered(*events: UsageEvent, first: int = 1) -> list[tuple[int, UsageEvent]]:
    return list(enumerate(events, first))


async def all_events(
    store: UsageStore, window: Window = ALWAYS, usage_filter: UsageFilter = EVERYTHING, **how: Any
) -> list[UsageEvent]:
    return [event async for event in store.events(window, usage_filter, **how)]


async def test_an_event_comes_back_as_it_went_in(store: UsageStore) -> None:
    """Every field survives, also text of any script and what has no column of its own."""
    event = make_event(
        user="zoë 名前 ' \" \\", team="t", api_key="k", api_key_alias="alias", end_user="e", organization="o", session="s",
        tags=("a", "b"), call_id="c", requested_model="asked", served_model="openai/x", deployment="d", cached_input_tokens=3,
        reasoning_tokens=2, cost=None, cost_source="unpriced", reserved=5, excess=1, estimated=True, error="Timeout",
        usage={"prompt_tokens_details.cached_tokens": 3}, duration_us=17, status="failure", injected_output_tokens=9,
    )  # fmt: skip
    await store.append("w", numbered(event))
    assert await all_events(store) == [event]


async def test_sending_a_batch_again_changes_nothing(store: UsageStore) -> None:
    """A batch that overlaps what is stored adds only what is new."""
    events = [make_event() for _ in range(5)]
    await store.append("w", numbered(*events[:3]))
    await store.append("w", numbered(*events[:3]))
    await store.append("w", numbered(*events))
    assert len(await all_events(store)) == 5
    assert await store.watermark("w") == 5
    totals = (await store.aggregate((), TODAY, TODAY, EVERYTHING)).groups[()]
    assert (totals.requests, totals.cost) == (5, 50_000_000)


async def test_an_event_under_another_number_is_the_same_event(store: UsageStore) -> None:
    """A ledger that was restored may send an event with a new number; it is not counted again."""
    event, fresh = make_event(), make_event()
    await store.append("w", numbered(event))
    await store.append("w", numbered(event, fresh, first=7))
    assert len(await all_events(store)) == 2
    assert (await store.aggregate((), TODAY, TODAY, EVERYTHING)).groups[()].requests == 2
    assert await store.watermark("w") == 8


async def test_writers_have_their_own_watermarks(store: UsageStore) -> None:
    """Two ledgers number their events independently; sums name both watermarks."""
    await store.append("one", numbered(make_event(), make_event()))
    await store.append("two", numbered(make_event()))
    assert (await store.watermark("one"), await store.watermark("two"), await store.watermark("three")) == (2, 1, 0)
    assert (await store.aggregate((), TODAY, TODAY, EVERYTHING)).watermarks == {"one": 2, "two": 1}


async def test_sums_are_exact_by_every_grouping(store: UsageStore) -> None:
    """Whatever it is grouped by, the parts sum to the whole, to the nano-dollar."""
    rng = random.Random(7)
    events = [
        make_event(
            started_at=NOON + rng.randrange(-40, 40) * 86_400_000_000 // 4,
            user=rng.choice(["ann", "bo"]), team=rng.choice(["a", "b", None]), model=rng.choice(["x", "y", None]),
            cost=rng.randrange(10**12), status=rng.choice(["success", "failure"]), output_tokens=rng.randrange(99),
        )
        for _ in range(300)
    ]  # fmt: skip
    await store.append("w", numbered(*events))
    whole = UsageTotals()
    for event in events:
        whole = whole.plus(totals_of(event))
    for by in (
        (),
        ("user",),
        ("team", "model"),
        ("day",),
        ("month", "user"),
        ("provider", "api_key", "organization", "end_user"),
    ):
        groups = (await store.aggregate(by, date(2026, 1, 1), date(2027, 1, 1), EVERYTHING)).groups
        total = UsageTotals()
        for totals in groups.values():
            total = total.plus(totals)
        assert total == whole, by
    by_user = (await store.aggregate(("user", "team"), date(2026, 1, 1), date(2027, 1, 1), EVERYTHING)).groups
    assert by_user["ann", None].cost == sum(e.cost or 0 for e in events if (e.user, e.team) == ("ann", None))


async def test_days_are_the_stores_zones(store: UsageStore) -> None:
    """An event of 23:30 UTC is tomorrow's in Berlin, and a span of days includes both its ends."""
    late = make_event(started_at=NOON + 11 * 3_600_000_000 + 1_800_000_000)
    await store.append("w", numbered(make_event(), late))
    groups = (await store.aggregate(("day",), TODAY, date(2026, 11, 24), EVERYTHING)).groups
    assert {group: totals.requests for group, totals in groups.items()} == {("2026-11-23",): 1, ("2026-11-24",): 1}
    assert (await store.aggregate((), TODAY, TODAY, EVERYTHING)).groups[()].requests == 1
    months = (await store.aggregate(("month",), TODAY, TODAY, EVERYTHING)).groups
    assert list(months) == [("2026-11",)]


async def test_filters_are_exact_names(store: UsageStore) -> None:
    """A filter takes exactly the name it is given, for sums and for events; an unknown one takes nothing."""
    await store.append("w", numbered(make_event(user="ann"), make_event(user="Ann"), make_event(user="an%", team="t")))
    for wanted, count in ((UsageFilter(user="ann"), 1), (UsageFilter(user="an%"), 1), (UsageFilter(team="t", user="ann"), 0),
                          (UsageFilter(model="nobody's"), 0)):  # fmt: skip
        groups = (await store.aggregate((), TODAY, TODAY, wanted)).groups
        assert sum(totals.requests for totals in groups.values()) == count
        assert len(await all_events(store, usage_filter=wanted)) == count


async def test_windows_of_events_are_half_open(store: UsageStore) -> None:
    """An event at the start of a window is in it, one at its end is not."""
    span = days_window(TODAY, TODAY, BERLIN)
    inside, outside = make_event(started_at=span.start), make_event(started_at=span.end)
    await store.append("w", numbered(outside, inside))
    assert await all_events(store, span) == [inside]


async def test_events_stream_in_order_and_resume(store: UsageStore) -> None:
    """Events come by admission and id, both ways, over several pages, and go on behind any position."""
    events = [make_event(started_at=NOON + number // 3) for number in range(PAGE + PAGE // 2)]
    shuffled = random.Random(3).sample(events, len(events))
    await store.append("w", numbered(*shuffled))
    ordered = sorted(events, key=lambda e: (e.started_at, e.event_id))
    assert await all_events(store) == ordered
    assert await all_events(store, newest_first=True) == ordered[::-1]
    at = ordered[700]
    position = EventPosition(at.started_at, at.event_id)
    assert await all_events(store, after=position) == ordered[701:]
    assert await all_events(store, after=position, newest_first=True) == ordered[:700][::-1]


def make_sum(**fields: Any) -> DailySum:
    """Make a sum: two requests of ann's today, for 3 cents."""
    names = dict.fromkeys(ROLLUP_DIMENSIONS) | {"user": "ann", "model": "unknown"}
    totals = UsageTotals(requests=2, failed_requests=1, input_tokens=20, output_tokens=10, cost=30_000_000)
    return DailySum(**{"day": TODAY, **names, "totals": totals, **fields})


async def daily_sums(store: UsageStore, first: date = TODAY, last: date = TODAY, **wanted: str) -> list[DailySum]:
    return [one async for one in store.daily(first, last, UsageFilter(**wanted))]


async def test_imported_sums_add_to_the_days(store: UsageStore) -> None:
    """Sums of days that have no events are in the reports, once, however often they are sent."""
    event = make_event()
    await store.append("w", numbered(event))
    sums = [make_sum(), make_sum(model="gpt", provider="openai"), make_sum(day=date(2024, 2, 29))]
    await store.append_sums("old", numbered(*sums[:2]))
    await store.append_sums("old", numbered(*sums))
    assert await store.watermark("old") == 3
    groups = (await store.aggregate(("model",), TODAY, TODAY, EVERYTHING)).groups
    assert {group: (totals.requests, totals.cost) for group, totals in groups.items()} == {
        ("gpt",): (3, 40_000_000),
        ("unknown",): (2, 30_000_000),
    }
    assert await daily_sums(store, date(2024, 2, 29), date(2024, 2, 29)) == [sums[2]]
    assert await all_events(store) == [event]


async def test_daily_sums_stream_by_day(store: UsageStore) -> None:
    """Each combination of names comes once for each day, in the order of days, over several pages."""
    users = [f"u{number}" for number in range(PAGE // 2)]
    events = [
        make_event(user=user, started_at=NOON - day * 86_400_000_000)
        for user in users for day in range(3) for _ in range(1 + day)
    ]  # fmt: skip
    await store.append("w", numbered(*events))
    days = [date(2026, 11, 21), date(2026, 11, 22), TODAY]
    sums = await daily_sums(store, days[0])
    assert [(one.day, one.totals.requests) for one in sums] == [
        (day, 3 - at) for at, day in enumerate(days) for _ in users
    ]
    assert len({(one.day, *one.names) for one in sums}) == len(sums)
    assert [one.day for one in await daily_sums(store, days[0], days[1], user="u7")] == days[:2]


async def test_events_are_pruned_and_their_sums_stay(store: UsageStore) -> None:
    """What is too old goes, at most so much at once; days go only when they are too old themselves."""
    old = [make_event(started_at=NOON - 86_400_000_000 + number) for number in range(5)]
    fresh = make_event()
    await store.append("w", numbered(*old, fresh))
    limits = {"events_before": NOON, "days_before": date(2020, 1, 1)}
    assert [await store.prune(**limits, most=3) for _ in range(3)] == [3, 2, 0]
    assert await all_events(store) == [fresh]
    assert sum(one.totals.requests for one in await daily_sums(store, date(2026, 11, 22))) == 6
    await store.append("w", numbered(*old, fresh))
    assert await all_events(store) == [fresh]
    assert await store.prune(events_before=0, days_before=TODAY, most=100) == 1
    assert [one.day for one in await daily_sums(store, date(2026, 11, 22))] == [TODAY]


async def test_a_user_is_forgotten_and_the_totals_stay(store: UsageStore) -> None:
    """No event names them, as user or end user; their sums are the forgotten ones', and everybody else's stay."""
    events = [make_event(team="t") for _ in range(3)] + [make_event(user="bo", end_user="ann"), make_event(user="bo")]
    await store.append("w", numbered(*events))
    forgotten = []
    while count := await store.forget("ann", most=2):
        forgotten.append(count)
    assert sum(forgotten) == 4 + 2
    assert max(forgotten) <= 2
    assert await all_events(store) == [events[-1]]
    groups = (await store.aggregate(("user", "end_user"), TODAY, TODAY, EVERYTHING)).groups
    assert {group: totals.requests for group, totals in groups.items()} == {
        (FORGOTTEN, None): 3,
        ("bo", FORGOTTEN): 1,
        ("bo", None): 1,
    }
    assert (await store.aggregate((), TODAY, TODAY, UsageFilter(team="t"))).groups[()].cost == 30_000_000
    assert await store.forget("nobody", most=2) == 0


async def test_a_store_says_how_large_it_is(store: UsageStore) -> None:
    """It grows with what is stored."""
    before = await store.size()
    await store.append("w", numbered(*(make_event(user=f"user {number}") for number in range(500))))
    assert await store.size() > before + 10_000


async def test_a_healthy_store_says_nothing(store: UsageStore) -> None:
    """Health raises only where an event would not be taken."""
    await store.health()


# ── what is particular to SQLite ─────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
async def open_sqlite(tmp_path: Path) -> AsyncIterator[Callable[..., Any]]:
    async with AsyncExitStack() as stack:

        async def opened(zone: ZoneInfo = BERLIN) -> UsageStore:
            backend = BACKENDS["sqlite"]
            store: UsageStore = await stack.enter_async_context(
                backend.open(backend.options_model(), Surroundings(tmp_path, zone))
            )
            return store

        yield opened


async def test_sqlite_survives_reopening(open_sqlite: Callable[..., Any]) -> None:
    """What was appended is there for whoever opens the file next, or has it open at the same time."""
    first = await open_sqlite()
    event = make_event()
    await first.append("w", numbered(event))
    assert await all_events(await open_sqlite()) == [event]


async def test_sqlite_appends_all_or_nothing(open_sqlite: Callable[..., Any], tmp_path: Path) -> None:
    """If one event cannot be stored, none of the batch is, and the watermark stays."""
    store = await open_sqlite()
    with pytest.raises(StorageError):
        await store.append("w", numbered(make_event(), make_event(cost=2**70)))
    assert await store.watermark("w") == 0
    assert await all_events(store) == []
    await store.append("w", numbered(make_event()))
    assert (tmp_path / "usage.db").stat().st_mode & 0o777 == 0o600


async def test_sqlite_forgets_the_name_itself(open_sqlite: Callable[..., Any], tmp_path: Path) -> None:
    """After a user is forgotten, their name stands nowhere, unless it is also a model's or a team's."""
    store = await open_sqlite()
    await store.append("w", numbered(make_event(user="ann"), make_event(user="bo", team="bo")))
    for user in ("ann", "bo"):
        while await store.forget(user, most=10):
            pass
    connection = sqlite3.connect(tmp_path / "usage.db")
    names = {name for (name,) in connection.execute("SELECT name FROM names WHERE name IS NOT NULL")}
    connection.close()
    assert names == {FORGOTTEN, "gpt", "openai", "bo"}


async def test_sqlite_that_is_locked_is_unavailable(
    open_sqlite: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While somebody else holds the lock for long, an append raises, adds nothing, and works afterwards."""
    monkeypatch.setattr("usage_plugin.backends.sqlite.store._BUSY_TIMEOUT", 0.1)
    store = await open_sqlite()
    other = sqlite3.connect(tmp_path / "usage.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StorageUnavailableError):
        await store.append("w", numbered(make_event()))
    with pytest.raises(StorageUnavailableError):
        await store.health()
    other.execute("COMMIT")
    other.close()
    await store.append("w", numbered(make_event()))
    assert await store.watermark("w") == 1


async def test_sqlite_keeps_to_its_zone(open_sqlite: Callable[..., Any]) -> None:
    """Daily sums of one zone are not read as another's: the error says what to do."""
    await open_sqlite()
    with pytest.raises(StorageError, match=r"Europe/Berlin.*Set usage_plugin\.timezone back"):
        await open_sqlite(ZoneInfo("UTC"))


async def test_sqlite_refuses_a_newer_schema(open_sqlite: Callable[..., Any], tmp_path: Path) -> None:
    """A file that a newer version wrote is left alone."""
    connection = sqlite3.connect(tmp_path / "usage.db")
    connection.execute("PRAGMA user_version = 999")
    connection.close()
    with pytest.raises(StorageVersionError):
        await open_sqlite()
