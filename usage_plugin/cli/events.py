"""`usage-plugin events`: the last requests, and with `--follow` new ones as they are settled."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from rich.text import Text

from usage_plugin.cli.export.columns import EVENTS
from usage_plugin.cli.output import Column, Output, console, escape_control, table, thousands
from usage_plugin.domain.money import format_usd
from usage_plugin.domain.store import UsageFilter
from usage_plugin.domain.windows import to_datetime
from usage_plugin.tracking.history.reader import has_names, named

if TYPE_CHECKING:
    from collections.abc import Callable
    from zoneinfo import ZoneInfo

    from usage_plugin.domain.store import EventDimension
    from usage_plugin.domain.usage import UsageEvent
    from usage_plugin.runtime import Reader

_POLL_SECONDS = 0.5
_COLUMNS = (
    Column("started"), Column("user"), Column("model"), Column("status"), Column("ms", number=True),
    Column("input", number=True), Column("output", number=True), Column("cost USD", number=True), Column("note"),
)  # fmt: skip


async def run(
    reader: Reader,
    *,
    output: Output,
    user: str | None,
    session: str | None,
    agent: str | None,
    last: int,
    follow: bool,
) -> None:
    """Print the last events, oldest first, then new ones as they are settled."""
    zone = reader.config.timezone
    usage_filter = reader.kept_filter(UsageFilter(user=user))
    given: dict[EventDimension, str | None] = {"session": session, "agent": agent}
    only = {dimension: name for dimension, name in given.items() if name is not None}
    # Read before the events: a request settled in between is then seen twice rather than never.
    seq = reader.ledger.acknowledged()
    found: list[UsageEvent] = []
    async for event in named(reader.tracker.events(usage_filter=usage_filter, newest_first=True), only):
        found.append(event)
        if len(found) == last:
            break
    found.reverse()
    if output.is_table:
        table(f"Last {len(found)} events ({zone})", _COLUMNS, [_cells(event, zone) for event in found])
    elif follow:
        for event in found:
            output.line(plain_event(event))
    else:
        plain = [plain_event(event) for event in found]
        output.document({"events": plain}, plain)
    if follow:

        def wanted(event: UsageEvent) -> bool:
            return usage_filter.takes(event) and has_names(event, only)

        await _follow(reader, output, wanted, seq, {event.event_id for event in found})


async def _follow(
    reader: Reader, output: Output, wanted: Callable[[UsageEvent], bool], seq: int, shown: set[str]
) -> None:
    """Print events in the order of settlement, until the process is interrupted."""
    screen = console()
    started = reader.clock.now()
    while True:
        for number, event in reader.tracker.settled_after(seq):
            seq = number
            fresh = event.event_id not in shown and event.started_at + event.duration_us >= started - 1_000_000
            if fresh and wanted(event):
                if output.is_table:
                    screen.print(Text(escape_control(_line(event, reader.config.timezone))))
                else:
                    output.line(plain_event(event))
        shown.clear()
        await asyncio.sleep(_POLL_SECONDS)


def plain_event(event: UsageEvent) -> dict[str, Any]:
    """Return an event as JSON."""
    return EVENTS.plain(event)


def _cells(event: UsageEvent, zone: ZoneInfo) -> list[str]:
    notes = [
        event.error,
        "cache hit" if event.cache_hit else None,
        "estimated" if event.estimated else None,
        "disputed" if event.disputed else None,
        "no price" if event.cost is None else None,
        f"excess {format_usd(event.excess)}" if event.excess else None,
        f"instead of {event.requested_model}" if event.downgraded_by else None,
        f"limited to {event.clamped_to} tokens" if event.clamped_to else None,
        "without ledger" if event.degraded else None,
    ]
    return [
        f"{to_datetime(event.started_at, zone):%Y-%m-%d %H:%M:%S}",
        event.user,
        event.model or "-",
        event.status,
        thousands(event.duration_us // 1000),
        thousands(event.input_tokens),
        thousands(event.output_tokens),
        "-" if event.cost is None else thousands(format_usd(event.cost)),
        ", ".join(filter(None, notes)),
    ]


def _line(event: UsageEvent, zone: ZoneInfo) -> str:
    """Return an event as a line with units, for output without headings."""
    started, user, model, status, milliseconds, tokens_in, tokens_out, cost, note = _cells(event, zone)
    parts = (started, user, model, status, f"{milliseconds} ms", f"{tokens_in} in", f"{tokens_out} out", f"{cost} USD")
    return "  ".join((*parts, note)).rstrip()
