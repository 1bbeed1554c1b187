"""The request ledger on a ledger in a local file: transactions run on the event loop, and take about 50 µs.

If another process holds the ledger's lock for more than 300 µs, a reservation sleeps and retries. A settlement is
queued then, or if the ledger does not work, and the queue is retried until everything is written.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING

from usage_plugin.domain.ledger import NotSettled, Settled
from usage_plugin.domain.request_ledger import PostedSettlement, RequestLedger
from usage_plugin.errors import LedgerBusyError, LedgerError
from usage_plugin.log import get_logger, short_error
from usage_plugin.tracking.ledger_retry import retry_while_busy

if TYPE_CHECKING:
    from collections.abc import Sequence

    from usage_plugin.domain.ledger import Account, AccountKey, Hold, Ledger, Reserved

SPIN_NS = 300_000
"""How long a transaction is retried without a pause while the ledger is locked: others take about 50 µs."""

MOST_PENDING = 10_000
"""The maximum number of queued settlements in memory while the ledger does not take them. Beyond it the hold stays and
is charged when this worker ends, and a line is logged."""

_FIRST_DELAY = 0.0005
_LONGEST_DELAY = 0.005
_GIVE_UP_NS = 5_000_000_000
_TURN_NS = 3_000_000
"""The maximum time, in nanoseconds, to write queued settlements without yielding to the event loop. Requests wait for
the loop meanwhile, and their settlements are queued."""

log = get_logger()


class LocalRequestLedger(RequestLedger):
    """Runs the verbs of the request path on the event loop."""

    def __init__(self, ledger: Ledger) -> None:
        """Start with an empty queue."""
        self._ledger = ledger
        self._queue: deque[PostedSettlement] = deque()
        self._retrying: asyncio.Task[None] | None = None

    async def reserve(self, event_id: str, worker: str, started_at: int, holds: Sequence[Hold], event: str) -> Reserved:
        """Reserve. Retry while another process is writing, for up to five seconds."""
        started = time.monotonic_ns()
        delay = 0.0002
        while True:
            try:
                return self._ledger.reserve(event_id, worker, started_at, holds, event)
            except LedgerBusyError:
                waited = time.monotonic_ns() - started
                if waited > _GIVE_UP_NS:
                    raise
                if waited > SPIN_NS:
                    # After that, pause with `sleep`, so that the event loop can do other work.
                    await asyncio.sleep(delay * random.uniform(1, 2))  # noqa: S311  # jitter
                    delay = min(_LONGEST_DELAY, delay * 1.5)
                else:
                    os.sched_yield()  # the process that holds the lock may need this core

    async def accounts(self, limit_key: int, since: int, subject: str) -> Sequence[Account]:
        """Read them now."""
        return self._ledger.accounts(limit_key, since, subject)

    def abandon(self, event_id: str) -> None:
        """Abandon now, or leave it to the recovery of this worker's reservations."""
        with suppress(LedgerError):
            self._ledger.abandon(event_id)

    async def release(self, event_id: str) -> bool:
        """Release now, or as soon as no other process is writing."""
        try:
            await retry_while_busy(lambda: self._ledger.release(event_id))
        except LedgerError as error:
            # The hold stays, and is charged when this worker ends: charging too much is the safe side.
            log.error("ledger.release_failed", event_id=event_id, **short_error(error))  # noqa: TRY400
            return False
        return True

    def free(self, event_id: str, accounts: Sequence[AccountKey]) -> None:
        """Free now; if that fails, the holds are freed when the request is settled."""
        try:
            self._ledger.free(event_id, accounts)
        except LedgerError as error:
            log.warning("ledger.slots_not_freed", event_id=event_id, **short_error(error))

    @property
    def pending(self) -> int:
        """The number of queued settlements."""
        return len(self._queue)

    def settle(self, settlement: PostedSettlement) -> None:
        """Write a settlement now, or queue it behind those that wait."""
        if not self._queue:
            try:
                self._write(settlement)
            except LedgerError as error:
                if not isinstance(error, LedgerBusyError):
                    log.error("ledger.settle_failed", event_id=settlement.event_id, **short_error(error))  # noqa: TRY400
            else:
                return
        if len(self._queue) >= MOST_PENDING:
            settlement.given_up()
            return
        self._queue.append(settlement)
        if self._retrying is None or self._retrying.done():
            self._retrying = asyncio.get_running_loop().create_task(self._retry())

    def _write(self, settlement: PostedSettlement) -> None:
        """Settle now, or raise after trying the lock for about 300 µs."""
        event_id, charges, event = settlement.event_id, settlement.charges, settlement.event
        started = time.monotonic_ns()
        while True:
            was_unknown = False
            try:
                settled: Settled | NotSettled | None
                if settlement.is_reserved:
                    settled = self._ledger.settle(event_id, charges, event)
                    was_unknown = settled is NotSettled.UNKNOWN
                if was_unknown or not settlement.is_reserved:
                    settled = self._ledger.record(event_id, charges, event)
            except LedgerBusyError:
                if time.monotonic_ns() - started > SPIN_NS:
                    raise
                os.sched_yield()  # the process that holds the lock may need this core
            else:
                if isinstance(settled, Settled):
                    settlement.written(settled, was_unknown=was_unknown)
                return

    def withdraw(self, event_id: str) -> bool:
        """Remove a queued settlement without writing it; return whether there was one."""
        for settlement in self._queue:
            if settlement.event_id == event_id:
                self._queue.remove(settlement)
                return True
        return False

    async def _retry(self) -> None:
        delay = _FIRST_DELAY
        turn_ends = time.monotonic_ns() + _TURN_NS
        while self._queue:
            try:
                self._write(self._queue[0])
            except LedgerBusyError:
                delay = min(_LONGEST_DELAY, delay * 1.5)
            except LedgerError as error:
                log.error("ledger.settle_failed", pending=self.pending, **short_error(error))  # noqa: TRY400
                if isinstance(error.__cause__, UnicodeError | OverflowError):
                    # It can never be written and must not block the others.
                    self._queue.popleft().given_up()
                    continue
                delay = min(5.0, delay * 4)
            else:
                self._queue.popleft()
                delay = _FIRST_DELAY
                if time.monotonic_ns() < turn_ends:
                    continue
            await asyncio.sleep(0 if delay == _FIRST_DELAY else delay * random.uniform(1, 2))  # noqa: S311  # jitter
            turn_ends = time.monotonic_ns() + _TURN_NS

    async def drain(self, seconds: float) -> None:
        """Write the queued settlements, for at most this time."""
        if self._retrying is not None:
            await asyncio.wait([self._retrying], timeout=seconds)

    async def close(self, seconds: float) -> None:
        """Write the queued settlements, for at most this time."""
        await self.drain(seconds)
