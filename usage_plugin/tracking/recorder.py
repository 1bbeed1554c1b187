"""The recorder: a finished request becomes one usage event, exactly once, whoever reports its end.

`record` is synchronous and commits before it returns, because LiteLLM drops whatever awaits in its success callback at
SIGTERM. If another process holds the ledger's lock for longer than a blink, or the ledger does not work, the settlement
waits in a list that is retried until it is written.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple

from usage_plugin.domain.ledger import NotSettled, Settled
from usage_plugin.domain.usage import NO_TOKENS
from usage_plugin.encoding import encode_event
from usage_plugin.errors import LedgerBusyError, LedgerError
from usage_plugin.log import get_logger, short_error
from usage_plugin.tracking.admission import SPIN_NS, Admitted, Pressure
from usage_plugin.tracking.demands import Demand, Standing, charged_by, tightest_of_callers_own
from usage_plugin.tracking.listeners import Audience

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from usage_plugin.domain.clock import Clock
    from usage_plugin.domain.ledger import AccountKey, Balance, Charge, Ledger
    from usage_plugin.domain.money import Nano
    from usage_plugin.domain.usage import CostSource, Status, TokenUsage, UsageEvent
    from usage_plugin.tracking.alerts import Alerts
    from usage_plugin.tracking.cache import UsageCache
    from usage_plugin.tracking.imperfections import Imperfections
    from usage_plugin.tracking.rules import RulesInForce

MOST_PENDING = 10_000
"""So many settlements wait in memory while the ledger does not take them. What comes on top leaves its hold behind, to
be charged when this worker ends, and a line in the log."""
_FIRST_DELAY = 0.0005
_TURN_NS = 3_000_000
"""For so long what has waited is written at a stretch: others wait for the loop, and more comes meanwhile."""

log = get_logger()


class Outcome(NamedTuple):
    """How a request ended, as far as the provider or LiteLLM said. A NamedTuple, as the event that is made of it.

    Attributes:
        model: the `model_name` that was billed; None if none was.
        cost: nano-dollars; None if no price is known.
        usage: the provider's usage as it came, numbers only.
        as_reserved: nobody knows what it used, so what was held is charged.
        service_tier: under which it was billed, if it was not the ordinary one.
        disputed_by: by how many nano-dollars our cost and LiteLLM's differ, where that is more than 1 % and a
            micro-dollar; else 0.
        disputed: which amounts differ and which quantities explain it, for the log; empty where none does.
    """

    status: Status
    model: str | None = None
    served_model: str | None = None
    deployment: str | None = None
    provider: str | None = None
    tokens: TokenUsage = NO_TOKENS
    cost: Nano | None = 0
    cost_source: CostSource = "none"
    cache_hit: bool = False
    estimated: bool = False
    error: str | None = None
    usage: Mapping[str, int] | None = None
    as_reserved: bool = False
    service_tier: str | None = None
    disputed_by: Nano = 0
    disputed: str = ""


class OpenRequest:
    """A request that was admitted and has not ended; `settled` once its end is on the books or on the way there."""

    __slots__ = ("admitted", "delivered", "settled", "started")

    def __init__(self, admitted: Admitted, started: int) -> None:
        """Remember what was admitted; `started` is the monotonic clock's."""
        self.admitted = admitted
        self.started = started
        self.settled = False
        self.delivered: Callable[[], Any] | None = None
        """Tells what the adapter knows of an answer that came, until it knows whether the client got it."""

    @property
    def event_id(self) -> str:
        """The id of the reservation, and of the event that it becomes."""
        return self.admitted.event.event_id


class Recorded(NamedTuple):
    """What was written: the event, and the tightest of the caller's own limits afterwards."""

    event: UsageEvent
    standing: Standing | None


class _Settlement(NamedTuple):
    admitted: Admitted
    event: UsageEvent
    demands: Sequence[Demand]
    encoded: str | None
    """None: the outbox is full, so only the accounts learn of it."""


