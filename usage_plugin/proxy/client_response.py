"""Client response: the form in which a client gets a refusal, and the headers of an admitted request.

The headers are the contract for programs; `sentence` is for people.

Measured with six SDKs: after a 429 with a long Retry-After some sleep for days, and after one without it some retry at
once. After a 402 none retries. So a 429 is only sent where a short wait helps.
"""

from __future__ import annotations

import math
import random
from typing import TYPE_CHECKING, Any

from litellm.proxy._types import ProxyException

from usage_plugin.domain.amounts import format_amount
from usage_plugin.domain.windows import MICROSECONDS
from usage_plugin.encoding import encode_record
from usage_plugin.tracking.admission.refusal_text import sentence

if TYPE_CHECKING:
    from usage_plugin.config import Config
    from usage_plugin.domain.refusals import Reason
    from usage_plugin.domain.usage import UsageEvent
    from usage_plugin.tracking.admission.decisions import Refusal
    from usage_plugin.tracking.admission.demands import AccountStatus

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
_ANTHROPIC_TYPES = {
    "budget_exceeded": "billing_error",
    "request_exceeds_limit": "billing_error",
    "budget_busy": "rate_limit_error",
    "rate_limit_exceeded": "rate_limit_error",
    "storage_unavailable": "api_error",
    "ledger_unavailable": "api_error",
    "identity_unavailable": "api_error",
}
"""Anthropic's documented `error.type` by ours; all others become `invalid_request_error`."""

_ANTHROPIC_ROUTE = "/v1/messages"
_LONGEST_RETRY = 60
_NOT_WORKING = ("unavailable", "outbox_full")
"""Reasons that no limit causes; a retry is right."""


def refusal_error(refusal: Refusal, config: Config) -> ProxyException:
    """Return the error that LiteLLM turns into the answer, with status, headers and fields."""
    return ProxyException(
        message=sentence(refusal, config.contact),
        type=error_type(refusal),
        param=refusal.demand.limit.name if refusal.demand else None,
        code=status_of(refusal, config),
        headers=refusal_headers(refusal),
        provider_specific_fields=_fields(refusal),
    )


def bad_request(message: str, *, param: str, kind: str = "invalid_request_error") -> ProxyException:
    """Return the error for an invalid request."""
    return ProxyException(message=message, type=kind, param=param, code=400, headers={"x-should-retry": "false"})


def anthropic_body(error: ProxyException, path: str) -> bytes | None:
    """Return a refusal in the format of Anthropic's API for a request on its route; None on other routes.

    The pass-through route's path has the same ending as LiteLLM's own. LiteLLM itself writes `api_error` for a 402, and
    keeps OpenAI's format on the pass-through route.
    """
    if not path.endswith(_ANTHROPIC_ROUTE):
        return None
    detail = {"type": _ANTHROPIC_TYPES.get(error.type, "invalid_request_error"), "message": error.message}
    fields = getattr(error, "provider_specific_fields", None)
    if fields:
        detail["provider_specific_fields"] = fields
    return encode_record({"type": "error", "error": detail}).encode("utf-8", "replace")


def error_type(refusal: Refusal) -> str:
    """Return the `error.type` of a refusal."""
    if refusal.reason == "busy" and refusal.waits_for_window:
        return "rate_limit_exceeded"
    return _TYPES[refusal.reason]


def status_of(refusal: Refusal, config: Config) -> int:
    """Return the HTTP status of a refusal."""
    if refusal.reason in ("unpriced", "unbounded", "unmetered"):
        return 400
    if refusal.reason == "busy":
        return 429
    if refusal.reason in _NOT_WORKING:
        return 503
    return config.admission.status_when_spent if refusal.reason == "spent" else 402


def refusal_headers(refusal: Refusal) -> dict[str, str]:
    """Return the headers of a refusal, which survive on every route."""
    headers: dict[str, str] = {"x-usage-refusal": refusal.reason}
    if refusal.demand:
        headers["x-usage-limit"] = refusal.demand.limit.name
    if refusal.reason in ("spent", "busy") and refusal.waits_for_window and (resets := refusal.resets_at):
        headers["x-usage-resets-at"] = resets.isoformat()
    if refusal.retry_after is None and refusal.reason not in _NOT_WORKING:
        return headers | {"x-should-retry": "false"}
    wait = (refusal.retry_after or MICROSECONDS) / MICROSECONDS
    jittered = min(_LONGEST_RETRY, wait + random.random())  # noqa: S311  # so that not all come back at once
    return headers | {
        "Retry-After": str(min(_LONGEST_RETRY, max(1, math.ceil(wait)))),
        "retry-after-ms": str(math.ceil(jittered * 1000)),
    }


def status_headers(account_status: AccountStatus) -> dict[str, str]:
    """Return headers with the status of the caller's most constrained limit."""
    limit = account_status.demand.limit
    headers = {
        "x-usage-limit": limit.name,
        "x-usage-remaining": format_amount(limit.unit, account_status.remaining),
        "x-usage-unit": limit.unit,
    }
    resets = limit.reset_of(account_status.demand.window)
    return headers | {"x-usage-resets-at": resets.isoformat()} if resets else headers


def negotiated_headers(event: UsageEvent) -> dict[str, str]:
    """Return headers that describe a downgrade or a shortened answer."""
    headers = {}
    if event.downgraded_by:
        headers["x-usage-downgraded-to"] = event.model or ""
    if event.clamped_to:
        headers["x-usage-clamped-to"] = str(event.clamped_to)
    return headers


def _fields(refusal: Refusal) -> dict[str, Any]:
    """Return the machine-readable facts; amounts only if the limit is the caller's own."""
    facts = refusal.facts
    shown = ["reason", "limit", "resets_at", "ref"]
    if refusal.demand and refusal.demand.limit.is_callers_own:
        shown = ["reason", "limit", "subject", "unit", "max", "spent", "reserved", "needed", "resets_at", "ref"]
    found = {name: facts[name] for name in shown if name in facts}
    return {**found, "fields": list(refusal.fields)} if refusal.fields else found
