"""Forecasting: the spend at the end of a window, and the day on which a limit is used up, from the daily sums.

A limit's past usage is derived from the sums as in the backfill of a new limit (`maintenance.backfill`).
`domain.forecast` computes the following days, in a thread, since the event loop must serve requests.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta
from heapq import nlargest
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

from usage_plugin.domain.forecast import HISTORY_DAYS, Series, backtest, course, runs_out
from usage_plugin.domain.store import UsageFilter
from usage_plugin.domain.windows import Window, WindowRule, days_window, local_date, start_of_day, window_at
from usage_plugin.errors import HistoryError
from usage_plugin.tracking.maintenance.backfill import amount_of, daily_dimensions, names_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import date
    from zoneinfo import ZoneInfo

    from usage_plugin.domain.forecast import Backtest, Course
    from usage_plugin.domain.limits import Limit, Unit
    from usage_plugin.domain.store import RollupDimension
    from usage_plugin.tracking.history.balances import AccountBalance, AccountBalances
    from usage_plugin.tracking.history.reader import UsageReader

ForecastWindow = Literal["day", "week", "month", "quarter", "year"]
FORECAST_WINDOWS: tuple[ForecastWindow, ...] = get_args(ForecastWindow)
"""The windows that end with a day, so that daily sums suffice to forecast them."""

_MILLION = 1_000_000


class Spending(NamedTuple):
    """The usage of a group or account so far in an open window.

    Attributes:
        names: the names of the group by dimension; empty for all requests together.
        limit: the limit of the account; None for a forecast of cost without a limit.
        amount: the limit's amount; None for unlimited.
        rule: the window's rule.
        spent: the usage, in `unit`.
    """

    names: Mapping[str, str]
    limit: Limit | None
    unit: Unit
    amount: int | None
    rule: WindowRule
    window: Window
    spent: int


class Outlook(NamedTuple):
    """The forecast of a spending.

    Attributes:
        course: the forecast of the days from today to the window's end.
        series: the usage of the days before.
    """

    now: Spending
    today: date
    course: Course
    series: Series

    @property
    def at_end(self) -> tuple[int, int | None, int | None]:
        """The usage at the window's end: expected, and the range's low and high; None if there is no range."""
        _, low, high, _, _ = self.course
        return (
            self.now.spent + self.course.expected[-1],
            None if low is None else self.now.spent + low[-1],
            None if high is None else self.now.spent + high[-1],
        )

    @property
    def runs_out(self) -> tuple[date | None, date | None, date | None]:
        """The day on which the limit is used up: expected, earliest, latest; None if it lasts until the end."""
        return self._day(self.course.expected), self._day(self.course.high), self._day(self.course.low)

    def _day(self, sums: Sequence[int] | None) -> date | None:
        if sums is None or self.now.amount is None:
            return None
        at = runs_out(sums, self.now.amount - self.now.spent)
        return None if at is None else self.today + timedelta(days=at)


class Forecaster:
    """Forecast usage from the daily sums of the configured zone."""

    def __init__(self, reader: UsageReader, balances: AccountBalances, zone: ZoneInfo) -> None:
        """Set the parts. `balances` has the instant of the forecast, and `zone` is the store's time zone."""
        self._reader = reader
        self._balances = balances
        self._zone = zone
        self._today = local_date(balances.at, zone)
        self._past = self._today - timedelta(days=HISTORY_DAYS), self._today - timedelta(days=1)

    async def spend(
        self, by: Sequence[RollupDimension], usage_filter: UsageFilter, rule: WindowRule, *, most: int
    ) -> list[Outlook]:
        """Forecast the cost of the most expensive groups in the window; of all requests together if `by` is empty.

        Groups without a name in one of the dimensions are left out.
        """
        window = window_at(rule, self._balances.at, self._zone)
        span = local_date(window.start, self._zone), self._today
        found = await self._reader.top(by, *span, usage_filter, most=most) if by else None
        groups = (
            [(row.group, row.totals.cost) for row in found.rows]
            if found
            else [((), sum(row.totals.cost for row in await self._reader.report((), *span, usage_filter)))]
        )
        outlooks = []
        for group, spent in groups:
            names: dict[str, str] = {at: name for at, name in zip(by, group, strict=True) if name is not None}
            if len(names) == len(by):
                rows = await self._reader.report(("day",), *self._past, replace(usage_filter, **names))
                used = {row.group[0]: row.totals.cost for row in rows}
                outlooks.append(await self._outlook(Spending(names, None, "usd", None, rule, window, spent), used))
        return outlooks

    async def limit(self, limit: Limit, usage_filter: UsageFilter, *, most: int) -> list[Outlook]:
        """Forecast the most used accounts of a limit, among those whose subject has the requested names.

        Raises:
            HistoryError: the window does not end with a day, daily sums do not suffice for the limit, or its subjects
                do not have the requested dimensions.
        """
        dimensions = daily_dimensions(limit, self._zone)
        if limit.window.kind not in FORECAST_WINDOWS or dimensions is None or not limit.is_charged:
            raise HistoryError(
                f"The limit {limit.name} cannot be forecast.",
                hint=f"It takes a window of {', '.join(FORECAST_WINDOWS)} in {self._zone}, and no sessions, tags or"
                " aliases of keys: of those there are no daily sums.",
            )
        wanted = usage_filter.wanted()
        if others := wanted.keys() - set(limit.per):
            raise HistoryError(
                f"The limit {limit.name} counts per {', '.join(limit.per)}, so {', '.join(sorted(others))} chooses none"
                " of its accounts."
            )
        accounts = [
            row for row in self._balances.all_of(limit) if wanted.items() <= limit.names_of(row.subject).items()
        ]
        return [await self._account(row, dimensions) for row in nlargest(most, accounts, key=_fullness)]

    async def _account(self, row: AccountBalance, dimensions: Sequence[RollupDimension]) -> Outlook:
        limit = row.limit
        names = limit.names_of(row.subject)
        others = [dimension for dimension in dimensions if dimension not in names]
        usage_filter = UsageFilter(**names)
        counted = self._balances.limits.alone(limit)
        used: dict[str | None, int] = {}
        for found in await self._reader.report(("day", *others), *self._past, usage_filter):
            day, *rest = found.group
            asked = names_of((*others, *usage_filter.wanted()), (*rest, *usage_filter.wanted().values()))
            if any(matched.subject == row.subject for matched in counted.matching(*asked)):
                used[day] = used.get(day, 0) + amount_of(limit, found.totals)
        spent = row.balance.spent
        now = Spending(names, limit, limit.unit, row.amount, limit.window, row.window, spent)
        return await self._outlook(now, used)

    async def _outlook(self, now: Spending, used: Mapping[str | None, int]) -> Outlook:
        first, _ = self._past
        days = (first + timedelta(days=at) for at in range(HISTORY_DAYS))
        series = Series(first, [used.get(day.isoformat(), 0) for day in days])
        ahead = (local_date(now.window.end - 1, self._zone) - self._today).days + 1
        whole = days_window(self._today, self._today, self._zone)
        left = (whole.end - self._balances.at) * _MILLION // (whole.end - whole.start)
        made = await asyncio.to_thread(course, series, ahead, left_of_first=max(0, min(left, _MILLION)))
        return Outlook(now, self._today, made, series)

    async def backtest(self, outlook: Outlook) -> Backtest:
        """Return the errors that such forecasts would have had on the days before."""
        series, zone = outlook.series, self._zone
        begins = [
            at
            for at in range(len(series.amounts) + 1)
            if (instant := start_of_day(series.first + timedelta(days=at), zone))
            == window_at(outlook.now.rule, instant, zone).start
        ]
        return await asyncio.to_thread(backtest, series, begins)


def _fullness(row: AccountBalance) -> tuple[float, int]:
    """Return a sort key: the used share of the amount. Unlimited accounts come last, by the amount spent."""
    return (-1.0 if row.amount is None else row.balance.spent / (row.amount or 1), row.balance.spent)
