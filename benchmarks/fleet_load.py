r"""The load of one worker of a fleet, as a process: requests that reserve and settle on three accounts each.

    python -m benchmarks.fleet_load \
        '{"backend": "postgres", "options": {…}, "how": "batches", "in_flight": 16, "seconds": 5}'

It prints one JSON document. `how` is `batches`, as the proxy sends them, or `calls`: as many connections as requests in
flight, and one call for each verb. On Valkey these calls go through redis-py's client, as a program would make them.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
import time
import uuid
from contextlib import closing
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

from redis.asyncio import Redis

from usage_plugin.domain.clock import SystemClock
from usage_plugin.domain.ledger import AccountKey, Charge, Hold, Settled
from usage_plugin.domain.ledger_batch import Reserve, Settle
from usage_plugin.domain.request_ledger import PostedSettlement
from usage_plugin.errors import LedgerBusyError
from usage_plugin.ledgers.sqlite import open_sqlite_ledger
from usage_plugin.ledgers.valkey.transport import ValkeyTransport
from usage_plugin.plugins.interface import BackendContext, SharedLedgerBackend
from usage_plugin.plugins.manager import Plugins
from usage_plugin.runtime import BUILTIN_PLUGINS
from usage_plugin.tracking.admission.local_request_ledger import LocalRequestLedger
from usage_plugin.tracking.admission.remote_request_ledger import RemoteRequestLedger
from usage_plugin.tracking.ledger_thread import LedgerThread

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from usage_plugin.domain.ledger_batch import LedgerTransport
    from usage_plugin.domain.request_ledger import RequestLedger

DAY = 86_400_000_000
EVENT = json.dumps({"event_id": "x" * 32, "user": "ann", "model": "gpt-4o-mini", "usage": "y" * 400})
AMOUNT = 10_000_000


class _Settlement(PostedSettlement):
    def __init__(self, event_id: str, accounts: list[AccountKey], end: int) -> None:
        self.event_id, self.event, self.is_reserved = event_id, EVENT, True
        self.charges = [Charge(account, end, AMOUNT // 2) for account in accounts]

    def written(self, settled: Settled, *, was_unknown: bool) -> None:
        """Do nothing."""

    def given_up(self) -> None:
        raise AssertionError


class _ClientTransport(ValkeyTransport):
    """Makes each call with redis-py's client."""

    def __init__(self, url: str, *rest: Any) -> None:
        super().__init__(url, *rest)
        self._client = Redis.from_url(url, max_connections=1)

    async def _connect(self) -> None:
        """Leave it to the client."""

    async def _exchange(self, *command: bytes | str | int) -> Any:
        return await self._client.execute_command(*command)  # type: ignore[no-untyped-call]

    async def close(self) -> None:
        await self._client.aclose()


class Load:
    """Makes requests, and counts them."""

    def __init__(self, users: int) -> None:
        self._numbers = itertools.count()
        self._users = users
        self._day = time.time_ns() // 1000 // DAY * DAY
        self.waits: list[float] = []

    def _next(self) -> tuple[str, list[AccountKey]]:
        number = next(self._numbers)
        accounts = [
            AccountKey(1, self._day, f"user{number * 7919 % self._users}"),
            AccountKey(2, self._day, f"team{number % 20}"),
            AccountKey(3, self._day, ""),
        ]
        return uuid.uuid4().hex, accounts

    def _holds(self, accounts: list[AccountKey]) -> list[Hold]:
        return [Hold(account, self._day + DAY, AMOUNT, 2**62, AMOUNT) for account in accounts]

    async def by(self, ledger: RequestLedger, worker: str) -> None:
        """Make a request as the proxy does."""
        event_id, accounts = self._next()
        began = time.perf_counter()
        reserved = await ledger.reserve(event_id, worker, time.time_ns() // 1000, self._holds(accounts), EVENT)
        self.waits.append(time.perf_counter() - began)
        assert reserved.admitted
        ledger.settle(_Settlement(event_id, accounts, self._day + DAY))

    async def call(self, transport: Any, worker: str) -> None:
        """Make a request with one call for each verb."""
        event_id, accounts = self._next()
        charges = [Charge(account, self._day + DAY, AMOUNT // 2) for account in accounts]
        started = time.time_ns() // 1000
        reserve = Reserve(event_id, worker, started, self._holds(accounts), EVENT)
        began = time.perf_counter()
        for verb in (reserve, Settle(event_id, charges, EVENT, uuid.uuid4().hex)):
            while True:
                try:
                    await transport.send([verb])
                    break
                except LedgerBusyError:
                    await asyncio.sleep(0.001)
            if verb is reserve:
                self.waits.append(time.perf_counter() - began)


async def _run(
    load: Load, requests: Sequence[Callable[[], Awaitable[None]]], seconds: float, end: Callable[[], Awaitable[None]]
) -> dict[str, Any]:
    """Make requests concurrently, one after the other in each of `requests`, and measure."""
    for _ in range(3):
        await asyncio.gather(*(make() for make in requests))
    load.waits.clear()
    began, cpu, loop_cpu = time.perf_counter(), time.process_time(), time.thread_time()
    over = began + seconds

    async def repeat(make: Callable[[], Awaitable[None]]) -> None:
        while time.perf_counter() < over:
            await make()

    await asyncio.gather(*map(repeat, requests))
    await end()
    count = len(load.waits)
    return {
        "requests": count,
        "seconds": time.perf_counter() - began,
        "cpu": time.process_time() - cpu,
        "loop_cpu": time.thread_time() - loop_cpu,
        "p50": median(load.waits),
    }


async def measure(task: dict[str, Any]) -> dict[str, Any]:
    """Measure the load that a task describes."""
    load, in_flight = Load(task.get("users", 1000)), task["in_flight"]
    if task["backend"] == "sqlite":
        with closing(open_sqlite_ledger(Path(task["options"]["path"])).ledger) as ledger:
            local = LocalRequestLedger(ledger)
            return await _run(load, [lambda: load.by(local, "w")] * in_flight, task["seconds"], lambda: local.close(60))
    backend = Plugins(BUILTIN_PLUGINS, entry_points=False).ledger_backends[task["backend"]]
    assert isinstance(backend, SharedLedgerBackend)
    arguments = backend.options_model.model_validate(task["options"]), BackendContext(Path(), ZoneInfo("UTC"))
    worker = uuid.uuid4().hex
    with closing(backend.register(*arguments)) as register:
        register.join(worker, "host", "{}")
        if task["how"] == "calls":
            options = task["options"]
            transports: list[LedgerTransport] = [
                _ClientTransport(options["url"], options["prefix"], SystemClock())
                if task["backend"] == "valkey"
                else backend.transport(*arguments, SystemClock())
                for _ in range(in_flight)
            ]

            async def close() -> None:
                for transport in transports:
                    await transport.close()

            calls = [partial(load.call, transport, worker) for transport in transports]
            return await _run(load, calls, task["seconds"], close)
        reader = LedgerThread(lambda: backend.open(*arguments))
        remote = RemoteRequestLedger(
            backend.transport(*arguments, SystemClock()), task["backend"], worker=lambda: worker, reader=reader
        )
        found = await _run(
            load, [lambda: load.by(remote, worker)] * in_flight, task["seconds"], lambda: remote.close(60)
        )
        reader.close()
        return {**found, "batches": remote.summary()._asdict()}


if __name__ == "__main__":
    print(json.dumps(asyncio.run(measure(json.loads(sys.argv[1])))))
