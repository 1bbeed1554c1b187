"""Anomalies: counts of inexact records and of exceptions to the limits, so that inaccuracy is visible.

Each worker counts them in bounded memory, and writes the counts to the ledger once a second. If a worker is killed,
its unwritten counts are lost. No decision depends on these numbers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from usage_plugin.domain.operations import Anomaly
from usage_plugin.errors import LedgerError
from usage_plugin.log import get_logger, short_error
from usage_plugin.tracking.ledger_retry import wait_while_busy

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

log = get_logger()


class Anomalies:
    """Count anomalies until they are flushed."""

    def __init__(self, operations: OperationsLog, clock: Clock) -> None:
        """Start with no counts."""
        self._operations = operations
        self._clock = clock
        self._counts: dict[tuple[Kind, str], Anomaly] = {}
        self._known: dict[Kind, set[str]] = {}

    def count(self, kind: Kind, concerns: str | None, amount: int = 0) -> None:
        """Count one anomaly. `concerns` is a model, a limit or a route."""
        name = self._bounded(kind, concerns or "")
        now = self._clock.now()
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

    def flush(self, timeout: float = 0.0) -> None:
        """Write the counts to the ledger; wait up to `timeout` seconds. After a failure the next call retries."""
        if not self._counts:
            return
        try:
            wait_while_busy(lambda: self._operations.count_anomalies(list(self._counts.values())), timeout)
        except LedgerError as error:
            log.debug("ledger.anomalies_delayed", **short_error(error))
            return
        self._counts.clear()
