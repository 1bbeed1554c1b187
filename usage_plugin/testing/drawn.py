"""What Hypothesis draws for the contract of stores: events, sums, and verbs in any order."""

from __future__ import annotations

from datetime import timedelta

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from usage_plugin.domain.usage import UsageTotals
from usage_plugin.domain.windows import start_of_day
from usage_plugin.testing.builders import DAY, TODAY, make_sum
from usage_plugin.testing.openings import BERLIN

DRAWN = settings(
    deadline=None,
    derandomize=True,
    database=None,
    # Each example opens a store of its own; the contract is inherited by many classes.
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.differing_executors, HealthCheck.too_slow],
)
PERSONS = st.sampled_from(("ann", "bo"))
MAYBE = st.sampled_from((None, "a", "b"))
INSTANTS = st.builds(
    lambda day, offset: start_of_day(TODAY + timedelta(days=day), BERLIN) + offset,
    st.sampled_from((-40, -31, -30, -1, 0, 1, 30)),
    st.sampled_from((-1, 0, 1, DAY // 2)),
)
COSTS = st.one_of(st.none(), st.integers(0, 10**17))
"""Nano-dollars; beyond 2^53 no float holds them all."""
EVENTS = st.fixed_dictionaries(
    {
        "started_at": INSTANTS,
        "user": PERSONS,
        "team": MAYBE,
        "api_key": MAYBE,
        "organization": MAYBE,
        "end_user": st.sampled_from((None, "ann", "cy")),
        "model": st.sampled_from((None, "gpt", "o3")),
        "provider": MAYBE,
        "status": st.sampled_from(("success", "failure", "cancelled", "recovered")),
        "cost": COSTS,
        "input_tokens": st.integers(0, 10**9),
        "output_tokens": st.integers(0, 10**9),
        "cached_input_tokens": st.integers(0, 10**9),
        "cache_write_tokens": st.integers(0, 10**9),
        "reasoning_tokens": st.integers(0, 10**9),
    }
)
DAYS = st.sampled_from([TODAY + timedelta(days=days) for days in (-60, -31, -1, 0, 1)])
SUMS = st.builds(
    make_sum,
    day=DAYS,
    user=PERSONS,
    end_user=st.sampled_from((None, "ann")),
    model=st.sampled_from(("unknown", "gpt")),
    totals=st.builds(UsageTotals, requests=st.integers(1, 10**6), cost=st.integers(0, 10**17)),
)
WRITERS = st.sampled_from(("one", "two"))
VERBS = st.one_of(
    st.tuples(st.just("append"), WRITERS, st.lists(EVENTS, min_size=1, max_size=4)),
    st.tuples(st.just("append again"), WRITERS),
    st.tuples(st.just("append sums"), st.lists(SUMS, min_size=1, max_size=3)),
    st.tuples(st.just("prune"), INSTANTS, DAYS),
    st.tuples(st.just("forget"), PERSONS),
    st.just(("reopen",)),
)
