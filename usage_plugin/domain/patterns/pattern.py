"""The type of a pattern, and the formats of its numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

from usage_plugin.domain.money import NANO_PER_USD, format_usd

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from usage_plugin.domain.money import Nano

PatternType = Literal[
    "dear_model",
    "cheaper_model",
    "one_provider",
    "peak_hours",
    "sudden_change",
    "low_cache_use",
    "costly_failures",
    "limit_ahead",
]
PATTERN_TYPES: tuple[PatternType, ...] = get_args(PatternType)


LEAST_IMPACT: Nano = NANO_PER_USD
"""The minimum cost of a finding: one dollar. Less is not worth reporting."""

LEAST_REQUESTS = 100
"""The minimum number of requests for an average: averages over fewer are chance."""


class Pattern(NamedTuple):
    """A notable finding.

    Attributes:
        description: one sentence, with the most important numbers.
        advice: the possible remedy.
        evidence: the numbers behind it, by name; shares are between 0 and 1.
        amounts: the amounts of money behind it, by name.
        cost_impact: the additional cost in the examined span. Negative if spend is below the usual. None if the
            finding is not about money, or no price is known.
        affected_users: the most expensive first, of the users examined.
        confidence: from 0 to 1.
        confidence_basis: how the confidence was computed.
    """

    type: PatternType
    description: str
    advice: str
    evidence: Mapping[str, float | str]
    amounts: Mapping[str, Nano]
    cost_impact: Nano | None
    confidence: float
    confidence_basis: str
    models: tuple[str, ...] = ()
    providers: tuple[str, ...] = ()
    affected_users: tuple[str, ...] = ()


def by_impact(patterns: Iterable[Pattern]) -> list[Pattern]:
    """Return patterns ordered by highest cost, then by highest confidence."""
    return sorted(patterns, key=lambda one: (-(one.cost_impact or 0), -one.confidence, one.type, one.description))


def dearest_first(costs: Mapping[str, Nano]) -> tuple[str, ...]:
    """Return names ordered by highest cost."""
    return tuple(sorted(costs, key=lambda name: (-costs[name], name)))


def share(part: float, whole: float) -> float:
    """Return a share for evidence; 0 if the whole is 0."""
    return rounded(part / whole) if whole else 0.0


def rounded(value: float) -> float:
    """Return a number without insignificant digits."""
    return round(value, 3)


def percent(part: int, whole: int) -> str:
    """Return a share as text for people."""
    return f"{share(part, whole):.0%}"


def usd(nano: Nano) -> str:
    """Return an amount as text for people, rounded to the cent."""
    return format_usd(round(nano, -7))
