"""The SQLite ledger alone: the duration of `reserve` and `settle`, with three matching limits.

One process: blocks of requests alternate between a file with 1,000 accounts and one with 1,000,000. Users are drawn at
random, and 16 requests are in flight. `Measured` is the median over the blocks, `Best block` the result on an otherwise
idle machine. Growth is the median over the pairs of neighbouring blocks.

Four processes: each makes 100 requests a second, at random instants, on the file with 1,000,000 accounts. The first one
also tidies and checkpoints as the keeper does, in a thread. A process that finds the file locked waits as admission and
recorder do, and the waiting counts. The last rows show how much slower any code runs at such instants than back to
back.
"""

from __future__ import annotations

import asyncio
import os
import random
import sqlite3
import statistics
import threading
import time
from collections import deque
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from functools import partial
from multiprocessing import get_context
from typing import TYPE_CHECKING, NamedTuple

import uvloop

from benchmarks.disk import temporary_folder
from benchmarks.figures import Figure, Yardstick, percentile, show, wants_json
from usage_plugin.domain.ledger import AccountKey, Charge, Hold, Settled
from usage_plugin.domain.usage import UsageEvent, new_event_id
from usage_plugin.encoding import encode_event
from usage_plugin.errors import LedgerBusyError
from usage_plugin.ledgers.sqlite import open_sqlite_ledger
from usage_plugin.tracking.maintenance.keeper import ROUND_EVERY, SHORTEN_EVERY

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from usage_plugin.domain.open_ledger import OpenLedger

FEW, MANY = 1_000, 1_000_000
ALTERNATIONS = 20
BLOCK = 1_000
IN_FLIGHT = 16

PROCESSES = 4
REQUESTS_PER_SECOND = 100
SECONDS = 30.0
PROVIDER_SECONDS = 0.2
SPIN_NS = 300_000

DAY_US = 86_400_000_000
DAILY, MONTHLY, COMPANY = 1 << 60, 1 << 61, 1 << 62


class Times(NamedTuple):
    """How long each call took, in microseconds."""

    reserve: list[float]
    settle: list[float]


class Served(NamedTuple):
    """The measurements of one of several processes."""

    times: Times
    scale: list[Figure]


class Request(NamedTuple):
    """The ledger's arguments for one request."""

    event_id: str
    started_at: int
    holds: list[Hold]
    charges: list[Charge]
    reserved: str
    settled: str


class Traffic:
    """Requests of random users, on the accounts that `fill` wrote."""

    def __init__(self, accounts: int, seed: int) -> None:
        """Half the accounts are daily, half monthly; each user has one of both."""
        self._random = random.Random(seed)
        self._users = accounts // 2
        self.now = time.time_ns() // 1000

    def request(self) -> Request:
        """Make the next request."""
        user = user_name(self._random.randrange(self._users))
        keys = account_keys(user, self.now)
        worst, cost = 8_402_500, self._random.randrange(100_000, 3_000_000)
        event = UsageEvent(
            event_id=new_event_id(),
            started_at=self.now,
            status="recovered",
            call_type="acompletion",
            user=user,
            team="platform",
            api_key="88dc28d0f030c55ed4ab77ed8faf098196cb1c05df778539800c9f1243fe6b4b",
            call_id="b980aa3f-5d85-4d21-85f2-1b0a8b3b3c61",
            requested_model="gpt-4o",
            model="gpt-4o",
            provider="openai",
            cost=worst,
            cost_source="reserved",
            reserved=worst,
            estimated=True,
        )
        settled = event._replace(
            status="success",
            duration_us=1_834_112,
            served_model="openai/gpt-4o",
            input_tokens=1_234,
            output_tokens=321,
            cost=cost,
            cost_source="computed",
            estimated=False,
            usage={"prompt_tokens": 1_234, "completion_tokens": 321, "total_tokens": 1_555},
        )
        return Request(
            event_id=event.event_id,
            started_at=self.now,
            holds=[Hold(key, end, worst, 10**18, worst) for key, end in keys],
            charges=[Charge(key, end, cost) for key, end in keys],
            reserved=encode_event(event),
            settled=encode_event(settled),
        )


def user_name(number: int) -> str:
    return f"user-{number:06}@example.com"


