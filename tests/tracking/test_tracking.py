"""Admission, recording, the cache, the flusher and the keeper, with the real ledger and the real store."""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import sys
import threading
from contextlib import asynccontextmanager
from datetime import date, datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

import pytest

from tests.support.waiting import calls_of, eventually
from usage_plugin.config import Config, load_config
from usage_plugin.domain.ledger import AccountKey, Balance
from usage_plugin.domain.subjects import Subjects
from usage_plugin.domain.usage import TokenUsage, UsageEvent, UsageTotals, new_event_id
from usage_plugin.encoding import decode_event, encode_event
from usage_plugin.errors import LedgerBusyError, StorageUnavailableError
from usage_plugin.ledgers.workers.file_locked_workers import FileLockedWorkers
from usage_plugin.runtime import Parts, Reader, Runtime, open_reader
from usage_plugin.testing.builders import make_event
from usage_plugin.testing.clock import FakeClock
from usage_plugin.tracking.admission.decisions import Admitted, Refusal
from usage_plugin.tracking.admission.demands import Ask, Candidate
from usage_plugin.tracking.admission.recorder import OpenRequest, Outcome
from usage_plugin.tracking.history.cache import UsageCache, user_day, user_month
from usage_plugin.tracking.maintenance import keeper as keeper_module
from usage_plugin.tracking.maintenance import supervisor
from usage_plugin.tracking.maintenance.flusher import Flusher
from usage_plugin.tracking.maintenance.keeper import Keeper

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from usage_plugin.domain.open_ledger import OpenLedger

CENT = 10_000_000
TODAY = date(2026, 11, 23)

LIMITS = """
    - {name: daily, per: user, window: day, max_cost: 1}
    - {name: team, per: team, match: {team: research}, window: month, max_cost: 2}
    - {name: opus, per: user, match: {model: "opus*"}, window: day, max_cost: "0.50"}
    - {name: rate, per: api_key, window: minute, max_requests: 3}
    - {name: tags, per: tag, window: day, max_total_tokens: 1000}
    - {name: tried, per: user, window: day, max_cost: "0.10", dry_run: true}
"""


def configure(folder: Path, limits: str = LIMITS, more: str = "") -> Config:
    path = folder / "config.yaml"
    if "admission:" not in more:
        # Tests of a busy account expect the refusal, not a wait.
        more += "\n  admission: {max_wait: 0s}"
    path.write_text(f"usage_plugin:\n  data_dir: ./data\n{more}\n  limits:{limits or ' []'}\n")
    return load_config(path)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
async def runtime(tmp_path: Path, clock: FakeClock) -> AsyncIterator[Runtime]:
    made = Runtime(configure(tmp_path), clock=clock)
    yield made
    await made.close()


def ask(
    clock: FakeClock,
    *,
    cost: int | None = CENT,
    fallbacks: tuple[Candidate, ...] = (),
    model: str = "gpt",
    **subjects: Any,
) -> Ask:
    who = Subjects(**{"user": "ann", **subjects})
    draft = UsageEvent(
        event_id=new_event_id(), started_at=clock.now(), status="recovered", call_type="acompletion", user=who.user,
        team=who.team, api_key=who.api_key, tags=who.tags, requested_model=model, model=model,
    )  # fmt: skip
    candidate = Candidate(model, "openai", cost is not None, cost)
    return Ask(draft=draft, subjects=who, primary=(candidate,), fallbacks=fallbacks, input_tokens=10, output_tokens=20)


async def admit(runtime: Runtime, request: Ask) -> Admitted | Refusal:
    return (await runtime.admission.admit(request)).outcome


async def admitted(runtime: Runtime, clock: FakeClock, **how: Any) -> OpenRequest:
    decision = await admit(runtime, ask(clock, **how))
    assert isinstance(decision, Admitted), decision
    return OpenRequest(decision, clock.monotonic())


def success(cost: int = CENT, **how: Any) -> Outcome:
    return Outcome(
        **{
            "status": "success",
            "model": "gpt",
            "provider": "openai",
            "tokens": TokenUsage(10, 5),
            "cost": cost,
            "cost_source": "computed",
            **how,
        }
    )


