"""The common parts of `usage-plugin migrate` and `import`: the check of the store, and the printed result."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from usage_plugin.cli.output import Column, table
from usage_plugin.errors import MigrationError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from usage_plugin.config import Config


def reject_memory_store(config: Config) -> None:
    """Reject an import into a store that loses it.

    Raises:
        MigrationError: the store is in memory.
    """
    if config.storage.backend == "memory":
        raise MigrationError(
            "storage.backend is memory: the import would be lost at exit.", hint="Choose another backend first."
        )


def show_counts(title: str, counts: Sequence[tuple[str, str]]) -> None:
    """Print the number of records of each kind."""
    table(title, [Column("item"), Column("count", number=True)], counts)


def show_findings(title: str, columns: Sequence[str], findings: Sequence[Mapping[str, Any]], *, total: int) -> None:
    """Print the findings, if there are any; the title has their number and the total in the report."""
    if findings:
        table(
            f"{title} ({len(findings)} of {total})",
            [Column(name) for name in columns],
            [[finding.get(name, "") for name in columns] for finding in findings],
        )
