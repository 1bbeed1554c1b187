"""Admission: decide whether a request may start, and hold its worst case on every account that it is charged on.

The hold makes limits exact. It covers the most expensive way to bill the request, on all accounts or on none, in one
transaction of the ledger. A refusal has the limit, the reason, and whether waiting helps.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from usage_plugin.domain.ledger import NOTHING, Balance
from usage_plugin.domain.windows import MICROSECONDS
from usage_plugin.encoding import encode_event
from usage_plugin.errors import LedgerError
from usage_plugin.log import get_logger, short_error
from usage_plugin.tracking.admission.decisions import Admitted, Decision, Downgrade, Refusal, refuse
from usage_plugin.tracking.admission.demands import (
    AccountStatus,
    Ask,
    Candidate,
    Demand,
    OnLost,
    demands_of,
    most_constrained_status,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from usage_plugin.domain.clock import Clock
    from usage_plugin.domain.ledger import Hold, Reserved
    from usage_plugin.domain.refusals import Reason
    from usage_plugin.domain.request_ledger import RequestLedger
    from usage_plugin.domain.usage import UsageEvent
    from usage_plugin.tracking.admission.active_limits import ActiveLimits
    from usage_plugin.tracking.admission.demands import Problem
    from usage_plugin.tracking.notifications.anomalies import Anomalies

SOON = 60 * MICROSECONDS
"""If a window ends within this time, in microseconds, a request that does not fit is `busy` instead of `spent`."""

_SEVERITY: dict[Reason, int] = {
    "unmetered": 4, "unpriced": 4, "unbounded": 4, "too_large": 3, "spent": 2, "busy": 1, "outbox_full": 0,
    "unavailable": 0,
}  # fmt: skip

log = get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class AdmissionPolicy:
    """Settings that apply to all limits; `docs/configuration.md` explains them.

    Attributes:
        enforce: whether requests are refused. If False, everything is held and recorded.
        max_wait: the maximum time in microseconds that a request waits for other requests to settle, before it is
            refused as `busy`.
        admit_without_ledger: whether requests are admitted while the ledger does not work.
        admit_without_outbox: whether requests are admitted while the outbox takes no more events.
    """

    enforce: bool = True
    max_wait: int = 0
    on_lost: OnLost = "charge"
    admit_without_ledger: bool = False
    admit_without_outbox: bool = False


class WorkerFaults:
    """Faults of the worker that admission depends on. Plain attributes, since they are read for each request."""

    __slots__ = ("drops_events", "ledger_gone", "outbox_full")

    def __init__(self) -> None:
        """Start without a fault."""
        self.outbox_full = False
        """Whether the outbox takes no more events."""
        self.drops_events = False
        """Whether requests are served although the outbox is full; their events are not kept."""
        self.ledger_gone = ""
        """Why nothing is held: the ledger's file was deleted. The next worker creates another one, where holds of this
        one do not count.
        """


class Decider:
    """Decides on requests, with one ledger transaction each."""

    def __init__(
        self,
        requests: RequestLedger,
        rules: ActiveLimits,
        clock: Clock,
        *,
        worker: Callable[[], str],
        anomalies: Anomalies,
        policy: AdmissionPolicy | None = None,
        faults: WorkerFaults | None = None,
    ) -> None:
        """Set the ledger, the active limits, the policy, and the function that returns this worker's present name."""
        self._requests = requests
        self._rules = rules
        self._clock = clock
        self._worker = worker
        self._anomalies = anomalies
        self._away_since: int | None = None
        self.policy = policy or AdmissionPolicy()
        self.faults = faults or WorkerFaults()

    async def decide(self, ask: Ask) -> Decision | Downgrade:
        """Decide once. A request that fits only without fallbacks is admitted without them, in a second transaction."""
        if self.faults.outbox_full and self.policy.enforce and not self.policy.admit_without_outbox:
            return Decision(refuse("outbox_full", ask), ())
        decision = await self._decide_among(ask, (*ask.primary, *ask.fallbacks))
        if not ask.fallbacks or obstacle_of(decision) is None:
            return decision
        # It does not fit with the most expensive fallback. Without fallbacks it may.
        alone = await self._decide_among(ask, ask.primary)
        if isinstance(alone, Decision) and isinstance(alone.outcome, Admitted):
            return alone._replace(outcome=alone.outcome._replace(without_fallbacks=True))
        # If the primary alone is refused too, its reason is returned: waiting may make room for the primary.
        return alone

    async def _decide_among(self, ask: Ask, candidates: Sequence[Candidate]) -> Decision | Downgrade:
        policy = self.policy
        everything, unknown = demands_of(ask, candidates, self._rules.limits, policy.on_lost)
        demands = [demand for demand in everything if demand.limit.has_accounts]
        impossible: list[Refusal] = []
        if policy.enforce and (unknown or len(demands) < len(everything)):
            impossible = _impossible(ask, everything, unknown)
        dry_run_refusals = [refusal for refusal in impossible if not refusal.is_enforced]
        if len(dry_run_refusals) < len(impossible):
            return Decision(_worst(refusal for refusal in impossible if refusal.is_enforced), dry_run_refusals)
        event = _worst_case_event(ask, candidates)
        holds = [demand.hold(enforced=self._can_stop(demand, ask)) for demand in demands]
        try:
            reserved = await self._reserve(_lost_event(event, candidates, policy.on_lost), holds)
        except LedgerError as error:
            if self._away_since is None:
                self._away_since = self._clock.monotonic()
            log.error("ledger.reserve_failed", **short_error(error))  # noqa: TRY400  # no trace for each request
            if policy.enforce and not policy.admit_without_ledger:
                # It may have been written nevertheless, and nothing would settle it.
                self._requests.abandon(event.event_id)
                return Decision(refuse("unavailable", ask), dry_run_refusals)
            event = event._replace(degraded=True)
            return Decision(
                Admitted(event, ask.subjects, tuple(demands), {}, False, None, (), holds=False), dry_run_refusals
            )
        if self._away_since is not None:
            self._anomalies.count("ledger_away", "ledger", self._clock.monotonic() - self._away_since)
            self._away_since = None
        before = list(zip(demands, reserved.balances, strict=True))
        exceeded = [(demand, balance) for demand, balance in before if not demand.fits(balance)]
        dry_run_refusals += [
            await self._judge(ask, demand, balance, reserved) for demand, balance in exceeded if demand.limit.dry_run
        ]
        if not reserved.admitted:
            stopping = [pair for pair in exceeded if self._can_stop(pair[0], ask)]
            for demand, balance in stopping:
                if demand.limit.downgrade_to is not None:
                    return Downgrade(demand, balance, demand.limit.downgrade_to)
            return Decision(_worst([await self._judge(ask, *pair, reserved) for pair in stopping]), dry_run_refusals)
        account_status = most_constrained_status(
            AccountStatus(demand, Balance(spent, held + demand.amount)) for demand, (spent, held) in before
        )
        warned = [d.limit.name for d, _ in exceeded if d.limit.action == "warn" and not d.limit.dry_run]
        balances = {demand.account: balance for demand, balance in before}
        admitted = Admitted(event, ask.subjects, tuple(demands), balances, False, account_status, tuple(warned))
        return Decision(admitted, dry_run_refusals)

    def _can_stop(self, demand: Demand, ask: Ask) -> bool:
        """Whether a demand that does not fit prevents the request from starting unchanged."""
        limit = demand.limit
        if limit.dry_run or not self.policy.enforce:
            return False
        if limit.action == "downgrade":
            return not ask.is_downgraded and limit.downgrade_to != ask.draft.requested_model
        return limit.action == "block"

    async def _judge(self, ask: Ask, demand: Demand, balance: Balance, reserved: Reserved) -> Refusal:
        """Return a refusal with the reason why a request does not fit on an account, and whether waiting helps."""
        maximum = demand.maximum or 0
        if demand.amount > maximum:
            return refuse("too_large", ask, demand, balance=balance)
        rolled_away_at = await self._rolled_away_at(demand, balance, reserved)
        if balance.spent + demand.amount <= maximum:
            return refuse("busy", ask, demand, balance=balance, retry_after=MICROSECONDS)
        left = (rolled_away_at or demand.window.end) - ask.draft.started_at
        if left <= SOON:
            return refuse("busy", ask, demand, balance=balance, retry_after=left, rolled_away_at=rolled_away_at)
        return refuse("spent", ask, demand, balance=balance, rolled_away_at=rolled_away_at)

    async def _rolled_away_at(self, demand: Demand, balance: Balance, reserved: Reserved) -> int | None:
        """Return when enough spend has expired from a rolling window to admit the request. None for other windows."""
        if demand.since is None:
            return None
        over = balance.spent + demand.amount - (demand.maximum or 0)
        buckets = reserved.buckets.get(demand.account)
        if buckets is None:
            # The ledger reports buckets only for limits that it refused by, which excludes dry runs.
            with suppress(LedgerError):
                buckets = await self._requests.accounts(demand.limit.key, demand.since, demand.subject)
        for bucket in buckets or ():
            over -= bucket.balance.spent
            if over <= 0:
                return bucket.window_end
        return demand.window.end

    async def _reserve(self, event: UsageEvent, holds: Sequence[Hold]) -> Reserved:
        if self.faults.ledger_gone:
            raise LedgerError(self.faults.ledger_gone)
        encoded = encode_event(event)
        return await self._requests.reserve(event.event_id, self._worker(), event.started_at, holds, encoded)


