"""`usage-plugin patterns`: notable patterns in the history, with their cost."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.text import Text

from usage_plugin.cli.output import Column, Output, console, table, thousands
from usage_plugin.cli.progress import counting_bar
from usage_plugin.config import read_proxy_section
from usage_plugin.domain.money import format_usd
from usage_plugin.pricing.model_list import configured_rates
from usage_plugin.tracking.analysis.patterns import LATELY_DAYS, Known, find_patterns
from usage_plugin.tracking.history.balances import AccountBalances

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from usage_plugin.cli.date_ranges import TypedDates
    from usage_plugin.domain.patterns import Pattern
    from usage_plugin.runtime import Reader
    from usage_plugin.tracking.analysis.patterns import Found

_COLUMNS = (
    Column("type"), Column("description"), Column("impact USD", number=True), Column("users"),
    Column("confidence", number=True),
)  # fmt: skip
_NAMED = 3
"""The number of users named in a table cell; the others are counted."""


async def run(
    reader: Reader,
    *,
    output: Output,
    dates: TypedDates,
    types: Collection[str],
    users: int,
) -> None:
    """Print the patterns of some types, or of all."""
    first, last = dates.read(reader.tracker.today())
    known = Known(
        configured_rates(read_proxy_section(reader.config.path, "model_list")),
        reader.limits,
        AccountBalances(reader.ledger, reader.operations, reader.limits, reader.clock.now()),
        reader.config.timezone,
    )
    with counting_bar("examining users") as advance:
        found = await find_patterns(reader.tracker, first, last, known, most_users=users, advance=advance)
    patterns = [pattern for pattern in found.patterns if not types or pattern.type in types]
    if output.is_table:
        title = f"Patterns from {first} to {last} ({reader.config.timezone})"
        table(title, _COLUMNS, [_cells(pattern) for pattern in patterns])
        console().print(Text(_scope_words(found)))
        return
    plain = [_plain(pattern) for pattern in patterns]
    document = {
        "first_day": first.isoformat(),
        "last_day": last.isoformat(),
        "users_looked_at": found.users,
        "users_in_all": found.users_in_all,
        "least_spend": None if found.least_spend is None else format_usd(found.least_spend),
        "events_read": found.events,
        "patterns": plain,
    }
    output.document(document, plain)


def _scope_words(found: Found) -> str:
    if not found.users_in_all:
        return "No users were examined."
    text = f"{thousands(found.users)} of {thousands(found.users_in_all)} users were examined individually"
    if found.least_spend is not None:
        text += f"; none of the others spent more than {format_usd(found.least_spend)} USD in {LATELY_DAYS} days"
    return f"{text}. {thousands(found.events)} requests were read individually."


def _cells(pattern: Pattern) -> list[str]:
    impact = "" if pattern.cost_impact is None else format_usd(round(pattern.cost_impact, -7))
    return [
        pattern.type.replace("_", " "),
        pattern.description,
        impact,
        _names(pattern.affected_users),
        f"{pattern.confidence:.0%}",
    ]


def _names(users: Sequence[str]) -> str:
    more = len(users) - _NAMED
    return ", ".join(users[:_NAMED]) + (f" and {thousands(more)} more" if more > 0 else "")


def _plain(pattern: Pattern) -> dict[str, Any]:
    return {
        "type": pattern.type,
        "description": pattern.description,
        "advice": pattern.advice,
        "cost_impact": None if pattern.cost_impact is None else format_usd(pattern.cost_impact),
        "affected_users": list(pattern.affected_users),
        "models": list(pattern.models),
        "providers": list(pattern.providers),
        "confidence": pattern.confidence,
        "confidence_basis": pattern.confidence_basis,
        "evidence": {**pattern.evidence, **{name: format_usd(nano) for name, nano in pattern.amounts.items()}},
    }
