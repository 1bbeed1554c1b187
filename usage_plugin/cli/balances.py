"""Standings in words: how an account stands now, for people and as JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from usage_plugin.cli.output import Column, thousands
from usage_plugin.domain.windows import to_datetime
from usage_plugin.tracking.refusals import format_amount, plain_amount

if TYPE_CHECKING:
    from collections.abc import Sequence

    from usage_plugin.domain.limits import Limit
    from usage_plugin.tracking.standings import AccountStanding

COLUMNS = (
    Column("limit"), Column("subject"), Column("unit"),
    *(Column(heading, number=True) for heading in ("allowed", "spent", "reserved", "remaining")),
    Column("resets"), Column(""),
)  # fmt: skip


def cells(standing: AccountStanding) -> list[str]:
    """Write a standing for people, in the order of `COLUMNS`."""
    limit = standing.limit
    return [
        limit.name,
        subject_words(limit.names_of(standing.subject)),
        limit.unit.replace("_", " "),
        amount_words(limit, standing.amount),
        amount_words(limit, standing.balance.spent),
        amount_words(limit, standing.balance.reserved),
        "" if standing.remaining is None else amount_words(limit, standing.remaining),
        resets_words(standing),
        ", ".join(remarks(standing)),
    ]


def remarks(standing: AccountStanding) -> Sequence[str]:
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
    return "unlimited" if amount is None else thousands(format_amount(limit.unit, amount))


def resets_words(standing: AccountStanding) -> str:
    """Say when a window ends, in the limit's own zone."""
    if not standing.limit.has_accounts:
        return "each request"
    resets = standing.limit.reset_of(standing.window)
    return f"{resets.astimezone(standing.limit.zone):%Y-%m-%d %H:%M %Z}" if resets else "never"


def plain(standing: AccountStanding) -> dict[str, Any]:
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
