from __future__ import annotations

import math
from datetime import date, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from usage_plugin.domain.behaviour import (
    DIMENSIONS,
    HOURS,
    PARTS,
    VERSION,
    WeekOfUse,
    distance,
    distances,
    mean,
    vector_of,
    week_of_use,
)
from usage_plugin.domain.money import NANO_PER_USD
from usage_plugin.domain.usage import UsageTotals

MONDAY = date(2026, 11, 23)
NAMES = st.sampled_from([None, "gpt", "opus", "sonnet", "o3"])
TOTALS = st.builds(
    UsageTotals,
    requests=st.integers(0, 10**7),
    input_tokens=st.integers(0, 10**12),
    output_tokens=st.integers(0, 10**12),
    cached_input_tokens=st.integers(0, 10**12),
    cost=st.integers(0, 10**16),
)
SUMS = st.lists(st.tuples(st.dates(MONDAY, MONDAY + timedelta(days=6)), NAMES, NAMES, TOTALS), max_size=8)
WEEKS = st.builds(week_of_use, SUMS, st.lists(st.integers(0, 10**6), min_size=HOURS, max_size=HOURS))


def week(count: int = 100, *, model: str = "gpt", hour: int = 9, day: int = 0, tokens: int = 500) -> WeekOfUse:
    used = UsageTotals(count, 0, tokens * count, 50 * count, cost=count * NANO_PER_USD // 100)
    hours = [0] * HOURS
    hours[hour] = count
    return week_of_use([(MONDAY + timedelta(days=day), model, "openai", used)], hours)


def apart(one: WeekOfUse, other: WeekOfUse) -> dict[str, float]:
    """Return the parts in which two weeks differ."""
    found = distances(vector_of(one), vector_of(other))
    return {name: far for name, far in found.items() if far > 1e-9}


@given(WEEKS)
def test_every_vector_has_length_one(use):
    """The vector of any week has the length 1, including an empty week and one of impossible numbers."""
    vector = vector_of(use)
    assert len(vector) == DIMENSIONS
    assert math.hypot(*vector) == pytest.approx(1)


@given(WEEKS, WEEKS)
def test_a_distance_is_between_nothing_and_one(one, other):
    """A distance is symmetric, 0 to itself, and the sum of its parts, each of which is at most its weight."""
    first, second = vector_of(one), vector_of(other)
    assert distance(first, first) == pytest.approx(0)
    assert 0 <= distance(first, second) <= 1 + 1e-9
    assert distance(first, second) == pytest.approx(distance(second, first))
    assert distance(first, second) == pytest.approx(1 - sum(a * b for a, b in zip(first, second, strict=True)))
    found = distances(first, second)
    assert list(found) == [part.name for part in PARTS]
    assert all(found[part.name] <= part.weight + 1e-9 for part in PARTS)


@given(WEEKS, WEEKS, st.floats(0.01, 100))
def test_only_the_direction_counts(one, other, length):
    """The length of a vector does not matter, since a store may return another one."""
    first, second = vector_of(one), vector_of(other)
    assert distance([length * n for n in first], second) == pytest.approx(distance(first, second), abs=1e-9)


@given(SUMS, st.randoms())
def test_the_order_of_the_sums_does_not_matter(sums, draw):
    """The vector of a week does not depend on the order of its sums."""
    shuffled = list(sums)
    draw.shuffle(shuffled)
    assert vector_of(week_of_use(sums)) == pytest.approx(vector_of(week_of_use(shuffled)))


def test_the_weights_are_all_there_is():
    """The weights add up to one."""
    assert sum(part.weight for part in PARTS) == pytest.approx(1)


@pytest.mark.parametrize(
    ("change", "part"),
    [({"model": "opus"}, "models"), ({"hour": 20}, "hours"), ({"day": 5}, "weekdays"), ({"count": 900}, "volume"),
     ({"tokens": 50_000}, "tokens")],
)  # fmt: skip
def test_a_change_shows_in_its_part(change, part):
    """A change affects only its own part, so the parts explain a distance."""
    assert apart(week(), week(**change)).keys() == {part}


def test_what_shares_nothing_is_as_far_as_the_weight():
    """A different model has the maximum distance of the part, and half of it has less."""
    assert apart(week(), week(model="opus"))["models"] == pytest.approx(0.30)
    both = week()._replace(models={"gpt": 50, "opus": 50})
    assert 0.05 < apart(week(), both)["models"] < 0.15


def test_hours_are_near_to_those_beside_them():
    """Nine is nearer to ten than to noon, and midnight is next to eleven at night."""
    nine, ten, noon = (week(hour=hour) for hour in (9, 10, 12))
    assert apart(nine, ten)["hours"] < apart(nine, noon)["hours"] / 1.5
    assert apart(week(hour=23), week(hour=0))["hours"] == pytest.approx(apart(nine, ten)["hours"])


def test_amounts_count_by_their_order():
    """Ten and a hundred requests are about as far apart as a hundred and a thousand."""
    small, middle, large = (week(count) for count in (10, 100, 1_000))
    assert apart(small, middle)["volume"] == pytest.approx(apart(middle, large)["volume"], rel=0.3)


def test_unknown_hours_are_as_near_to_one_as_to_another():
    """An imported week has no hours, and has the same small distance to all hours."""
    unknown = week()._replace(hours=[0] * HOURS)
    to_nine, to_ten = (apart(unknown, week(hour=hour))["hours"] for hour in (9, 20))
    assert to_nine == pytest.approx(to_ten)
    assert to_nine < 0.15


def test_the_middle_of_two_is_between_them():
    """The mean has the same distance to both, less than the distance between them."""
    one, other = vector_of(week()), vector_of(week(model="opus", hour=3))
    middle = mean([one, other])
    assert distance(middle, one) == pytest.approx(distance(middle, other))
    assert distance(middle, one) < distance(one, other) / 2


def test_other_features_need_another_version():
    """A change of the vector's features needs a new `VERSION`, so that stored vectors are recomputed."""
    vector = vector_of(week(123, model="claude-opus", hour=17, day=3, tokens=4_321))
    assert VERSION == 1
    assert {at: round(number, 4) for at, number in enumerate(vector) if number > 1e-9} == {
        26: 0.5477, 69: 0.3162, 80: 0.1498, 81: 0.2103, 82: 0.2328, 83: 0.1116, 84: 0.2582, 102: 0.1936, 103: 0.2739,
        104: 0.1936, 113: 0.2236, 117: 0.2699, 118: 0.1648, 119: 0.282, 120: 0.1431,
    }  # fmt: skip
