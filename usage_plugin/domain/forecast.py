"""Forecasts: what the days to come will use, from what the days before have used. Standard library only, pure.

A day is expected to use what the same weekday used in the last weeks, at the level of the last two weeks. Of what is
averaged the highest and the lowest are left out, so that one huge day decides nothing. The range comes from what the
same method would have said on the days before, and how far off that was: an empirical quantile, no distribution.

Amounts are whole numbers of any unit (nano-dollars, tokens, requests), and so is everything made of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import date

HISTORY_DAYS = 400
"""So many days are looked at, at most."""

WEEKS = 8
LEVEL_DAYS = 14
LEAST_DAYS_FOR_WEEKDAYS = 21
LEAST_DAYS_FOR_LEVEL = 28
LEAST_WALKS = 10
"""With fewer past forecasts to compare there is no range."""

_MOST_WALKS = 100
_MILLION = 1_000_000
_LOW, _HIGH = 10, 90
"""Percent: between them lie 80 % of what happened."""


@dataclass(frozen=True, slots=True)
class Series:
    """What each of some days in a row used, the oldest first, without a gap; the last of them is over."""

    first: date
    amounts: Sequence[int]

    def begun(self) -> Series:
        """Leave out the days before the first use: who is new has no history of nothing."""
        start = next((at for at, amount in enumerate(self.amounts) if amount), len(self.amounts))
        return Series(self.first.fromordinal(self.first.toordinal() + start), self.amounts[start:])

    def until(self, count: int) -> Series:
        """Give the first so many days."""
        return Series(self.first, self.amounts[:count])

    def weekday(self, at: int) -> int:
        """Say which weekday a day is, 0 for Monday, by its place; also of days to come."""
        return (self.first.weekday() + at) % 7


class Course(NamedTuple):
    """How the use adds up over the days to come: for each, the sum from now to its end.

    Attributes:
        expected: the sums.
        low: the lower end of the range, which 10 % of past forecasts fell below; None if there is no range.
        high: the upper end, which 10 % rose above.
        history_days: how many days it is made of.
        lacks: what would need a longer history.
    """

    expected: Sequence[int]
    low: Sequence[int] | None
    high: Sequence[int] | None
    history_days: int
    lacks: tuple[str, ...]


def predict(series: Series, days: int) -> list[int]:
    """Say what each of the days after a series will use."""
    amounts = series.amounts
    count = len(amounts)
    if not count:
        return [0] * days
    profile = _profile(series)
    level, base = _level(series, profile)
    if not base:
        # By its weekdays nothing was used; lately something was.
        return [level // (LEVEL_DAYS - 2)] * days
    return [profile[series.weekday(count + ahead)] * level // base for ahead in range(days)]


def course(series: Series, days: int, *, left_of_first: int = _MILLION) -> Course:
    """Say how the use adds up over the days after a series.

    Args:
        series: days that are over.
        days: how many to look ahead, at least one.
        left_of_first: which part of the first of them is still to come, in millionths.
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
    """Find the first of the days to come at whose end nothing is left, by its place; None if it lasts."""
    return next((at for at, amount in enumerate(sums) if amount >= left), None)


class Errors(NamedTuple):
    """How far off forecasts were, in all: add them up, then divide.

    Attributes:
        off: the absolute differences, added up.
        naive_off: those of "each day as yesterday".
        actual: what really was used.
    """

    off: int = 0
    naive_off: int = 0
    actual: int = 0

    def plus(self, other: Errors) -> Errors:
        """Add two."""
        return Errors(*(a + b for a, b in zip(self, other, strict=True)))


class Backtest(NamedTuple):
    """What forecasts would have said on past days, against what happened.

    Attributes:
        daily: each day, foretold on the day before.
        window: the whole of a window, foretold at the end of each of its days but the last.
        in_range: how often a window's end was within the range.
        ranges: out of how many.
    """

    daily: Errors = Errors()
    window: Errors = Errors()
    in_range: int = 0
    ranges: int = 0

    def plus(self, other: Backtest) -> Backtest:
        """Add two."""
        return Backtest(
            self.daily.plus(other.daily),
            self.window.plus(other.window),
            self.in_range + other.in_range,
            self.ranges + other.ranges,
        )


def backtest(series: Series, ends: Sequence[int]) -> Backtest:
    """Walk over a series, and forecast each day and each window from what came before.

    Args:
        series: days that are over.
        ends: where windows end, as places in the series: one begins where the one before ends.
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
    """Average without the highest and the lowest, as far as there are more than two."""
    ordered = sorted(amounts)
    if len(ordered) > 2:
        ordered = ordered[1:-1]
    return sum(ordered) // len(ordered)


def _profile(series: Series) -> list[int]:
    """Say what each weekday uses, Monday first."""
    amounts = series.amounts
    if len(amounts) < LEAST_DAYS_FOR_WEEKDAYS:
        return [_middle(amounts)] * 7
    profile = [0] * 7
    for back in range(7):
        at = len(amounts) - 1 - back
        profile[series.weekday(at)] = _middle(amounts[at::-7][:WEEKS])
    return profile


def _level(series: Series, profile: Sequence[int]) -> tuple[int, int]:
    """Compare the last two weeks with what their weekdays use: a fraction, of sums without two odd days."""
    count = len(series.amounts)
    if count < LEAST_DAYS_FOR_LEVEL:
        return 1, 1
    days = [(series.amounts[at], profile[series.weekday(at)]) for at in range(count - LEVEL_DAYS, count)]
    usual = sorted(days, key=lambda day: day[0] - day[1])[1:-1]
    return sum(day[0] for day in usual), sum(day[1] for day in usual)


def _ratios(series: Series, days: int) -> list[list[int]]:
    """Compare past forecasts with what happened: for each of the days ahead, the sums in millionths, in order.

    Empty if there are too few.
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
    """Find the value below which so many percent lie, rounded outwards."""
    at = (len(ordered) - 1) * percent
    return ordered[-(-at // 100) if percent > 50 else at // 100]


def _rising(sums: Iterable[int]) -> list[int]:
    """Let sums never fall: what was used stays used."""
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
