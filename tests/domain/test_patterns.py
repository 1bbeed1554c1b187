"""Each planted pattern is found in noise with its users and numbers; noise alone has none."""

from __future__ import annotations

from collections import Counter
from datetime import date, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.patterns import KINDS, SINCE, SPAN, World, false_ones
from usage_plugin.domain import patterns as domain
from usage_plugin.domain.patterns.models import _minus, one_provider
from usage_plugin.domain.patterns.pattern import LEAST_IMPACT
from usage_plugin.domain.patterns.surprises import Observed, surprises
from usage_plugin.domain.usage import UsageTotals
from usage_plugin.domain.windows import days_window, month_of, to_datetime
from usage_plugin.testing.builders import DAY, MINUTE, NOON, TODAY, make_event, make_rates

UTC = ZoneInfo("UTC")
ALPHA, BETA, GAMMA = KINDS
USD = 10**9


@pytest.fixture
def world():
    return World(1, users=12)


def only(world, kind):
    """Return the only pattern found, and check its type."""
    (found,) = world.patterns()
    assert found.type == kind
    assert 0 < found.confidence <= 1
    assert found.confidence_basis
    assert found.advice
    return found


def sum_of(world, model, *users):
    totals = UsageTotals()
    for user in users or world.users:
        for (_, name, _), used in world.users[user].items():
            if name == model:
                totals = totals.plus(used)
    return totals


def test_noise_holds_no_pattern():
    """In four companies of 40 users each without a planted pattern, none is found."""
    assert false_ones(4, heavy=False) == Counter()


def test_of_heavier_tails_only_far_outliers_are_told():
    """With heavy tails, where ten times the usual is normal, only few users have a reported day."""
    found = false_ones(2, heavy=True)
    assert found.keys() <= {"sudden_change"}
    assert found["sudden_change"] <= 0.05 * 2 * 40


def test_a_dear_model_in_heavy_use_is_found(world):
    """The pattern has its users, its share, and the exact extra cost over the average price of all other models."""
    for user, requests in (("user-03", 200), ("user-05", 400)):
        for at in range(60):
            key = (TODAY - timedelta(days=at), "opus", "one")
            world.users[user][key] = UsageTotals(
                requests, 0, requests * 700, requests * 300, cost=requests * 60_000_000
            )
    found = only(world, "dear_model")
    own, everything = sum_of(world, "opus"), UsageTotals()
    for use in world.uses():
        everything = everything.plus(use.totals)
    others = _minus(everything, own)
    assert (found.models, found.affected_users) == (("opus",), ("user-05", "user-03"))
    assert found.amounts["cost"] == own.cost == 60 * 600 * 60_000_000
    at_others = others.cost * 600 * 60 * 1000 // (others.input_tokens + others.output_tokens)
    assert found.cost_impact == own.cost - at_others
    assert found.evidence["share_of_cost"] == round(own.cost / everything.cost, 3)
    assert found.evidence["requests"] == 36_000
    assert found.confidence == round(60 / 91, 3)


def test_a_cheaper_model_for_the_same_work_is_proposed_with_its_saving(world):
    """The saving is at current prices; a model with requests of a different shape is not proposed, even if cheap."""
    for uses in world.users.values():
        for (day, model, provider), totals in list(uses.items()):
            if model == "beta" and day.day % 3 == 0:
                uses[day, "beta-mini", provider] = totals
                del uses[day, model, provider]
    world.rates["beta-mini"] = make_rates(10**12, 4 * 10**12, cached_input=25 * 10**10)
    world.rates["alpha"] = make_rates(10**9, 10**9)
    found = only(world, "cheaper_model")
    beta = sum_of(world, "beta")
    today = 2_000 * (beta.input_tokens - beta.cached_input_tokens) + 500 * beta.cached_input_tokens
    today += 8_000 * beta.output_tokens
    assert found.models == ("beta", "beta-mini")
    assert found.amounts["cost_today"] == today
    assert found.cost_impact == pytest.approx(today / 2, abs=1)
    assert found.evidence["saving_share"] == 0.5
    assert set(found.affected_users) == set(world.users)


