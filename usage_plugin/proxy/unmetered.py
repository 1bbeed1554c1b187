"""Unmetered routes: what a request there uses, nobody tells. `admission.on_unmetered` says what becomes of it.

`deny` refuses it; a flat cost is held and charged for each request; `allow` records it without a cost, and counts it.
In each case a limit on cost or tokens that is used up refuses it.
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
    """Decide on a request of which neither the model nor the tokens are known for sure."""
    model = data.get("model")
    if not isinstance(model, str) or not model.isprintable() or not 0 < len(model) <= LONGEST_NAME:
        model = None
    policy, now = runtime.config.admission.on_unmetered, runtime.clock.now()
    if policy == "deny" and runtime.enforce:
        return Decision(Refusal(reason="unmetered", ref=new_ref(), at=now, user=subjects.user, model=model), ())
    draft = UsageEvent(
        event_id=new_event_id(),
        started_at=now,
        status="recovered",
        call_type=kind,
        **subjects.kept(),
        requested_model=model,
        model=model,
    )
    flat = policy if isinstance(policy, int) else 0
    way = Candidate(model, None, priced=True, worst_cost=flat, is_unmetered=True)
    # There is no other model to send it to, so a limit that would do so counts it and lets it pass.
    ask = Ask(draft=draft, subjects=subjects, primary=(way,), input_tokens=0, output_tokens=0, is_downgraded=True)
    return await runtime.admission.admit(ask)
