"""Queries of the history. Days are those of the configured time zone; ranges are half-open: `end` is excluded."""

from __future__ import annotations

import datetime as dt
import json
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from usage_plugin.api.results import (
    Forecast,
    PercentileRow,
    StreamedUsage,
    TopUsage,
    UsagePattern,
    UsageRow,
    forecast_of,
    measured,
    pattern_of,
    streamed,
    usage_of,
)
from usage_plugin.domain.store import (
    EVENT_DIMENSIONS,
    HOUR_GROUPINGS,
    ROLLUP_DIMENSIONS,
    EventPosition,
    Grouping,
    UsageFilter,
)
from usage_plugin.domain.windows import FOREVER, Window, WindowRule, days_window, to_instant
from usage_plugin.errors import UsagePluginError
from usage_plugin.tracking.analysis.forecasting import FORECAST_WINDOWS, Forecaster
from usage_plugin.tracking.analysis.patterns import MOST_USERS, Known, find_patterns
from usage_plugin.tracking.analysis.percentiles import percentiles
from usage_plugin.tracking.history.balances import AccountBalances
from usage_plugin.tracking.history.chunking import in_steps
from usage_plugin.tracking.history.reader import DayPosition, named

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

    from usage_plugin.domain.prices import Rates
    from usage_plugin.domain.store import EventDimension, HourGrouping, RollupDimension
    from usage_plugin.domain.usage import UsageEvent, UsageTotals
    from usage_plugin.runtime import Runtime
    from usage_plugin.tracking.analysis.forecasting import ForecastWindow
    from usage_plugin.tracking.analysis.percentiles import EventGrouping, Measure
    from usage_plugin.tracking.history.packed_rows import Group
    from usage_plugin.tracking.history.reader import UsageReader

Bucket = Literal["hour", "day", "week", "month"]

_DAY = dt.timedelta(days=1)


