"""Demands: the maximum amounts that a request may need from the accounts that it is charged on.

Pure arithmetic with a request's bounds and the active limits. Nothing here reads balances.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal, NamedTuple

from usage_plugin.domain.ledger import AccountKey, Balance, Charge, Hold, has_room

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from usage_plugin.domain.limit_set import LimitSet, Matched
    from usage_plugin.domain.limits import Limit
    from usage_plugin.domain.money import Nano
    from usage_plugin.domain.subjects import Subjects
    from usage_plugin.domain.usage import UsageEvent
    from usage_plugin.domain.windows import Window

OnLost = Literal["charge", "charge_input", "release"]
"""The charge for a request whose worker died: the amount held, the input's part of it, or nothing."""

Problem = Literal["unpriced", "unbounded"]
"""The reason why the amount that a request needs from a limit is unknown."""


class Candidate(NamedTuple):
    """One way a request can be billed.

    Attributes:
        model: the `model_name` that would be billed; None if the request names none.
        priced: whether a price is known.
        worst_cost: the maximum cost; None if no price is known or the tokens are unbounded.
        input_cost: the part of it that is owed if there is no answer; 0 if it is unknown or not needed.
        is_unmetered: whether its usage may exceed the worst case, which is only known afterwards.
    """

    model: str | None
    provider: str | None
    priced: bool
    worst_cost: Nano | None
    input_cost: Nano = 0
    is_unmetered: bool = False

    @property
    def held_cost(self) -> Nano | None:
        """The cost to hold. For an unbounded request, the cost of its input. None without a price."""
        if self.worst_cost is None and self.priced:
            return self.input_cost
        return self.worst_cost


class Ask(NamedTuple):
    """A request for admission. A NamedTuple, like all objects that are created for each request.

    Attributes:
        draft: the event with the facts known so far. The decision fills in its status and cost.
        primary: the ways to bill the requested model.
        input_tokens: the maximum; None if unbounded.
        output_tokens: the maximum; None if unbounded.
        fallbacks: the ways to bill the models that are used if the requested one fails.
        is_downgraded: whether a limit with `action: downgrade` was applied already. Such limits then only count.
    """

    draft: UsageEvent
    subjects: Subjects
    primary: tuple[Candidate, ...]
    input_tokens: int | None
    output_tokens: int | None
    fallbacks: tuple[Candidate, ...] = ()
    is_downgraded: bool = False


class Demand(NamedTuple):
    """The amount that a request needs from one account.

    Attributes:
        window: the account's window; for a rolling window, its bucket.
        account: the account to hold the amount on.
        maximum: the limit's current amount for this subject; None for unlimited.
        amount: the maximum that the request may need, in the limit's unit.
        if_lost: the amount to charge if the actual usage is never known.
        since: the start of the oldest bucket that counts, for a rolling window; else None.
    """

    limit: Limit
    subject: str
    window: Window
    account: AccountKey
    maximum: int | None
    amount: int
    if_lost: int = 0
    since: int | None = None

    @classmethod
    def of(cls, matched: Matched, at: int, amount: int, if_lost: int = 0) -> Demand:
        """Return the demand of a request at an instant on a limit that counts it."""
        window, account, maximum, since = matched.place_at(at)
        return cls(matched.limit, matched.subject, window, account, maximum, amount, if_lost, since)

    def hold(self, *, enforced: bool) -> Hold:
        """Return the hold. One that is not enforced always fits."""
        maximum = self.maximum if enforced else None
        return Hold(self.account, self.window.end, self.amount, maximum, self.if_lost, self.since)

    def charge(self) -> Charge:
        """Return the charge to add to the account when the request is settled."""
        return Charge(self.account, self.window.end, self.amount)

    def fits(self, balance: Balance) -> bool:
        """Whether the account has room for the amount, independent of the limit's action."""
        return has_room(balance, self.amount, self.maximum)


class AccountStatus(NamedTuple):
    """The status of an account: a demand on it, and its balance after that demand."""

    demand: Demand
    balance: Balance

    @property
    def remaining(self) -> int:
        """The amount left for further requests, never below zero."""
        spent, reserved = self.balance
        return max(0, (self.demand.maximum or 0) - spent - reserved)


