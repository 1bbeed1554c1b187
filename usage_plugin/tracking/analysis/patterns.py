"""Search for patterns: read sums and events for the detectors of `domain.patterns`, in three bounded steps.

1. Patterns of all users together come from the sums by model and by hour. Their number does not depend on the users.
2. The top users by recent spend are analysed one by one, from their daily sums, up to a maximum number.
3. The newest events are read for patterns that sums cannot show, up to a maximum number.
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

    from usage_plugin.domain.limit_set import LimitSet
    from usage_plugin.domain.money import Nano
    from usage_plugin.domain.patterns import Pattern
    from usage_plugin.domain.prices import Rates
    from usage_plugin.domain.store import Grouping
    from usage_plugin.tracking.history.balances import AccountBalances
    from usage_plugin.tracking.history.packed_rows import ReportRow
    from usage_plugin.tracking.history.reader import Top, UsageReader

MOST_USERS = 1_000
"""The default number of users to analyse, the top ones by recent spend."""

LATELY_DAYS = 28
"""The number of recent days whose spend selects the users to analyse."""

COMPARED_DAYS = 7
"""The number of days that are compared with the usual spend: the last week has every weekday once."""

BEFORE_DAYS = 7 * WEEKS
"""The number of days that determine the usual spend: every weekday twelve times."""

MOST_EVENTS = 20_000
"""The maximum number of events that are read for costly failures, newest first. The same again for users' hours."""

_BY_DAYS = 92
"""The span in days from which sums are read by week. They show as much as daily sums, and are read seven times
faster."""

_ENDING = ("day", "week", "month", "quarter", "year")
"""Windows that end at the same time for all subjects. Rolling windows expire bucket by bucket, and sessions one by
one."""

_PACE = 50
"""The number of steps after which the search yields to the event loop."""

_HOUR_DAYS = 28
"""The number of days whose hours are read in one query."""

_HOUR_WEEKS = 4
"""The number of earlier weeks with whose same weekday the hours of a day are compared."""


class Found(NamedTuple):
    """The patterns, most expensive first, and the coverage of the search.

    Attributes:
        users: the number of users that were analysed one by one.
        users_in_all: the number of recently active users.
        least_spend: the recent spend of the last user of the selection; None if it includes all users. No other user
            spent more.
        events: the number of requests that were read one by one.
    """

    patterns: list[Pattern]
    users: int
    users_in_all: int
    least_spend: Nano | None
    events: int