class Recorder:
    """Settles requests in the ledger, and tells the cache and whoever listens."""

    def __init__(
        self,
        ledger: Ledger,
        rules: RulesInForce,
        cache: UsageCache,
        clock: Clock,
        *,
        imperfections: Imperfections,
        alerts: Alerts,
        audience: Audience[UsageEvent] | None = None,
        pressure: Pressure | None = None,
    ) -> None:
        """Take the parts."""
        self._ledger = ledger
        self._rules = rules
        self._cache = cache
        self._clock = clock
        self._imperfections = imperfections
        self._alerts = alerts
        self._audience = audience or Audience()
        self._pressure = pressure or Pressure()
        self._pending: deque[_Settlement] = deque()
        self._retrying: asyncio.Task[None] | None = None

    @property
    def pending(self) -> int:
        """How many settlements wait for the ledger's lock."""
        return len(self._pending)

    def record(self, request: OpenRequest, outcome: Outcome) -> Recorded | None:
        """Settle a request; None if it was settled before, which is expected."""
        if request.settled:
            return None
        request.settled = True
        event = self._event(request, outcome)
        # What is held and never charged, a slot of `max_parallel_requests`, is let go with the rest.
        held = [d for d in request.admitted.demands if d.limit.is_charged]
        demands = charged_by(event, request.admitted.subjects, self._rules.limits)
        if outcome.as_reserved:
            # A limit that came meanwhile is charged as well.
            accounts = {demand.account for demand in held}
            demands = [*held, *(demand for demand in demands if demand.account not in accounts)]
        else:
            amounts = {demand.account: demand.amount for demand in held}
            if excess := _excess(event, amounts, demands):
                event = event._replace(excess=excess)
            self._count_overruns(amounts, demands)
        if event.degraded:
            self._imperfections.count("degraded", event.model, event.cost or 0)
        return Recorded(event, self._charge(request.admitted, event, demands))

    def _count_overruns(self, held: Mapping[AccountKey, int], charged: Sequence[Demand]) -> None:
        """Count where more tokens were used than were held; for cost, the event has its `excess`."""
        for demand in charged:
            if demand.limit.unit != "usd" and demand.amount > held.get(demand.account, demand.amount):
                self._imperfections.count("overrun", demand.limit.name)

    def _charge(self, admitted: Admitted, event: UsageEvent, demands: Sequence[Demand]) -> Standing | None:
        encoded = None if self._pressure.leaves_gaps else encode_event(event)
        if encoded is None:
            self._imperfections.count("gap", event.model, event.cost or 0)
        return tightest_of_callers_own(self._settle_or_wait(_Settlement(admitted, event, demands, encoded)))

    def _settle_or_wait(self, settlement: _Settlement) -> Sequence[Standing]:
        """Write it now; what cannot be written now waits, behind what waits already, and stands nowhere yet."""
        if not self._pending:
            try:
                return self._settle(settlement)
            except LedgerError as error:
                if not isinstance(error, LedgerBusyError):
                    log.error("ledger.settle_failed", event_id=settlement.event.event_id, **short_error(error))  # noqa: TRY400
        self._later(settlement)
        return ()

    def _event(self, request: OpenRequest, outcome: Outcome) -> UsageEvent:
        draft = request.admitted.event
        duration = max(0, self._clock.monotonic() - request.started)
        if outcome.as_reserved:
            return draft._replace(status=outcome.status, duration_us=duration, error=outcome.error)
        # A cache hit costs nothing and counts as no tokens; the raw usage keeps what was replayed.
        tokens = NO_TOKENS if outcome.cache_hit else outcome.tokens
        return draft.changed(
            status=outcome.status,
            duration_us=duration,
            model=outcome.model or draft.model,
            served_model=outcome.served_model,
            deployment=outcome.deployment,
            provider=outcome.provider or draft.provider,
            input_tokens=tokens.input_tokens,
            output_tokens=tokens.output_tokens,
            cached_input_tokens=tokens.cached_input_tokens,
            cache_write_tokens=tokens.cache_write_tokens,
            reasoning_tokens=tokens.reasoning_tokens,
            cost=outcome.cost,
            cost_source=outcome.cost_source,
            estimated=outcome.estimated,
            cache_hit=outcome.cache_hit,
            service_tier=outcome.service_tier,
            error=outcome.error,
            usage=outcome.usage,
            disputed=outcome.disputed_by > 0,
        )

    def _settle(self, settlement: _Settlement) -> Sequence[Standing]:
        """Settle now, or raise; the lock is tried for some 300 µs. Gives how its accounts stand then."""
        admitted, event, demands, encoded = settlement
        charges = [demand.charge() for demand in demands]
        started = time.monotonic_ns()
        while True:
            try:
                settled: Settled | NotSettled | None
                if not admitted.holds:
                    settled = self._ledger.record(event.event_id, charges, encoded)
                else:
                    settled = self._ledger.settle(event.event_id, charges, encoded)
                    if settled is NotSettled.UNKNOWN:
                        settled = self._record_unknown(event, charges, encoded)
            except LedgerBusyError:
                if time.monotonic_ns() - started > SPIN_NS:
                    raise
                os.sched_yield()  # whoever holds the lock may need this core
            else:
                return self._tell(settlement, settled) if isinstance(settled, Settled) else ()

    def _record_unknown(self, event: UsageEvent, charges: Sequence[Charge], encoded: str | None) -> Settled | None:
        """Record a request whose reservation the ledger does not know: its usage is owed all the same."""
        recorded = self._ledger.record(event.event_id, charges, encoded)
        if recorded:
            log.warning("ledger.reservation_unknown", event_id=event.event_id, cost=event.cost)
            self._imperfections.count("unheld", event.model, event.cost or 0)
        return recorded

    def _tell(self, settlement: _Settlement, settled: Settled) -> Sequence[Standing]:
        """Tell the cache, the alerts and whoever listens what was written, whether it waited before or not."""
        admitted, event, demands, encoded = settlement
        if encoded is not None:
            self._cache.add(settled.seq, event)
            if self._audience.anybody:
                self._audience.tell(event, len(encoded))
        standings = [
            Standing(demand, balance if demand.since is None else _sum_after(demand, admitted, balance))
            for demand in demands
            if (balance := settled.balances.get(demand.account)) is not None
        ]
        for standing in standings:
            self._alerts.seen(standing)
        return standings

    def withdraw(self, event_id: str) -> bool:
        """Forget a settlement that is still pending, and return whether there was one; nothing of it is written."""
        for settlement in self._pending:
            if settlement.event.event_id == event_id:
                self._pending.remove(settlement)
                return True
        return False

    def _later(self, settlement: _Settlement) -> None:
        if len(self._pending) >= MOST_PENDING:
            self._give_up(settlement)
            return
        self._pending.append(settlement)
        if self._retrying is None or self._retrying.done():
            self._retrying = asyncio.get_running_loop().create_task(self._retry())

    def _give_up(self, settlement: _Settlement) -> None:
        event = settlement.event
        log.error("ledger.settlement_given_up", event_id=event.event_id, cost=event.cost)
        self._imperfections.count("gap", event.model, event.cost or 0)

    async def _retry(self) -> None:
        delay = _FIRST_DELAY
        turn_ends = time.monotonic_ns() + _TURN_NS
        while self._pending:
            try:
                self._settle(self._pending[0])
            except LedgerBusyError:
                delay = min(0.005, delay * 1.5)
            except LedgerError as error:
                log.error("ledger.settle_failed", pending=self.pending, **short_error(error))  # noqa: TRY400
                if isinstance(error.__cause__, UnicodeError | OverflowError):
                    # It can never be written, and must not hold up the others; its hold is charged when we end.
                    self._give_up(self._pending.popleft())
                    continue
                delay = min(5.0, delay * 4)
            else:
                self._pending.popleft()
                delay = _FIRST_DELAY
                if time.monotonic_ns() < turn_ends:
                    continue
            await asyncio.sleep(0 if delay == _FIRST_DELAY else delay * random.uniform(1, 2))  # noqa: S311  # jitter
            turn_ends = time.monotonic_ns() + _TURN_NS

    def free_slots(self, request: OpenRequest) -> None:
        """Free the slots of a request that is over and not settled yet; what it holds of money stays held."""
        slots = [d.account for d in request.admitted.demands if not d.limit.is_charged]
        if slots and not request.settled and request.admitted.holds:
            try:
                self._ledger.free(request.event_id, slots)
            except LedgerError as error:
                # They are free once the request is settled.
                log.warning("ledger.slots_not_freed", event_id=request.event_id, **short_error(error))

    async def drain(self, seconds: float) -> None:
        """Write what is pending; what cannot be written in time stays reserved and is recovered at the next start."""
        if self._retrying is not None:
            await asyncio.wait([self._retrying], timeout=seconds)


def _excess(event: UsageEvent, held: Mapping[AccountKey, int], charged: Sequence[Demand]) -> Nano:
    """Say by how much the cost passes what was held for it, on the account where that is most."""
    if not event.cost:
        return 0
    least = min([held.get(d.account, 0) for d in charged if d.limit.unit == "usd"], default=event.reserved)
    return max(0, event.cost - least)


def _sum_after(demand: Demand, admitted: Admitted, bucket: Balance) -> Balance:
    """Work out the sum of a rolling window after settling, as far as it is known: the ledger gives one bucket of it."""
    before = admitted.balances.get(demand.account)
    return bucket if before is None else before._replace(spent=before.spent + demand.amount)