# ── admission ────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_reserved_money_counts_until_it_is_settled(runtime: Runtime, clock: FakeClock) -> None:
    """An amount in flight is not available: a request is refused as busy, and admitted after a smaller settlement."""
    first = await admitted(runtime, clock, cost=90 * CENT)
    refused = await admit(runtime, ask(clock, cost=20 * CENT))
    assert isinstance(refused, Refusal)
    assert (refused.reason, refused.retry_after, refused.balance) == ("busy", 1_000_000, Balance(0, 90 * CENT))
    runtime.recorder.record(first, success(10 * CENT))
    assert isinstance(await admit(runtime, ask(clock, cost=20 * CENT)), Admitted)


async def test_spent_and_too_large_are_told_apart(runtime: Runtime, clock: FakeClock) -> None:
    """A request that no longer fits in this window is refused as spent; one that fits in no window, as too large."""
    runtime.recorder.record(await admitted(runtime, clock, cost=95 * CENT), success(95 * CENT))
    spent = await admit(runtime, ask(clock, cost=6 * CENT))
    large = await admit(runtime, ask(clock, cost=101 * CENT))
    assert isinstance(spent, Refusal)
    assert isinstance(large, Refusal)
    assert (spent.reason, spent.retry_after) == ("spent", None)
    assert (large.reason, large.retry_after) == ("too_large", None)
    assert isinstance(await admit(runtime, ask(clock, cost=5 * CENT)), Admitted)


async def test_a_new_window_is_a_new_account(runtime: Runtime, clock: FakeClock) -> None:
    """A request counts in the window of its admission, even if it ends after midnight; no account is reset."""
    late = await admitted(runtime, clock, cost=90 * CENT)
    clock.set(datetime(2026, 11, 23, 23, 59, 30, tzinfo=timezone.utc))
    waiting = await admit(runtime, ask(clock, cost=90 * CENT))
    assert isinstance(waiting, Refusal)
    assert waiting.reason == "busy"
    clock.set(datetime(2026, 11, 24, 0, 0, 0, tzinfo=timezone.utc))
    assert isinstance(await admit(runtime, ask(clock, cost=90 * CENT)), Admitted)
    runtime.recorder.record(late, success(80 * CENT))
    limit = runtime.limits.limits[0]
    yesterday, today = (int(datetime(2026, 11, day, tzinfo=timezone.utc).timestamp()) * 1_000_000 for day in (23, 24))
    balances = runtime.ledger.balances([AccountKey(limit.key, yesterday, "ann"), AccountKey(limit.key, today, "ann")])
    assert list(balances.values()) == [Balance(80 * CENT, 0), Balance(0, 90 * CENT)]


async def test_a_window_that_ends_soon_is_worth_waiting_for(runtime: Runtime, clock: FakeClock) -> None:
    """Less than sixty seconds before the reset, a refusal by a spent limit has `retry_after`."""
    runtime.recorder.record(await admitted(runtime, clock, cost=100 * CENT), success(100 * CENT))
    clock.set(datetime(2026, 11, 23, 23, 59, 30, tzinfo=timezone.utc))
    refused = await admit(runtime, ask(clock))
    assert isinstance(refused, Refusal)
    assert (refused.reason, refused.retry_after) == ("busy", 30_000_000)


async def test_the_dearest_fallback_is_held(runtime: Runtime, clock: FakeClock) -> None:
    """A cheap model with an expensive fallback holds the fallback's cost, on its limits too, and is charged its own."""
    dear = Candidate("opus-1", "anthropic", True, 40 * CENT)
    request = await admitted(runtime, clock, cost=CENT, fallbacks=(dear,))
    daily, opus = runtime.limits.limits[0], runtime.limits.limits[2]
    start = int(datetime(2026, 11, 23, tzinfo=timezone.utc).timestamp()) * 1_000_000
    keys = [AccountKey(daily.key, start, "ann"), AccountKey(opus.key, start, "ann")]
    assert list(runtime.ledger.balances(keys).values()) == [Balance(0, 40 * CENT), Balance(0, 40 * CENT)]
    runtime.recorder.record(request, success(CENT))
    assert list(runtime.ledger.balances(keys).values()) == [Balance(CENT, 0), Balance(0, 0)]


async def test_without_room_for_the_fallback_it_is_switched_off(runtime: Runtime, clock: FakeClock) -> None:
    """If only the primary fits, the request is admitted without fallbacks."""
    decision = await admit(runtime, ask(clock, fallbacks=(Candidate("opus-1", None, True, 60 * CENT),)))
    assert isinstance(decision, Admitted)
    assert decision.without_fallbacks
    unpriced = await admit(runtime, ask(clock, fallbacks=(Candidate("mystery", None, False, None),)))
    assert isinstance(unpriced, Admitted)
    assert unpriced.without_fallbacks


