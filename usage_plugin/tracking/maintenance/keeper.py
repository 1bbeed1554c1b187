"""The keeper: background work in a separate thread, with its own connection to the ledger.

Every worker has such a thread for its own chores. A file lock elects one of them as the keeper of the data folder.
The keeper recovers reservations of dead workers, deletes closed windows and keeps the ledger's write-ahead log short.
It also flushes the outbox into the store, backfills new limits and prunes old history. If it dies, another worker takes
over within a second.

The store has a thread of its own, so that a failing or hanging store delays only the history.
"""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from usage_plugin.domain.operations import Anomaly
from usage_plugin.domain.store import Reports
from usage_plugin.encoding import decode_event
from usage_plugin.errors import LedgerBusyError, LedgerError
from usage_plugin.log import get_logger, short_error
from usage_plugin.tracking.admission import active_limits
from usage_plugin.tracking.admission.deferred_reservations import DeferredReservations
from usage_plugin.tracking.ledger_retry import LAST_TIMEOUT, wait_while_busy
from usage_plugin.tracking.maintenance.flusher import Flusher, Unstorable
from usage_plugin.tracking.maintenance.mirror import Mirror
from usage_plugin.tracking.maintenance.supervisor import LONGEST_PAUSE, Attempt, SupervisedWork
from usage_plugin.tracking.notifications.health import HealthNotes
from usage_plugin.tracking.notifications.publishers import Publisher

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from contextlib import AbstractAsyncContextManager

    from usage_plugin.domain.clock import Clock
    from usage_plugin.domain.liveness import Workers
    from usage_plugin.domain.open_ledger import OpenLedger
    from usage_plugin.domain.store import UsageStore
    from usage_plugin.domain.usage import UsageEvent
    from usage_plugin.tracking.maintenance.backfill import Backfill
    from usage_plugin.tracking.maintenance.mirror import WrittenLimit
    from usage_plugin.tracking.maintenance.retention import Pruner

ROUND_EVERY = 1.0
SHORTEN_EVERY = 0.25

log = get_logger()


