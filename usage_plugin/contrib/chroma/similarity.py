"""Queries of vectors: the users similar to a user, and the users with the largest change of behaviour."""

from __future__ import annotations

import heapq
from collections import defaultdict
from datetime import timedelta
from typing import TYPE_CHECKING, NamedTuple

from usage_plugin.domain.behaviour import distances, mean

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from datetime import date

    from usage_plugin.contrib.chroma.vector_store import Vector, Vectors

EARLIER_WEEKS = 8
"""The maximum number of earlier weeks with which a week is compared."""

LEAST_REQUESTS = 10
"""The minimum requests of a week in a comparison; fewer do not show a user's behaviour."""


class Compared(NamedTuple):
    """The comparison of a user with another user, or with the user's own earlier weeks.

    Attributes:
        vector: The user's vector.
        distance: The distance between 0 (equal) and 1 (nothing in common).
        mostly: The part of the vector with the largest share of the distance.
        weeks: The number of earlier weeks in the comparison; 0 for a comparison with another user.
    """

    vector: Vector
    distance: float
    mostly: str
    weeks: int = 0


def similar_to(vectors: Vectors, one: Vector, most: int) -> list[Compared]:
    """Return the users most similar to a user in the same week, the most similar first."""
    return [_compared(other, distances(one.numbers, other.numbers)) for other in vectors.near(one, most)]


def outliers(vectors: Vectors, week: date, most: int) -> list[Compared]:
    """Return the users with the largest distance between a week and the mean of their earlier weeks, largest first."""
    return heapq.nlargest(most, _moved(vectors, week), key=lambda one: one.distance)


def _moved(vectors: Vectors, week: date) -> Iterator[Compared]:
    before = [week - timedelta(days=7) * back for back in range(1, EARLIER_WEEKS + 1)]
    for page in vectors.in_week(week):
        now = {one.user: one for one in page if one.totals.requests >= LEAST_REQUESTS}
        earlier: defaultdict[str, list[Vector]] = defaultdict(list)
        for one in vectors.of(now, before):
            if one.totals.requests >= LEAST_REQUESTS:
                earlier[one.user].append(one)
        for user, weeks in earlier.items():
            middle = mean([one.numbers for one in weeks])
            yield _compared(now[user], distances(middle, now[user].numbers), len(weeks))


def _compared(vector: Vector, apart: Mapping[str, float], weeks: int = 0) -> Compared:
    return Compared(vector, sum(apart.values()), max(apart, key=apart.__getitem__), weeks)
