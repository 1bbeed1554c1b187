"""The sentence of a refusal that a person reads, the same on every route."""

from __future__ import annotations

from typing import TYPE_CHECKING

from usage_plugin.domain.amounts import format_amount
from usage_plugin.domain.windows import MICROSECONDS, duration_words, to_instant

if TYPE_CHECKING:
    from collections.abc import Sequence

    from usage_plugin.domain.limits import Limit, Unit
    from usage_plugin.domain.refusals import Reason
    from usage_plugin.domain.windows import WindowKind
    from usage_plugin.tracking.admission.decisions import Refusal
    from usage_plugin.tracking.admission.demands import Demand

_WINDOW_WORDS: dict[WindowKind, str] = {
    "request": "for one request",
    "minute": "this minute",
    "hour": "this hour",
    "day": "today",
    "week": "this week",
    "month": "this month",
    "quarter": "this quarter",
    "year": "this year",
    "lifetime": "in total",
    "session": "in this session",
}
_UNIT_WORDS: dict[Unit, str] = {
    "usd": "USD",
    "total_tokens": "tokens",
    "input_tokens": "input tokens",
    "output_tokens": "output tokens",
    "requests": "requests",
    "parallel_requests": "requests",
}
_MOST_FIELDS = 5
_LONGEST_FIELD = 64
_WITHOUT_LIMIT: dict[Reason, str] = {
    "unavailable": "The usage ledger does not answer, so this request cannot be admitted; try again.",
    "outbox_full": "Usage cannot be stored at the moment, so this request cannot be admitted; try again.",
    "unmetered": "The cost of this route cannot be measured, and this proxy refuses such requests.",
}


def sentence(refusal: Refusal, contact: str) -> str:
    """Return the message of a refusal for a person."""
    demand = refusal.demand
    parts = []
    if demand is None:
        parts.append(_WITHOUT_LIMIT[refusal.reason])
    elif refusal.reason == "unpriced":
        unknown = f"the model {refusal.model}" if refusal.model else "a request that names no model"
        parts.append(f"No price is known for {unknown}, so it cannot be used under the cost limit {demand.limit.name}.")
    elif refusal.route is not None:
        parts.append(
            f"Nothing bounds what {refusal.route} may use, so it cannot be used under the limit {demand.limit.name}."
        )
    elif refusal.reason == "unbounded":
        parts.append(
            f"Nothing bounds what this request may use, so it cannot be admitted under the limit {demand.limit.name}."
            f" {_remedy(refusal.fields)}"
        )
    else:
        parts += [_account_sentence(refusal, demand), _reset_sentence(refusal, demand)]
    if contact:
        parts.append(contact if contact.endswith((".", "!", "?")) else f"{contact}.")
    return " ".join([*filter(None, parts), f"Ref {refusal.ref}"])


def _remedy(fields: Sequence[str]) -> str:
    """Return the sentence with the remedy. It names at most the first five fields."""
    if not fields:
        return "Name a maximum of output tokens, and send no background or provider-run tools."
    named = ", ".join(field[:_LONGEST_FIELD] for field in fields[:_MOST_FIELDS])
    return f"The cost of these fields is unknown: {named}. Leave them out."


def _account_sentence(refusal: Refusal, demand: Demand) -> str:
    limit = demand.limit
    when = _when(limit)
    if not limit.is_callers_own:
        what = {"busy": "is in use by other requests", "too_large": "is smaller than this request may need"}
        return f"The limit {limit.name} {what.get(refusal.reason, f'is used up {when}')}."
    unit = _UNIT_WORDS[limit.unit]
    maximum, spent, held, needed = (
        format_amount(limit.unit, amount)
        for amount in (demand.maximum or 0, refusal.balance.spent, refusal.balance.reserved, demand.amount)
    )
    may = f"this request may cost up to {needed}" if limit.unit == "usd" else f"this request may use up to {needed}"
    if refusal.reason == "too_large":
        return f"The limit {limit.name} allows {refusal.user} {maximum} {unit} {when}; {may}."
    in_flight = f", and requests in flight hold {held}" if refusal.balance.reserved else ""
    return f"{refusal.user} has used {spent} of {maximum} {unit} {when} (limit {limit.name}){in_flight}; {may}."


def _reset_sentence(refusal: Refusal, demand: Demand) -> str:
    if refusal.reason == "too_large":
        return ""
    if refusal.reason == "busy" and not refusal.waits_for_window:
        return "Try again in a moment."
    resets = refusal.resets_at
    if resets is None:
        return ""
    left = _rough((to_instant(resets) - refusal.at) // MICROSECONDS)
    if demand.since is not None:
        return f"There is room for it again in {left}."
    return f"Resets {resets.astimezone(demand.limit.zone):%Y-%m-%d %H:%M %Z}, in {left}."


def _when(limit: Limit) -> str:
    if limit.unit == "parallel_requests":
        return "at the same time"
    rule = limit.window
    return f"in {duration_words(rule.length)}" if rule.kind == "rolling" else _WINDOW_WORDS[rule.kind]


def _rough(seconds: int) -> str:
    """Return a span of time in its largest unit."""
    for name, length in (("days", 172_800), ("h", 7_200), ("min", 120)):
        if seconds >= length:
            return f"{seconds // {'days': 86_400, 'h': 3_600, 'min': 60}[name]} {name}"
    return f"{max(1, seconds)} s"
