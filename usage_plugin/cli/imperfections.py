"""Imperfections: everything that is not known exactly, summed up by kind, for `status` and `doctor`."""

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
    "estimated": "charged by an estimate, since nobody said what was used",
    "unpriced": "recorded without a cost, since no price is known",
    "unmetered": "on a route that tells no usage",
    "unheld": "recorded without having been admitted, as health checks are",
    "recovered": "its worker died: charged as reserved",
    "orphaned": "its end was never reported: charged as reserved",
    "duplicate": "reported once more, and not counted again",
    "disputed": "our cost and LiteLLM's differ; the amount is the difference",
    "overrun": "more tokens were used than were held on a limit",
    "degraded": "let through while the ledger did not work",
    "ledger_away": "the ledger did not work for so long",
    "gap": "counted by the limits, with no event kept",
    "unstorable": "set aside in a file, since the store never takes it",
    "not_told": "what a plugin could not be told of",
    "unresolved": "an identity resolver failed: the request was refused, or the user was in none of its groups",
}
"""Every kind that is always shown, and what it means."""


class Count(NamedTuple):
    """How often something was not known exactly, over all that it concerned."""

    kind: str
    times: int
    amount: int
    concerns: str
    last_at: int | None

    @property
    def meaning(self) -> str:
        """Say what the kind means."""
        return KINDS.get(self.kind, "")

    @property
    def amount_text(self) -> str:
        """Write what the kind adds up."""
        if self.kind == "ledger_away":
            return f"{self.amount / 1_000_000:.1f} s" if self.amount else ""
        return f"{format_usd(self.amount)} USD" if self.amount else ""


def counts(imperfections: Sequence[Anomaly]) -> list[Count]:
    """Sum up by kind; kinds that never occurred are there with 0."""
    times: Counter[str] = Counter(dict.fromkeys(KINDS, 0))
    amounts: Counter[str] = Counter()
    concerned: dict[str, Counter[str]] = {}
    last: dict[str, int] = {}
    for found in imperfections:
        times[found.kind] += found.times
        amounts[found.kind] += found.amount
        concerned.setdefault(found.kind, Counter())[found.concerns] += found.times
        last[found.kind] = max(last.get(found.kind, 0), found.last_at)
    return [
        Count(
            kind, number, amounts[kind],
            ", ".join(f"{name} {n}" for name, n in concerned.get(kind, Counter()).most_common(3) if name),
            last.get(kind),
        )
        for kind, number in times.items()
    ]  # fmt: skip


def plain_counts(imperfections: Sequence[Anomaly]) -> list[dict[str, Any]]:
    """Give every count as JSON has it."""
    return [found._asdict() for found in imperfections]


def count_cells(count: Count) -> list[str]:
    """Write a count for people, in the order of `COUNT_COLUMNS`."""
    last = "" if count.last_at is None else f"{to_datetime(count.last_at):%Y-%m-%d %H:%M} UTC"
    return [count.kind, thousands(count.times), count.amount_text, last, count.concerns, count.meaning]
