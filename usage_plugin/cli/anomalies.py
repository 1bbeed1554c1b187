"""Anomalies: records that are not exact, counted by kind, for `status` and `doctor`."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

from usage_plugin.cli.output import Column, thousands
from usage_plugin.domain.money import format_usd
from usage_plugin.domain.windows import to_datetime

if TYPE_CHECKING:
    from collections.abc import Sequence

    from usage_plugin.domain.operations import Anomaly

COUNT_COLUMNS = (
    Column("kind"), Column("times", number=True), Column("amount", number=True), Column("last"), Column("most on"),
    Column("meaning"),
)  # fmt: skip

KINDS = {
    "estimated": "charged by an estimate, since no usage was reported",
    "unpriced": "recorded without a cost, since no price is known",
    "unmetered": "on a route that reports no usage",
    "unheld": "recorded without admission, as health checks are",
    "recovered": "its worker died: charged as reserved",
    "orphaned": "its outcome was never reported: charged as reserved",
    "duplicate": "reported twice and counted once",
    "disputed": "our cost and LiteLLM's differ; the amount is the difference",
    "overrun": "used more tokens than a limit held",
    "degraded": "admitted while the ledger was unavailable",
    "ledger_away": "the total time for which the ledger was unavailable",
    "gap": "counted by the limits, without an event",
    "unstorable": "set aside in a file, since the store rejects it",
    "not_told": "not delivered to a plugin",
    "unresolved": "an identity resolver failed: the request was refused, or the user was in none of its groups",
}
"""The kinds that are always shown, and their meanings."""


class AnomalyCount(NamedTuple):
    """The occurrences of one kind of anomaly, over all models or limits that it concerned."""

    kind: str
    times: int
    amount: int
    concerns: str
    last_at: int | None

    @property
    def meaning(self) -> str:
        """The meaning of the kind."""
        return KINDS.get(self.kind, "")

    @property
    def amount_text(self) -> str:
        """The total amount of the kind: USD, or seconds for `ledger_away`."""
        if self.kind == "ledger_away":
            return f"{self.amount / 1_000_000:.1f} s" if self.amount else ""
        return f"{format_usd(self.amount)} USD" if self.amount else ""


def counts(anomalies: Sequence[Anomaly]) -> list[AnomalyCount]:
    """Count anomalies by kind; kinds that never occurred are listed with 0."""
    times: Counter[str] = Counter(dict.fromkeys(KINDS, 0))
    amounts: Counter[str] = Counter()
    concerned: dict[str, Counter[str]] = {}
    last: dict[str, int] = {}
    for found in anomalies:
        times[found.kind] += found.times
        amounts[found.kind] += found.amount
        concerned.setdefault(found.kind, Counter())[found.concerns] += found.times
        last[found.kind] = max(last.get(found.kind, 0), found.last_at)
    return [
        AnomalyCount(
            kind, number, amounts[kind],
            ", ".join(f"{name} {n}" for name, n in concerned.get(kind, Counter()).most_common(3) if name),
            last.get(kind),
        )
        for kind, number in times.items()
    ]  # fmt: skip


def plain_counts(anomalies: Sequence[Anomaly]) -> list[dict[str, Any]]:
    """Return every anomaly as JSON."""
    return [found._asdict() for found in anomalies]


def count_cells(count: AnomalyCount) -> list[str]:
    """Return the table cells of a count, in the order of `COUNT_COLUMNS`."""
    last = "" if count.last_at is None else f"{to_datetime(count.last_at):%Y-%m-%d %H:%M} UTC"
    return [count.kind, thousands(count.times), count.amount_text, last, count.concerns, count.meaning]
