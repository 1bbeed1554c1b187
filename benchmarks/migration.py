"""Import: time and memory for 500,000 user-days of the previous tracker (50,000 if each has a file).

A separate process imports each form into an empty store, from reading to renaming. Growth is the maximum memory of the
process beyond its memory for one user-day.
"""

from __future__ import annotations

import asyncio
import json
import resource
import sqlite3
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

from benchmarks.disk import temporary_folder
from benchmarks.figures import Figure, arguments, show
from usage_plugin.backends.sqlite.sqlite_store import open_store
from usage_plugin.ledgers.sqlite import open_sqlite_ledger
from usage_plugin.migration.directory_migration import MigrationContext, migrate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from usage_plugin.migration.outcome import Outcome

USERS, DAYS = 5_000, 100
MOST_GROWTH = 64.0
UTC = ZoneInfo("UTC")


def records(users: int) -> Iterator[tuple[str, str, dict[str, object]]]:
    """Make a record for each user and day."""
    for user in range(users):
        for day in range(DAYS):
            requests = 1 + (user + day) % 50
            yield (
                f"user-{user}@example.org",
                f"2026-{1 + day // 28:02d}-{1 + day % 28:02d}",
                {
                    "total_requests": requests, "successful_requests": requests, "failed_requests": 0,
                    "total_input_tokens": 900 * requests, "total_output_tokens": 250 * requests,
                    "total_cost": requests * 0.0123, "avg_latency_ms": 812.5, "providers_used": {"openai": requests},
                    "models_used": {"gpt-4o": requests}, "session_count": 2, "unique_sessions": ["s-1", "s-2"],
                },
            )  # fmt: skip


def write_json(directory: Path, users: int) -> None:
    """Format 1: everything in one file."""
    with (directory / "daily_usage.json").open("w") as file:
        last = None
        for user, day, record in records(users):
            begin = "{" if last is None else "}, "
            file.write(f'{begin}"{user}": {{' if user != last else ", ")
            file.write(f'"{day}": {json.dumps(record)}')
            last = user
        file.write("}}")


def write_database(directory: Path, users: int) -> None:
    """Format 2: the database."""
    connection = sqlite3.connect(directory / "usage_aggregations.db")
    connection.execute(
        "CREATE TABLE daily_aggregations (user_id TEXT, date TEXT, total_requests INTEGER, failed_requests INTEGER,"
        " total_input_tokens INTEGER, total_output_tokens INTEGER, total_cost REAL, providers_used TEXT,"
        " models_used TEXT, PRIMARY KEY (user_id, date))"
    )
    connection.executemany(
        "INSERT INTO daily_aggregations VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            (user, day, r["total_requests"], 0, r["total_input_tokens"], r["total_output_tokens"], r["total_cost"],
             json.dumps(r["providers_used"]), json.dumps(r["models_used"]))
            for user, day, r in records(users)
        ),
    )  # fmt: skip
    connection.commit()
    connection.close()


def write_tree(directory: Path, users: int) -> None:
    """Format 2: a file for each user and day."""
    for user, day, record in records(users):
        folder = directory / "partitioned" / f"{hash(user) % 256:02x}" / user / day[:7]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"daily_{day}.json").write_text(json.dumps({**record, "user_id": user, "date": day}))


class Silent:
    """Progress without a display."""

    def begin(self, what: str, total: int | None) -> None:
        """Start."""

    def advance(self, steps: int) -> None:
        """Advance."""


async def move(directory: Path, data_dir: Path) -> Outcome:
    """Migrate a directory into an empty data folder."""
    limits = data_dir / "limits.yaml"
    context = MigrationContext(data_dir=data_dir, limits_file=limits, zone=UTC, casefold=False, kept=str)
    opened = open_sqlite_ledger(data_dir / "ledger.db")
    try:
        async with open_store(data_dir / "usage.db", UTC) as store:
            return await migrate(directory, context, Silent(), opened.profiles, store)
    finally:
        opened.close()


def _peak() -> float:
    """Return the maximum memory of this process, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def measure(folder: Path, directory: Path) -> tuple[float, float, int]:
    """Return seconds, growth in MiB and user-days, from a separate process."""
    small = folder / "small"
    small.mkdir()
    (small / "daily_usage.json").write_text('{"ann": {"2026-01-01": {"total_requests": 1}}}')
    asyncio.run(move(small, folder / "data-small"))
    before, started = _peak(), time.perf_counter()
    outcome = asyncio.run(move(directory, folder / "data"))
    return time.perf_counter() - started, _peak() - before, outcome.imported


FORMS: dict[str, tuple[Callable[[Path, int], None], int]] = {
    "daily_usage.json": (write_json, USERS),
    "usage_aggregations.db": (write_database, USERS),
    # A file for each user-day: to write them takes longer than all the rest.
    "partitioned/": (write_tree, USERS // 10),
}


def main() -> None:
    """Measure each form, and print."""
    asked = arguments("migration", __doc__, quick="a hundredth of it, to see that it works")
    figures = []
    for name, (write, users) in FORMS.items():
        with temporary_folder() as folder:
            directory = folder / "old"
            directory.mkdir()
            write(directory, users // 100 if asked.quick else users)
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
                seconds, growth, imported = pool.submit(measure, folder, directory).result()
        what = f"{name}, {imported:,} user-days"
        figures += [
            Figure(what=what, measured=seconds, unit="s"),
            Figure(what=f"{name}, user-days a second", measured=imported / seconds, unit="/s"),
            Figure(what=f"{name}, growth", measured=growth, unit="MiB", at_most=MOST_GROWTH),
        ]
    show("migration", figures, as_json=asked.json)


if __name__ == "__main__":
    main()
