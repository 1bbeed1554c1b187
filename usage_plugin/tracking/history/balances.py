"""Balances: the current status of accounts, with the current amount of the limit and its source."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

from usage_plugin.domain.ledger import AccountKey, Balance

if TYPE_CHECKING:
    from collections.abc import Iterable

    from usage_plugin.domain.ledger import Account, Ledger
    from usage_plugin.domain.limit_set import LimitSet, Matched
    from usage_plugin.domain.limits import Limit
    from usage_plugin.domain.operations import Adjustment, OperationsLog
    from usage_plugin.domain.windows import Window


class Source(NamedTuple):
    """The source of a limit's current amount, and its end. None: until the YAML changes."""

    kind: Literal["limit", "override", "adjustment"]
    until: int | None = None
    adjustment: Adjustment | None = None


class AccountBalance(NamedTuple):
    """The status of an account. For a rolling window, the sum of its buckets."""

    limit: Limit
    subject: str
    amount: int | None
    source: Source
    balance: Balance
    window: Window

    @property
    def remaining(self) -> int | None:
        """The amount left, never below zero; None for unlimited."""
        if self.amount is None:
            return None
        return max(0, self.amount - self.balance.spent - self.balance.reserved)


class AccountBalances:
    """Read the status of accounts at an instant."""

    def __init__(self, ledger: Ledger, operations: OperationsLog, limits: LimitSet, at: int) -> None:
        """Read the adjustments that are active at `at`, in microseconds since 1970 UTC."""
        self.at = at
        self._ledger = ledger
        self.limits = limits
        # Later adjustments replace earlier ones.
        self._adjustments = {
            (found.limit, found.subject): found
            for found in operations.adjustments(at)
            if found.ended_at is None or found.ended_at > at
        }

    def of(self, matched: Matched) -> AccountBalance:
        """Return the status of one account. A subject that has spent nothing yet has one too."""
        limit, subject = matched.limit, matched.subject
        window = self._window(limit)
        if not limit.has_accounts:
            balance = Balance()
        elif limit.since_at(self.at) is None:
            key = AccountKey(limit.key, window.start, subject)
            balance = self._ledger.balances([key])[key]
        else:
            balance = _sum(self._ledger.accounts(limit.key, window.start, subject))
        return AccountBalance(limit, subject, matched.amount_at(self.at), self._source(matched), balance, window)

    def all_of(self, limit: Limit) -> list[AccountBalance]:
        """Return the status of each account of a limit that was used in the window."""
        window = self._window(limit)
        by_subject: dict[str, list[Account]] = {}
        for account in self._ledger.accounts(limit.key, window.start):
            if limit.since_at(self.at) is not None or account.key.window_start == window.start:
                by_subject.setdefault(account.key.subject, []).append(account)
        found = []
        for subject, accounts in by_subject.items():
            matched = self.limits.account(limit, subject)
            found.append(
                AccountBalance(
                    limit, subject, matched.amount_at(self.at), self._source(matched), _sum(accounts), window
                )
            )
        return found

    def _window(self, limit: Limit) -> Window:
        """Return the span that counts now: the window, or the time since the start of the oldest bucket."""
        window, since = limit.window_at(self.at), limit.since_at(self.at)
        return window if since is None else window._replace(start=since)

    def _source(self, matched: Matched) -> Source:
        adjustment = self._adjustments.get((matched.limit.name, matched.subject))
        if adjustment is not None and adjustment.until > self.at:
            return Source("adjustment", adjustment.until, adjustment)
        in_force = next(i for i, (until, _) in enumerate(matched.amounts) if until is None or self.at < until)
        last = len(matched.amounts) - 1
        return Source("limit") if in_force == last else Source("override", matched.amounts[in_force][0])


def _sum(accounts: Iterable[Account]) -> Balance:
    balances = [account.balance for account in accounts]
    return Balance(sum(balance.spent for balance in balances), sum(balance.reserved for balance in balances))