def account_keys(user: str, now: int) -> list[tuple[AccountKey, int]]:
    """Name the accounts of a user's requests: per user and day, per user and month, and of all users."""
    day = now // DAY_US * DAY_US
    month = day - 15 * DAY_US
    return [
        (AccountKey(DAILY, day, user), day + DAY_US),
        (AccountKey(MONTHLY, month, user), month + 31 * DAY_US),
        (AccountKey(COMPANY, month, ""), month + 31 * DAY_US),
    ]


def fill(path: Path, accounts: int) -> None:
    """Make a ledger with the given number of accounts, in random order of users."""
    open_sqlite_ledger(path).close()
    now = time.time_ns() // 1000
    users = list(range(accounts // 2))
    random.Random(accounts).shuffle(users)
    connection = sqlite3.connect(path)
    with connection:
        connection.execute("PRAGMA cache_size = -400000")
        connection.executemany(
            "INSERT INTO accounts (limit_key, window_start, subject, window_end, spent, reserved)"
            " VALUES (?, ?, ?, ?, ?, 0)",
            (
                (*key, end, random.randrange(10**9, 10**10))
                for user in users
                for key, end in account_keys(user_name(user), now)[:2]
            ),
        )
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()


# ── one process ──────────────────────────────────────────────────────────────────────────────────────────────────────


def one_block(opened: OpenLedger, traffic: Traffic) -> Times:
    """Time one block, then tidy up as the keeper would."""
    times = Times([], [])
    ledger = opened.ledger
    open_requests: deque[Request] = deque()
    requests = [traffic.request() for _ in range(BLOCK)]
    seq = 0

    def settle(request: Request) -> int:
        started = time.perf_counter_ns()
        settled = ledger.settle(request.event_id, request.charges, request.settled)
        times.settle.append((time.perf_counter_ns() - started) / 1000)
        return settled.seq if isinstance(settled, Settled) else 0

    for request in requests:
        started = time.perf_counter_ns()
        reserved = ledger.reserve(request.event_id, "worker", request.started_at, request.holds, request.reserved)
        times.reserve.append((time.perf_counter_ns() - started) / 1000)
        if not reserved.admitted:
            raise RuntimeError("A request of the benchmark was refused.")
        open_requests.append(request)
        if len(open_requests) > IN_FLIGHT:
            settle(open_requests.popleft())
    for request in open_requests:
        seq = settle(request)
    ledger.acknowledge(seq)
    maintain(opened, traffic.now)
    shorten_log(opened)
    return times


def maintain(opened: OpenLedger, now: int) -> None:
    """Do a slice of housekeeping, as the keeper does once a second."""
    opened.ledger.maintain(now)
    opened.operations.maintain(now)


def shorten_log(opened: OpenLedger) -> None:
    """Keep the write-ahead log short, as the keeper does four times a second."""
    if opened.file is not None:
        opened.file.shorten_log()


def measure_one_process(files: dict[int, Path]) -> list[Figure]:
    """Alternate between the files, and compare."""
    ledgers = {accounts: open_sqlite_ledger(path) for accounts, path in files.items()}
    traffic = {accounts: Traffic(accounts, seed=accounts) for accounts in files}
    blocks: dict[int, list[Times]] = {accounts: [] for accounts in files}
    for alternation in range(ALTERNATIONS + 1):
        for accounts, ledger in ledgers.items():
            times = one_block(ledger, traffic[accounts])
            if alternation:  # the first block of each warms up
                blocks[accounts].append(times)
    for ledger in ledgers.values():
        ledger.close()
    figures = []
    for verb in ("reserve", "settle"):
        for share, most in ((0.50, 60.0), (0.99, 400.0)):
            of_blocks = {
                accounts: [percentile(getattr(times, verb), share) for times in blocks[accounts]] for accounts in files
            }
            figures += [
                Figure(
                    what=f"{verb}, {accounts:,} accounts, p{share * 100:g}",
                    measured=statistics.median(values),
                    best=min(values),
                    unit="µs",
                    at_most=most,
                )
                for accounts, values in of_blocks.items()
            ]
            growth = [many / few for few, many in zip(of_blocks[FEW], of_blocks[MANY], strict=True)]
            figures.append(
                Figure(
                    what=f"{verb}, growth from {FEW:,} to {MANY:,}, p{share * 100:g}",
                    measured=statistics.median(growth),
                    unit="x",
                    at_most=1.5,
                )
            )
    return figures


# ── four processes ───────────────────────────────────────────────────────────────────────────────────────────────────


async def patiently(verb: Callable[[], object]) -> float:
    """Retry as admission and recorder do: spin while the file is locked, then yield to the loop between tries."""
    started = time.perf_counter_ns()
    while True:
        try:
            verb()
        except LedgerBusyError:
            if time.perf_counter_ns() - started > SPIN_NS:
                await asyncio.sleep(random.uniform(0.0002, 0.001))
            else:
                os.sched_yield()
        else:
            return (time.perf_counter_ns() - started) / 1000


async def serve(path: Path, number: int, begin: float) -> Served:
    """Be one worker of the proxy for a while."""
    times = Times([], [])
    ledger = open_sqlite_ledger(path).ledger
    traffic = Traffic(MANY, seed=number)
    arrivals = random.Random(number)
    yardstick = Yardstick()

    async def one(request: Request) -> None:
        reserve = partial(
            ledger.reserve,
            request.event_id,
            f"worker-{number}",
            request.started_at,
            request.holds,
            request.reserved,
        )
        times.reserve.append(await patiently(reserve))
        await asyncio.sleep(arrivals.expovariate(1 / PROVIDER_SECONDS))
        settle = partial(ledger.settle, request.event_id, request.charges, request.settled)
        times.settle.append(await patiently(settle))

    at = begin
    tasks = []
    while at < begin + SECONDS:
        await asyncio.sleep(at - time.time())
        yardstick.measure()
        tasks.append(asyncio.create_task(one(traffic.request())))
        at += arrivals.expovariate(REQUESTS_PER_SECOND)
    await asyncio.gather(*tasks)
    ledger.close()
    return Served(times, yardstick.figures())


def keep(path: Path, stopping: threading.Event) -> None:
    """Do the ledger's housekeeping as often as the keeper, on a connection of its own."""
    opened = open_sqlite_ledger(path)
    tidied = time.monotonic()
    while not stopping.wait(SHORTEN_EVERY):
        with suppress(LedgerBusyError):
            shorten_log(opened)
            if time.monotonic() - tidied >= ROUND_EVERY:
                tidied = time.monotonic()
                maintain(opened, time.time_ns() // 1000)
    opened.close()


def worker(path: Path, begin: float, number: int) -> Served:
    """Run one process; the first one is the keeper as well."""
    stopping = threading.Event()
    keeper = threading.Thread(target=keep, args=(path, stopping))
    if number == 0:
        keeper.start()
    try:
        return uvloop.run(serve(path, number, begin))
    finally:
        stopping.set()
        if number == 0:
            keeper.join()


def measure_four_processes(path: Path) -> list[Figure]:
    """Let the processes run side by side, and put their times together."""
    begin = time.time() + 3.0  # all of them have started by then
    with ProcessPoolExecutor(PROCESSES, mp_context=get_context("spawn")) as pool:
        results = list(pool.map(partial(worker, path, begin), range(PROCESSES)))
    figures = []
    for verb in ("reserve", "settle"):
        together = [value for served in results for value in getattr(served.times, verb)]
        figures += [
            Figure(
                what=f"{verb}, {PROCESSES} processes x {REQUESTS_PER_SECOND}/s, p{share * 100:g}",
                measured=percentile(together, share),
                unit="µs",
                at_most=most,
            )
            for share, most in ((0.50, 150.0), (0.99, 1000.0), (0.999, 5000.0))
        ]
        figures.append(
            Figure(
                what=f"{verb}, {PROCESSES} processes, slowest of {len(together):,}", measured=max(together), unit="µs"
            )
        )
    return [*figures, *results[0].scale]


def main() -> None:
    """Measure both, and print."""
    as_json = wants_json("ledger", __doc__)
    with temporary_folder() as folder:
        files = {accounts: folder / f"{accounts}.db" for accounts in (FEW, MANY)}
        for accounts, path in files.items():
            fill(path, accounts)
        figures = [*measure_one_process(files), *measure_four_processes(files[MANY])]
    show("ledger", figures, as_json=as_json)


if __name__ == "__main__":
    main()
