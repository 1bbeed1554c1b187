"""Refusals: counted instead of stored one by one, since clients retry in bursts, and a refusal must stay cheap.

Each worker counts them in bounded memory, and its keeper's thread hands the counts over to the ledger once a second. If
a worker is killed, counts that were not handed over are lost. No decision depends on these numbers.
"""

from __future__ import annotations

import json
import threading
from collections import Counter, deque
from typing import TYPE_CHECKING

from usage_plugin.domain.operations import RefusalCount
from usage_plugin.domain.refusals import RefusedRequest
from usage_plugin.domain.windows import to_instant
from usage_plugin.errors import LedgerError
from usage_plugin.tracking.admission.decisions import Refusal
from usage_plugin.tracking.notifications.publishers import Publisher

if TYPE_CHECKING:
    from usage_plugin.domain.operations import OperationsLog
    from usage_plugin.tracking.admission.decisions import Decision

MOST_COUNTED = 10_000
MOST_DETAILED = 1_000
OTHERS = "(others)"


def as_told(refusal: Refusal) -> RefusedRequest:
    """Return a refusal in the form in which plugins are notified."""
    demand = refusal.demand
    if demand is None:
        return RefusedRequest(refusal.ref, refusal.at, refusal.reason, refusal.user, refusal.model)
    resets = refusal.resets_at
    return RefusedRequest(
        ref=refusal.ref,
        at=refusal.at,
        reason=refusal.reason,
        user=refusal.user,
        model=refusal.model,
        limit=demand.limit.name,
        subject=demand.limit.names_of(demand.subject),
        unit=demand.limit.unit,
        maximum=demand.maximum,
        spent=refusal.balance.spent,
        reserved=refusal.balance.reserved,
        needed=demand.amount,
        resets_at=None if resets is None else to_instant(resets),
    )


class RefusalLog:
    """Count refusals until they are handed over, and notify plugins of those that are enforced."""

    def __init__(self, publisher: Publisher[RefusedRequest] | None = None) -> None:
        """Start with no counts."""
        self._lock = threading.Lock()
        self._handing_over = threading.Lock()
        self._publisher = publisher or Publisher()
        self._counts: Counter[tuple[int, str, str, str]] = Counter()
        self._details: deque[Refusal] = deque(maxlen=MOST_DETAILED)

    def add_all(self, decision: Decision) -> None:
        """Count the refusals of a decision: those of dry runs, and the enforced one if there is one."""
        for refusal in decision.dry_run_refusals:
            self.add(refusal)
        if isinstance(decision.outcome, Refusal):
            self.add(decision.outcome)

    def add(self, refusal: Refusal) -> None:
        """Count a refusal and keep its details."""
        limit = refusal.demand.limit.name if refusal.demand else ""
        subject = refusal.demand.subject if refusal.demand else refusal.user
        reason = refusal.reason if refusal.is_enforced else f"dry_run:{refusal.reason}"
        key = (refusal.at // 60_000_000, limit, subject, reason)
        with self._lock:
            self._count(key, 1)
            self._details.append(refusal)
        if self._publisher.has_subscribers and refusal.is_enforced:
            self._publisher.publish(as_told(refusal))

    def _count(self, key: tuple[int, str, str, str], times: int) -> None:
        if key not in self._counts and len(self._counts) >= MOST_COUNTED:
            key = (*key[:2], OTHERS, key[3])
        self._counts[key] += times

    def hand_over(self, operations: OperationsLog) -> None:
        """Add the counts to those of the ledger, with the details of the last refusals. One call at a time.

        Raises:
            LedgerError: the counts are kept for the next call.
        """
        with self._handing_over:
            with self._lock:
                counts, self._counts = self._counts, Counter()
                details, self._details = self._details, deque(maxlen=MOST_DETAILED)
            if not counts:
                return
            facts = [(r.ref, r.at, json.dumps(r.facts, ensure_ascii=False)) for r in details]
            try:
                operations.count_refusals([RefusalCount(*key, count) for key, count in counts.items()], facts)
            except LedgerError:
                with self._lock:
                    for key, times in counts.items():
                        self._count(key, times)
                    # The newest are kept.
                    details.extend(self._details)
                    self._details = details
                raise