def test_reliance_on_one_provider_is_found(world):
    """Reliance starts at 90 % of the requests; it has no cost impact, since no alternative would be cheaper."""
    for uses in world.users.values():
        for day, model, provider in list(uses):
            if provider != "one":
                uses[day, model, "one"] = uses.pop((day, model, provider))
    found = only(world, "one_provider")
    assert (found.providers, found.evidence["share_of_requests"], found.cost_impact) == (("one",), 1.0, None)
    assert (found.confidence, set(found.affected_users)) == (1.0, set(world.users))


@pytest.mark.parametrize(("share", "found"), [(0.88, []), (0.91, ["one_provider"])])
def test_nine_in_ten_requests_are_reliance(share, found):
    uses = [domain.Use("2026-11-23", "a", name, UsageTotals(requests=round(1000 * part)))
            for name, part in (("one", share), ("two", 1 - share))]  # fmt: skip
    assert [one.type for one in one_provider(uses)] == found


@pytest.mark.parametrize(("busy", "begin", "end"), [((9, 10, 11, 12), 9, 13), ((22, 23, 0, 1), 22, 2)])
def test_peak_hours_are_found(world, busy, begin, end):
    """Peak hours are the shortest interval with half of the requests, including one over midnight."""
    world.hours = [
        use._replace(totals=use.totals._replace(requests=use.totals.requests * (6 if use.of_day in busy else 1)))
        for use in world.hours
    ]
    found = only(world, "peak_hours")
    assert (found.evidence["from_hour"], found.evidence["to_hour"]) == (begin, end)
    assert found.evidence["requests"] == sum(use.totals.requests for use in world.hours if use.of_day in busy)
    assert found.cost_impact is None
    assert found.confidence > 0.9


