"""`usage-plugin report`: sums by user, model, day and other groupings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import click
from rich.text import Text

from usage_plugin.cli.output import Column, Output, at_terminal, console, table, thousands
from usage_plugin.domain.money import format_usd
from usage_plugin.domain.store import EVENT_DIMENSIONS, GROUPINGS, ROLLUP_DIMENSIONS, EventDimension, Grouping
from usage_plugin.domain.usage import sum_totals
from usage_plugin.tracking.history.reader import Top

if TYPE_CHECKING:
    from collections.abc import Sequence

    from usage_plugin.cli.date_ranges import TypedDates
    from usage_plugin.domain.store import UsageFilter
    from usage_plugin.domain.usage import UsageTotals
    from usage_plugin.runtime import Reader

MOST_SHOWN = 50
"""The number of groups shown at a terminal without `--top`."""
_NAMES = (*ROLLUP_DIMENSIONS, *EVENT_DIMENSIONS)
_NUMBERS = ("requests", "failed_requests", "input_tokens", "output_tokens")


async def run(
    reader: Reader,
    *,
    output: Output,
    by: str,
    top: int | None,
    dates: TypedDates,
    usage_filter: UsageFilter,
) -> None:
    """Print the report."""
    groupings = _groupings(by)
    first, last = dates.read(reader.tracker.today())
    kept = reader.kept_filter(usage_filter)
    # A report in order of time is never cut to the most expensive groups.
    most = top or (MOST_SHOWN if output.is_table and at_terminal() and groupings[0] in _NAMES else None)
    if most is None:
        rows = await reader.tracker.report(groupings, first, last, kept)
        found = Top(rows, len(rows), sum_totals(row.totals for row in rows))
    else:
        found = await reader.tracker.top(groupings, first, last, kept, most=most)
    others = found.total.minus(sum_totals(row.totals for row in found.rows))
    left_out = found.in_all - len(found.rows)
    if output.is_table:
        _show(f"Usage from {first} to {last} ({reader.config.timezone})", groupings, found, others)
        if left_out and not top:
            note = f"Showing the top {len(found.rows)} of {found.in_all:,} by cost; --top {found.in_all} shows all."
            console().print(Text(note))
        return
    plain = [{**dict(zip(groupings, row.group, strict=True)), **_plain(row.totals)} for row in found.rows]
    remainder = {"others": {"groups": left_out, **_plain(others)}} if top else {}
    output.document({"rows": plain, **remainder, "total": _plain(found.total)}, plain)


def _show(title: str, groupings: Sequence[Grouping | EventDimension], found: Top, others: UsageTotals) -> None:
    rows = [[*(name or "-" for name in row.group), *_cells(row.totals)] for row in found.rows]
    blank = [""] * (len(groupings) - 1)
    if left_out := found.in_all - len(found.rows):
        rows.append([f"others ({left_out:,})", *blank, *_cells(others)])
    table(
        title,
        [*map(Column, groupings), *(Column(name.replace("_", " "), number=True) for name in _NUMBERS),
         Column("cost USD", number=True)],
        rows,
        ["total", *blank, *_cells(found.total)],
    )  # fmt: skip


def _groupings(by: str) -> list[Grouping | EventDimension]:
    known = (*GROUPINGS, *EVENT_DIMENSIONS)
    names = [name.strip() for name in by.split(",") if name.strip()]
    unknown = [name for name in names if name not in known]
    if unknown or not names or len(set(names)) < len(names):
        raise click.BadParameter(f"--by: expected one or more of {', '.join(known)}, each once; found {by!r}.")
    return cast("list[Grouping | EventDimension]", names)


def _cells(totals: UsageTotals) -> list[str]:
    return [*(thousands(getattr(totals, name)) for name in _NUMBERS), thousands(format_usd(totals.cost))]


def _plain(totals: UsageTotals) -> dict[str, Any]:
    return {**{name: getattr(totals, name) for name in _NUMBERS}, "cost": format_usd(totals.cost)}
