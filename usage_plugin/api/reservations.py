"""Reservations: a budget that a program holds while it works, by the same admission and ledger as the proxy's."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from usage_plugin.api.ledger_retry import when_free
from usage_plugin.api.validation import given
from usage_plugin.domain.money import to_decimal
from usage_plugin.errors import BudgetExceededError, LedgerError, NotAdmittedError, UsagePluginError
from usage_plugin.log import get_logger, short_error
from usage_plugin.tracking.admission import Refusal
from usage_plugin.tracking.recorder import OpenRequest
from usage_plugin.tracking.refusal_words import sentence
from usage_plugin.tracking.refusals import describe

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from decimal import Decimal

    from typing_extensions import Unpack

    from usage_plugin.api.results import Money
    from usage_plugin.api.validation import Facts
    from usage_plugin.domain.usage import UsageEvent
    from usage_plugin.runtime import Runtime
    from usage_plugin.tracking.admission import Admitted
    from usage_plugin.tracking.demands import Ask

_BY_LIMIT = frozenset({"spent", "busy", "too_large"})

log = get_logger()


class Reservation:
    """What is held until it is settled or released."""

    def __init__(self, runtime: Runtime, admitted: Admitted) -> None:
        """Take what was admitted; `reserve` makes them."""
        self._runtime = runtime
        self._request = OpenRequest(admitted, runtime.clock.monotonic())

    @property
    def event_id(self) -> str:
        """The id of the event that it becomes when it is settled."""
        return self._request.event_id

    @property
    def amount(self) -> Decimal:
        """What is held, in USD."""
        return to_decimal(self._request.admitted.event.reserved)

    def settle(self, cost: Money | None, **facts: Unpack[Facts]) -> UsageEvent:
        """Charge what the work really cost, free the rest, and record it as one event.

        More than was reserved is charged as well, and marked on the event as `excess`.

        Args:
            cost: in USD. None: nobody knows, so what was reserved is charged.
            facts: what was used, as for `UsageTracker.record_usage`; model and provider are those of the reservation
                where they are not given.

        Raises:
            MoneyError: the cost is no amount.
            UsagePluginError: it is over already.
        """
        outcome = given(cost, facts)
        if cost is None:
            outcome = outcome._replace(as_reserved=True)
        recorded = self._runtime.recorder.record(self._request, outcome)
        if recorded is None:
            raise UsagePluginError(f"The reservation {self.event_id} is over: it was settled or released before.")
        self._runtime.imperfections.look(recorded.event)
        return recorded.event

    async def release(self) -> None:
        """Free what is held, and leave no trace of it; nothing happens if it is over already."""
        if self._request.settled:
            return
        self._request.settled = True
        if self._request.admitted.holds:
            # Shielded, so that whoever is cancelled meanwhile leaves nothing behind.
            await asyncio.shield(asyncio.ensure_future(self._release()))

    async def _release(self) -> None:
        try:
            await when_free(lambda: self._runtime.ledger.release(self.event_id))
        except LedgerError as error:
            # It stays held, and is charged when this program ends: too much is safe.
            log.error("ledger.release_failed", event_id=self.event_id, **short_error(error))  # noqa: TRY400


@asynccontextmanager
async def reserve(runtime: Runtime, ask: Ask) -> AsyncIterator[Reservation]:
    """Hold what is asked for as long as the context lasts.

    Raises:
        BudgetExceededError: a limit has no room.
        NotAdmittedError: it cannot be admitted for another reason.
    """
    outcome, unfelt = await runtime.admission.admit(ask)
    for refusal in unfelt:
        runtime.refusals.add(refusal)
    if isinstance(outcome, Refusal):
        runtime.refusals.add(outcome)
        raise _error(outcome, runtime.config.contact)
    for name in outcome.warnings:
        log.warning("limit.passed", limit=name, user=ask.subjects.user, action="warn")
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
        facts=describe(refusal),
        retry_after=None if refusal.retry_after is None else refusal.retry_after / 1e6,
    )
