"""Queries: the duration of queries over a year of 100,000 users, about 10 million sums of a user's day.

The days are made by a formula in SQL, in the SQLite store's file, whose triggers keep its other sums. The same formula
in DuckDB, in a Parquet file, is the yardstick. Queries use the reader, as the command line and the Python API do, with
an empty outbox. Times are medians. The stream of all days is measured in its own process.

Under load, events are recorded as fast as the process can, with queries in between. The process has imported LiteLLM
and started as a worker of the proxy does (`lifecycle.set_apart`). The last rows show the benefit of that.
"""

from __future__ import annotations

import asyncio
import gc
import random
import sqlite3
import statistics
import time
from contextlib import closing
from datetime import date, timedelta
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple
from zoneinfo import ZoneInfo

import duckdb
import uvloop

from benchmarks.disk import temporary_folder
from benchmarks.figures import Figure, arguments, show
from benchmarks.growth import MIB, forget_highest, highest, in_a_process, resident
from benchmarks.recording import AT_ONCE, record
from benchmarks.ticking import longest_stall
from usage_plugin.api import open_tracker
from usage_plugin.backends.sqlite.sqlite_store import open_store
from usage_plugin.config import config_of
from usage_plugin.domain.store import DailySum, UsageFilter
from usage_plugin.domain.usage import UsageTotals
from usage_plugin.domain.windows import month_of, start_of_day
from usage_plugin.runtime import Runtime
from usage_plugin.tracking.history.reader import UsageReader

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from pathlib import Path

UTC = ZoneInfo("UTC")
TODAY = date.today()  # noqa: DTZ011  # the reader's day, too: a summary ends with it
TOP = 50

# The usage of user number `i` on day number `k`, in SQL that both SQLite and DuckDB understand.
IS_ACTIVE = "((i * 2654435761 + k * 40503) >> 7) % 1000 < 274"
SUMS = {
    "requests": "3 + i % 7",
    "failed_requests": "(i + k) % 40 / 39",
    "input_tokens": "1000 + i % 500",
    "output_tokens": "200 + k % 60",
    "cached_input_tokens": "i % 300",
    "cache_write_tokens": "0",
    "reasoning_tokens": "0",
    "cost": "1000000 + (i * k) % 999983",
}
MODEL = "i % 12 + CASE WHEN (i + k) % 5 = 0 THEN 1 ELSE 0 END"
TEAMS, MODELS, PROVIDERS = 20, 13, 4


class Plan(NamedTuple):
    """How much is measured; `files` are the users and the days of the partitioned store."""

    users: int
    days: int
    rounds: int
    asked: int
    files: tuple[int, int]
    recorded: int


FULL = Plan(users=100_000, days=365, rounds=5, asked=300, files=(1_000, 90), recorded=30_000)
QUICK = Plan(users=300, days=70, rounds=1, asked=5, files=(5, 40), recorded=300)


def user_name(number: int) -> str:
    return f"user-{number:06}@example.com"


def first_day(plan: Plan) -> date:
    return TODAY - timedelta(days=plan.days - 1)