def obstacle_of(decision: Decision | Downgrade) -> Refusal | Downgrade | None:
    """Return the result if a limit blocks the request, else None. In another form the request may fit."""
    if isinstance(decision, Downgrade):
        return decision
    return decision.outcome if isinstance(decision.outcome, Refusal) and decision.outcome.demand else None


def _impossible(
    ask: Ask, demands: Sequence[Demand], unknown: Sequence[tuple[Demand, Problem, str | None]]
) -> list[Refusal]:
    """Return the refusals that need no account: unknown amounts, and requests too large for a per-request limit."""
    refusals = [
        refuse(problem, ask, demand, model)
        for demand, problem, model in unknown
        if demand.maximum is not None and demand.limit.action == "block"
    ]
    refusals += [
        refuse("too_large", ask, demand)
        for demand in demands
        if not demand.limit.has_accounts and demand.limit.action == "block" and not demand.fits(NOTHING)
    ]
    return refusals


def _worst_case_event(ask: Ask, candidates: Sequence[Candidate]) -> UsageEvent:
    """Return the event to record if the actual usage is never known: the full amounts held, marked as reserved."""
    costs = [cost for candidate in candidates if (cost := candidate.held_cost) is not None]
    reserved = max(costs, default=0)
    return ask.draft.changed(
        status="recovered",
        input_tokens=ask.input_tokens or 0,
        output_tokens=ask.output_tokens or 0,
        cost=reserved if costs else None,
        cost_source="reserved" if costs else "unpriced",
        reserved=reserved,
        estimated=True,
    )


def _lost_event(worst: UsageEvent, candidates: Sequence[Candidate], on_lost: OnLost) -> UsageEvent:
    """Return the event to record if the worker dies, by the policy `on_lost`."""
    if on_lost == "charge":
        return worst
    inputs = max((candidate.input_cost for candidate in candidates), default=0) if on_lost == "charge_input" else 0
    return worst._replace(
        input_tokens=worst.input_tokens if on_lost == "charge_input" else 0,
        output_tokens=0,
        cost=None if worst.cost is None else min(inputs, worst.cost),
    )


def _worst(refusals: Iterable[Refusal]) -> Refusal:
    """Return the refusal to report to the client: the most severe one; among equals, the most used limit."""
    return max(refusals, key=lambda r: (_SEVERITY[r.reason], r.balance.spent / ((r.demand and r.demand.maximum) or 1)))
