"""Patterns: the frequency of false findings.

Noise is a made-up company without any pattern:

- three providers with a model each, at similar prices and load
- users whose days differ by chance, by weekday, by days off, and by their regularity
- caches that work equally well for all, failures that cost almost nothing, limits that suffice

Each pattern found in it is a false one. The second kind has heavier tails: days with ten times the usual are frequent
in it, and a reader may find them worth a report.
"""

from __future__ import annotations

import math
import random
from collections import Counter, defaultdict
from datetime import date, timedelta
from typing import TYPE_CHECKING, NamedTuple
from zoneinfo import ZoneInfo

from benchmarks.figures import Figure, arguments, show
from usage_plugin.domain import patterns as domain
from usage_plugin.domain.usage import UsageTotals
from usage_plugin.domain.windows import days_window, month_of
from usage_plugin.testing.builders import NOON, TODAY, make_event, make_rates

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from usage_plugin.domain.money import Nano
    from usage_plugin.domain.prices import Rates
    from usage_plugin.domain.usage import UsageEvent

UTC = ZoneInfo("UTC")
DAYS = 91
USERS = 40
WORLDS, QUICK = 100, 2
CHANGE = "sudden_change"
_OF_USERS = (CHANGE, "limit_ahead")
FIRST = TODAY - timedelta(days=DAYS - 1)
SINCE = TODAY - timedelta(days=6)
SPAN = domain.Days(FIRST, TODAY, SINCE, FIRST)


class Kind(NamedTuple):
    """A model: its provider, tokens of an average request, and how much of its input comes from a cache."""

    model: str
    provider: str
    prompt: int
    answer: int
    cached: float


KINDS = (
    Kind("alpha", "one", 800, 200, 0.0),
    Kind("beta", "two", 3_000, 300, 0.5),
    Kind("gamma", "three", 2_000, 1_500, 0.5),
)
RATES = {kind.model: make_rates(2 * 10**12, 8 * 10**12, cached_input=5 * 10**11) for kind in KINDS}


