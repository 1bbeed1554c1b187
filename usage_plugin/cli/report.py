"""`usage-plugin report`: sums by user, model, day and the like."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import click

from usage_plugin.cli.output import Column, Output, table, thousands
from usage_plugin.cli.spans import read_span
from usage_plugin.domain.money import format_usd
from usage_plugin.domain.store import GROUPINGS, Grouping
from usage_plugin.domain.usage import UsageTotals

if TYPE_CHECKING:
    from usage_plugin.domain.store import UsageFilter
    from usage_plugin.runtime import Reader

_NUMBERS = ("requests", "failed_requests", "input_tokens", "output_tokens")


async def run(
    reader: Reader,
    *,
    output: Output,
    by: str,
    since: str | None,
    until: str | None,
    month: str | None,
    usage_filter: UsageFilter,
) -> None:
    """Print the report."""
    groupings = _groupings(by)
    first, last = read_span(reader.tracker.today(), since, until, month)
    rows = await reader.tracker.report(groupings, first, last, reader.kept_filter(usage_filter))
    total = UsageTotals()
    for row in rows:
        total = total.plus(row.totals)
    if output.is_table:
        table(
            f"Usage from {first} to {last} ({reader.config.timezone})",
            [*map(Column, groupings), *(Column(name.replace("_", " "), number=True) for name in _NUMBERS),
             Column("cost USD", number=True)],
            [[*(name or "-" for name in row.group), *_cells(row.totals)] for row in rows],
            ["total", *[""] * (len(groupings) - 1), *_cells(total)],
        )  # fmt: skip
        return
    plain = [{**dict(zip(groupings, row.group, strict=True)), **_plain(row.totals)} for row in rows]
    output.document({"rows": plain, "total": _plain(total)}, plain)


def _groupings(by: str) -> list[Grouping]:
    names = [name.strip() for name in by.split(",") if name.strip()]
    unknown = [name for name in names if name not in GROUPINGS]
    if unknown or not names or len(set(names)) < len(names):
        raise click.BadParameter(f"--by {by}: write one or more of {', '.join(GROUPINGS)}, each once.")
    return cast(list[Grouping], names)


def _cells(totals: UsageTotals) -> list[str]:
    return [*(thousands(getattr(totals, name)) for name in _NUMBERS), format_usd(totals.cost)]


def _plain(totals: UsageTotals) -> dict[str, Any]:
    return {**{name: getattr(totals, name) for name in _NUMBERS}, "cost": format_usd(totals.cost)}
