"""Builders of domain objects, with defaults for all fields that a test does not set."""

from __future__ import annotations

from datetime import date
from typing import TYPE_CHECKING, Any, TypeVar

from usage_plugin.domain.ledger import AccountKey, Hold, Settled
from usage_plugin.domain.prices import Rates
from usage_plugin.domain.store import ROLLUP_DIMENSIONS, DailySum
from usage_plugin.domain.usage import UsageEvent, UsageTotals, new_event_id

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from usage_plugin.domain.ledger import Charge, Ledger

NOON = 1_795_435_200_000_000
"""The instant 2026-11-23 12:00 UTC."""
TODAY = date(2026, 11, 23)
MINUTE = 60_000_000
DAY = 24 * 60 * MINUTE

ANN = AccountKey(1, 0, "ann")
TEAM = AccountKey(2, 0, "research")
END = DAY
"""Two accounts, and the end of their windows."""

RecordT = TypeVar("RecordT")


def make_event(**fields: Any) -> UsageEvent:
    """Return an event: ann's successful request, with 10 input and 5 output tokens, for $0.01."""
    event: dict[str, Any] = {
        "event_id": new_event_id(),
        "started_at": NOON,
        "status": "success",
        "call_type": "acompletion",
        "user": "ann",
        "model": "gpt",
        "provider": "openai",
        "input_tokens": 10,
        "output_tokens": 5,
        "cost": 10_000_000,
        "cost_source": "computed",
    }
    return UsageEvent(**{**event, **fields})


def make_sum(**fields: Any) -> DailySum:
    """Return a sum: ann's two requests of today, one of them failed, for 3 cents."""
    names: dict[str, Any] = {**dict.fromkeys(ROLLUP_DIMENSIONS), "user": "ann", "model": "unknown"}
    totals = UsageTotals(requests=2, failed_requests=1, input_tokens=20, output_tokens=10, cost=30_000_000)
    return DailySum(**{"day": TODAY, **names, "totals": totals, **fields})


def make_rates(prompt: int = 0, answer: int = 0, **parts: int) -> Rates:
    """Return rates in atto-dollars; an omitted part has the rate of its whole."""
    of_input = ("cached_input", "cache_write", "audio_input", "image_input", "video_input", "citation")
    rates = dict.fromkeys(of_input, prompt)
    rates |= dict.fromkeys(("reasoning", "audio_output", "image_output", "video_output"), answer)
    rates |= parts
    rates.setdefault("cached_audio", rates["cached_input"])
    rates.setdefault("cache_write_1h", rates["cache_write"])
    return Rates(input=prompt, output=answer, **rates)


def numbered_from(first: int, records: Iterable[RecordT]) -> list[tuple[int, RecordT]]:
    """Number records consecutively, as a writer does."""
    return list(enumerate(records, first))


def event_of(writer: str, number: int) -> UsageEvent:
    """Return the event of a writer's number; the same arguments always return the same event."""
    user = ("ann", "bo", "zoë")[number % 3]
    return make_event(event_id=f"{writer}-{number:06}", started_at=NOON + number * MINUTE, user=user, cost=number)


def batch_of(writer: str, first: int, count: int) -> list[tuple[int, UsageEvent]]:
    """Return consecutively numbered events of a writer."""
    return numbered_from(first, (event_of(writer, number) for number in range(first, first + count)))


def sums_batch(count: int = 3) -> list[tuple[int, DailySum]]:
    """Return numbered daily sums."""
    return numbered_from(1, (make_sum(user=f"old {number}") for number in range(count)))


def hold(account: AccountKey, amount: int, maximum: int | None) -> Hold:
    """Return a hold that is charged in full if its worker dies."""
    return Hold(account, END, amount, maximum, if_lost=amount)


def record_new(ledger: Ledger, charges: Sequence[Charge], event: str | None) -> Settled:
    """Record an event under a new id."""
    recorded = ledger.record(new_event_id(), charges, event)
    assert recorded is not None
    return recorded


def settle_open(ledger: Ledger, event_id: str, charges: Sequence[Charge], event: str | None) -> Settled:
    """Settle an open reservation."""
    settled = ledger.settle(event_id, charges, event)
    assert isinstance(settled, Settled), settled
    return settled


def settle_one(ledger: Ledger, event: str) -> int:
    """Reserve and settle a request without limits; return its number."""
    ledger.reserve(event, "w", 5, [], "draft")
    return settle_open(ledger, event, [], event).seq
