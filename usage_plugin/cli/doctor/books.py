"""Books: what the ledger and the store say of themselves, and everything that is not known exactly."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

from usage_plugin.cli.doctor.findings import Finding, ok, problem, warning
from usage_plugin.domain.money import format_usd
from usage_plugin.domain.usage import decode_event
from usage_plugin.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from usage_plugin.domain.ledger import Imperfection
    from usage_plugin.runtime import Reader

KINDS = {
    "estimated": "charged by an estimate, since nobody said what was used",
    "unpriced": "recorded without a cost, since no price is known",
    "unmetered": "on a route that tells no usage",
    "unheld": "recorded without having been admitted, as health checks are",
    "recovered": "its worker died: charged as reserved",
    "orphaned": "its end was never reported: charged as reserved",
    "duplicate": "reported once more, and not counted again",
    "disagreement": "our cost is not LiteLLM's; the amount is the difference",
    "degraded": "let through while the ledger did not work",
    "gap": "let through while the store could not keep up",
}
"""Every kind that is always shown, and what it means."""
_LASTING = frozenset({"degraded", "gap"})
_LATE = 300_000_000


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
        """Write the amount as its kind has it."""
        if not self.amount:
            return ""
        return f"{self.amount / 1e6:,.1f} s" if self.kind in _LASTING else f"{format_usd(self.amount)} USD"


def counts(imperfections: Sequence[Imperfection]) -> list[Count]:
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


def plain_counts(imperfections: Sequence[Imperfection]) -> list[dict[str, Any]]:
    """Give every count as JSON has it."""
    return [found._asdict() for found in imperfections]


async def check_books(reader: Reader) -> list[Finding]:
    """Go through the ledger and the store."""
    found = [ok("books", f"The ledger is {reader.ledger.location}.")]
    wrong = reader.ledger.verify()
    found += [
        problem("books", text, "Stop the proxy, keep a copy of the data folder, and report it.") for text in wrong
    ]
    if not wrong:
        found.append(ok("books", "The ledger is whole: no damage, no hold without a reservation, no sum below zero."))
    found += _outbox(reader)
    found += _lost(reader)
    for name, text in reader.ledger.notes("problem:").items():
        found.append(warning("books", f"{name.removeprefix('problem:')}: {text}"))
    try:
        await reader.store.health()
    except StorageError as error:
        found.append(problem("books", f"The store takes no events: {error.message}", error.hint or ""))
    else:
        found.append(ok("books", f"The store ({reader.config.storage.backend}) takes events."))
    return found


def _outbox(reader: Reader) -> Iterator[Finding]:
    waiting = reader.ledger.waiting()
    if not waiting.events:
        yield ok("books", "The store has every event.")
        return
    page = reader.ledger.outbox(reader.ledger.acknowledged(), 1)
    oldest = decode_event(page[0].event).started_at if page else reader.clock.now()
    text = f"{waiting.events:,} events ({waiting.size:,} bytes) wait for the store"
    if not reader.workers.living():
        yield warning("books", f"{text}, since no proxy runs.", "They are moved when it starts.")
    elif reader.clock.now() - oldest > _LATE:
        yield problem(
            "books",
            f"{text}, the oldest for {(reader.clock.now() - oldest) // 60_000_000} min.",
            "The proxy's log says why (keeper.interrupted). Nothing is lost; at the bound new requests are refused.",
        )
    else:
        yield ok("books", f"{text}, for a moment.")


def _lost(reader: Reader) -> Iterator[Finding]:
    dead = [r for r in reader.ledger.open_reservations() if reader.workers.is_dead(r.worker)]
    if dead:
        yield warning(
            "books",
            f"{len(dead)} reservations are open whose worker is gone.",
            "The keeper settles them within seconds, once a proxy runs; they hold what they reserved until then.",
        )
