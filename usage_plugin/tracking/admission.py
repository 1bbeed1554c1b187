"""Admission: may this request start? If so, its worst case is held on every account it will count on.

The hold is what makes limits exact: it is taken for the dearest way the request can be billed, on all accounts or on
none, in one step of the ledger. A refusal says which limit, why, and whether waiting helps.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, NamedTuple

from usage_plugin.domain.ledger import NOTHING, AccountKey, Balance, Hold
from usage_plugin.domain.usage import encode_event, new_ref
from usage_plugin.domain.windows import MICROSECONDS
from usage_plugin.errors import LedgerBusyError, LedgerError
from usage_plugin.log import get_logger, short_error

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from usage_plugin.domain.ledger import Ledger, Reserved
    from usage_plugin.domain.limits import Limit, LimitSet
    from usage_plugin.domain.money import Nano
    from usage_plugin.domain.subjects import Subjects
    from usage_plugin.domain.usage import UsageEvent
    from usage_plugin.domain.windows import Window

Reason = Literal["spent", "busy", "too_large", "unpriced", "unbounded", "unavailable"]
"""Why a request is refused; `docs/refusals.md` has a row for each."""

SOON = 60 * MICROSECONDS
"""A window that ends within this time is worth waiting for."""

SPIN_NS = 300_000
"""How long a busy ledger is asked again at once: other transactions take some 50 µs."""

_LONGEST_DELAY = 0.005
_GIVE_UP_NS = 5_000_000_000
_SEVERITY: dict[Reason, int] = {"unpriced": 4, "unbounded": 4, "too_large": 3, "spent": 2, "busy": 1, "unavailable": 0}

log = get_logger()


class Candidate(NamedTuple):
    """One way a request can be billed.

    Attributes:
        model: the `model_name` that would be billed; None if the request names none.
        priced: whether a price is known.
        worst_cost: the most it can cost; None if no price is known or nothing bounds the tokens.
    """

    model: str | None
    provider: str | None
    priced: bool
    worst_cost: Nano | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """A request that wants to start.

    Attributes:
        draft: the event as far as it is known; its status and cost are filled in by the decision.
        primary: the ways the model asked for can be billed.
        fallbacks: the ways it can be billed if that fails.
        input_tokens: a bound; None if nothing bounds it.
        output_tokens: a bound; None if nothing bounds it.
    """

    draft: UsageEvent
    subjects: Subjects
    primary: tuple[Candidate, ...]
    fallbacks: tuple[Candidate, ...] = ()
    input_tokens: int | None
    output_tokens: int | None


class Demand(NamedTuple):
    """What a request asks of one account.

    Attributes:
        maximum: the amount of the limit in force for this subject; None for unlimited.
        amount: what the request needs at most, in the limit's unit.
    """

    limit: Limit
    subject: str
    window: Window
    maximum: int | None
    amount: int

    @property
    def account(self) -> AccountKey:
        """The account it would be held on."""
        return AccountKey(self.limit.key, self.window.start, self.subject)

    def hold(self, *, enforced: bool) -> Hold:
        """Make the hold; one that is not enforced always fits."""
        maximum = self.maximum if enforced else None
        return Hold(self.account, self.window.end, self.amount, maximum, if_lost=self.amount)


class Standing(NamedTuple):
    """How an account stands: what was asked of it, and its balance since."""

    demand: Demand
    balance: Balance

    @property
    def remaining(self) -> int:
        """What is left for further requests, never below zero."""
        return max(0, (self.demand.maximum or 0) - self.balance.spent - self.balance.reserved)


@dataclass(frozen=True, slots=True)
class Admitted:
    """The request may start, and must be settled by its event's id.

    Attributes:
        event: what is recorded if the worker dies: the reserved cost, status `recovered`.
        demands: what is held.
        without_fallbacks: only the primary fits, so the fallbacks must be switched off.
        standing: the tightest of the caller's own limits, this hold included.
        warnings: names of the limits with `action: warn` that are passed.
    """

    event: UsageEvent
    subjects: Subjects
    demands: tuple[Demand, ...]
    without_fallbacks: bool
    standing: Standing | None
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """The request may not start.

    Attributes:
        ref: what support can look the refusal up by.
        demand: what did not fit; None if no limit is the cause (the ledger does not work).
        balance: of the account, before this request.
        retry_after: microseconds to wait; None if waiting does not help.
    """

    reason: Reason
    ref: str
    at: int
    user: str
    model: str | None
    demand: Demand | None = None
    balance: Balance = NOTHING
    retry_after: int | None = None

    @property
    def felt(self) -> bool:
        """Whether the client is told; dry runs are only counted."""
        return self.demand is None or not self.demand.limit.dry_run


class Admission:
    """Decides on requests, one ledger transaction each."""

    def __init__(self, ledger: Ledger, limits: LimitSet, *, worker: str, enforce: bool = True) -> None:
        """Take the parts; with `enforce` off everything is held and recorded, and nothing refused."""
        self._ledger = ledger
        self._limits = limits
        self._worker = worker
        self._enforce = enforce

    async def admit(self, ask: Ask) -> tuple[Admitted | Refusal, Sequence[Refusal]]:
        """Decide on a request.

        Returns:
            The decision, and the refusals by dry-run limits, which nobody feels.
        """
        decision, unfelt = await self._decide(ask, (*ask.primary, *ask.fallbacks))
        if ask.fallbacks and isinstance(decision, Refusal) and decision.demand:
            # It does not fit on the dearest fallback; without fallbacks it may.
            alone, unfelt = await self._decide(ask, ask.primary)
            # If that is refused as well, its reason counts: waiting may make room for the primary.
            return (replace(alone, without_fallbacks=True) if isinstance(alone, Admitted) else alone), unfelt
        return decision, unfelt

    async def _decide(self, ask: Ask, candidates: Sequence[Candidate]) -> tuple[Admitted | Refusal, Sequence[Refusal]]:
        demands, impossible = self._demands(ask, candidates)
        unfelt = [refusal for refusal in impossible if not refusal.felt]
        if len(unfelt) < len(impossible):
            return _worst(refusal for refusal in impossible if refusal.felt), unfelt
        event = _worst_case_event(ask.draft, candidates)
        holds = [demand.hold(enforced=self._enforce and demand.limit.blocks) for demand in demands]
        try:
            reserved = await self._reserve(event, holds)
        except LedgerError as error:
            log.error("ledger.reserve_failed", **short_error(error))  # noqa: TRY400  # no trace for each request
            return _refuse("unavailable", ask), unfelt
        before = list(zip(demands, reserved.balances, strict=True))
        passed = [(demand, balance) for demand, balance in before if not demand.hold(enforced=True).fits(balance)]
        unfelt += [_judge(ask, demand, balance) for demand, balance in passed if demand.limit.dry_run]
        if not reserved.admitted:
            return _worst(_judge(ask, *pair) for pair in passed if pair[0].limit.blocks), unfelt
        standing = tightest_of_callers_own(
            Standing(demand, Balance(spent, held + demand.amount)) for demand, (spent, held) in before
        )
        warned = [d.limit.name for d, _ in passed if d.limit.action == "warn" and not d.limit.dry_run]
        return Admitted(event, ask.subjects, tuple(demands), False, standing, tuple(warned)), unfelt

    def _demands(self, ask: Ask, candidates: Sequence[Candidate]) -> tuple[list[Demand], list[Refusal]]:
        """Work out what to hold on which account: on each the most that any candidate would take.

        What can be said without the ledger is refused here: no price, no bound, more than one request may take.
        """
        at = ask.draft.started_at
        demands: dict[AccountKey, Demand] = {}
        impossible = []
        for candidate in candidates:
            for matched in self._limits.matching(ask.subjects, candidate.model, candidate.provider):
                limit = matched.limit
                amount, problem = _amount(limit, candidate, ask)
                demand = Demand(limit, matched.subject, matched.window_at(at), matched.amount_at(at), amount)
                if limit.window == "request" and not problem and not demand.hold(enforced=True).fits(NOTHING):
                    problem = "too_large"
                if problem and demand.maximum is not None and limit.action == "block" and self._enforce:
                    impossible.append(_refuse(problem, ask, demand, candidate.model))
                if limit.window != "request":
                    known = demands.setdefault(demand.account, demand)
                    if amount > known.amount:
                        demands[demand.account] = demand
        return list(demands.values()), impossible

    async def _reserve(self, event: UsageEvent, holds: Sequence[Hold]) -> Reserved:
        """Reserve, trying again while another process is writing."""
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


def tightest_of_callers_own(standings: Iterable[Standing]) -> Standing | None:
    """Find the limit of the caller's own with the smallest share left, to be shown in headers."""
    own = [
        standing
        for standing in standings
        if standing.demand.maximum is not None
        and standing.demand.limit.is_callers_own
        and not standing.demand.limit.dry_run
    ]
    return min(own, key=lambda standing: standing.remaining / (standing.demand.maximum or 1), default=None)


