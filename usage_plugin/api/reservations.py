"""Reservations: budgets that a program holds while it works, with the proxy's admission and ledger."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from usage_plugin.api.validation import outcome_of
from usage_plugin.domain.money import to_decimal
from usage_plugin.errors import BudgetExceededError, NotAdmittedError, UsagePluginError
from usage_plugin.log import get_logger
from usage_plugin.tracking.admission.decisions import Refusal
from usage_plugin.tracking.admission.recorder import OpenRequest
from usage_plugin.tracking.admission.refusal_text import sentence

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from decimal import Decimal

    from typing_extensions import Unpack

    from usage_plugin.api.results import Money
    from usage_plugin.api.validation import Facts
    from usage_plugin.domain.usage import UsageEvent
    from usage_plugin.runtime import Runtime
    from usage_plugin.tracking.admission.decisions import Admitted
    from usage_plugin.tracking.admission.demands import Ask

_BY_LIMIT = frozenset({"spent", "busy", "too_large"})

log = get_logger()


class Reservation:
    """A held amount, until it is settled or released."""

    def __init__(self, runtime: Runtime, admitted: Admitted) -> None:
        """Set the admitted request; `reserve` creates reservations."""
        self._runtime = runtime
        self._request = OpenRequest(admitted, runtime.clock.monotonic())

    @property
    def event_id(self) -> str:
        """The id of the event that settling records."""
        return self._request.event_id

    @property
    def amount(self) -> Decimal:
        """The held amount in USD."""
        return to_decimal(self._request.admitted.event.reserved)

    def settle(self, cost: Money | None, **facts: Unpack[Facts]) -> UsageEvent:
        """Charge the actual cost, release the rest, and record one event.

        A cost above the reserved amount is charged in full, and the event has the difference as `excess`.

        Args:
            cost: the actual cost in USD; None if unknown: the reserved amount is charged.
            facts: the usage, as for `UsageTracker.record_usage`; model and provider default to those of the
                reservation.

        Raises:
            MoneyError: the cost is not a valid amount.
            UsagePluginError: the reservation was settled or released before.
        """
        outcome = outcome_of(cost, facts)
        if cost is None:
            outcome = outcome._replace(as_reserved=True)
        recorded = self._runtime.recorder.record(self._request, outcome)
        if recorded is None:
            raise UsagePluginError(f"The reservation {self.event_id} was already settled or released.")
        self._runtime.anomalies.count_event(recorded.event)
        return recorded.event

    async def release(self) -> None:
        """Release the held amount without recording an event; no effect if it was settled or released before."""
        if self._request.settled:
            return
        self._request.settled = True
        if self._request.admitted.holds:
            # Shielded, so that a cancelled task still releases its hold.
            await asyncio.shield(asyncio.ensure_future(self._runtime.request_ledger.release(self.event_id)))


@asynccontextmanager
async def reserve(runtime: Runtime, ask: Ask) -> AsyncIterator[Reservation]:
    """Hold the requested amount for the length of the context.

    Raises:
        BudgetExceededError: a limit does not have the amount left.
        NotAdmittedError: the request was refused for another reason.
    """
    decision = await runtime.admission.admit(ask)
    runtime.refusals.add_all(decision)
    outcome = decision.outcome
    if isinstance(outcome, Refusal):
        raise _error(outcome, runtime.config.contact)
    for name in outcome.warnings:
        log.warning("limit.exceeded", limit=name, user=ask.subjects.user, action="warn")
    reservation = Reservation(runtime, outcome)
    try:
        yield reservation
    finally:
        await reservation.release()


def _error(refusal: Refusal, contact: str) -> NotAdmittedError:
    kind = BudgetExceededError if refusal.reason in _BY_LIMIT else NotAdmittedError
    return kind(
        sentence(refusal, contact),
        reason=refusal.reason,
        facts=refusal.facts,
        retry_after=None if refusal.retry_after is None else refusal.retry_after / 1e6,
    )
