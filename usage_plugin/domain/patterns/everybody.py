"""Patterns of all users together, from sums by model and by hour: their number does not grow with the users."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from usage_plugin.domain.patterns.caches import poor_cache_days
from usage_plugin.domain.patterns.models import cheaper_models, dear_models, one_provider
from usage_plugin.domain.patterns.times import peak_hours, sudden_changes_by_hour

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from datetime import date

    from usage_plugin.domain.patterns.models import Use
    from usage_plugin.domain.patterns.pattern import Pattern
    from usage_plugin.domain.patterns.times import HourUse
    from usage_plugin.domain.prices import Rates


class Days(NamedTuple):
    """The days of a search: the usual values are derived from `before` on, the first compared day is `since`."""

    first: date
    last: date
    since: date
    before: date


def patterns_of_everybody(
    uses: Sequence[Use], hours: Sequence[HourUse], days: Days, rates: Mapping[str, Rates]
) -> Iterator[Pattern]:
    """Find the patterns of all users together.

    Args:
        uses: from the first day to the last.
        hours: from the earlier of `first` and `before` on.
        days: the days of the search.
        rates: today's prices, of the models with known prices.
    """
    yield from dear_models(uses)
    yield from cheaper_models(uses, rates)
    yield from one_provider(uses)
    yield from poor_cache_days(uses, rates)
    yield from peak_hours([use for use in hours if use.hour >= days.first.isoformat()])
    yield from sudden_changes_by_hour([use for use in hours if use.hour >= days.before.isoformat()], days.since)
