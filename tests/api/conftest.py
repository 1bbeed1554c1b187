"""Trackers with a real ledger and a real store, and a clock that tests set."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from usage_plugin.api import UsageTracker, open_tracker
from usage_plugin.testing.clock import FakeClock

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

LIMITS: list[dict[str, Any]] = [
    {"name": "daily", "per": "user", "window": "day", "max_cost": "1.00", "alert_at": [50, 80]},
    {"name": "opus", "per": "user", "match": {"model": "opus*"}, "window": "month", "max_cost": 0.5},
    {"name": "tokens", "per": "session", "window": "session", "max_total_tokens": 1000},
    {"name": "team", "per": "team", "window": "month", "max_cost": 100},
    {"name": "rate", "per": "user", "window": "minute", "max_requests": 100, "action": "warn"},
]


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def section(tmp_path: Path) -> dict[str, Any]:
    """Return the section `usage_plugin:` as a program writes it."""
    return {"data_dir": str(tmp_path / "usage"), "admission": {"max_wait": "0s"}, "limits": LIMITS}


@pytest.fixture
async def tracker(section: dict[str, Any], clock: FakeClock) -> AsyncIterator[UsageTracker]:
    async with open_tracker(section, clock=clock) as opened:
        yield opened
