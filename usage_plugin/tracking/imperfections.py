"""Imperfections: what is not known exactly, or was let through, is counted, so that nobody has to trust in silence.

Each worker adds them up in memory, bounded, and hands them to the ledger once a second. What a killed worker had not
handed over is lost; nothing is decided by these numbers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from usage_plugin.domain.operations import Anomaly
from usage_plugin.errors import LedgerError
from usage_plugin.log import get_logger, short_error
from usage_plugin.tracking.flusher import until_free

if TYPE_CHECKING:
    from usage_plugin.domain.clock import Clock
    from usage_plugin.domain.operations import OperationsLog
    from usage_plugin.domain.usage import UsageEvent

Kind = Literal[
    "estimated",  # charged by an estimate, or as reserved; adds up the cost
    "unpriced",  # recorded without a cost, since no price is known
    "unmetered",  # on a route that tells no usage; adds up the flat cost, if there is one
    "unheld",  # recorded without having been admitted, as health checks are; adds up the cost
    "orphaned",  # settled by no hook; adds up what was charged
    "duplicate",  # reported once more after it was settled, and not counted again
    "disputed",  # our cost is not LiteLLM's; adds up the difference
    "overrun",  # more tokens were used than were held on a limit
    "degraded",  # let through without the ledger; adds up the cost
    "ledger_away",  # the ledger did not work for a while; adds up the microseconds between two requests that noticed
    "gap",  # counted by the limits, with no event kept; adds up the cost
]
"""What is counted by the workers."""

MOST_CONCERNED = 500
LONGEST_NAME = 256
OTHERS = "(others)"

log = get_logger()


class Imperfections:
    """Adds imperfections up until they are flushed."""

    def __init__(self, operations: OperationsLog, clock: Clock) -> None:
        """Start with nothing counted."""
        self._operations = operations
        self._clock = clock
        self._counts: dict[tuple[Kind, str], Anomaly] = {}
        self._known: dict[Kind, set[str]] = {}

    def count(self, kind: Kind, concerns: str | None, amount: int = 0) -> None:
        """Count one; `concerns` is a model, a limit or a route."""
        name = self._bounded(kind, concerns or "")
        now = self._clock.now()
        counted = self._counts.get((kind, name))
        times, total, first = (counted.times, counted.amount, counted.first_at) if counted else (0, 0, now)
        self._counts[kind, name] = Anomaly(kind, name, times + 1, total + amount, first, now)

    def look(self, event: UsageEvent) -> None:
        """Count what is not known exactly of an event that was recorded."""
        concerns = event.model or event.call_type
        if event.estimated:
            self.count("estimated", concerns, event.cost or 0)
        if event.cost is None:
            self.count("unpriced", concerns)

    def _bounded(self, kind: Kind, name: str) -> str:
        """Keep names short and few: some are chosen by clients, and each is a row for ever."""
        name = name[:LONGEST_NAME]
        known = self._known.setdefault(kind, set())
        if name not in known:
            if len(known) >= MOST_CONCERNED:
                return OTHERS
            known.add(name)
        return name

    def flush(self, patience: float = 0.0) -> None:
        """Hand everything to the ledger, waiting so many seconds for it; else try again at the next call."""
        if not self._counts:
            return
        try:
            until_free(lambda: self._operations.count_anomalies(list(self._counts.values())), patience)
        except LedgerError as error:
            log.debug("ledger.imperfections_delayed", **short_error(error))
            return
        self._counts.clear()
