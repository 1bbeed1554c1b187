"""`usage-plugin limits`: every account of the limits in force."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from usage_plugin.cli.output import Column, Output, table
from usage_plugin.domain.ledger import Account, AccountKey, Balance
from usage_plugin.domain.windows import Window, to_datetime
from usage_plugin.tracking.refusals import format_amount, plain_amount

if TYPE_CHECKING:
    from collections.abc import Iterable

    from usage_plugin.domain.limits import Limit
    from usage_plugin.runtime import Reader


class _Row(NamedTuple):
    limit: Limit
    subject: dict[str, str]
    amount: int | None
    balance: Balance
    window: Window

    @property
    def remaining(self) -> int | None:
        if self.amount is None:
            return None
        return max(0, self.amount - self.balance.spent - self.balance.reserved)


async def run(reader: Reader, *, output: Output, user: str | None) -> None:
    """Print the accounts of the windows that are open now."""
    rows = list(_rows(reader, user))
    if output.is_table:
        table(
            "Limits" if user is None else f"Limits that count {user}",
            [Column("limit"), Column("subject"), Column("unit"), *(
                Column(heading, number=True) for heading in ("limit", "spent", "reserved", "remaining")
            ), Column("resets"), Column("")],
            [_cells(row) for row in rows],
        )  # fmt: skip
        return
    plain = [_plain(row) for row in rows]
    output.document({"limits": plain}, plain)


def _rows(reader: Reader, user: str | None) -> Iterable[_Row]:
    now = reader.clock.now()
    for limit in reader.limits.limits:
        if not limit.has_accounts:
            continue
        window, since = limit.window_at(now), limit.since_at(now)
        if since is not None:
            window = window._replace(start=since)
        for account in _accounts(reader, limit, window, user):
            subject = limit.names_of(account.key.subject)
            if user is None or subject.get("user", user) == user:
                matched = reader.limits.account(limit, account.key.subject)
                yield _Row(limit, subject, matched.amount_at(now), account.balance, window)


def _accounts(reader: Reader, limit: Limit, window: Window, user: str | None) -> list[Account]:
    """List the accounts of a limit; somebody asked for who has spent nothing yet has one too."""
    later = reader.ledger.accounts(limit.key, window.start)
    if limit.window.kind == "rolling":
        accounts = _add_up(later, window)
    else:
        accounts = [account for account in later if account.key.window_start == window.start]
    if user is not None and not reader.limits.may_count(limit, user):
        return []
    if limit.per == ("global",):
        subject = ""
    elif limit.per == ("user",) and user is not None:
        subject = user
    else:
        return accounts if user is None or "user" in limit.per else []
    key = AccountKey(limit.key, window.start, subject)
    return [account for account in accounts if account.key == key] or [Account(key, window.end, Balance())]


def _add_up(buckets: list[Account], window: Window) -> list[Account]:
    """Make one account for each subject of a rolling window's buckets."""
    sums: dict[AccountKey, Balance] = {}
    for key, _, (spent, reserved) in buckets:
        at = key._replace(window_start=window.start)
        before = sums.get(at, Balance())
        sums[at] = Balance(before.spent + spent, before.reserved + reserved)
    return [Account(key, window.end, balance) for key, balance in sums.items()]


def _cells(row: _Row) -> list[str]:
    unit = row.limit.unit
    resets = row.limit.reset_of(row.window)
    kind = "dry run" if row.limit.dry_run else "" if row.limit.action == "block" else row.limit.action
    return [
        row.limit.name,
        ", ".join(f"{dimension} {name}" for dimension, name in row.subject.items()) or "everybody",
        unit.replace("_", " "),
        "unlimited" if row.amount is None else format_amount(unit, row.amount),
        format_amount(unit, row.balance.spent),
        format_amount(unit, row.balance.reserved),
        "" if row.remaining is None else format_amount(unit, row.remaining),
        f"{resets.astimezone(row.limit.zone):%Y-%m-%d %H:%M %Z}" if resets else "never",
        kind,
    ]


def _plain(row: _Row) -> dict[str, Any]:
    unit = row.limit.unit
    return {
        "name": row.limit.name,
        "subject": row.subject,
        "unit": unit,
        "limit": None if row.amount is None else plain_amount(unit, row.amount),
        "spent": plain_amount(unit, row.balance.spent),
        "reserved": plain_amount(unit, row.balance.reserved),
        "remaining": None if row.remaining is None else plain_amount(unit, row.remaining),
        "window": {
            "start": to_datetime(row.window.start).isoformat(),
            "end": resets.isoformat() if (resets := row.limit.reset_of(row.window)) else None,
        },
        "action": row.limit.action,
        "dry_run": row.limit.dry_run,
    }
