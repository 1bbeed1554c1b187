"""What a pattern is, and how its numbers are written."""

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
"""A dollar. Nobody needs to be told of less."""

LEAST_REQUESTS = 100
"""Averages over fewer requests are chance."""


class Pattern(NamedTuple):
    """Something that stands out.

    Attributes:
        description: one sentence, with the numbers that matter most.
        advice: what can be done.
        evidence: the numbers behind it, by name; shares are between 0 and 1.
        amounts: the same, of money.
        cost_impact: what it costs in the span that was looked at, beyond what it would be otherwise; negative where
            less is spent than usual; None where it is no question of money, or no price is known.
        affected_users: the dearest first, of those that were looked at.
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
    """Order patterns: what costs most first, then what is surest."""
    return sorted(patterns, key=lambda one: (-(one.cost_impact or 0), -one.confidence, one.type, one.description))


def dearest_first(costs: Mapping[str, Nano]) -> tuple[str, ...]:
    """List names by what they cost."""
    return tuple(sorted(costs, key=lambda name: (-costs[name], name)))


def share(part: float, whole: float) -> float:
    """Give a share for evidence; none of nothing."""
    return rounded(part / whole) if whole else 0.0


def rounded(value: float) -> float:
    """Leave away digits that say nothing."""
    return round(value, 3)


def percent(part: int, whole: int) -> str:
    """Write a share for people."""
    return f"{share(part, whole):.0%}"


def usd(nano: Nano) -> str:
    """Write an amount for people, to the cent."""
    return format_usd(round(nano, -7))
