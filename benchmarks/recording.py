"""Recording: the cost of an event on its whole way, through recorder, ledger, outbox, flusher and the SQLite store.

One process is a worker of the proxy and the keeper. It records events as fast as it can, each of them in the ledger's
file when `record` returns, while the keeper's threads move them into the store. The rate counts until the last one is
there. Users are drawn at random; each has an account of a daily limit, and a daily sum, already.

CPU time is that of all threads together. It depends less on the machine's other load: 250 µs are 4,000 events a second
for a process with a whole core. The growth with the number of users is a ratio of it: the median over the pairs of
neighbouring blocks. Below, for comparison: the tracker that this project replaces.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from datetime import timedelta
from typing import TYPE_CHECKING, NamedTuple

import uvloop

from benchmarks.disk import temporary_folder
from benchmarks.figures import Figure, arguments, show
from benchmarks.previous import Rewriting
from usage_plugin.config import config_of
from usage_plugin.domain.clock import SystemClock
from usage_plugin.domain.store import DailySum
from usage_plugin.domain.subjects import Subjects
from usage_plugin.domain.usage import TokenUsage, UsageEvent, UsageTotals, new_event_id
from usage_plugin.domain.windows import local_date, to_datetime
from usage_plugin.runtime import Parts, Runtime
from usage_plugin.tracking.admission.decisions import unheld
from usage_plugin.tracking.admission.recorder import OpenRequest, Outcome
from usage_plugin.tracking.maintenance.backfill import COUNTING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from usage_plugin.config import Config

AT_ONCE = 10
RATE = 4_000.0
"""The required rate of a process, in events a second."""
_FILL_AT_ONCE = 5_000


class Plan(NamedTuple):
    """How much is measured."""

    few: int
    many: int
    blocks: int
    block: int
    rewritten: int


FULL = Plan(few=1_000, many=1_000_000, blocks=4, block=50_000, rewritten=2_000)
QUICK = Plan(few=10, many=1_000, blocks=1, block=200, rewritten=200)


class Block(NamedTuple):
    """The duration of one block, in seconds of the clock and of the processor."""

    wall: float
    cpu: float


def user_name(number: int) -> str:
    return f"user-{number:06}@example.com"


async def fill(config: Config, users: int) -> None:
    """Give every user a daily sum of today, from which the keeper makes their accounts."""
    today = local_date(SystemClock().now(), config.timezone)
    totals = UsageTotals(requests=1, cost=10**6)
    async with Parts(config).open_store() as store:
        for first in range(0, users, _FILL_AT_ONCE):
            numbers = range(first, min(users, first + _FILL_AT_ONCE))
            sums = [
                DailySum(today, user_name(number), "platform", None, None, None, "gpt-4o", "openai", totals)
                for number in numbers
            ]
            await store.append_sums("fill", [(first + at + 1, one) for at, one in enumerate(sums)])
    runtime = Runtime(config)
    try:
        while COUNTING not in runtime.operations.notes(COUNTING):
            await asyncio.sleep(0.1)
    finally:
        await runtime.close()


def record(runtime: Runtime, user: str, cost: int) -> None:
    """Record one event, as an ending of a request does."""
    subjects = Subjects(user=user, team="platform")
    draft = UsageEvent(
        event_id=new_event_id(),
        started_at=runtime.clock.now(),
        status="recovered",
        call_type="acompletion",
        **subjects.kept(),
        requested_model="gpt-4o",
        model="gpt-4o",
        provider="openai",
    )
    outcome = Outcome(
        status="success",
        model="gpt-4o",
        provider="openai",
        served_model="openai/gpt-4o",
        tokens=TokenUsage(1_234, 321),
        cost=cost,
        cost_source="computed",
        usage={"prompt_tokens": 1_234, "completion_tokens": 321, "total_tokens": 1_555},
    )
    runtime.recorder.record(OpenRequest(unheld(draft, subjects), runtime.clock.monotonic()), outcome)


async def one_block(runtime: Runtime, users: int, events: int, seed: int) -> Block:
    """Record a block of events, and wait until the store has them."""
    draw = random.Random(seed)
    wall, cpu = time.perf_counter(), time.process_time()
    for number in range(events):
        record(runtime, user_name(draw.randrange(users)), draw.randrange(100_000, 3_000_000))
        if number % AT_ONCE == 0:
            await asyncio.sleep(0)  # yield to the loop, as in a proxy
    while runtime.request_ledger.pending or runtime.ledger.waiting().events:
        await asyncio.sleep(0.01)
    return Block(time.perf_counter() - wall, time.process_time() - cpu)


async def measure(folder: Path, plan: Plan) -> list[Figure]:
    """Alternate between few and many users, and compare."""
    sizes = (plan.few, plan.many)
    section = {"limits": [{"name": "daily", "per": "user", "window": "day", "max_cost": "unlimited"}]}
    configs = {users: config_of({**section, "data_dir": str(folder / str(users))}) for users in sizes}
    for users, config in configs.items():
        await fill(config, users)
    blocks: dict[int, list[Block]] = {users: [] for users in sizes}
    for number in range(plan.blocks):
        for users, config in configs.items():
            runtime = Runtime(config)
            try:
                await one_block(runtime, users, plan.block // 10, seed=-number)  # warms up
                blocks[users].append(await one_block(runtime, users, plan.block, seed=number))
            finally:
                await runtime.close()
    figures = [
        Figure(
            what=f"events a second, {users:,} users, each durable and in the store",
            measured=plan.block / statistics.median(block.wall for block in blocks[users]),
            best=plan.block / min(block.wall for block in blocks[users]),
            unit="/s",
            at_least=RATE,
        )
        for users in sizes
    ]
    figures += [cpu_figure(users, blocks[users], plan.block) for users in sizes]
    growth = [many.cpu / few.cpu for few, many in zip(blocks[plan.few], blocks[plan.many], strict=True)]
    figures.append(
        Figure(
            what=f"growth of CPU for each event from {plan.few:,} to {plan.many:,} users",
            measured=statistics.median(growth),
            unit="x",
            at_most=1.5,
        )
    )
    return figures


def cpu_figure(users: int, blocks: Sequence[Block], events: int) -> Figure:
    """Return the processor time of an event, of all threads together."""
    each = [block.cpu / events * 1e6 for block in blocks]
    return Figure(
        what=f"CPU for each event, {users:,} users",
        measured=statistics.median(each),
        best=min(each),
        unit="µs",
        at_most=1e6 / RATE,
    )


def measure_previous(folder: Path, plan: Plan) -> list[Figure]:
    """Record with the tracker that rewrote its whole cache."""
    tracker = Rewriting(folder, size=plan.few)
    draw = random.Random(1)
    day = to_datetime(time.time_ns() // 1_000).date()
    for number in range(plan.few):
        tracker.record(user_name(number), day.isoformat(), number)
    started = time.perf_counter()
    for number in range(plan.rewritten):
        tracker.record(user_name(draw.randrange(plan.few)), day.isoformat(), number)
    took = timedelta(seconds=time.perf_counter() - started) / plan.rewritten
    tracker.close()
    return [
        Figure(
            what=f"the previous tracker, events a second, {plan.few:,} users, none durable before its flush",
            measured=timedelta(seconds=1) / took,
            unit="/s",
        )
    ]


def main() -> None:
    """Measure, and print."""
    given = arguments("recording", __doc__, quick="a few events only, to see that it works")
    plan = QUICK if given.quick else FULL
    with temporary_folder() as folder:
        figures = uvloop.run(measure(folder, plan))
    with temporary_folder() as folder:
        figures += measure_previous(folder, plan)
    show("recording", figures, as_json=given.json)


if __name__ == "__main__":
    main()
