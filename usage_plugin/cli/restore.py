"""`usage-plugin restore`: the database of a hybrid store, made anew out of its files alone."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from usage_plugin.cli.output import Column, Output, console, harmless, table, thousands
from usage_plugin.domain.money import format_usd

if TYPE_CHECKING:
    from usage_plugin.domain.usage import UsageTotals
    from usage_plugin.plugins.interface import Restoration
    from usage_plugin.runtime import Parts


async def run(parts: Parts, *, output: Output, dry_run: bool) -> None:
    """Restore, with a bar while it lasts, and print what there was."""
    last: Restoration | None = None
    with Progress(
        TextColumn("reading the files"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
        console=Console(stderr=True, quiet=not sys.stderr.isatty()), transient=True,
    ) as progress:  # fmt: skip
        task = progress.add_task("", total=None)
        async for last in parts.restore(dry_run=dry_run):
            progress.update(task, completed=last.records, total=last.most)
    if last is not None:
        _print(last, output)


def _print(done: Restoration, output: Output) -> None:
    rows = [_plain(name, totals) for name, totals in done.totals.items()]
    facts = {
        "restored": done.is_done,
        "records": done.records,
        "before": rows,
        "aside": None if done.aside is None else str(done.aside),
    }
    if not output.is_table:
        output.document(facts, rows)
        return
    table(
        "What each had",
        [Column("part"), Column("requests", number=True), Column("cost USD", number=True)],
        [
            [row["part"], "-" if row["requests"] is None else thousands(row["requests"]), row["cost"] or "away"]
            for row in rows
        ],
    )
    said = f"{thousands(done.records)} events and sums are in the files"
    said += ", and the database was made anew of them." if done.is_done else "; nothing was changed."
    screen = console()
    screen.print(Text(said))
    if done.aside is not None:
        screen.print(Text(harmless(f"The old database is {done.aside}.")))


def _plain(part: str, totals: UsageTotals | None) -> dict[str, Any]:
    if totals is None:
        return {"part": part, "requests": None, "cost": None}
    return {"part": part, "requests": totals.requests, "cost": format_usd(totals.cost)}