async def fill(path: Path, plan: Plan) -> None:
    """Make the store's file."""
    async with open_store(path, UTC):
        pass
    numbers = [f"team-{n}" for n in range(TEAMS)] + [f"model-{n}" for n in range(MODELS)]
    numbers += [f"provider-{n}" for n in range(PROVIDERS)]
    team, model = 1, 1 + TEAMS
    provider, user = model + MODELS, 1 + len(numbers) + PROVIDERS
    days = [(k, int(f"{first_day(plan) + timedelta(days=k):%Y%m%d}")) for k in range(plan.days)]
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute("PRAGMA cache_size = -200000")
        connection.execute("BEGIN")
        connection.executemany("INSERT INTO names (number, name) VALUES (?, ?)", list(enumerate(numbers, 1)))
        connection.executemany(
            "INSERT INTO names (number, name) VALUES (?, ?)",
            ((user + number, user_name(number)) for number in range(plan.users)),
        )
        connection.execute("CREATE TEMP TABLE days (k INTEGER PRIMARY KEY, day INTEGER)")
        connection.executemany("INSERT INTO days VALUES (?, ?)", days)
        connection.execute(
            "CREATE TEMP TABLE users AS SELECT number - ? AS i FROM names WHERE number >= ?", (user, user)
        )
        connection.execute(
            f"INSERT INTO daily SELECT day, {user} + i, {team} + i % {TEAMS}, 0, 0, 0, {model} + {MODEL},"
            f" {provider} + i % {PROVIDERS}, {', '.join(SUMS.values())} FROM days CROSS JOIN users WHERE {IS_ACTIVE}"
        )
        begin = start_of_day(first_day(plan), UTC)
        connection.executemany(
            f"INSERT INTO hourly VALUES (?, ?, ?, {', '.join('?' * len(SUMS))})",
            (
                (
                    begin + hour * 3_600_000_000,
                    model + number,
                    provider + number % PROVIDERS,
                    9,
                    1,
                    900,
                    90,
                    0,
                    0,
                    0,
                    10**9,
                )
                for hour in range(24 * plan.days)
                for number in range(MODELS)
            ),
        )
        connection.execute("COMMIT")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def fill_parquet(path: Path, plan: Plan) -> None:
    """Make the same days in Parquet, with names in place of numbers."""
    sums = ", ".join(f"CAST({formula.replace(' / ', ' // ')} AS BIGINT) AS {name}" for name, formula in SUMS.items())
    with closing(duckdb.connect()) as connection:
        connection.execute(
            f"COPY (SELECT CAST('{first_day(plan)}' AS DATE) + CAST(k AS INTEGER) AS day,"
            f" printf('user-%06d@example.com', i) AS user, 'team-' || (i % {TEAMS}) AS team,"
            f" 'model-' || ({MODEL}) AS model, 'provider-' || (i % {PROVIDERS}) AS provider, {sums}"
            f" FROM range({plan.days}) AS d(k) CROSS JOIN range({plan.users}) AS u(i) WHERE {IS_ACTIVE}"
            f" ORDER BY day, i) TO '{path}' (FORMAT parquet)"
        )


async def timed(rounds: int, ask: Callable[[], Awaitable[Any]]) -> float:
    """Return the median, in milliseconds."""
    took = []
    for _ in range(rounds):
        began = time.perf_counter()
        await ask()
        took.append(1_000 * (time.perf_counter() - began))
    return statistics.median(took)


async def ask(folder: Path, parquet: Path, plan: Plan) -> list[Figure]:
    """Ask everything, one question at a time."""
    draw = random.Random(5)
    figures = []

    def figure(what: str, measured: float, most: float, unit: str = "ms") -> None:
        figures.append(Figure(what=what, measured=measured, unit=unit, at_most=most))

    first, last_month = first_day(plan), month_of(TODAY.replace(day=1) - timedelta(days=1))
    any_days = (TODAY - timedelta(days=44), TODAY - timedelta(days=15))
    async with open_tracker({"data_dir": str(folder), "limits": []}) as tracker:
        reader = tracker._reader  # the API's own way
        users = iter([user_name(number) for number in draw.sample(range(plan.users), 3 * plan.asked)])
        day = TODAY - timedelta(days=3)
        figure("a user's day, not cached", await timed(plan.asked, lambda: reader.user_day(next(users), day)), 1)
        figure("a user's month, not cached", await timed(plan.asked, lambda: reader.user_month(next(users), day)), 1)
        again = user_name(0)
        await reader.user_day(again, day)
        cached = await timed(10 * plan.asked, lambda: reader.user_day(again, day))
        figure("a user's day, cached", 1_000 * cached, 10, "µs")
        summaries = await timed(plan.asked, lambda: tracker.get_user_usage_summary(next(users)))
        figure("a user's summary of 30 days", summaries, 5)
        with closing(duckdb.connect()) as yardstick:
            for what, by, span, most in (
                (f"by user, top {TOP}, a calendar month", "user", last_month, 150),
                (f"by user, top {TOP}, any 30 days", "user", any_days, 600),
                ("by model, the whole span", "model", (first, TODAY), 100),
                ("by provider, the whole span", "provider", (first, TODAY), 100),
                ("by day, the whole span", "day", (first, TODAY), 100),
            ):
                question = partial(reader.top, most=TOP) if by == "user" else reader.report
                ours = await timed(plan.rounds, lambda q=question, by=by, span=span: q((by,), *span))  # type: ignore[misc]
                figure(what, ours, most)
                theirs, cost = _in_duckdb(yardstick, parquet, by, span, plan.rounds)
                figures.append(Figure(what="— beside DuckDB over Parquet", measured=ours / theirs, unit="x"))
                (total,) = await reader.report((), *span)
                if total.totals.cost != cost:
                    raise AssertionError(f"{what}: DuckDB sums {cost}, the store {total.totals.cost}.")
        everybody = partial(tracker.analyze_global_patterns, start=first, end=TODAY + timedelta(days=1))
        figure(
            "patterns of all users, the whole span", await timed(plan.rounds, partial(everybody, most_users=0)), 1_000
        )
        figure("patterns of the top 1,000 users by cost, too", await timed(1, everybody), 10_000)
    return figures


