"""After an import, limits count their windows again if the history has all the data for it."""

from __future__ import annotations

import json
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from usage_plugin.domain.limit_set import LimitSet
from usage_plugin.domain.limits import Limit
from usage_plugin.domain.operations import Anomaly, OperationsLog
from usage_plugin.domain.windows import WindowRule
from usage_plugin.ledgers.sqlite import open_sqlite_ledger
from usage_plugin.tracking.maintenance.backfill import COUNTING, count_history_anew


def limit(kind: str, **changes: object) -> Limit:
    fields = {"name": kind, "per": ("user",), "unit": "usd", "amount": 5, "window": WindowRule(kind)}
    return Limit(**{**fields, "zone": ZoneInfo("UTC"), **changes})


LIMITS = LimitSet([
    limit("day"), limit("month"), limit("lifetime"), limit("rolling", window=WindowRule("rolling", length=10**9)),
    limit("year", counts_history=False), limit("week", zone=ZoneInfo("Asia/Tokyo")), limit("quarter", per=("tag",)),
])  # fmt: skip


def counting_after(operations: OperationsLog) -> set[int]:
    operations.note(COUNTING, json.dumps(sorted(one.key for one in LIMITS.limits)))
    count_history_anew(operations, LIMITS, ZoneInfo("UTC"))
    return set(json.loads(operations.notes(COUNTING)[COUNTING]))


def test_limits_of_calendar_windows_are_counted_anew(tmp_path: Path) -> None:
    """Limits that count no history, or whose windows need events or pruned days, keep their amounts."""
    opened = open_sqlite_ledger(tmp_path / "ledger.db")
    kept = {one.key for one in LIMITS.limits if one.name not in ("day", "month")}
    assert counting_after(opened.operations) == kept
    opened.close()


@pytest.mark.parametrize("kind", ["gap", "unstorable"])
def test_where_events_were_lost_nothing_becomes_less(tmp_path: Path, kind: str) -> None:
    """Accounts contain lost events and the history does not, so their amounts are kept."""
    opened = open_sqlite_ledger(tmp_path / "ledger.db")
    opened.operations.count_anomalies([Anomaly(kind, "gpt", 1, 5, 0, 0)])
    assert counting_after(opened.operations) == {one.key for one in LIMITS.limits}
    opened.close()
