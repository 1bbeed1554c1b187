"""`usage-plugin migrate`: import the data of the previous usage tracker."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

import click
from rich.text import Text

from usage_plugin.cli.importing import reject_memory_store, show_counts, show_findings
from usage_plugin.cli.output import Output, console, escape_control, thousands
from usage_plugin.cli.progress import Bar, NotedBar
from usage_plugin.domain.clock import SystemClock
from usage_plugin.domain.money import format_usd
from usage_plugin.errors import UsagePluginError
from usage_plugin.migration.background import DONE, FAILED
from usage_plugin.migration.directory_migration import MigrationContext, migrate, preview
from usage_plugin.runtime import Parts
from usage_plugin.tracking.maintenance.backfill import count_history_anew

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from usage_plugin.config import Config
    from usage_plugin.migration.outcome import Outcome

_NICE = 10


def run(config: Config, directory: Path, *, output: Output, dry_run: bool, in_background: bool) -> None:
    """Migrate and print the result; exit code 1 if the data needs repair."""
    if in_background:
        os.nice(_NICE)
    directory = directory.expanduser().resolve()
    if dry_run:
        bar = Bar()
        with bar.shown():
            outcome = preview(directory, _context(config, str), bar)
    else:
        outcome = asyncio.run(_migrate(config, directory))
    if output.is_table:
        _show(outcome, config)
    else:
        plain = outcome.plain()
        output.document(plain, plain["findings"])
    if not outcome.is_complete:
        raise click.exceptions.Exit(1)


def _context(config: Config, kept: Callable[[str], str]) -> MigrationContext:
    return MigrationContext(
        data_dir=config.data_dir,
        limits_file=config.migrated_limits,
        zone=config.timezone,
        casefold=config.identity.casefold,
        kept=kept,
    )


async def _migrate(config: Config, directory: Path) -> Outcome:
    reject_memory_store(config)
    parts = Parts(config)
    opened = parts.open_ledger()
    bar = NotedBar(opened.operations, SystemClock(), str(directory))
    try:
        pseudonyms = parts.pseudonyms_for(opened.operations)
        with bar.shown():
            async with parts.open_store_for_import() as store:
                outcome = await migrate(directory, _context(config, pseudonyms.kept), bar, opened.profiles, store)
                # Also if this run added nothing: an earlier one may have been killed before this step.
                if outcome.formats:
                    count_history_anew(opened.operations, config.limit_set(pseudonyms), config.timezone)
    except UsagePluginError as error:
        bar.note(FAILED, str(error))
        raise
    else:
        # Files that cannot be read now will not become readable by a retry.
        bar.note(DONE, _summary_line(outcome))
        return outcome
    finally:
        opened.close()


def _summary_line(outcome: Outcome) -> str:
    problems = {
        "rejected": outcome.rejected,
        "cannot be read": outcome.broken,
        "disagreements": outcome.disagreements,
        "left out": outcome.left_out,
    }
    suffix = "".join(f", {thousands(number)} {problem}" for problem, number in problems.items() if number)
    return (
        f"{thousands(outcome.users)} users, {thousands(outcome.days)} days, {thousands(outcome.months)} months,"
        f" {thousands(outcome.totals.requests)} requests, {format_usd(outcome.totals.cost)} USD,"
        f" {thousands(outcome.profiles)} profiles, {outcome.limits} limits{suffix}"
    )


def _show(outcome: Outcome, config: Config) -> None:
    if not outcome.formats:
        console().print(Text(escape_control(f"{outcome.directory}: nothing to import; all data was imported before.")))
        return
    formats = " and ".join(map(str, outcome.formats))
    verb = "would be imported" if outcome.dry_run else "imported"
    totals = outcome.totals
    rows = [
        ("users", thousands(outcome.users)),
        ("days", thousands(outcome.days)),
        ("months without days", thousands(outcome.months)),
        ("requests", thousands(totals.requests)),
        ("failed requests", thousands(totals.failed_requests)),
        ("input tokens", thousands(totals.input_tokens)),
        ("output tokens", thousands(totals.output_tokens)),
        ("cost USD", format_usd(totals.cost)),
        ("new in the store", thousands(outcome.imported)),
        ("profiles", thousands(outcome.profiles)),
        ("limits", thousands(outcome.limits)),
        ("renamed users", thousands(outcome.renamed_users)),
        ("rejected", thousands(outcome.rejected)),
        ("cannot be read", thousands(outcome.broken)),
        ("disagreements", thousands(outcome.disagreements)),
        ("left out", thousands(outcome.left_out)),
    ]
    show_counts(f"{outcome.directory} (format {formats}): {verb}", rows)
    found = outcome.rejected + outcome.broken + outcome.disagreements + outcome.renamed_users + outcome.left_out
    show_findings("Findings", ("kind", "where", "user", "date", "text"), outcome.findings, total=found)
    screen = console()
    if outcome.report:
        screen.print(Text(escape_control(f"{outcome.report} lists all findings.")))
    if outcome.limits_file:
        screen.print(Text(escape_control(f"The limits are in {outcome.limits_file}.{_in_force(config)}")))
    for name, reason in outcome.not_renamed.items():
        screen.print(Text(escape_control(f"{name} was not renamed: {reason}"), style="yellow"))
    if outcome.dry_run:
        screen.print(Text("Nothing was changed."))
    elif outcome.checked:
        screen.print(Text("Verified: the store's counts and sums match the imported data.", style="green"))


def _in_force(config: Config) -> str:
    if config.migrated_limits in config.limit_files():
        return " They are in force."
    return f" To enable them, add limits_from: [{config.migrated_limits}] to the YAML."
