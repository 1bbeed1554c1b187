"""Looking for patterns: reads the sums that `domain.patterns` judges, in three steps of which each is bounded.

What concerns everybody comes from the sums by model and by hour, which are few however many users there are. Single
users are looked at one after the other: those who spent most lately, at most so many, each by their own days. Last,
the newest events are read for what no sum tells, at most so many.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from datetime import date, timedelta
from typing import TYPE_CHECKING, NamedTuple

from usage_plugin.domain.patterns import (
    CostlyFailures,
    Days,
    HourUse,
    LimitState,
    Use,
    UsersOfModels,
    at_hours,
    by_impact,
    limits_ahead,
    loud_hours,
    patterns_of_everybody,
    sudden_changes,
    sudden_changes_by_hour,
)
from usage_plugin.domain.patterns.times import WEEKS
from usage_plugin.domain.store import UsageFilter
from usage_plugin.domain.subjects import FORGOTTEN
from usage_plugin.domain.usage import UsageTotals
from usage_plugin.domain.windows import days_window, hour_name, start_of_hour

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
    from zoneinfo import ZoneInfo

    from usage_plugin.domain.limits import LimitSet
    from usage_plugin.domain.money import Nano
    from usage_plugin.domain.patterns import Pattern
    from usage_plugin.domain.prices import Rates
    from usage_plugin.domain.store import Grouping
    from usage_plugin.tracking.rows import ReportRow
    from usage_plugin.tracking.standings import Standings
    from usage_plugin.tracking.tracker import Top, UsageReader

MOST_USERS = 1_000
"""So many users are looked at, those who spent most lately, unless somebody asks for others."""

LATELY_DAYS = 28
"""The days whose spend decides who is looked at."""

COMPARED_DAYS = 7
"""The days that are compared with what is usual: the last week has every weekday once."""

BEFORE_DAYS = 7 * WEEKS
"""The days that say what is usual: every weekday twelve times."""

MOST_EVENTS = 20_000
"""So many events are read for costly failures, the newest; as many again for the hours of users."""

_BY_DAYS = 92
"""Longer spans are looked at by the week, which tells as much as by the day, and is read seven times faster."""

_ENDING = ("day", "week", "month", "quarter", "year")
"""Windows that everybody's limit ends with at the same time; rolling ones and sessions give way bit by bit."""

_PACE = 50
"""After so many steps others have the loop."""

_HOUR_DAYS = 28
"""The hours of so many days are read at a time."""

_HOUR_WEEKS = 4
"""The hours of a day are compared with those of the same weekday in so many weeks before."""


class Found(NamedTuple):
    """The patterns, what costs most first, and what was looked at to find them.

    Attributes:
        users: how many users were looked at one by one.
        users_in_all: how many there were lately.
        least_spend: what the last of them spent lately, if there are others: none of those spent more.
        events: how many requests were read one by one.
    """

    patterns: list[Pattern]
    users: int
    users_in_all: int
    least_spend: Nano | None
    events: int


class Known(NamedTuple):
    """What is known beside the history.

    Attributes:
        rates: today's prices by model; empty where they are not known.
        limits: the limits in force.
        standings: how accounts stand.
        zone: where days begin.
    """

    rates: Mapping[str, Rates]
    limits: LimitSet
    standings: Standings
    zone: ZoneInfo