async def test_what_has_no_price_or_no_bound_is_refused(runtime: Runtime, clock: FakeClock) -> None:
    """Under a cost limit, a request without a price and one without a bound have different reasons for refusal."""
    unpriced = await admit(runtime, ask(clock, cost=None))
    request = ask(clock)
    unbounded = await admit(
        runtime, request._replace(primary=(Candidate("gpt", "openai", True, None),), output_tokens=None)
    )
    assert isinstance(unpriced, Refusal)
    assert isinstance(unbounded, Refusal)
    assert (unpriced.reason, unbounded.reason) == ("unpriced", "unbounded")


async def test_every_tag_has_its_own_account(runtime: Runtime, clock: FakeClock) -> None:
    """A request with two tags counts on both, and one used-up tag refuses it."""
    for _ in range(33):
        runtime.recorder.record(
            await admitted(runtime, clock, cost=0, tags=("a", "b")), success(0, tokens=TokenUsage(10, 20))
        )
    refused = await admit(runtime, ask(clock, cost=0, tags=("c", "b")))
    assert isinstance(refused, Refusal)
    assert refused.demand is not None
    assert (refused.demand.limit.name, refused.demand.subject) == ("tags", "b")
    assert isinstance(await admit(runtime, ask(clock, cost=0, tags=("c",))), Admitted)


async def test_a_dry_run_is_reported_and_not_felt(runtime: Runtime, clock: FakeClock) -> None:
    """A dry-run limit counts and reports its refusals, and the request is admitted."""
    decision, dry_run_refusals = await runtime.admission.admit(ask(clock, cost=20 * CENT))
    assert isinstance(decision, Admitted)
    assert [(refusal.demand.limit.name, refusal.is_enforced) for refusal in dry_run_refusals if refusal.demand] == [
        ("tried", False)
    ]
    assert decision.account_status is not None
    assert decision.account_status.demand.limit.name == "daily"


