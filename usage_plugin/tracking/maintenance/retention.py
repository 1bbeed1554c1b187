"""Retention: delete history that is past its retention or above the maximum size, in chunks.

The keeper calls `turn` between flushes, in the store's thread. A chunk is one short transaction of the store, followed
by a pause that is a multiple of its duration. A turn is short too, so that events are flushed in between. A run starts
soon after the worker, and then once an hour.

A clock that jumps must not delete everything. So ages are computed from a day that follows the clock slowly. It starts
at the newest event, and advances at most one day with each run. With a wrong clock, one day of history is lost each
hour, and `status` reports the problem from the first hour on.
"""

from __future__ import annotations

import json
import time
from datetime import timedelta
from typing import TYPE_CHECKING, NamedTuple

from usage_plugin.domain.store import UsageFilter
from usage_plugin.domain.windows import FOREVER, Window, local_date, start_of_day, to_datetime
from usage_plugin.log import get_logger
from usage_plugin.tracking.ledger_retry import wait_while_busy
from usage_plugin.tracking.notifications.health import HealthNotes

if TYPE_CHECKING:
    from collections.abc import Callable
    from zoneinfo import ZoneInfo

    from usage_plugin.domain.clock import Clock
    from usage_plugin.domain.operations import OperationsLog
    from usage_plugin.domain.store import UsageStore
    from usage_plugin.domain.usage import UsageEvent
    from usage_plugin.tracking.maintenance.supervisor import Attempt

SLICE = 1_000
"""The maximum number of records that one transaction deletes."""
NOTE = "pruned"
RUN_EVERY = 3_600 * 1_000_000
TURN = 0.5
"""The maximum length of a turn in seconds, after which the outbox is flushed again."""
RESTS = 3
"""The pause after a chunk, as a multiple of the time that the chunk took."""
_SHORTEST_REST = 0.005
_DAY = 86_400_000_000

log = get_logger()


class Retention(NamedTuple):
    """The limits on kept history; None means unlimited.

    Attributes:
        events: days for which events are kept.
        daily: days for which daily sums are kept; never fewer than for events.
        max_size: the maximum size of the store in bytes.
    """

    events: int | None
    daily: int | None
    max_size: int | None


_EVERYTHING = Retention(None, None, None)


class Pruned(NamedTuple):
    """The result of the last run, as noted in the ledger. Times are in microseconds since 1970 UTC.

    Attributes:
        at: the end of the run.
        today: the instant that the run used as the current time; the next run continues from it.
        events_before: events admitted earlier were deleted, at least those that the store had then.
        records: the number of deleted records, at least: a store may delete a whole part at once.
        size: the store's size afterwards, in bytes.
    """

    at: int
    today: int
    events_before: int
    records: int
    size: int


def last_run(operations: OperationsLog) -> Pruned | None:
    """Return the result of the last run; None if there was none."""
    text = operations.notes(NOTE).get(NOTE)
    return None if text is None else Pruned(**json.loads(text))


async def oldest_event(store: UsageStore) -> UsageEvent | None:
    """Return the oldest event in the store; None if there is none."""
    async for event in store.events(Window(0, FOREVER), UsageFilter()):
        return event
    return None


class _Run:
    """The state of one run: the instant that it uses as the current time, its cutoffs and its counts."""

    def __init__(self, today: int, newest: int, before: int) -> None:
        self.today = today
        self.newest = newest
        self.events_before = before
        self.records = 0
        self.slices = 0
        self.is_too_large = False