class UsageQueries:
    """Queries of the history, which include the last settled request."""

    def __init__(self, runtime: Runtime, reader: UsageReader) -> None:
        """Set the runtime and the reader; `open_tracker` creates trackers."""
        self._runtime = runtime
        self._reader = reader

    async def aggregate(
        self,
        by: Sequence[RollupDimension | EventDimension] = (),
        *,
        start: dt.date,
        end: dt.date,
        bucket: Bucket | None = None,
        zone: str | None = None,
        **names: str,
    ) -> Sequence[UsageRow]:
        """Return sums of usage by names, and by time if a bucket is given.

        Args:
            by: user, team, api_key, organization, end_user, model, provider, session, agent. Hours have only model and
                provider. Sessions and agents are summed from events, so they reach back only as far as events are kept.
            start: the first day.
            end: the day after the last.
            bucket: hour, day, week (from Monday) or month: the first name of each group, in order of time.
            zone: the time zone of the days, such as `Asia/Tokyo`; by default the configured one. Another zone's days
                are summed from events, so they reach back only as far as events are kept.
            names: filters, for example `user="ann"`.

        Returns:
            The groups in order of cost, or with a bucket in order of time. Each row is created when it is read: a
            result with all users is small, and dropping it does not block the event loop.

        Raises:
            HistoryError: the events that sessions, agents or another zone's days need are missing.
            UsagePluginError: the range is empty, or a zone, name or bucket is not valid.
        """
        first, last = _days(start, end)
        usage_filter = self._filter(names)
        if bucket == "hour":
            if zone is not None or not set(by) <= set(HOUR_GROUPINGS):
                raise UsagePluginError(
                    "bucket: hours are available by model and provider, in the configured zone.",
                    hint="For other groupings, stream the events: tracker.events(…).",
                )
            rows = await self._reader.hours(("hour", *cast("Sequence[HourGrouping]", by)), first, last, usage_filter)
        else:
            groupings: tuple[Grouping | EventDimension, ...] = (*(() if bucket is None else (bucket,)), *by)
            rows = await self._reader.report(groupings, first, last, usage_filter, zone=_zone(zone))
        return rows.read_as(_usage_row)

    async def top(
        self,
        by: Sequence[RollupDimension | EventDimension],
        *,
        start: dt.date,
        end: dt.date,
        most: int = 50,
        **names: str,
    ) -> TopUsage:
        """Return the top groups by cost, without reading all groups.

        Args:
            by: the dimensions of a group, as for `aggregate`.
            start: the first day.
            end: the day after the last.
            most: the number of groups.
            names: filters, as for `aggregate`.
        """
        found = await self._reader.top(by, *_days(start, end), self._filter(names), most=most)
        rows = [_usage_row(*row) async for part in in_steps(found.rows) for row in part]
        return TopUsage(rows, found.in_all, usage_of(found.total))

    async def distinct_users(self, *, start: dt.date, end: dt.date, **names: str) -> int:
        """Return the number of users with usage from `start` to before `end`."""
        return (await self._reader.top(("user",), *_days(start, end), self._filter(names), most=0)).in_all

    async def percentiles(
        self,
        measure: Measure,
        points: Sequence[int] = (50, 95, 99),
        by: Sequence[EventGrouping] = (),
        *,
        start: dt.date,
        end: dt.date,
        **names: str,
    ) -> list[PercentileRow]:
        """Return exact percentiles of the duration or cost of requests, from all events that are kept.

        Args:
            measure: `duration` or `cost`.
            points: percentages from 1 to 100.
            by: the dimensions of a group; also session, agent, call_type and status.
            start: the first day.
            end: the day after the last.
            names: filters, as for `aggregate`.
        """
        window = days_window(*_days(start, end), self._runtime.config.timezone)
        found = await percentiles(self._reader.events(window, self._filter(names)), measure, points, by)
        return [
            PercentileRow(
                one.group,
                one.events,
                {point: measured(measure, value) for point, value in zip(points, one.values, strict=True)},
            )
            for one in found
        ]

    async def forecast(
        self,
        by: Sequence[RollupDimension] = (),
        *,
        limit: str | None = None,
        window: ForecastWindow = "month",
        most: int = 20,
        **names: str,
    ) -> list[Forecast]:
        """Return forecasts of the spend at the end of the current window, and of the day a limit runs out.

        Args:
            by: the dimensions of a group, as for `aggregate`; by default all requests together.
            limit: a limit: its accounts are forecast in its own window, and `by` and `window` are ignored.
            window: day, week, month, quarter or year.
            most: the number of groups or accounts, by usage.
            names: filters, as for `aggregate`; with a limit, only its own dimensions.

        Raises:
            HistoryError: the limit's unit has no daily sums, or its accounts do not have these names.
            UsagePluginError: a limit, window or name is not valid.
        """
        runtime, usage_filter = self._runtime, self._filter(names)
        zone = runtime.config.timezone
        balances = AccountBalances(runtime.ledger, runtime.operations, runtime.limits, runtime.clock.now())
        forecaster = Forecaster(self._reader, balances, zone)
        if limit is None:
            if window not in FORECAST_WINDOWS:
                raise UsagePluginError(f"window: expected one of {', '.join(FORECAST_WINDOWS)}; found {window}.")
            rule = WindowRule(window, week_starts=runtime.config.week_starts if window == "week" else 0)
            found = await forecaster.spend(by, usage_filter, rule, most=most)
        else:
            found = await forecaster.limit(runtime.limits.find(limit), usage_filter, most=most)
        return [forecast_of(outlook, zone) for outlook in found]

    async def stream_usage(
        self,
        *,
        start: dt.date,
        end: dt.date,
        bucket: Literal["day", "hour"] = "day",
        after: str | None = None,
        **names: str,
    ) -> AsyncIterator[StreamedUsage]:
        """Stream the sums of each day or hour and combination of names, in order of time and in bounded memory.

        Args:
            start: the first day.
            end: the day after the last.
            bucket: `day`, or `hour`, which has model and provider only. For weeks and months use `aggregate`.
            after: the `cursor` of a row, to continue after it with the same filters.
            names: filters, as for `aggregate`.

        Raises:
            HistoryError: the row of the cursor no longer exists at its position.
            UsagePluginError: the cursor or the bucket is not valid.
        """
        if bucket not in ("day", "hour"):
            raise UsagePluginError(
                f"bucket: expected day or hour; found {bucket}.", hint="tracker.aggregate(…) sums weeks and months."
            )
        first, last = _days(start, end)
        seen = None if after is None else _cursor(after)
        if bucket == "hour":
            async for row in self._hours(first, last, self._filter(names), seen):
                yield row
            return
        position = None if seen is None else DayPosition(_day_of(seen.bucket), seen.names, seen.growing)
        async for page in self._reader.day_pages(first, last, self._filter(names), after=position):
            for row in streamed(page.rows, growing=page.growing):
                yield row

    async def _hours(
        self, first: dt.date, last: dt.date, usage_filter: UsageFilter, seen: _Cursor | None
    ) -> AsyncIterator[StreamedUsage]:
        """Stream hours day by day: the rows of one day fit in memory."""
        if seen is not None:
            first = max(first, _day_of(seen.bucket[:10]))
        behind = _in_time((seen.bucket, *seen.names[-2:])) if seen else None
        reader = await self._reader.frozen()
        for day in (first + _DAY * number for number in range((last - first).days + 1)):
            rows = await reader.hours(("hour", "model", "provider"), day, day, usage_filter)
            for row in sorted(rows, key=lambda row: _in_time(row.group)):
                hour, model, provider = row.group
                if behind is None or _in_time(row.group) > behind:
                    yield StreamedUsage(
                        hour or "", None, None, None, None, None, model, provider, usage_of(row.totals), growing=False
                    )

    def events(
        self,
        since: dt.datetime | None = None,
        until: dt.datetime | None = None,
        *,
        after: UsageEvent | None = None,
        newest_first: bool = False,
        **names: str,
    ) -> AsyncIterator[UsageEvent]:
        """Stream events in order of admission, in bounded memory; their amounts are nano-dollars.

        Args:
            since: an aware datetime, included; by default the beginning of the history.
            until: an aware datetime, excluded; by default the end of the history.
            after: an event, to continue after it.
            newest_first: whether to reverse the order.
            names: filters, for example `user="ann"`; also session and agent.
        """
        window = Window(0 if since is None else to_instant(since), FOREVER if until is None else to_instant(until))
        position = None if after is None else EventPosition(after.started_at, after.event_id)
        only = {dimension: names.pop(dimension) for dimension in EVENT_DIMENSIONS if dimension in names}
        found = self._reader.events(window, self._filter(names), after=position, newest_first=newest_first)
        return named(found, only) if only else found

    async def analyze_global_patterns(
        self,
        *,
        start: dt.date | None = None,
        end: dt.date | None = None,
        prices: Mapping[str, Rates] | None = None,
        most_users: int = MOST_USERS,
    ) -> list[UsagePattern]:
        """Return notable patterns, in order of cost.

        Args:
            start: the first day; by default 29 days before the last.
            end: the day after the last; by default tomorrow.
            prices: current prices by model, as `usage_plugin.api.configured_rates` reads them from a
                `model_list`. Without them no cheaper model is searched, and missed caching has no price.
            most_users: the number of users to examine individually, by recent spend; with 0 no user is named.

        Raises:
            UsagePluginError: the range is empty.
        """
        runtime = self._runtime
        end = end or self._reader.today() + _DAY
        first, last = _days(start or end - 30 * _DAY, end)
        balances = AccountBalances(runtime.ledger, runtime.operations, runtime.limits, runtime.clock.now())
        known = Known(prices or {}, runtime.limits, balances, runtime.config.timezone)
        found = await find_patterns(self._reader, first, last, known, most_users=most_users)
        return [pattern_of(pattern) for pattern in found.patterns]

    def _filter(self, names: Mapping[str, str]) -> UsageFilter:
        identity, kept = self._runtime.config.identity, self._runtime.pseudonyms.kept_of
        asked = {dimension: kept(dimension, identity.as_kept(dimension, name)) for dimension, name in names.items()}
        try:
            return UsageFilter(**asked)
        except TypeError:
            known = list(UsageFilter.__dataclass_fields__)
            unknown = [name for name in names if name not in known]
            raise UsagePluginError(f"expected some of {', '.join(known)}; found {', '.join(unknown)}.") from None


