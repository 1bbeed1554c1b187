"""Behaviour: a user's week as a vector, to compare users with each other and with their own past.

The vector has parts, each of length one: models, providers, the size of requests, hours, weekdays, and volume. Each
part has a weight, and the weights add up to one. So a vector has length one. The cosine distance of two vectors is the
weighted sum of the distances of their parts: from 0 (the same) to 1 (nothing in common). It shows which part differs.

There is no training and no download: the same week always gives the same vector. These are the only floating-point
numbers that are derived from money, and they are only compared.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from usage_plugin.domain.money import NANO_PER_USD
from usage_plugin.domain.usage import UsageTotals

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from datetime import date

VERSION = 1
"""The version of the features; vectors of different versions cannot be compared."""

HOURS, WEEKDAYS = 24, 7
_MODEL_CELLS, _PROVIDER_CELLS = 64, 16
_MOST_TOKENS, _MOST_REQUESTS, _MOST_USD = 1e6, 1e6, 1e5
"""The ends of the scales: tokens of one request, requests of a week, cost of a week. Larger values are cut off."""


class Part(NamedTuple):
    """A part of the vector: its name for people, its number of dimensions, and its weight."""

    name: str
    size: int
    weight: float


PARTS = (
    Part("models", _MODEL_CELLS, 0.30),
    Part("providers", _PROVIDER_CELLS, 0.10),
    Part("tokens", 6, 0.20),
    Part("hours", HOURS, 0.15),
    Part("weekdays", WEEKDAYS, 0.05),
    Part("volume", 4, 0.20),
)
DIMENSIONS = sum(part.size for part in PARTS)


class WeekOfUse(NamedTuple):
    """A user's requests in a week.

    Attributes:
        totals: of the whole week.
        models: requests by model; None if the name is absent, as in `providers`.
        providers: requests by provider.
        weekdays: requests by weekday, Monday first.
        hours: requests by hour of the day; all zero if unknown, as for imported days and pruned events.
    """

    totals: UsageTotals
    models: Mapping[str | None, int]
    providers: Mapping[str | None, int]
    weekdays: Sequence[int]
    hours: Sequence[int]


def week_of_use(
    sums: Iterable[tuple[date, str | None, str | None, UsageTotals]], hours: Sequence[int] = (0,) * HOURS
) -> WeekOfUse:
    """Return the week of a user.

    Args:
        sums: of one user: day, model, provider, and totals.
        hours: requests by hour of the day.
    """
    totals = UsageTotals()
    models: Counter[str | None] = Counter()
    providers: Counter[str | None] = Counter()
    weekdays = [0] * WEEKDAYS
    for day, model, provider, used in sums:
        totals = totals.plus(used)
        models[model] += used.requests
        providers[provider] += used.requests
        weekdays[day.weekday()] += used.requests
    return WeekOfUse(totals, models, providers, weekdays, hours)


def vector_of(week: WeekOfUse) -> list[float]:
    """Return the vector of a week: `DIMENSIONS` numbers, together of length one.

    A part contains the square roots of shares, so it has length one, and two parts with nothing in common are
    orthogonal. A hash of their names assigns models and providers to a fixed number of cells: two in one cell look
    alike. Half of an hour's requests are spread over its two neighbours, so nine o'clock is nearer to ten than to
    midnight. Amounts are on logarithmic scales: ten differs from a hundred as a hundred from a thousand.
    """
    totals = week.totals
    each = max(1, totals.requests)
    parts = (
        _shares(_in_cells(week.models, _MODEL_CELLS)),
        _shares(_in_cells(week.providers, _PROVIDER_CELLS)),
        _scales(
            _logarithmic(totals.input_tokens / each, _MOST_TOKENS),
            _logarithmic(totals.output_tokens / each, _MOST_TOKENS),
            totals.cached_input_tokens / max(1, totals.input_tokens),
        ),
        _shares(_smoothed(week.hours)),
        _shares(week.weekdays),
        _scales(
            _logarithmic(totals.requests, _MOST_REQUESTS),
            # In cents: on a scale in dollars, users with little spend would all be near zero.
            _logarithmic(totals.cost * 100 / NANO_PER_USD, _MOST_USD * 100),
        ),
    )
    return [math.sqrt(part.weight) * number for part, numbers in zip(PARTS, parts, strict=True) for number in numbers]


def distance(one: Sequence[float], other: Sequence[float]) -> float:
    """Return the cosine distance of two vectors, which need not be of length one."""
    return sum(distances(one, other).values())


def distances(one: Sequence[float], other: Sequence[float]) -> dict[str, float]:
    """Return the distance of two vectors in each of their parts; the sum is their cosine distance."""
    first, second = _unit(one), _unit(other)
    apart, at = {}, 0
    for part in PARTS:
        numbers = range(at, at + part.size)
        apart[part.name] = sum((first[n] - second[n]) ** 2 for n in numbers) / 2
        at += part.size
    return apart


def mean(vectors: Sequence[Sequence[float]]) -> list[float]:
    """Return the mean of vectors."""
    return [sum(numbers) / len(vectors) for numbers in zip(*vectors, strict=True)]


def _unit(vector: Sequence[float]) -> list[float]:
    length = math.sqrt(sum(number * number for number in vector)) or 1.0
    return [number / length for number in vector]


def _shares(counts: Sequence[float]) -> list[float]:
    """Return the square roots of shares; equal shares if there are no counts, which is equally near to all."""
    total = sum(counts)
    return [math.sqrt(count / total if total else 1 / len(counts)) for count in counts]


def _scales(*shares: float) -> list[float]:
    """Map each share to a quarter of a circle, so that zero and one are orthogonal and all have the same length."""
    angles = [math.pi / 2 * min(1.0, share) for share in shares]
    length = math.sqrt(len(shares))
    return [number / length for angle in angles for number in (math.cos(angle), math.sin(angle))]


def _logarithmic(amount: float, most: float) -> float:
    return math.log1p(max(0.0, amount)) / math.log1p(most)


def _in_cells(counts: Mapping[str | None, int], size: int) -> list[int]:
    cells = [0] * size
    for name, count in counts.items():
        cells[_cell(name or "", size)] += count
    return cells


@lru_cache(4096)
def _cell(name: str, size: int) -> int:
    # Python's own hash differs in each process.
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big") % size


def _smoothed(hours: Sequence[int]) -> list[float]:
    return [hours[at] / 2 + (hours[at - 1] + hours[(at + 1) % HOURS]) / 4 for at in range(HOURS)]