class World:
    """Made-up usage without a pattern; tests add patterns to it.

    Attributes:
        users: usage by name and (day, model, provider).
        hours: requests and cost by hour, of all.
    """

    def __init__(self, seed: int, *, users: int = USERS, heavy: bool = False) -> None:
        """Generate it."""
        self.rng = random.Random(seed)
        self.rates: dict[str, Rates] = dict(RATES)
        self._factor = self._laplace if heavy else self._log_normal
        self.users = {f"user-{number:02d}": dict(self._days()) for number in range(users)}
        self.hours = list(self._hours())
        self.events = sorted(map(self._event, range(2_000)), key=lambda event: -event.started_at)
        self.states = [self._state(user) for user in self.users]

    def _log_normal(self, spread: float) -> float:
        return self.rng.lognormvariate(0, spread)

    def _laplace(self, spread: float) -> float:
        return math.exp(self.rng.choice((-1, 1)) * self.rng.expovariate(math.sqrt(2) / spread))

    def _days(self) -> Iterator[tuple[tuple[date, str, str], UsageTotals]]:
        rng = self.rng
        level, spread, days_off, weekend = (
            rng.lognormvariate(4, 0.8), rng.uniform(0.1, 0.6), rng.uniform(0, 0.3), rng.choice((0.3, 1.0)),
        )  # fmt: skip
        hit = rng.uniform(0.8, 1.2)
        for at in range(DAYS):
            day = FIRST + timedelta(days=at)
            if rng.random() < days_off:
                continue
            today = level * self._factor(spread) * (weekend if day.weekday() >= 5 else 1)
            for kind in KINDS:
                requests = round(today * rng.uniform(0.8, 1.2))
                if requests:
                    cached = kind.cached * hit * rng.uniform(0.9, 1.1)
                    yield (day, kind.model, kind.provider), self.used(kind, requests, cached)

    def used(self, kind: Kind, requests: int, cached: float | None = None) -> UsageTotals:
        """Sum the given number of requests of a kind."""
        prompt, answer = (round(requests * size * self.rng.uniform(0.9, 1.1)) for size in (kind.prompt, kind.answer))
        hits = round(prompt * (kind.cached if cached is None else cached))
        totals = UsageTotals(requests, requests // 50, prompt, answer, hits)
        return totals._replace(cost=(2_000 * (prompt - hits) + 500 * hits + 8_000 * answer))

    def _hours(self) -> Iterator[domain.HourUse]:
        days: defaultdict[date, UsageTotals] = defaultdict(UsageTotals)
        for uses in self.users.values():
            for (day, _, _), totals in uses.items():
                days[day] = days[day].plus(totals)
        for day, totals in sorted(days.items()):
            weights = [self._factor(0.3) for _ in range(24)]
            for hour, weight in enumerate(weights):
                share = weight / sum(weights)
                name = f"{day.isoformat()}T{hour:02d}:00+00:00"
                yield domain.HourUse(
                    name, UsageTotals(requests=round(totals.requests * share), cost=round(totals.cost * share))
                )

    def user_hours(self, days: Mapping[date, Nano]) -> Iterator[domain.HourUse]:
        """Spread five weeks of a user's days over some hours of each."""
        for day, cost in days.items():
            if day >= SINCE - timedelta(weeks=4):
                hours = sorted(self.rng.sample(range(7, 22), 6))
                weights = [self._factor(0.6) for _ in hours]
                for hour, weight in zip(hours, weights, strict=True):
                    name = f"{day.isoformat()}T{hour:02d}:00+00:00"
                    yield domain.HourUse(name, UsageTotals(cost=round(cost * weight / sum(weights))))

    def _event(self, _: int) -> UsageEvent:
        kind = self.rng.choice(KINDS)
        failed = self.rng.random() < 0.02
        paid = not failed or self.rng.random() < 0.1
        return make_event(
            started_at=NOON - self.rng.randrange(6 * 86_400_000_000),
            user=self.rng.choice(list(self.users)),
            model=kind.model,
            status="failure" if failed else "success",
            cost=(1_000_000 if failed else 8_000_000) if paid else 0,
        )

    def _state(self, user: str) -> domain.LimitState:
        window = days_window(*month_of(TODAY), UTC)
        ends_at = self.rng.uniform(0.3, 1.0) * self.rng.gauss(1, 0.03)
        spent = round(100 * 10**9 * ends_at * (NOON - window.start) / (window.end - window.start))
        return domain.LimitState("monthly", user, "usd", 100 * 10**9, spent, window, NOON, UTC)

    def uses(self) -> list[domain.Use]:
        """Sum the usage of all users, by day and model."""
        sums: defaultdict[tuple[date, str, str], UsageTotals] = defaultdict(UsageTotals)
        for uses in self.users.values():
            for key, totals in uses.items():
                sums[key] = sums[key].plus(totals)
        return _listed(sums)

    def patterns(self) -> list[domain.Pattern]:
        """Look for patterns of every type."""
        found = list(domain.patterns_of_everybody(self.uses(), self.hours, SPAN, self.rates))
        everyone, failed = domain.UsersOfModels(), domain.CostlyFailures()
        for user, uses in self.users.items():
            everyone.add(user, _listed(uses))
            days: defaultdict[date, Nano] = defaultdict(int)
            for (day, _, _), totals in uses.items():
                days[day] += totals.cost
            changes = list(domain.sudden_changes(user, days, SINCE, TODAY, is_over=True))
            found += changes or domain.sudden_changes_by_hour(list(self.user_hours(days)), SINCE, user)
        for event in self.events:
            failed.add(event)
        found += [
            *failed.patterns(len(self.events)),
            *domain.limits_ahead(self.states),
            *everyone.poor_caches(self.rates),
        ]
        return domain.by_impact(map(everyone.named, found))


def _listed(uses: Mapping[tuple[date, str, str], UsageTotals]) -> list[domain.Use]:
    return [domain.Use(day.isoformat(), model, provider, totals) for (day, model, provider), totals in uses.items()]


def false_ones(worlds: int, *, heavy: bool) -> Counter[str]:
    """Count the patterns found in some worlds of noise, by type; sudden changes of the total separately."""
    found = [pattern for seed in range(worlds) for pattern in World(seed, heavy=heavy).patterns()]
    return Counter(one.type if one.affected_users or one.type != CHANGE else f"{CHANGE} of all" for one in found)


def measure(worlds: int) -> list[Figure]:
    """Look for patterns in both kinds of noise."""
    figures = []
    for heavy, name in ((False, "noise"), (True, "heavier tails")):
        found = false_ones(worlds, heavy=heavy)
        for kind in (*domain.PATTERN_TYPES, f"{CHANGE} of all"):
            # Of single users in a week, or of companies in three months.
            whole, unit = (USERS * worlds, "users") if kind in _OF_USERS else (worlds, "companies")
            share = 100 * found[kind] / whole
            most = 5.0 if heavy else 1.0
            what = f"{name}: false {kind}, of {whole:,} {unit}"
            figures.append(Figure(what=what, measured=share, unit="%", at_most=most))
    return figures


def main() -> None:
    """Measure, and print."""
    given = arguments("patterns", __doc__, quick="few companies only, to see that it works")
    show("patterns", measure(QUICK if given.quick else WORLDS), as_json=given.json)


if __name__ == "__main__":
    main()
