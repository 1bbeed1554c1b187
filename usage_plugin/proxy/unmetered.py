"""Unmetered routes: what a request there uses, nobody tells. `admission.on_unmetered` says what becomes of it.

`deny` refuses it; a flat cost is held and charged for each request; `allow` records it without a cost, and counts it.
If LiteLLM knows the cost after all, as on some providers' own pass-through routes, that is what is charged.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from usage_plugin.domain.subjects import LONGEST_NAME
from usage_plugin.domain.usage import UsageEvent, new_event_id, new_ref
from usage_plugin.tracking.admission import Decision, Refusal
from usage_plugin.tracking.demands import Ask, Candidate

if TYPE_CHECKING:
    from collections.abc import Mapping

    from usage_plugin.domain.subjects import Subjects
    from usage_plugin.runtime import Runtime

UNMETERED = frozenset({"pass_through_endpoint", "allm_passthrough_route", "llm_passthrough_route"})
"""LiteLLM's call types for routes that hand a request through as it is."""


async def admit_unmetered(runtime: Runtime, subjects: Subjects, data: Mapping[str, Any], kind: str) -> Decision:
    """Decide on a request to such a route."""
    ask = _ask(runtime, subjects, data, kind)
    if runtime.enforce and runtime.config.admission.on_unmetered == "deny":
        return Decision(_refusal(ask), ())
    return await runtime.admission.admit(ask)


def _ask(runtime: Runtime, subjects: Subjects, data: Mapping[str, Any], kind: str) -> Ask:
    """Read a request of which neither the model nor the tokens are known for sure."""
    model = data.get("model")
    if not isinstance(model, str) or not model.isprintable() or not 0 < len(model) <= LONGEST_NAME:
        model = None
    flat = runtime.config.admission.on_unmetered
    return Ask(
        draft=UsageEvent(
            event_id=new_event_id(),
            started_at=runtime.clock.now(),
            status="recovered",
            call_type=kind,
            **subjects._asdict(),
            requested_model=model,
            model=model,
        ),
        subjects=subjects,
        primary=(Candidate(model, None, priced=True, worst_cost=flat if isinstance(flat, int) else 0),),
        input_tokens=0,
        output_tokens=0,
    )


def _refusal(ask: Ask) -> Refusal:
    """Refuse it, whatever the limits say."""
    return Refusal(
        reason="unmetered",
        ref=new_ref(),
        at=ask.draft.started_at,
        user=ask.subjects.user,
        model=ask.draft.requested_model,
    )
