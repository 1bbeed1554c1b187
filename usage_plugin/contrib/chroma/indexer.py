"""Brings vectors up to date with the history.

Not from what the plugin is told: that comes at most once, and not at all when a worker is killed. A week is made anew
from its sums and events whenever the history has more of it than the vectors were made of, so that nothing is lost or
counted twice, whoever recorded or imported it, and whatever was killed. The history is read under the lock that the
vectors are written under: who writes last has read last.
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
from usage_plugin.locks import HeldLock

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path
    from zoneinfo import ZoneInfo

    from usage_plugin.contrib.chroma.vector_store import Vectors
    from usage_plugin.tracking.tracker import UsageReader

MOST_USERS = 10_000
"""Of so many users of a week the sums are in memory; of a week with more, several times so many are read."""

_NOBODY = frozenset({ANONYMOUS, INTERNAL, FORGOTTEN})
"""Who is many, or no person."""

_WEEK = timedelta(days=7)
_SUNDAY = timedelta(days=6)


@contextmanager
def only_one(folder: Path) -> Iterator[bool]:
    """Say whether nobody else is at it; nobody else will be, meanwhile. One is enough, and each worker starts one."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    lock = HeldLock(folder / "following.lock")
    try:
        yield lock.take()
    finally:
        lock.release()


class Indexer:
    """Makes vectors of what the history has and they have not."""

    def __init__(
        self,
        history: UsageReader,
        zone: ZoneInfo,
        open_vectors: Callable[[], AbstractContextManager[Vectors]],
        progress: Callable[[date, int, int], None],
    ) -> None:
        """Take the parts.

        Args:
            history: what was used.
            zone: in which days begin.
            open_vectors: gives the vectors, while nobody else has them; called again and again.
            progress: hears of a week, that so many more of its users were looked at, and of how many.
        """
        self._history = history
        self._zone = zone
        self._open_vectors = open_vectors
        self._progress = progress

    async def catch_up(self, weeks: int) -> None:
        """Bring the last weeks up to date, this one included, and drop the vectors of all before."""
        this = monday_of(self._history.today())
        kept = [this - _WEEK * back for back in range(weeks)]
        with self._open_vectors() as vectors:
            vectors.keep_weeks(kept)
            seen = {week: vectors.seen(week) or UsageTotals() for week in kept}
        # This week first: it is what most questions are about.
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
        """Sum a week by user, in the order of names, `MOST_USERS` at a time."""
        after, is_complete = "", False
        while not is_complete:
            sums: dict[str, UsageTotals] = {}
            # Beyond it, sums were dropped, and are for the next time.
            upto: str | None = None
            async for one in self._history.days(week, week + _SUNDAY):
                user = one.user
                if user is None or user in _NOBODY or user <= after or (upto is not None and user > upto):
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
                # What has become less was pruned: the vector of the whole week stays.
                changed = [name for name in page if _is_more(users[name], known.get(name, UsageTotals()))]
                made = [await self._vector(week, name) for name in changed]
                # Who was forgotten meanwhile has nothing left.
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
