"""Forecasts in the Python API."""

from __future__ import annotations

from datetime import date, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest

from usage_plugin.api import UsageTracker, open_tracker
from usage_plugin.errors import HistoryError, UsagePluginError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from usage_plugin.testing.clock import FakeClock


@pytest.fixture
def section(section: dict[str, Any]) -> dict[str, Any]:
    return section | {
        "limits": [{"name": "month", "per": "user", "window": "month", "max_cost": 20}, *section["limits"]]
    }


@pytest.fixture
async def lately(section: dict[str, Any], clock: FakeClock) -> AsyncIterator[UsageTracker]:
    """A tracker in which ann has spent a dollar each noon; the last time just now, on 23 November."""
    clock.advance(timedelta(days=-60))
    async with open_tracker(section, clock=clock) as tracker:
        for _ in range(60):
            await tracker.record_usage("ann", cost=1, model="gpt", team="garden")
            clock.advance(timedelta(days=1))
        yield tracker


async def test_spend_and_the_date_on_which_a_limit_runs_out(lately: UsageTracker) -> None:
    """Money is `Decimal`, days are dates, and a forecast of a limit is for its account."""
    (spend,) = await lately.forecast(("user",), user="ann")
    assert (spend.names, spend.limit, spend.unit) == ({"user": "ann"}, None, "usd")
    assert (spend.first, spend.last) == (date(2026, 11, 1), date(2026, 11, 30))
    assert (spend.spent, spend.expected, spend.low, spend.high) == (
        22,
        Decimal("29.50"),
        Decimal("29.50"),
        Decimal("29.50"),
    )
    assert (spend.amount, spend.runs_out, spend.history_days, spend.lacks) == (None, None, 60, ())
    (limit,) = await lately.forecast(limit="month")
    assert (limit.names, limit.limit, limit.spent, limit.amount) == ({"user": "ann"}, "month", 22, 20)
    assert limit.runs_out == limit.earliest == limit.latest == date(2026, 11, 23)


async def test_other_windows_and_groups(lately: UsageTracker) -> None:
    """Windows and groups are the same as those of the command."""
    (week,) = await lately.forecast(window="week")
    assert (week.names, week.first, week.last, week.expected) == (
        {},
        date(2026, 11, 23),
        date(2026, 11, 29),
        Decimal("6.5"),
    )
    assert [found.names for found in await lately.forecast(("team", "model"))] == [{"team": "garden", "model": "gpt"}]
    assert await lately.forecast(("organization",)) == []


async def test_an_invalid_forecast_is_an_error(lately: UsageTracker) -> None:
    """The error names the given value and the valid ones."""
    with pytest.raises(UsagePluginError, match="There is no limit years"):
        await lately.forecast(limit="years")
    with pytest.raises(HistoryError, match="tokens cannot be forecast"):
        await lately.forecast(limit="tokens")
    with pytest.raises(UsagePluginError, match=r"window: expected one of day, .*; found hour"):
        await lately.forecast(window="hour")  # type: ignore[arg-type]
