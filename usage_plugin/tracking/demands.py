"""Demands: what a request asks of the accounts it will count on, at its worst.

Pure arithmetic between a request's bounds and the limits in force; nothing here knows how accounts stand.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal, NamedTuple

from usage_plugin.domain.ledger import AccountKey, Balance, Charge, Hold, has_room

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from usage_plugin.domain.limits import Limit, LimitSet, Matched
    from usage_plugin.domain.money import Nano
    from usage_plugin.domain.subjects import Subjects
    from usage_plugin.domain.usage import UsageEvent
    from usage_plugin.domain.windows import Window

OnLost = Literal["charge", "charge_input", "release"]
"""What is charged for a request whose worker died: what was held, the input's part of it, or nothing."""

Problem = Literal["unpriced", "unbounded"]
"""Why it cannot be said what a request needs of a limit."""


class Candidate(NamedTuple):
    """One way a request can be billed.

    Attributes:
        model: the `model_name` that would be billed; None if the request names none.
        priced: whether a price is known.
        worst_cost: the most it can cost; None if no price is known or nothing bounds the tokens.
        input_cost: the part of it that is owed if there is no answer; 0 if that is not known, or not asked for.
        is_unmetered: whether it may use more than its worst case says, which is only known afterwards.
    """

    model: str | None
    provider: str | None
    priced: bool
    worst_cost: Nano | None
    input_cost: Nano = 0
    is_unmetered: bool = False

    @property
    def held_cost(self) -> Nano | None:
        """What can be held for it: of a request that nothing bounds, what its input costs. None without a price."""
        if self.worst_cost is None and self.priced:
            return self.input_cost
        return self.worst_cost


class Ask(NamedTuple):
    """A request that wants to start. A NamedTuple, as all that is made for each request.

    Attributes:
        draft: the event as far as it is known; its status and cost are filled in by the decision.
        primary: the ways the model asked for can be billed.
        input_tokens: a bound; None if nothing bounds it.
        output_tokens: a bound; None if nothing bounds it.
        fallbacks: the ways it can be billed if that fails.
        is_downgraded: limits with `action: downgrade` have had their say; they only count now.
    """

    draft: UsageEvent
    subjects: Subjects
    primary: tuple[Candidate, ...]
    input_tokens: int | None
    output_tokens: int | None
    fallbacks: tuple[Candidate, ...] = ()
    is_downgraded: bool = False


class Demand(NamedTuple):
    """What a request asks of one account.

    Attributes:
        window: of the account; where the limit's window rolls, its bucket.
        account: the account it would be held on.
        maximum: the amount of the limit in force for this subject; None for unlimited.
        amount: what the request needs at most, in the limit's unit.
        if_lost: what is charged if nobody ever learns what it used.
        since: the start of the oldest bucket that counts, where the window rolls.
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
        """Make what a request of an instant asks of a limit that counts it."""
        window, account, maximum, since = matched.place_at(at)
        return cls(matched.limit, matched.subject, window, account, maximum, amount, if_lost, since)

    def hold(self, *, enforced: bool) -> Hold:
        """Make the hold; one that is not enforced always fits."""
        maximum = self.maximum if enforced else None
        return Hold(self.account, self.window.end, self.amount, maximum, self.if_lost, self.since)

    def charge(self) -> Charge:
        """Make what is added to the account once the request is over."""
        return Charge(self.account, self.window.end, self.amount)

    def fits(self, balance: Balance) -> bool:
        """Say whether the account has room, whatever the limit then does about it."""
        return has_room(balance, self.amount, self.maximum)


class Standing(NamedTuple):
    """How an account stands: what was asked of it, and its balance since."""

    demand: Demand
    balance: Balance

    @property
    def remaining(self) -> int:
        """What is left for further requests, never below zero."""
        spent, reserved = self.balance
        return max(0, (self.demand.maximum or 0) - spent - reserved)


def demands_of(
    ask: Ask, candidates: Sequence[Candidate], limits: LimitSet, on_lost: OnLost
) -> tuple[list[Demand], list[tuple[Demand, Problem, str | None]]]:
    """Work out what to hold on which account: on each the most that any candidate would take.

    Returns:
        The demands, with those on single requests, which no account keeps; and the demands of which nobody can say
        what they need, each with the reason and the model.
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
    """Find every account an event counts on, in the window of its admission, and with how much."""
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
    """Say what a request needs of a limit, or why that cannot be known."""
    if limit.unit in ("requests", "parallel_requests"):
        return 1, None
    # What needs nothing fits also where everything is spent.
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
    """Say what is charged if the worker dies. A request counts as one whatever became of it; a slot is free again."""
    if limit.unit == "parallel_requests":
        return 0
    if limit.unit == "requests" or on_lost == "charge":
        return amount
    if on_lost == "release" or limit.unit == "output_tokens":
        return 0
    return min(amount, candidate.input_cost if limit.unit == "usd" else (ask.input_tokens or 0))


def tightest_of_callers_own(standings: Iterable[Standing]) -> Standing | None:
    """Find the limit of the caller's own with the smallest share left, to be shown in headers."""
    tightest, least = None, math.inf
    for standing in standings:
        demand = standing.demand
        if demand.maximum is None or not demand.limit.is_callers_own or demand.limit.dry_run:
            continue
        share = standing.remaining / (demand.maximum or 1)
        if share < least:
            tightest, least = standing, share
    return tightest
