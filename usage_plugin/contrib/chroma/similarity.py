"""Questions that vectors answer: who behaves like somebody, and who has moved furthest from their own earlier weeks."""

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
"""With so many weeks before it a week is compared, or with those that there are."""

LEAST_REQUESTS = 10
"""A week with fewer says nothing of what somebody does, and is not compared with others of theirs."""


class Compared(NamedTuple):
    """A user beside another, or beside what they did before.

    Attributes:
        vector: theirs.
        distance: between 0, the same, and 1, nothing in common.
        mostly: the part of the vector that makes most of the distance.
        weeks: how many earlier weeks it was compared with; 0 where it was another user.
    """

    vector: Vector
    distance: float
    mostly: str
    weeks: int = 0


def similar_to(vectors: Vectors, one: Vector, most: int) -> list[Compared]:
    """Find who was most like somebody in the same week, the most alike first."""
    return [_compared(other, distances(one.numbers, other.numbers)) for other in vectors.near(one, most)]


def outliers(vectors: Vectors, week: date, most: int) -> list[Compared]:
    """Find who was furthest, in a week, from the middle of their own weeks before, the furthest first."""
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
