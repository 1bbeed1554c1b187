"""Grouping: the groups of events and sums, and the order of a report's rows."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, cast

from usage_plugin.domain.store import EVENT_DIMENSIONS, ROLLUP_DIMENSIONS, EventDimension, Grouping, daily_sum
from usage_plugin.domain.usage import UsageTotals, totals_of
from usage_plugin.domain.windows import hour_name, start_of_hour
from usage_plugin.tracking.history.packed_rows import ReportRow, Rows, in_order

if TYPE_CHECKING:
    from collections.abc import Sequence
    from zoneinfo import ZoneInfo

    from usage_plugin.domain.store import HourGrouping, RollupDimension
    from usage_plugin.domain.usage import UsageEvent
    from usage_plugin.tracking.history.packed_rows import Group


def only_sums(by: Sequence[Grouping | EventDimension]) -> Sequence[Grouping] | None:
    """Return the groupings if sums are kept by all of them; else None."""
    return cast("Sequence[Grouping]", by) if set(EVENT_DIMENSIONS).isdisjoint(by) else None


def only_names(by: Sequence[Grouping | EventDimension]) -> Sequence[RollupDimension] | None:
    """Return the groupings if none of them is a time; else None."""
    return cast("Sequence[RollupDimension]", by) if set(by) <= set(ROLLUP_DIMENSIONS) else None


def in_days(zone: ZoneInfo, by: Sequence[Grouping | EventDimension], event: UsageEvent) -> tuple[Group, UsageTotals]:
    """Return the group of an event by days and names, and its amounts."""
    one = daily_sum(event, zone)
    sums = only_sums(by)
    if sums is not None:
        return one.group(sums), one.totals
    groups = (
        getattr(event, name) if name in EVENT_DIMENSIONS else one.group((cast("Grouping", name),))[0] for name in by
    )
    return tuple(groups), one.totals


def in_hours(zone: ZoneInfo, by: Sequence[HourGrouping], event: UsageEvent) -> tuple[Group, UsageTotals]:
    """Return the group of an event by hours and models, and its amounts."""
    named = {
        "hour": hour_name(start_of_hour(event.started_at, zone), zone),
        "model": event.model,
        "provider": event.provider,
    }
    return tuple(named[grouping] for grouping in by), totals_of(event)


def add_to(groups: dict[Group, UsageTotals], group: Group, totals: UsageTotals) -> None:
    """Add amounts to a group."""
    groups[group] = groups.get(group, UsageTotals()).plus(totals)


def row_order(row: ReportRow, *, chronological: bool = False) -> tuple[object, ...]:
    """Return the key that sorts a row: by cost, the highest first, or by the names."""
    names = tuple([name or "" for name in row.group])
    return names if chronological else (-row.totals.cost, -row.totals.requests, names)


async def sorted_rows(groups: dict[Group, UsageTotals], *, chronological: bool) -> Rows[ReportRow]:
    """Return the groups as sorted rows. This empties `groups`."""
    items = (groups.popitem() for _ in range(len(groups)))
    return await in_order(items, partial(row_order, chronological=chronological))
