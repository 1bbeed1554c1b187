"""A new limit is backfilled with the exact use of its windows, to the nano-dollar, during any concurrent work."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

import pytest

from tests.support.waiting import calls_of, eventually
from tests.tracking.test_tracking import CENT, admitted, configure, success
from usage_plugin.config import ConfigFile
from usage_plugin.domain.ledger import AccountKey, Balance, Charge, Hold
from usage_plugin.domain.limit_set import LimitSet
from usage_plugin.domain.operations import Adjustment
from usage_plugin.domain.subjects import Subjects
from usage_plugin.domain.usage import UsageEvent, subjects_of, totals_of
from usage_plugin.encoding import encode_event
from usage_plugin.runtime import Parts, Runtime
from usage_plugin.testing.builders import make_event, record_new
from usage_plugin.testing.clock import FakeClock
from usage_plugin.tracking.admission.active_limits import NOTE, ActiveLimits
from usage_plugin.tracking.ledger_retry import wait_while_busy
from usage_plugin.tracking.maintenance import backfill
from usage_plugin.tracking.maintenance import keeper as keeper_module
from usage_plugin.tracking.maintenance.backfill import Backfill
from usage_plugin.tracking.maintenance.flusher import Flusher
from usage_plugin.tracking.notifications.health import problems

if TYPE_CHECKING:
    from usage_plugin.domain.store import UsageStore

ZONE = "America/New_York"
MANY = """
    - {name: day, per: user, window: day, max_cost: 1}
    - {name: tokens, per: [team, user], window: month, max_total_tokens: 100}
    - {name: elsewhere, per: user, window: day, timezone: Asia/Kolkata, max_cost: 1}
    - {name: hour, per: api_key, window: hour, max_input_tokens: 100}
    - {name: week, per: global, window: week, max_output_tokens: 100}
    - {name: ever, per: user, window: lifetime, timezone: UTC, max_requests: 100}
    - {name: group, per: user, match: {group: power}, window: month, max_cost: 1}
    - {name: model, per: [user, model], match: {model: "gpt*"}, window: quarter, max_cost: 1}
    - {name: provider, per: provider, window: year, max_requests: 1}
    - {name: tag, per: tag, match: {tag: "a*"}, window: day, max_cost: 1}
    - {name: rolling, per: user, window: {rolling: 5h}, max_cost: 1}
    - {name: minutes, per: user, window: {rolling: 10m}, max_requests: 1}
    - {name: session, per: session, window: session, max_cost: 1}
    - {name: single, per: user, window: request, max_cost: 1}
    - {name: parallel, per: user, max_parallel_requests: 3}
    - {name: warned, per: end_user, window: day, max_cost: 1, action: warn}
    - {name: from-now, per: user, window: day, max_cost: 1, count_from: now}
"""
MORE = f"""
  timezone: {ZONE}
  groups: {{power: [ann, "b*"]}}