def _in_duckdb(
    connection: duckdb.DuckDBPyConnection, parquet: Path, by: str, span: tuple[date, date], rounds: int
) -> tuple[float, int]:
    """Return the median in milliseconds, and the sum of all costs as a check that the rows are the same."""
    sums = ", ".join(f"sum({name}) AS {name}" for name in SUMS)
    source = f"FROM '{parquet}' WHERE day BETWEEN ? AND ?"
    took = []
    for _ in range(rounds):
        began = time.perf_counter()
        connection.execute(f"SELECT {by}, {sums} {source} GROUP BY 1 ORDER BY cost DESC LIMIT {TOP}", span).fetchall()
        took.append(1_000 * (time.perf_counter() - began))
    (cost,) = connection.execute(f"SELECT CAST(sum(cost) AS BIGINT) {source}", span).fetchone() or (0,)
    return statistics.median(took), cost


class Streamed(NamedTuple):
    """The result of streaming all days: rows a second, growth in MiB, the longest stall in ms."""

    rate: float
    growth: float
    stall: float


def stream(folder: Path, plan: Plan) -> Streamed:
    """Stream all days, in the process of the caller."""

    async def measured() -> Streamed:
        async with open_tracker({"data_dir": str(folder), "limits": []}) as tracker:
            tomorrow, count = TODAY + timedelta(days=1), 0
            async for _ in tracker.stream_usage(start=TODAY, end=tomorrow):
                pass
            before = resident()
            forget_highest()

            async def all_days() -> None:
                nonlocal count
                count = 0
                async for _ in tracker.stream_usage(start=first_day(plan), end=tomorrow):
                    count += 1

            began = time.perf_counter()
            await all_days()
            took = time.perf_counter() - began
            growth = (highest() - before) / MIB
            return Streamed(count / took, growth, await longest_stall(all_days))

    return uvloop.run(measured())


def under_load(folder: Path, plan: Plan) -> list[Figure]:
    """Record as fast as possible, and ask in between, in the process of the caller."""
    lifecycle = import_module("usage_plugin.proxy.lifecycle")  # not in the other measurements: it brings LiteLLM along
    full_collection = _collect()

    async def measured() -> list[Figure]:
        runtime = Runtime(config_of({"data_dir": str(folder), "limits": []}))
        lifecycle.set_apart()
        try:
            async with runtime.parts.open_store_for_reading() as store:
                reader = UsageReader(runtime.ledger, store, runtime.cache, UTC, runtime.clock)

                async def recording() -> None:
                    for number in range(plan.recorded):
                        record(runtime, user_name(number % plan.users), 1_000_000)
                        if number % AT_ONCE == 0:
                            await asyncio.sleep(0)

                async def asking() -> None:
                    busy = asyncio.create_task(recording())
                    while not busy.done():
                        await reader.top(("user",), TODAY - timedelta(days=29), TODAY, most=TOP)
                        await reader.report(("user",), TODAY - timedelta(days=29), TODAY)
                        await reader.report(("day", "model"), first_day(plan), TODAY)
                        await reader.user_month(user_name(random.randrange(plan.users)))
                    await busy

                alone = await longest_stall(recording)
                while runtime.request_ledger.pending or runtime.ledger.waiting().events:
                    await asyncio.sleep(0.05)
                beside = await longest_stall(asking)
        finally:
            await runtime.close()
        return [
            Figure(what="longest stall while recording at full load", measured=alone, unit="ms"),
            Figure(what="longest stall while recording, with questions", measured=beside, unit="ms", at_most=20),
            Figure(what="a full garbage collection of LiteLLM", measured=full_collection, unit="ms"),
            Figure(what="— afterwards, in such a worker", measured=_collect(), unit="ms"),
        ]

    return uvloop.run(measured())


