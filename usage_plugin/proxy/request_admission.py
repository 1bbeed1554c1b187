"""Admit a request of LiteLLM: plan it, and let admission decide.

If it does not fit, `tracking.admission.remedies` asks for the request in other forms, which are planned here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from usage_plugin.log import get_logger
from usage_plugin.proxy.body_fields import names_any
from usage_plugin.proxy.request_plan import AS_IT_ARRIVED, Form
from usage_plugin.proxy.tokens import Tokenizer, most_savings
from usage_plugin.tracking.admission.demands import demands_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from usage_plugin.config import ActiveConfig
    from usage_plugin.domain.subjects import Subjects
    from usage_plugin.proxy.price_book import Deployment
    from usage_plugin.proxy.request_plan import HeldBounds, RequestPlan, RequestPlanner
    from usage_plugin.tracking.admission.active_limits import ActiveLimits
    from usage_plugin.tracking.admission.decisions import Admitted, Decision, Downgrade, Refusal
    from usage_plugin.tracking.admission.demands import Ask, Demand
    from usage_plugin.tracking.admission.remedies import Admission

SHORTEST_ANSWER = 256
"""The minimum answer in tokens. A shorter one would be useless."""

_OUTPUT_UNITS = frozenset({"usd", "total_tokens", "output_tokens"})
_INPUT_UNITS = frozenset({"usd", "total_tokens", "input_tokens"})
# Half of such an answer is worthless, or is spent before the answer begins.
_ALL_OR_NOTHING = (
    "tools", "functions", "response_format", "thinking", "reasoning", "reasoning_effort", "text", "output_format",
    "output_config", "responseSchema", "response_schema", "responseJsonSchema", "response_json_schema",
    "responseMimeType", "response_mime_type", "thinkingConfig", "thinking_config",
)  # fmt: skip

log = get_logger()


class RequestDecision(NamedTuple):
    """A decision on a request, with all that is needed to start it.

    Attributes:
        subjects: The parties of the request.
        decision: The decision of admission.
        is_unmetered: Whether the route reports no usage.
        held_bounds: The bounds that the outgoing request is compared with, if it is.
        apply: Changes the request, so that LiteLLM reads it as it was admitted.
    """

    subjects: Subjects
    decision: Decision
    is_unmetered: bool = False
    held_bounds: HeldBounds | None = None
    apply: Callable[[Admitted], None] | None = None


class RequestAdmission:
    """Admits requests; each handler has one."""

    def __init__(
        self, admission: Admission, planner: RequestPlanner, limits: ActiveLimits, config: ActiveConfig
    ) -> None:
        """Create it from the admission of the worker, the planner, the limits and the configuration."""
        self._admission = admission
        self.planner = planner
        self.limits = limits
        self.config = config
        self.tokenizer = Tokenizer()

    async def admit(self, subjects: Subjects, data: Mapping[str, Any], call_type: str) -> tuple[Decision, RequestPlan]:
        """Decide on a request. It may be admitted for another model, or with a shorter answer.

        Returns:
            The decision, and the plan that it is about. The plan of an admitted request must be applied to its body.

        Raises:
            ProxyException: The request cannot be admitted as it is written.
        """
        alternatives = _Alternatives(self, subjects, data, call_type, AS_IT_ARRIVED)
        decision = await self._admission.admit(alternatives.plan.ask, alternatives)
        return decision, alternatives.plan

    async def admit_again(
        self, request: Admitted, kwargs: Mapping[str, Any], call_type: str, deployment: Deployment
    ) -> tuple[Decision, RequestPlan]:
        """Decide again on a request that changed after its admission, just before it is sent to one deployment.

        Its holds must have been released. It keeps its id, and `kwargs` are not changed.
        """
        form = Form(deployment=deployment, admitted=request.event)
        body = {**kwargs, "model": deployment.model}
        alternatives = _Alternatives(self, request.subjects, body, call_type, form)
        decision = await self._admission.admit(alternatives.plan.ask, alternatives)
        return decision, alternatives.plan


class _Alternatives:
    """One request and its other forms; `plan` is the one that was decided on last."""

    __slots__ = ("_call_type", "_data", "_form", "_parts", "_subjects", "plan")

    def __init__(
        self, parts: RequestAdmission, subjects: Subjects, data: Mapping[str, Any], call_type: str, form: Form
    ) -> None:
        self._parts = parts
        self._subjects = subjects
        self._data = data
        self._call_type = call_type
        self._form = form
        self.plan = self._planned(form)

    def _planned(self, form: Form) -> RequestPlan:
        return self._parts.planner.plan(self._subjects, self._data, self._call_type, form)

    def _take(self, form: Form) -> Ask:
        """Go on with the request in this form."""
        self._form, self.plan = form, self._planned(form)
        return self.plan.ask

    async def tokenised(self, ask: Ask, obstacle: Refusal | Downgrade) -> Ask | None:
        """Count the request's texts with the provider's tokenizer, if that can make the request fit."""
        demand = obstacle.demand
        if self._form.counted_tokens or ask.input_tokens is None or demand is None:
            return None
        if demand.limit.unit not in _INPUT_UNITS:
            return None
        # Counting takes time, so it is done only if the counted amount could fit. If the bound by bytes is within the
        # maximum, it must fit into the unspent rest. Else it must fit into the maximum: then the reason is `spent`
        # instead of `too_large`.
        room = maximum = demand.maximum or 0
        if demand.amount <= maximum:
            room -= obstacle.balance.spent
        body = self.plan.body
        most = most_savings(body)
        encoding = self._parts.planner.encoding(self._subjects, body) if most else None
        if encoding is None:
            return None
        if not self._fits(self._planned(self._form._replace(counted_tokens=most)).ask, demand, room):
            return None
        counted = await self._parts.tokenizer.savings(body, encoding)
        return self._take(self._form._replace(counted_tokens=counted))

    def downgraded(self, ask: Ask, obstacle: Downgrade) -> Ask:
        """Plan the request for another model, which may have another tokenizer, price and output limit."""
        limit = obstacle.demand.limit.name
        log.info("request.downgraded", limit=limit, user=ask.subjects.user, model=obstacle.model)
        return self._take(
            self._form._replace(model=obstacle.model, downgraded_by=limit, counted_tokens=0, output_limit=None)
        )

    def without_thinking_room(self) -> Ask | None:
        """Plan our ordinary output limit, if the larger one is ours and the client asks for no thinking."""
        injected = self.plan.held_bounds.output.injected if self.plan.held_bounds is not None else None
        ordinary = self._parts.config.current.admission.output_tokens_of(self.plan.ask.draft.requested_model or "")
        if self._form.deployment is not None or injected is None or injected[1] <= ordinary:
            return None
        if names_any(self._data, ("thinking",)):
            return None
        return self._take(self._form._replace(has_room_for_thinking=False))

    def shortened(self, ask: Ask, obstacle: Refusal, room: int) -> Ask | None:
        """Plan the longest answer that fits into `room` of the limit that refused; None if it would be too short."""
        demand = obstacle.demand
        field = self.plan.held_bounds.output.field if self.plan.held_bounds is not None else None
        if self._parts.config.current.admission.on_short_budget != "clamp" or self._form.deployment is not None:
            return None
        if demand is None or demand.limit.unit not in _OUTPUT_UNITS or field is None or not ask.output_tokens:
            return None
        if names_any(self._data, _ALL_OR_NOTHING):
            return None
        longest, low, high = None, SHORTEST_ANSWER, ask.output_tokens - 1
        while low <= high:
            # Try the shortest first: it usually decides.
            middle = low if longest is None else (low + high) // 2
            form = self._form._replace(output_limit=(field, middle))
            shorter = self._planned(form).ask
            if (shorter.output_tokens or 0) >= ask.output_tokens or not self._fits(shorter, demand, room):
                high = middle - 1
            else:
                longest, low = form, middle + 1
        return None if longest is None else self._take(longest)

    def _fits(self, ask: Ask, refused: Demand, room: int) -> bool:
        """Whether the limit that refused has room for the request in another form."""
        demands, _ = demands_of(ask, ask.primary, self._parts.limits.limits, "charge")
        return all(
            demand.amount <= room
            for demand in demands
            if (demand.limit.key, demand.subject) == (refused.limit.key, refused.subject)
        )
