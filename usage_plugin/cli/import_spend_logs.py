"""`usage-plugin import litellm-spend-logs`: convert LiteLLM's spend logs to usage events."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import click
from rich.text import Text

from usage_plugin.cli.importing import reject_memory_store, show_counts, show_findings
from usage_plugin.cli.output import Output, console, escape_control, thousands
from usage_plugin.cli.progress import Bar
from usage_plugin.domain.money import format_usd
from usage_plugin.migration.spend_logs import IdentityRules, Imported, import_spend_logs
from usage_plugin.runtime import Parts
from usage_plugin.tracking.maintenance.backfill import count_history_anew

if TYPE_CHECKING:
    from datetime import datetime
    from pathlib import Path

    from usage_plugin.config import Config


def spend_logs(config: Config, file: Path, *, output: Output, before: datetime | None) -> None:
    """Import LiteLLM's spend logs; exit code 1 if a row was rejected."""
    reject_memory_store(config)
    imported = asyncio.run(_import(config, file, before))
    if output.is_table:
        _show(imported)
    else:
        plain = imported.plain()
        output.document(plain, plain["findings"])
    if imported.rejected:
        raise click.exceptions.Exit(1)


async def _import(config: Config, file: Path, before: datetime | None) -> Imported:
    identity = config.identity
    instant = int(before.replace(tzinfo=config.timezone).timestamp()) * 1_000_000 if before else None
    parts, bar = Parts(config), Bar()
    opened = parts.open_ledger()
    try:
        pseudonyms = parts.pseudonyms_for(opened.operations)
        naming = IdentityRules(identity.user, identity.casefold, identity.json_field, pseudonyms.keep)
        with bar.shown():
            async with parts.open_store_for_import() as store:
                imported = await import_spend_logs(file, config.data_dir, naming, store, bar, before=instant)
        if imported.rows:
            count_history_anew(opened.operations, config.limit_set(pseudonyms), config.timezone)
        return imported
    finally:
        opened.close()


def _show(imported: Imported) -> None:
    rows = [
        ("rows", thousands(imported.rows)),
        ("new events", thousands(imported.events)),
        ("cost USD", format_usd(imported.cost)),
        ("already imported", thousands(imported.known)),
        ("excluded by --before", thousands(imported.later)),
        ("rejected", thousands(imported.rejected)),
    ]
    show_counts(f"Imported from {imported.file}", rows)
    show_findings("Rejected rows", ("where", "user", "date", "text"), imported.findings, total=imported.rejected)
    if imported.findings:
        console().print(Text(escape_control(f"{imported.report} lists all of them.")))
