"""Stream the history to a file or a pipe; one page of records is in memory at a time."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click
from rich.text import Text

from usage_plugin.cli.erasure import EVERYBODY, audit, clean_reason, clean_user
from usage_plugin.cli.export.columns import DAYS, EVENTS
from usage_plugin.cli.export.destination import destination, prints_to_terminal
from usage_plugin.cli.export.formats import FORMATS
from usage_plugin.cli.output import Output, console, escape_control, thousands
from usage_plugin.cli.progress import BarInTime
from usage_plugin.domain.pseudonyms import NOBODY
from usage_plugin.domain.store import DailySum
from usage_plugin.domain.windows import days_window
from usage_plugin.tracking.history.reader import PAGE, pages

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from usage_plugin.cli.date_ranges import TypedDates
    from usage_plugin.cli.export.columns import RecordKind
    from usage_plugin.domain.store import UsageFilter
    from usage_plugin.runtime import Reader

KINDS: dict[str, RecordKind] = {"events": EVENTS, "days": DAYS}


@dataclass(frozen=True, kw_only=True)
class ExportRequest:
    """A requested export: `events` or `days`, and the other options as typed."""

    what: str
    dates: TypedDates
    usage_filter: UsageFilter
    reason: str


async def run(reader: Reader, *, output: Output, wanted: ExportRequest, to: Path | None, force: bool) -> None:
    """Write the events or the daily sums, in order of time."""
    if output.kind == "parquet" and prints_to_terminal(to):
        raise click.UsageError("Parquet cannot be printed to a terminal: add --to, or choose another --format.")
    user = wanted.usage_filter.user
    name = None if user is None or user in NOBODY else clean_user(reader, user)
    reason = clean_reason(wanted.reason, None if name is None else reader.person(name))
    subject = (user or EVERYBODY) if name is None else reader.pseudonym(name)
    kept = reader.kept_filter(wanted.usage_filter)
    first, last = wanted.dates.read(reader.tracker.today(), everything=True)
    kind = KINDS[wanted.what]
    stream: AsyncIterator[Any]
    if kind is EVENTS:
        window = days_window(first, last, reader.config.timezone)
        stream = reader.tracker.events(window, kept)
        end = min(window.end, reader.clock.now())
    else:
        stream = reader.tracker.days(first, last, kept)
        end = min(last, reader.tracker.today()).toordinal()
    counts: Counter[str] = Counter()
    bar = BarInTime(end, is_seen=not prints_to_terminal(to))
    with destination(to, force=force) as file, FORMATS[output.kind](file, kind) as write, bar.shown():
        try:
            async for page in pages(stream):
                counts[kind.name] += len(page)
                write(page)
                if len(page) == PAGE:  # a single page is written too fast for a progress bar
                    bar.reach(f"{thousands(counts[kind.name])} {wanted.what}", _time_of(page[0]), _time_of(page[-1]))
        finally:
            # Audited before the file appears, and also after an interruption: records may have been written.
            audit(reader, "export", subject, reason, counts)
    if to is not None:
        console().print(Text(escape_control(f"{to}: {thousands(counts[kind.name])} {wanted.what}.")))


def _time_of(record: Any) -> int:
    at: int = record.day.toordinal() if isinstance(record, DailySum) else record.started_at
    return at
