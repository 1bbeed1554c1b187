"""The recorder: turn each finished request into one usage event, exactly once, even if several callbacks report it.

`record` is synchronous and commits before it returns, because at SIGTERM LiteLLM drops success callbacks that await.
If another process holds the ledger's lock for more than 300 µs, or the ledger does not work, the settlement is queued.
The queue is retried until everything is written.
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
from usage_plugin.tracking.admission.decide import SPIN_NS, WorkerFaults
from usage_plugin.tracking.admission.demands import AccountStatus, Demand, charged_by, most_constrained_status
from usage_plugin.tracking.notifications.publishers import Publisher

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from usage_plugin.domain.clock import Clock
    from usage_plugin.domain.ledger import AccountKey, Balance, Charge, Ledger
    from usage_plugin.domain.money import Nano
    from usage_plugin.domain.usage import CostSource, Status, TokenUsage, UsageEvent
    from usage_plugin.tracking.admission.active_limits import ActiveLimits
    from usage_plugin.tracking.admission.alerts import Alerts
    from usage_plugin.tracking.admission.decisions import Admitted
    from usage_plugin.tracking.history.cache import UsageCache
    from usage_plugin.tracking.notifications.anomalies import Anomalies

MOST_PENDING = 10_000
"""The maximum number of queued settlements in memory while the ledger does not take them. Beyond it the hold stays and
is charged when this worker ends, and a line is logged."""
_FIRST_DELAY = 0.0005
_TURN_NS = 3_000_000
"""The maximum time, in nanoseconds, to write queued settlements without yielding to the event loop. Requests wait for
the loop meanwhile, and their settlements are queued."""

log = get_logger()


class Outcome(NamedTuple):
    """The end of a request, as reported by the provider or LiteLLM. A NamedTuple, like the event built from it.

    Attributes:
        model: the `model_name` that was billed; None if none was.
        cost: nano-dollars; None if no price is known.
        usage: the provider's usage as reported, numbers only.
        as_reserved: whether the amounts held are charged, because the actual usage is unknown.
        service_tier: the service tier that was billed, if it was not the ordinary one.
        disputed_by: the difference between our cost and LiteLLM's in nano-dollars, if it is more than 1 % and more
            than a micro-dollar; else 0.
        disputed: the amounts that differ and the quantities that explain it, for the log; empty if none differ.
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
    """An admitted request that has not ended. `settled` is True once its settlement is written or queued."""

    __slots__ = ("admitted", "delivered", "settled", "started")

    def __init__(self, admitted: Admitted, started: int) -> None:
        """Set the admission and the start time, which is the monotonic clock's."""
        self.admitted = admitted
        self.started = started
        self.settled = False
        self.delivered: Callable[[], Any] | None = None
        """Returns the adapter's facts about a received answer, until it is known whether the client got it."""

    @property
    def event_id(self) -> str:
        """The id of the reservation and of its event."""
        return self.admitted.event.event_id


class Recorded(NamedTuple):
    """The recorded event, and the status of the most constrained of the caller's own limits afterwards."""

    event: UsageEvent
    account_status: AccountStatus | None


class _Settlement(NamedTuple):
    admitted: Admitted
    event: UsageEvent
    demands: Sequence[Demand]
    encoded: str | None
    """None if the outbox is full, so that only the accounts are charged."""