class Keeper:
    """Run the background work in a thread, from `start` to `stop`."""

    def __init__(  # noqa: PLR0913  # one for each part that it works with
        self,
        open_ledger: Callable[[], OpenLedger],
        open_store: Callable[[], AbstractAsyncContextManager[UsageStore]],
        workers: Workers,
        clock: Clock,
        *,
        unstorable: Unstorable,
        open_as_keeper: Callable[[], OpenLedger] | None = None,
        seeder: Backfill | None = None,
        limits: Callable[[], Sequence[WrittenLimit]] = tuple,
        pruner: Pruner | None = None,
        publisher: Publisher[UsageEvent] | None = None,
        chores: Sequence[Callable[[OpenLedger], None]] = (),
    ) -> None:
        """Set the parts. Ledger and store are opened by functions, since each thread needs its own connection.

        Args:
            open_ledger: opens the ledger for the chores.
            open_store: opens the store.
            open_as_keeper: opens the ledger for the keeper's work, so that its writes fail after the present term.
                None: `open_ledger` does.
            workers: the workers of the data folder, including this one.
            clock: the clock for recorded times. The thread's intervals are in real time.
            unstorable: the file for events that the store never takes.
            seeder: backfills new limits.
            limits: returns the active limits, for a store that keeps copies of them.
            pruner: deletes history that is past its retention.
            publisher: notifies plugins of recovered events.
            chores: functions that this worker calls once a second, keeper or not.
        """
        self._open_ledger = open_ledger
        self._open_as_keeper = open_as_keeper
        self._kept: OpenLedger | None = None
        self._term = 0
        self._open_store = open_store
        self._workers = workers
        self._clock = clock
        self._unstorable = unstorable
        self._publisher = publisher or Publisher()
        self._seeder = seeder
        self._limits = limits
        self._pruner = pruner
        self._chores = chores
        self._problems = HealthNotes(clock)
        self._store_work = SupervisedWork("store", self._work_on_store)
        self._trouble: str | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="usage-plugin-keeper", daemon=True)
        self._last_round = -ROUND_EVERY
        self._pause = ROUND_EVERY
        self._give_up_at = 0.0
        self._began = clock.now() - clock.monotonic()

    def start(self) -> None:
        """Start the chores, and become the keeper as soon as no other worker is."""
        self._thread.start()

    def stop(self, seconds: float) -> None:
        """Flush one last time and stop. If the thread has not ended after this many seconds, it is abandoned."""
        self._give_up_at = time.monotonic() + seconds
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(seconds + SHORTEN_EVERY)

    def _run(self) -> None:
        while True:
            # If an attempt fails while `stop` is called, one more follows: one failure must not cost the last flush.
            is_last = self._stopping.is_set()
            try:
                opened = self._open_ledger()
                try:
                    self._work(opened)
                finally:
                    self._close_kept()
                    opened.close()
                break
            except LedgerError as error:
                log.error("keeper.interrupted", again_in_seconds=self._pause, **short_error(error))  # noqa: TRY400
            except Exception:
                # Our own bug. The thread must survive it, or nothing is flushed any more.
                log.exception("keeper.failed")
            if is_last:
                break
            self._stopping.wait(self._pause)
            self._pause = min(LONGEST_PAUSE, self._pause * 2)
        if self._workers.keeps:
            self._store_work.end(max(0.0, self._give_up_at - time.monotonic()))
        self._workers.stop_keeping()

    def _work(self, opened: OpenLedger) -> None:
        """Work in turns until `stop` is called. A failure of the ledger is raised."""
        while not self._stopping.is_set():
            is_round = time.monotonic() - self._last_round >= ROUND_EVERY
            if is_round:
                self._last_round = time.monotonic()
                for chore in self._chores:
                    _unless_busy(chore, opened)
            if self._workers.try_to_keep():
                kept = self._as_keeper(opened)
                # First, since it does not need the ledger.
                self._store_work.watch()
                _unless_busy(_shorten_log, kept)
                if is_round:
                    _unless_busy(self._housekeeping, kept)
            else:
                self._end_term(0)
            self._pause = ROUND_EVERY
            self._stopping.wait(min(SHORTEN_EVERY, ROUND_EVERY))
        for chore in self._chores:
            _unless_busy(chore, opened, LAST_TIMEOUT)
        if time.monotonic() < self._give_up_at:
            # A worker that was stopped at once may not have tried to become the keeper yet.
            self._workers.try_to_keep()

    def _as_keeper(self, opened: OpenLedger) -> OpenLedger:
        """Return the ledger for the keeper's work of the present term."""
        term = self._workers.term
        if term != self._term:
            self._end_term(term)
        if self._open_as_keeper is None:
            return opened
        if self._kept is None:
            self._kept = self._open_as_keeper()
        return self._kept

    def _end_term(self, next_term: int) -> None:
        """Leave the store to the next keeper, which may be this worker.

        Between two terms a server may have lost events that the store has. A new attempt finds that out.
        """
        if self._term:
            self._store_work.abandon()
        self._close_kept()
        self._term = next_term

    def _close_kept(self) -> None:
        if self._kept is not None:
            self._kept.close()
            self._kept = None

    def _housekeeping(self, opened: OpenLedger) -> None:
        self._problems.tell(opened.operations, "store", self._store_work.problem)
        self._problems.tell(opened.operations, "database", self._trouble)
        # A clock that jumps ahead must not close windows: deleted accounts are lost when the clock is corrected.
        now = min(self._clock.now(), self._began + self._clock.monotonic())
        opened.ledger.maintain(now)
        opened.operations.maintain(now)
        if self._seeder:
            self._seeder.forget_old(opened.operations)
        self._recover(opened)

    def _recover(self, opened: OpenLedger) -> None:
        """Settle the open reservations of dead workers, with the charges and events that the reservations carry."""
        ledger, operations = opened.ledger, opened.operations
        # Read notes before reservations: a reservation is always written before its note.
        waiting = DeferredReservations(operations, self._clock.now())
        reservations = ledger.open_reservations()
        dead = {worker for worker in {r.worker for r in reservations} if self._workers.is_dead(worker)}
        recovered: list[UsageEvent] = []
        try:
            for reservation in reservations:
                lost = reservation.worker in dead and not waiting.spares(reservation)
                if (lost or waiting.is_late(reservation)) and ledger.recover(reservation.event_id):
                    event = decode_event(reservation.event)
                    recovered.append(event)
                    self._publisher.publish(event, len(reservation.event))
        finally:
            if recovered:
                log.warning("reservations.recovered", count=len(recovered))
                operations.count_anomalies(self._as_anomalies(recovered))
        waiting.sweep({reservation.event_id for reservation in reservations})
        self._workers.sweep()
        for note in operations.notes(active_limits.NOTE):
            if self._workers.is_dead(note.removeprefix(active_limits.NOTE)):
                operations.note(note, None)

    def _as_anomalies(self, recovered: Iterable[UsageEvent]) -> list[Anomaly]:
        now = self._clock.now()
        return [Anomaly("recovered", event.model or "", 1, event.cost or 0, now, now) for event in recovered]

    async def _work_on_store(self, attempt: Attempt) -> None:
        """Flush the outbox into the store, backfill and prune, in the store's own thread."""
        opened = (self._open_as_keeper or self._open_ledger)()
        ledger, operations = opened.ledger, opened.operations
        try:
            async with self._open_store() as store:
                flusher = Flusher(ledger, operations, store, self._unstorable, step=attempt.step)
                await flusher.begin()
                copies = Mirror(opened.profiles, store, self._limits, attempt.step)
                while True:
                    is_last = attempt.is_ending
                    await flusher.flush_all()
                    attempt.succeed()
                    self._trouble = store.trouble if isinstance(store, Reports) else None
                    if is_last:
                        return
                    if self._seeder:
                        await self._seeder.seed_new(ledger, operations, store, attempt.step)
                    await copies.bring_up_to_date()
                    if self._pruner:
                        await self._pruner.turn(operations, store, attempt)
                    await attempt.pause(ROUND_EVERY)
        finally:
            opened.close()


def _shorten_log(opened: OpenLedger) -> None:
    if opened.file is not None:
        opened.file.shorten_log()


def _unless_busy(step: Callable[[OpenLedger], None], opened: OpenLedger, timeout: float = 0.0) -> None:
    """Run a step on the ledger. If workers hold its lock for `timeout` seconds, leave the step to the next turn."""
    with suppress(LedgerBusyError):
        wait_while_busy(lambda: step(opened), timeout)
