"""Update the vectors from the history.

Events that the plugin receives are not enough: each comes at most once, and not at all when a worker is killed. A
week's vectors are derived again from its sums and events, whenever the history has more of the week than the vectors.
So no event is lost or counted twice, regardless of its origin and of killed processes. The history is read under the
lock of the vectors: the last writer has read last.
"""

from __future__ import annotations

from contextlib import contextmanager
from datetime import date, timedelta
from typing import TYPE_CHECKING

from usage_plugin.contrib.chroma.vector_store import MOST_AT_ONCE, Vector
from usage_plugin.domain.behaviour import HOURS, vector_of, week_of_use
from usage_plugin.domain.store import UsageFilter
from usage_plugin.domain.subjects import ANONYMOUS, FORGOTTEN, INTERNAL
from usage_plugin.domain.usage import UsageTotals
from usage_plugin.domain.windows import days_window, monday_of, to_datetime
from usage_plugin.file_locks import HeldLock

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path
    from zoneinfo import ZoneInfo

    from usage_plugin.contrib.chroma.vector_store import Vectors
    from usage_plugin.tracking.history.reader import UsageReader

MOST_USERS = 10_000
"""The number of users of a week whose sums are in memory; a week with more users is read in several passes."""

_NOT_PERSONS = frozenset({ANONYMOUS, INTERNAL, FORGOTTEN})
"""The users that are several persons, or none."""

_WEEK = timedelta(days=7)
_SUNDAY = timedelta(days=6)


@contextmanager
def only_one(folder: Path) -> Iterator[bool]:
    """Yield whether this process may update; each worker starts an update, and one at a time is enough."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    lock = HeldLock(folder / "following.lock")
    try:
        yield lock.take()
    finally:
        lock.release()


class Indexer:
    """Derive the vectors that are missing or stale from the history."""

    def __init__(
        self,
        history: UsageReader,
        zone: ZoneInfo,
        open_vectors: Callable[[], AbstractContextManager[Vectors]],
        progress: Callable[[date, int, int], None],
    ) -> None:
        """Prepare the update.

        Args:
            history: The history.
            zone: The time zone of days.
            open_vectors: Opens the vectors exclusively; called several times.
            progress: Receives a week, the number of further users that were checked, and the total number.
        """
        self._history = history
        self._zone = zone
        self._open_vectors = open_vectors
        self._progress = progress

    async def catch_up(self, weeks: int) -> None:
        """Update the last weeks, the current one included, and delete the vectors of earlier ones."""
        this = monday_of(self._history.today())
        kept = [this - _WEEK * back for back in range(weeks)]
        with self._open_vectors() as vectors:
            vectors.keep_weeks(kept)
            seen = {week: vectors.seen(week) or UsageTotals() for week in kept}
        # The current week first: most queries are about it.
        for week in kept:
            rows = await self._history.report((), week, week + _SUNDAY)
            totals = rows[0].totals if rows else UsageTotals()
            if totals == seen[week]:
                continue
            async for users in self._users(week):
                await self._bring_up(week, users)
            with self._open_vectors() as vectors:
                vectors.note_seen(week, totals)

    async def _users(self, week: date) -> AsyncIterator[dict[str, UsageTotals]]:
        """Yield the sums of a week by user, in the order of names, `MOST_USERS` at a time."""
        after, is_complete = "", False
        while not is_complete:
            sums: dict[str, UsageTotals] = {}
            # Sums of later names were dropped, and are read in the next pass.
            upto: str | None = None
            async for one in self._history.days(week, week + _SUNDAY):
                user = one.user
                if user is None or user in _NOT_PERSONS or user <= after or (upto is not None and user > upto):
                    continue
                sums[user] = sums.get(user, UsageTotals()).plus(one.totals)
                if len(sums) >= 2 * MOST_USERS:
                    upto = sorted(sums)[MOST_USERS - 1]
                    sums = {name: totals for name, totals in sums.items() if name <= upto}
            is_complete = upto is None
            after = upto or ""
            if sums:
                yield sums

    async def _bring_up(self, week: date, users: dict[str, UsageTotals]) -> None:
        names = sorted(users)
        for at in range(0, len(names), MOST_AT_ONCE):
            page = names[at : at + MOST_AT_ONCE]
            with self._open_vectors() as vectors:
                known = vectors.totals(week, page)
                # A smaller sum was pruned: the vector of the whole week stays.
                changed = [name for name in page if _is_more(users[name], known.get(name, UsageTotals()))]
                made = [await self._vector(week, name) for name in changed]
                # A user who was erased meanwhile has no requests left.
                vectors.put(week, [one for one in made if one.totals.requests])
            self._progress(week, len(page), len(names))

    async def _vector(self, week: date, user: str) -> Vector:
        only = UsageFilter(user=user)
        rows = await self._history.report(("day", "model", "provider"), week, week + _SUNDAY, only)
        hours = [0] * HOURS
        async for event in self._history.events(days_window(week, week + _SUNDAY, self._zone), only):
            hours[to_datetime(event.started_at, self._zone).hour] += 1
        use = week_of_use(
            ((date.fromisoformat(str(day)), model, provider, used) for (day, model, provider), used in rows), hours
        )
        return Vector(user, week, use.totals, vector_of(use))


def _is_more(now: UsageTotals, before: UsageTotals) -> bool:
    return now != before and now.requests >= before.requests