class Recorder:
    """Settle requests in the ledger, and notify the cache, the alerts and the subscribers."""

    def __init__(
        self,
        ledger: Ledger,
        rules: ActiveLimits,
        cache: UsageCache,
        clock: Clock,
        *,
        anomalies: Anomalies,
        alerts: Alerts,
        publisher: Publisher[UsageEvent] | None = None,
        faults: WorkerFaults | None = None,
    ) -> None:
        """Set the parts. Without a `publisher`, events have no subscribers."""
        self._ledger = ledger
        self._rules = rules
        self._cache = cache
        self._clock = clock
        self._anomalies = anomalies
        self._alerts = alerts
        self._publisher = publisher or Publisher()
        self._faults = faults or WorkerFaults()
        self._pending: deque[_Settlement] = deque()
        self._retrying: asyncio.Task[None] | None = None

    @property
    def pending(self) -> int:
        """The number of queued settlements."""
        return len(self._pending)

    def record(self, request: OpenRequest, outcome: Outcome) -> Recorded | None:
        """Settle a request. Return None if it was settled before, which is expected."""
        if request.settled:
            return None
        request.settled = True
        event = self._event(request, outcome)
        # A slot of `max_parallel_requests` is held but never charged. It is freed with the other holds.
        held = [d for d in request.admitted.demands if d.limit.is_charged]
        demands = charged_by(event, request.admitted.subjects, self._rules.limits)
        if outcome.as_reserved:
            # A limit that was added since the admission is charged as well.
            accounts = {demand.account for demand in held}
            demands = [*held, *(demand for demand in demands if demand.account not in accounts)]
        else:
            amounts = {demand.account: demand.amount for demand in held}
            if excess := _excess(event, amounts, demands):
                event = event._replace(excess=excess)
            self._count_overruns(amounts, demands)
        if event.degraded:
            self._anomalies.count("degraded", event.model, event.cost or 0)
        return Recorded(event, self._charge(request.admitted, event, demands))

    def _count_overruns(self, held: Mapping[AccountKey, int], charged: Sequence[Demand]) -> None:
        """Count limits on which more was used than held. For cost, the event has `excess` instead."""
        for demand in charged:
            if demand.limit.unit != "usd" and demand.amount > held.get(demand.account, demand.amount):
                self._anomalies.count("overrun", demand.limit.name)

    def _charge(self, admitted: Admitted, event: UsageEvent, demands: Sequence[Demand]) -> AccountStatus | None:
        encoded = None if self._faults.drops_events else encode_event(event)
        if encoded is None:
            self._anomalies.count("gap", event.model, event.cost or 0)
        return most_constrained_status(self._settle_or_wait(_Settlement(admitted, event, demands, encoded)))

    def _settle_or_wait(self, settlement: _Settlement) -> Sequence[AccountStatus]:
        """Write a settlement now, or queue it behind those that wait. A queued one returns no account statuses yet."""
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
        # A cache hit has no cost and counts no tokens. The raw usage keeps the replayed numbers.
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

    def _settle(self, settlement: _Settlement) -> Sequence[AccountStatus]:
        """Settle now, or raise after trying the lock for about 300 µs. Return the statuses of the charged accounts."""
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
                os.sched_yield()  # the process that holds the lock may need this core
            else:
                return self._tell(settlement, settled) if isinstance(settled, Settled) else ()

    def _record_unknown(self, event: UsageEvent, charges: Sequence[Charge], encoded: str | None) -> Settled | None:
        """Record a request whose reservation is unknown to the ledger: its usage is owed nevertheless."""
        recorded = self._ledger.record(event.event_id, charges, encoded)
        if recorded:
            log.warning("ledger.reservation_unknown", event_id=event.event_id, cost=event.cost)
            self._anomalies.count("unheld", event.model, event.cost or 0)
        return recorded

    def _tell(self, settlement: _Settlement, settled: Settled) -> Sequence[AccountStatus]:
        """Notify the cache, the subscribers and the alerts of a written settlement, whether or not it was queued."""
        admitted, event, demands, encoded = settlement
        if encoded is not None:
            self._cache.add(settled.seq, event)
            if self._publisher.has_subscribers:
                self._publisher.publish(event, len(encoded))
        account_statuses = [
            AccountStatus(demand, balance if demand.since is None else _sum_after(demand, admitted, balance))
            for demand in demands
            if (balance := settled.balances.get(demand.account)) is not None
        ]
        for account_status in account_statuses:
            self._alerts.seen(account_status)
        return account_statuses

    def withdraw(self, event_id: str) -> bool:
        """Remove a queued settlement without writing it. Return whether there was one."""
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
        self._anomalies.count("gap", event.model, event.cost or 0)

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
                    # It can never be written and must not block the others. Its hold is charged when the worker ends.
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
        """Free the parallel slots of a request that has ended but is not settled yet. Its other holds stay."""
        slots = [d.account for d in request.admitted.demands if not d.limit.is_charged]
        if slots and not request.settled and request.admitted.holds:
            try:
                self._ledger.free(request.event_id, slots)
            except LedgerError as error:
                # They are freed when the request is settled.
                log.warning("ledger.slots_not_freed", event_id=request.event_id, **short_error(error))

    async def drain(self, seconds: float) -> None:
        """Write the queued settlements. Those not written in time stay reserved and are recovered at the next start."""
        if self._retrying is not None:
            await asyncio.wait([self._retrying], timeout=seconds)


def _excess(event: UsageEvent, held: Mapping[AccountKey, int], charged: Sequence[Demand]) -> Nano:
    """Return the cost above the amount held for it, on the account where that is most."""
    if not event.cost:
        return 0
    least = min([held.get(d.account, 0) for d in charged if d.limit.unit == "usd"], default=event.reserved)
    return max(0, event.cost - least)


def _sum_after(demand: Demand, admitted: Admitted, bucket: Balance) -> Balance:
    """Return the sum of a rolling window after settling, as far as it is known: the ledger returns only one bucket."""
    before = admitted.balances.get(demand.account)
    return bucket if before is None else before._replace(spent=before.spent + demand.amount)
