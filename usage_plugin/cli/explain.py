"""`usage-plugin explain`: why a request was refused."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from usage_plugin.cli.output import Column, Output, table
from usage_plugin.errors import UsagePluginError

if TYPE_CHECKING:
    from usage_plugin.runtime import Reader


class UnknownRefError(UsagePluginError):
    """No refusal has this ref."""


async def run(reader: Reader, *, output: Output, ref: str) -> None:
    """Print the facts of a refusal."""
    found = reader.ledger.refusal(ref.strip().upper())
    if found is None:
        raise UnknownRefError(
            f"No refusal has the ref {ref}.", hint="The last 10,000 are kept, and written down once a second."
        )
    facts = json.loads(found)
    if not output.is_table:
        output.document(facts, [facts])
        return
    rows = []
    for name, value in facts.items():
        if isinstance(value, dict):
            text = ", ".join(f"{dimension} {subject}" for dimension, subject in value.items()) or "everybody"
        else:
            text = "-" if value is None else str(value)
        rows.append([name.replace("_", " "), text])
    table(f"Refusal {facts['ref']}", [Column("what"), Column("value")], rows)