"""
NOW = datetime(2026, 11, 1, 6, 40, tzinfo=timezone.utc)  # in New York, the second hour from one to two


class Data:
    """A ledger and a store with test data."""

    def __init__(self, folder: Path, limits: str = MANY) -> None:
        self.parts = Parts(configure(folder, limits, MORE))
        self.clock = FakeClock(NOW)
        opened = self.parts.open_ledger()
        self.ledger, self.operations = opened.ledger, opened.operations
        self.workers = self.parts.workers()
        self.workers.join()
        self.rules = ActiveLimits(self.parts.config.limit_set())
        self.seeder = Backfill(self.rules, self.workers, self.parts.config.timezone, self.clock)
        self.operations.note(NOTE + self.workers.name, self.rules.digest)

    def settle(self, *events: UsageEvent) -> None:
        for event in events:
            record_new(self.ledger, [], encode_event(event))

    async def flush(self, store: UsageStore) -> None:
        flusher = Flusher(self.ledger, self.operations, store, self.parts.unstorable(self.clock))
        await flusher.begin()
        await flusher.flush_all()

    async def seed(self, store: UsageStore) -> None:
        await self.seeder.seed_new(self.ledger, self.operations, store, lambda: None)

    def accounts(self) -> dict[AccountKey, int]:
        return {
            account.key: account.balance.spent
            for limit in self.rules.limits.limits
            for account in self.ledger.accounts(limit.key, 0)
            if account.balance.spent
        }

    def expected(self, events: list[UsageEvent]) -> dict[AccountKey, int]:
        """Return the charges that the recorder would have made if the limits had always existed."""
        spent: Counter[AccountKey] = Counter()
        now = self.clock.now()
        limits = self.rules.limits
        for event in events:
            for matched in limits.matching(subjects_of(event), event.model, event.provider):
                limit = matched.limit
                if not limit.is_charged or limit.name == "from-now":
                    continue
                window, since = limit.window_at(event.started_at), limit.since_at(now)
                current = limit.window_at(now)
                if (window.start >= since) if since is not None else (window.start == current.start):
                    totals = totals_of(event)
                    spent[AccountKey(limit.key, window.start, matched.subject)] += {
                        "usd": totals.cost,
                        "total_tokens": totals.input_tokens + totals.output_tokens,
                        "input_tokens": totals.input_tokens,
                        "output_tokens": totals.output_tokens,
                        "requests": 1,
                    }[limit.unit]
        return {key: amount for key, amount in spent.items() if amount}


def random_events(chance: random.Random, count: int) -> list[UsageEvent]:
    spans = [60, 3_600, 86_400, 25 * 86_400]
    now = int(NOW.timestamp() * 1e6)
    return [
        make_event(
            started_at=now - int(chance.random() * 1e6 * chance.choice(spans)),
            status=chance.choice(["success", "failure", "cancelled", "recovered"]),
            user=chance.choice(["ann", "bo", "cy", "(anonymous)"]),
            team=chance.choice([None, "red", "blue"]),
            api_key=chance.choice([None, "k1"]),
            end_user=chance.choice([None, "e1", "e2"]),
            session=chance.choice([None, "s1", "s2"]),
            tags=tuple(chance.sample(["a1", "a2", "b1"], chance.randint(0, 3))),
            model=chance.choice([None, "gpt-1", "gpt-2", "opus"]),
            provider=chance.choice([None, "openai"]),
            cost=chance.choice([None, 0, chance.randint(1, 10**9)]),
            input_tokens=chance.randint(0, 1000),
            output_tokens=chance.randint(0, 1000),
        )
        for _ in range(count)
    ]  # fmt: skip


@pytest.mark.parametrize("luck", range(8))
async def test_seeded_accounts_equal_the_events(tmp_path: Path, luck: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the backfill, limits of every kind contain the exact sum of the events that they would have counted."""
    chance = random.Random(luck)
    monkeypatch.setattr(backfill, "_AT_ONCE", chance.choice([1, 3, 250]))
    data = Data(tmp_path)
    events = random_events(chance, chance.choice([0, 5, 400]))
    stored = chance.randint(0, len(events))
    async with data.parts.open_store() as store:
        data.settle(*events[:stored])
        await data.flush(store)
        # These are not in the store yet.
        data.settle(*events[stored:])
        await data.seed(store)
        assert data.accounts() == data.expected(events)
        names = {limit.key: limit.name for limit in data.rules.limits.limits}
        assert len(events) < 400 or len({names[key.limit_key] for key in data.accounts()}) == 14


