"""Standings: how an account stands now, with the amount in force and where that comes from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from usage_plugin.cli.output import Column
from usage_plugin.domain.ledger import AccountKey, Adjustment, Balance
from usage_plugin.domain.windows import Window, to_datetime
from usage_plugin.tracking.refusals import format_amount, plain_amount

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from usage_plugin.domain.ledger import Account
    from usage_plugin.domain.limits import Limit, Matched
    from usage_plugin.runtime import Reader

COLUMNS = (
    Column("limit"), Column("subject"), Column("unit"),
    *(Column(heading, number=True) for heading in ("limit", "spent", "reserved", "remaining")),
    Column("resets"), Column(""),
)  # fmt: skip


class Source(NamedTuple):
    """Where the amount in force comes from, and until when; None: as long as the YAML says so."""

    kind: Literal["limit", "override", "adjustment"]
    until: int | None = None
    adjustment: Adjustment | None = None


class Standing(NamedTuple):
    """An account, or the buckets of a rolling window added up."""

    limit: Limit
    subject: str
    amount: int | None
    source: Source
    balance: Balance
    window: Window

    @property
    def remaining(self) -> int | None:
        """What is left, never below zero; None for unlimited."""
        if self.amount is None:
            return None
        return max(0, self.amount - self.balance.spent - self.balance.reserved)


class Standings:
    """Reads how accounts stand at an instant."""

    def __init__(self, reader: Reader, at: int) -> None:
        """Read which adjustments are in force; `at` in microseconds since 1970 UTC."""
        self.at = at
        self._ledger = reader.ledger
        self._limits = reader.limits
        # Later ones come in place of earlier ones.
        self._adjustments = {
            (found.limit, found.subject): found
            for found in reader.ledger.adjustments(at)
            if found.ended_at is None or found.ended_at > at
        }

    def of(self, matched: Matched) -> Standing:
        """Look at one account; who has spent nothing yet has one too."""
        limit, subject = matched.limit, matched.subject
        window = self._window(limit)
        if not limit.has_accounts:
            balance = Balance()
        elif limit.since_at(self.at) is None:
            key = AccountKey(limit.key, window.start, subject)
            balance = self._ledger.balances([key])[key]
        else:
            balance = _sum(self._ledger.buckets(limit.key, subject, window.start))
        return Standing(limit, subject, matched.amount_at(self.at), self._source(matched), balance, window)

    def all_of(self, limit: Limit) -> list[Standing]:
        """Look at every account of a limit that somebody has used in the window."""
        window = self._window(limit)
        by_subject: dict[str, list[Account]] = {}
        for account in self._ledger.accounts(limit.key, window.start):
            if limit.since_at(self.at) is not None or account.key.window_start == window.start:
                by_subject.setdefault(account.key.subject, []).append(account)
        found = []
        for subject, accounts in by_subject.items():
            matched = self._limits.account(limit, subject)
            found.append(
                Standing(
                    limit, subject, matched.amount_at(self.at), self._source(matched), _sum(accounts), window
                )
            )  # fmt: skip
        return found

    def _window(self, limit: Limit) -> Window:
        """Find what counts now: the window, or from the oldest bucket on."""
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


def cells(standing: Standing) -> list[str]:
    """Write a standing for people, in the order of `COLUMNS`."""
    limit = standing.limit
    return [
        limit.name,
        subject_words(limit.names_of(standing.subject)),
        limit.unit.replace("_", " "),
        amount_words(limit, standing.amount),
        format_amount(limit.unit, standing.balance.spent),
        format_amount(limit.unit, standing.balance.reserved),
        "" if standing.remaining is None else format_amount(limit.unit, standing.remaining),
        resets_words(standing),
        ", ".join(remarks(standing)),
    ]


def remarks(standing: Standing) -> Sequence[str]:
    """Say what is not as usual: a limit that refuses nobody, an amount that is not the limit's own."""
    limit, source = standing.limit, standing.source
    found: list[str] = ["dry run"] if limit.dry_run else [] if limit.action == "block" else [limit.action]
    until = "" if source.until is None else f" until {to_datetime(source.until, limit.zone):%Y-%m-%d %H:%M %Z}"
    if source.adjustment is not None:
        what = "paused" if source.adjustment.amount is None else "adjusted"
        found.append(f"{what}{until} ({source.adjustment.number})")
    elif source.kind == "override" and until:
        found.append(f"override{until}")
    return found


def subject_words(names: dict[str, str]) -> str:
    """Name a subject for people."""
    return ", ".join(f"{dimension} {name}" for dimension, name in names.items()) or "everybody"


def amount_words(limit: Limit, amount: int | None) -> str:
    """Write an amount of a limit for people."""
    return "unlimited" if amount is None else format_amount(limit.unit, amount)


def resets_words(standing: Standing) -> str:
    """Say when a window ends, in the limit's own zone."""
    if not standing.limit.has_accounts:
        return "each request"
    resets = standing.limit.reset_of(standing.window)
    return f"{resets.astimezone(standing.limit.zone):%Y-%m-%d %H:%M %Z}" if resets else "never"


def plain(standing: Standing) -> dict[str, Any]:
    """Give a standing as JSON has it."""
    limit, source = standing.limit, standing.source
    unit = limit.unit
    resets = limit.reset_of(standing.window) if limit.has_accounts else None
    return {
        "name": limit.name,
        "subject": limit.names_of(standing.subject),
        "unit": unit,
        "limit": None if standing.amount is None else plain_amount(unit, standing.amount),
        "spent": plain_amount(unit, standing.balance.spent),
        "reserved": plain_amount(unit, standing.balance.reserved),
        "remaining": None if standing.remaining is None else plain_amount(unit, standing.remaining),
        "window": {
            "start": to_datetime(standing.window.start).isoformat(),
            "end": resets.isoformat() if resets else None,
        },
        "action": limit.action,
        "dry_run": limit.dry_run,
        "amount_from": source.kind,
        "amount_until": None if source.until is None else to_datetime(source.until).isoformat(),
        "adjustment": source.adjustment.number if source.adjustment else None,
    }
