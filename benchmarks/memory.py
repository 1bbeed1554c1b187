"""Memory: the growth of a process that records for a million different users, with `cache.size: 1000`.

Each is measured in its own process: the resident memory after everything is loaded and warm, and the highest after that
(`VmHWM` of Linux). Events go the whole way, through recorder, outbox, flusher and the SQLite store, with a daily limit
for each user. Now and then a user's day is queried, so that the cache is in use. For comparison: the first tracker that
this project replaces, which kept a record for each user's day and month in memory.
"""

from __future__ import annotations

import asyncio
import sys
import time
from typing import TYPE_CHECKING

import uvloop

from benchmarks.disk import temporary_folder
from benchmarks.figures import Figure, arguments, show
from benchmarks.growth import MIB, STATUS, forget_highest, highest, in_a_process, resident
from benchmarks.previous import InMemory
from benchmarks.recording import record, user_name
from usage_plugin.config import config_of
from usage_plugin.runtime import Runtime
from usage_plugin.tracking.history.reader import UsageReader

if TYPE_CHECKING:
    from pathlib import Path

USERS, FEW = 1_000_000, 5_000
CACHE_SIZE = 1_000
WARM_UP = 5_000
ASK_EVERY = 100
MOST_WAITING = 20_000
"""The maximum number of events that wait for the store. A proxy has few: the benchmark measures lasting memory."""


async def record_for(users: int, folder: Path) -> float:
    """Record for the given number of different users; return the growth in MiB."""
    section = {
        "data_dir": str(folder),
        "cache": {"size": CACHE_SIZE},
        "limits": [{"name": "daily", "per": "user", "window": "day", "max_cost": 10}],
    }
    runtime = Runtime(config_of(section))
    try:
        async with runtime.parts.open_store_for_reading() as store:
            reader = UsageReader(runtime.ledger, store, runtime.cache, runtime.config.timezone, runtime.clock)
            for number in range(WARM_UP):
                await _one(runtime, reader, -number - 1)
            await _until_moved(runtime, 0)
            before = resident()
            forget_highest()
            for number in range(users):
                await _one(runtime, reader, number)
            await _until_moved(runtime, 0)
            return (highest() - before) / MIB
    finally:
        await runtime.close()


async def _one(runtime: Runtime, reader: UsageReader, number: int) -> None:
    record(runtime, user_name(number), 1_000_000)
    if number % ASK_EVERY == 0:
        await reader.user_day(user_name(number))
        await _until_moved(runtime, MOST_WAITING)


async def _until_moved(runtime: Runtime, most: int) -> None:
    while runtime.request_ledger.pending or runtime.ledger.waiting().events > most:
        await asyncio.sleep(0.01)


def record_in_memory(users: int) -> float:
    """Do the same with the previous tracker; return the growth in MiB."""
    tracker = InMemory()
    before = resident()
    forget_highest()
    for number in range(users):
        tracker.record(user_name(number), "2026-11-23", number)
    return (highest() - before) / MIB


def ours(users: int) -> float:
    """Measure the plugin, in the process of the caller."""
    with temporary_folder() as folder:
        return uvloop.run(record_for(users, folder))


def main() -> None:
    """Measure, and print."""
    given = arguments("memory", __doc__, quick="a few users only, to see that it works")
    if not STATUS.is_file():
        sys.exit("This benchmark reads /proc/self/status, which Linux has.")
    users = FEW if given.quick else USERS
    started = time.monotonic()
    figures = [
        Figure(
            what=f"growth with {users:,} users, cache.size {CACHE_SIZE:,}",
            measured=in_a_process(ours, users),
            unit="MiB",
            at_most=50.0,
        ),
        Figure(
            what=f"growth of the previous tracker with {users:,} users",
            measured=in_a_process(record_in_memory, users),
            unit="MiB",
        ),
    ]
    show("memory", figures, as_json=given.json, seconds=round(time.monotonic() - started))


if __name__ == "__main__":
    main()
