"""A program that records usage, keeps to a budget and reads the spend."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from decimal import Decimal
from pathlib import Path

from typing_extensions import assert_type

from usage_plugin import __version__
from usage_plugin.api import (
    BudgetExceededError,
    ConfigError,
    Forecast,
    HistoryError,
    LedgerBusyError,
    LedgerError,
    MoneyError,
    NotAdmittedError,
    PercentileRow,
    Rates,
    Reservation,
    Session,
    Statistics,
    StorageError,
    StorageUnavailableError,
    StreamedUsage,
    SubjectNameError,
    TopUsage,
    UnknownLimitError,
    Usage,
    UsageEvent,
    UsagePattern,
    UsagePluginError,
    UsageRow,
    UsageSummary,
    UsageTracker,
    UserAlert,
    UserLimit,
    UserProfile,
    configured_rates,
    open_tracker,
    to_decimal,
)
from usage_plugin.proxy.sdk import recorded_calls

START, END = dt.date(2026, 11, 1), dt.date(2026, 12, 1)

assert_type(__version__, str)


async def open_it(folder: Path) -> None:
    async with open_tracker(folder) as tracker:
        assert_type(tracker, UsageTracker)
    async with open_tracker({"data_dir": str(folder), "limits": []}) as tracker, recorded_calls(tracker):
        await record(tracker)
        await keep_to_a_budget(tracker)
        await read(tracker)


async def record(tracker: UsageTracker) -> None:
    event = await tracker.record_usage("ann", cost=Decimal("0.0123"), model="gpt-4o", tags=["batch"], seconds=1.5)
    assert_type(event, UsageEvent)
    assert_type(event.user, str)
    assert_type(event.model, str | None)
    assert_type(event.input_tokens, int)
    assert_type(to_decimal(event.cost or 0), Decimal)
    for price in ("0.01", 1, 0.01, None):
        await tracker.record_usage(None, cost=price)


async def keep_to_a_budget(tracker: UsageTracker) -> None:
    try:
        async with tracker.reserve_budget("ann", "0.04", model="gpt-4o", max_output_tokens=100) as held:
            assert_type(held, Reservation)
            assert_type(held.amount, Decimal)
            assert_type(held.settle("0.03", input_tokens=10), UsageEvent)
            await held.release()
    except BudgetExceededError as refused:
        assert_type(refused.reason, str)
        assert_type(refused.retry_after, float | None)
        error: NotAdmittedError = refused
        root: UsagePluginError = error
        assert_type(root.message, str)
        assert_type(root.hint, str | None)


async def read(tracker: UsageTracker) -> None:
    assert_type(await tracker.get_user_daily_usage("ann", START), Decimal)
    summary = await tracker.get_user_usage_summary("ann", days=7)
    assert_type(summary, UsageSummary)
    assert_type(summary.limits, Sequence[UserLimit])
    assert_type(summary.recent_alerts, Sequence[UserAlert])
    assert_type(summary.active_sessions, Sequence[Session])
    assert_type(summary.statistics, Statistics)
    assert_type(summary.daily_usage, Mapping[dt.date, Usage])
    assert_type(summary.profile, UserProfile | None)

    rows = await tracker.aggregate(["user", "model"], start=START, end=END, bucket="week", team="research")
    for row in rows:
        assert_type(row, UsageRow)
        assert_type(row.usage.cost, Decimal)
    top = await tracker.top(["user"], start=START, end=END, most=10)
    assert_type(top, TopUsage)
    assert_type(await tracker.distinct_users(start=START, end=END), int)
    assert_type(list(await tracker.percentiles("cost", (50, 99), start=START, end=END)), list[PercentileRow])
    assert_type(list(await tracker.forecast(["user"])), list[Forecast])
    rates = configured_rates([{"model_name": "gpt", "litellm_params": {"model": "openai/gpt-4o"}}])
    assert_type(rates, dict[str, Rates])
    found = await tracker.analyze_global_patterns(start=START, end=END, prices=rates)
    assert_type(list(found), list[UsagePattern])
    async for streamed in tracker.stream_usage(start=START, end=END):
        assert_type(streamed, StreamedUsage)
    async for event in tracker.events(user="ann"):
        assert_type(event, UsageEvent)
    async for profile in tracker.user_profiles():
        assert_type(profile, UserProfile)


def told(error: UsagePluginError) -> str:
    """Return a word for each error that the methods above raise."""
    words: list[tuple[type[UsagePluginError], str]] = [
        (ConfigError, "configuration"),
        (MoneyError, "amount"),
        (SubjectNameError, "name"),
        (UnknownLimitError, "limit"),
        (HistoryError, "history"),
        (LedgerBusyError, "retry"),
        (LedgerError, "ledger"),
        (StorageUnavailableError, "retry"),
        (StorageError, "store"),
    ]
    return next((word for kind, word in words if isinstance(error, kind)), "other")
