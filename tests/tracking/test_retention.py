"""History is pruned by age and by size: in slices, concurrently with all other work, never all at once."""

from __future__ import annotations

import logging
import time
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

import pytest

from tests.support.waiting import eventually
from tests.tracking.test_tracking import CENT, admitted, configure, success
from usage_plugin.domain.store import UsageFilter
from usage_plugin.domain.usage import UsageEvent
from usage_plugin.domain.windows import ALWAYS
from usage_plugin.encoding import encode_event
from usage_plugin.errors import StorageUnavailableError
from usage_plugin.runtime import Parts, Runtime
from usage_plugin.testing.builders import NOON, make_event, record_new
from usage_plugin.testing.clock import FakeClock
from usage_plugin.testing.store_model import days_of
from usage_plugin.tracking.maintenance import retention
from usage_plugin.tracking.maintenance.flusher import Flusher
from usage_plugin.tracking.maintenance.retention import Pruner, Retention, last_run
from usage_plugin.tracking.maintenance.supervisor import Attempt
from usage_plugin.tracking.notifications.health import problems

if TYPE_CHECKING:
    from pathlib import Path

    from usage_plugin.domain.store import UsageStore

DAY = 86_400_000_000
HOUR = DAY // 24


class History:
    """A ledger, a store with a number of events on each day before noon, and a pruner."""

    def __init__(self, folder: Path, *, backend: str = "sqlite", **retention: Any) -> None:
        self.parts = Parts(configure(folder, more=f"  storage: {{backend: {backend}}}"))
        self.clock = FakeClock()
        opened = self.parts.open_ledger()
        self.ledger, self.operations = opened.ledger, opened.operations
        self.retention = Retention(**{"events": 90, "daily": 1830, "max_size": None, **retention})
        self.pruner = Pruner(lambda: self.retention, ZoneInfo("UTC"), self.clock)
        self.attempt = Attempt()

    async def fill(self, store: UsageStore, days: int, each: int = 10) -> list[UsageEvent]:
        events = [
            make_event(started_at=NOON - day * DAY - second * 1_000_000)
            for day in range(days)
            for second in range(each)
        ]
        await store.append("w", list(enumerate(events, 1)))
        return events

    async def run(self, store: UsageStore) -> None:
        """Take turns until the run is finished."""
        before = last_run(self.operations)
        for _ in range(1_000):
            await self.pruner.turn(self.operations, store, self.attempt)
            if last_run(self.operations) != before or self.pruner._run is None:
                return
        raise AssertionError("it does not end")


