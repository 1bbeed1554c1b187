"""Balances of accounts, for people and as JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from usage_plugin.cli.output import Column, thousands
from usage_plugin.domain.amounts import format_amount, plain_amount
from usage_plugin.domain.windows import to_datetime

if TYPE_CHECKING:
    from collections.abc import Sequence

    from usage_plugin.domain.limits import Limit, Unit
    from usage_plugin.tracking.history.balances import AccountBalance


COLUMNS = (
    Column("limit"), Column("subject"), Column("unit"),
    *(Column(heading, number=True) for heading in ("allowed", "spent", "reserved", "remaining")),
    Column("resets"), Column(""),
)  # fmt: skip


def cells(account: AccountBalance) -> list[str]:
    """Return the table cells of an account, in the order of `COLUMNS`."""
    limit = account.limit
    return [
        limit.name,
        subject_words(limit.names_of(account.subject)),
        limit.unit.replace("_", " "),
        amount_words(limit, account.amount),
        amount_words(limit, account.balance.spent),
        amount_words(limit, account.balance.reserved),
        "" if account.remaining is None else amount_words(limit, account.remaining),
        resets_words(account),
        ", ".join(remarks(account)),
    ]


def remarks(account: AccountBalance) -> Sequence[str]:
    """Return deviations from the default: a limit that does not block, an override or an adjustment in force."""
    limit, source = account.limit, account.source
    found: list[str] = ["dry run"] if limit.dry_run else [] if limit.action == "block" else [limit.action]
    until = "" if source.until is None else f" until {to_datetime(source.until, limit.zone):%Y-%m-%d %H:%M %Z}"
    if source.adjustment is not None:
        what = "paused" if source.adjustment.amount is None else "adjusted"
        found.append(f"{what}{until} ({source.adjustment.number})")
    elif source.kind == "override" and until:
        found.append(f"override{until}")
    return found


def subject_words(names: dict[str, str]) -> str:
    """Return a subject in words."""
    return ", ".join(f"{dimension} {name}" for dimension, name in names.items()) or "everybody"


def amount_words(limit: Limit, amount: int | None) -> str:
    """Return an amount of a limit in words."""
    return "unlimited" if amount is None else thousands(format_amount(limit.unit, amount))


def unit_words(unit: Unit) -> str:
    """Return a unit in words."""
    return "USD" if unit == "usd" else unit.replace("_", " ")


def resets_words(account: AccountBalance) -> str:
    """Return the end of an account's window, in the limit's own time zone."""
    if not account.limit.has_accounts:
        return "each request"
    resets = account.limit.reset_of(account.window)
    return f"{resets.astimezone(account.limit.zone):%Y-%m-%d %H:%M %Z}" if resets else "never"


def plain(account: AccountBalance) -> dict[str, Any]:
    """Return an account as JSON."""
    limit, source = account.limit, account.source
    unit = limit.unit
    resets = limit.reset_of(account.window) if limit.has_accounts else None
    return {
        "name": limit.name,
        "subject": limit.names_of(account.subject),
        "unit": unit,
        "limit": None if account.amount is None else plain_amount(unit, account.amount),
        "spent": plain_amount(unit, account.balance.spent),
        "reserved": plain_amount(unit, account.balance.reserved),
        "remaining": None if account.remaining is None else plain_amount(unit, account.remaining),
        "window": {
            "start": to_datetime(account.window.start).isoformat(),
            "end": resets.isoformat() if resets else None,
        },
        "action": limit.action,
        "dry_run": limit.dry_run,
        "amount_from": source.kind,
        "amount_until": None if source.until is None else to_datetime(source.until).isoformat(),
        "adjustment": source.adjustment.number if source.adjustment else None,
    }