async def find_patterns(
    reader: UsageReader,
    first: date,
    last: date,
    known: Known,
    *,
    most_users: int = MOST_USERS,
    advance: Callable[[int, int], None] = lambda done, whole: None,  # noqa: ARG005
) -> Found:
    """Look for patterns of all types in the days from first to last, both included.

    Args:
        reader: of the history.
        first: a day of the configured zone. What is usual is learnt from days before it, too.
        last: the same; limits are looked at only if it is today or later.
        known: prices and limits.
        most_users: so many users are looked at; with 0 only what concerns everybody is found, without names.
        advance: told how many users are done, and of how many.
    """
    last_used = min(last, reader.today())
    if first > last_used:
        return Found([], 0, 0, None, 0)
    search = _Search(await reader.frozen(), first, last_used, known)
    patterns = await search.everybody()
    if not most_users:
        return Found(by_impact(patterns), 0, 0, None, 0)
    top = await search.dearest(most_users)
    users = [user for row in top.rows if (user := row.group[0]) is not None and user != FORGOTTEN]
    single: list[Pattern] = []
    for done, user in enumerate(users, 1):
        single += await search.user(user)
        advance(done, len(users))
    patterns += [await search.with_hours(pattern) for pattern in by_impact(single)]
    changed = {user for pattern in single for user in pattern.affected_users}
    for user in users:
        if user not in changed:
            patterns += await search.hours_of(user)
    patterns += await search.failures()
    if last >= reader.today():
        patterns += limits_ahead([state async for state in search.states(users)])
    # With many users and models this takes a while.
    patterns = await asyncio.to_thread(search.finished, patterns)
    least = top.rows[-1].totals.cost if top.in_all > len(top.rows) else None
    return Found(patterns, len(users), top.in_all, least, search.failed.read)


