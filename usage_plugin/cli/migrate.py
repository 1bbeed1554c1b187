"""`usage-plugin migrate`: the data of the previous usage tracker moves in."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

import click
from rich.text import Text

from usage_plugin.cli.output import Column, Output, console, harmless, table, thousands
from usage_plugin.cli.progress import Bar, NotedBar
from usage_plugin.domain.clock import SystemClock
from usage_plugin.domain.money import format_usd
from usage_plugin.errors import MigrationError, UsagePluginError
from usage_plugin.migration.background import DONE, FAILED
from usage_plugin.migration.directory_migration import MigrationContext, migrate, preview
from usage_plugin.runtime import Parts
from usage_plugin.tracking.seeding import count_history_anew

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from usage_plugin.config import Config
    from usage_plugin.migration.outcome import Outcome

_NICE = 10


def run(config: Config, directory: Path, *, output: Output, dry_run: bool, in_background: bool) -> None:
    """Migrate, and print what came of it; exit code 1 if something needs repair."""
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
    if config.storage.backend == "memory":
        raise MigrationError(
            "storage.backend is memory, which would forget what is imported.", hint="Choose another backend first."
        )
    parts = Parts(config)
    pseudonyms = parts.make_pseudonyms()
    ledger = parts.open_ledger()
    bar = NotedBar(ledger, SystemClock(), str(directory))
    try:
        with bar.shown():
            async with parts.open_store() as store:
                outcome = await migrate(directory, _context(config, pseudonyms.kept), bar, ledger, store)
                # Whatever this run has added: an earlier one may have been killed before it came here.
                if outcome.formats:
                    count_history_anew(ledger, config.limit_set(pseudonyms), config.timezone)
    except UsagePluginError as error:
        bar.note(FAILED, str(error))
        raise
    else:
        # What cannot be read now will not be by trying again.
        bar.note(DONE, _in_a_line(outcome))
        return outcome
    finally:
        ledger.close()


def _in_a_line(outcome: Outcome) -> str:
    problems = {
        "rejected": outcome.rejected,
        "cannot be read": outcome.broken,
        "disagreements": outcome.disagreements,
        "left out": outcome.left_out,
    }
    told = "".join(f", {thousands(number)} {what}" for what, number in problems.items() if number)
    return (
        f"{thousands(outcome.users)} users, {thousands(outcome.days)} days, {thousands(outcome.months)} months,"
        f" {thousands(outcome.totals.requests)} requests, {format_usd(outcome.totals.cost)} USD,"
        f" {thousands(outcome.profiles)} profiles, {outcome.limits} limits{told}"
    )


def _show(outcome: Outcome, config: Config) -> None:
    if not outcome.formats:
        console().print(Text(harmless(f"{outcome.directory}: nothing is left; what was there was imported before.")))
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
    table(
        f"{outcome.directory} (format {formats}): {verb}",
        [Column("what"), Column("count", number=True)],
        [(what, number) for what, number in rows],
    )
    if outcome.findings:
        columns = ("kind", "where", "user", "date", "text")
        found = outcome.rejected + outcome.broken + outcome.disagreements + outcome.renamed_users + outcome.left_out
        table(
            f"Findings ({len(outcome.findings)} of {found})",
            [Column(name) for name in columns],
            [[finding.get(name, "") for name in columns] for finding in outcome.findings],
        )
    screen = console()
    if outcome.report:
        screen.print(Text(harmless(f"All findings are in {outcome.report}.")))
    if outcome.limits_file:
        screen.print(Text(harmless(f"The limits are in {outcome.limits_file}.{_in_force(config)}")))
    for name, why in outcome.not_renamed.items():
        screen.print(Text(harmless(f"{name} keeps its name: {why}"), style="yellow"))
    if outcome.dry_run:
        screen.print(Text("Nothing was changed."))
    elif outcome.checked:
        screen.print(Text("The store has what it was given: counts and sums are the same.", style="green"))


def _in_force(config: Config) -> str:
    if config.migrated_limits in config.limit_files():
        return " They are in force."
    return f" To put them in force, add limits_from: [{config.migrated_limits}] to the YAML."