async def days_left(store: UsageStore) -> int:
    return len({event.started_at // DAY async for event in store.events(ALWAYS, UsageFilter())})


async def sums(store: UsageStore) -> int:
    return sum([one.totals.requests for one in await days_of(store)])


@pytest.mark.parametrize("backend", ["sqlite", "memory"])
async def test_what_is_too_old_goes_and_its_sums_stay(tmp_path: Path, backend: str) -> None:
    """Events are deleted after `events`, daily sums after `daily`, exact to the day."""
    history = History(tmp_path, backend=backend, events=90, daily=100)
    async with history.parts.open_store() as store:
        events = await history.fill(store, 120)
        await history.run(store)
        kept = [event.started_at async for event in store.events(ALWAYS, UsageFilter())]
        assert kept == sorted(event.started_at for event in events if event.started_at >= NOON - 90 * DAY)
        assert await sums(store) == 101 * 10
    run = last_run(history.operations)
    assert run is not None
    assert (run.records, run.events_before) == (len(events) - len(kept) + 19, NOON - 90 * DAY)


async def test_nothing_goes_where_everything_is_kept(tmp_path: Path) -> None:
    """`unlimited` keeps everything for ever."""
    history = History(tmp_path, events=None, daily=None)
    async with history.parts.open_store() as store:
        await history.fill(store, 5_000, 1)
        await history.run(store)
        assert await days_left(store) == 5_000
    assert last_run(history.operations) is None


async def test_a_slice_is_short_and_the_outbox_is_looked_at_between_turns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For any amount of old records, a transaction deletes at most 1,000, and a turn ends soon."""
    monkeypatch.setattr(retention, "TURN", 0.0)
    history = History(tmp_path, events=1, daily=None)
    async with history.parts.open_store() as store:
        events = await history.fill(store, 3, 2_000)
        deleted = []
        real = store.prune

        async def prune(**how: Any) -> int:
            assert how["most"] == 1_000
            deleted.append(await real(**how))
            return deleted[-1]

        monkeypatch.setattr(store, "prune", prune)
        turns = 0
        while last_run(history.operations) is None:
            await history.pruner.turn(history.operations, store, history.attempt)
            turns += 1
        assert max(deleted) == 1_000
        assert sum(deleted) == len([event for event in events if event.started_at < NOON - DAY])
        assert turns >= len(deleted) > 3


async def test_requests_and_flushes_go_on_while_history_is_pruned(tmp_path: Path) -> None:
    """While 30,000 events are pruned, requests are admitted and settled, and their events reach the store."""
    parts = Parts(configure(tmp_path))
    async with parts.open_store() as store:
        events = [make_event(started_at=NOON - 200 * DAY + n) for n in range(30_000)]
        for start in range(0, len(events), 5_000):
            await store.append("w", list(enumerate(events[start : start + 5_000], start + 1)))
        await store.append("w", [(30_001, make_event())])
    clock = FakeClock()
    runtime = Runtime(parts.config, clock=clock)
    opened = parts.open_ledger()
    ledger = opened.ledger
    try:
        flushed_meanwhile = 0
        deadline = time.monotonic() + 60
        while (run := last_run(opened.operations)) is None:
            assert time.monotonic() < deadline
            runtime.recorder.record(await admitted(runtime, clock, cost=1), success(1))
            flushed_meanwhile = max(flushed_meanwhile, ledger.acknowledged())
            assert ledger.waiting().events < 10_000
            await eventually(lambda: True)
        assert run.records == 30_000
        assert flushed_meanwhile > 0
    finally:
        await runtime.close()
        ledger.close()


async def test_a_store_that_is_too_large_loses_its_oldest_events(tmp_path: Path) -> None:
    """Above max_size the oldest events are deleted before their time, and their sums stay."""
    history = History(tmp_path)
    async with history.parts.open_store() as store:
        await history.fill(store, 60, 100)
        whole = await store.size()
        history.retention = history.retention._replace(max_size=whole // 2)
        await history.run(store)
        assert await store.size() <= whole // 2
        oldest = await retention.oldest_event(store)
        assert oldest is not None
        assert NOON - 40 * DAY < oldest.started_at < NOON - 10 * DAY
        assert await sums(store) == 6_000
    run = last_run(history.operations)
    assert run is not None
    assert run.events_before > NOON - 40 * DAY
    assert problems(history.operations) == []


async def test_a_days_events_stay_however_small_the_store_must_be(tmp_path: Path) -> None:
    """If a store cannot become small enough, the problem is reported and the newest day's events are kept."""
    history = History(tmp_path, max_size=10_000)
    async with history.parts.open_store() as store:
        await history.fill(store, 20, 100)
        await history.run(store)
        assert await days_left(store) == 2
        (problem,) = problems(history.operations)
        assert problem.name == "retention"
        assert "max_size" in problem.text
        history.retention = Retention(None, None, None)
        await history.pruner.turn(history.operations, store, history.attempt)
        assert problems(history.operations) == []


async def test_a_wrong_clock_does_not_delete_everything(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """After the clock jumps by ten years, each run deletes one day, even with new requests, and `status` reports it."""
    history = History(tmp_path)
    async with history.parts.open_store() as store:
        await history.fill(store, 90)
        await history.run(store)
        assert await days_left(store) == 90
        history.clock.set(datetime(2036, 11, 23, 12, tzinfo=timezone.utc))
        await store.append("w", [(10_000, make_event(started_at=history.clock.now()))])
        with caplog.at_level(logging.WARNING, "usage_plugin"):
            await history.run(store)
        assert await days_left(store) == 91
        assert "retention.careful" in caplog.text
        assert "clock" in {problem.name for problem in problems(history.operations)}
        for hour in range(1, 4):
            history.clock.advance(timedelta(hours=1))
            await history.run(store)
            assert await days_left(store) == 91 - hour
        # After the correction, pruning is as before.
        history.clock.set(datetime(2026, 11, 23, 18, tzinfo=timezone.utc))
        await history.run(store)
        assert problems(history.operations) == []
        assert await days_left(store) == 88


async def test_a_clock_that_was_never_right_deletes_nothing_at_first(tmp_path: Path) -> None:
    """Before the first run, the newest event gives the current day; without events nothing is pruned."""
    history = History(tmp_path)
    history.clock.set(datetime(2046, 1, 1, tzinfo=timezone.utc))
    async with history.parts.open_store() as store:
        await history.run(store)
        assert last_run(history.operations) is None
        await history.fill(store, 90)
        await history.run(store)
        assert await days_left(store) == 90


async def test_it_runs_once_an_hour(tmp_path: Path) -> None:
    """A run starts soon after the worker does, and then one hour after the last run of any worker."""
    history = History(tmp_path)
    async with history.parts.open_store() as store:
        await history.fill(store, 100)
        await history.run(store)
        first = last_run(history.operations)
        another = Pruner(lambda: history.retention, ZoneInfo("UTC"), history.clock)
        history.clock.advance(timedelta(minutes=59))
        await another.turn(history.operations, store, history.attempt)
        assert last_run(history.operations) == first
        history.clock.advance(timedelta(minutes=1))
        await another.turn(history.operations, store, history.attempt)
        assert last_run(history.operations) != first


async def test_a_run_that_fails_begins_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that becomes unavailable during a run delays pruning and loses no other records."""
    history = History(tmp_path)
    async with history.parts.open_store() as store:
        await history.fill(store, 100, 100)
        real = store.prune
        calls = 0

        async def prune(**how: Any) -> int:
            nonlocal calls
            calls += 1
            if calls == 2:
                raise StorageUnavailableError
            return await real(**how)

        monkeypatch.setattr(store, "prune", prune)
        with pytest.raises(StorageUnavailableError):
            await history.run(store)
        assert last_run(history.operations) is None
        await history.run(store)
        assert await days_left(store) == 91


async def test_an_end_is_not_held_up(tmp_path: Path) -> None:
    """A worker that stops also stops pruning at once."""
    history = History(tmp_path)
    history.attempt.end()
    async with history.parts.open_store() as store:
        await history.fill(store, 100)
        await history.pruner.turn(history.operations, store, history.attempt)
        assert await days_left(store) == 100


async def test_a_new_limit_says_what_it_cannot_count(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A new limit whose window exceeds the retention of events, and which daily sums cannot backfill, is named."""
    limits = """
    - {name: long, per: user, window: {rolling: 100d}, max_cost: 1}
    - {name: tags, per: tag, window: year, max_cost: 1}
    - {name: year, per: user, window: year, max_cost: 1}
    - {name: short, per: user, window: {rolling: 30d}, max_cost: 1}
"""
    config = configure(tmp_path, limits, "  retention: {events: 90d}")
    parts, clock = Parts(config), FakeClock()
    opened = parts.open_ledger()
    ledger = opened.ledger
    opened.operations.note(
        retention.NOTE,
        f'{{"at": {NOON}, "today": {NOON}, "events_before": {NOON - 90 * DAY}, "records": 1, "size": 1}}',
    )
    record_new(ledger, [], encode_event(make_event(cost=CENT)))
    async with parts.open_store() as store:
        await Flusher(ledger, opened.operations, store, parts.unstorable(clock)).flush()
    with caplog.at_level(logging.INFO, "usage_plugin"):
        runtime = Runtime(config, clock=clock)
        await eventually(lambda: "limits.seeded" in caplog.text)
        await runtime.close()
    (told,) = [record.getMessage() for record in caplog.records if "limits.history_was_pruned" in record.getMessage()]
    assert "['long', 'tags']" in told
    ledger.close()


async def test_a_new_limit_says_whom_pseudonyms_hide(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """With pseudonyms, a new limit counts the history of literal names; if its globs miss others, it is named."""
    limits = """
    - {name: exact, per: user, match: {user: [eva]}, window: day, max_cost: 1}
    - {name: glob, per: user, match: {user: "b*"}, window: day, max_cost: 1}
    - {name: all, per: user, window: day, max_cost: 1}
"""
    config = configure(tmp_path, limits, "  privacy: {user: pseudonym}")
    parts, clock = Parts(config), FakeClock()
    pseudonyms, ledger = parts.make_pseudonyms(), parts.open_ledger().ledger
    for name in ("eva", "bo"):
        record_new(ledger, [], encode_event(make_event(user=pseudonyms.of_person(name), cost=CENT)))
    with caplog.at_level(logging.INFO, "usage_plugin"):
        runtime = Runtime(config, clock=clock)
        await eventually(lambda: "limits.seeded" in caplog.text)
        spent = {
            limit.name: [account.balance.spent for account in ledger.accounts(limit.key, 0)]
            for limit in runtime.limits.limits
        }
        await runtime.close()
    assert spent == {"exact": [CENT], "glob": [], "all": [CENT, CENT]}
    (told,) = [found.getMessage() for found in caplog.records if "history_has_pseudonyms" in found.getMessage()]
    assert "['glob']" in told
    ledger.close()