def test_a_users_sudden_rise_is_found_on_its_day(world):
    """A rise is relative to the median of the same weekday; the impact is the cost above that."""
    day = date(2026, 11, 19)
    uses = world.users["user-04"]
    for key, totals in list(uses.items()):
        if key[0] in (day - timedelta(weeks=3), day):
            uses[key] = UsageTotals(*(40 * number for number in totals))
    for kind in KINDS:
        uses.setdefault((day, kind.model, kind.provider), world.used(kind, 5_000))
    found = only(world, "sudden_change")
    by_day = Counter()
    for (at, _, _), totals in uses.items():
        by_day[at] += totals.cost
    before = sorted(by_day[day - timedelta(weeks=week)] for week in range(1, 13) if by_day[day - timedelta(weeks=week)])
    usual = (before[(len(before) - 1) // 2] * before[len(before) // 2]) ** 0.5
    assert found.affected_users == ("user-04",)
    assert (found.evidence["first"], found.evidence["last"], found.evidence["days"]) == ("2026-11-19", "2026-11-19", 1)
    assert found.amounts == {"spent": by_day[day], "usual": pytest.approx(usual, abs=2)}
    assert found.cost_impact == by_day[day] - found.amounts["usual"]
    assert found.evidence["deviations"] >= 5


def regular(spent, last=TODAY, days=91):
    """Return the days of a user with the same spend every day."""
    return {last - timedelta(days=at): spent for at in range(days)}


@pytest.mark.parametrize(
    ("changes", "is_over", "found"),
    [
        ({0: 30 * USD}, True, [(1, 20 * USD)]),
        ({0: 30 * USD}, False, [(1, 20 * USD)]),
        ({1: 40 * USD, 4: 50 * USD}, True, [(2, 70 * USD)]),
        ({0: 29 * USD}, True, []),
        ({0: 0}, True, []),
        ({0: 0, 1: 0}, True, []),
        ({0: 0, 1: 0, 2: 0}, True, [(3, -30 * USD)]),
        ({0: 0, 1: 0, 2: 0}, False, []),
        ({0: 0, 1: 0, 2: 0, 9: 0}, True, [(3, -30 * USD)]),
        ({0: 0, 1: 0, 2: 0, 9: 0, 18: 0}, True, []),
        ({0: 1 * USD, 1: 2 * USD, 2: 3 * USD}, True, [(3, -24 * USD)]),
    ],
)  # fmt: skip
def test_what_is_a_sudden_change(changes, is_over, found):
    """A rise is three times the usual; a fall needs three such days, and few of them before."""
    days = regular(10 * USD) | {TODAY - timedelta(days=at): spent for at, spent in changes.items()}
    patterns = list(domain.sudden_changes("ann", days, SINCE, TODAY, is_over=is_over))
    assert [(one.evidence["days"], one.cost_impact) for one in patterns] == found


def test_weekdays_are_compared_with_themselves():
    """A user with high spend on Mondays only has a sudden change on a Tuesday, not on a Monday."""
    days = {day: (50 if day.weekday() == 0 else 1) * USD for day in regular(0)}
    assert not list(domain.sudden_changes("ann", days, SINCE, TODAY, is_over=True))
    tuesday = date(2026, 11, 17)
    (found,) = domain.sudden_changes("ann", days | {tuesday: 50 * USD}, SINCE, TODAY, is_over=True)
    assert (found.evidence["first"], found.amounts["usual"]) == ("2026-11-17", USD)


def test_nothing_is_usual_of_somebody_new():
    """Thirteen earlier days are too few for a sudden change, and so are small amounts."""
    assert not list(domain.sudden_changes("new", regular(USD, days=20) | {TODAY: 99 * USD}, SINCE, TODAY, is_over=True))
    assert not list(domain.sudden_changes("small", regular(1000) | {TODAY: USD // 2}, SINCE, TODAY, is_over=True))
    assert not list(domain.sudden_changes("idle", {}, SINCE, TODAY, is_over=True))


def test_one_incident_does_not_hide_the_next():
    """Three outliers change neither the median nor the spread."""
    days = regular(10 * USD) | {TODAY - timedelta(days=at): 900 * USD for at in (20, 21, 35)}
    (found,) = domain.sudden_changes("ann", days | {TODAY: 40 * USD}, SINCE, TODAY, is_over=True)
    assert found.amounts == {"spent": 40 * USD, "usual": 10 * USD}


def test_surprises_need_a_distance_in_the_users_own_measure():
    """Four times the usual is normal for irregular users; three times the previous maximum is unusual for all."""
    irregular = [Observed(at % 7, str(at), USD * (1, 4, 16)[at % 3]) for at in range(84)]
    assert not surprises(irregular, [Observed(0, "now", 16 * USD), Observed(0, "now", 47 * USD)])
    (found,) = surprises(irregular, [Observed(0, "now", 49 * USD)])
    assert (found.usual, found.more) == (4 * USD, 45 * USD)


def test_an_hour_in_which_all_spend_suddenly_more_is_found(world):
    """An hour is compared with the same hour of the same weekday."""
    at = "2026-11-19T03:00+00:00"
    world.hours = [
        use._replace(totals=use.totals._replace(cost=30 * use.totals.cost)) if use.hour == at else use
        for use in world.hours
    ]
    found = only(world, "sudden_change")
    spent = next(use.totals.cost for use in world.hours if use.hour == at)
    assert (found.evidence["first"], found.evidence["hours"], found.amounts["spent"]) == (at, 1, spent)
    assert (found.affected_users, found.cost_impact) == ((), spent - found.amounts["usual"])


def test_the_hours_of_a_dear_day_are_named():
    """An hour is named if it has a tenth of the day's cost, and three times its usual cost."""
    before = [[10] * 24] * 4
    assert domain.loud_hours([10] * 22 + [500, 20], before) == [22]
    assert domain.loud_hours([0] * 24, before) == []
    assert domain.loud_hours([0] * 23 + [5], []) == [23]
    day = regular(10 * USD) | {TODAY: 99 * USD}
    (pattern,) = domain.sudden_changes("ann", day, SINCE, TODAY, is_over=True)
    named = domain.at_hours(pattern, [2, 22])
    assert named.evidence["in_hours"] == "02, 22"
    assert named.description.endswith("Of 2026-11-23 it was mostly the hours 02, 22.")
    assert domain.at_hours(pattern, []) == pattern


def test_users_whose_cache_serves_little_are_found(world):
    """Users are compared with others of the same model; the pattern has the cacheable tokens and their cost."""
    low = ("user-02", "user-07")
    for user in low:
        for key, totals in world.users[user].items():
            if key[1] == "beta":
                world.users[user][key] = totals._replace(cached_input_tokens=totals.input_tokens // 20)
    found = only(world, "low_cache_use")
    shares = sorted(
        (used := sum_of(world, "beta", user)).cached_input_tokens / used.input_tokens for user in world.users
    )
    typical = (shares[5] + shares[6]) / 2
    used = sum_of(world, "beta", *low)
    assert set(found.affected_users) == set(low)
    assert found.evidence["typical_cached_share"] == round(typical, 3)
    assert found.evidence["cached_share"] == 0.05
    missed = typical * used.input_tokens - used.cached_input_tokens
    assert found.evidence["tokens_that_could_be_cached"] == pytest.approx(missed, abs=2)
    assert found.cost_impact == pytest.approx(missed * 1_500, abs=4_000)


def test_days_on_which_a_cache_serves_little_are_found(world):
    """Days are compared with other days of the same model, for example after a change of a prompt."""
    for uses in world.users.values():
        for key, totals in uses.items():
            if key[1] == "gamma" and key[0] > TODAY - timedelta(days=10):
                uses[key] = totals._replace(cached_input_tokens=0)
    found = only(world, "low_cache_use")
    assert (found.models, found.evidence["days_below"], found.evidence["cached_share"]) == (("gamma",), 10, 0.0)
    assert "from 2026-11-14 to 2026-11-23" in found.description


def test_low_cache_use_has_no_price_where_none_is_known(world):
    """Without a price, the pattern still has its tokens."""
    del world.rates["beta"]
    for key, totals in world.users["user-02"].items():
        if key[1] == "beta":
            world.users["user-02"][key] = totals._replace(cached_input_tokens=0)
    assert only(world, "low_cache_use").cost_impact is None


def failures(count, **fields):
    return [
        make_event(started_at=NOON - number * DAY // 20, user=("ann", "bo")[number % 2], model="beta", status="failure",
                   cost=USD // 10 * (1 + number % 2), **fields)
        for number in range(count)
    ]  # fmt: skip


def test_failures_that_cost_are_found(world):
    """The pattern has the affected users, and the number of retries within a minute."""
    failed = failures(30)
    again = [event._replace(started_at=event.started_at + MINUTE // 2, status="success") for event in failed[:7]]
    world.events = sorted([*world.events, *failed, *again], key=lambda event: -event.started_at)
    found = only(world, "costly_failures")
    others = [e for e in world.events if e.failed and e.cost and e.model == "beta" and e not in failed]
    assert found.cost_impact == 15 * USD // 10 + 15 * USD // 5 + sum(event.cost for event in others)
    assert found.evidence["failed_and_paid"] == 30 + len(others)
    assert found.evidence["tried_again"] == 7
    assert found.affected_users[:2] == ("bo", "ann")
    assert (found.evidence["requests_read"], found.evidence["requests_in_all"]) == (2_037, 2_037)


@pytest.mark.parametrize(("failed", "confidence"), [(9, []), (10, [0.684]), (100, [0.9])])
def test_single_failures_are_no_pattern(failed, confidence):
    """Ten failures are a pattern, and the confidence grows with their number."""
    tally = domain.CostlyFailures()
    for event in failures(failed):
        tally.add(event)
    assert [one.confidence for one in tally.patterns(1_000)] == confidence


def state(**fields):
    window = days_window(*month_of(TODAY), UTC)
    return domain.LimitState(**{
        "limit": "monthly", "user": "ann", "unit": "usd", "amount": 100 * USD, "spent": 90 * USD, "window": window,
        "at": NOON, "zone": UTC, **fields,
    })  # fmt: skip


def test_who_will_pass_a_limit_is_found(world):
    """The pattern has a linear projection to the end of the window, and the time at which the limit is reached."""
    world.states.append(state())
    found = only(world, "limit_ahead")
    assert found.affected_users == ("ann",)
    assert found.amounts == {"spent": 90 * USD, "limit": 100 * USD, "projected": 120 * USD}
    assert (found.cost_impact, found.evidence["elapsed"]) == (20 * USD, 0.75)
    reached = to_datetime(days_window(*month_of(TODAY), UTC).start) + timedelta(days=25)
    assert found.evidence["passes_at"] == reached.isoformat(timespec="minutes") == "2026-11-26T00:00+00:00"


@pytest.mark.parametrize(
    ("fields", "found"),
    [
        ({"spent": 82 * USD}, 0),
        ({"spent": 83 * USD}, 1),
        ({"spent": 100 * USD}, 0),
        ({"spent": 0}, 0),
        ({"amount": 0, "spent": 0}, 0),
        ({"at": NOON - 18 * DAY}, 0),
        ({"window": days_window(TODAY, TODAY, UTC)}, 1),
        ({"window": days_window(TODAY, TODAY, UTC)._replace(start=NOON - MINUTE, end=NOON + MINUTE)}, 0),
        ({"unit": "requests", "amount": 100, "spent": 90}, 1),
    ],
)  # fmt: skip
def test_which_limits_are_ahead(fields, found):
    """Limits that are exceeded already, only just exceeded, just begun or over in an hour are not reported."""
    patterns = list(domain.limits_ahead([state(**fields)]))
    assert len(patterns) == found
    if patterns and fields.get("unit") == "requests":
        assert (patterns[0].cost_impact, patterns[0].evidence["projected"]) == (None, 120)


TOTALS = st.builds(
    UsageTotals,
    **{name: st.integers(0, 10**6) for name in UsageTotals._fields[:-1]},
    cost=st.integers(0, 10**17),
)
NAMES = st.sampled_from([None, "a", "b", "c"])
USES = st.lists(st.builds(domain.Use, st.sampled_from(["2026-11-16", "2026-11-23"]), NAMES, NAMES, TOTALS), max_size=30)


@settings(derandomize=True, database=None, max_examples=80, deadline=None)
@given(USES, st.lists(st.tuples(st.integers(0, 23), TOTALS), max_size=30))
def test_any_sums_are_judged(uses, hours):
    """Any sums, even impossible ones, are processed without an error, and confidence is between 0 and 1."""
    used = [
        domain.HourUse(f"2026-11-{20 + at % 4}T{hour:02d}:00+01:00", totals) for at, (hour, totals) in enumerate(hours)
    ]
    rates = {"a": make_rates(10**12, 10**12), "b": make_rates()}
    for found in domain.patterns_of_everybody(uses, used, SPAN, rates):
        assert 0 <= found.confidence <= 1
        assert found.type in domain.PATTERN_TYPES


SPENT = st.one_of(st.just(0), st.integers(0, 10), st.integers(0, 10**17))


@settings(derandomize=True, database=None, max_examples=80, deadline=None)
@given(st.lists(SPENT, min_size=20, max_size=91), st.booleans())
def test_any_days_are_judged(spent, is_over):
    """For any spend, there is no error, confidence is between 0 and 1, and the impact is the unusual part."""
    days = {TODAY - timedelta(days=at): cost for at, cost in enumerate(spent)}
    for found in domain.sudden_changes("ann", days, SINCE, TODAY, is_over=is_over):
        assert 0 <= found.confidence <= 1
        assert found.cost_impact == found.amounts["spent"] - found.amounts["usual"]
        assert abs(found.cost_impact) >= LEAST_IMPACT


def test_what_costs_most_comes_first():
    """Patterns are ordered by impact; falls and patterns without a cost come last."""
    made = [domain.Pattern("peak_hours", name, "", {}, {}, impact, 0.5, "") for name, impact in
            (("none", None), ("less", 1), ("fall", -5), ("more", 2))]  # fmt: skip
    assert [one.description for one in domain.by_impact(made)] == ["more", "less", "none", "fall"]
