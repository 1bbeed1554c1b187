"""The trackers that this project replaces, re-created from their behaviour, for comparison.

`InMemory` kept every user, day and month in dicts for ever, and had two JSON files of them. `Rewriting` kept a bounded
cache, and rewrote all of it to SQLite and to a file for each user and day after every 100 records.
"""

from __future__ import annotations

import json
import sqlite3
from collections import OrderedDict
from hashlib import md5
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

PENDING = 100


def new_record() -> dict[str, Any]:
    """Make their record for each user and day, and for each user and month."""
    return {
        "total_requests": 0,
        "successful_requests": 0,
        "failed_requests": 0,
        "total_input_tokens": 0,
        "total_output_tokens": 0,
        "total_cost": 0.0,
        "avg_latency_ms": 0.0,
        "providers_used": {},
        "models_used": {},
        "session_count": 0,
        "unique_sessions": [],
    }


def add(record: dict[str, Any], number: int) -> None:
    """Add one request to a record, as they did."""
    record["total_requests"] += 1
    record["successful_requests"] += 1
    record["total_input_tokens"] += 1_234
    record["total_output_tokens"] += 321
    record["total_cost"] += 0.000123
    record["avg_latency_ms"] = (record["avg_latency_ms"] + 1_834.0) / 2
    record["providers_used"]["openai"] = record["providers_used"].get("openai", 0) + 1
    record["models_used"]["gpt-4o"] = record["models_used"].get("gpt-4o", 0) + 1
    session = f"session-{number % 1_000}"
    if session not in record["unique_sessions"]:
        record["unique_sessions"].append(session)
        record["session_count"] += 1


class InMemory:
    """Everything in memory."""

    def __init__(self) -> None:
        """Start empty."""
        self._days: dict[str, dict[str, dict[str, Any]]] = {}
        self._months: dict[str, dict[str, dict[str, Any]]] = {}

    def record(self, user: str, day: str, number: int) -> None:
        """Add one request."""
        for kept, key in ((self._days, day), (self._months, day[:7])):
            add(kept.setdefault(user, {}).setdefault(key, new_record()), number)


class Rewriting:
    """A bounded cache, rewritten as a whole."""

    def __init__(self, folder: Path, size: int) -> None:
        """Begin in an empty folder."""
        self._folder = folder
        self._size = size
        self._cache: OrderedDict[tuple[str, str], dict[str, Any]] = OrderedDict()
        self._pending = 0
        self._connection = sqlite3.connect(folder / "usage_aggregations.db")
        self._connection.execute(
            "CREATE TABLE daily_aggregations (user_id TEXT, date TEXT, total_requests INTEGER, total_cost REAL,"
            " providers_used TEXT, models_used TEXT, unique_sessions TEXT, PRIMARY KEY (user_id, date))"
        )

    def record(self, user: str, day: str, number: int) -> None:
        """Add one request; write everything if the maximum is reached."""
        record = self._cache.setdefault((user, day), new_record())
        self._cache.move_to_end((user, day))
        if len(self._cache) > self._size:
            self._cache.popitem(last=False)
        add(record, number)
        self._pending += 1
        if self._pending >= PENDING:
            self.flush()

    def flush(self) -> None:
        """Write the whole cache to the database, then to the files."""
        with self._connection:
            for (user, day), record in self._cache.items():
                self._connection.execute(
                    "INSERT OR REPLACE INTO daily_aggregations VALUES (?, ?, ?, ?, ?, ?, ?)",
                    (
                        user, day, record["total_requests"], record["total_cost"], json.dumps(record["providers_used"]),
                        json.dumps(record["models_used"]), json.dumps(record["unique_sessions"]),
                    ),
                )  # fmt: skip
        for (user, day), record in self._cache.items():
            folder = self._folder / "partitioned" / md5(user.encode()).hexdigest()[:2] / user / day[:7]
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"daily_{day}.json").write_text(json.dumps({"user_id": user, "date": day, **record}))
        self._pending = 0

    def close(self) -> None:
        """Close the database."""
        self._connection.close()