def _collect() -> float:
    """Collect garbage; return the milliseconds of a scan of all objects."""
    gc.collect()
    began = time.perf_counter()
    gc.collect()
    return 1_000 * (time.perf_counter() - began)


def in_files(folder: Path, plan: Plan) -> tuple[float, list[Figure]]:
    """Query the partitioned store; return the growth of the process in MiB."""
    users, days = plan.files

    async def measured() -> tuple[float, list[Figure]]:
        section = {"data_dir": str(folder), "limits": [], "storage": {"backend": "partitioned"}}
        async with open_tracker(section) as tracker:
            reader = tracker._reader
            store = reader._store
            seq = 0
            for page in _paged(_file_days(users, days)):
                await store.append_sums("fill", list(enumerate(page, seq + 1)))
                seq += len(page)
            first = TODAY - timedelta(days=days - 1)
            before = resident()
            forget_highest()
            figures = []
            for what, question in (
                ("a user's month", lambda: reader.user_month(user_name(1))),
                ("a user's summary", lambda: tracker.get_user_usage_summary(user_name(1))),
                (f"by user, top {TOP}", lambda: reader.top(("user",), first, TODAY, most=TOP)),
                ("by day and model", lambda: reader.report(("day", "model"), first, TODAY)),
                ("all days streamed", lambda: _drain(reader, first)),
            ):
                took = await timed(1, question)
                figures.append(Figure(what=f"files: {what}, {users:,} users, {days} days", measured=took, unit="ms"))
            return (highest() - before) / MIB, figures

    return uvloop.run(measured())


async def _drain(reader: UsageReader, first: date) -> None:
    async for _ in reader.days(first, TODAY, UsageFilter()):
        pass


def _file_days(users: int, days: int) -> Iterator[DailySum]:
    totals = UsageTotals(requests=3, input_tokens=900, output_tokens=90, cost=10**6)
    for k in range(days):
        for i in range(users):
            day = TODAY - timedelta(days=days - 1 - k)
            yield DailySum(
                day, user_name(i), f"team-{i % TEAMS}", None, None, None, f"model-{i % MODELS}", None, totals
            )


def _paged(rows: Iterator[DailySum], size: int = 1_000) -> Iterator[list[DailySum]]:
    page = []
    for one in rows:
        page.append(one)
        if len(page) == size:
            yield page
            page = []
    if page:
        yield page


def measure(folder: Path, plan: Plan) -> list[Figure]:
    """Fill everything, and measure one thing after the other."""
    data, parquet = folder / "data", folder / "days.parquet"
    data.mkdir()
    asyncio.run(fill(data / "usage.db", plan))
    fill_parquet(parquet, plan)
    figures = uvloop.run(ask(data, parquet, plan))
    streamed = in_a_process(partial(stream, data), plan)
    figures += [
        Figure(what="all days streamed", measured=streamed.rate, unit="rows/s", at_least=200_000),
        Figure(what="growth of the process by it", measured=streamed.growth, unit="MiB", at_most=60),
        Figure(what="longest stall by it", measured=streamed.stall, unit="ms", at_most=20),
    ]
    figures += in_a_process(partial(under_load, data), plan)
    growth, of_files = in_a_process(partial(in_files, folder / "files"), plan)
    return [*figures, *of_files, Figure(what="files: growth of the process", measured=growth, unit="MiB", at_most=60)]


def main() -> None:
    """Measure, and print."""
    given = arguments("queries", __doc__, quick="little data only, to see that it works")
    with temporary_folder() as folder:
        figures = measure(folder, QUICK if given.quick else FULL)
    show("queries", figures, as_json=given.json)


if __name__ == "__main__":
    main()
