"""`usage-plugin move-ledger`: move the ledger and its history to the place that another YAML names."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from rich.text import Text

from usage_plugin.cli.importing import show_counts
from usage_plugin.cli.output import Output, console, escape_control, thousands
from usage_plugin.cli.progress import Bar
from usage_plugin.domain.clock import SystemClock
from usage_plugin.runtime import Parts
from usage_plugin.runtime.ledger_move import LedgerMove, MoveOutcome

if TYPE_CHECKING:
    from usage_plugin.config import Config


def run(source: Config, target: Config, *, output: Output, dry_run: bool, undo: bool) -> None:
    """Move, preview the move, or undo it, and print the number of records."""
    bar = Bar(is_seen=output.is_table)
    move = LedgerMove(Parts(source), Parts(target), SystemClock(), bar)
    with bar.shown():
        outcome = asyncio.run(move.preview() if dry_run else move.undo() if undo else move.run())
    if output.is_table:
        _show(outcome, source, target, is_undone=undo)
    else:
        output.document(outcome.plain(), [outcome.plain()])


def _show(outcome: MoveOutcome, source: Config, target: Config, *, is_undone: bool) -> None:
    if outcome.records:
        verb = "moved" if outcome.is_moved else "would be moved"
        rows = [(name, thousands(number)) for name, number in outcome.records.items()]
        show_counts(f"{outcome.source}: {verb}", [*rows, ("cost USD in the history", thousands(outcome.cost))])
    if is_undone:
        said = f"The ledger {outcome.source} stays: use {source.path}."
    elif outcome.was_moved_before:
        said = f"The ledger {outcome.source} was moved before: use {target.path}."
    elif outcome.is_moved:
        said = f"Both sides were compared, and are equal. Start the proxy with {target.path}."
    else:
        said = f"Nothing was changed. The new place is {outcome.target or 'empty'}."
    console().print(Text(escape_control(said)))