class _Search:
    """One search: the span, and what is remembered from one step to the next."""

    def __init__(self, reader: UsageReader, first: date, last: date, known: Known) -> None:
        self.users = UsersOfModels()
        self.failed = CostlyFailures()
        self._reader = reader
        self._known = known
        since = max(first, last - timedelta(days=COMPARED_DAYS - 1))
        self._days = Days(first, last, since, since - timedelta(days=BEFORE_DAYS))
        self._requests = 0
        self._lately: dict[str, int] = {}
        """How many requests each user has made since the hours that are compared with."""
        self._hour_events = 0

    async def everybody(self) -> list[Pattern]:
        """Look at the sums by model and by hour."""
        bucket: Grouping = "day" if (self._days.last - self._days.first).days < _BY_DAYS else "week"
        rows = await self._reader.report((bucket, "model", "provider"), self._days.first, self._days.last)
        self._requests = sum(row.totals.requests for row in rows)
        uses = list(_uses(rows))
        hours = [hour async for hour in self._hours()]
        # Others have the loop meanwhile.
        return await asyncio.to_thread(lambda: list(patterns_of_everybody(uses, hours, self._days, self._known.rates)))

    async def _hours(self) -> AsyncIterator[HourUse]:
        """Read the hours in pieces, so that none keeps others from the loop for long."""
        begin = min(self._days.first, self._days.before)
        while begin <= self._days.last:
            end = min(begin + timedelta(days=_HOUR_DAYS - 1), self._days.last)
            for row in await self._reader.hours(("hour",), begin, end):
                yield HourUse(row.group[0] or "", row.totals)
            begin = end + timedelta(days=1)

    async def dearest(self, most: int) -> Top:
        """Find those who spent most lately."""
        lately = self._days.last - timedelta(days=LATELY_DAYS - 1)
        return await self._reader.top(("user",), lately, self._days.last, most=most)

    async def user(self, user: str) -> list[Pattern]:
        """Look at a user's days, and remember which models they used."""
        by: tuple[Grouping, ...] = ("day", "model", "provider")
        rows = await self._reader.report(by, self._days.before, self._days.last, UsageFilter(user=user))
        uses = list(_uses(rows))
        self.users.add(user, [use for use in uses if use.bucket >= self._days.first.isoformat()])
        days: defaultdict[date, Nano] = defaultdict(int)
        for use in uses:
            days[date.fromisoformat(use.bucket)] += use.totals.cost
        since = self._hours_before.isoformat()
        self._lately[user] = sum(use.totals.requests for use in uses if use.bucket >= since)
        is_over = self._days.last < self._reader.today()
        return list(sudden_changes(user, days, self._days.since, self._days.last, is_over=is_over))

    async def with_hours(self, pattern: Pattern) -> Pattern:
        """Say in which hours a user's dear day was so, as long as there are events to see it in, and not too many."""
        if (pattern.cost_impact or 0) <= 0:
            return pattern
        user, day = pattern.affected_users[0], date.fromisoformat(str(pattern.evidence["last"]))
        hours = await self._day_by_hour(user, day)
        before = [await self._day_by_hour(user, day - timedelta(weeks=week)) for week in range(1, _HOUR_WEEKS + 1)]
        loud = loud_hours(hours, before) if self._hour_events < MOST_EVENTS else []
        return at_hours(pattern, loud)

    async def hours_of(self, user: str) -> list[Pattern]:
        """Look at a user's hours, if there is room for reading all of their requests of those weeks."""
        if self._hour_events + self._lately[user] > MOST_EVENTS:
            return []
        costs = await self._by_hour(user, self._hours_before, self._days.last)
        hours = [HourUse(hour, UsageTotals(cost=cost)) for hour, cost in costs.items()]
        return list(sudden_changes_by_hour(hours, self._days.since, user))

    async def _day_by_hour(self, user: str, day: date) -> list[Nano]:
        spent = [0] * 24
        for hour, cost in (await self._by_hour(user, day, day)).items():
            spent[HourUse(hour, UsageTotals()).of_day] += cost
        return spent

    async def _by_hour(self, user: str, first: date, last: date) -> dict[str, Nano]:
        """Sum what a user spent, by hour, out of as many events as may still be read."""
        costs: defaultdict[str, Nano] = defaultdict(int)
        zone = self._known.zone
        async for event in self._reader.events(days_window(first, last, zone), UsageFilter(user=user)):
            if self._hour_events == MOST_EVENTS:
                break
            self._hour_events += 1
            costs[hour_name(start_of_hour(event.started_at, zone), zone)] += event.cost or 0
            if self._hour_events % _PACE == 0:
                await asyncio.sleep(0)
        return costs

    @property
    def _hours_before(self) -> date:
        return self._days.since - timedelta(weeks=_HOUR_WEEKS)

    async def failures(self) -> list[Pattern]:
        """Look at the newest requests one by one."""
        window = days_window(self._days.first, self._days.last, self._known.zone)
        async for event in self._reader.events(window, newest_first=True):
            if self.failed.read == MOST_EVENTS:
                break
            self.failed.add(event)
            if self.failed.read % _PACE == 0:
                await asyncio.sleep(0)
        return list(self.failed.patterns(self._requests))

    def finished(self, patterns: Iterable[Pattern]) -> list[Pattern]:
        """Compare the users with each other, name those that patterns affect, and put all in order."""
        every = [*patterns, *self.users.poor_caches(self._known.rates)]
        return by_impact(map(self.users.named, every))

    async def states(self, users: Iterable[str]) -> AsyncIterator[LimitState]:
        """Look at the accounts of these users, of limits that count nobody else on them and can refuse."""
        limits, standings, zone = self._known.limits, self._known.standings, self._known.zone
        chosen = [limit for limit in limits.limits if limit.per == ("user",) and limit.blocks and limit.is_charged]
        chosen = [limit for limit in chosen if limit.window.kind in _ENDING]
        for number, user in enumerate(users, 1):
            for limit in chosen:
                if not limits.may_count(limit, {"user": user}):
                    continue
                found = standings.of(limits.account(limit, user))
                if found.amount is not None:
                    spent = found.balance.spent
                    yield LimitState(
                        limit.name, user, limit.unit, found.amount, spent, found.window, standings.at, zone
                    )
            if number % _PACE == 0:
                await asyncio.sleep(0)


def _uses(rows: Iterable[ReportRow]) -> Iterator[Use]:
    for row in rows:
        bucket, model, provider = row.group
        yield Use(bucket or "", model, provider, row.totals)