def _usage_row(group: Group, totals: UsageTotals) -> UsageRow:
    return UsageRow(group, usage_of(totals))


def _days(start: dt.date, end: dt.date) -> tuple[dt.date, dt.date]:
    if isinstance(start, dt.datetime) or isinstance(end, dt.datetime) or not start < end:
        raise UsagePluginError(f"expected two dates, start before end; found {start} to {end}.")
    return start, end - _DAY


def _zone(name: str | None) -> ZoneInfo | None:
    try:
        return None if name is None else ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise UsagePluginError(f"zone: expected a name such as Europe/Berlin; found {name}.") from None


class _Cursor(NamedTuple):
    """The decoded text of a cursor."""

    bucket: str
    growing: bool
    names: tuple[str | None, ...]


def _cursor(text: str) -> _Cursor:
    try:
        bucket, growing, *names = cast("list[Any]", json.loads(text))
    except (ValueError, TypeError):
        bucket, growing, names = None, None, []
    if isinstance(bucket, str) and isinstance(growing, bool) and len(names) == len(ROLLUP_DIMENSIONS):
        return _Cursor(bucket, growing, tuple(names))
    raise UsagePluginError(f"after: expected the cursor of a row; found {text!r}.")


def _day_of(bucket: str) -> dt.date:
    try:
        return dt.date.fromisoformat(bucket)
    except ValueError:
        raise UsagePluginError(f"after: expected the cursor of a day; found that of {bucket}.") from None


def _in_time(group: Sequence[str | None]) -> tuple[object, ...]:
    """Return a sort key by instant: an hour that occurs twice, when clocks change, is ambiguous by its local time."""
    hour, *names = group
    return dt.datetime.fromisoformat(hour or ""), *(name or "" for name in names)
