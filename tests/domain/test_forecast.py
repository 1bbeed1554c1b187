"""Forecasts from generated histories with a known future."""

from __future__ import annotations

import random
from datetime import date, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from usage_plugin.domain.forecast import (
    HISTORY_DAYS,
    LEAST_DAYS_FOR_LEVEL,
    LEAST_DAYS_FOR_WEEKDAYS,
    Backtest,
    Series,
    backtest,
    course,
    predict,
    runs_out,
)

MONDAY = date(2026, 1, 5)
USD = 10**9


def series(amounts, first=MONDAY):
    return Series(first, list(amounts))


def weekly(days, weekend=15):
    return [100 * USD if at % 7 < 5 else weekend * USD for at in range(days)]


def noisy(amounts, seed, spread=0.25):
    drawn = random.Random(seed)
    return [round(amount * drawn.lognormvariate(0, spread)) for amount in amounts]


def months_of(one):
    return [at for at in range(len(one.amounts) + 1) if (one.first + timedelta(days=at)).day == 1]


def walked(histories):
    found = Backtest()
    for one in histories:
        found = found.plus(backtest(one, months_of(one)))
    return found


# ── expected amounts ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_week_that_repeats_itself_is_foretold_exactly():
    """A repeated week is forecast to the nano-dollar, for any last day of the history."""
    for days in range(LEAST_DAYS_FOR_WEEKDAYS, LEAST_DAYS_FOR_WEEKDAYS + 30):
        assert predict(series(weekly(days)), 20) == weekly(days + 20)[days:]


@pytest.mark.parametrize("days", [1, 2, 6, 7, 13, 20, 27, 28, 100])
def test_days_that_are_all_alike_go_on_alike(days):
    """A constant history of any length is forecast exactly, even with amounts that a float cannot represent."""
    amount = 10**17 + 1
    assert predict(series([amount] * days), 3) == [amount] * 3


def test_of_no_history_nothing_is_expected():
    """Without days, or with days without use, the forecast is zero."""
    for amounts in ([], [0] * 5, [0] * 90):
        found = course(series(amounts), 4)
        assert (found.expected, found.low, found.high, found.history_days) == ([0] * 4, None, None, 0)
        assert found.lacks == ("nothing was used before today",)


@pytest.mark.parametrize("place", [2, 20, 50, 55, 59])
def test_one_huge_day_decides_nothing(place):
    """An outlier on any day changes the forecast by less than a twentieth."""
    usual = noisy(weekly(60), seed=4, spread=0.05)
    odd = [*usual[:place], usual[place] * 1000, *usual[place + 1 :]]
    expected, found = (sum(predict(series(amounts), 14)) for amounts in (usual, odd))
    assert abs(found - expected) < expected / 20


def test_a_new_level_is_followed_within_three_weeks():
    """If all costs triple, the forecast does too within three weeks."""
    amounts = [*weekly(140), *(3 * amount for amount in weekly(21))]
    assert abs(sum(predict(series(amounts), 7)) - 3 * sum(weekly(7))) < sum(weekly(7)) / 10


def test_whoever_stopped_is_expected_to_go_on_with_nothing():
    """After two weeks without use the forecast is zero; a gap of three days changes little."""
    assert sum(predict(series([*weekly(100), *[0] * 14]), 30)) == 0
    usual, gap = weekly(98), [*weekly(63), 0, 0, 0, *weekly(98)[66:]]
    assert predict(series(gap), 7) == predict(series(usual), 7)


def test_who_is_new_has_no_history_of_nothing():
    """The days before the first use do not count."""
    assert course(series([*[0] * 300, *[5 * USD] * 9]), 3) == course(series([5 * USD] * 9), 3)


def test_who_came_back_is_expected_to_stay():
    """Recent use counts, even if earlier days of the same weekday had none."""
    amounts = [USD, *[0] * 80, *[7 * USD] * 5]
    assert all(amount > 0 for amount in predict(series(amounts), 3))


def test_of_today_the_rest_is_expected():
    """Of the first day, only the remaining part is forecast."""
    assert course(series([8 * USD] * 30), 3, left_of_first=250_000).expected == [2 * USD, 10 * USD, 18 * USD]


# ── the range ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_range_holds_what_happens_about_as_often_as_it_says():
    """Over many noisy histories, the actual end of a window is in the 80 % range in 65 to 90 of 100 cases."""
    found = walked(series(noisy(weekly(300), seed=seed)) for seed in range(8))
    assert found.ranges > 100
    assert 65 * found.ranges < 100 * found.in_range < 90 * found.ranges