def _amount(limit: Limit, candidate: Candidate, ask: Ask) -> tuple[int, Reason | None]:
    """Say what a request needs of a limit, or why that cannot be known."""
    if limit.unit == "requests":
        return 1, None
    if limit.unit == "usd":
        if candidate.worst_cost is not None:
            return candidate.worst_cost, None
        if not candidate.priced:
            return 0, None if limit.lets_unpriced_pass(candidate.model or "") else "unpriced"
        return 0, "unbounded"
    parts = {
        "input_tokens": (ask.input_tokens,),
        "output_tokens": (ask.output_tokens,),
        "total_tokens": (ask.input_tokens, ask.output_tokens),
    }[limit.unit]
    known = [part for part in parts if part is not None]
    return sum(known), None if len(known) == len(parts) else "unbounded"


def _worst_case_event(draft: UsageEvent, candidates: Sequence[Candidate]) -> UsageEvent:
    """Fill in what is recorded if the worker dies: charged as reserved, and marked so."""
    costs = [candidate.worst_cost for candidate in candidates if candidate.worst_cost is not None]
    reserved = max(costs, default=0)
    return draft._replace(
        status="recovered",
        cost=reserved if costs else None,
        cost_source="reserved" if costs else "unpriced",
        reserved=reserved,
        estimated=True,
    )


def _judge(ask: Ask, demand: Demand, balance: Balance) -> Refusal:
    """Say why a request does not fit on an account, and whether waiting helps."""
    maximum = demand.maximum or 0
    left_of_window = demand.window.end - ask.draft.started_at
    if demand.amount > maximum:
        return _refuse("too_large", ask, demand, balance=balance)
    if balance.spent + demand.amount <= maximum:
        return _refuse("busy", ask, demand, balance=balance, retry_after=MICROSECONDS)
    if left_of_window <= SOON:
        return _refuse("busy", ask, demand, balance=balance, retry_after=left_of_window)
    return _refuse("spent", ask, demand, balance=balance)


def _refuse(
    reason: Reason,
    ask: Ask,
    demand: Demand | None = None,
    model: str | None = None,
    *,
    balance: Balance = NOTHING,
    retry_after: int | None = None,
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
    )


def _worst(refusals: Iterable[Refusal]) -> Refusal:
    """Choose what to tell the client: what waiting helps least; of equals the limit with the least left."""
    return max(refusals, key=lambda r: (_SEVERITY[r.reason], r.balance.spent / ((r.demand and r.demand.maximum) or 1)))
