"""Result types of the API. Costs are `Decimal` in USD; other amounts are counts, in the unit of the result."""

from __future__ import annotations

import json
from datetime import date, timedelta
from decimal import Decimal
from itertools import repeat
from typing import TYPE_CHECKING, NamedTuple

from usage_plugin.domain.money import Nano, from_float, parse_usd, to_decimal, to_decimals
from usage_plugin.domain.windows import local_date

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from datetime import datetime
    from zoneinfo import ZoneInfo

    from usage_plugin.domain.limits import Unit
    from usage_plugin.domain.patterns import Pattern, PatternType
    from usage_plugin.domain.profiles import UserProfile
    from usage_plugin.domain.store import DailySum
    from usage_plugin.domain.usage import UsageTotals
    from usage_plugin.tracking.analysis.forecasting import Outlook
    from usage_plugin.tracking.analysis.percentiles import Measure

Money = Decimal | str | int | float
"""Accepted types of an amount in USD. A float is converted by its decimal representation, rounded to nano-dollars."""


def nano_of(amount: Money) -> Nano:
    """Return an amount in USD as nano-dollars.

    Raises:
        MoneyError: the amount is not valid.
    """
    return from_float(amount) if isinstance(amount, float) else parse_usd(amount)


def amount_of(unit: Unit, amount: int) -> Decimal | int:
    """Return an amount of a limit: dollars, or a count."""
    return to_decimal(amount) if unit == "usd" else amount


class Usage(NamedTuple):
    """Sums over requests."""

    requests: int = 0
    failed_requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cached_input_tokens: int = 0
    cache_write_tokens: int = 0
    reasoning_tokens: int = 0
    cost: Decimal = Decimal(0)


def usage_of(totals: UsageTotals) -> Usage:
    """Return sums with their cost in dollars."""
    return Usage(*totals[:-1], to_decimal(totals.cost))


class UsageRow(NamedTuple):
    """One group of a report: its names in the requested order, None for a missing name, and its sums."""

    group: tuple[str | None, ...]
    usage: Usage


class TopUsage(NamedTuple):
    """The top groups by cost, the number of all groups, and the sums over all of them."""

    rows: Sequence[UsageRow]
    in_all: int
    total: Usage


class StreamedUsage(NamedTuple):
    """The sums of one combination of names on one day, or in one hour.

    Attributes:
        bucket: the day, `2026-11-23`, or the beginning of the hour, `2026-11-23T14:00+01:00`.
        growing: whether requests of that day were in the outbox when the stream began.
    """

    bucket: str
    user: str | None
    team: str | None
    api_key: str | None
    organization: str | None
    end_user: str | None
    model: str | None
    provider: str | None
    usage: Usage
    growing: bool

    @property
    def cursor(self) -> str:
        """A text with which `stream_usage` continues after this row."""
        return json.dumps([self.bucket, self.growing, *self[1:-2]])


def streamed(rows: Sequence[DailySum], *, growing: bool) -> Iterator[StreamedUsage]:
    """Return a page of daily sums, converted column by column, without a Python call for each row."""
    days, *names, totals = zip(*rows, strict=True)
    *sums, costs = zip(*totals, strict=True)
    usages = map(tuple.__new__, repeat(Usage), zip(*sums, to_decimals(costs), strict=True))
    names_of_days = {day: day.isoformat() for day in set(days)}
    buckets = map(names_of_days.__getitem__, days)
    return map(tuple.__new__, repeat(StreamedUsage), zip(buckets, *names, usages, repeat(growing)))


class PercentileRow(NamedTuple):
    """Percentiles of the duration or cost of a group's requests.

    Attributes:
        events: the number of requests.
        values: the value that this percentage of requests did not exceed: a `timedelta`, or a `Decimal` in USD.
    """

    group: tuple[str | None, ...]
    events: int
    values: Mapping[int, timedelta | Decimal]


def measured(measure: Measure, value: int) -> timedelta | Decimal:
    """Return microseconds as a `timedelta`, or nano-dollars as dollars."""
    return to_decimal(value) if measure == "cost" else timedelta(microseconds=value)


class UsagePattern(NamedTuple):
    """A notable pattern in the history.

    Attributes:
        type: dear_model, cheaper_model, one_provider, peak_hours, sudden_change, low_cache_use, costly_failures or
            limit_ahead.
        evidence: the numbers behind it, by name; shares are between 0 and 1, amounts `Decimal` in USD.
        cost_impact: the additional cost in USD; negative if less is spent than usual, None if the pattern does not
            concern money, or no price is known.
        affected_users: the examined users in order of cost, under the names that are kept.
        confidence: from 0 to 1; `confidence_basis` describes its computation.
    """

    type: PatternType
    description: str
    advice: str
    evidence: Mapping[str, float | str | Decimal]
    cost_impact: Decimal | None
    confidence: float
    confidence_basis: str
    models: tuple[str, ...]
    providers: tuple[str, ...]
    affected_users: tuple[str, ...]