class Known(NamedTuple):
    """The inputs of a search besides the history.

    Attributes:
        rates: today's prices by model; empty if they are unknown.
        limits: the active limits.
        balances: the balances of accounts.
        zone: the time zone of days.
    """

    rates: Mapping[str, Rates]
    limits: LimitSet
    balances: AccountBalances
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
    """Find patterns of all types in the days from `first` to `last`, both included.

    Args:
        reader: the reader of the history.
        first: a day of the configured zone. Earlier days are also read, to determine the usual spend.
        last: a day of the configured zone. Limits are checked only if it is today or later.
        known: prices and limits.
        most_users: the maximum number of users to analyse. With 0 only patterns of all users together are found,
            without names.
        advance: called with the number of analysed users, and of all users to analyse.
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
    # In a thread: with many users and models this takes a while.
    patterns = await asyncio.to_thread(search.finished, patterns)
    least = top.rows[-1].totals.cost if top.in_all > len(top.rows) else None
    return Found(patterns, len(users), top.in_all, least, search.failed.read)


class _Search:
    """One search: its span, and the state that its steps share."""

    def __init__(self, reader: UsageReader, first: date, last: date, known: Known) -> None:
        self.users = UsersOfModels()
        self.failed = CostlyFailures()
        self._reader = reader
        self._known = known
        since = max(first, last - timedelta(days=COMPARED_DAYS - 1))
        self._days = Days(first, last, since, since - timedelta(days=BEFORE_DAYS))
        self._requests = 0
        self._lately: dict[str, int] = {}
        """The number of each user's requests since the first of the compared hours."""
        self._hour_events = 0

    async def everybody(self) -> list[Pattern]:
        """Find patterns of all users together, in the sums by model and by hour."""
        bucket: Grouping = "day" if (self._days.last - self._days.first).days < _BY_DAYS else "week"
        rows = await self._reader.report((bucket, "model", "provider"), self._days.first, self._days.last)
        self._requests = sum(row.totals.requests for row in rows)
        uses = list(_uses(rows))
        hours = [hour async for hour in self._hours()]
        # In a thread, so that the event loop is free.
        return await asyncio.to_thread(lambda: list(patterns_of_everybody(uses, hours, self._days, self._known.rates)))

    async def _hours(self) -> AsyncIterator[HourUse]:
        """Yield the sums of hours, read in chunks so that none blocks the event loop for long."""
        begin = min(self._days.first, self._days.before)
        while begin <= self._days.last:
            end = min(begin + timedelta(days=_HOUR_DAYS - 1), self._days.last)
            for row in await self._reader.hours(("hour",), begin, end):
                yield HourUse(row.group[0] or "", row.totals)
            begin = end + timedelta(days=1)

    async def dearest(self, most: int) -> Top:
        """Return the top users by recent spend."""
        lately = self._days.last - timedelta(days=LATELY_DAYS - 1)
        return await self._reader.top(("user",), lately, self._days.last, most=most)

    async def user(self, user: str) -> list[Pattern]:
        """Return sudden changes in a user's days, and store the user's models for later comparison."""
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
        """Add the expensive hours to the pattern of a user's expensive day, within the maximum number of events."""
        if (pattern.cost_impact or 0) <= 0:
            return pattern
        user, day = pattern.affected_users[0], date.fromisoformat(str(pattern.evidence["last"]))
        hours = await self._day_by_hour(user, day)
        before = [await self._day_by_hour(user, day - timedelta(weeks=week)) for week in range(1, _HOUR_WEEKS + 1)]
        loud = loud_hours(hours, before) if self._hour_events < MOST_EVENTS else []
        return at_hours(pattern, loud)

    async def hours_of(self, user: str) -> list[Pattern]:
        """Return sudden changes in a user's hours, if all requests of those weeks are within the maximum of events."""
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
        """Return a user's spend by hour, from at most the remaining number of events."""
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
        """Return patterns of costly failures in the newest requests."""
        window = days_window(self._days.first, self._days.last, self._known.zone)
        async for event in self._reader.events(window, newest_first=True):
            if self.failed.read == MOST_EVENTS:
                break
            self.failed.add(event)
            if self.failed.read % _PACE == 0:
                await asyncio.sleep(0)
        return list(self.failed.patterns(self._requests))

    def finished(self, patterns: Iterable[Pattern]) -> list[Pattern]:
        """Compare the users with each other, add affected users to patterns, and sort the patterns by cost impact."""
        every = [*patterns, *self.users.poor_caches(self._known.rates)]
        return by_impact(map(self.users.named, every))

    async def states(self, users: Iterable[str]) -> AsyncIterator[LimitState]:
        """Yield the state of these users' accounts, for limits that count per user only and can refuse."""
        limits, balances, zone = self._known.limits, self._known.balances, self._known.zone
        chosen = [limit for limit in limits.limits if limit.per == ("user",) and limit.blocks and limit.is_charged]
        chosen = [limit for limit in chosen if limit.window.kind in _ENDING]
        for number, user in enumerate(users, 1):
            for limit in chosen:
                if not limits.may_count(limit, {"user": user}):
                    continue
                found = balances.of(limits.account(limit, user))
                if found.amount is not None:
                    spent = found.balance.spent
                    yield LimitState(limit.name, user, limit.unit, found.amount, spent, found.window, balances.at, zone)
            if number % _PACE == 0:
                await asyncio.sleep(0)


def _uses(rows: Iterable[ReportRow]) -> Iterator[Use]:
    for row in rows:
        bucket, model, provider = row.group
        yield Use(bucket or "", model, provider, row.totals)