@pytest.mark.parametrize("luck", range(4))
async def test_what_is_settled_while_accounts_are_set_counts_once(
    tmp_path: Path, luck: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Settlements during a backfill count once, on accounts that are already set, not yet set, or new."""
    chance = random.Random(luck)
    monkeypatch.setattr(backfill, "_AT_ONCE", 2)
    data = Data(tmp_path, "\n    - {name: day, per: user, window: day, max_cost: 1}")
    (limit,) = data.rules.limits.limits
    window = limit.window_at(data.clock.now())
    events: list[UsageEvent] = []

    def settle_as_a_worker() -> None:
        for _ in range(chance.randint(0, 3)):
            event = make_event(
                started_at=data.clock.now(), user=f"u{chance.randint(0, 29)}", cost=chance.randint(1, 99)
            )
            charge = Charge(AccountKey(limit.key, window.start, event.user), window.end, event.cost or 0)
            record_new(data.ledger, [charge], encode_event(event))
            events.append(event)

    async with data.parts.open_store() as store:
        events += [make_event(started_at=data.clock.now(), user=f"u{number}", cost=number) for number in range(20)]
        data.settle(*events[:15])
        await data.flush(store)
        data.settle(*events[15:])
        await data.seeder.seed_new(data.ledger, data.operations, store, settle_as_a_worker)
        assert len(events) > 25
        assert data.accounts() == data.expected(events)


async def test_many_accounts_are_corrected_a_few_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Thousands of accounts are corrected in chunks, so that requests do not wait for all of them."""
    data = Data(tmp_path, "\n    - {name: day, per: user, window: day, max_cost: 1}")
    (limit,) = data.rules.limits.limits
    window = limit.window_at(data.clock.now())
    key = AccountKey(limit.key, window.start, "u3")
    corrected: list[int] = []
    correct = data.ledger.correct

    def watched(correction_id: str, differences: list[Charge]) -> None:
        corrected.append(len(differences))
        # Between the snapshot and the correction, which is repeated as after a lost response.
        events.append(make_event(started_at=data.clock.now(), user="u3", cost=1))
        record_new(data.ledger, [Charge(key, window.end, 1)], encode_event(events[-1]))
        assert correct(correction_id, differences)
        assert not correct(correction_id, differences)

    monkeypatch.setattr(data.ledger, "correct", watched)
    events = [make_event(started_at=data.clock.now(), user=f"u{number}", cost=1) for number in range(1_050)]

    async with data.parts.open_store() as store:
        data.settle(*events)
        await data.flush(store)
        await data.seed(store)
    assert (sum(corrected), max(corrected)) == (1_050, 250)
    assert data.accounts() == data.expected(events)


async def test_seeding_sets_and_never_adds(tmp_path: Path) -> None:
    """A backfill sets amounts: the earlier charges of a new limit do not count twice, and holds are unchanged."""
    data = Data(tmp_path, "\n    - {name: day, per: user, window: day, max_cost: 1}")
    (limit,) = data.rules.limits.limits
    window = limit.window_at(data.clock.now())
    key = AccountKey(limit.key, window.start, "ann")
    before, after = (make_event(started_at=data.clock.now(), cost=cost) for cost in (5, 7))
    async with data.parts.open_store() as store:
        data.settle(before)
        await data.flush(store)
        record_new(data.ledger, [Charge(key, window.end, 7)], encode_event(after))
        data.ledger.reserve("open", "w", data.clock.now(), [Hold(key, window.end, 3, None, 3)], "{}")
        await data.seed(store)
        assert data.ledger.balances([key]) == {key: Balance(12, 3)}
        # One backfill is enough: later settlements charge the limit themselves.
        record_new(data.ledger, [], encode_event(make_event(started_at=data.clock.now(), cost=100)))
        await data.seed(store)
        assert data.ledger.balances([key]) == {key: Balance(12, 3)}
        again = Backfill(data.rules, data.workers, data.parts.config.timezone, data.clock)
        await again.seed_new(data.ledger, data.operations, store, lambda: None)
        assert data.ledger.balances([key]) == {key: Balance(12, 3)}, "a restart does not seed again"


async def test_what_a_clock_that_was_ahead_has_dated_counts(tmp_path: Path) -> None:
    """Events dated by a clock that ran days ahead still count in the accounts of their windows."""
    data = Data(tmp_path)
    now = data.clock.now()
    events = [make_event(started_at=now + days * 86_400_000_000, cost=days) for days in (1, 5, 20, 90)]
    async with data.parts.open_store() as store:
        data.settle(*events)
        await data.flush(store)
        await data.seed(store)
    assert data.accounts() == data.expected(events)
    data.workers.leave()
    data.ledger.close()


async def test_seeding_waits_for_every_worker(tmp_path: Path) -> None:
    """A backfill waits until all live workers have the new limit, since others would not charge it."""
    data = Data(tmp_path, "\n    - {name: day, per: user, window: day, max_cost: 1}")
    data.settle(make_event(started_at=data.clock.now(), cost=5))
    other = data.parts.workers()
    other.join()
    async with data.parts.open_store() as store:
        await data.seed(store)
        assert data.accounts() == {}
        data.operations.note(NOTE + other.name, "older")
        await data.seed(store)
        assert data.accounts() == {}
        other.leave()
        await data.seed(store)
        assert list(data.accounts().values()) == [5]


async def test_seeding_waits_until_a_replaced_server_has_everything_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store has events that the server has lost: they would be counted from there, and when they are sent again."""
    data = Data(tmp_path, "\n    - {name: day, per: user, window: day, max_cost: 1}")
    data.settle(make_event(started_at=data.clock.now(), cost=5))
    async with data.parts.open_store() as store:
        monkeypatch.setattr(data.workers, "have_reasserted", lambda: False)
        await data.seed(store)
        assert data.accounts() == {}
        monkeypatch.undo()
        await data.seed(store)
        assert list(data.accounts().values()) == [5]


@pytest.mark.parametrize("store_works", [True, False], ids=["with the store", "while the store is away"])
async def test_a_limit_that_comes_back_is_seeded_again(tmp_path: Path, store_works: bool) -> None:
    """A limit that was removed and restored is backfilled again, even if the store was unavailable meanwhile."""
    text = "\n    - {name: day, per: user, window: day, max_cost: 1}"
    data = Data(tmp_path, text)
    with_limit, without = data.parts.config.limit_set(), LimitSet([])

    async def go_by(limits: LimitSet, *, seeds: bool = True) -> None:
        data.rules.replace(limits)
        data.operations.note(NOTE + data.workers.name, data.rules.digest)
        # Runs every second, and without the store.
        data.seeder.forget_old(data.operations)
        if seeds:
            await data.seed(store)

    async with data.parts.open_store() as store:
        await go_by(with_limit)
        await go_by(without, seeds=store_works)
        data.settle(make_event(started_at=data.clock.now(), cost=9))
        await data.flush(store)
        await go_by(with_limit)
        assert list(data.accounts().values()) == [9]


async def test_a_lost_ledger_is_seeded_from_the_store(tmp_path: Path) -> None:
    """If the ledger's file is lost but the store's is not, limits are backfilled with their previous amounts."""
    data = Data(tmp_path)
    events = random_events(random.Random(1), 100)
    async with data.parts.open_store() as store:
        data.settle(*events)
        await data.flush(store)
    data.ledger.close()
    data.workers.leave()
    for path in data.parts.config.data_dir.glob("ledger.db*"):
        path.unlink()
    data = Data(tmp_path)
    async with data.parts.open_store() as store:
        await data.seed(store)
        assert data.accounts() == data.expected(events)


# ── with a running worker ────────────────────────────────────────────────────────────────────────────────────────────


async def spend(runtime: Runtime, clock: FakeClock, cost: int = CENT, **who: Any) -> None:
    request = await admitted(runtime, clock, cost=cost, **who)
    runtime.recorder.record(request, success(cost))


def spent(runtime: Runtime, name: str, subject: str = "ann") -> int:
    """Return the total spend of a limit's accounts for a subject."""
    return sum(
        account.balance.spent
        for limit in runtime.limits.limits
        if limit.name == name
        for account in runtime.ledger.accounts(limit.key, 0)
        if account.key.subject == subject
    )


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper_module, "ROUND_EVERY", 0.1)
    monkeypatch.setattr(keeper_module, "SHORTEN_EVERY", 0.05)


