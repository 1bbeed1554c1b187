"""Refusing: a refusal as the client gets it. The headers are the machine contract; the sentence is for people.

Measured with six SDKs: a 429 with a long Retry-After makes some sleep for days, one without makes others retry at
once; on 402 all of them try once. So only what a short wait can lift is a 429.
"""

from __future__ import annotations

import math
import random
from typing import TYPE_CHECKING, Any

from litellm.proxy._types import ProxyException

from usage_plugin.domain.windows import MICROSECONDS, duration_words, to_instant
from usage_plugin.tracking.refusals import describe, format_amount, reset_of

if TYPE_CHECKING:
    from usage_plugin.config import Config
    from usage_plugin.domain.limits import Limit, Unit
    from usage_plugin.domain.usage import UsageEvent
    from usage_plugin.domain.windows import WindowKind
    from usage_plugin.tracking.admission import Reason, Refusal
    from usage_plugin.tracking.demands import Demand, Standing

_TYPES: dict[Reason, str] = {
    "spent": "budget_exceeded",
    "busy": "budget_busy",
    "too_large": "request_exceeds_limit",
    "unpriced": "model_unpriced",
    "unbounded": "request_unbounded",
    "unmetered": "request_unmetered",
    "outbox_full": "storage_unavailable",
    "unavailable": "ledger_unavailable",
}
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
_LONGEST_RETRY = 60
_NOT_WORKING = ("unavailable", "outbox_full")
"""Nobody's limit is the cause, and trying again is right."""


_WITHOUT_LIMIT: dict[Reason, str] = {
    "unavailable": "The usage ledger does not answer, so this request cannot be admitted; try again.",
    "outbox_full": "Usage cannot be stored at the moment, so this request cannot be admitted; try again.",
    "unmetered": "What this route costs cannot be metered, and this proxy admits no such request.",
}


def refusal_error(refusal: Refusal, config: Config) -> ProxyException:
    """Make the error that LiteLLM turns into the answer, with status, headers and fields."""
    return ProxyException(
        message=sentence(refusal, config.contact),
        type=error_type(refusal),
        param=refusal.demand.limit.name if refusal.demand else None,
        code=status_of(refusal, config),
        headers=refusal_headers(refusal),
        provider_specific_fields=_fields(refusal),
    )


def bad_request(message: str, *, param: str, kind: str = "invalid_request_error") -> ProxyException:
    """Make the error for a request that is wrong in itself."""
    return ProxyException(message=message, type=kind, param=param, code=400, headers={"x-should-retry": "false"})


def error_type(refusal: Refusal) -> str:
    """Give `error.type`."""
    if refusal.reason == "busy" and _waits_for_window(refusal):
        return "rate_limit_exceeded"
    return _TYPES[refusal.reason]


def status_of(refusal: Refusal, config: Config) -> int:
    """Give the HTTP status."""
    if refusal.reason in ("unpriced", "unbounded", "unmetered"):
        return 400
    if refusal.reason == "busy":
        return 429
    if refusal.reason in _NOT_WORKING:
        return 503
    return config.admission.status_when_spent if refusal.reason == "spent" else 402


def refusal_headers(refusal: Refusal) -> dict[str, str]:
    """Give the headers, which survive on every route."""
    headers: dict[str, str] = {"x-usage-refusal": refusal.reason}
    if refusal.demand:
        headers["x-usage-limit"] = refusal.demand.limit.name
    if refusal.reason in ("spent", "busy") and _waits_for_window(refusal) and (resets := reset_of(refusal)):
        headers["x-usage-resets-at"] = resets.isoformat()
    if refusal.retry_after is None and refusal.reason not in _NOT_WORKING:
        return headers | {"x-should-retry": "false"}
    wait = (refusal.retry_after or MICROSECONDS) / MICROSECONDS
    jittered = min(_LONGEST_RETRY, wait + random.random())  # noqa: S311  # so that not all come back at once
    return headers | {
        "Retry-After": str(min(_LONGEST_RETRY, max(1, math.ceil(wait)))),
        "retry-after-ms": str(math.ceil(jittered * 1000)),
    }


def standing_headers(standing: Standing) -> dict[str, str]:
    """Tell a caller how their tightest limit stands."""
    limit = standing.demand.limit
    headers = {
        "x-usage-limit": limit.name,
        "x-usage-remaining": format_amount(limit.unit, standing.remaining),
        "x-usage-unit": limit.unit,
    }
    resets = limit.reset_of(standing.demand.window)
    return headers | {"x-usage-resets-at": resets.isoformat()} if resets else headers


def negotiated_headers(event: UsageEvent) -> dict[str, str]:
    """Tell a caller what became of their request, if it is not what they asked for."""
    headers = {}
    if event.downgraded_by:
        headers["x-usage-downgraded-to"] = event.model or ""
    if event.clamped_to:
        headers["x-usage-clamped-to"] = str(event.clamped_to)
    return headers


def sentence(refusal: Refusal, contact: str) -> str:
    """Say it to a person."""
    demand = refusal.demand
    parts = []
    if demand is None:
        parts.append(_WITHOUT_LIMIT[refusal.reason])
    elif refusal.reason == "unpriced":
        parts.append(
            f"No price is known for the model {refusal.model}, so it cannot be used under the cost limit"
            f" {demand.limit.name}."
        )
    elif refusal.reason == "unbounded":
        parts.append(
            f"Nothing bounds what this request may use, so it cannot be admitted under the limit {demand.limit.name}."
            " Name a maximum of output tokens, and send no background or provider-run tools."
        )
    else:
        parts += [_account_sentence(refusal, demand), _reset_sentence(refusal, demand)]
    if contact:
        parts.append(contact if contact.endswith((".", "!", "?")) else f"{contact}.")
    return " ".join([*filter(None, parts), f"Ref {refusal.ref}"])


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
    if refusal.reason == "busy" and not _waits_for_window(refusal):
        return "Try again in a moment."
    resets = reset_of(refusal)
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
    """Write a span of time in its largest unit."""
    for name, length in (("days", 172_800), ("h", 7_200), ("min", 120)):
        if seconds >= length:
            return f"{seconds // {'days': 86_400, 'h': 3_600, 'min': 60}[name]} {name}"
    return f"{max(1, seconds)} s"


def _waits_for_window(refusal: Refusal) -> bool:
    demand = refusal.demand
    return demand is not None and refusal.balance.spent + demand.amount > (demand.maximum or 0)


def _fields(refusal: Refusal) -> dict[str, Any]:
    """Give the machine-readable facts; amounts only where they are the caller's own."""
    facts = describe(refusal)
    shown = ["reason", "limit", "resets_at", "ref"]
    if refusal.demand and refusal.demand.limit.is_callers_own:
        shown = ["reason", "limit", "subject", "unit", "max", "spent", "reserved", "needed", "resets_at", "ref"]
    return {name: facts[name] for name in shown if name in facts}
