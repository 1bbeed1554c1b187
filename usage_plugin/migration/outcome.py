"""The progress and the outcome of a migration."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from usage_plugin.domain.money import format_usd
from usage_plugin.domain.usage import UsageTotals


class Progress(Protocol):
    """A receiver of progress reports."""

    def begin(self, what: str, total: int | None) -> None:
        """Start a phase of `total` steps, if that number is known."""

    def advance(self, steps: int) -> None:
        """Report the number of steps that were completed since the last call."""


@dataclass
class Outcome:
    """The outcome of a migration, or of a preview with `dry_run`. Its sums are the right ones of the directory.

    Attributes:
        imported: The number of sums that this run stored; 0 if the store had all.
        checked: Whether the store is known to have all imported sums.
        findings: The first findings; all of them are in `report`.
        backups: The new names of the sources.
        not_renamed: The sources that keep their names, with the reason.
    """

    directory: str
    dry_run: bool
    formats: list[int] = field(default_factory=list)
    users: int = 0
    days: int = 0
    months: int = 0
    totals: UsageTotals = field(default_factory=UsageTotals)
    imported: int = 0
    profiles: int = 0
    limits: int = 0
    limits_file: str | None = None
    rejected: int = 0
    broken: int = 0
    disagreements: int = 0
    renamed_users: int = 0
    left_out: int = 0
    checked: bool = False
    backups: list[str] = field(default_factory=list)
    not_renamed: dict[str, str] = field(default_factory=dict)
    findings: list[dict[str, str]] = field(default_factory=list)
    report: str | None = None

    @property
    def is_complete(self) -> bool:
        """Whether everything importable was imported, and no source needs a repair."""
        return not self.broken and (self.checked or self.dry_run)

    def plain(self) -> dict[str, Any]:
        """Return plain values, for programs."""
        numbers = self.totals
        plain = asdict(self)
        plain["totals"] = {
            "requests": numbers.requests,
            "failed_requests": numbers.failed_requests,
            "input_tokens": numbers.input_tokens,
            "output_tokens": numbers.output_tokens,
            "cost": format_usd(numbers.cost),
        }
        return plain
