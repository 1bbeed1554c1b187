"""Statistics of the batches that one worker sends to a shared ledger, for `status`."""

from __future__ import annotations

from typing import NamedTuple

_WEIGHT = 0.05
"""The weight of the newest batch in the averages: they follow a change within some twenty batches."""


class BatchSummary(NamedTuple):
    """The state of the batches.

    Attributes:
        batches: the number of answered batches since the start.
        verbs: the average number of verbs in a batch.
        round_trip: the average time until the answer, in seconds.
        slowest: the longest such time since the start, in seconds.
        pending: the number of settlements without an answer.
        is_reachable: whether the last batch was answered.
    """

    batches: int
    verbs: float
    round_trip: float
    slowest: float
    pending: int
    is_reachable: bool


class BatchStatistics:
    """Moving averages over the last batches."""

    def __init__(self) -> None:
        """Start without a batch."""
        self._batches = 0
        self._verbs = self._round_trip = self._slowest = 0.0

    def add(self, verbs: int, seconds: float) -> None:
        """Add an answered batch."""
        weight = _WEIGHT if self._batches else 1.0
        self._batches += 1
        self._verbs += weight * (verbs - self._verbs)
        self._round_trip += weight * (seconds - self._round_trip)
        self._slowest = max(self._slowest, seconds)

    def summary(self, *, pending: int, is_reachable: bool) -> BatchSummary:
        """Return the present state."""
        return BatchSummary(self._batches, self._verbs, self._round_trip, self._slowest, pending, is_reachable)
