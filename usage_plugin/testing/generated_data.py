"""Generated data for the contract of stores: events of a report by Hypothesis, random operations in any order."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from usage_plugin.domain.usage import UsageTotals
from usage_plugin.domain.windows import start_of_day
from usage_plugin.testing.builders import DAY, TODAY, make_sum
from usage_plugin.testing.openings import BERLIN

if TYPE_CHECKING:
    from collections.abc import Iterator
    from random import Random

    from usage_plugin.domain.store import DailySum

DRAWN = settings(
    deadline=None,
    derandomize=True,
    database=None,
    # Each example opens a store of its own; many classes inherit the contract.
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.differing_executors, HealthCheck.too_slow],
)
_DAYS = [TODAY + timedelta(days=days) for days in (-40, -31, -30, -1, 0, 1, 30)]
_INSTANTS = [start_of_day(day, BERLIN) + offset for day in _DAYS for offset in (-1, 0, 1, DAY // 2)]
_NAMES = {
    "user": ("ann", "bo"),
    "team": (None, "a", "b"),
    "api_key": (None, "a", "b"),
    "organization": (None, "a", "b"),
    "end_user": (None, "ann", "cy"),
    "model": (None, "gpt", "o3"),
    "provider": (None, "a", "b"),
    "status": ("success", "failure", "cancelled", "recovered"),
}
_MOST = 10**17
"""Nano-dollars; above 2^53, a float cannot represent every integer."""

DAYS = st.sampled_from(_DAYS)
EVENTS = st.fixed_dictionaries(
    {
        "started_at": st.sampled_from(_INSTANTS),
        **{name: st.sampled_from(values) for name, values in _NAMES.items()},
        "cost": st.one_of(st.none(), st.integers(0, 10**6), st.integers(_MOST, _MOST + 10)),
        "input_tokens": st.integers(0, 10**9),
        "output_tokens": st.integers(0, 10**9),
        "cached_input_tokens": st.integers(0, 10**9),
        "cache_write_tokens": st.integers(0, 10**9),
        "reasoning_tokens": st.integers(0, 10**9),
    }
)


def some_verbs(rng: Random, count: int) -> Iterator[tuple[Any, ...]]:
    """Generate operations on a store: a method name with its arguments."""
    for _ in range(count):
        verb = rng.choice(("append", "append", "append again", "append sums", "prune", "forget", "reopen"))
        if verb == "append":
            yield verb, rng.choice(("one", "two")), [_some_event(rng) for _ in range(rng.randrange(1, 5))]
        elif verb == "append again":
            yield verb, rng.choice(("one", "two"))
        elif verb == "append sums":
            yield verb, [_some_sum(rng) for _ in range(rng.randrange(1, 4))]
        elif verb == "prune":
            yield verb, rng.choice(_INSTANTS), rng.choice(_DAYS)
        elif verb == "forget":
            yield verb, rng.choice(("ann", "bo", "cy"))
        else:
            yield (verb,)


def _some_event(rng: Random) -> dict[str, Any]:
    names = {name: rng.choice(values) for name, values in _NAMES.items()}
    return {"started_at": rng.choice(_INSTANTS), **names, "cost": rng.randrange(_MOST)}


def _some_sum(rng: Random) -> DailySum:
    names = {name: rng.choice(_NAMES[name]) for name in ("user", "end_user", "model")}
    return make_sum(
        day=rng.choice(_DAYS), **names, totals=UsageTotals(requests=rng.randrange(1, 99), cost=rng.randrange(_MOST))
    )