async def test_enforcement_can_be_switched_off(
    tmp_path: Path, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """USAGE_PLUGIN_ENFORCE=off records everything and refuses nothing."""
    monkeypatch.setenv("USAGE_PLUGIN_ENFORCE", "off")
    runtime = Runtime(configure(tmp_path), clock=clock)
    for cost in (500 * CENT, None):
        request = await admitted(runtime, clock, cost=cost)
        assert runtime.recorder.record(request, success(500 * CENT)) is not None
    await runtime.close()


async def test_a_clock_that_goes_back_breaks_nothing(runtime: Runtime, clock: FakeClock) -> None:
    """Durations are monotonic, and a request admitted after a backward clock change counts in its own window."""
    request = await admitted(runtime, clock)
    clock.advance(timedelta(seconds=2))
    clock.set(datetime(2026, 11, 22, 1, tzinfo=timezone.utc))
    recorded = runtime.recorder.record(request, success())
    assert recorded is not None
    assert recorded.event.duration_us == 2_000_000
    assert isinstance(await admit(runtime, ask(clock, cost=100 * CENT)), Admitted)


# ── recording ────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_request_is_recorded_once(runtime: Runtime, clock: FakeClock) -> None:
    """The first terminal event counts; a second one settles nothing."""
    request = await admitted(runtime, clock)
    assert runtime.recorder.record(request, success()) is not None
    assert runtime.recorder.record(request, Outcome(status="failure")) is None
    assert len(runtime.ledger.outbox(0, 10)) == 1


async def test_excess_is_flagged(runtime: Runtime, clock: FakeClock) -> None:
    """A cost above the reserved worst case is charged and marked."""
    recorded = runtime.recorder.record(await admitted(runtime, clock, cost=CENT), success(3 * CENT))
    assert recorded is not None
    assert (recorded.event.excess, recorded.event.reserved) == (2 * CENT, CENT)


async def test_a_cache_hit_counts_nothing_but_a_request(runtime: Runtime, clock: FakeClock) -> None:
    """A cache hit is a request with zero tokens and zero cost; the cached response's usage is kept as raw usage."""
    recorded = runtime.recorder.record(
        await admitted(runtime, clock, api_key="k"), success(0, cache_hit=True, usage={"prompt_tokens": 10})
    )
    assert recorded is not None
    assert (recorded.event.input_tokens, recorded.event.cost, recorded.event.usage) == (0, 0, {"prompt_tokens": 10})


async def test_settling_waits_for_a_busy_ledger(runtime: Runtime, clock: FakeClock) -> None:
    """While another process holds the lock, settlements wait in order, and all of them are written later."""
    requests = [await admitted(runtime, clock, user=f"u{number}") for number in range(3)]
    other = sqlite3.connect(runtime.config.data_dir / "ledger.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    for request in requests:
        recorded = runtime.recorder.record(request, success())
        assert recorded is not None
        assert recorded.account_status is None
    assert runtime.request_ledger.pending == 3
    await asyncio.sleep(0.01)
    assert runtime.request_ledger.pending == 3
    other.execute("COMMIT")
    other.close()
    await runtime.request_ledger.drain(5)
    assert runtime.request_ledger.pending == 0
    assert len(runtime.ledger.outbox(0, 10)) == 3
    assert runtime.ledger.open_reservations() == []


async def test_what_has_waited_is_written_between_others_and_faster_than_more_comes(
    runtime: Runtime, clock: FakeClock
) -> None:
    """Hundreds of waiting settlements do not block the event loop, and they drain faster than new ones arrive."""
    requests = [await admitted(runtime, clock, user=f"u{number}") for number in range(700)]
    other = sqlite3.connect(runtime.config.data_dir / "ledger.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    for request in requests[:500]:
        runtime.recorder.record(request, success())
    other.execute("COMMIT")
    other.close()
    seen = []
    for number in range(500, 700, 10):
        for request in requests[number : number + 10]:
            runtime.recorder.record(request, success())
        await asyncio.sleep(0)
        seen.append(runtime.request_ledger.pending)
    await runtime.request_ledger.drain(5)
    assert len(set(seen)) > 3
    assert seen[-1] < 500
    assert len(runtime.ledger.outbox(0, 1_000)) == 700


async def test_admission_waits_for_a_busy_ledger(runtime: Runtime, clock: FakeClock) -> None:
    """A request that finds the ledger busy is admitted once it is free, and the event loop runs meanwhile."""
    other = sqlite3.connect(runtime.config.data_dir / "ledger.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    waiting = asyncio.create_task(admit(runtime, ask(clock)))
    await asyncio.sleep(0.02)
    assert not waiting.done()
    other.execute("COMMIT")
    other.close()
    assert isinstance(await waiting, Admitted)


# ── cache, flusher, tracker ──────────────────────────────────────────────────────────────────────────────────────────


@asynccontextmanager
async def reading(config: Config, clock: FakeClock) -> AsyncIterator[Reader]:
    async with open_reader(config, clock=clock) as reader:
        yield reader


def settle(parts: Parts, *events: UsageEvent) -> None:
    ledger = parts.open_ledger().ledger
    for event in events:
        ledger.reserve(event.event_id, "w", event.started_at, [], encode_event(event))
        assert ledger.settle(event.event_id, [], encode_event(event))
    ledger.close()


async def flush(parts: Parts) -> int:
    opened = parts.open_ledger()
    ledger = opened.ledger
    async with parts.open_store() as store:
        flusher = Flusher(ledger, opened.operations, store, parts.unstorable(FakeClock()))
        await flusher.begin()
        moved = 0
        while count := await flusher.flush():
            moved += count
    ledger.close()
    return moved


async def test_readers_see_the_outbox_and_the_store_as_one(tmp_path: Path, clock: FakeClock) -> None:
    """The results are the same before, between and after flushes, and nothing is counted twice."""
    parts = Parts(configure(tmp_path))
    early = [make_event(started_at=clock.now() + number) for number in range(3)]
    late = [make_event(started_at=clock.now() + number, user="bo") for number in (1, 5)]
    settle(parts, *early)
    await flush(parts)
    settle(parts, *late)
    expected = sorted(early + late, key=lambda e: (e.started_at, e.event_id))
    for _ in range(2):
        async with reading(parts.config, clock) as reader:
            rows = await reader.tracker.report(("user",), TODAY, TODAY)
            assert [(row.group, row.totals.requests) for row in rows] == [(("ann",), 3), (("bo",), 2)]
            assert [event async for event in reader.tracker.events()] == expected
            assert [event async for event in reader.tracker.events(newest_first=True)] == expected[::-1]
            assert (await reader.tracker.user_day("bo")).cost == 2 * CENT
        assert await flush(parts) in (2, 0)


async def test_flushing_again_after_a_lost_acknowledgement_is_safe(tmp_path: Path, clock: FakeClock) -> None:
    """If the keeper dies between storing and acknowledging, the next one detects that and repeats nothing."""
    parts = Parts(configure(tmp_path))
    settle(parts, *(make_event(started_at=clock.now()) for _ in range(3)))
    ledger = parts.open_ledger().ledger
    async with parts.open_store() as store:
        entries = ledger.outbox(0, 10)
        await store.append(ledger.writer, [(entry.seq, decode_event(entry.event)) for entry in entries])
    assert ledger.acknowledged() == 0
    ledger.close()
    await flush(parts)
    async with reading(parts.config, clock) as reader:
        (row,) = await reader.tracker.report((), TODAY, TODAY)
        assert row.totals.requests == 3


async def test_a_ledger_that_is_older_than_the_store_goes_on_behind_it(tmp_path: Path, clock: FakeClock) -> None:
    """After the ledger was restored from a backup, new events get numbers that the store has not seen."""
    parts = Parts(configure(tmp_path))
    settle(parts, make_event(started_at=clock.now()))
    path = parts.config.data_dir / "ledger.db"
    backup = path.read_bytes()
    settle(parts, *(make_event(started_at=clock.now()) for _ in range(5)))
    await flush(parts)
    for name in ("ledger.db-wal", "ledger.db-shm"):
        path.with_name(name).unlink(missing_ok=True)
    path.write_bytes(backup)
    settle(parts, make_event(started_at=clock.now()))
    await flush(parts)
    settle(parts, make_event(started_at=clock.now()))
    assert await flush(parts) == 1
    async with reading(parts.config, clock) as reader:
        (row,) = await reader.tracker.report((), TODAY, TODAY)
        assert row.totals.requests == 8


async def test_a_store_that_was_restored_gets_back_what_it_lacks(tmp_path: Path, clock: FakeClock) -> None:
    """After the store was replaced by an older copy, all events that are still in the outbox are sent again."""
    parts = Parts(configure(tmp_path))
    settle(parts, make_event(started_at=clock.now()))
    await flush(parts)
    path = parts.config.data_dir / "usage.db"
    backup = path.read_bytes()
    settle(parts, *(make_event(started_at=clock.now()) for _ in range(5)))
    await flush(parts)
    for name in ("usage.db-wal", "usage.db-shm"):
        path.with_name(name).unlink(missing_ok=True)
    path.write_bytes(backup)
    await flush(parts)
    async with reading(parts.config, clock) as reader:
        (row,) = await reader.tracker.report((), TODAY, TODAY)
        assert row.totals.requests == 6


def day_cache(size: int = 3) -> UsageCache:
    return UsageCache(size=size, retention_days=7, zone=ZoneInfo("UTC"))


async def test_the_cache_is_bounded_and_forgets_the_least_used(tmp_path: Path, clock: FakeClock) -> None:
    """The cache keeps its size for any number of users, and a clean-up removes old days."""
    parts = Parts(configure(tmp_path, more="  cache: {size: 3}"))
    settle(parts, *(make_event(started_at=clock.now(), user=f"u{number}") for number in range(10)))
    async with reading(parts.config, clock) as reader:
        cache = reader.tracker._user_sums._cache
        for number in range(10):
            assert (await reader.tracker.user_day(f"u{number}")).cost == CENT
        assert len(cache) == 3
        assert cache.get(user_day("u9", TODAY)) is not None
        cache.clean_up(TODAY + timedelta(days=6))
        assert len(cache) == 3
        cache.clean_up(TODAY + timedelta(days=7))
        assert len(cache) == 0


async def test_the_cache_sees_what_other_workers_record(tmp_path: Path, clock: FakeClock) -> None:
    """A cached sum stays correct when another process records, before and after the outbox is flushed."""
    parts = Parts(configure(tmp_path))
    settle(parts, make_event(started_at=clock.now()))
    async with reading(parts.config, clock) as reader:
        assert (await reader.tracker.user_day("ann")).cost == CENT
        settle(parts, make_event(started_at=clock.now()))
        assert (await reader.tracker.user_day("ann")).cost == 2 * CENT
        await flush(parts)
        settle(parts, make_event(started_at=clock.now()), make_event(started_at=clock.now(), user="bo"))
        await flush(parts)
        assert (await reader.tracker.user_day("ann")).cost == 3 * CENT
        assert (await reader.tracker.user_day("bo")).cost == CENT


@pytest.mark.parametrize("kept", [2_000, 1])
async def test_a_sum_is_right_while_events_move_into_the_store(
    tmp_path: Path, clock: FakeClock, monkeypatch: pytest.MonkeyPatch, kept: int
) -> None:
    """An event that moves from the outbox into the store between the two reads is counted once."""
    monkeypatch.setattr("usage_plugin.ledgers.sqlite.outbox.KEPT_ENTRIES", kept)
    parts = Parts(configure(tmp_path))
    settle(parts, make_event(started_at=clock.now()))
    async with reading(parts.config, clock) as reader:
        look = reader.store.aggregate
        moves = [1, 1]

        async def look_and_move(*what: Any) -> Any:
            found = await look(*what)
            if moves:
                settle(parts, *(make_event(started_at=clock.now()) for _ in range(3 * moves.pop())))
                await flush(parts)
            return found

        monkeypatch.setattr(reader.store, "aggregate", look_and_move)
        first = await reader.tracker.user_day("ann")
        settle(parts, make_event(started_at=clock.now()))
        seen = 7 if kept == 1 else 4
        assert (first.requests, (await reader.tracker.user_day("ann")).requests) == (seen, seen + 1)


async def test_months_are_cached_like_days(tmp_path: Path, clock: FakeClock) -> None:
    """A month is read once from the store; later records of any of its days update it."""
    parts = Parts(configure(tmp_path))
    settle(parts, *(make_event(started_at=clock.now() - days * 86_400_000_000) for days in (0, 9, 23)))
    await flush(parts)
    async with reading(parts.config, clock) as reader:
        assert (await reader.tracker.user_month("ann")).requests == 2
        assert (await reader.tracker.user_month("ann", date(2026, 10, 5))).requests == 1
        settle(parts, make_event(started_at=clock.now()), make_event(started_at=clock.now(), user="bo"))
        cache = reader.tracker._user_sums._cache
        assert (await reader.tracker.user_month("ann", date(2026, 11, 30))).requests == 3
        assert len(cache) == 2
        cache.clean_up(date(2026, 12, 7))
        assert len(cache) == 0


async def test_the_cache_forgets_what_it_cannot_catch_up_with(
    tmp_path: Path, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If entries left the outbox before the cache has read them, all cached sums are reloaded."""
    monkeypatch.setattr("usage_plugin.ledgers.sqlite.outbox.KEPT_ENTRIES", 1)
    parts = Parts(configure(tmp_path))
    settle(parts, make_event(started_at=clock.now()))
    async with reading(parts.config, clock) as reader:
        assert (await reader.tracker.user_day("ann")).cost == CENT
        settle(parts, *(make_event(started_at=clock.now()) for _ in range(20)))
        await flush(parts)
        assert (await reader.tracker.user_day("ann")).cost == 21 * CENT


async def test_recording_keeps_the_cache_current(runtime: Runtime, clock: FakeClock) -> None:
    """Records of this worker are in its cache at once."""
    runtime.recorder.record(await admitted(runtime, clock), success())
    keys = user_day("ann", TODAY), user_month("ann", TODAY)
    runtime.cache.catch_up(runtime.ledger)
    for key in keys:
        runtime.cache.put(key, UsageTotals(cost=CENT))
    runtime.recorder.record(await admitted(runtime, clock), success())
    for key in keys:
        cached = runtime.cache.get(key)
        assert cached is not None
        assert cached.cost == 2 * CENT


# ── keeper and workers ───────────────────────────────────────────────────────────────────────────────────────────────


def test_the_dead_are_told_from_the_living(tmp_path: Path) -> None:
    """A worker counts as alive for as long as its process runs; the kernel decides that, not a heartbeat."""
    code = "import sys,time; from pathlib import Path; from usage_plugin.ledgers.workers.file_locked_workers import FileLockedWorkers;"
    code += f"w=FileLockedWorkers(Path({str(tmp_path)!r})); w.join(); print(w.name, w.try_to_keep(), flush=True); time.sleep(60)"
    other = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]
    )
    assert other.stdout is not None
    name, keeps = other.stdout.readline().split()
    mine = FileLockedWorkers(tmp_path)
    mine.join()
    assert keeps == "True"
    assert sorted(mine.living()) == sorted([name, mine.name])
    assert not mine.is_dead(name)
    assert not mine.try_to_keep()
    other.kill()
    other.wait()
    other.stdout.close()
    assert mine.is_dead(name)
    assert mine.try_to_keep()
    mine.sweep()
    assert mine.living() == [mine.name]
    mine.leave()
    assert mine.living() == []


async def test_the_keeper_flushes_and_recovers(tmp_path: Path) -> None:
    """Settled events reach the store by themselves, and a dead worker's open reservations are settled as reserved."""
    parts = Parts(configure(tmp_path))
    ledger = parts.open_ledger().ledger
    dead = make_event(status="recovered")
    ledger.reserve(dead.event_id, "999999-dead", dead.started_at, [], encode_event(dead))
    runtime = Runtime(parts.config)
    await eventually(lambda: ledger.acknowledged() == 1)
    assert ledger.open_reservations() == []
    await runtime.close()
    ledger.close()
    async with parts.open_store() as store:
        assert await store.watermark(ledger.writer) == 1


async def test_the_keeper_never_touches_the_living(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reservations of live workers stay open for any length of time."""
    monkeypatch.setattr(keeper_module, "ROUND_EVERY", 0.1)
    swept = calls_of(monkeypatch, FileLockedWorkers, "sweep")
    runtime = Runtime(configure(tmp_path))
    clock = FakeClock(datetime.now(timezone.utc))
    await admitted(runtime, clock)
    before = len(swept)
    await eventually(lambda: len(swept) > before + 1)
    assert len(runtime.ledger.open_reservations()) == 1
    await runtime.close()


async def test_closing_flushes_what_is_settled(tmp_path: Path) -> None:
    """After an orderly end, the store has all events and the outbox none."""
    runtime = Runtime(configure(tmp_path))
    clock = FakeClock(datetime.now(timezone.utc))
    for number in range(50):
        runtime.recorder.record(await admitted(runtime, clock, user=f"u{number}"), success())
    await runtime.close(60)
    parts = Parts(runtime.config)
    async with parts.open_store() as store:
        ledger = parts.open_ledger().ledger
        assert await store.watermark(ledger.writer) == 50 == ledger.acknowledged()
        ledger.close()


async def test_closing_waits_for_who_writes(tmp_path: Path, clock: FakeClock) -> None:
    """Counts, refusals and alerts in memory are written even if the ledger is busy during the end."""
    limits = "    - {name: daily, per: user, window: day, max_cost: 1, alert_at: [50]}"
    runtime = Runtime(configure(tmp_path, f"\n{limits}"), clock=clock)
    runtime.recorder.record(await admitted(runtime, clock, cost=60 * CENT), success(60 * CENT))
    refused = await admit(runtime, ask(clock, cost=60 * CENT))
    assert isinstance(refused, Refusal)
    runtime.refusals.add(refused)
    runtime.anomalies.count("orphaned", "gpt")
    path = runtime.config.data_dir / "ledger.db"
    other = sqlite3.connect(path, timeout=60, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    writing = threading.Timer(0.5, other.execute, ["COMMIT"])
    writing.start()
    await runtime.close(60)
    writing.join()
    assert other.execute("SELECT ref FROM refusals").fetchall() == [(refused.ref,)]
    assert other.execute("SELECT kind FROM imperfections").fetchall() == [("orphaned",)]
    assert other.execute("SELECT threshold FROM alerts").fetchall() == [(50,)]
    other.close()


@pytest.mark.parametrize("failures", [0, 1])
async def test_an_end_before_the_first_turn_flushes_as_well(tmp_path: Path, clock: FakeClock, failures: int) -> None:
    """If the end comes while the ledger is being opened, or just failed to open, the store still gets all events."""
    parts = Parts(configure(tmp_path))
    settle(parts, *(make_event(started_at=clock.now()) for _ in range(3)))
    workers = parts.workers()
    workers.join()
    told_to_stop = threading.Event()
    opened = 0

    def open_ledger() -> OpenLedger:
        nonlocal opened
        told_to_stop.wait(60)
        opened += 1
        if opened <= failures:
            raise LedgerBusyError("somebody writes")
        return parts.open_ledger()

    keeper = Keeper(open_ledger, parts.open_store, workers, clock, unstorable=parts.unstorable(clock))
    keeper.start()
    stopping = asyncio.create_task(asyncio.to_thread(keeper.stop, 60))
    await eventually(keeper._stopping.is_set)
    told_to_stop.set()
    await stopping
    ledger = parts.open_ledger().ledger
    assert ledger.acknowledged() == 3
    ledger.close()
    workers.leave()


async def test_an_end_just_after_a_failure_flushes_as_well(tmp_path: Path, clock: FakeClock) -> None:
    """An orderly end just after a failure of the store retries at once, without the usual pause."""
    parts = Parts(configure(tmp_path))
    settle(parts, *(make_event(started_at=clock.now()) for _ in range(3)))
    failed = threading.Event()

    @asynccontextmanager
    async def open_store() -> AsyncIterator[Any]:
        if not failed.is_set():
            failed.set()
            raise StorageUnavailableError("unplugged")
        async with parts.open_store() as store:
            yield store

    workers = parts.workers()
    workers.join()
    keeper = Keeper(parts.open_ledger, open_store, workers, clock, unstorable=parts.unstorable(clock))
    keeper.start()
    await eventually(failed.is_set)
    await asyncio.to_thread(keeper.stop, 60)
    ledger = parts.open_ledger().ledger
    assert ledger.acknowledged() == 3
    ledger.close()
    workers.leave()


async def test_a_store_that_fails_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: FakeClock
) -> None:
    """While the store cannot be opened, recording continues; afterwards all events drain in order."""
    monkeypatch.setattr(keeper_module, "ROUND_EVERY", 0.1)
    monkeypatch.setattr(supervisor, "FIRST_PAUSE", 0.1)
    parts = Parts(configure(tmp_path))
    broken, refused = True, []

    @asynccontextmanager
    async def open_store() -> AsyncIterator[Any]:
        if broken:
            refused.append(clock.now())
            raise StorageUnavailableError("unplugged")
        async with parts.open_store() as store:
            yield store

    settle(parts, *(make_event(started_at=clock.now() + n) for n in range(600)))
    workers = parts.workers()
    workers.join()
    keeper = Keeper(parts.open_ledger, open_store, workers, clock, unstorable=parts.unstorable(clock))
    keeper.start()
    ledger = parts.open_ledger().ledger
    await eventually(lambda: len(refused) > 1)
    assert ledger.acknowledged() == 0
    settle(parts, make_event(started_at=clock.now()))
    broken = False
    await eventually(lambda: ledger.acknowledged() == 601)
    await asyncio.to_thread(keeper.stop, 5)
    workers.leave()
    ledger.close()
    async with reading(parts.config, clock) as reader:
        (row,) = await reader.tracker.report((), TODAY, TODAY)
        assert row.totals.requests == 601


def test_lock_files_are_private(tmp_path: Path) -> None:
    """Only the owner can read lock files."""
    workers = FileLockedWorkers(tmp_path / "workers")
    workers.join()
    assert all(path.stat().st_mode & 0o077 == 0 for path in (tmp_path / "workers").rglob("*"))
    assert (tmp_path / "workers").stat().st_mode & 0o077 == 0
    workers.leave()


async def test_what_nobody_can_tell_is_charged_as_reserved(runtime: Runtime, clock: FakeClock) -> None:
    """An orphan is charged its holds, on each account in its own unit, and its event has the reserved cost."""
    request = await admitted(runtime, clock, cost=4 * CENT, tags=("a",))
    held = {demand.account: demand.amount for demand in request.admitted.demands}
    assert sorted(held.values()) == [30, 4 * CENT, 4 * CENT]
    recorded = runtime.recorder.record(request, Outcome(status="cancelled", as_reserved=True))
    assert recorded is not None
    event = recorded.event
    assert (event.status, event.cost, event.cost_source, event.estimated) == ("cancelled", 4 * CENT, "reserved", True)
    balances = runtime.ledger.balances(list(held))
    assert balances == {account: Balance(amount, 0) for account, amount in held.items()}


async def test_excess_is_measured_where_least_was_held(runtime: Runtime, clock: FakeClock) -> None:
    """A cost on an account without a hold is excess, although the most expensive candidate was reserved."""
    request = await admitted(runtime, clock, cost=9 * CENT)
    recorded = runtime.recorder.record(request, success(9 * CENT, model="opus-9"))
    assert recorded is not None
    assert recorded.event.excess == 9 * CENT
