"""Admission: may this request start? If so, its worst case is held on every account it will count on.

The hold is what makes limits exact: it is taken for the dearest way the request can be billed, on all accounts or on
none, in one step of the ledger. A refusal says which limit, why, and whether waiting helps.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

from usage_plugin.domain.ledger import NOTHING, AccountKey, Balance
from usage_plugin.domain.usage import new_ref
from usage_plugin.domain.windows import MICROSECONDS
from usage_plugin.encoding import encode_event
from usage_plugin.errors import LedgerBusyError, LedgerError, UsagePluginError
from usage_plugin.log import get_logger, short_error
from usage_plugin.tracking.demands import Ask, Candidate, Demand, OnLost, Standing, demands_of, tightest_of_callers_own

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from usage_plugin.domain.clock import Clock
    from usage_plugin.domain.ledger import Hold, Ledger, Reserved
    from usage_plugin.domain.refusals import Reason
    from usage_plugin.domain.subjects import Subjects
    from usage_plugin.domain.usage import UsageEvent
    from usage_plugin.tracking.demands import Problem
    from usage_plugin.tracking.imperfections import Imperfections
    from usage_plugin.tracking.rules import RulesInForce

SOON = 60 * MICROSECONDS
"""A window that ends within this time is worth waiting for."""

SPIN_NS = 300_000
"""How long a busy ledger is asked again at once: other transactions take some 50 µs."""

MOST_WAITING = 256
"""So many requests of one worker wait for others to settle; what comes on top is refused as busy at once."""

FIRST_LOOK = 0.01
"""How long a request waits before it looks for room again, in seconds."""

_RAREST_LOOK = 0.1
_LONGEST_DELAY = 0.005
_GIVE_UP_NS = 5_000_000_000
_SEVERITY: dict[Reason, int] = {
    "unmetered": 4, "unpriced": 4, "unbounded": 4, "too_large": 3, "spent": 2, "busy": 1, "outbox_full": 0,
    "unavailable": 0,
}  # fmt: skip

log = get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class AdmissionPolicy:
    """What holds for all limits; `docs/configuration.md` has the words.

    Attributes:
        enforce: off, everything is held and recorded, and nothing refused.
        max_wait: microseconds that a request waits for others to settle, before it is refused as busy.
        admit_without_ledger: whether requests are let through while the ledger does not work.
        admit_without_outbox: whether requests are let through while no further event can be kept.
    """

    enforce: bool = True
    max_wait: int = 0
    on_lost: OnLost = "charge"
    admit_without_ledger: bool = False
    admit_without_outbox: bool = False


class Pressure:
    """What the rest of the worker tells admission: a plain attribute, since it is read for each request."""

    __slots__ = ("leaves_gaps", "ledger_gone", "outbox_full")

    def __init__(self) -> None:
        """Start without."""
        self.outbox_full = False
        self.leaves_gaps = False
        """The outbox is full, and requests are served nevertheless: no event is kept of them."""
        self.ledger_gone = ""
        """Why nothing can be held, if the ledger was deleted under us: whoever starts next counts elsewhere."""


class Admitted(NamedTuple):
    """The request may start, and must be settled by its event's id.

    Attributes:
        event: what is recorded if nobody ever learns what the request used: the reserved cost, status `recovered`.
        demands: what is held.
        balances: of the accounts, before this hold; of a rolling limit, the sum over its window.
        without_fallbacks: only the primary fits, so the fallbacks must be switched off.
        standing: the tightest of the caller's own limits, this hold included.
        warnings: names of the limits with `action: warn` that are passed.
        holds: False if the ledger did not work, so that nothing is held.
    """

    event: UsageEvent
    subjects: Subjects
    demands: tuple[Demand, ...]
    balances: Mapping[AccountKey, Balance]
    without_fallbacks: bool
    standing: Standing | None
    warnings: tuple[str, ...]
    holds: bool = True


def unheld(event: UsageEvent, subjects: Subjects) -> Admitted:
    """Stand in for an admission where nobody asked: the request is recorded and charged, and nothing was held."""
    return Admitted(event, subjects, (), {}, False, None, (), holds=False)


@dataclass(frozen=True, slots=True)
class Downgrade:
    """The request may start if it goes to another model.

    Attributes:
        demand: what did not fit, on a limit with `action: downgrade`.
        balance: of the account; as in `Refusal`.
        model: the `model_name` to ask for instead.
    """

    demand: Demand
    balance: Balance
    model: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """The request may not start.

    Attributes:
        ref: what support can look the refusal up by.
        demand: what did not fit; None if no limit is the cause (the ledger does not work).
        balance: of the account, before this request; of a rolling limit, the sum over its window.
        retry_after: microseconds to wait; None if waiting does not help.
        rolled_away_at: of a rolling limit, when enough of what was spent no longer counts.
        route: the route's method and path, if no request of that route may start.
        fields: the fields of unknown cost, where they are the reason.
    """

    reason: Reason
    ref: str
    at: int
    user: str
    model: str | None
    demand: Demand | None = None
    balance: Balance = NOTHING
    retry_after: int | None = None
    rolled_away_at: int | None = None
    route: str | None = None
    fields: tuple[str, ...] = ()

    @property
    def felt(self) -> bool:
        """Whether the client is told; dry runs are only counted."""
        return self.demand is None or not self.demand.limit.dry_run


class Other(Protocol):
    """Gives another request in place of one that does not fit; None if there is none."""

    async def __call__(self, ask: Ask, obstacle: Refusal | Downgrade) -> Ask | None:
        """Look at what was asked, and at what stood in its way."""


class Decision(NamedTuple):
    """What was decided, and the refusals by dry-run limits, which nobody feels."""

    outcome: Admitted | Refusal
    unfelt: Sequence[Refusal]


class Admission:
    """Decides on requests, one ledger transaction each."""

    def __init__(
        self,
        ledger: Ledger,
        rules: RulesInForce,
        clock: Clock,
        *,
        worker: str,
        imperfections: Imperfections,
        policy: AdmissionPolicy | None = None,
        pressure: Pressure | None = None,
    ) -> None:
        """Take the parts."""
        self._ledger = ledger
        self._rules = rules
        self._clock = clock
        self._worker = worker
        self._imperfections = imperfections
        self._away_since: int | None = None
        self.policy = policy or AdmissionPolicy()
        self._pressure = pressure or Pressure()
        self._waiting = 0

    async def admit(
        self, ask: Ask, *, tightened: Other | None = None, downgraded: Other | None = None, patient: bool = True
    ) -> Decision:
        """Decide on a request, waiting for a moment if it would fit once others settle.

        Args:
            ask: the request.
            tightened: makes it one that is bounded more tightly, where it does not fit; it is asked once.
            downgraded: makes it a request to another model, where a limit wants that; it is asked once. Without it
                such limits only count.
            patient: False for a request that has waited already.
        """
        if self._pressure.outbox_full and self.policy.enforce and not self.policy.admit_without_outbox:
            return Decision(_refuse("outbox_full", ask), ())
        ask, decision = await self._decide(ask, tightened, downgraded)
        if not patient or self._waiting >= MOST_WAITING or not self.policy.max_wait:
            return decision
        if not is_worth_waiting(decision.outcome):
            return decision
        self._waiting += 1
        try:
            return await self._wait(ask, decision, downgraded)
        finally:
            self._waiting -= 1

    async def _wait(self, ask: Ask, decision: Decision, downgraded: Other | None) -> Decision:
        """Look again and again until there is room, or it is clear that waiting does not help."""
        deadline = time.monotonic() + self.policy.max_wait / MICROSECONDS
        delay = FIRST_LOOK
        while is_worth_waiting(decision.outcome) and (left := deadline - time.monotonic()) > 0:
            await asyncio.sleep(min(left, delay * random.uniform(0.5, 1)))  # noqa: S311  # jitter
            delay = next_look(delay)
            # It is admitted now, not when it came: midnight may have passed.
            ask = ask._replace(draft=ask.draft._replace(started_at=self._clock.now()))
            ask, decision = await self._decide(ask, None, downgraded)
        return decision

    async def _decide(self, ask: Ask, tightened: Other | None, downgraded: Other | None) -> tuple[Ask, Decision]:
        """Decide now; the request may be another one afterwards, to the model that a limit sent it to."""
        decision = await self._decide_once(ask)
        obstacle = _obstacle(decision)
        if tightened and obstacle and (tighter := await tightened(ask, obstacle)):
            ask, decision = tighter, await self._decide_once(tighter)
        if not isinstance(decision, Downgrade):
            return ask, decision
        other = await downgraded(ask, decision) if downgraded else None
        ask = (other or ask)._replace(is_downgraded=True)
        decision = await self._decide_once(ask)
        if isinstance(decision, Downgrade):
            raise UsagePluginError("A request was downgraded twice.")
        return ask, decision

    async def _decide_once(self, ask: Ask) -> Decision | Downgrade:
        decision = await self._decide_among(ask, (*ask.primary, *ask.fallbacks))
        if not ask.fallbacks or _obstacle(decision) is None:
            return decision
        # It does not fit on the dearest fallback; without fallbacks it may.
        alone = await self._decide_among(ask, ask.primary)
        if isinstance(alone, Decision) and isinstance(alone.outcome, Admitted):
            return alone._replace(outcome=alone.outcome._replace(without_fallbacks=True))
        # If that is refused as well, its reason counts: waiting may make room for the primary.
        return alone

    async def _decide_among(self, ask: Ask, candidates: Sequence[Candidate]) -> Decision | Downgrade:
        policy = self.policy
        everything, unknown = demands_of(ask, candidates, self._rules.limits, policy.on_lost)
        demands = [demand for demand in everything if demand.limit.has_accounts]
        impossible: list[Refusal] = []
        if policy.enforce and (unknown or len(demands) < len(everything)):
            impossible = _impossible(ask, everything, unknown)
        unfelt = [refusal for refusal in impossible if not refusal.felt]
        if len(unfelt) < len(impossible):
            return Decision(_worst(refusal for refusal in impossible if refusal.felt), unfelt)
        event = _worst_case_event(ask, candidates)
        holds = [demand.hold(enforced=self._can_stop(demand, ask)) for demand in demands]
        try:
            reserved = await self._reserve(_lost_event(event, candidates, policy.on_lost), holds)
        except LedgerError as error:
            if self._away_since is None:
                self._away_since = self._clock.monotonic()
            log.error("ledger.reserve_failed", **short_error(error))  # noqa: TRY400  # no trace for each request
            if policy.enforce and not policy.admit_without_ledger:
                self._abandon(event.event_id)
                return Decision(_refuse("unavailable", ask), unfelt)
            event = event._replace(degraded=True)
            return Decision(Admitted(event, ask.subjects, tuple(demands), {}, False, None, (), holds=False), unfelt)
        if self._away_since is not None:
            self._imperfections.count("ledger_away", "ledger", self._clock.monotonic() - self._away_since)
            self._away_since = None
        before = list(zip(demands, reserved.balances, strict=True))
        passed = [(demand, balance) for demand, balance in before if not demand.fits(balance)]
        unfelt += [self._judge(ask, demand, balance, reserved) for demand, balance in passed if demand.limit.dry_run]
        if not reserved.admitted:
            stopping = [pair for pair in passed if self._can_stop(pair[0], ask)]
            for demand, balance in stopping:
                if demand.limit.downgrade_to is not None:
                    return Downgrade(demand, balance, demand.limit.downgrade_to)
            return Decision(_worst(self._judge(ask, *pair, reserved) for pair in stopping), unfelt)
        standing = tightest_of_callers_own(
            Standing(demand, Balance(spent, held + demand.amount)) for demand, (spent, held) in before
        )
        warned = [d.limit.name for d, _ in passed if d.limit.action == "warn" and not d.limit.dry_run]
        balances = {demand.account: balance for demand, balance in before}
        admitted = Admitted(event, ask.subjects, tuple(demands), balances, False, standing, tuple(warned))
        return Decision(admitted, unfelt)

    def _abandon(self, event_id: str) -> None:
        """Give up a reservation that failed: it may hold all the same, and nothing would ever settle it."""
        with suppress(LedgerError):
            self._ledger.abandon(event_id)

    def _can_stop(self, demand: Demand, ask: Ask) -> bool:
        """Say whether a demand that does not fit keeps the request from starting as it is."""
        limit = demand.limit
        if limit.dry_run or not self.policy.enforce:
            return False
        if limit.action == "downgrade":
            return not ask.is_downgraded and limit.downgrade_to != ask.draft.requested_model
        return limit.action == "block"

    def _judge(self, ask: Ask, demand: Demand, balance: Balance, reserved: Reserved) -> Refusal:
        """Say why a request does not fit on an account, and whether waiting helps."""
        maximum = demand.maximum or 0
        if demand.amount > maximum:
            return _refuse("too_large", ask, demand, balance=balance)
        rolled_away_at = self._rolled_away_at(demand, balance, reserved)
        if balance.spent + demand.amount <= maximum:
            return _refuse("busy", ask, demand, balance=balance, retry_after=MICROSECONDS)
        left = (rolled_away_at or demand.window.end) - ask.draft.started_at
        if left <= SOON:
            return _refuse("busy", ask, demand, balance=balance, retry_after=left, rolled_away_at=rolled_away_at)
        return _refuse("spent", ask, demand, balance=balance, rolled_away_at=rolled_away_at)

    def _rolled_away_at(self, demand: Demand, balance: Balance, reserved: Reserved) -> int | None:
        """Find when so much has left a rolling window that the request would fit; None where nothing rolls."""
        if demand.since is None:
            return None
        over = balance.spent + demand.amount - (demand.maximum or 0)
        buckets = reserved.buckets.get(demand.account)
        if buckets is None:
            # A dry run's, which the ledger did not refuse.
            with suppress(LedgerError):
                buckets = self._ledger.accounts(demand.limit.key, demand.since, demand.subject)
        for bucket in buckets or ():
            over -= bucket.balance.spent
            if over <= 0:
                return bucket.window_end
        return demand.window.end

    async def _reserve(self, event: UsageEvent, holds: Sequence[Hold]) -> Reserved:
        """Reserve, trying again while another process is writing."""
        if self._pressure.ledger_gone:
            raise LedgerError(self._pressure.ledger_gone)
        encoded = encode_event(event)
        started = time.monotonic_ns()
        delay = 0.0002
        while True:
            try:
                return self._ledger.reserve(event.event_id, self._worker, event.started_at, holds, encoded)
            except LedgerBusyError:
                waited = time.monotonic_ns() - started
                if waited > _GIVE_UP_NS:
                    raise
                if waited > SPIN_NS:
                    # Whoever waits longer lets the loop work meanwhile.
                    await asyncio.sleep(delay * random.uniform(1, 2))  # noqa: S311  # jitter
                    delay = min(_LONGEST_DELAY, delay * 1.5)
                else:
                    os.sched_yield()  # whoever holds the lock may need this core


def _obstacle(decision: Decision | Downgrade) -> Refusal | Downgrade | None:
    """Find the limit that is in the way: fewer ways to bill the request, or a tighter bound, may get it past."""
    if isinstance(decision, Downgrade):
        return decision
    return decision.outcome if isinstance(decision.outcome, Refusal) and decision.outcome.demand else None


def next_look(delay: float) -> float:
    """Say how long a request waits after it has waited for so many seconds in vain."""
    return min(_RAREST_LOOK, delay * 1.5)


def is_worth_waiting(outcome: Admitted | Refusal) -> bool:
    """Say whether a request would fit once others settle; what is spent does not come back in a moment."""
    if not isinstance(outcome, Refusal) or outcome.reason != "busy" or outcome.demand is None:
        return False
    return outcome.balance.spent + outcome.demand.amount <= (outcome.demand.maximum or 0)


def _impossible(
    ask: Ask, demands: Sequence[Demand], unknown: Sequence[tuple[Demand, Problem, str | None]]
) -> list[Refusal]:
    """Find what no account need be asked about: what nobody can say, and what a limit on single requests refuses."""
    refusals = [
        _refuse(problem, ask, demand, model)
        for demand, problem, model in unknown
        if demand.maximum is not None and demand.limit.action == "block"
    ]
    refusals += [
        _refuse("too_large", ask, demand)
        for demand in demands
        if not demand.limit.has_accounts and demand.limit.action == "block" and not demand.fits(NOTHING)
    ]
    return refusals


def _worst_case_event(ask: Ask, candidates: Sequence[Candidate]) -> UsageEvent:
    """Fill in what is recorded if nobody ever learns what the request used: everything that is held, marked so."""
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
    """Change it to what is recorded if the worker dies, by policy."""
    if on_lost == "charge":
        return worst
    inputs = max((candidate.input_cost for candidate in candidates), default=0) if on_lost == "charge_input" else 0
    return worst._replace(
        input_tokens=worst.input_tokens if on_lost == "charge_input" else 0,
        output_tokens=0,
        cost=None if worst.cost is None else min(inputs, worst.cost),
    )


def _refuse(
    reason: Reason,
    ask: Ask,
    demand: Demand | None = None,
    model: str | None = None,
    *,
    balance: Balance = NOTHING,
    retry_after: int | None = None,
    rolled_away_at: int | None = None,
) -> Refusal:
    return Refusal(
        reason=reason,
        ref=new_ref(),
        at=ask.draft.started_at,
        user=ask.subjects.user,
        model=model or ask.draft.requested_model,
        demand=demand,
        balance=balance,
        retry_after=retry_after,
        rolled_away_at=rolled_away_at,
    )


def _worst(refusals: Iterable[Refusal]) -> Refusal:
    """Choose what to tell the client: what waiting helps least; of equals the limit with the least left."""
    return max(refusals, key=lambda r: (_SEVERITY[r.reason], r.balance.spent / ((r.demand and r.demand.maximum) or 1)))
