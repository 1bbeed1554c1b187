"""`usage-plugin restore`: rebuild the database of a hybrid store from its files alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.text import Text

from usage_plugin.cli.output import Column, Output, console, escape_control, table, thousands
from usage_plugin.cli.progress import counting_bar
from usage_plugin.domain.money import format_usd

if TYPE_CHECKING:
    from usage_plugin.domain.usage import UsageTotals
    from usage_plugin.plugins.interface import Restoration
    from usage_plugin.runtime import Parts


async def run(parts: Parts, *, output: Output, dry_run: bool) -> None:
    """Restore with a progress bar, and print the record counts of each part."""
    last: Restoration | None = None
    with counting_bar("reading the files") as advance:
        async for last in parts.restore(dry_run=dry_run):
            advance(last.records, last.most)
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
        "Records before the restore",
        [Column("part"), Column("requests", number=True), Column("cost USD", number=True)],
        [
            [row["part"], "-" if row["requests"] is None else thousands(row["requests"]), row["cost"] or "missing"]
            for row in rows
        ],
    )
    text = f"The files have {thousands(done.records)} events and sums"
    text += "; the database was rebuilt from them." if done.is_done else "; nothing was changed."
    screen = console()
    screen.print(Text(text))
    if done.aside is not None:
        screen.print(Text(escape_control(f"The old database was moved to {done.aside}.")))


def _plain(part: str, totals: UsageTotals | None) -> dict[str, Any]:
    if totals is None:
        return {"part": part, "requests": None, "cost": None}
    return {"part": part, "requests": totals.requests, "cost": format_usd(totals.cost)}
