"""The keeper: the one worker that does the background work, in a thread of its own with its own connections.

It moves the outbox into the store, recovers what dead workers left open and tidies the ledger. Every worker has a
Keeper; the file lock decides whose works. If it dies, another takes over within a second.
"""

from __future__ import annotations

import asyncio
import threading
from contextlib import AsyncExitStack, suppress
from typing import TYPE_CHECKING, TypeVar

from usage_plugin.errors import LedgerBusyError, LedgerError, StorageError
from usage_plugin.log import get_logger, short_error
from usage_plugin.tracking.flusher import BATCH, Flusher

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from contextlib import AbstractAsyncContextManager

    from usage_plugin.domain.clock import Clock
    from usage_plugin.domain.ledger import Ledger
    from usage_plugin.domain.store import UsageStore
    from usage_plugin.tracking.workers import Workers

ROUND_EVERY = 1.0
SHORTEN_EVERY = 0.25
_LONGEST_PAUSE = 30.0

ResultT = TypeVar("ResultT")

log = get_logger()


class Keeper:
    """Runs in a thread from `start` to `stop`."""

    def __init__(
        self,
        open_ledger: Callable[[], Ledger],
        open_store: Callable[[], AbstractAsyncContextManager[UsageStore]],
        workers: Workers,
        clock: Clock,
    ) -> None:
        """Take what opens the parts: the thread must have its own."""
        self._open_ledger = open_ledger
        self._open_store = open_store
        self._workers = workers
        self._clock = clock
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="usage-plugin-keeper", daemon=True)
        self._round_done = 0

    def start(self) -> None:
        """Begin to work as soon as no other worker does."""
        self._thread.start()

    def stop(self, seconds: float) -> None:
        """Flush a last time and end; after so many seconds the thread is left behind."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(seconds)

    def _run(self) -> None:
        asyncio.run(self._keep())

    async def _keep(self) -> None:
        pause = ROUND_EVERY
        while not self._stopping.is_set():
            if self._workers.try_to_keep():
                try:
                    await self._work()
                    pause = ROUND_EVERY
                except (StorageError, LedgerError) as error:
                    log.error("keeper.interrupted", again_in_seconds=pause, **short_error(error))  # noqa: TRY400
                    pause = min(_LONGEST_PAUSE, pause * 2)
                except Exception:
                    # Our own bug: the thread must not die of it, or nothing is flushed any more.
                    log.exception("keeper.failed")
            await self._wait(pause)
        self._workers.stop_keeping()

    async def _work(self) -> None:
        ledger = self._open_ledger()
        try:
            async with AsyncExitStack() as stack:
                self._housekeeping(ledger)
                store = await stack.enter_async_context(self._open_store())
                flusher = Flusher(ledger, store)
                await _until_free(flusher.begin)
                while not self._stopping.is_set():
                    if self._clock.monotonic() - self._round_done >= ROUND_EVERY * 1e6:
                        self._round_done = self._clock.monotonic()
                        await self._flush_all(flusher)
                        self._housekeeping(ledger)
                    with suppress(LedgerBusyError):
                        ledger.shorten_log()
                    await self._wait(SHORTEN_EVERY)
                await self._flush_all(flusher)
        finally:
            ledger.close()

    @staticmethod
    async def _flush_all(flusher: Flusher) -> None:
        while await _until_free(flusher.flush) == BATCH:
            pass

    def _housekeeping(self, ledger: Ledger) -> None:
        with suppress(LedgerBusyError):
            ledger.tidy(self._clock.now())
            self._recover(ledger)

    def _recover(self, ledger: Ledger) -> None:
        """Settle what dead workers left open, at the reserved amounts."""
        reservations = ledger.open_reservations()
        dead = {worker for worker in {r.worker for r in reservations} if self._workers.is_dead(worker)}
        if dead:
            recovered = [r for r in reservations if r.worker in dead and ledger.recover(r.event_id)]
            log.warning("reservations.recovered", count=len(recovered))
        self._workers.sweep()

    async def _wait(self, seconds: float) -> None:
        """Sleep, but wake up soon when told to stop."""
        await asyncio.to_thread(self._stopping.wait, seconds)


async def _until_free(step: Callable[[], Awaitable[ResultT]]) -> ResultT:
    """Do a step of the flusher, again if a worker is writing to the ledger just then: it is safe to repeat."""
    while True:
        try:
            return await step()
        except LedgerBusyError:
            await asyncio.sleep(0.001)
