"""Forecasts: the usage of future days, from the usage of past days. Standard library only, pure functions.

A day's expected usage is that of the same weekday in the last weeks, at the level of the last two weeks. Averages omit
the highest and the lowest value, so that one huge day decides nothing. The range comes from the errors of the same
method on past days: it is an empirical quantile, and assumes no distribution.

Amounts are whole numbers of any unit (nano-dollars, tokens, requests), and so are all results.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import date

HISTORY_DAYS = 400
"""The maximum number of past days that a forecast uses."""

WEEKS = 8
LEVEL_DAYS = 14
LEAST_DAYS_FOR_WEEKDAYS = 21
LEAST_DAYS_FOR_LEVEL = 28
LEAST_WALKS = 10
"""The minimum number of past forecasts for a range."""

_MOST_WALKS = 100
_MILLION = 1_000_000
_LOW, _HIGH = 10, 90
"""The percentiles of the range, which contains 80 % of the past results."""


@dataclass(frozen=True, slots=True)
class Series:
    """The usage of consecutive days, oldest first, without gaps; all of them have ended."""

    first: date
    amounts: Sequence[int]

    def begun(self) -> Series:
        """Return the series from the first day with usage on: days before a new user's start are not history."""
        start = next((at for at, amount in enumerate(self.amounts) if amount), len(self.amounts))
        return Series(self.first.fromordinal(self.first.toordinal() + start), self.amounts[start:])

    def until(self, count: int) -> Series:
        """Return the first `count` days."""
        return Series(self.first, self.amounts[:count])

    def weekday(self, at: int) -> int:
        """Return the weekday of a day by its index, 0 for Monday; the index may be in the future."""
        return (self.first.weekday() + at) % 7


class Course(NamedTuple):
    """Cumulative usage over future days: for each day, the sum from now to its end.

    Attributes:
        expected: the sums.
        low: the lower end of the range, below which 10 % of past results were; None if there is no range.
        high: the upper end, above which 10 % were.
        history_days: the number of past days used.
        lacks: the features of the forecast that need a longer history, in words.
    """

    expected: Sequence[int]
    low: Sequence[int] | None
    high: Sequence[int] | None
    history_days: int
    lacks: tuple[str, ...]


