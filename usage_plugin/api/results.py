"""What the API answers with. Costs are `Decimal` in USD; other amounts are counts, in the unit that stands beside."""

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
    from usage_plugin.tracking.forecasting import Outlook
    from usage_plugin.tracking.percentiles import Measure

Money = Decimal | str | int | float
"""What is taken for an amount in USD. A float is rounded to the nearest nano-dollar of what it prints as."""


def nano_of(amount: Money) -> Nano:
    """Read an amount in USD.

    Raises:
        MoneyError: it is none.
    """
    return from_float(amount) if isinstance(amount, float) else parse_usd(amount)


def amount_of(unit: Unit, amount: int) -> Decimal | int:
    """Give an amount of a limit: dollars, or a count."""
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
    """Give sums with their cost in dollars."""
    return Usage(*totals[:-1], to_decimal(totals.cost))


class UsageRow(NamedTuple):
    """One group of a report: its names in the order asked for, None where there was none, and its sums."""

    group: tuple[str | None, ...]
    usage: Usage


class TopUsage(NamedTuple):
    """The dearest groups, how many groups there are in all, and the sums of all of them."""

    rows: Sequence[UsageRow]
    in_all: int
    total: Usage


class StreamedUsage(NamedTuple):
    """The sums of one combination of names on one day, or in one hour.

    Attributes:
        bucket: the day, `2026-11-23`, or the beginning of the hour, `2026-11-23T14:00+01:00`.
        growing: whether requests of that day were on their way into the history when the stream began.
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
        """A text by which `stream_usage` goes on behind this row."""
        return json.dumps([self.bucket, self.growing, *self[1:-2]])


def streamed(rows: Sequence[DailySum], *, growing: bool) -> Iterator[StreamedUsage]:
    """Give a page of daily sums, column by column, without a call of Python for each row."""
    days, *names, totals = zip(*rows, strict=True)
    *sums, costs = zip(*totals, strict=True)
    usages = map(tuple.__new__, repeat(Usage), zip(*sums, to_decimals(costs), strict=True))
    names_of_days = {day: day.isoformat() for day in set(days)}
    buckets = map(names_of_days.__getitem__, days)
    return map(tuple.__new__, repeat(StreamedUsage), zip(buckets, *names, usages, repeat(growing)))


class PercentileRow(NamedTuple):
    """What the requests of a group took or cost.

    Attributes:
        events: how many requests that is.
        values: by percentage, what so many per cent did not exceed: a `timedelta`, or a `Decimal` in USD.
    """

    group: tuple[str | None, ...]
    events: int
    values: Mapping[int, timedelta | Decimal]


def measured(measure: Measure, value: int) -> timedelta | Decimal:
    """Give microseconds as a time, or nano-dollars as dollars."""
    return to_decimal(value) if measure == "cost" else timedelta(microseconds=value)


class UsagePattern(NamedTuple):
    """Something that stands out in the history.

    Attributes:
        type: dear_model, cheaper_model, one_provider, peak_hours, sudden_change, low_cache_use, costly_failures or
            limit_ahead.
        evidence: the numbers behind it, by name; shares are between 0 and 1, amounts `Decimal` in USD.
        cost_impact: what it costs beyond what it would be otherwise, in USD; negative where less is spent than usual,
            None where it is no question of money, or no price is known.
        affected_users: the dearest first, of those that were looked at, under the names that are kept.
        confidence: from 0 to 1; `confidence_basis` says how it was computed.
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
    """Give a pattern with its amounts in dollars."""
    fields = pattern._asdict()
    amounts = {name: to_decimal(nano) for name, nano in fields.pop("amounts").items()}
    impact = None if pattern.cost_impact is None else to_decimal(pattern.cost_impact)
    return UsagePattern(**{**fields, "evidence": {**pattern.evidence, **amounts}, "cost_impact": impact})


class UserLimit(NamedTuple):
    """How a limit stands that counts what a user does.

    Attributes:
        subject: dimension to name; empty where everybody shares it.
        amount: what is allowed, with overrides and adjustments; None for unlimited.
        reserved: what requests in flight hold.
        resets_at: when nothing of it counts any more; None if no date brings that.
        blocks: whether it can refuse a request; others warn, downgrade or are tried out.
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
    """A threshold that was passed.

    Attributes:
        id: for `acknowledge_alert`.
        threshold: percent of the maximum.
        amount: what was spent then.
        resolved: whether it is no longer so: the window is over, or less than the threshold is spent now.
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
    """Where the use of somebody is heading in the window that is open.

    Attributes:
        names: who, by dimension; empty for everybody together.
        limit: whose account it is; None for spend as such.
        first: the window's first day.
        last: its last day.
        spent: in it so far, in the unit.
        expected: what will have been used at its end.
        low: the lower end of the range, which held 80 % of past forecasts; None if the history is too short.
        high: the upper end.
        amount: what the limit allows; None for unlimited, and without a limit.
        runs_out: the day on which nothing will be left of it; None if it lasts.
        earliest: the same at the upper end of the range.
        latest: the same at its lower end.
        history_days: how many days it is made of.
        lacks: what would need a longer history, in words.
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
    """Give a forecast with its amounts in dollars, or in counts."""
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
    """What a session used in the last 24 hours."""

    session_id: str
    first_at: datetime
    last_at: datetime
    usage: Usage


class Statistics(NamedTuple):
    """What stands out over the days of a summary.

    Attributes:
        average_daily_cost: over all days, those without a request too; to the nano-dollar.
        most_used_provider: by requests; None if no request names one.
    """

    total_requests: int
    total_cost: Decimal
    average_daily_cost: Decimal
    most_used_provider: str | None
    most_used_model: str | None


class UsageSummary(NamedTuple):
    """A user at a glance.

    Attributes:
        daily_usage: the days with requests, oldest first.
        monthly_usage: whole months (`YYYY-MM`) that those days lie in, oldest first.
        recent_alerts: of those days, newest first.
        active_sessions: those with a request in the last 24 hours, the last used first.
    """

    user_id: str
    profile: UserProfile | None
    limits: Sequence[UserLimit]
    daily_usage: Mapping[date, Usage]
    monthly_usage: Mapping[str, Usage]
    recent_alerts: Sequence[UserAlert]
    active_sessions: Sequence[Session]
    statistics: Statistics