def pattern_of(pattern: Pattern) -> UsagePattern:
    """Return a pattern with its amounts in dollars."""
    fields = pattern._asdict()
    amounts = {name: to_decimal(nano) for name, nano in fields.pop("amounts").items()}
    impact = None if pattern.cost_impact is None else to_decimal(pattern.cost_impact)
    return UsagePattern(**{**fields, "evidence": {**pattern.evidence, **amounts}, "cost_impact": impact})


class UserLimit(NamedTuple):
    """The balance of a limit that counts a user's requests.

    Attributes:
        subject: names by dimension; empty if all requests share the limit.
        amount: the allowed amount, with overrides and adjustments; None for unlimited.
        reserved: the amount that requests in flight hold.
        resets_at: the time when all of its spend has expired; None if it never expires.
        blocks: whether it can refuse a request; other limits warn, downgrade or are dry runs.
    """

    name: str
    subject: Mapping[str, str]
    unit: Unit
    amount: Decimal | int | None
    spent: Decimal | int
    reserved: Decimal | int
    remaining: Decimal | int | None
    resets_at: datetime | None
    blocks: bool


class UserAlert(NamedTuple):
    """An exceeded threshold.

    Attributes:
        id: the id for `acknowledge_alert`.
        threshold: percent of the maximum.
        amount: the spend at the time of the alert.
        resolved: whether the window has ended, or the spend is now below the threshold.
    """

    id: int
    limit: str
    subject: Mapping[str, str]
    threshold: int
    unit: Unit
    amount: Decimal | int
    maximum: Decimal | int
    at: datetime
    acknowledged_at: datetime | None
    acknowledged_by: str | None
    resolved: bool


class Forecast(NamedTuple):
    """The expected usage of a subject in the current window.

    Attributes:
        names: the subject's names by dimension; empty for all requests together.
        limit: the limit of the account; None for spend without a limit.
        first: the first day of the window.
        last: the last day of the window.
        spent: the usage so far, in the unit.
        expected: the expected usage at the end of the window.
        low: the lower end of the range, which held 80 % of past forecasts; None if the history is too short.
        high: the upper end of the range.
        amount: the amount of the limit; None for unlimited, and without a limit.
        runs_out: the day on which the amount will be used up; None if it lasts.
        earliest: the same day at the upper end of the range.
        latest: the same day at the lower end of the range.
        history_days: the number of days that the forecast is based on.
        lacks: the parts of the forecast that need a longer history, in words.
    """

    names: Mapping[str, str]
    limit: str | None
    unit: Unit
    first: date
    last: date
    spent: Decimal | int
    expected: Decimal | int
    low: Decimal | int | None
    high: Decimal | int | None
    amount: Decimal | int | None
    runs_out: date | None
    earliest: date | None
    latest: date | None
    history_days: int
    lacks: Sequence[str]


def forecast_of(outlook: Outlook, zone: ZoneInfo) -> Forecast:
    """Return a forecast with its amounts in dollars, or in counts."""
    now = outlook.now
    spent, expected = amount_of(now.unit, now.spent), amount_of(now.unit, outlook.at_end[0])
    low, high, amount = (
        None if value is None else amount_of(now.unit, value) for value in (*outlook.at_end[1:], now.amount)
    )
    return Forecast(
        now.names,
        now.limit.name if now.limit else None,
        now.unit,
        local_date(now.window.start, zone),
        local_date(now.window.end - 1, zone),
        spent,
        expected,
        low,
        high,
        amount,
        *outlook.runs_out,
        outlook.course.history_days,
        outlook.course.lacks,
    )


class Session(NamedTuple):
    """The usage of a session in the last 24 hours."""

    session_id: str
    first_at: datetime
    last_at: datetime
    usage: Usage


class Statistics(NamedTuple):
    """Statistics over the days of a summary.

    Attributes:
        average_daily_cost: the average over all days, including days without requests, to the nano-dollar.
        most_used_provider: the provider with the most requests; None if no request names one.
    """

    total_requests: int
    total_cost: Decimal
    average_daily_cost: Decimal
    most_used_provider: str | None
    most_used_model: str | None


class UsageSummary(NamedTuple):
    """The summary of a user.

    Attributes:
        daily_usage: the days with requests, oldest first.
        monthly_usage: the whole months (`YYYY-MM`) of those days, oldest first.
        recent_alerts: the alerts of those days, newest first.
        active_sessions: the sessions with a request in the last 24 hours, most recent first.
    """

    user_id: str
    profile: UserProfile | None
    limits: Sequence[UserLimit]
    daily_usage: Mapping[date, Usage]
    monthly_usage: Mapping[str, Usage]
    recent_alerts: Sequence[UserAlert]
    active_sessions: Sequence[Session]
    statistics: Statistics