def predict(series: Series, days: int) -> list[int]:
    """Return the expected usage of each day after a series."""
    amounts = series.amounts
    count = len(amounts)
    if not count:
        return [0] * days
    profile = _profile(series)
    level, base = _level(series, profile)
    if not base:
        # The weekday averages are zero, but the last two weeks have usage.
        return [level // (LEVEL_DAYS - 2)] * days
    return [profile[series.weekday(count + ahead)] * level // base for ahead in range(days)]


def course(series: Series, days: int, *, left_of_first: int = _MILLION) -> Course:
    """Return the cumulative usage over the days after a series.

    Args:
        series: past days.
        days: the number of days ahead, at least one.
        left_of_first: the remaining part of the first of them, in millionths.
    """
    begun = series.begun()
    predicted = predict(begun, days)
    predicted[0] = predicted[0] * left_of_first // _MILLION
    expected = list(accumulate(predicted))
    low = high = None
    ratios = _ratios(begun, days)
    if ratios:
        low = _rising(amount * _quantile(past, _LOW) // _MILLION for amount, past in zip(expected, ratios, strict=True))
        high = _rising(
            amount * _quantile(past, _HIGH) // _MILLION for amount, past in zip(expected, ratios, strict=True)
        )
    return Course(expected, low, high, len(begun.amounts), _lacks(len(begun.amounts), days, has_range=bool(ratios)))


def runs_out(sums: Sequence[int], left: int) -> int | None:
    """Return the index of the first future day at whose end nothing is left; None if the amount suffices."""
    return next((at for at, amount in enumerate(sums) if amount >= left), None)


class Errors(NamedTuple):
    """The total errors of forecasts: add them up, then divide.

    Attributes:
        off: the sum of the absolute differences.
        naive_off: the same for the forecast "each day as yesterday".
        actual: the actual usage.
    """

    off: int = 0
    naive_off: int = 0
    actual: int = 0

    def plus(self, other: Errors) -> Errors:
        """Return the sum of two."""
        return Errors(*(a + b for a, b in zip(self, other, strict=True)))


class Backtest(NamedTuple):
    """A comparison of forecasts on past days with the actual usage.

    Attributes:
        daily: each day, forecast on the day before.
        window: the total of a window, forecast at the end of each of its days except the last.
        in_range: the number of ranges that contained the actual total of a window.
        ranges: the number of all ranges.
    """

    daily: Errors = Errors()
    window: Errors = Errors()
    in_range: int = 0
    ranges: int = 0

    def plus(self, other: Backtest) -> Backtest:
        """Return the sum of two."""
        return Backtest(
            self.daily.plus(other.daily),
            self.window.plus(other.window),
            self.in_range + other.in_range,
            self.ranges + other.ranges,
        )


def backtest(series: Series, ends: Sequence[int]) -> Backtest:
    """Return the backtest of a series: forecasts of each day and each window from the days before.

    Args:
        series: past days.
        ends: the ends of windows, as indexes of the series: each window begins at the end of the previous one.
    """
    begun = series.begun()
    skipped = len(series.amounts) - len(begun.amounts)
    amounts = begun.amounts
    daily = Errors()
    for at in range(LEAST_DAYS_FOR_WEEKDAYS, len(amounts)):
        (said,) = predict(begun.until(at), 1)
        actual = amounts[at]
        daily = daily.plus(Errors(abs(said - actual), abs(amounts[at - 1] - actual), actual))
    found = Backtest(daily)
    places = [end - skipped for end in ends]
    for start, end in pairwise(places):
        if start >= 0 and end <= len(amounts):
            found = found.plus(_window_backtest(begun, start, end))
    return found


def _window_backtest(series: Series, start: int, end: int) -> Backtest:
    amounts = series.amounts
    whole = sum(amounts[start:end])
    found = Backtest()
    for at in range(max(start + 1, LEAST_DAYS_FOR_WEEKDAYS), end):
        rest, days = sum(amounts[at:end]), end - at
        past = series.until(at)
        said = sum(predict(past, days))
        found = found.plus(
            Backtest(window=Errors(abs(said - rest), abs(amounts[at - 1] * days - rest), whole)),
        )
        if (at - start) % 7 == 0:
            _, low, high, _, _ = course(past, days)
            if low and high:
                found = found.plus(Backtest(in_range=int(low[-1] <= rest <= high[-1]), ranges=1))
    return found


def _middle(amounts: Iterable[int]) -> int:
    """Return the average without the highest and the lowest; of one or two amounts, the average of all."""
    ordered = sorted(amounts)
    if len(ordered) > 2:
        ordered = ordered[1:-1]
    return sum(ordered) // len(ordered)


def _profile(series: Series) -> list[int]:
    """Return the average usage of each weekday, Monday first."""
    amounts = series.amounts
    if len(amounts) < LEAST_DAYS_FOR_WEEKDAYS:
        return [_middle(amounts)] * 7
    profile = [0] * 7
    for back in range(7):
        at = len(amounts) - 1 - back
        profile[series.weekday(at)] = _middle(amounts[at::-7][:WEEKS])
    return profile


def _level(series: Series, profile: Sequence[int]) -> tuple[int, int]:
    """Return the level of the last two weeks against their weekday averages, as a fraction of two sums.

    The sums omit the days with the largest differences up and down.
    """
    count = len(series.amounts)
    if count < LEAST_DAYS_FOR_LEVEL:
        return 1, 1
    days = [(series.amounts[at], profile[series.weekday(at)]) for at in range(count - LEVEL_DAYS, count)]
    usual = sorted(days, key=lambda day: day[0] - day[1])[1:-1]
    return sum(day[0] for day in usual), sum(day[1] for day in usual)


def _ratios(series: Series, days: int) -> list[list[int]]:
    """Return the ratios of actual to forecast sums, for each of the days ahead, in millionths, ascending.

    Empty if there are too few past forecasts.
    """
    count = len(series.amounts)
    first, last = LEAST_DAYS_FOR_WEEKDAYS, count - days
    step = max(1, (last - first) // _MOST_WALKS + 1)
    ratios: list[list[int]] = [[] for _ in range(days)]
    for at in range(last, first - 1, -step):
        said = accumulate(predict(series.until(at), days))
        was = accumulate(series.amounts[at : at + days])
        for past, expected, actual in zip(ratios, said, was, strict=True):
            if expected:
                past.append(actual * _MILLION // expected)
    if any(len(past) < LEAST_WALKS for past in ratios):
        return []
    return [sorted(past) for past in ratios]


def _quantile(ordered: Sequence[int], percent: int) -> int:
    """Return the value below which `percent` of the values are, rounded outwards."""
    at = (len(ordered) - 1) * percent
    return ordered[-(-at // 100) if percent > 50 else at // 100]


def _rising(sums: Iterable[int]) -> list[int]:
    """Return sums that never fall, since usage cannot be undone."""
    return list(accumulate(sums, max))


def _lacks(count: int, days: int, *, has_range: bool) -> tuple[str, ...]:
    lacks = []
    if not count:
        return ("nothing was used before today",)
    if count < LEAST_DAYS_FOR_WEEKDAYS:
        lacks.append(f"{count} days are too few to tell weekdays apart (it takes {LEAST_DAYS_FOR_WEEKDAYS})")
    elif count < LEAST_DAYS_FOR_LEVEL:
        lacks.append(f"{count} days are too few to see a change of level (it takes {LEAST_DAYS_FOR_LEVEL})")
    if not has_range:
        needed = LEAST_DAYS_FOR_WEEKDAYS + days + LEAST_WALKS - 1
        enough = count >= needed
        lacks.append(
            "no range: too little was expected on past days to compare with"
            if enough
            else f"no range: {count} days are too few to compare past forecasts (it takes {needed})"
        )
    return tuple(lacks)
