"""Sums beyond 2^63 nano-dollars (9.2 billion USD) neither wrap, nor become floats, nor raise late."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from usage_plugin.config import load_config
from usage_plugin.domain.ledger import AccountKey, Charge, Hold
from usage_plugin.domain.money import LARGEST_REQUEST
from usage_plugin.domain.store import DailySum, UsageFilter, UsageStore
from usage_plugin.domain.usage import UsageTotals
from usage_plugin.domain.windows import ALWAYS
from usage_plugin.runtime import Parts
from usage_plugin.testing.builders import NOON, make_event, record_new

STORES = ("memory", "sqlite", "partitioned", "hybrid", "postgres")
EXACT = ("memory", "partitioned", "postgres")
"""Stores whose sums are not limited to 64 bits."""
StorageOptions = Callable[[str], dict[str, Any]]
MOST = 2**63 - 1
EACH = 4 * 10**18
SPAN = (date(2026, 1, 1), date(2026, 12, 31))
ANY = UsageFilter()


def in_store(folder: Path, backend: str, use: Any, options: dict[str, Any] | None = None) -> Any:
    storage = json.dumps({"backend": backend, "options": options or {}})
    (folder / "config.yaml").write_text(f"usage_plugin: {{storage: {storage}}}\n")

    async def run() -> Any:
        async with Parts(load_config(folder / "config.yaml")).open_store() as store:
            return await use(store)

    return asyncio.run(run())


def sums(users: int, months: int) -> list[tuple[int, DailySum]]:
    """Each has a user and model of its own, so that no rollup of a day or month is larger than it."""
    found = [
        DailySum(
            date(2026, 1 + month, 5), f"u{user:02d}", None, None, None, None, f"m{user}", "p",
            UsageTotals(requests=1, input_tokens=EACH + user, output_tokens=7, cost=EACH + user * 10**12),
        )
        for month in range(months)
        for user in range(users)
    ]  # fmt: skip
    return list(enumerate(found, 1))


@pytest.mark.parametrize("backend", STORES)
def test_sums_over_rows_are_exact(tmp_path: Path, backend: str, storage_options: StorageOptions) -> None:
    """An answer of any size is the exact sum, for any grouping."""
    numbered = sums(users=6, months=3)

    async def use(store: UsageStore) -> None:
        await store.append_sums("w", numbered)
        for by in ((), ("user",), ("model",), ("day",), ("provider", "day"), ("user", "month"), ("end_user",)):
            groups = (await store.aggregate(by, *SPAN, ANY)).groups
            assert sum(totals.cost for totals in groups.values()) == sum(one.totals.cost for _, one in numbered)
            assert sum(totals.input_tokens for totals in groups.values()) == 18 * EACH + 45
            assert sum(totals.output_tokens for totals in groups.values()) == 126
            assert all(isinstance(number, int) for totals in groups.values() for number in totals)
        days = [one async for page in store.daily(*SPAN, ANY) for one in page]
        assert sum(one.totals.cost for one in days) == sum(one.totals.cost for _, one in numbered)

    in_store(tmp_path, backend, use, storage_options(backend))


@pytest.mark.parametrize("backend", STORES)
def test_one_sum_stops_at_most(tmp_path: Path, backend: str, storage_options: StorageOptions) -> None:
    """A sum that is one row stops at 2^63 - 1 where the file has 64 bits; elsewhere it is exact. It can still shrink."""

    async def use(store: UsageStore) -> None:
        for number in range(1, 5):
            one = DailySum(date(2026, 9, 1), "u", None, None, None, None, "m", "p", UsageTotals(requests=1, cost=EACH))
            await store.append_sums("w", [(number, one)])
        for by in ((), ("user",), ("month",), ("model",)):
            (totals,) = (await store.aggregate(by, *SPAN, ANY)).groups.values()
            assert totals.requests == 4
            assert totals.cost in ({4 * EACH} if backend in EXACT else {MOST, 4 * EACH})
            assert isinstance(totals.cost, int)
        await store.prune(events_before=0, days_before=date(2026, 9, 2), most=1_000)
        assert not (await store.aggregate((), *SPAN, ANY)).groups

    in_store(tmp_path, backend, use, storage_options(backend))


@pytest.mark.parametrize("backend", STORES)
def test_events_without_end_can_be_stored_and_read(
    tmp_path: Path, backend: str, storage_options: StorageOptions
) -> None:
    """A thousand of the most expensive requests of one user and day are stored, and none is lost."""
    found = [
        (
            seq,
            make_event(
                event_id=f"01900000-0000-7000-8000-{seq:012d}", started_at=NOON + seq, user="u", cost=LARGEST_REQUEST
            ),
        )
        for seq in range(1, 1_001)
    ]

    async def use(store: UsageStore) -> None:
        await store.append("w", found)
        (totals,) = (await store.aggregate((), date(2020, 1, 1), date(2030, 1, 1), ANY)).groups.values()
        assert totals.requests == 1_000
        exact = 1_000 * LARGEST_REQUEST
        assert totals.cost in ({exact} if backend in EXACT else {MOST, exact})
        assert len([event async for event in store.events(ALWAYS, ANY)]) == 1_000

    in_store(tmp_path, backend, use, storage_options(backend))


@pytest.mark.parametrize("backend", ["sqlite", "postgres"])
def test_the_most_expensive_come_first_however_much_they_cost(
    tmp_path: Path, backend: str, storage_options: StorageOptions
) -> None:
    """Ranking goes by cost where sums are beyond 2^63, too."""

    async def use(store: Any) -> None:
        await store.append_sums("w", sums(users=11, months=3))
        ranking = await store.ranking(("user",), *SPAN, ANY, most=2)
        assert {group[0] for group in ranking.groups} == {"u09", "u10"}
        streamed = [group[0] async for page in store.in_order_of_cost(("user",), *SPAN, ANY) for group in page.groups]
        assert streamed == [f"u{number:02d}" for number in range(10, -1, -1)]

    in_store(tmp_path, backend, use, storage_options(backend))


def test_accounts_stop_at_most(tmp_path: Path) -> None:
    """An account, and a rolling window of accounts, stays a whole number; seeding does too."""
    (tmp_path / "config.yaml").write_text("usage_plugin: {}\n")
    ledger = Parts(load_config(tmp_path / "config.yaml")).open_ledger().ledger
    try:
        accounts = [AccountKey(7, NOON + at, "u") for at in range(3)]
        for _ in range(5):
            record_new(ledger, [Charge(account, NOON + 10**9, EACH) for account in accounts], None)
        assert {balance.spent for balance in ledger.balances(accounts).values()} == {MOST}
        hold = Hold(accounts[1], NOON + 10**9, 1, 100, 0, since=NOON)
        reserved = ledger.reserve("01900000-0000-7000-8000-000000000001", "w", NOON, [hold], "")
        assert not reserved.admitted
        assert ledger.correct("too much", [Charge(accounts[0], NOON + 10**9, 2**70)])
        assert ledger.balances(accounts[:1])[accounts[0]].spent == MOST
        assert ledger.verify() == []
    finally:
        ledger.close()
