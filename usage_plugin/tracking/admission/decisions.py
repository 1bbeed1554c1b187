"""Decisions: the outcomes of admission, with all facts for the client, the log and plugins."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from usage_plugin.domain.amounts import plain_amount
from usage_plugin.domain.ledger import NOTHING, AccountKey, Balance
from usage_plugin.domain.usage import new_ref
from usage_plugin.domain.windows import to_datetime

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from usage_plugin.domain.refusals import Reason
    from usage_plugin.domain.subjects import Subjects
    from usage_plugin.domain.usage import UsageEvent
    from usage_plugin.tracking.admission.demands import AccountStatus, Ask, Demand


class Admitted(NamedTuple):
    """The result for a request that may start. It must be settled by its event's id.

    Attributes:
        event: the event to record if the actual usage is never known: the reserved cost, status `recovered`.
        demands: the amounts held, one for each account.
        balances: balances of the accounts before this hold. For a rolling limit, the sum over its window.
        without_fallbacks: whether only the primary model fits, so that fallbacks must be disabled.
        account_status: the status of the caller's own limit with the smallest share left, after this hold.
        warnings: names of the exceeded limits with `action: warn`.
        holds: False if the ledger did not work, so that nothing is held.
    """

    event: UsageEvent
    subjects: Subjects
    demands: tuple[Demand, ...]
    balances: Mapping[AccountKey, Balance]
    without_fallbacks: bool
    account_status: AccountStatus | None
    warnings: tuple[str, ...]
    holds: bool = True


def unheld(event: UsageEvent, subjects: Subjects) -> Admitted:
    """Return an admission for a request that was never checked. It is recorded and charged; nothing was held."""
    return Admitted(event, subjects, (), {}, False, None, (), holds=False)


@dataclass(frozen=True, slots=True)
class Downgrade:
    """The result for a request that may start only with another model.

    Attributes:
        demand: the demand that did not fit, on a limit with `action: downgrade`.
        balance: the account's balance, as in `Refusal`.
        model: the `model_name` to request instead.
    """

    demand: Demand
    balance: Balance
    model: str


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """The result for a request that may not start.

    Attributes:
        ref: the identifier by which support can find the refusal.
        demand: the demand that did not fit; None if the cause is not a limit (the ledger does not work).
        balance: the account's balance before this request. For a rolling limit, the sum over its window.
        retry_after: microseconds to wait; None if waiting does not help.
        rolled_away_at: the time at which enough spend has expired, for a rolling limit.
        route: the route's method and path, if no request of that route may start.
        fields: the fields of unknown cost, if they are the reason.
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
    def is_enforced(self) -> bool:
        """Whether the refusal is enforced. False for dry runs, which are only counted."""
        return self.demand is None or not self.demand.limit.dry_run

    @property
    def waits_for_window(self) -> bool:
        """Whether the request would not fit even if all requests in flight were released."""
        demand = self.demand
        return demand is not None and self.balance.spent + demand.amount > (demand.maximum or 0)

    @cached_property
    def resets_at(self) -> datetime | None:
        """The time in UTC from which the request fits if nothing else is charged; None if there is no such time."""
        if self.demand is None:
            return None
        if self.rolled_away_at is not None:
            return to_datetime(self.rolled_away_at)
        return self.demand.limit.reset_of(self.demand.window)

    @cached_property
    def facts(self) -> dict[str, Any]:
        """The facts under the names of the public contract. USD amounts are decimal strings."""
        facts: dict[str, Any] = {
            "ref": self.ref,
            "at": to_datetime(self.at).isoformat(),
            "reason": self.reason,
            "user": self.user,
            "model": self.model,
            "dry_run": not self.is_enforced,
        }
        demand = self.demand
        if demand is not None:
            limit, unit = demand.limit, demand.limit.unit
            facts |= {
                "limit": limit.name,
                "subject": limit.names_of(demand.subject),
                "unit": unit,
                "max": None if demand.maximum is None else plain_amount(unit, demand.maximum),
                "spent": plain_amount(unit, self.balance.spent),
                "reserved": plain_amount(unit, self.balance.reserved),
                "needed": plain_amount(unit, demand.amount),
                "resets_at": self.resets_at.isoformat() if self.resets_at else None,
            }
        return facts


class Decision(NamedTuple):
    """The outcome for a request, and the refusals by dry-run limits, which are not enforced."""

    outcome: Admitted | Refusal
    dry_run_refusals: Sequence[Refusal]


def refuse(
    reason: Reason,
    ask: Ask,
    demand: Demand | None = None,
    model: str | None = None,
    *,
    balance: Balance = NOTHING,
    retry_after: int | None = None,
    rolled_away_at: int | None = None,
) -> Refusal:
    """Return the refusal of a request, under a new reference."""
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
