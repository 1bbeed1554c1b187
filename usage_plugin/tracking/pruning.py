"""Pruning: history that is older than it is kept, or larger than it may be, goes a slice at a time.

The keeper calls `turn` between flushes, in the store's thread. A slice is one short transaction of the store, followed
by a rest that is a multiple of what it took, and a turn is over soon, so that events are flushed meanwhile. A run is
begun soon after the start and then once an hour.

A clock that jumps must not delete everything. So what is too old is worked out from a day that moves with the clock,
but at most one day further with each run, and begins at the newest event: with a wrong clock history goes day by day,
each hour one, and `status` says so from the first hour on.
"""

from __future__ import annotations

import json
import time
from datetime import timedelta
from typing import TYPE_CHECKING, NamedTuple

from usage_plugin.domain.store import UsageFilter
from usage_plugin.domain.windows import FOREVER, Window, local_date, start_of_day, to_datetime
from usage_plugin.log import get_logger
from usage_plugin.tracking.flusher import until_free
from usage_plugin.tracking.problems import Problems

if TYPE_CHECKING:
    from collections.abc import Callable
    from zoneinfo import ZoneInfo

    from usage_plugin.domain.clock import Clock
    from usage_plugin.domain.operations import OperationsLog
    from usage_plugin.domain.store import UsageStore
    from usage_plugin.domain.usage import UsageEvent
    from usage_plugin.tracking.patience import Attempt

SLICE = 1_000
"""Records that one transaction deletes at most."""
NOTE = "pruned"
RUN_EVERY = 3_600 * 1_000_000
TURN = 0.5
"""Seconds after which the outbox is looked at again."""
RESTS = 3
"""How many times as long as a slice took nothing is done after it."""
_SHORTEST_REST = 0.005
_DAY = 86_400_000_000

log = get_logger()


class Retention(NamedTuple):
    """How long history is kept; None: without end.

    Attributes:
        events: days.
        daily: days; never less than events.
        max_size: bytes.
    """

    events: int | None
    daily: int | None
    max_size: int | None


_EVERYTHING = Retention(None, None, None)


class Pruned(NamedTuple):
    """What the last run left in the ledger's notes.

    Attributes:
        at: when it ended, microseconds since 1970 UTC, as all that follows.
        today: what it took for now; the next run goes on from there.
        events_before: events admitted earlier are gone, at least those that were there.
        records: how many it deleted.
        size: bytes that the store had afterwards.
    """

    at: int
    today: int
    events_before: int
    records: int
    size: int


def last_run(operations: OperationsLog) -> Pruned | None:
    """Read what the last run left; None if there was none."""
    text = operations.notes(NOTE).get(NOTE)
    return None if text is None else Pruned(**json.loads(text))


async def oldest_event(store: UsageStore) -> UsageEvent | None:
    """Find the first event that is still there."""
    async for event in store.events(Window(0, FOREVER), UsageFilter()):
        return event
    return None


class _Run:
    """One run, from what it took for now to what it has deleted."""

    def __init__(self, today: int, newest: int, before: int) -> None:
        self.today = today
        self.newest = newest
        self.events_before = before
        self.records = 0
        self.slices = 0
        self.is_too_large = False


class Pruner:
    """Prunes a store by the retention in force; one for each keeper, used in the store's thread."""

    def __init__(
        self,
        retention: Callable[[], Retention],
        zone: ZoneInfo,
        clock: Clock,
        *,
        lacking: Callable[[int, int], list[str]] = lambda _now, _pruned: [],
    ) -> None:
        """Take the parts.

        Args:
            retention: tells what is in force.
            zone: the store's.
            clock: says what is old.
            lacking: names the limits that could not be seeded wholly any more, if events before an instant are gone.
        """
        self._retention = retention
        self._lacking = lacking
        self._zone = zone
        self._clock = clock
        self._problems = Problems(clock)
        self._run: _Run | None = None

    async def turn(self, operations: OperationsLog, store: UsageStore, attempt: Attempt) -> None:
        """Go on with a run, or begin one if it is time; returns soon.

        Raises:
            StorageError: the store did not take it; what was deleted stays deleted, and the next turn begins anew.
        """
        run, self._run = self._run, None
        if self._retention() == _EVERYTHING:
            for name in ("clock", "retention"):
                until_free(lambda name=name: self._problems.tell(operations, name, None))  # type: ignore[misc]
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
        # A clock that was set back must not put it off.
        return last is None or not last.at <= self._clock.now() < last.at + RUN_EVERY

    async def _begin(self, operations: OperationsLog, store: UsageStore) -> _Run | None:
        """Work out what day it is, and which events are too old."""
        newest = None
        async for event in store.events(Window(0, FOREVER), UsageFilter(), newest_first=True):
            newest = event.started_at
            break
        if newest is None:
            # Nothing tells whether the clock is right.
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
        until_free(lambda: self._problems.tell(operations, "clock", problem))
        kept = self._retention().events
        return _Run(today, newest, 0 if kept is None else max(0, today - kept * _DAY))

    async def _slice(self, store: UsageStore, run: _Run) -> int:
        """Delete some of what is too old, then of what is too much; 0 if there is no more."""
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
        # To the end of the oldest day: stores need not delete the oldest first.
        tomorrow = start_of_day(local_date(oldest.started_at, self._zone) + timedelta(days=1), self._zone)
        before = min(tomorrow, run.newest - _DAY)
        deleted = await store.prune(events_before=before, days_before=days_before, most=SLICE)
        if deleted:
            run.events_before = max(run.events_before, before)
        else:
            run.is_too_large = True
        return deleted

    async def _finish(self, operations: OperationsLog, store: UsageStore, run: _Run) -> None:
        """Say what was done, and what new limits will not find any more."""
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
        until_free(lambda: self._problems.tell(operations, "retention", problem))
        until_free(lambda: operations.note(NOTE, json.dumps(pruned._asdict())))
        log.info(
            "retention.pruned",
            records=run.records,
            slices=run.slices,
            events_before=to_datetime(before).isoformat(),
            size=size,
            limits_not_to_be_seeded_wholly=self._lacking(run.today, before),
        )
