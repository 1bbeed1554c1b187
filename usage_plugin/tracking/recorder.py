"""The recorder: a finished request becomes one usage event, exactly once, whoever reports its end.

`record` is synchronous and commits before it returns, because LiteLLM drops whatever awaits in its success callback at
SIGTERM. If another process holds the ledger's lock for longer than a blink, the settlement waits in a list that
is retried until it is written.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from usage_plugin.domain.ledger import AccountKey, Balance, Charge
from usage_plugin.domain.usage import NO_TOKENS, encode_event
from usage_plugin.errors import LedgerBusyError, LedgerError
from usage_plugin.log import get_logger, short_error
from usage_plugin.tracking.admission import SPIN_NS, Admitted, Demand, Standing, tightest_of_callers_own

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from usage_plugin.domain.clock import Clock
    from usage_plugin.domain.ledger import Ledger, Settled
    from usage_plugin.domain.limits import LimitSet
    from usage_plugin.domain.money import Nano
    from usage_plugin.domain.usage import CostSource, Status, TokenUsage, UsageEvent
    from usage_plugin.tracking.cache import UsageCache

log = get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a request ended, as far as the provider or LiteLLM said.

    Attributes:
        model: the `model_name` that was billed; None if none was.
        cost: nano-dollars; None if no price is known.
        usage: the provider's usage as it came, numbers only.
        as_reserved: nobody knows what it used, so what was held is charged.
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
    event: UsageEvent
    charges: Sequence[Charge]
    encoded: str


class Recorder:
    """Settles requests in the ledger and tells the cache."""

    def __init__(self, ledger: Ledger, limits: LimitSet, cache: UsageCache, clock: Clock) -> None:
        """Take the parts."""
        self._ledger = ledger
        self._limits = limits
        self._cache = cache
        self._clock = clock
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
        demands: Sequence[Demand] = request.admitted.demands
        if not outcome.as_reserved:
            demands = self._demands(request.admitted, event)
            event = event._replace(excess=_excess(event, held=request.admitted.demands, charged=demands))
        settlement = _Settlement(
            event,
            [Charge(demand.account, demand.window.end, demand.amount) for demand in demands],
            encode_event(event),
        )
        settled = None
        if self._pending:
            self._later(settlement)
        else:
            try:
                settled = self._settle(settlement)
            except LedgerError as error:
                if not isinstance(error, LedgerBusyError):
                    log.error("ledger.settle_failed", event_id=event.event_id, **short_error(error))  # noqa: TRY400
                self._later(settlement)
        return Recorded(event, _standing(demands, settled.balances) if settled else None)

    def _event(self, request: OpenRequest, outcome: Outcome) -> UsageEvent:
        draft = request.admitted.event
        duration = max(0, self._clock.monotonic() - request.started)
        if outcome.as_reserved:
            return draft._replace(status=outcome.status, duration_us=duration, error=outcome.error)
        # A cache hit costs nothing and counts as no tokens; the raw usage keeps what was replayed.
        tokens = NO_TOKENS if outcome.cache_hit else outcome.tokens
        return draft._replace(
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
            error=outcome.error,
            usage=outcome.usage,
        )

    def _demands(self, admitted: Admitted, event: UsageEvent) -> list[Demand]:
        """Find every account the event counts on, in the window of its admission."""
        amounts = {
            "usd": event.cost or 0,
            "total_tokens": event.input_tokens + event.output_tokens,
            "input_tokens": event.input_tokens,
            "output_tokens": event.output_tokens,
            "requests": 1,
        }
        at = event.started_at
        return [
            Demand(
                matched.limit,
                matched.subject,
                matched.window_at(at),
                matched.amount_at(at),
                amounts[matched.limit.unit],
            )
            for matched in self._limits.matching(admitted.subjects, event.model, event.provider)
            if matched.limit.window != "request"
        ]

    def _settle(self, settlement: _Settlement) -> Settled | None:
        """Settle now, or raise; the lock is tried for some 300 µs."""
        started = time.monotonic_ns()
        while True:
            try:
                settled = self._ledger.settle(settlement.event.event_id, settlement.charges, settlement.encoded)
            except LedgerBusyError:
                if time.monotonic_ns() - started > SPIN_NS:
                    raise
                os.sched_yield()  # whoever holds the lock may need this core
            else:
                if settled:
                    self._cache.add(settled.seq, settlement.event)
                return settled

    def _later(self, settlement: _Settlement) -> None:
        self._pending.append(settlement)
        if self._retrying is None or self._retrying.done():
            self._retrying = asyncio.get_running_loop().create_task(self._retry())

    async def _retry(self) -> None:
        delay = 0.0005
        while self._pending:
            try:
                self._settle(self._pending[0])
            except LedgerBusyError:
                delay = min(0.005, delay * 1.5)
            except LedgerError as error:
                log.error("ledger.settle_failed", pending=self.pending, **short_error(error))  # noqa: TRY400
                delay = min(5.0, delay * 4)
            else:
                self._pending.popleft()
                delay = 0.0005
                continue
            await asyncio.sleep(delay * random.uniform(1, 2))  # noqa: S311  # jitter

    async def drain(self, seconds: float) -> None:
        """Write what is pending; what cannot be written in time stays reserved and is recovered at the next start."""
        if self._retrying is not None:
            await asyncio.wait([self._retrying], timeout=seconds)


def _excess(event: UsageEvent, *, held: Sequence[Demand], charged: Sequence[Demand]) -> Nano:
    """Say by how much the cost passes what was held for it, on the account where that is most."""
    if not event.cost:
        return 0
    amounts = {demand.account: demand.amount for demand in held if demand.limit.unit == "usd"}
    accounts = [demand.account for demand in charged if demand.limit.unit == "usd"]
    least = min((amounts.get(account, 0) for account in accounts), default=event.reserved)
    return max(0, event.cost - least)


def _standing(demands: Sequence[Demand], balances: Mapping[AccountKey, Balance]) -> Standing | None:
    return tightest_of_callers_own(
        Standing(demand, balances[demand.account]) for demand in demands if demand.account in balances
    )
