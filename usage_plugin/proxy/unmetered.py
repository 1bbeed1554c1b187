"""Unmetered routes: their usage is not reported, so `admission.on_unmetered` decides about requests.

- `deny` refuses them.
- A flat cost is held and charged for each request.
- `allow` records them without a cost, and counts them.

In each case a used-up limit on cost or tokens refuses them. If LiteLLM does report the cost, as on some providers' own
pass-through routes, that cost is charged.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from usage_plugin.domain.subjects import LONGEST_NAME
from usage_plugin.domain.usage import UsageEvent, new_event_id, new_ref
from usage_plugin.tracking.admission.decisions import Decision, Refusal
from usage_plugin.tracking.admission.demands import Ask, Candidate

if TYPE_CHECKING:
    from collections.abc import Mapping

    from usage_plugin.config import ActiveConfig
    from usage_plugin.domain.clock import Clock
    from usage_plugin.domain.subjects import Subjects
    from usage_plugin.tracking.admission.remedies import Admission

UNMETERED = frozenset({"pass_through_endpoint", "allm_passthrough_route", "llm_passthrough_route"})
"""LiteLLM's call types for routes that forward a request unchanged."""


class UnmeteredAdmission:
    """Admits requests whose model and tokens are not known for certain."""

    def __init__(self, admission: Admission, config: ActiveConfig, clock: Clock) -> None:
        """Create it from the admission of the worker, the configuration and the clock."""
        self._admission = admission
        self._config = config
        self._clock = clock

    async def admit(self, subjects: Subjects, data: Mapping[str, Any], call_type: str) -> Decision:
        """Decide on a request by `admission.on_unmetered` and the limits."""
        model = data.get("model")
        if not isinstance(model, str) or not model.isprintable() or not 0 < len(model) <= LONGEST_NAME:
            model = None
        policy, now = self._config.current.admission.on_unmetered, self._clock.now()
        if policy == "deny" and self._config.enforce:
            return Decision(Refusal(reason="unmetered", ref=new_ref(), at=now, user=subjects.user, model=model), ())
        draft = UsageEvent(
            event_id=new_event_id(),
            started_at=now,
            status="recovered",
            call_type=call_type,
            **subjects.kept(),
            requested_model=model,
            model=model,
        )
        flat = policy if isinstance(policy, int) else 0
        candidate = Candidate(model, None, priced=True, worst_cost=flat, is_unmetered=True)
        # There is no other model for a downgrade, so a limit that would downgrade only counts the request.
        ask = Ask(
            draft=draft, subjects=subjects, primary=(candidate,), input_tokens=0, output_tokens=0, is_downgraded=True
        )
        return await self._admission.admit(ask)