ONE = "\n    - {name: day, per: user, window: day, max_cost: 1000}"
TWO = ONE + "\n    - {name: month, per: user, window: month, max_cost: 1000}"


@pytest.mark.usefixtures("hasty")
async def test_a_limit_added_under_load_misses_nothing(tmp_path: Path) -> None:
    """A limit added to the YAML while two workers settle at full speed ends with the exact sum."""
    clock = FakeClock()
    workers = [Runtime(configure(tmp_path, ONE), clock=clock) for _ in range(2)]
    going = True
    done = 0

    async def load(runtime: Runtime) -> None:
        nonlocal done
        while going:
            await spend(runtime, clock)
            done += 1
            await asyncio.sleep(0.001)

    tasks = [asyncio.create_task(load(runtime)) for runtime in workers]
    await asyncio.sleep(0.3)
    configure(tmp_path, TWO)
    await eventually(lambda: all(len(runtime.limits.limits) == 2 for runtime in workers))
    counting = backfill.COUNTING
    await eventually(lambda: workers[0].operations.notes(counting).get(counting, "").count(",") == 1)
    await asyncio.sleep(0.3)
    going = False
    await asyncio.gather(*tasks)
    for runtime in workers:
        await runtime.request_ledger.drain(5)
    assert spent(workers[0], "month") == spent(workers[0], "day") == done * CENT
    for runtime in workers:
        await runtime.close()