def test_without_noise_there_is_nothing_between_low_and_high():
    """Without noise, the range equals the forecast."""
    found = course(series(weekly(120)), 10)
    assert found.expected == found.low == found.high
    assert found.lacks == ()


def test_more_noise_makes_a_wider_range():
    """The range grows with the errors of past forecasts."""

    def width(spread):
        found = course(series(noisy(weekly(200), seed=1, spread=spread)), 14)
        assert found.low
        assert found.high
        return found.high[-1] - found.low[-1]

    assert 0 < width(0.05) < width(0.2) < width(0.5)


@pytest.mark.parametrize(
    ("days", "lacks"),
    [
        (5, ["too few to tell weekdays apart", "no range"]),
        (LEAST_DAYS_FOR_WEEKDAYS, ["too few to see a change of level", "no range"]),
        (LEAST_DAYS_FOR_LEVEL, ["no range"]),
        (60, []),
    ],
)
def test_a_short_history_says_what_it_lacks(days, lacks):
    """A short history has a forecast too, with the reasons for missing parts."""
    found = course(series(weekly(days)), 7)
    assert found.expected[-1] > 0
    assert len(found.lacks) == len(lacks)
    assert all(word in told for word, told in zip(lacks, found.lacks, strict=True))
    assert (found.low is None) == bool(lacks)


AMOUNTS = st.lists(st.one_of(st.just(0), st.integers(0, 10**6), st.integers(10**15, 10**17)), max_size=HISTORY_DAYS)


@given(AMOUNTS, st.integers(1, 40), st.integers(0, 10**6), st.dates(date(2000, 1, 1), date(2100, 1, 1)))
def test_whatever_was_used_sums_only_grow_and_the_range_is_in_order(amounts, days, left, first):
    """A forecast has an integer for each day; the sums never decrease and are never negative."""
    found = course(series(amounts, first), days, left_of_first=left)
    bands = [found.expected] if found.low is None else [found.expected, found.low, found.high]
    for sums in bands:
        assert len(sums) == days
        assert all(type(amount) is int for amount in sums)
        assert list(sums) == sorted(sums)
        assert sums[0] >= 0
    if found.low is not None:
        assert all(low <= high for low, high in zip(found.low, found.high, strict=True))


# ── the day of exhaustion ────────────────────────────────────────────────────────────────────────────────────────────


def test_it_runs_out_on_the_day_at_whose_end_nothing_is_left():
    """The day is exact to the last unit; a limit that is already used up is exhausted today."""
    sums = [10, 20, 30]
    assert [runs_out(sums, left) for left in (-1, 0, 10, 11, 30, 31)] == [0, 0, 0, 1, 2, None]


# ── backtests ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_with_a_weekly_season_it_is_better_than_as_yesterday():
    """The error is at most half of the naive forecast's for a day, and a third for the end of a month."""
    found = walked(series(noisy(weekly(200), seed=seed)) for seed in range(5))
    assert 2 * found.daily.off < found.daily.naive_off
    assert 3 * found.window.off < found.window.naive_off


@pytest.mark.parametrize("spread", [0, 0.01, 0.25, 1])
def test_on_flat_data_it_is_hardly_ever_worse_than_as_yesterday(spread):
    """The error is at most 2 % above the naive forecast's, for any noise; without noise both are exact."""
    found = walked(series(noisy([100 * USD] * 200, seed=seed, spread=spread)) for seed in range(5))
    for errors in (found.daily, found.window):
        assert 100 * errors.off <= 102 * errors.naive_off
        assert errors.actual > 0


def test_a_back_test_sees_only_what_came_before():
    """A further day, even an outlier, adds the error of its own forecast from the days before, and no other."""
    usual = noisy(weekly(90), seed=3)
    said = predict(series(usual), 1)[0]
    before, after = backtest(series(usual), []).daily, backtest(series([*usual, 10**15]), []).daily
    assert (after.off - before.off, after.naive_off - before.naive_off) == (10**15 - said, 10**15 - usual[-1])


def test_too_short_a_history_is_not_looked_back_on():
    """A history that is too short has an empty backtest, without a division by zero."""
    assert walked([series([]), series([0] * 50), series(weekly(10))]) == Backtest()
