"""Directories of the previous tracker in its own format, and the content of the store after a migration."""

from __future__ import annotations

import asyncio
import hashlib
import json
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from usage_plugin.config import Config, load_config
from usage_plugin.migration.directory_migration import MigrationContext, migrate, preview
from usage_plugin.migration.outcome import Outcome
from usage_plugin.runtime import Parts
from usage_plugin.testing.store_model import days_of


def record(requests: int = 1, cost: float = 0.5, **fields: Any) -> dict[str, Any]:
    """A record as the previous tracker kept it."""
    return {
        "total_requests": requests,
        "successful_requests": requests,
        "failed_requests": 0,
        "total_input_tokens": 10 * requests,
        "total_output_tokens": 5 * requests,
        "total_cost": cost,
        "avg_latency_ms": 12.5,
        "providers_used": {"openai": requests},
        "models_used": {"gpt": requests},
        "session_count": 1,
        "unique_sessions": ["s-1"],
        **fields,
    }


def limits_of(user: str, **fields: Any) -> dict[str, Any]:
    """Limits as the previous tracker kept them."""
    return {
        "user_id": user, "daily_limit": None, "weekly_limit": None, "monthly_limit": None, "per_request_limit": None,
        "per_session_limit": None, "provider_limits": {}, "model_limits": {}, "alert_thresholds": [0.5, 0.8, 0.95],
        "enabled": True, "created_at": "2026-01-01T10:00:00", "updated_at": "2026-01-01T10:00:00", **fields,
    }  # fmt: skip


def profile_of(user: str, **fields: Any) -> dict[str, Any]:
    """A profile as the previous tracker kept it."""
    return {
        "user_id": user, "username": user.title(), "email": f"{user}@example.org",
        "created_at": "2026-01-01T10:00:00", "updated_at": "2026-01-02T10:00:00", "is_active": True,
        "user_tier": "premium", "preferences": {}, "metadata": {}, **fields,
    }  # fmt: skip


class OldTracker:
    """Writes a directory of the previous tracker."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)

    def write(self, name: str, content: Any) -> Path:
        """Write a file: text as it is, anything else as JSON."""
        path = self.directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    def days(self, days: dict[str, Any]) -> None:
        """Format 1."""
        self.write("daily_usage.json", days)

    def months(self, months: dict[str, Any]) -> None:
        """Format 1."""
        self.write("monthly_usage.json", months)

    def tree(self, days: dict[str, Any], months: dict[str, Any] | None = None) -> None:
        """Format 2: the files."""
        for kind, field, records in (("daily", "date", days), ("monthly", "month", months or {})):
            for user, by_date in records.items():
                folder = f"partitioned/{hashlib.md5(user.encode()).hexdigest()[:2]}/{user}"
                for when, one in by_date.items():
                    name = (
                        f"{folder}/{when[:7]}/{kind}_{when}.json" if kind == "daily" else f"{folder}/{kind}_{when}.json"
                    )
                    self.write(name, {**one, "user_id": user, field: when, "updated_at": "2026-01-01T10:00:00"})

    def database(self, days: dict[str, Any], months: dict[str, Any] | None = None) -> sqlite3.Connection:
        """Format 2: the database; gives the open connection."""
        connection = sqlite3.connect(self.directory / "usage_aggregations.db")
        for table, field, records in (
            ("daily_aggregations", "date", days), ("monthly_aggregations", "month", months or {}),
        ):  # fmt: skip
            connection.execute(
                f"CREATE TABLE {table} (user_id TEXT, {field} TEXT, total_requests INTEGER, successful_requests INTEGER,"
                " failed_requests INTEGER, total_input_tokens INTEGER, total_output_tokens INTEGER, total_cost REAL,"
                " avg_latency_ms REAL, session_count INTEGER, providers_used TEXT, models_used TEXT,"
                f" unique_sessions TEXT, created_at TEXT, updated_at TEXT, PRIMARY KEY (user_id, {field}))"
            )
            for user, by_date in records.items():
                for when, one in by_date.items():
                    values = {
                        name: json.dumps(value) if isinstance(value, dict | list) else value
                        for name, value in one.items()
                    }
                    names = ["user_id", field, *values]
                    connection.execute(
                        f"INSERT INTO {table} ({', '.join(names)}) VALUES ({', '.join('?' * len(names))})",
                        [user, when, *values.values()],
                    )
        connection.commit()
        return connection


@pytest.fixture
def old(tmp_path: Path) -> OldTracker:
    return OldTracker(tmp_path / "old")


@pytest.fixture
def config_path(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text("usage_plugin: {data_dir: data, timezone: Europe/Berlin}\n")
    return path


class Quiet:
    """Progress without a display."""

    def begin(self, what: str, total: int | None) -> None:
        pass

    def advance(self, steps: int) -> None:
        pass


class House:
    """The data folder that everything moves into."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def config(self) -> Config:
        return load_config(self.path)

    def context(self, kept: Callable[[str], str]) -> MigrationContext:
        config = self.config
        return MigrationContext(
            data_dir=config.data_dir,
            limits_file=config.migrated_limits,
            zone=config.timezone,
            casefold=config.identity.casefold,
            kept=kept,
        )

    def migrate(self, directory: Path) -> Outcome:
        async def run() -> Outcome:
            parts = Parts(self.config)
            opened = parts.open_ledger()
            try:
                async with parts.open_store() as store:
                    kept = parts.make_pseudonyms().kept
                    return await migrate(directory, self.context(kept), Quiet(), opened.profiles, store)
            finally:
                opened.close()

        return asyncio.run(run())

    def preview(self, directory: Path) -> Outcome:
        return preview(directory, self.context(str), Quiet())

    def days(self) -> dict[tuple[Any, ...], tuple[int, ...]]:
        """The content of the store by user, day, model and provider."""

        async def read() -> dict[tuple[Any, ...], tuple[int, ...]]:
            async with Parts(self.config).open_store() as store:
                return {
                    (one.user, one.day.isoformat(), one.model, one.provider): tuple(one.totals)
                    for one in await days_of(store)
                }

        return asyncio.run(read())

    def costs(self) -> dict[tuple[str, str], int]:
        """The costs in the store, in nano-dollars by user and day."""
        costs: dict[tuple[str, str], int] = {}
        for (user, day, *_), totals in self.days().items():
            costs[user, day] = costs.get((user, day), 0) + totals[-1]
        return costs

    def profiles(self) -> list[Any]:
        opened = Parts(self.config).open_ledger()
        try:
            return opened.profiles.page("", 1000)
        finally:
            opened.close()

    def findings(self) -> list[dict[str, str]]:
        """All findings."""
        lines = (self.config.data_dir / "migration_report.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]


@pytest.fixture
def house(config_path: Path) -> House:
    return House(config_path)


def names_in(directory: Path) -> set[str]:
    return {path.relative_to(directory).as_posix() for path in directory.rglob("*")}


USD = 10**9