@pytest.mark.usefixtures("hasty")
async def test_the_yaml_is_followed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A valid change applies within seconds, an invalid one is reported once, and keys that need a restart wait."""
    clock = FakeClock()
    runtime = Runtime(configure(tmp_path, ONE), clock=clock)
    await spend(runtime, clock)
    configure(tmp_path, ONE.replace("1000", "2"), "  timezone: Asia/Tokyo\n  contact: Ask Eve")
    await eventually(lambda: runtime.limits.limits[0].amount == 200 * CENT)
    assert runtime.config.timezone == ZoneInfo("UTC")
    assert runtime.config.contact == "Ask Eve"
    assert "config.needs_restart" in caplog.text
    assert "['timezone']" in caplog.text
    assert spent(runtime, "day") == CENT, "another amount is the same account"

    configure_text = (tmp_path / "config.yaml").read_text()
    (tmp_path / "config.yaml").write_text(configure_text.replace("max_cost: 2", "max_cost: plenty"))
    await eventually(lambda: [problem.name for problem in problems(runtime.operations)] == ["config"])
    assert "plenty" in problems(runtime.operations)[0].text
    read = calls_of(monkeypatch, ConfigFile, "changed")
    await eventually(lambda: len(read) > 3)
    assert caplog.text.count("config.refused") == 1
    assert runtime.limits.limits[0].amount == 200 * CENT
    (tmp_path / "config.yaml").write_text(configure_text)
    await eventually(lambda: not problems(runtime.operations))
    await runtime.close()


@pytest.mark.usefixtures("hasty")
async def test_adjustments_are_followed_and_end(tmp_path: Path) -> None:
    """An adjustment made by another process applies within a second, and ends by itself."""
    clock = FakeClock()
    runtime = Runtime(configure(tmp_path, ONE), clock=clock)
    opened = Parts(runtime.config).open_ledger()
    other = opened.operations
    until = clock.now() + 3_600_000_000

    def amount() -> int | None:
        (matched,) = runtime.limits.matching(Subjects(user="ann"), "gpt", None)
        return matched.amount_at(clock.now())

    wait_while_busy(lambda: other.adjust(Adjustment(0, "day", "ann", 5 * CENT, None, clock.now(), until, "me", "test")))
    await eventually(lambda: amount() == 5 * CENT)
    clock.advance(timedelta(hours=1))
    assert amount() == 1000 * 100 * CENT
    opened.close()
    await runtime.close()
