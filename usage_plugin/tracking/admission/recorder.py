"""The recorder: turn each finished request into one usage event, exactly once, even if several callbacks report it.

`record` is synchronous, because at SIGTERM LiteLLM drops success callbacks that await. It posts the settlement to the
request ledger, which on a local file commits before `record` returns.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from usage_plugin.domain.request_ledger import PostedSettlement
from usage_plugin.domain.usage import NO_TOKENS
from usage_plugin.encoding import encode_event
from usage_plugin.log import get_logger
from usage_plugin.tracking.admission.decide import WorkerFaults
from usage_plugin.tracking.admission.demands import AccountStatus, Demand, charged_by, most_constrained_status
from usage_plugin.tracking.notifications.publishers import Publisher

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from usage_plugin.domain.clock import Clock
    from usage_plugin.domain.ledger import AccountKey, Balance, Settled
    from usage_plugin.domain.money import Nano
    from usage_plugin.domain.request_ledger import RequestLedger
    from usage_plugin.domain.usage import CostSource, Status, TokenUsage, UsageEvent
    from usage_plugin.tracking.admission.active_limits import ActiveLimits
    from usage_plugin.tracking.admission.alerts import Alerts
    from usage_plugin.tracking.admission.decisions import Admitted
    from usage_plugin.tracking.history.cache import UsageCache
    from usage_plugin.tracking.notifications.anomalies import Anomalies

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


class _LedgerEntry(PostedSettlement):
    """A settlement that updates the cache, notifies the subscribers and evaluates the alerts when it is written."""

    __slots__ = (
        "_admitted", "_demands", "_event", "_recorder", "account_statuses", "charges", "event", "event_id",
        "is_reserved",
    )  # fmt: skip

    def __init__(
        self, recorder: Recorder, admitted: Admitted, event: UsageEvent, demands: Sequence[Demand], encoded: str | None
    ) -> None:
        self._recorder = recorder
        self._admitted = admitted
        self._event = event
        self._demands = demands
        self.event_id = event.event_id
        self.charges = [demand.charge() for demand in demands]
        self.event = encoded
        self.is_reserved = admitted.holds
        self.account_statuses: list[AccountStatus] = []
        """The statuses of the charged accounts, once it is written."""

    def written(self, settled: Settled, *, was_unknown: bool) -> None:
        admitted = self._admitted
        if was_unknown:
            self._recorder.count_unheld(self._event)
        if self.event is not None:
            self._recorder.announce(settled.seq, self._event, len(self.event))
        self.account_statuses += [
            AccountStatus(demand, balance if demand.since is None else _sum_after(demand, admitted, balance))
            for demand in self._demands
            if (balance := settled.balances.get(demand.account)) is not None
        ]
        self._recorder.evaluate_alerts(self.account_statuses)

    def given_up(self) -> None:
        self._recorder.count_gap(self._event)


class Recorder:
    """Settle requests in the ledger, and notify the cache, the alerts and the subscribers."""

    def __init__(
        self,
        requests: RequestLedger,
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
        self._requests = requests
        self._rules = rules
        self._cache = cache
        self._clock = clock
        self._anomalies = anomalies
        self._alerts = alerts
        self._publisher = publisher or Publisher()
        self._faults = faults or WorkerFaults()

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
        settlement = _LedgerEntry(self, admitted, event, demands, encoded)
        self._requests.settle(settlement)
        return most_constrained_status(settlement.account_statuses)

    def count_unheld(self, event: UsageEvent) -> None:
        """Count a request whose reservation is unknown to the ledger."""
        log.warning("ledger.reservation_unknown", event_id=event.event_id, cost=event.cost)
        self._anomalies.count("unheld", event.model, event.cost or 0)

    def count_gap(self, event: UsageEvent) -> None:
        """Count an event that cannot be written."""
        log.error("ledger.settlement_given_up", event_id=event.event_id, cost=event.cost)
        self._anomalies.count("gap", event.model, event.cost or 0)

    def announce(self, seq: int, event: UsageEvent, size: int) -> None:
        """Add a written event to the cache, and notify the subscribers."""
        self._cache.add(seq, event)
        if self._publisher.has_subscribers:
            self._publisher.publish(event, size)

    def evaluate_alerts(self, account_statuses: Sequence[AccountStatus]) -> None:
        """Evaluate the alerts of charged accounts."""
        for account_status in account_statuses:
            self._alerts.seen(account_status)

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

    def free_slots(self, request: OpenRequest) -> None:
        """Free the parallel slots of a request that has ended but is not settled yet. Its other holds stay."""
        slots = [d.account for d in request.admitted.demands if not d.limit.is_charged]
        if slots and not request.settled and request.admitted.holds:
            self._requests.free(request.event_id, slots)


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
