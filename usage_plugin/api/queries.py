"""Questions about the history. Days are those of the configured zone; spans end before the day `end`."""

from __future__ import annotations

import datetime as dt
import json
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from usage_plugin.api.values import (
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
from usage_plugin.tracking.forecasting import FORECAST_WINDOWS, Forecaster
from usage_plugin.tracking.patterns import MOST_USERS, Known, find_patterns
from usage_plugin.tracking.percentiles import percentiles
from usage_plugin.tracking.standings import Standings
from usage_plugin.tracking.steps import in_steps
from usage_plugin.tracking.tracker import DayPosition, named

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

    from usage_plugin.domain.prices import Rates
    from usage_plugin.domain.store import EventDimension, HourGrouping, RollupDimension
    from usage_plugin.domain.usage import UsageEvent, UsageTotals
    from usage_plugin.runtime import Runtime
    from usage_plugin.tracking.forecasting import ForecastWindow
    from usage_plugin.tracking.percentiles import EventGrouping, Measure
    from usage_plugin.tracking.rows import Group
    from usage_plugin.tracking.tracker import UsageReader

Bucket = Literal["hour", "day", "week", "month"]

_DAY = dt.timedelta(days=1)


class UsageQueries:
    """Reads the history, complete to the last settled request."""

    def __init__(self, runtime: Runtime, reader: UsageReader) -> None:
        """Take the running parts."""
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
        """Sum usage by names, in buckets of time if one is given.

        Args:
            by: user, team, api_key, organization, end_user, model, provider; of hours model and provider only. session
                and agent too: those are summed from events, so they go back only as far as events are kept.
            start: the first day.
            end: the day after the last.
            bucket: hour, day, week (from Monday) or month: named first in each group, in order.
            zone: whose days, as `Asia/Tokyo`; the configured one if not given. Days of another are summed from events,
                so it goes back only as far as those are kept.
            names: takes only what has these, for example `user="ann"`.

        Returns:
            The dearest group first; with a bucket, in order of time. Each row is made when it is read, so that an
            answer with all users is small, and stops nobody when it is dropped.

        Raises:
            HistoryError: events that another zone's days, sessions or agents need are gone, or never were there.
            UsagePluginError: the span is none, or there is no such zone, name or bucket.
        """
        first, last = _days(start, end)
        usage_filter = self._filter(names)
        if bucket == "hour":
            if zone is not None or not set(by) <= set(HOUR_GROUPINGS):
                raise UsagePluginError(
                    "bucket: hours are summed by model and provider, in the configured zone.",
                    hint="Stream the events for anything else: tracker.events(…).",
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
        """Find the groups that cost most, without reading all of them.

        Args:
            by: what groups are made of, as for `aggregate`.
            start: the first day.
            end: the day after the last.
            most: how many.
            names: takes only what has these.
        """
        found = await self._reader.top(by, *_days(start, end), self._filter(names), most=most)
        rows = [_usage_row(*row) async for part in in_steps(found.rows) for row in part]
        return TopUsage(rows, found.in_all, usage_of(found.total))

    async def distinct_users(self, *, start: dt.date, end: dt.date, **names: str) -> int:
        """Count the users with usage from the first day to before the last."""
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
        """Say what single requests took or cost, exactly; reads all their events, as far back as they are kept.

        Args:
            measure: `duration` or `cost`.
            points: percentages from 1 to 100.
            by: what groups are made of; also session, agent, call_type and status.
            start: the first day.
            end: the day after the last.
            names: takes only what has these.
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
        """Say where the spend of the window that is open is heading, and when a limit runs out.

        Args:
            by: what groups are made of, as for `aggregate`; everybody together if empty.
            limit: forecasts the accounts of this limit in its own window instead, whatever `by` and `window` say.
            window: day, week, month, quarter or year.
            most: how many groups or accounts: those that have used most.
            names: takes only what has these; with a limit, only what it counts per.

        Raises:
            HistoryError: there are no daily sums of what this limit counts, or its accounts have no such names.
            UsagePluginError: there is no such limit, window or name.
        """
        runtime, usage_filter = self._runtime, self._filter(names)
        zone = runtime.config.timezone
        standings = Standings(runtime.ledger, runtime.operations, runtime.limits, runtime.clock.now())
        forecaster = Forecaster(self._reader, standings, zone)
        if limit is None:
            if window not in FORECAST_WINDOWS:
                raise UsagePluginError(f"window: found {window}, expected one of {', '.join(FORECAST_WINDOWS)}.")
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
        """Stream the sums of each day, or hour, and combination of names, in order of time and in bounded memory.

        Args:
            start: the first day.
            end: the day after the last.
            bucket: `day`, or `hour`, of which model and provider are known only. `aggregate` sums weeks and months.
            after: goes on behind a row, by its `cursor`, over the same filter.
            names: takes only what has these.

        Raises:
            HistoryError: that row is not there any more, or not in its place.
            UsagePluginError: the cursor is none, or there is no such bucket.
        """
        if bucket not in ("day", "hour"):
            raise UsagePluginError(
                f"bucket: found {bucket}, expected day or hour.", hint="tracker.aggregate(…) sums weeks and months."
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
        """Stream hours day by day: those of a day are few."""
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
        """Stream events in the order of their beginning, in bounded memory; their amounts are nano-dollars.

        Args:
            since: an aware datetime; the beginning of all if not given.
            until: the same, exclusive; the end of all if not given.
            after: goes on behind this event.
            newest_first: in the other order.
            names: takes only what has these, for example `user="ann"`; also session and agent.
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
        """Find what stands out, what costs most first.

        Args:
            start: the first day; if not given, 29 days before the last.
            end: the day after the last; tomorrow if not given.
            prices: today's, by model, as `usage_plugin.pricing.sheets.configured_rates` reads them from a
                `model_list`; without them no cheaper model is looked for, and missed caching has no price.
            most_users: so many users are looked at one by one, those who spent most lately; with 0 nobody is named.

        Raises:
            UsagePluginError: the span is none.
        """
        runtime = self._runtime
        end = end or self._reader.today() + _DAY
        first, last = _days(start or end - 30 * _DAY, end)
        standings = Standings(runtime.ledger, runtime.operations, runtime.limits, runtime.clock.now())
        known = Known(prices or {}, runtime.limits, standings, runtime.config.timezone)
        found = await find_patterns(self._reader, first, last, known, most_users=most_users)
        return [pattern_of(pattern) for pattern in found.patterns]

    def _filter(self, names: Mapping[str, str]) -> UsageFilter:
        identity, kept = self._runtime.config.identity, self._runtime.pseudonyms.kept_of
        asked = {dimension: kept(dimension, identity.as_kept(dimension, name)) for dimension, name in names.items()}
        try:
            return UsageFilter(**asked)
        except TypeError:
            known = ", ".join(UsageFilter.__dataclass_fields__)
            raise UsagePluginError(f"Found {', '.join(names)}, expected some of {known}.") from None


def _usage_row(group: Group, totals: UsageTotals) -> UsageRow:
    return UsageRow(group, usage_of(totals))


def _days(start: dt.date, end: dt.date) -> tuple[dt.date, dt.date]:
    if isinstance(start, dt.datetime) or isinstance(end, dt.datetime) or not start < end:
        raise UsagePluginError(f"Found {start} to {end}, expected two dates; the span ends before the second.")
    return start, end - _DAY


def _zone(name: str | None) -> ZoneInfo | None:
    try:
        return None if name is None else ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise UsagePluginError(f"zone: found {name}, expected a name such as Europe/Berlin.") from None


class _Cursor(NamedTuple):
    """What the text of a cursor says."""

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
    raise UsagePluginError(f"after: found {text!r}, expected the cursor of a row.")


def _day_of(bucket: str) -> dt.date:
    try:
        return dt.date.fromisoformat(bucket)
    except ValueError:
        raise UsagePluginError(f"after: found the cursor of {bucket}, expected that of a day.") from None


def _in_time(group: Sequence[str | None]) -> tuple[object, ...]:
    """Order hours by their instant: of an hour that happens twice the names alone would not do."""
    hour, *names = group
    return dt.datetime.fromisoformat(hour or ""), *(name or "" for name in names)
