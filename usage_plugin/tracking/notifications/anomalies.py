"""Anomalies: counts of inexact records and of exceptions to the limits, so that inaccuracy is visible.

Each worker counts them in bounded memory, and its keeper's thread hands the counts over to the ledger once a second. If
a worker is killed, counts that were not handed over are lost. No decision depends on these numbers.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Literal

from usage_plugin.domain.operations import Anomaly
from usage_plugin.errors import LedgerError

if TYPE_CHECKING:
    from usage_plugin.domain.clock import Clock
    from usage_plugin.domain.operations import OperationsLog
    from usage_plugin.domain.usage import UsageEvent

Kind = Literal[
    "estimated",  # charged by an estimate, or as reserved; sums the cost
    "unpriced",  # recorded without a cost, since no price is known
    "unmetered",  # on a route that reports no usage; sums the flat cost, if there is one
    "unheld",  # recorded without an admission, such as health checks; sums the cost
    "orphaned",  # not settled by any hook; sums the charges
    "duplicate",  # reported again after it was settled, and not charged again
    "disputed",  # our cost differs from LiteLLM's; sums the difference
    "overrun",  # more tokens were used than were held on a limit
    "degraded",  # admitted without the ledger; sums the cost
    "ledger_away",  # the ledger did not work for a while; sums the microseconds from a failed request to a success
    "gap",  # charged on the limits, but no event was kept; sums the cost
]
"""The kinds of anomalies that workers count."""

MOST_CONCERNED = 500
LONGEST_NAME = 256
OTHERS = "(others)"


class Anomalies:
    """Count anomalies until they are handed over."""

    def __init__(self, clock: Clock) -> None:
        """Start with no counts."""
        self._clock = clock
        self._lock = threading.Lock()
        self._handing_over = threading.Lock()
        self._counts: dict[tuple[Kind, str], Anomaly] = {}
        self._known: dict[Kind, set[str]] = {}

    def count(self, kind: Kind, concerns: str | None, amount: int = 0) -> None:
        """Count one anomaly. `concerns` is a model, a limit or a route."""
        name = self._bounded(kind, concerns or "")
        now = self._clock.now()
        with self._lock:
            counted = self._counts.get((kind, name))
            times, total, first = (counted.times, counted.amount, counted.first_at) if counted else (0, 0, now)
            self._counts[kind, name] = Anomaly(kind, name, times + 1, total + amount, first, now)

    def count_event(self, event: UsageEvent) -> None:
        """Count the anomalies of a recorded event: an estimate, or no price."""
        concerns = event.model or event.call_type
        if event.estimated:
            self.count("estimated", concerns, event.cost or 0)
        if event.cost is None:
            self.count("unpriced", concerns)

    def _bounded(self, kind: Kind, name: str) -> str:
        """Limit the length and number of names: clients choose some of them, and each is a permanent row."""
        name = name[:LONGEST_NAME]
        known = self._known.setdefault(kind, set())
        if name not in known:
            if len(known) >= MOST_CONCERNED:
                return OTHERS
            known.add(name)
        return name

    def hand_over(self, operations: OperationsLog) -> None:
        """Add the counts to those of the ledger. One call at a time: then all earlier counts are there.

        Raises:
            LedgerError: the counts are kept for the next call.
        """
        with self._handing_over:
            with self._lock:
                taken, self._counts = self._counts, {}
            if not taken:
                return
            try:
                operations.count_anomalies(list(taken.values()))
            except LedgerError:
                with self._lock:
                    for key, later in self._counts.items():
                        taken[key] = _sum_of(taken[key], later) if key in taken else later
                    self._counts = taken
                raise


def _sum_of(earlier: Anomaly, later: Anomaly) -> Anomaly:
    return later._replace(
        times=earlier.times + later.times, amount=earlier.amount + later.amount, first_at=earlier.first_at
    )