def demands_of(
    ask: Ask, candidates: Sequence[Candidate], limits: LimitSet, on_lost: OnLost
) -> tuple[list[Demand], list[tuple[Demand, Problem, str | None]]]:
    """Return the amount to hold on each account: the maximum over all candidates.

    Returns:
        The demands, including those of per-request limits, which have no accounts. Then the demands of unknown amount,
        each with the reason and the model.
    """
    at = ask.draft.started_at
    demands: dict[AccountKey, Demand] = {}
    unknown: list[tuple[Demand, Problem, str | None]] = []
    for candidate in candidates:
        for matched in limits.matching(ask.subjects, candidate.model, candidate.provider):
            limit = matched.limit
            amount, problem = _amount(limit, candidate, ask)
            demand = Demand.of(matched, at, amount, _if_lost(limit, candidate, ask, amount, on_lost))
            if problem:
                unknown.append((demand, problem, candidate.model))
            known = demands.setdefault(demand.account, demand)
            if amount > known.amount:
                demands[demand.account] = demand
    return list(demands.values()), unknown


def charged_by(event: UsageEvent, subjects: Subjects, limits: LimitSet) -> list[Demand]:
    """Return the amount that an event adds to each account that it is charged on, in the window of its admission."""
    amounts = {
        "usd": event.cost or 0,
        "total_tokens": event.input_tokens + event.output_tokens,
        "input_tokens": event.input_tokens,
        "output_tokens": event.output_tokens,
        "requests": 1,
    }
    at = event.started_at
    return [
        Demand.of(matched, at, amounts[matched.limit.unit])
        for matched in limits.matching(subjects, event.model, event.provider)
        if matched.limit.is_charged
    ]


def _amount(limit: Limit, candidate: Candidate, ask: Ask) -> tuple[int, Problem | None]:
    """Return the amount that a request needs from a limit, and the reason if it is unknown."""
    if limit.unit in ("requests", "parallel_requests"):
        return 1, None
    # A demand of zero fits even on a used-up account, so an unmetered request needs at least one.
    least = 1 if candidate.is_unmetered else 0
    if limit.unit == "usd":
        if candidate.worst_cost is not None:
            return max(least, candidate.worst_cost), None
        if not candidate.priced:
            return 0, None if limit.lets_unpriced_pass(candidate.model or "") else "unpriced"
        return max(1, candidate.input_cost), None if limit.allow_unbounded else "unbounded"
    parts = {
        "input_tokens": (ask.input_tokens,),
        "output_tokens": (ask.output_tokens,),
        "total_tokens": (ask.input_tokens, ask.output_tokens),
    }[limit.unit]
    known = [part for part in parts if part is not None]
    if len(known) == len(parts):
        return max(least, sum(known)), None
    return max(1, sum(known)), None if limit.allow_unbounded else "unbounded"


def _if_lost(limit: Limit, candidate: Candidate, ask: Ask, amount: int, on_lost: OnLost) -> int:
    """Return the charge if the worker dies. A request counts as one in any case; a parallel slot is freed."""
    if limit.unit == "parallel_requests":
        return 0
    if limit.unit == "requests" or on_lost == "charge":
        return amount
    if on_lost == "release" or limit.unit == "output_tokens":
        return 0
    return min(amount, candidate.input_cost if limit.unit == "usd" else (ask.input_tokens or 0))


def most_constrained_status(account_statuses: Iterable[AccountStatus]) -> AccountStatus | None:
    """Return the status of the most constrained of the caller's own limits, for response headers.

    This is the limit with the smallest share left.
    """
    tightest, least = None, math.inf
    for account_status in account_statuses:
        demand = account_status.demand
        if demand.maximum is None or not demand.limit.is_callers_own or demand.limit.dry_run:
            continue
        share = account_status.remaining / (demand.maximum or 1)
        if share < least:
            tightest, least = account_status, share
    return tightest