class Pruner:
    """Prune a store by the current retention. Each keeper has one, used in the store's thread."""

    def __init__(
        self,
        retention: Callable[[], Retention],
        zone: ZoneInfo,
        clock: Clock,
        *,
        lacking: Callable[[int, int], list[str]] = lambda _now, _pruned: [],
    ) -> None:
        """Set the parts.

        Args:
            retention: returns the current retention.
            zone: the store's time zone.
            clock: the clock that determines ages.
            lacking: returns the limits that could no longer be backfilled completely without events before an instant.
        """
        self._retention = retention
        self._lacking = lacking
        self._zone = zone
        self._clock = clock
        self._problems = HealthNotes(clock)
        self._run: _Run | None = None

    async def turn(self, operations: OperationsLog, store: UsageStore, attempt: Attempt) -> None:
        """Continue a run, or start one if it is due. Return within a short time.

        Raises:
            StorageError: the store failed to delete. Earlier deletions stay, and the next turn starts a new run.
        """
        run, self._run = self._run, None
        if self._retention() == _EVERYTHING:
            for name in ("clock", "retention"):
                wait_while_busy(lambda name=name: self._problems.tell(operations, name, None))  # type: ignore[misc]
            return
        if run is None:
            if not self._is_due(operations):
                return
            attempt.step()
            run = await self._begin(operations, store)
            if run is None:
                return
        until = time.monotonic() + TURN
        while not attempt.is_ending:
            attempt.step()
            began = time.monotonic()
            deleted = await self._slice(store, run)
            if not deleted:
                await self._finish(operations, store, run)
                return
            run.records += deleted
            run.slices += 1
            await attempt.pause(max(_SHORTEST_REST, RESTS * (time.monotonic() - began)))
            if time.monotonic() >= until:
                break
        self._run = run

    def _is_due(self, operations: OperationsLog) -> bool:
        last = last_run(operations)
        # A clock that was set back must not delay the next run.
        return last is None or not last.at <= self._clock.now() < last.at + RUN_EVERY

    async def _begin(self, operations: OperationsLog, store: UsageStore) -> _Run | None:
        """Determine the current day and the cutoff for events. Return None if the store has no events."""
        newest = None
        async for event in store.events(Window(0, FOREVER), UsageFilter(), newest_first=True):
            newest = event.started_at
            break
        if newest is None:
            # Without an event there is nothing to compare the clock with.
            return None
        now = self._clock.now()
        last = last_run(operations)
        known = newest if last is None else last.today
        today = min(now, known + _DAY)
        late = (now - today) // _DAY
        problem = None
        if late:
            problem = (
                f"The clock says {to_datetime(now):%Y-%m-%d}, {late} days more than when history was last pruned or an"
                f" event recorded. If that is wrong, set it: with each hour another day of history goes."
            )
            log.warning("retention.careful", clock=to_datetime(now).isoformat(), days=late)
        wait_while_busy(lambda: self._problems.tell(operations, "clock", problem))
        kept = self._retention().events
        return _Run(today, newest, 0 if kept is None else max(0, today - kept * _DAY))

    async def _slice(self, store: UsageStore, run: _Run) -> int:
        """Delete a chunk of expired records, or else of those above the maximum size. Return 0 if there are no more."""
        retention = self._retention()
        days_before = local_date(0, self._zone)
        if retention.daily is not None:
            days_before = local_date(run.today, self._zone) - timedelta(days=retention.daily)
        deleted = await store.prune(events_before=run.events_before, days_before=days_before, most=SLICE)
        if deleted or retention.max_size is None or await store.size() <= retention.max_size:
            return deleted
        oldest = await oldest_event(store)
        if oldest is None:
            run.is_too_large = True
            return 0
        # Up to the end of the oldest day, since stores need not delete the oldest events first.
        tomorrow = start_of_day(local_date(oldest.started_at, self._zone) + timedelta(days=1), self._zone)
        before = min(tomorrow, run.newest - _DAY)
        deleted = await store.prune(events_before=before, days_before=days_before, most=SLICE)
        if deleted:
            run.events_before = max(run.events_before, before)
        else:
            run.is_too_large = True
        return deleted

    async def _finish(self, operations: OperationsLog, store: UsageStore, run: _Run) -> None:
        """Note and log the result of the run, and the limits that can no longer be backfilled completely."""
        size = await store.size()
        last = last_run(operations)
        before = max(run.events_before, last.events_before if last else 0)
        pruned = Pruned(self._clock.now(), run.today, before, run.records, size)
        problem = None
        if run.is_too_large:
            problem = (
                f"The store has {size} bytes, more than retention.max_size, although only a day's events and the daily"
                " sums are left; raise it."
            )
        wait_while_busy(lambda: self._problems.tell(operations, "retention", problem))
        wait_while_busy(lambda: operations.note(NOTE, json.dumps(pruned._asdict())))
        log.info(
            "retention.pruned",
            records=run.records,
            slices=run.slices,
            events_before=to_datetime(before).isoformat(),
            size=size,
            limits_not_to_be_seeded_wholly=self._lacking(run.today, before),
        )
